"""What a request makes of a model's routing. Raises ValueError, VersionInUse."""

from msgspec.structs import replace

from service.lifecycle.messages import MoveAlias, Promote, SetGuard, SetShadow, SetSplit
from service.lifecycle.routing import Routing, move_alias, promote, set_split, without_alias

Change = MoveAlias | SetSplit | SetShadow | SetGuard | Promote


def changed(before: Routing, change: Change) -> Routing:
    match change:
        case MoveAlias(alias=alias, version=version):
            return without_alias(before, alias) if version is None else move_alias(before, alias, version)
        case SetSplit(split=split, sticky=sticky):
            return set_split(before, split, sticky)
        case SetShadow(shadow=shadow):
            return replace(before, shadow=shadow)
        case SetGuard(guard=guard):
            return replace(before, guard=guard, rolled_back="")
        case Promote(alias=alias, to=to):
            return promote(before, alias, to)
