"""What a handler makes of a request's body, and what is left to do: commit the rows, and encode what comes back."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from service.batching.arena import Rows
from service.batching.claim import Claim, ServedModel
from service.frontend.http import Answer


class Prepared(NamedTuple):
    """Rows are written, and nothing committed yet. The claim is the caller's to release.

    encode     the answer, from a claim that is done
    """

    claim: Claim
    encode: Callable[[Claim], Answer]


def version_header(claim: Claim) -> tuple[tuple[bytes, bytes], ...]:
    """Which version answered, for answers whose body does not tell."""
    return ((b"x-model-version", claim.model.facts.version.encode()),)


def claim_rows(model: ServedModel, n_items: int, rows: Mapping[str, Rows], deadline: int) -> Claim:
    """Slots with the rows of every input written. Raises Overloaded, WrongTensor."""
    claim = model.claim(n_items)
    claim.deadline = deadline
    try:
        for name, items in rows.items():
            claim.write(name, items)
    except BaseException:
        claim.release()
        raise
    return claim
