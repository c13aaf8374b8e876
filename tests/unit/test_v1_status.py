"""The state of several versions, of which some are refused."""

from typing import Any

import pytest
from litestar.datastructures import State

from service.errors import UnknownModel
from service.frontend.admin import Health
from service.frontend.v1_status import status_of
from service.lifecycle.messages import VersionState


class FakeEngines:
    """Of one model, m, and another."""

    def __init__(self, *states: VersionState) -> None:
        self._states = states

    def states(self) -> dict[tuple[str, str], VersionState]:
        return {(each.name, each.version): each for each in self._states}

    def aliases(self, name: str) -> dict[str, str]:
        return {}

    def find(self, name: str, version: str | None) -> Any:
        raise UnknownModel(f"no {name} {version}")


def state(versions: list[str], health: str = "serving") -> State:
    engines = FakeEngines(
        *(VersionState("m", version, "READY") for version in versions),
        VersionState("m", "9", "UNAVAILABLE", "damaged"),
        VersionState("other", "3", "UNAVAILABLE", "not ours"),
    )
    return State({"engines": engines, "health": Health(health)})  # type: ignore[arg-type]


def test_versions_are_listed_newest_first_and_refused_ones_are_at_their_end() -> None:
    answer = status_of(state(["2", "10"]), "m", None)
    assert answer.status_code in (None, 200)
    assert [(each.version, each.state, each.status.error_message) for each in answer.content.model_version_status] == [
        ("10", "AVAILABLE", ""),
        ("9", "END", "damaged"),
        ("2", "AVAILABLE", ""),
    ]
    assert answer.content.ready


@pytest.mark.parametrize(("version", "ready"), [("2", True), ("9", False)])
def test_a_version_is_told_of_alone(version: str, ready: bool) -> None:
    content = status_of(state(["2", "10"]), "m", version).content
    assert [each.version for each in content.model_version_status] == [version]
    assert content.ready == ready


@pytest.mark.parametrize("health", ["leaving", "closing"])
def test_a_draining_server_is_not_ready_though_its_versions_are_there(health: str) -> None:
    answer = status_of(state(["2"], health), "m", "2")
    assert answer.status_code == 503
    assert answer.content.model_version_status[0].state == "AVAILABLE"
    assert "draining" in answer.content.error


def test_what_is_not_there_is_an_error() -> None:
    with pytest.raises(UnknownModel):
        status_of(state(["2"]), "m", "3")
