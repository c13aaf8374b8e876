"""Where a request stands in a model's split: which point in [0, 1) it has, by chance or by what it carries."""

import random
from collections.abc import Mapping

from service.lifecycle.routing import point_of

_HEADER = "header:"


def point_for(sticky: str, headers: Mapping[bytes, bytes], body: bytes) -> float:
    """`sticky` as `Routing` has it. A request without the header that decides has a point by chance.

    headers   names in lower case
    body      as the client meant it: not compressed
    """
    if sticky == "body":
        return point_of(body)
    if sticky.startswith(_HEADER) and (value := headers.get(sticky.removeprefix(_HEADER).lower().encode())) is not None:
        return point_of(value)
    return random.random()  # noqa: S311 who answers is no secret
