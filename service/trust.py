"""Whose signatures count: the public keys that `control.require_signature` names, read once.

The supervisor reads them before it forks, so a file that cannot be used ends the start, and all processes hold the same
keys for as long as the service runs, whatever becomes of the file.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from service.settings import SettingsError


@cache
def trusted_keys(path: Path | None) -> Mapping[str, bytes] | None:
    """Ed25519 public keys by fingerprint; None: versions need no signature. Raises SettingsError."""
    if path is None:
        return None
    try:
        from models.signature import KeyInvalid, read_public_keys  # here: cryptography is an extra
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"--require-signature {path}: the extra `sign` is not installed; pip install 'shoal[cpu,sign]', or "
            "'shoal[gpu,sign]'"
        ) from error
    try:
        return read_public_keys(path)
    except KeyInvalid as error:
        raise SettingsError(f"--require-signature {error}") from error
