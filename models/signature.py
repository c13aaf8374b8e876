"""Who vouches for a version: an Ed25519 signature of the manifest's bytes, in `manifest.sig` beside it.

    {"algorithm": "ed25519", "key": "SHA256:<fingerprint>", "signature": "<base64 of 64 bytes>"}

The manifest holds the digest of every file of the version, so whoever signs it signs them all; `manifest.sig` itself is
in no list. Keys are those of OpenSSH: `python -m training keygen` makes a pair, and so does
`ssh-keygen -t ed25519 -N ''`. A file of public keys has one a line, `ssh-ed25519 <base64> <comment>`; lines that are
empty or begin with # say nothing. A key is named by its fingerprint, as `ssh-keygen -l -f` prints it.
Needs cryptography (extra `sign`), so the service imports this module only where signatures are asked for.
Checked by tests/unit/test_signature.py.
"""

import base64
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
    ssh_key_fingerprint,
)
from msgspec import Struct

from models.manifest import MANIFEST_FILE, SIGNATURE_FILE, ManifestError, read_beside


class KeyInvalid(Exception):
    """A file of keys that cannot be used. The message names the file, and the line where it has several."""


class Signature(Struct, frozen=True, forbid_unknown_fields=True):
    """`key` is the fingerprint of the signer's public key."""

    algorithm: Literal["ed25519"]
    key: str
    signature: bytes


def check_signature(version_dir: Path, manifest: bytes, trusted: Mapping[str, bytes]) -> None:
    """That one of the trusted keys signed these bytes of the manifest.

    trusted   as `read_public_keys` returns them
    Raises    ManifestError
    """
    path = version_dir / SIGNATURE_FILE
    if not os.path.lexists(path):
        raise ManifestError(f"{path}: missing, and only signed versions are served")
    try:
        signature = msgspec.json.decode(read_beside(version_dir, SIGNATURE_FILE), type=Signature)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: {error}") from error
    key = trusted.get(signature.key)
    if key is None:
        raise ManifestError(f"{path}: signed with {signature.key!r}, which is none of the {len(trusted)} trusted keys")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature.signature, manifest)
    except InvalidSignature as error:
        raise ManifestError(
            f"{path}: not the signature of this {MANIFEST_FILE} with {signature.key}; one of the two was altered"
        ) from error


def write_signature(version_dir: Path, key: Ed25519PrivateKey) -> None:
    """Sign the manifest as it lies there; an earlier signature is replaced in one rename."""
    signed = key.sign((version_dir / MANIFEST_FILE).read_bytes())
    content = msgspec.json.encode(Signature("ed25519", fingerprint(key.public_key()), signed))
    partial = tempfile.NamedTemporaryFile(dir=version_dir, prefix=f".{SIGNATURE_FILE}-", delete=False)  # noqa: SIM115
    try:
        with partial:
            partial.write(msgspec.json.format(content, indent=2) + b"\n")
        Path(partial.name).chmod(0o644)  # a temporary file has 0600; the service often runs as somebody else
        Path(partial.name).rename(version_dir / SIGNATURE_FILE)
    except BaseException:
        Path(partial.name).unlink(missing_ok=True)
        raise


def read_public_keys(path: Path) -> dict[str, bytes]:
    """The 32 bytes of each key, by fingerprint. Raises KeyInvalid."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise KeyInvalid(f"{path}: {error.strerror}") from error
    keys: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith(b"#"):
            continue
        key = _public_key(line.strip())
        if key is None:
            raise KeyInvalid(f"{path}: line {number}: expected a public key as 'ssh-ed25519 <base64> <comment>'")
        keys[fingerprint(key)] = key.public_bytes_raw()
    if not keys:
        raise KeyInvalid(f"{path}: expected a public key a line, 'ssh-ed25519 <base64> <comment>', and found none")
    return keys


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Raises KeyInvalid."""
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise KeyInvalid(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it has a passphrase
        raise KeyInvalid(f"{path}: expected an OpenSSH private key without a passphrase: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyInvalid(f"{path}: expected an Ed25519 key, as 'ssh-keygen -t ed25519' makes it")
    return key


def private_key_file(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def public_key_line(key: Ed25519PublicKey, comment: str) -> bytes:
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + f" {comment}\n".encode()


def fingerprint(key: Ed25519PublicKey) -> str:
    """As ssh-keygen prints it."""
    return "SHA256:" + base64.b64encode(ssh_key_fingerprint(key, SHA256())).decode().rstrip("=")


def _public_key(line: bytes) -> Ed25519PublicKey | None:
    if not line.startswith(b"ssh-ed25519 "):  # a hardware key's sk-ssh-ed25519 signs something else
        return None
    try:
        key = load_ssh_public_key(line)
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, Ed25519PublicKey) else None
