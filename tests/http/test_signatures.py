"""`--require-signature`, as an operator uses it."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from models.manifest import SIGNATURE_FILE
from models.signature import public_key_line, write_signature
from tests.http.conftest import FAST_START, Serve
from tests.support.build_models import change_manifest, plain_graphs, publish_scores, write_model
from tests.support.server import ROOT, starting_server

KEY = Ed25519PrivateKey.generate()
REASONS = {
    "unsigned": "manifest.sig: missing",
    "altered": "manifest.sig: not the signature",
    "unknown": "none of the 1 trusted keys",
    "bare": "manifest.json: missing",
}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "trusted keys"
    path.write_bytes(public_key_line(KEY.public_key(), "the tests"))
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """One model that is signed, and one for each of REASONS."""
    root = tmp_path / "models"
    write_signature(publish_scores(root), KEY)
    publish_scores(root, "unsigned")
    altered = publish_scores(root, "altered")
    write_signature(altered, KEY)
    change_manifest(altered, description="something else")
    write_signature(publish_scores(root, "unknown"), Ed25519PrivateKey.generate())
    write_model(root, "bare", plain_graphs()["floats"])
    return root


@pytest.mark.parametrize("frontends", [0, 1])
def test_only_versions_signed_with_a_trusted_key_are_served(
    serve: Serve, models: Path, keys: Path, frontends: int
) -> None:
    server = serve("--require-signature", str(keys), "--frontends", str(frontends), models=models)
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        assert client.get("/v2/models").json() == {"models": ["scores"]}
        for name, reason in REASONS.items():
            answer = client.get(f"/v2/models/{name}")
            assert answer.status_code == 503
            assert reason in answer.json()["error"]


def test_without_the_flag_nobody_asks_for_signatures(serve: Serve, models: Path) -> None:
    server = serve(models=models)
    answer = httpx.get(f"{server.url}/v2/models", trust_env=False)
    assert answer.json() == {"models": ["altered", "bare", "scores", "unknown", "unsigned"]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"no key\n", "line 1: expected a public key as 'ssh-ed25519 <base64> <comment>'"),
        (b"# nobody\n", "expected a public key a line"),
    ],
)
def test_keys_that_cannot_be_used_end_the_start_and_name_the_flag(
    models: Path, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with starting_server(*FAST_START, "--repository", str(models), "--require-signature", str(path)) as (server, _):
        assert server.wait() == 2
        assert server.log().startswith(f"settings: --require-signature {path}: {reason}")
        assert server.log().count("\n") == 1


def test_check_asks_for_signatures_too(models: Path, keys: Path) -> None:
    def check(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "service", "check", "--repository", str(models), *FAST_START, *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    done = check("--require-signature", str(keys))
    assert done.returncode == 1
    assert "scores version 1: ready" in done.stdout
    for name, reason in REASONS.items():
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"{name} version 1: refused: ")]
        assert reason in line
    assert check("--require-signature", str(models / "scores" / "1" / SIGNATURE_FILE)).returncode == 2
    assert check().returncode == 0
