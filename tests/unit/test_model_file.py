"""A model's settings file: what it gives, and that each fault is one line with its field."""

import re
from pathlib import Path

import pytest

from service.lifecycle.messages import Overrides
from service.lifecycle.model_file import BadModelFile, ModelFile, parse_model_file
from service.lifecycle.routing import Guard, Routing, Shadow
from service.lifecycle.version_policy import All, Latest, Policy, Specific, absent, in_order, wanted

PAGE = Path(__file__).parents[2] / "docs/repository.md"


def test_the_example_of_the_page_says_everything() -> None:
    example = re.search(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL).group(1)
    assert parse_model_file(example) == ModelFile(
        Latest(2),
        Overrides(
            max_batch_size=32, max_queue_delay_us=500, max_queue_items=256, instances=2, threads=1, timeout_ms=2000
        ),
        Routing(
            aliases={"stable": "2", "canary": "3"},
            split={"stable": 0.9, "canary": 0.1},
            sticky="header:x-user",
            shadow=Shadow("canary", 0.05),
            guard=Guard("canary", 0.01, 1.5, 0.02, 200, 60.0),
        ),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ModelFile()),
        ("[versions]\nlatest = 3\n", ModelFile(Latest(3))),
        ("[versions]\nspecific = [1, 10]\n", ModelFile(Specific(("1", "10")))),
        ("[versions]\nall = true\n", ModelFile(All())),
        ("[engine]\nthreads = 2\n", ModelFile(overrides=Overrides(threads=2))),
        ("[routing]\naliases = {a = 1, b = '2'}\n", ModelFile(routing=Routing(aliases={"a": "1", "b": "2"}))),
        ("[shadow]\ntarget = 4\n", ModelFile(routing=Routing(shadow=Shadow("4")))),
        ("[guard]\n", ModelFile(routing=Routing(guard=Guard()))),
        ("[routing]\nsplit = {'1' = 1, '2' = 3}\n", ModelFile(routing=Routing(split={"1": 1.0, "2": 3.0}))),
    ],
    ids=str,
)
def test_what_is_left_out_is_not_said(text: str, expected: ModelFile) -> None:
    assert parse_model_file(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[version]\nlatest = 1\n", ["version: no such setting", "versions, batching, engine"]),
        ("[batching]\nmax_batch = 1\n", ["batching.max_batch: no such setting", "max_batch_size, max_queue_delay_us"]),
        ("[batching]\nmax_batch_size = 0\n", ["batching.max_batch_size", "greater than or equal to 1, not 0"]),
        ("[batching]\nmax_batch_size = 1025\n", ["batching.max_batch_size", "less than or equal to 1024"]),
        ("[batching]\nmax_batch_size = '8'\n", ["batching.max_batch_size", "valid integer, not '8'"]),
        ("[batching]\nmax_batch_size = true\n", ["batching.max_batch_size", "valid integer, not True"]),
        ("[batching]\nmax_batch_size = 8\nmax_queue_items = 4\n", ["max_batch_size: 8", "max_queue_items (4)"]),
        ("[engine]\ninstances = 257\n", ["engine.instances", "less than or equal to 256"]),
        ("[requests]\ntimeout_ms = 0\n", ["requests.timeout_ms", "greater than or equal to 1"]),
        ("[versions]\n", ["versions: expected one of latest, specific and all, not none"]),
        ("[versions]\nlatest = 1\nall = true\n", ["versions: expected one of", "not all and latest"]),
        ("[versions]\nlatest = 0\n", ["versions.latest", "greater than or equal to 1"]),
        ("[versions]\nall = false\n", ["versions.all", "True, not False"]),
        ("[versions]\nspecific = []\n", ["versions.specific", "at least 1 item"]),
        ("[versions]\nspecific = [1, 0]\n", ["versions.specific.1", "greater than or equal to 1"]),
        ("[routing]\naliases = {stable = true}\n", ["routing.aliases.stable", "valid string, not True"]),
        ("[routing]\nsplit = {stable = 'half'}\n", ["routing.split.stable", "valid number, not 'half'"]),
        ("[shadow]\nsample = 1\n", ["shadow.target: it is missing"]),
        ("[guard]\nmin_requests = 1.5\n", ["guard.min_requests", "valid integer"]),
        ("[routing]\naliases = {stable = 'new'}\n", ["aliases.stable is 'new'", "expected a version"]),
        ("[routing]\naliases = {3 = 4}\n", ["aliases: '3' is no alias"]),
        ("[routing]\nsplit = {canary = 1}\n", ["split: 'canary' is neither a version nor an alias"]),
        ("[routing]\nsplit = {1 = nan}\n", ["split.1 is nan"]),
        ("[routing]\nsticky = 'cookie'\n", ["sticky is 'cookie'"]),
        ("[shadow]\ntarget = 1\nsample = 2\n", ["shadow.sample is 2"]),
        ("[guard]\nmax_error_rate = 1.5\n", ["guard.max_error_rate is 1.5"]),
        ("[versions\n", ["line 1"]),
        ("a = " + "[" * 10_000, ["model.toml"]),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_a_fault_is_named_with_the_file_the_field_and_what_fits(text: str, said: list[str]) -> None:
    with pytest.raises(BadModelFile) as caught:
        parse_model_file(text)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("model.toml: ")
    for words in said:
        assert words in line


def test_every_fault_has_a_line() -> None:
    with pytest.raises(BadModelFile) as caught:
        parse_model_file("[engine]\nthreads = 0\ncores = 1\n[requests]\ntimeout_ms = -1\n")
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        "engine.threads",
        "engine.cores",
        "requests.timeout_ms",
    ]


# ── which versions ───────────────────────────────────────────────────────────────────────────────────────────────────

THERE = ["1", "2", "9", "10"]


@pytest.mark.parametrize(
    ("policy", "refused", "pinned", "expected"),
    [
        (Latest(1), (), (), ["10"]),
        (Latest(2), (), (), ["9", "10"]),
        (Latest(9), (), (), THERE),
        (Latest(1), ("10",), (), ["9"]),
        (Latest(2), ("10", "9"), (), ["1", "2"]),
        (Latest(1), tuple(THERE), (), []),
        (Latest(1), (), ("2",), ["2", "10"]),
        (Latest(1), (), ("10", "3"), ["10"]),
        (Latest(1), ("2",), ("2",), ["10"]),
        (Specific(("10", "2")), (), (), ["2", "10"]),
        (Specific(("10", "3")), (), (), ["10"]),
        (Specific(("10", "2")), ("10",), ("1",), ["1", "2"]),
        (Specific(("3",)), (), (), []),
        (All(), (), (), THERE),
        (All(), ("2",), ("2",), ["1", "9", "10"]),
    ],
    ids=str,
)
def test_which_versions_a_policy_wants(
    policy: Policy, refused: tuple[str, ...], pinned: tuple[str, ...], expected: list[str]
) -> None:
    assert wanted(policy, list(reversed(THERE)), refused, pinned) == expected


@pytest.mark.parametrize(
    ("policy", "pinned", "expected"),
    [
        (Latest(3), (), []),
        (All(), ("11",), ["11"]),
        (Specific(("2", "11", "3")), (), ["3", "11"]),
        (Specific(("3",)), ("3", "1", "20"), ["3", "20"]),
    ],
    ids=str,
)
def test_versions_that_are_asked_for_and_not_there_are_told(
    policy: Policy, pinned: tuple[str, ...], expected: list[str]
) -> None:
    assert absent(policy, THERE, pinned) == expected


def test_versions_are_in_the_order_of_numbers() -> None:
    assert in_order({"10", "9", "100", "1"}) == ["1", "9", "10", "100"]
