"""Every error a client can see has a status, and the pages that list errors list it."""

from pathlib import Path

import pytest

from service import errors
from service.errors import ServiceError

ROOT = Path(__file__).parents[2]


def leaves(kind: type[ServiceError] = ServiceError) -> list[type[ServiceError]]:
    below = kind.__subclasses__()
    return [leaf for sub in below for leaf in leaves(sub)] if below else [kind]


@pytest.mark.parametrize("kind", leaves(), ids=lambda kind: kind.__name__)
def test_every_error_is_in_the_tree_and_in_the_docs_with_its_status(kind: type[ServiceError]) -> None:
    assert f"{kind.__name__} " in errors.__doc__
    assert f"| {kind.status} | `{kind.__name__}`" in (ROOT / "docs/http-api.md").read_text()


def test_faults_of_the_client_are_4xx_and_ours_5xx() -> None:
    for kind in leaves():
        assert (400 <= kind.status < 500) == issubclass(kind, errors.RequestError), kind


def test_what_may_be_sent_again_says_when() -> None:
    for kind in leaves():
        if kind.status == 503:
            assert kind.headers["retry-after"].isdigit(), kind
