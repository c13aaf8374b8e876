"""Messages on a stream: four bytes of length, then JSON. And where the controller listens.

The address is of the kernel's abstract name space, so there is no file to be left behind; who connects must have our
user and say the secret that the supervisor made before it forked.
"""

import asyncio
import secrets
import socket
import struct
from typing import NamedTuple, TypeVar

import msgspec
from msgspec import Struct

_HEAD = struct.Struct("<I")
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_MOST_BYTES = 64 << 20
_BACKLOG = 128

T = TypeVar("T")


class Closed(Exception):
    """The other side is gone."""


class Place(NamedTuple):
    """Where the controller is met. `listener` is its own, and everybody else's to leave alone."""

    listener: socket.socket
    address: bytes
    secret: str


def make_place() -> Place:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("")  # the kernel picks a name
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return Place(listener, listener.getsockname(), secrets.token_hex(32))


def user_of(peer: socket.socket) -> int:
    """Who is at the other end."""
    _, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)


def frame(message: Struct) -> bytes:
    payload = msgspec.json.encode(message)
    return _HEAD.pack(len(payload)) + payload


async def receive(reader: asyncio.StreamReader, kind: type[T]) -> T:
    """Raises Closed."""
    try:
        (length,) = _HEAD.unpack(await reader.readexactly(_HEAD.size))
        return _decoded(await reader.readexactly(_checked(length)), kind)
    except (OSError, asyncio.IncompleteReadError) as error:
        raise Closed from error


def receive_blocking(connection: socket.socket, kind: type[T]) -> T:
    """Raises Closed."""
    (length,) = _HEAD.unpack(_exactly(connection, _HEAD.size))
    return _decoded(_exactly(connection, _checked(length)), kind)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        try:
            more = connection.recv(size - len(data))
        except OSError as error:
            raise Closed from error
        if not more:
            raise Closed
        data += more
    return data


def _checked(length: int) -> int:
    if length > _MOST_BYTES:
        raise Closed(f"a message of {length} bytes; expected at most {_MOST_BYTES}")
    return length


def _decoded(payload: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(payload, type=kind)
    except msgspec.DecodeError as error:
        raise Closed(f"not a message: {error}") from error
