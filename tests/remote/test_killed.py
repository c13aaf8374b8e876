"""A process that downloads is killed at random moments: versions are whole or not there."""

import random
import subprocess
import sys
from pathlib import Path

import msgspec

from service.lifecycle.remote_start import Outcome, Request
from service.settings_remote import cache_folder
from tests.support.stores import Bucket, Proxy, contents, needs_moto, version_files

pytestmark = needs_moto

KILLS = 20
SIZE = 3 << 20


def test_twenty_kills_never_leave_half_a_version(bucket: Bucket, proxy: Proxy, tmp_path: Path) -> None:
    chance = random.Random(6)
    files = {str(version): version_files(version, SIZE) for version in (1, 2)}
    for version in files:
        bucket.put(f"models/digits/{version}", files[version])
    url = f"s3://{bucket.name}/models"
    repository = cache_folder(url, tmp_path) / "repository"
    request = Request(url, str(tmp_path), 1 << 30, 5.0, (), 2, "warning", "text")
    killed = 0
    while killed < KILLS:
        process = started(request)
        proxy.cut_after(chance.randrange(SIZE), process.kill)
        assert process.stdout is not None
        answer = process.stdout.read()
        killed += process.wait() == -9
        ended(process)
        for folder in repository.glob("*/*/"):
            assert contents(folder) == files[folder.name], "whole"
        if answer:  # it came to its end: begin again
            assert msgspec.json.decode(answer, type=Outcome) == Outcome()
            assert sorted(path.name for path in repository.glob("digits/*")) == ["1", "2"]
            for folder in repository.glob("*/*/"):
                folder.rename(tmp_path / f"{folder.name}-{killed}")
    proxy.cut_never()
    process = started(request)
    assert process.stdout is not None
    assert msgspec.json.decode(process.stdout.read(), type=Outcome) == Outcome()
    ended(process)
    assert {path.name: contents(path) for path in repository.glob("digits/*/")} == files
    assert not list(tmp_path.glob("*/.gone-*"))


def test_it_ends_with_the_one_that_asked(bucket: Bucket, proxy: Proxy, tmp_path: Path) -> None:
    bucket.put("models/digits/1", version_files(1, SIZE))
    process = started(Request(f"s3://{bucket.name}/models", str(tmp_path), 1 << 30, 60.0, (), 1, "warning", "text"))
    assert process.stdin is not None
    proxy.cut_after(SIZE // 2, process.stdin.close)
    assert process.wait(timeout=30) == 1
    ended(process)


def started(request: Request) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "service.lifecycle.remote_start"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(request) + b"\n")
    process.stdin.flush()
    return process


def ended(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()
