"""Frontends that die and are replaced at every transition of their slots, against the engine's own bookkeeping.

The real engine without its threads: the test takes work as an executor would, finishes it when it likes, and plays both
frontends at the other ends of real links. A successor has its predecessor's slots. It must not hear of them while a
batch may still write them, must never be answered for what it did not commit, and loses nothing of what it did.
"""

import os
import time
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from models.manifest import TensorInput, TensorSpec
from service.batching.arena import create_arena
from service.batching.link import COMMIT, Kind, Link, LinkClosed, ModelFacts, ModelReady, link_pair
from service.batching.policy import Limits
from service.engine.loop import Engine, _Model, _Work
from service.engine.repository import ModelSettings
from service.engine.run import expire, run_batch
from service.engine.session import RunFailed

CAPACITY = 8
FRONTENDS = range(2)
SPECS = (TensorSpec("x", "INT64", (-1,)),)
FACTS = ModelFacts("m", "1", "", SPECS, SPECS, TensorInput(), None, CAPACITY, 3, 2, 1, 1.0)
SETTINGS = ModelSettings("cpu", 2, 3, CAPACITY, 1 << 20, 2, 1, 0.0)


class Instance:
    """Fails where the test says so."""

    fails = False

    def run(self, slots: list[int]) -> None:
        if self.fails:
            raise RunFailed("on purpose")


class Frontend:
    """One generation: what it owns, what it has committed and not been answered."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.slots: range | None = None
        self.committed: set[int] = set()

    def read(self) -> None:
        try:
            for arrival in self.link.receive():
                if isinstance(arrival, list):
                    for record in arrival:
                        assert record[3] in self.committed, f"an answer for slot {record[3]}, which it did not commit"
                        self.committed.remove(record[3])
                else:
                    event, descriptor = arrival
                    assert isinstance(event, ModelReady)
                    assert descriptor is not None
                    os.close(descriptor)
                    self.slots = range(*event.slots)
        except LinkClosed:
            raise AssertionError("the engine left a living frontend") from None


class FrontendsMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        ends = {number: link_pair() for number in FRONTENDS}
        self.frontends: dict[int, Frontend | None] = {number: Frontend(ours) for number, (ours, _) in ends.items()}
        self.engine = Engine(
            Path(), SETTINGS, 0, {number: theirs for number, (_, theirs) in ends.items()}, len(FRONTENDS), True
        )
        self.instances = [Instance(), Instance()]
        self.engine._models[0] = _Model(0, Limits(3), list(self.instances), None)
        fd, _ = create_arena(SPECS, SPECS, CAPACITY)
        self.engine._links.tell_ready(0, FACTS, fd)
        self.running: list[_Work] = []
        self.finished: list[_Work] = []  # and not given back yet: an executor that has not come round
        self.dirty: dict[int, set[int]] = {number: set() for number in FRONTENDS}  # running batches of the dead
        self.read_all()

    def read_all(self) -> None:
        for frontend in self.frontends.values():
            if frontend is not None:
                frontend.read()

    @rule(number=st.sampled_from(FRONTENDS), data=st.data(), expired=st.booleans(), priority=st.integers(1, 3))
    def commit(self, number: int, data: st.DataObject, expired: bool, priority: int) -> None:
        frontend = self.frontends[number]
        if frontend is None or frontend.slots is None or not (free := sorted(set(frontend.slots) - frontend.committed)):
            return
        slot = data.draw(st.sampled_from(free))
        frontend.committed.add(slot)
        deadline = 1 if expired else time.monotonic_ns() + 10**12
        frontend.link.send(COMMIT.pack(Kind.COMMIT, priority, 0, slot, time.monotonic_ns(), deadline))

    @precondition(lambda self: len(self.running) < 2)
    @rule(comes_round=st.booleans())
    def take(self, comes_round: bool) -> None:
        """An executor comes for work, perhaps with what it finished; only where it would not wait."""
        finished = self.finished.pop() if self.finished and comes_round else None
        if finished is not None:
            self.give_back(finished)
        with self.engine._mutex:
            self.engine._read_links()
            work, _ = self.engine._take(time.monotonic_ns())
        if work is not None:
            self.running.append(work)

    def give_back(self, work: _Work) -> None:
        with self.engine._mutex:
            self.engine._running.discard(work.number)
            if work.instance is not None:
                work.model.idle.append(work.instance)
            self.engine._let_in()
        for running in self.dirty.values():
            running.discard(work.number)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fails=st.booleans())
    def finish(self, data: st.DataObject, fails: bool) -> None:
        work = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        answers = expire(work.expired, 0)
        if work.instance is not None:
            work.instance.fails = fails
            answers += run_batch(work.instance, work.batch, 0)
        self.engine._answer(answers)
        self.finished.append(work)
        self.read_all()

    @rule(number=st.sampled_from(FRONTENDS))
    def kill(self, number: int) -> None:
        frontend = self.frontends[number]
        if frontend is None:
            return
        frontend.link.close()
        self.frontends[number] = None
        held = [*self.running, *self.finished]
        self.dirty[number] |= {work.number for work in held if any(item.frontend == number for item in work.batch)}

    @rule(number=st.sampled_from(FRONTENDS))
    def replace(self, number: int) -> None:
        if self.frontends[number] is not None:
            return
        ours, theirs = link_pair()
        self.frontends[number] = Frontend(ours)
        self.engine.attach(number, theirs)

    @invariant()
    def nobody_has_rows_that_a_batch_of_its_predecessor_may_write(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.read_all()
        for number, frontend in self.frontends.items():
            if frontend is not None and self.dirty[number]:
                assert frontend.slots is None, "it was let in too early"

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for number in FRONTENDS:
            self.replace(number)
        while self.running or self.finished or self.waiting():
            for work in self.finished:
                self.give_back(work)
            self.finished.clear()
            self.take(comes_round=False) if len(self.running) < 2 else None
            while self.running:
                work = self.running.pop()
                answers = expire(work.expired, 0)
                if work.instance is not None:
                    answers += run_batch(work.instance, work.batch, 0)
                self.engine._answer(answers)
                self.finished.append(work)
        self.read_all()
        for frontend in self.frontends.values():
            assert frontend is not None
            assert frontend.slots is not None, "it was never let in"
            assert not frontend.committed, "a living frontend's item was lost"
            frontend.link.close()
        assert len(self.engine._models[0].idle) == 2
        self.engine._leave()

    def waiting(self) -> int:
        with self.engine._mutex:
            self.engine._read_links()
        return len(self.engine._models[0].waiting)


FrontendsMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestFrontends = FrontendsMachine.TestCase
