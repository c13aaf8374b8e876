"""Who vouches for a published version: `python -m training keygen` and `sign`.

A version never changes: a signature lies beside what the manifest lists, and is in no list (models/signature.py).
Checked by tests/training/test_sign.py.
"""

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from models.manifest import ManifestError, check_files, check_identity, check_no_others, read_manifest
from models.signature import (
    KeyInvalid,
    fingerprint,
    private_key_file,
    public_key_line,
    read_private_key,
    write_signature,
)
from training.catalogue import chosen_folder
from training.errors import KeyUnsuited, VersionUnknown


def make_keys(prefix: Path) -> tuple[Path, str]:
    """A key to sign with in `prefix`, which only its owner reads, and the one to trust in `prefix`.pub.

    Returns   the public key's file and its fingerprint
    Raises    KeyUnsuited where one of the files exists
    """
    public_file = prefix.with_name(prefix.name + ".pub")
    for path in (prefix, public_file):
        if os.path.lexists(path):
            raise KeyUnsuited(f"{path} exists, and a lost key cannot be made again; choose another name.")
    key = Ed25519PrivateKey.generate()
    with os.fdopen(os.open(prefix, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private_key_file(key))
    public_file.write_bytes(public_key_line(key.public_key(), prefix.name))
    return public_file, fingerprint(key.public_key())


def key_to_sign_with(path: Path) -> Ed25519PrivateKey:
    """Raises KeyUnsuited."""
    try:
        return read_private_key(path)
    except KeyInvalid as error:
        raise KeyUnsuited(f"{error}.") from error


def sign(repository: Path, wanted: str, key: Ed25519PrivateKey) -> Path:
    """Sign a version as it was published; an earlier signature is replaced. Returns the folder.

    wanted   a model's name, for its highest version, or name/version
    Raises   VersionUnknown, also where its files are not those it was published with
    """
    folder = chosen_folder(repository, wanted)
    try:
        manifest = read_manifest(folder)
        check_identity(folder, manifest, folder.parent.name, folder.name)
        check_files(folder, manifest)
        check_no_others(folder, manifest)
    except ManifestError as error:
        raise VersionUnknown(f"{error}; nothing was signed.") from error
    write_signature(folder, key)
    return folder
