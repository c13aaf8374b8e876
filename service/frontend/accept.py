"""Which form of answer a client's `Accept` asks for. Source: RFC 9110 §12.4.2, §12.5.1.

A type's weight is that of the most specific range that names it; the heaviest type wins, and of equals the one that is
named more closely, then JSON, CSV, NDJSON. A weight that cannot be read is left out.
"""

import functools
import re
from typing import Literal

from service.errors import NotAcceptable

Form = Literal["json", "csv", "ndjson"]

ANYTHING = b"*/*"  # what a client without wishes sends, if it sends anything

_MEDIA_TYPES: dict[Form, str] = {
    "json": "application/json",
    "csv": "text/csv",
    "ndjson": "application/x-ndjson",
}
_WEIGHT = re.compile(r";\s*q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*(?:;|$)", re.IGNORECASE)


def form_asked_for(accept: bytes) -> Form:
    """Raises NotAcceptable."""
    if (form := _best(accept)) is None:
        raise NotAcceptable(f"Accept is {accept.decode('latin-1')!r}; offered: {', '.join(_MEDIA_TYPES.values())}")
    return form


@functools.lru_cache(64)
def _best(accept: bytes) -> Form | None:
    weights = _weights(accept.decode("latin-1")) or {"*/*": 1.0}
    best: Form | None = None
    heaviest = (0.0, 0)
    for form, media_type in _MEDIA_TYPES.items():
        ranges = ("*/*", f"{media_type.partition('/')[0]}/*", media_type)
        closeness = max((i for i, name in enumerate(ranges) if name in weights), default=None)
        if closeness is None:
            continue
        weight = weights[ranges[closeness]]
        if weight > 0 and (weight, closeness) > heaviest:
            best, heaviest = form, (weight, closeness)
    return best


def _weights(accept: str) -> dict[str, float]:
    """By media range; parameters other than the weight say nothing here."""
    weights: dict[str, float] = {}
    for entry in accept.split(","):
        media_range = entry.partition(";")[0].strip().lower()
        if media_range:
            given = _WEIGHT.search(entry)
            weights[media_range] = float(given[1]) if given else 1.0
    return weights
