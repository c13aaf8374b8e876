"""Which of a model's versions are to be served: the policy of its settings file. Pure.

    latest n    the newest n that work, so that an older one serves where the newest was refused
    specific    those and no others
    all         every one

Versions that aliases, split or shadow name are served beside them, whatever the policy.
"""

from collections.abc import Collection, Iterable

from msgspec import Struct


class Latest(Struct, frozen=True):
    n: int = 1


class Specific(Struct, frozen=True):
    versions: tuple[str, ...]


class All(Struct, frozen=True):
    pass


Policy = Latest | Specific | All


def wanted(
    policy: Policy, versions: Collection[str], refused: Collection[str] = (), pinned: Collection[str] = ()
) -> list[str]:
    """Those of `versions` to serve, ascending.

    versions   what is there
    refused    those that were tried and may not serve: never wanted, and `latest` does not count them
    pinned     wanted whatever the policy says, where they are there
    """
    usable = in_order(set(versions) - set(refused))
    match policy:
        case Latest(n):
            chosen = usable[-n:]
        case Specific(listed):
            chosen = [version for version in usable if version in listed]
        case All():
            chosen = usable
    return in_order({*chosen, *(version for version in usable if version in pinned)})


def absent(policy: Policy, versions: Collection[str], pinned: Collection[str] = ()) -> list[str]:
    """What the policy lists by number, or something pins, and is not among `versions`; ascending."""
    listed = policy.versions if isinstance(policy, Specific) else ()
    return in_order({*listed, *pinned} - set(versions))


def in_order(versions: Iterable[str]) -> list[str]:
    """By number: "9" before "10"."""
    return sorted(versions, key=int)
