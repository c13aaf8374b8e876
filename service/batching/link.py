"""The link: one Unix stream socket between a frontend and an engine. It carries slot numbers, never tensors.

Records are 24 bytes, so a read of many is parsed by one `iter_unpack`, and a read that is not full was the last:

    frontend → engine   COMMIT   slot, priority, when it was committed, deadline
                        RELEASE  model: none of its slots is used any more, nor will be
    engine → frontend   ANSWER   slot, status, queue and compute time, size of its batch
    engine → frontend   EVENT    length, followed by that many bytes of JSON, padded to whole records; a `ModelReady`
                                 brings the arena's descriptor with it (SCM_RIGHTS)

A stream rather than SOCK_SEQPACKET: the kernel queues at most `net.unix.max_dgram_qlen` (10) packets, and a busy engine
would meet them one `recv` each; a stream takes hundreds of sends and gives them back in one read.

End of file is how each side learns that the other died, so nothing waits for ever and no lock can be left held. Sends
never block: what the socket does not take is kept and goes out when it is writable again (`wants_write`).
Instants are CLOCK_MONOTONIC nanoseconds, which all processes of a machine share.
"""

import array
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator
from enum import IntEnum

import msgspec
from msgspec import Struct

from models.manifest import Classification, ImageInput, TensorInput, TensorSpec

RECORD_BYTES = 24
_READ_BYTES = RECORD_BYTES * 4096
_DESCRIPTOR_SPACE = socket.CMSG_SPACE(4 * 16)
_HEAD = struct.Struct("<BxxxI16x")  # kind, length: the head of an EVENT

COMMIT = struct.Struct("<BBHIQQ")  # kind, priority, model, slot, committed_at, deadline
ANSWER = struct.Struct("<BBHIIIHBxI")  # kind, status, model, slot, queue_us, compute_us, batch size, first, spare
assert COMMIT.size == ANSWER.size == _HEAD.size == RECORD_BYTES


class Kind(IntEnum):
    COMMIT = 1
    ANSWER = 2
    EVENT = 3
    RELEASE = 4  # laid out as COMMIT


class Status(IntEnum):
    OK = 0
    FAILED = 1  # the run raised for this very item
    EXPIRED = 2  # its deadline passed while it waited
    TOO_LARGE = 3  # an output is larger than its row


Commit = tuple[int, int, int, int, int, int]
"""One slot's, as COMMIT unpacks it; or a RELEASE."""

Answer = tuple[int, int, int, int, int, int, int, int, int]
"""One item's, as ANSWER unpacks it. `first` is 1 for one item of each batch, so that batches can be counted."""


class ModelFacts(Struct, frozen=True):
    """What a ready version is, for those who never see its file.

    capacity        slots of its arena
    items_per_s     of all instances together, as measured at load; 1 where nothing was measured
    batch_axis      dimension 0 of every tensor counts the items; otherwise an item is all of a request's tensors
    max_row_bytes   the largest item of tensors whose items differ in size
    timeout_ms      of a request, where that is shorter than the service's; None: the service's
    """

    name: str
    version: str
    description: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input: ImageInput | TensorInput
    classification: Classification | None
    capacity: int
    max_batch_size: int
    instances: int
    threads: int
    items_per_s: float
    batch_axis: bool = True
    max_row_bytes: int = 0
    timeout_ms: int | None = None


class ModelReady(Struct, frozen=True, tag="ready"):
    """A version that answers from now on, under `index`; the arena's descriptor comes with it.

    slots   half-open range of the arena's slots that this frontend owns
    """

    index: int
    slots: tuple[int, int]
    facts: ModelFacts


class ModelGone(Struct, frozen=True, tag="gone"):
    """The version under `index` takes no more requests. Each frontend answers with RELEASE once it has none of it."""

    index: int


class ModelFailed(Struct, frozen=True, tag="failed"):
    """A version that was found but will not be served, and why."""

    name: str
    version: str
    reason: str


class ModelsLoaded(Struct, frozen=True, tag="loaded"):
    """Everything found at start has been announced, one way or the other."""


Event = ModelReady | ModelGone | ModelFailed | ModelsLoaded


class LinkClosed(Exception):
    """The other side is gone."""


class Link:
    """One end. Sending is for one thread at a time; so is receiving."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._unsent: deque[tuple[memoryview, list[int]]] = deque()
        self._partial = b""
        self._descriptors: deque[int] = deque()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())
        while self._unsent:
            _close_all(self._unsent.popleft()[1])

    @property
    def wants_write(self) -> bool:
        return bool(self._unsent)

    def send(self, records: bytes) -> None:
        """Whole records. Raises LinkClosed when nobody can read them any more."""
        if not self._unsent:  # the usual case, without a queue entry
            try:
                sent = self._socket.send(records)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise LinkClosed from error
            if sent == len(records):
                return
            self._unsent.append((memoryview(records)[sent:], []))
        else:
            self._unsent.append((memoryview(records), []))
            self.flush()

    def send_event(self, event: Event, descriptor: int | None = None) -> None:
        """`descriptor` is duplicated by the kernel; the caller's stays open. Raises LinkClosed."""
        payload = msgspec.json.encode(event)
        padding = -len(payload) % RECORD_BYTES
        frame = _HEAD.pack(Kind.EVENT, len(payload)) + payload + bytes(padding)
        self._unsent.append((memoryview(frame), [] if descriptor is None else [os.dup(descriptor)]))
        self.flush()

    def flush(self) -> None:
        """Send what was kept, as far as the socket takes it. Raises LinkClosed."""
        while self._unsent:
            data, descriptors = self._unsent[0]
            try:
                sent = self._socket.sendmsg(
                    [data],
                    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else [],
                )
            except BlockingIOError:
                return
            except OSError as error:
                raise LinkClosed from error
            _close_all(descriptors)
            if sent == len(data):
                self._unsent.popleft()
            else:
                self._unsent[0] = (data[sent:], [])

    def receive_commits(self) -> tuple[list[Commit], bool]:
        """What has arrived, as COMMIT tuples, and whether more may be waiting. Raises LinkClosed at end of file."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return [], False
        except OSError as error:
            raise LinkClosed from error
        if not data:
            raise LinkClosed
        more = len(data) == _READ_BYTES
        if self._partial:
            data = self._partial + data
            self._partial = b""
        if torn := len(data) % RECORD_BYTES:
            data, self._partial = data[:-torn], data[-torn:]
        return list(COMMIT.iter_unpack(data)), more

    def receive(self) -> Iterator[list[Answer] | tuple[Event, int | None]]:
        """Answers, and events with their descriptor, as they have arrived. Raises LinkClosed at end of file."""
        try:
            data, ancillary, _, _ = self._socket.recvmsg(_READ_BYTES, _DESCRIPTOR_SPACE)
        except BlockingIOError:
            return
        except OSError as error:
            raise LinkClosed from error
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._descriptors.extend(array.array("i", payload))
        if not data:
            raise LinkClosed
        if self._partial:
            data = self._partial + data
            self._partial = b""
        while data:
            answers = _answers_at_front(data)
            if answers:
                yield list(ANSWER.iter_unpack(data[:answers]))
                data = data[answers:]
            if len(data) < RECORD_BYTES:
                break
            _, length = _HEAD.unpack_from(data)
            end = RECORD_BYTES + length
            if len(data) < (frame := end + -length % RECORD_BYTES):
                break
            event = msgspec.json.decode(data[RECORD_BYTES:end], type=Event)
            yield event, self._descriptors.popleft() if isinstance(event, ModelReady) else None
            data = data[frame:]
        self._partial = data


def link_pair() -> tuple[Link, Link]:
    """(frontend's end, engine's end)."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Link(left), Link(right)


def _answers_at_front(data: bytes) -> int:
    """How many bytes before the first event, or the torn record at the end, are answers."""
    kinds = data[: len(data) - len(data) % RECORD_BYTES : RECORD_BYTES]
    event = kinds.find(Kind.EVENT)  # in front of it there are only answers, so none of its payload is met
    return RECORD_BYTES * (len(kinds) if event < 0 else event)


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
    descriptors.clear()
