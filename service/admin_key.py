"""The key of the admin API: where it comes from, what it has to be, and when there must be one.

No message here has the key, nor what was meant as one.
"""

import ipaddress
from pathlib import Path

from pydantic import SecretStr

_SHORTEST = 16
_HOW = "give admin.key_file, or admin.key in the environment"


def read_key(key: SecretStr | None, file: Path | None) -> SecretStr | None:
    """The key, wherever it is. Raises ValueError, which names the setting and what was expected of it."""
    if key is not None and file is not None:
        raise ValueError("admin.key and admin.key_file are both given; expected one of them")
    if key is not None:
        return _checked(key.get_secret_value(), "admin.key")
    return None if file is None else _checked(_text_of(file), f"admin.key_file {file}")


def check_reach(has_key: bool, host: str, port: int | None, public: bool, taken: tuple[int | None, ...]) -> None:
    """That nobody reaches the admin API without a key but from this machine, and its port is not one of those taken.

    Connections are told apart by their port, so it has to be another one, on whatever address. Raises ValueError.
    """
    if port and port in taken:
        raise ValueError(f"admin.port {port} is server.port or server.grpc_port too; expected another")
    if public and not has_key:
        raise ValueError(f"admin.public needs a key: {_HOW}")
    if port is not None and not has_key and not _is_loopback(host):
        raise ValueError(f"admin.host {host} can be reached from elsewhere, which needs a key: {_HOW}")


def _checked(key: str, source: str) -> SecretStr:
    if len(key) < _SHORTEST:
        raise ValueError(f"{source}: a key of {len(key)} characters; expected {_SHORTEST} or more")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"{source}: the key goes into a header; expected printable ASCII without spaces")
    return SecretStr(key)


def _text_of(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError as error:
        raise ValueError(f"admin.key_file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"admin.key_file {file}: expected text") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
