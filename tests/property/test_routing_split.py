"""A split is what its weights say, whoever is ready, and moves no more requests than a change of weights asks for."""

from math import sqrt

from hypothesis import assume, given
from hypothesis import strategies as st

from service.lifecycle.routing import Routing, choose, point_of, shares

TARGETS = ("1", "2", "3", "4")
N_KEYS = 2000
POINTS = [point_of(b"user %d" % number) for number in range(N_KEYS)]

splits = st.dictionaries(st.sampled_from(TARGETS), st.floats(0, 1e6), min_size=1).filter(
    lambda split: sum(split.values()) > 0
)
readies = st.sets(st.sampled_from(TARGETS))
points = st.floats(0, 1, exclude_max=True)


@given(splits, readies, points)
def test_whoever_is_chosen_is_ready_and_has_a_weight(split: dict[str, float], ready: set[str], point: float) -> None:
    chosen = choose(Routing(split=split), ready, point)
    able = {target for target, weight in split.items() if weight > 0} & ready
    assert chosen in able if able else chosen is None


@given(splits, readies)
def test_parts_are_as_the_weights_of_those_that_are_ready(split: dict[str, float], ready: set[str]) -> None:
    able = {target: weight for target, weight in split.items() if weight > 0 and target in ready}
    begins = 0.0
    parts = {}
    for end, version in shares(Routing(split=split), ready):
        parts[version] = end - begins
        begins = end
    assert parts.keys() == able.keys()
    for target, weight in able.items():
        assert abs(parts[target] - weight / sum(able.values())) < 1e-9


@given(splits, st.permutations(TARGETS), points)
def test_it_does_not_matter_how_a_split_is_written_down(
    split: dict[str, float], order: list[str], point: float
) -> None:
    written = {target: split[target] for target in order if target in split}
    assert choose(Routing(split=written), TARGETS, point) == choose(Routing(split=split), TARGETS, point)


@given(st.floats(0.01, 0.99))
def test_keys_spread_as_the_weights_say(part: float) -> None:
    routing = Routing({"stable": "3", "canary": "4"}, {"stable": 1 - part, "canary": part})
    canaries = sum(choose(routing, ("3", "4"), point) == "4" for point in POINTS)
    assert abs(canaries - N_KEYS * part) < 5 * sqrt(N_KEYS * part * (1 - part)) + 1


@given(st.floats(0, 100), st.floats(0, 100))
def test_only_those_keys_change_sides_by_which_a_weight_grew(before: float, after: float) -> None:
    aliases = {"stable": "3", "canary": "4"}
    assume(before <= after)
    less, more = (Routing(aliases, {"stable": 100 - part, "canary": part}) for part in (before, after))
    moved = 0
    for point in POINTS:
        was, becomes = choose(less, ("3", "4"), point), choose(more, ("3", "4"), point)
        assert (was, becomes) != ("4", "3"), "nobody goes back as the canary grows"
        moved += was != becomes
    part = (after - before) / 100
    assert abs(moved - N_KEYS * part) < 5 * sqrt(N_KEYS * part * (1 - part)) + 1
