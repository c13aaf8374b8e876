import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from models.signature import fingerprint, public_key_line
from service.engine.serve import model_settings
from service.settings import SettingsError, read_settings
from service.trust import trusted_keys

KEY = Ed25519PrivateKey.generate().public_key()
TRUSTED = {fingerprint(KEY): KEY.public_bytes_raw()}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_bytes(public_key_line(KEY, "the tests"))
    return path


def test_without_the_setting_no_signature_is_needed() -> None:
    assert model_settings(read_settings([], "serve")).trusted_keys is None


@pytest.mark.parametrize("flag", ["--require-signature", "--control.require-signature"])
def test_engines_get_the_keys_of_the_file(keys: Path, flag: str) -> None:
    assert model_settings(read_settings([flag, str(keys)], "serve")).trusted_keys == TRUSTED


def test_what_becomes_of_the_file_later_changes_nothing(keys: Path) -> None:
    trusted_keys(keys)
    keys.unlink()
    assert trusted_keys(keys) == TRUSTED


def test_without_the_extra_the_message_names_it(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "models.signature", None)
    with pytest.raises(SettingsError, match=r"--require-signature .*the extra `sign` is not installed"):
        trusted_keys(keys)
