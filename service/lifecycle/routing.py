"""Which version answers a request that names none, or a label: aliases, split, shadow, and the guard of a canary.

One `Routing` for each model that has any; a model without one is answered by its newest ready version. Targets are
versions ("3") or aliases ("canary"); an alias is never a number.
"""

from typing import Annotated

from msgspec import Meta, Struct

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
    sticky        what decides who gets which target: "" by chance, "body" by the tensors, "header:<name>" by that
                  header's value, where it is sent
    rolled_back   why the guard took its alias out of the split; "" where it did not
    """

    aliases: dict[str, str] = {}
    split: dict[str, float] = {}
    sticky: str = ""
    shadow: Shadow | None = None
    guard: Guard | None = None
    rolled_back: str = ""
