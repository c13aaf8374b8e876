"""The response cache against a plain dictionary, and through every order of asking, answering, leaving and death."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.batching.claim import FROM_CACHE, Claim
from service.batching.link import Status
from service.errors import DeadlineExceeded, EngineDied, EngineError, Overloaded
from service.frontend.cache import Answers, Outputs, ResponseCache, size_bytes
from tests.support.claims import deadline_in
from tests.support.waiting import Seen, Waiting

CAPACITY = 12

keys = st.integers(0, 9).map(lambda i: b"k%d" % i)
steps = st.lists(st.tuples(keys, st.none() | st.integers(0, 600)), max_size=60)


@settings(derandomize=True, deadline=None)
@given(steps, st.integers(0, 20_000))
def test_answers_are_those_of_a_dictionary_that_forgets_the_oldest(
    steps: list[tuple[bytes, int | None]], most: int
) -> None:
    """A step gets a key (None), or keeps that many bytes for it."""
    answers = Answers(most)
    model: dict[bytes, Outputs] = {}  # the least recently used first
    for step, (key, n_bytes) in enumerate(steps):
        if n_bytes is None:
            assert answers.get(key) == model.get(key)
            if key in model:
                model[key] = model.pop(key)
            continue
        outputs = Outputs((step.to_bytes(2) + bytes(n_bytes),), ())
        evicted = answers.keep(key, outputs)
        if size_bytes(key, outputs) <= most // 8:
            model.pop(key, None)
            model[key] = outputs
        gone = 0
        while sum(size_bytes(*entry) for entry in model.items()) > most:
            del model[next(iter(model))]
            gone += 1
        assert evicted == gone
        assert len(answers) == len(model)
        assert answers.size_bytes == sum(size_bytes(*entry) for entry in model.items()) <= most


class CacheMachine(RuleBasedStateMachine):
    """Few kinds of rows, so that most requests meet others like them; little room, so that answers go."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.seen = Seen()
        self.cache = ResponseCache(4000, self.seen)
        self.engine = Waiting(capacity=CAPACITY)
        self.asked: dict[Claim, list[int]] = {}  # neither told nor left: their sums

    @rule(kinds=st.lists(st.integers(0, 4), min_size=1, max_size=2), priority=st.sampled_from([1, 1, 1, 5]))
    def ask(self, kinds: list[int], priority: int) -> None:
        try:
            claim = self.engine.claim(b"".join(bytes([kind, 1, 2, 3]) for kind in kinds), deadline_in(1000), priority)
        except Overloaded:
            assert self.engine.model.in_flight + len(kinds) > CAPACITY
            return
        self.asked[claim] = [6 + kind for kind in kinds]

        async def run() -> None:
            self.cache.run(claim, self.done)

        self.loop.run_until_complete(run())

    def done(self, claim: Claim) -> None:
        """Encoded at once, as frontends do: the rows are those of its own request."""
        sums = self.asked.pop(claim)
        if claim.error is None:
            assert claim.read("y")[:, 0].tolist() == sums
        else:
            assert isinstance(claim.error, DeadlineExceeded | EngineError | EngineDied)
            assert claim.timings[2] != FROM_CACHE
        claim.release()

    @precondition(lambda self: self.engine.committed)
    @rule(data=st.data(), status=st.sampled_from([Status.OK, Status.OK, Status.OK, Status.FAILED, Status.EXPIRED]))
    def the_engine_answers(self, data: st.DataObject, status: Status) -> None:
        claim = data.draw(st.sampled_from(self.engine.committed))
        held = claim in self.asked
        self.engine.answer(claim, status)
        assert not held or claim not in self.asked, "answered, and not told"

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def a_client_leaves(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(list(self.asked)))
        del self.asked[claim]
        self.cache.give_up(claim)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def a_deadline_passes(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(list(self.asked)))
        if claim in self.engine.committed:
            claim.fail(DeadlineExceeded("as client.py's sweep does"))
        else:
            self.cache._late(claim)
        assert claim not in self.asked

    @rule(roll=st.integers(0, 9))
    def the_engine_dies_and_another_copy_is_loaded(self, roll: int) -> None:
        if roll:  # seldom, so that most runs go on
            return
        self.engine.die(lambda: EngineDied("gone"))
        assert not self.asked, "a request hangs on a dead engine"
        self.engine = Waiting(capacity=CAPACITY)

    @invariant()
    def every_slot_has_one_owner(self) -> None:
        held = {*self.asked, *self.engine.committed}
        slots = [slot for claim in held for slot in claim.slots]
        assert sorted([*self.engine.model.free, *slots]) == list(range(CAPACITY))

    @invariant()
    def everybody_who_waits_waits_for_a_run(self) -> None:
        flights = {*self.cache._flight_of.values(), *self.cache._flights.values()}
        assert all(flight.leader in self.engine.committed for flight in flights)
        assert set(self.asked) <= {claim for flight in flights for claim in (flight.leader, *flight.waiting)}
        assert set(self.cache._flight_of) == set(self.asked)

    @invariant()
    def no_more_is_kept_than_allowed(self) -> None:
        assert 0 <= self.seen.size_bytes <= 4000

    def teardown(self) -> None:
        for claim in list(self.asked):
            self.cache.give_up(claim)
        self.asked.clear()
        while self.engine.committed:
            self.engine.answer(self.engine.committed[0])
        assert self.engine.model.in_flight == 0
        assert not self.cache._flight_of
        assert not self.cache._flights
        self.loop.close()


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
TestCache = CacheMachine.TestCase
