"""The link: records survive torn reads and full sockets, descriptors arrive with their event, death is end of file."""

import os
import socket
from pathlib import Path

import pytest

from models.manifest import TensorInput, TensorSpec
from service.batching.link import (
    ANSWER,
    COMMIT,
    RECORD_BYTES,
    Kind,
    Link,
    LinkClosed,
    ModelFacts,
    ModelFailed,
    ModelReady,
    ModelsLoaded,
    link_pair,
)


def commit(slot: int) -> bytes:
    return COMMIT.pack(Kind.COMMIT, 1, 7, slot, 123, 456)


def answer(slot: int) -> bytes:
    return ANSWER.pack(Kind.ANSWER, 0, 7, slot, 10, 20, 4, 1, 0)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def ready(name: str) -> ModelReady:
    spec = (TensorSpec("x", "FP32", (-1, 3)),)
    return ModelReady(0, (0, 4), ModelFacts(name, "1", "", spec, spec, TensorInput(), None, 4, 4, 1, 1, 1.0))


def test_commits_arrive_as_they_were_sent() -> None:
    frontend, engine = link_pair()
    frontend.send(commit(1) + commit(2))
    frontend.send(commit(3))
    commits, more = engine.receive_commits()
    assert commits == [(Kind.COMMIT, 1, 7, slot, 123, 456) for slot in (1, 2, 3)]
    assert not more
    assert engine.receive_commits() == ([], False)


@pytest.mark.parametrize("cut", [1, RECORD_BYTES - 1, RECORD_BYTES + 5])
def test_a_torn_record_is_completed_by_the_next_read(cut: int) -> None:
    left, right = socket.socketpair()
    engine = Link(right)
    data = commit(1) + commit(2)
    left.sendall(data[:cut])
    first, _ = engine.receive_commits()
    left.sendall(data[cut:])
    second, _ = engine.receive_commits()
    assert [record[3] for record in first + second] == [1, 2]


def test_events_and_answers_keep_their_order_through_torn_reads() -> None:
    left, right = socket.socketpair()
    frontend, source = Link(right), Link(left)
    fd = os.memfd_create("test")
    os.write(fd, b"arena")
    source.send(answer(1))
    source.send_event(ModelFailed("m", "1", "because"))
    source.send_event(ready("n" * 100), fd)
    source.send(answer(2))
    os.close(fd)
    arrivals = list(frontend.receive()) + list(frontend.receive())
    seen = [[record[3] for record in a] if isinstance(a, list) else type(a[0]) for a in arrivals]
    assert seen == [[1], ModelFailed, ModelReady, [2]]
    event = arrivals[2]
    assert isinstance(event, tuple)
    received = event[1]
    assert received is not None
    assert os.pread(received, 5, 0) == b"arena"
    os.close(received)
    frontend.close()
    source.close()


def test_an_event_cut_in_half_waits_for_its_rest() -> None:
    left, right = socket.socketpair()
    spare, spare_end = socket.socketpair()
    writer, frontend = Link(spare), Link(right)
    writer.send_event(ModelsLoaded())
    frame = spare_end.recv(1000)
    left.sendall(frame[:-3])
    assert list(frontend.receive()) == []
    left.sendall(frame[-3:])
    assert list(frontend.receive()) == [(ModelsLoaded(), None)]


def test_what_a_full_socket_does_not_take_is_kept_and_sent_later() -> None:
    frontend, engine = link_pair()
    sent = 0
    while not frontend.wants_write:
        frontend.send(b"".join(commit(sent + i) for i in range(1000)))
        sent += 1000
    frontend.send(commit(sent))
    received: list[int] = []
    while len(received) <= sent:
        commits, _ = engine.receive_commits()
        received += [record[3] for record in commits]
        frontend.flush()
    assert received == list(range(sent + 1))
    assert not frontend.wants_write


def test_both_ends_learn_of_the_others_death() -> None:
    frontend, engine = link_pair()
    frontend.close()
    with pytest.raises(LinkClosed):
        engine.receive_commits()
    with pytest.raises(LinkClosed):
        engine.send(answer(1))
    frontend, engine = link_pair()
    engine.close()
    with pytest.raises(LinkClosed):
        list(frontend.receive())
    with pytest.raises(LinkClosed):
        frontend.send(commit(1))


def test_no_descriptor_is_left_open() -> None:
    before = open_descriptors()
    frontend, engine = link_pair()
    fd = os.memfd_create("test")
    engine.send_event(ready("m"), fd)
    os.close(fd)
    for arrival in frontend.receive():
        assert isinstance(arrival, tuple)
        os.close(arrival[1])
    engine.send_event(ModelsLoaded())
    frontend.close()
    engine.close()
    assert open_descriptors() == before
