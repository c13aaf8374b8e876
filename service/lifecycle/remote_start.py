"""Before a server starts: what it is to serve is downloaded, by a process of its own.

That process is not forked from ours and shares nothing with it, for what downloads runs threads, and ours forks later.
It ends when ours does, however that comes about: its standard input then ends.
"""

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from service.lifecycle.remote import open_remote
from service.lifecycle.remote_source import RemoteError
from service.log import configure_logging
from service.settings import Logging, Settings

log = logging.getLogger(__name__)


class Request(Struct, frozen=True):
    """`names`: the models to bring, () for all of them; `latest`: how many versions of each."""

    url: str
    cache_dir: str | None
    max_bytes: int
    timeout_s: float
    names: tuple[str, ...]
    latest: int
    log_level: str
    log_format: str


class Outcome(Struct, frozen=True):
    """`error`: why nothing could be brought; `refused`: reasons by "<name> version <version>"."""

    error: str = ""
    refused: dict[str, str] = {}


def settled_repository(settings: Settings) -> Settings:
    """Settings whose `repository` is a folder that is there, with the versions that are served at the start.

    Where the remote is out of reach, what was downloaded before is served, and a warning says so.
    Raises   RemoteError
    """
    remote = settings.remote
    if remote.url is None:
        return settings
    if importlib.util.find_spec("obstore") is None:
        raise RemoteError(
            remote.url, "the extra `remote` is not installed", "pip install 'shoal[cpu,remote]', or 'shoal[gpu,remote]'"
        )
    outcome = _ask(_request(settings, remote.url))
    for version, reason in outcome.refused.items():
        log.warning("%s is not brought: %s", version, reason)
    if outcome.error:
        if not any(settings.repository.glob("*/*/")):
            raise RemoteError(remote.url, outcome.error.removeprefix(f"{remote.url}: "), "nothing is in the cache")
        log.warning("%s; what was downloaded before is served", outcome.error)
    return settings


def newest(names: Sequence[str], latest: int) -> Callable[[str, Sequence[str]], Sequence[str]]:
    """For `Remote.refresh`: so many of the newest versions of these models, of all where there are no names."""
    return lambda name, versions: versions[max(0, len(versions) - latest) :] if not names or name in names else ()


def _request(settings: Settings, url: str) -> Request:
    remote, control = settings.remote, settings.control
    names = tuple(name.strip() for name in control.load_at_start.split(",") if name.strip())
    return Request(
        url=url,
        cache_dir=str(remote.cache_dir) if remote.cache_dir else None,
        max_bytes=remote.max_bytes,
        timeout_s=remote.timeout_s,
        names=() if "*" in names else names,
        latest=control.latest if names else 0,
        log_level=settings.logging.level,
        log_format=settings.logging.format,
    )


def _ask(request: Request) -> Outcome:
    command = [sys.executable, "-m", __name__]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603  # our own module
    assert process.stdin is not None
    assert process.stdout is not None
    with process, process.stdin as stdin:
        stdin.write(msgspec.json.encode(request) + b"\n")
        stdin.flush()
        answer = process.stdout.read()
    try:
        return msgspec.json.decode(answer, type=Outcome)
    except msgspec.DecodeError:
        return Outcome(f"the process that downloads ended with {process.returncode}; its log says why")


def main() -> int:
    """One request from standard input, one outcome to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all its processes; we follow who asks
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=Request)
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    configure_logging(Logging.model_validate({"level": request.log_level, "format": request.log_format}))
    print(json.dumps(msgspec.to_builtins(_bring(request))), flush=True)
    return 0


def _bring(request: Request) -> Outcome:
    try:
        cache_dir = Path(request.cache_dir) if request.cache_dir else None
        remote = open_remote(request.url, cache_dir, request.max_bytes, request.timeout_s)
        refused = remote.refresh(newest(request.names, request.latest))
    except RemoteError as error:
        return Outcome(str(error))
    except OSError as error:
        return Outcome(f"{error.filename}: {error.strerror}; check the folder of remote.cache_dir")
    return Outcome(refused={_called(*key): reason for key, reason in refused.items()})


def _called(name: str, version: str) -> str:
    return f"{name} version {version}" if version else f"settings of {name}"


def _end_with_standard_input() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock Python wants at the end of the process
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
