"""The socket between the supervisor and a child: a byte, and a descriptor where a link is handed over."""

import socket
from typing import Literal, NamedTuple

from service.batching.link import Link

_LEAVE, _CONNECT = b"l", b"c"
_MOST_BYTES = 16


class Connect(NamedTuple):
    """A link to a new engine or frontend, in the place of the one with this number."""

    number: int
    link: Link


Order = Connect | Literal["leave", "alone"]
"""alone: the supervisor has closed its end, or is gone."""


def send_leave(control: socket.socket) -> None:
    control.send(_LEAVE)


def send_link(control: socket.socket, number: int, link: Link) -> None:
    """The link's own descriptor stays the caller's to close."""
    socket.send_fds(control, [_CONNECT + bytes([number])], [link.fileno()])


def receive(control: socket.socket) -> Order:
    message, descriptors, _, _ = socket.recv_fds(control, _MOST_BYTES, 1)
    if message[:1] == _LEAVE:
        return "leave"
    if message[:1] == _CONNECT:
        return Connect(message[1], Link(socket.socket(fileno=descriptors[0])))
    return "alone"


def control_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
