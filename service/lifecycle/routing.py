"""Which version answers a request that names none, or a label: aliases, split, shadow, and the guard of a canary.

One `Routing` for each model that has any; a model without one is answered by its newest ready version. Targets are
versions ("3") or aliases ("canary"); an alias is never a number.

Pure: the controller keeps what these functions make, every frontend asks them who answers.
"""

import re
from collections.abc import Collection
from hashlib import blake2b
from itertools import accumulate
from math import fsum, inf, isfinite
from typing import Annotated, TypeVar

from msgspec import Meta, Struct
from msgspec.structs import replace

from service.errors import VersionInUse

STABLE = "stable"  # who answers a request that names no version, where there is no split

Shares = tuple[tuple[float, str], ...]
"""[0, 1) in parts: where each ends, and the version it belongs to."""

_Value = TypeVar("_Value")

_VERSION = re.compile(r"[1-9][0-9]*")
_ALIAS = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")
_STICKY = re.compile(r"|body|header:[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a header's name: RFC 9110 §5.6.2

Part = Annotated[float, Meta(ge=0, le=1)]
Above0 = Annotated[float, Meta(gt=0)]


class Shadow(Struct, frozen=True, forbid_unknown_fields=True):
    """Requests are repeated on `target`, whose answers are compared and thrown away.

    sample   the part of the requests, 0 to 1
    """

    target: str
    sample: Part = 1.0


class Guard(Struct, frozen=True, forbid_unknown_fields=True):
    """When `alias` is taken out of the split, compared with what else the split names, over `window_s`.

    max_error_rate      of its requests answered with 500 or more, above that of the others
    max_latency_ratio   its mean latency over that of the others
    max_disagreement    of the items that a shadow compared, the part whose answers differed
    min_requests        it must have answered as many in the window before it is judged
    """

    alias: str = "canary"
    max_error_rate: Part | None = 0.01
    max_latency_ratio: Above0 | None = None
    max_disagreement: Part | None = None
    min_requests: Annotated[int, Meta(ge=1)] = 100
    window_s: Above0 = 60.0


class Routing(Struct, frozen=True, forbid_unknown_fields=True):
    """Of one model.

    aliases       version by label
    split         weight by target, for requests that name no version; {}: all go to the alias `stable`, where there is
                  one, else to the newest ready version
    sticky        what decides who gets which target: "" chance, "body" its bytes, "header:<name>" that header's value,
                  and chance where it is not sent
    rolled_back   why the guard took its alias out of the split; "" where it did not
    """

    aliases: dict[str, str] = {}
    split: dict[str, float] = {}
    sticky: str = ""
    shadow: Shadow | None = None
    guard: Guard | None = None
    rolled_back: str = ""


def check_routing(routing: Routing, of: str) -> None:
    """Raises ValueError, whose message begins with `of` and names the field and what was expected.

    That a version is there is not asked: it may come later. A guard may name an alias that is not there: it waits for
    the next one of that name.
    """
    for alias, version in routing.aliases.items():
        _check_alias(alias, f"{of}: aliases")
        if not is_version(version):
            raise ValueError(f"{of}: aliases.{alias} is {version!r}; expected a version, a whole number from 1")
    _check_split(routing, of)
    if not _STICKY.fullmatch(routing.sticky):
        raise ValueError(f'{of}: sticky is {routing.sticky!r}; expected "", "body" or "header:<name of a header>"')
    if routing.shadow is not None:
        _check_target(routing, routing.shadow.target, f"{of}: shadow.target")
        _check_number(routing.shadow.sample, f"{of}: shadow.sample", most=1)
    if routing.guard is not None:
        _check_guard(routing.guard, of)


def is_version(target: str) -> bool:
    """Whether it is a version's number, and so no label."""
    return _VERSION.fullmatch(target) is not None


def resolve(routing: Routing, target: str) -> str | None:
    """The version that a label points to, or the version itself; None: there is no such label."""
    return target if is_version(target) else routing.aliases.get(target)


def named_versions(routing: Routing) -> set[str]:
    """Those that aliases, split and shadow need."""
    targets = [*routing.split, *([routing.shadow.target] if routing.shadow else [])]
    found = {resolve(routing, target) for target in targets} | {*routing.aliases.values()}
    return {version for version in found if version is not None}


# ── who answers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def shares(routing: Routing, ready: Collection[str]) -> Shares:
    """The split's targets that are ready, by their weights; () where none is.

    In the order of the targets' names, so that it does not matter how a split was written down, and that of two
    targets only those points change sides by which a weight grew.
    """
    weights = [
        (version, weight)
        for target, weight in sorted(routing.split.items())
        if weight > 0 and (version := resolve(routing, target)) is not None and version in ready
    ]
    total = fsum(weight for _, weight in weights)
    ends = accumulate(weight / total for _, weight in weights)
    parts = [(end, version) for end, (version, _) in zip(ends, weights, strict=True)]
    return (*parts[:-1], *((1.0, version) for _, version in parts[-1:]))  # the sum may have come to less than 1


def pick(parts: Shares, point: float) -> str | None:
    """The version at `point`, in [0, 1); None where there are no parts."""
    return next((version for end, version in parts if point < end), None)


def choose(routing: Routing, ready: Collection[str], point: float) -> str | None:
    """The version that answers a request of this point, by the split; None where none of it is ready."""
    return pick(shares(routing, ready), point)


def likeliest(routing: Routing, ready: Collection[str]) -> str | None:
    """Who most requests without a version go to: the heaviest of the split, else `stable`; None: neither is ready."""
    totals: dict[str, float] = {}
    begins = 0.0
    for end, version in shares(routing, ready):
        totals[version] = totals.get(version, 0.0) + end - begins
        begins = end
    if totals:
        return max(totals, key=totals.__getitem__)
    stable = routing.aliases.get(STABLE)
    return stable if stable is not None and stable in ready else None


def point_of(key: bytes) -> float:
    """[0, 1), the same for the same key in every process and at any time: 53 bits of BLAKE2b."""
    return (int.from_bytes(blake2b(key, digest_size=8).digest()) >> 11) / 2**53


# ── changes ──────────────────────────────────────────────────────────────────────────────────────────────────────────
# Each gives a new routing, which `check_routing` has yet to see.


def move_alias(routing: Routing, alias: str, version: str) -> Routing:
    """The guard's verdict was about the version that its alias had."""
    moved = replace(routing, aliases={**routing.aliases, alias: version})
    other = routing.aliases.get(alias) != version
    return replace(moved, rolled_back="") if other and _is_guarded(routing, alias) else moved


def without_alias(routing: Routing, alias: str) -> Routing:
    """Raises ValueError where there is none, VersionInUse where something goes by it."""
    _version_of(routing, alias)
    users = {
        "the split": alias in routing.split,
        "the shadow": routing.shadow is not None and routing.shadow.target == alias,
        "the guard": _is_guarded(routing, alias),
    }
    if named := [user for user, names_it in users.items() if names_it]:
        raise VersionInUse(f"alias {alias!r} is named by {' and '.join(named)}; change that first")
    return replace(routing, aliases=_without(routing.aliases, alias))


def set_split(routing: Routing, split: dict[str, float], sticky: str = "") -> Routing:
    """A split with the guard's alias in it gives that another chance."""
    again = routing.guard is not None and routing.guard.alias in split
    return replace(routing, split=split, sticky=sticky, rolled_back="" if again else routing.rolled_back)


def promote(routing: Routing, alias: str, to: str) -> Routing:
    """As messages.Promote says. What the split gave to the version that `to` had goes to `to`. Raises ValueError."""
    version = _version_of(routing, alias)
    if alias == to:
        raise ValueError(f"cannot promote {alias!r} to itself; expected another alias")
    former = routing.aliases.get(to)
    split: dict[str, float] = {}
    for target, weight in routing.split.items():
        if target != alias:
            heir = to if target == former else target
            split[heir] = split.get(heir, 0.0) + weight
    return replace(
        routing,
        aliases={**_without(routing.aliases, alias), to: version},
        split=_simplest(split),
        shadow=None,
        rolled_back="",
    )


def roll_back(routing: Routing, reason: str) -> Routing:
    """Without the guard's alias in the split. The alias stays where it is, to be looked at."""
    assert routing.guard is not None, "bug: a verdict without a guard"
    return replace(routing, split=_simplest(_without(routing.split, routing.guard.alias)), rolled_back=reason)


def _simplest(split: dict[str, float]) -> dict[str, float]:
    """{} where it says no more than that: no weight is left, or all of it is `stable`'s."""
    weighed = {target for target, weight in split.items() if weight > 0}
    return {} if weighed <= {STABLE} else split


def _version_of(routing: Routing, alias: str) -> str:
    if (version := routing.aliases.get(alias)) is None:
        raise ValueError(f"no alias {alias!r}; aliases: {', '.join(sorted(routing.aliases)) or 'none'}")
    return version


def _is_guarded(routing: Routing, alias: str) -> bool:
    return routing.guard is not None and routing.guard.alias == alias


def _without(entries: dict[str, _Value], key: str) -> dict[str, _Value]:
    return {each: value for each, value in entries.items() if each != key}


# ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_split(routing: Routing, of: str) -> None:
    for target, weight in routing.split.items():
        _check_target(routing, target, f"{of}: split")
        _check_number(weight, f"{of}: split.{target}")
    if routing.split and not 0 < (total := sum(routing.split.values())) < inf:
        raise ValueError(f"{of}: split has weights that sum to {total:g}; expected more than 0")


def _check_guard(guard: Guard, of: str) -> None:
    _check_alias(guard.alias, f"{of}: guard.alias")
    limits: dict[str, tuple[float | None, float]] = {
        "max_error_rate": (guard.max_error_rate, 1),
        "max_latency_ratio": (guard.max_latency_ratio, inf),
        "max_disagreement": (guard.max_disagreement, 1),
    }
    for name, (limit, most) in limits.items():
        if limit is not None:
            _check_number(limit, f"{of}: guard.{name}", most)
    if all(limit is None for limit, _ in limits.values()):
        raise ValueError(f"{of}: guard has no limit; expected one of {', '.join(limits)}")
    if guard.min_requests < 1:
        raise ValueError(f"{of}: guard.min_requests is {guard.min_requests}; expected a whole number from 1")
    if not 0 < guard.window_s < inf:
        raise ValueError(f"{of}: guard.window_s is {guard.window_s:g}; expected a number above 0")


def _check_alias(alias: str, field: str) -> None:
    if not _ALIAS.fullmatch(alias):
        raise ValueError(
            f"{field}: {alias!r} is no alias; expected a letter or _, then letters, digits, _ . - up to 63 in all"
        )


def _check_target(routing: Routing, target: str, field: str) -> None:
    if resolve(routing, target) is None:
        aliases = ", ".join(sorted(routing.aliases)) or "none"
        raise ValueError(f"{field}: {target!r} is neither a version nor an alias; aliases: {aliases}")


def _check_number(value: float, field: str, most: float = inf) -> None:
    if not (isfinite(value) and 0 <= value <= most):
        expected = "0 or more" if most == inf else f"0 to {most:g}"
        raise ValueError(f"{field} is {value:g}; expected a number, {expected}")
