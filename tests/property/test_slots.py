"""The slots' life, driven through every order of claim, commit, answer, give-up, release and death.

The real client, link and arena; at the other end of the link an engine that the test plays, which answers in any order.
After every step each slot has exactly one owner; every answer is the answer to its own row.
"""

import asyncio
import os
import time

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from models.manifest import TensorInput, TensorSpec
from service.batching.arena import create_arena
from service.batching.claim import Claim
from service.batching.client import Client
from service.batching.link import ANSWER, Kind, ModelFacts, ModelReady, ModelsLoaded, Status, link_pair
from service.errors import DeadlineExceeded, EngineDied, EngineError, Overloaded
from tests.support.claims import Wait, deadline_in

CAPACITY = 8
INPUTS = (TensorSpec("x", "INT64", (-1, 2)),)
OUTPUTS = (TensorSpec("y", "INT64", (-1,)),)
FACTS = ModelFacts(
    name="m",
    version="1",
    description="",
    inputs=INPUTS,
    outputs=OUTPUTS,
    input=TensorInput(),
    classification=None,
    capacity=CAPACITY,
    max_batch_size=4,
    instances=1,
    threads=1,
    items_per_s=1.0,
)
READY = ModelReady(0, (0, CAPACITY), FACTS)


class SlotMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.counter = 0
        self.claimed: list[tuple[Claim, list[int]]] = []  # rows written, not committed
        self.awaited: list[tuple[Claim, Wait, list[int]]] = []  # committed, not released
        self.abandoned: list[Claim] = []  # released before the engine answered
        self.at_engine: list[int] = []  # slots the engine holds
        self.dead = False

    @initialize()
    def connect(self) -> None:
        frontend, self.engine = link_pair()
        fd, self.arena = create_arena(INPUTS, OUTPUTS, CAPACITY)

        async def start() -> Client:
            return Client(frontend)

        self.client = self.loop.run_until_complete(start())
        self.engine.send_event(READY, fd)
        self.engine.send_event(ModelsLoaded())
        os.close(fd)
        self.turn()
        model = self.client.known("m")
        assert model is not None
        self.model = model

    def turn(self) -> None:
        """Let the event loop send what is committed and read what has arrived."""

        async def turns() -> None:
            for _ in range(3):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    @rule(n=st.integers(1, CAPACITY))
    def claim(self, n: int) -> None:
        free = len(self.model.free)
        try:
            claim = self.model.claim(n)
        except Overloaded:
            assert free < n, "refused although there was room"
            return
        assert len(claim.slots) == n <= free
        values = list(range(self.counter, self.counter + n))
        self.counter += n
        claim.write("x", np.array([[value, -value] for value in values]).tobytes())
        self.claimed.append((claim, values))

    @precondition(lambda self: self.claimed)
    @rule(data=st.data(), lifetime_s=st.sampled_from([-1.0, 1000.0]))
    def commit(self, data: st.DataObject, lifetime_s: float) -> None:
        claim, values = self.claimed.pop(data.draw(st.integers(0, len(self.claimed) - 1)))
        future = Wait(claim, deadline_in(lifetime_s))
        self.awaited.append((claim, future, values))
        self.turn()
        self.engine_reads()

    @precondition(lambda self: self.claimed)
    @rule(data=st.data())
    def give_up_before_the_commit(self, data: st.DataObject) -> None:
        claim, _ = self.claimed.pop(data.draw(st.integers(0, len(self.claimed) - 1)))
        with claim:
            pass

    def engine_reads(self) -> None:
        if not self.dead:
            commits, _ = self.engine.receive_commits()
            self.at_engine += [slot for _, _, _, slot, _, _ in commits]

    @precondition(lambda self: self.at_engine and not self.dead)
    @rule(data=st.data(), status=st.sampled_from([Status.OK, Status.OK, Status.FAILED, Status.EXPIRED]))
    def engine_answers(self, data: st.DataObject, status: Status) -> None:
        batch = data.draw(st.lists(st.sampled_from(self.at_engine), min_size=1, unique=True))
        rows = self.arena.inputs["x"].array[batch]
        self.arena.outputs["y"].array[batch, 0] = rows[:, 0] * 10
        answers = [ANSWER.pack(Kind.ANSWER, status, 0, slot, 5, 7, len(batch), 0, 0) for slot in batch]
        self.at_engine = [slot for slot in self.at_engine if slot not in batch]
        self.engine.send(b"".join(answers))
        self.turn()
        self.abandoned = [claim for claim in self.abandoned if set(claim.slots) & set(self.at_engine)]

    @rule()
    def the_clock_runs_out(self) -> None:
        self.client._sweep()
        now = time.monotonic_ns()
        for claim, future, _ in self.awaited:
            assert future.done() or claim.deadline > now

    @precondition(lambda self: any(future.done() for _, future, _ in self.awaited))
    @rule()
    def read_the_answers(self) -> None:
        for claim, future, values in [entry for entry in self.awaited if entry[1].done()]:
            error = future.exception()
            if error is None:
                assert claim.read("y")[:, 0].tolist() == [value * 10 for value in values]
            else:
                assert isinstance(error, DeadlineExceeded | EngineError | EngineDied)
            self.release(claim, future, values)

    @precondition(lambda self: self.awaited)
    @rule(data=st.data())
    def the_client_goes_away(self, data: st.DataObject) -> None:
        self.release(*self.awaited[data.draw(st.integers(0, len(self.awaited) - 1))])

    def release(self, claim: Claim, future: Wait, values: list[int]) -> None:
        self.awaited.remove((claim, future, values))
        claim.release()
        if not self.dead and set(claim.slots) & set(self.at_engine):
            self.abandoned.append(claim)

    @precondition(lambda self: not self.dead)
    @rule(roll=st.integers(0, 9))
    def the_engine_dies(self, roll: int) -> None:
        if roll:  # seldom, so that most runs go on
            return
        self.dead = True
        self.engine.close()
        self.turn()
        self.abandoned.clear()
        self.at_engine.clear()
        assert all(future.done() for _, future, _ in self.awaited), "a request hangs on a dead engine"
        assert self.client.models() == []

    @invariant()
    def every_slot_has_one_owner(self) -> None:
        if not hasattr(self, "model"):
            return
        held = [slot for claim, *_ in (*self.claimed, *self.awaited) for slot in claim.slots]
        if self.dead:  # the arena went with the engine; only double ownership could still do harm
            assert len(set(held)) == len(held)
            return
        held += [slot for claim in self.abandoned for slot in claim.slots]
        assert sorted([*self.model.free, *held]) == list(range(CAPACITY))
        assert self.client.in_flight == len(held)

    def teardown(self) -> None:
        if hasattr(self, "client"):
            self.client.close()
            self.engine.close()
            self.turn()
        self.loop.close()


TestSlotMachine = SlotMachine.TestCase
TestSlotMachine.settings = settings(deadline=None, stateful_step_count=60)
