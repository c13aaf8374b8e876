import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from models.manifest import MANIFEST_FILE, SIGNATURE_FILE, ManifestError
from models.signature import (
    KeyInvalid,
    check_signature,
    fingerprint,
    private_key_file,
    public_key_line,
    read_private_key,
    read_public_keys,
    write_signature,
)

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
NAME = fingerprint(KEY.public_key())
TRUSTED = {fingerprint(key.public_key()): key.public_key().public_bytes_raw() for key in (KEY, OTHER)}
MANIFEST = b'{"name": "digits"}\n'


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    (tmp_path / MANIFEST_FILE).write_bytes(MANIFEST)
    write_signature(tmp_path, KEY)
    return tmp_path


def changed(folder: Path, **fields: object) -> None:
    path = folder / SIGNATURE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(folder: Path, reason: str, manifest: bytes = MANIFEST) -> None:
    with pytest.raises(ManifestError, match=rf"manifest\.sig: .*{reason}"):
        check_signature(folder, manifest, TRUSTED)


def test_what_is_signed_with_a_trusted_key_passes(signed: Path) -> None:
    check_signature(signed, MANIFEST, TRUSTED)
    assert sorted(path.name for path in signed.iterdir()) == [MANIFEST_FILE, SIGNATURE_FILE]


def test_the_file_says_what_the_documentation_says(signed: Path) -> None:
    found = json.loads((signed / SIGNATURE_FILE).read_text())
    assert found["algorithm"] == "ed25519"
    assert found["key"] == NAME
    KEY.public_key().verify(base64.b64decode(found["signature"], validate=True), MANIFEST)


def test_a_signature_is_readable_to_everybody_as_the_other_files_are(signed: Path) -> None:
    assert (signed / SIGNATURE_FILE).stat().st_mode & 0o777 == 0o644


def test_signing_again_replaces_the_signature(signed: Path) -> None:
    write_signature(signed, OTHER)
    check_signature(signed, MANIFEST, {fingerprint(OTHER.public_key()): OTHER.public_key().public_bytes_raw()})


def test_a_signature_that_cannot_be_put_there_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(MANIFEST)
    (tmp_path / SIGNATURE_FILE / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=SIGNATURE_FILE):
        write_signature(tmp_path, KEY)
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST_FILE, SIGNATURE_FILE]


@pytest.mark.parametrize("manifest", [b"", b'{"name": "digitz"}\n', MANIFEST + b" "])
def test_an_altered_manifest_does_not_pass_with_its_old_signature(signed: Path, manifest: bytes) -> None:
    refused(signed, f"not the signature of this manifest.json with {re.escape(NAME)}", manifest)


@pytest.mark.parametrize("length", [0, 63, 64, 65])
def test_a_wrong_signature_of_any_length_does_not_pass(signed: Path, length: int) -> None:
    changed(signed, signature=base64.b64encode(bytes(length)).decode())
    refused(signed, "not the signature")


def test_a_signature_under_the_name_of_another_trusted_key_does_not_pass(signed: Path) -> None:
    changed(signed, key=fingerprint(OTHER.public_key()))
    refused(signed, "not the signature")


def test_a_key_that_nobody_trusts_is_named(signed: Path) -> None:
    stranger = Ed25519PrivateKey.generate()
    write_signature(signed, stranger)
    with pytest.raises(ManifestError, match="none of the 2 trusted keys") as raised:
        check_signature(signed, MANIFEST, TRUSTED)
    assert fingerprint(stranger.public_key()) in str(raised.value)


def test_a_missing_signature_is_said_to_be_missing(signed: Path) -> None:
    (signed / SIGNATURE_FILE).unlink()
    refused(signed, "missing, and only signed versions are served")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": "\xff"}'])
def test_what_is_no_signature_file_is_refused(signed: Path, content: bytes) -> None:
    (signed / SIGNATURE_FILE).write_bytes(content)
    refused(signed, "")


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"algorithm": "none"}, r"\$\.algorithm"), ({"signature": "?"}, r"\$\.signature"), ({"note": 1}, "note")],
)
def test_a_wrong_field_of_a_signature_is_named(signed: Path, fields: dict[str, object], named: str) -> None:
    changed(signed, **fields)
    refused(signed, named)


def test_a_folder_in_the_place_of_the_signature_is_refused(signed: Path) -> None:
    (signed / SIGNATURE_FILE).unlink()
    (signed / SIGNATURE_FILE).mkdir()
    refused(signed, "expected a file")


def line(key: Ed25519PrivateKey, comment: str = "somebody") -> bytes:
    return public_key_line(key.public_key(), comment)


def test_keys_are_read_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"# those who publish\n\n  " + line(KEY) + line(OTHER, "") + line(KEY, "again, with spaces"))
    assert read_public_keys(path) == TRUSTED


ECDSA = generate_private_key(SECP256R1()).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


@pytest.mark.parametrize(
    "bad",
    [
        b"no key",
        b"\xff\xfe",
        b"ssh-ed25519",
        b"ssh-ed25519 AAAA",
        line(OTHER)[:-20],
        line(OTHER).split()[1],
        b"sk-ssh-ed25519@openssh.com AAAA",
        ECDSA,
        private_key_file(OTHER),
    ],
)
def test_a_line_that_is_no_key_is_named(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(line(KEY) + bad + b"\n")
    with pytest.raises(KeyInvalid, match=r"keys: line 2: expected a public key as 'ssh-ed25519 <base64> <comment>'"):
        read_public_keys(path)


@pytest.mark.parametrize("content", [b"", b"\n# nobody\n"])
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(KeyInvalid, match="keys: expected a public key a line"):
        read_public_keys(tmp_path / "keys")


def test_a_file_of_keys_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyInvalid, match="nowhere: No such file"):
        read_public_keys(tmp_path / "nowhere")
    with pytest.raises(KeyInvalid, match=f"{tmp_path.name}: Is a directory"):
        read_public_keys(tmp_path)


def test_a_private_key_comes_back(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(private_key_file(KEY))
    assert read_private_key(tmp_path / "key").public_key() == KEY.public_key()


@pytest.mark.parametrize("content", [b"", b"key", line(KEY), private_key_file(KEY)[:100]])
def test_what_is_no_private_key_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(KeyInvalid, match="key: expected an OpenSSH private key without a passphrase"):
        read_private_key(tmp_path / "key")


def test_a_private_key_in_another_format_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(KeyInvalid, match="without a passphrase"):
        read_private_key(path)
    path.write_bytes(
        generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    )
    with pytest.raises(KeyInvalid, match="expected an Ed25519 key"):
        read_private_key(path)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_a_pair_of_ssh_keygen_signs_and_is_named_as_ssh_keygen_names_it(tmp_path: Path) -> None:
    private, public = tmp_path / "pair", tmp_path / "pair.pub"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(private)], check=True)
    shown = subprocess.run(["ssh-keygen", "-l", "-f", str(public)], check=True, capture_output=True, text=True).stdout
    trusted = read_public_keys(public)
    assert shown.split()[1] in trusted
    (tmp_path / MANIFEST_FILE).write_bytes(MANIFEST)
    write_signature(tmp_path, read_private_key(private))
    check_signature(tmp_path, MANIFEST, trusted)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_a_passphrase_of_ssh_keygen_is_refused(tmp_path: Path) -> None:
    private = tmp_path / "pair"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(private)], check=True)
    with pytest.raises(KeyInvalid, match="without a passphrase"):
        read_private_key(private)
