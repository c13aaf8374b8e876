"""Which version answers, what a change of routing gives, and every routing that is refused."""

from math import inf, nan

import pytest
from msgspec.structs import replace

from service.errors import VersionInUse
from service.lifecycle.routing import (
    Guard,
    Routing,
    Shadow,
    check_routing,
    choose,
    likeliest,
    move_alias,
    named_versions,
    point_of,
    promote,
    resolve,
    roll_back,
    set_split,
    shares,
    without_alias,
)

ALIASES = {"stable": "3", "canary": "4"}
CANARY = Routing(aliases=ALIASES, split={"stable": 95, "canary": 5})

# ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "routing",
    [
        Routing(),
        CANARY,
        Routing(aliases={"_": "1", "a" * 63: "2", "v1.0-rc_1": "10"}),
        Routing(split={"3": 0.5, "4": 0}),
        Routing(ALIASES, {"stable": 1}, "body", Shadow("canary"), Guard()),
        Routing(shadow=Shadow("7", 0)),
        Routing(sticky="header:X-User"),
        Routing(guard=Guard("later", None, 1.5, None, 1, 0.5)),
    ],
)
def test_what_fits_is_taken(routing: Routing) -> None:
    check_routing(routing, "model 'm'")


@pytest.mark.parametrize(
    ("routing", "words"),
    [
        (Routing({"3": "3"}), ["aliases", "'3' is no alias", "a letter"]),
        (Routing({"": "3"}), ["aliases", "'' is no alias"]),
        (Routing({"a" * 64: "3"}), ["aliases", "up to 63"]),
        (Routing({"é": "3"}), ["aliases", "no alias"]),
        (Routing({"a/b": "3"}), ["aliases", "no alias"]),
        (Routing({"a\n": "3"}), ["aliases", "no alias"]),
        (Routing({"a": "0"}), ["aliases.a is '0'", "a whole number from 1"]),
        (Routing({"a": "-1"}), ["aliases.a is '-1'"]),
        (Routing({"a": "٣"}), ["aliases.a is", "a whole number from 1"]),
        (Routing({"a": "1", "b": "a"}), ["aliases.b is 'a'", "a whole number from 1"]),
        (Routing(split={"stable": 1}), ["split", "'stable' is neither a version nor an alias", "aliases: none"]),
        (Routing(ALIASES, {"03": 1}), ["split", "'03' is neither", "canary, stable"]),
        (Routing(split={"3": -1}), ["split.3 is -1", "0 or more"]),
        (Routing(split={"3": nan}), ["split.3 is nan", "0 or more"]),
        (Routing(split={"3": inf}), ["split.3 is inf"]),
        (Routing(split={"3": 0, "4": 0}), ["split", "sum to 0", "more than 0"]),
        (Routing(split={"3": 1e308, "4": 1e308}), ["split", "sum to inf"]),
        (Routing(sticky="user"), ["sticky is 'user'", '"header:<name of a header>"']),
        (Routing(sticky="header:"), ["sticky"]),
        (Routing(sticky="header:a b"), ["sticky"]),
        (Routing(shadow=Shadow("canary")), ["shadow.target", "'canary' is neither"]),
        (Routing(shadow=Shadow("3", 1.5)), ["shadow.sample is 1.5", "0 to 1"]),
        (Routing(shadow=Shadow("3", nan)), ["shadow.sample is nan"]),
        (Routing(guard=Guard("4")), ["guard.alias", "'4' is no alias"]),
        (Routing(guard=Guard(max_error_rate=2)), ["guard.max_error_rate is 2", "0 to 1"]),
        (Routing(guard=Guard(max_latency_ratio=-1)), ["guard.max_latency_ratio is -1", "0 or more"]),
        (Routing(guard=Guard(max_disagreement=nan)), ["guard.max_disagreement is nan"]),
        (Routing(guard=Guard(max_error_rate=None)), ["guard has no limit", "max_latency_ratio"]),
        (Routing(guard=Guard(min_requests=0)), ["guard.min_requests is 0", "from 1"]),
        (Routing(guard=Guard(window_s=0)), ["guard.window_s is 0", "above 0"]),
        (Routing(guard=Guard(window_s=nan)), ["guard.window_s is nan"]),
    ],
)
def test_what_does_not_fit_is_refused_by_field_and_expectation(routing: Routing, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^models/m/model\.toml: ") as refusal:
        check_routing(routing, "models/m/model.toml")
    for word in words:
        assert word in str(refusal.value)


# ── who answers ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("target", "version"), [("canary", "4"), ("4", "4"), ("99", "99"), ("beta", None), ("", None), ("04", None)]
)
def test_a_target_is_a_version_or_an_alias(target: str, version: str | None) -> None:
    assert resolve(CANARY, target) == version


def test_versions_that_are_named_are_those_of_aliases_split_and_shadow() -> None:
    assert named_versions(Routing()) == set()
    assert named_versions(Routing(ALIASES, {"canary": 1, "7": 0}, shadow=Shadow("9"))) == {"3", "4", "7", "9"}
    assert named_versions(Routing(split={"gone": 1})) == set()


@pytest.mark.parametrize(
    ("split", "ready", "point", "version"),
    [
        ({"stable": 95, "canary": 5}, "34", 0.0, "4"),
        ({"stable": 95, "canary": 5}, "34", 0.0499, "4"),
        ({"stable": 95, "canary": 5}, "34", 0.0501, "3"),
        ({"canary": 5, "stable": 95}, "34", 0.0501, "3"),
        ({"stable": 95, "canary": 5}, "34", 0.999999, "3"),
        ({"stable": 95, "canary": 5}, "4", 0.9, "4"),
        ({"stable": 95, "canary": 5}, "3", 0.0, "3"),
        ({"stable": 95, "canary": 5}, "7", 0.5, None),
        ({"stable": 95, "canary": 5}, "", 0.5, None),
        ({"stable": 95, "canary": 0}, "4", 0.5, None),
        ({"1": 1, "2": 1, "3": 2}, "123", 0.49, "2"),
        ({"1": 1, "2": 1, "3": 2}, "13", 0.49, "3"),
        ({}, "34", 0.5, None),
    ],
)
def test_the_split_chooses_among_what_is_ready(
    split: dict[str, float], ready: str, point: float, version: str | None
) -> None:
    assert choose(Routing(ALIASES, split), [*ready], point) == version


@pytest.mark.parametrize(
    ("routing", "ready", "version"),
    [
        (Routing(), "34", None),
        (Routing(ALIASES), "34", "3"),
        (Routing(ALIASES), "4", None),
        (CANARY, "34", "3"),
        (CANARY, "4", "4"),
        (CANARY, "7", None),
        (replace(CANARY, split={"7": 2, "8": 2, "canary": 3, "4": 1}), "3478", "4"),
        (replace(CANARY, split={"7": 1}), "34", "3"),
    ],
)
def test_without_a_choice_the_heaviest_of_the_split_answers_then_stable(
    routing: Routing, ready: str, version: str | None
) -> None:
    assert likeliest(routing, [*ready]) == version


def test_points_are_the_same_in_every_process() -> None:
    assert point_of(b"user-1") == 0.6041924073669338
    assert point_of(b"") == 0.8931675160897388


# ── changes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_alias_moves_and_leaves_the_others() -> None:
    assert move_alias(CANARY, "canary", "5") == replace(CANARY, aliases={"stable": "3", "canary": "5"})
    assert move_alias(Routing(), "stable", "1") == Routing({"stable": "1"})
    assert CANARY.aliases == ALIASES, "nothing is changed in place"


def test_a_verdict_holds_until_the_guarded_alias_has_another_version_or_is_split_again() -> None:
    judged = Routing(ALIASES, guard=Guard(), rolled_back="errors")
    assert move_alias(judged, "canary", "4").rolled_back == "errors"
    assert move_alias(judged, "stable", "2").rolled_back == "errors"
    assert move_alias(judged, "canary", "5").rolled_back == ""
    assert set_split(judged, {"stable": 1}).rolled_back == "errors"
    assert set_split(judged, {"stable": 1, "canary": 1}).rolled_back == ""


def test_an_alias_that_is_named_stays() -> None:
    with pytest.raises(VersionInUse, match="'canary' is named by the split; change"):
        without_alias(CANARY, "canary")
    with pytest.raises(VersionInUse, match="named by the shadow and the guard"):
        without_alias(Routing(ALIASES, shadow=Shadow("canary"), guard=Guard()), "canary")
    with pytest.raises(ValueError, match="no alias 'beta'; aliases: canary, stable"):
        without_alias(CANARY, "beta")
    assert without_alias(Routing(ALIASES, {"stable": 1}), "canary") == Routing({"stable": "3"}, {"stable": 1})


def test_a_split_replaces_the_one_before() -> None:
    assert set_split(CANARY, {"4": 1}, "body") == replace(CANARY, split={"4": 1}, sticky="body")
    assert set_split(CANARY, {}) == Routing(ALIASES)


@pytest.mark.parametrize(
    ("split", "left"),
    [
        ({"stable": 95, "canary": 5}, {}),
        ({"3": 95, "canary": 5}, {}),
        ({"3": 60, "stable": 10, "canary": 5, "beta": 5}, {"stable": 70, "beta": 5}),
        ({"canary": 5}, {}),
        ({"canary": 5, "2": 5}, {"2": 5}),
        ({}, {}),
    ],
)
def test_a_promotion_leaves_no_trace_of_the_canary(split: dict[str, float], left: dict[str, float]) -> None:
    aliases = {**ALIASES, "beta": "9"}
    promoted = promote(Routing(aliases, split, "body", Shadow("canary"), Guard(), "errors"), "canary", "stable")
    assert promoted == Routing({"stable": "4", "beta": "9"}, left, "body", None, Guard())


def test_a_promotion_to_an_alias_of_ones_own() -> None:
    routing = Routing({"prod": "3", "next": "4"}, {"prod": 9, "next": 1})
    assert promote(routing, "next", "prod") == Routing({"prod": "4"}, {"prod": 9})
    assert promote(Routing({"next": "4"}), "next", "prod") == Routing({"prod": "4"})


def test_a_promotion_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no alias 'beta'; aliases: canary, stable"):
        promote(CANARY, "beta", "stable")
    with pytest.raises(ValueError, match="to itself"):
        promote(CANARY, "stable", "stable")


@pytest.mark.parametrize(
    ("split", "left"),
    [
        ({"stable": 95, "canary": 5}, {}),
        ({"3": 95, "canary": 5}, {"3": 95}),
        ({"stable": 90, "canary": 5, "7": 5}, {"stable": 90, "7": 5}),
        ({"stable": 0, "canary": 5}, {}),
    ],
)
def test_a_roll_back_keeps_the_alias_to_be_looked_at(split: dict[str, float], left: dict[str, float]) -> None:
    rolled_back = roll_back(Routing(ALIASES, split, guard=Guard()), "3 of 100 failed")
    assert rolled_back == Routing(ALIASES, left, guard=Guard(), rolled_back="3 of 100 failed")
    assert shares(rolled_back, ["4"]) == ()
