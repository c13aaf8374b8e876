"""The thread of a GPU session, and captures that run alone."""

import gc
import threading

import pytest

from service.engine.lane import Lane, Turns


def test_everything_runs_on_the_lanes_own_thread() -> None:
    lane = Lane("lane")
    threads = {lane.call(threading.get_ident) for _ in range(10)}
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_a_call_from_the_lane_itself_runs_at_once() -> None:
    lane = Lane("lane")
    assert lane.call(lambda: lane.call(threading.get_ident)) == lane.call(threading.get_ident)


def test_what_is_raised_on_the_lane_is_raised_at_the_caller_and_the_lane_goes_on() -> None:
    lane = Lane("lane")
    with pytest.raises(ZeroDivisionError):
        lane.call(lambda: 1 // 0)
    assert lane.call(lambda: 3) == 3


def test_each_caller_gets_the_answer_to_its_own_call() -> None:
    lane = Lane("lane")
    answers: dict[int, list[int]] = {i: [] for i in range(8)}

    def call_often(i: int) -> None:
        answers[i] += [lane.call(lambda k=k: 100 * i + k) for k in range(50)]

    threads = [threading.Thread(target=call_often, args=(i,)) for i in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {i: [100 * i + k for k in range(50)] for i in range(8)}


def test_the_thread_ends_with_the_lane() -> None:
    lane = Lane("lane")
    thread = lane._thread
    del lane
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_a_capture_waits_for_runs_and_runs_wait_for_it() -> None:
    turns = Turns()
    order: list[str] = []
    started, go = threading.Event(), threading.Event()

    def run() -> None:
        with turns.together():
            started.set()
            go.wait(10)
            order.append("run")

    def capture() -> None:
        with turns.alone():
            order.append("capture")

    def later() -> None:
        with turns.together():
            order.append("later")

    first, second = threading.Thread(target=run), threading.Thread(target=capture)
    first.start()
    assert started.wait(10)
    second.start()
    while not turns._alone:  # the capture has asked for its turn
        second.join(0.001)
    third = threading.Thread(target=later)
    third.start()
    third.join(0.05)
    assert order == []  # neither passes the run, and nobody passes the capture
    go.set()
    for thread in (first, second, third):
        thread.join(10)
    assert order == ["run", "capture", "later"]


def test_runs_do_not_wait_for_each_other() -> None:
    turns = Turns()
    both = threading.Barrier(2, timeout=10)

    def run() -> None:
        with turns.together():
            both.wait()

    other = threading.Thread(target=run)
    other.start()
    run()
    other.join(10)
