"""The memory guard: what is free is read as the kernel tells it; a version that does not fit is refused or swapped."""

from pathlib import Path

import pytest

from service.controller import gate
from service.errors import LoadRefused
from service.lifecycle.messages import LoadModel, Verdict
from service.machine import available_memory
from tests.lifecycle.conftest import Start, write_version

MIB = 1 << 20


def machine(folder: Path, available_mib: int, limit: str, used_mib: int, files_mib: int) -> tuple[Path, Path]:
    """A control group and a /proc/meminfo that say so."""
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used_mib * MIB}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files_mib * MIB}\n")
    (folder / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:  {available_mib * 1024} kB\n")
    return folder, folder / "meminfo"


@pytest.mark.parametrize(
    ("limit", "free_mib"),
    [("max", 1000), (str(600 * MIB), 250), (str(9000 * MIB), 1000)],
)
def test_free_is_the_less_of_machine_and_control_group(tmp_path: Path, limit: str, free_mib: int) -> None:
    assert available_memory(*machine(tmp_path, 1000, limit, 400, 50)) == free_mib * MIB


def test_where_nothing_tells_it_is_not_known(tmp_path: Path) -> None:
    assert available_memory(tmp_path / "none", tmp_path / "none") is None


def test_what_the_trial_took_and_a_tenth_must_be_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "available_memory", lambda: 110 * MIB)
    assert gate.too_large(Verdict(memory_bytes=99 * MIB)) is None
    assert gate.too_large(Verdict(memory_bytes=101 * MIB)) == (
        "it needs 111 MiB beside what is served, and 110 MiB are free"
    )


async def test_a_version_that_does_not_fit_is_refused_and_the_old_one_serves(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    async with start(root) as lifecycle:
        monkeypatch.setattr(gate, "too_large", lambda _: "it needs more than there is")
        write_version(root, "times", 2, 100)
        with pytest.raises(LoadRefused, match="it needs more than there is"):
            await lifecycle.ask(LoadModel("times"))
        assert await lifecycle.predict("times", 3) == 30


async def test_by_setting_it_takes_the_place_of_the_old_one_once_that_is_gone(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    control = {"mode": "explicit", "when_memory_is_short": "in_place"}
    async with start(root, control=control) as lifecycle:
        served: list[int] = []

        def short(_: Verdict) -> str:
            served.append(len(lifecycle.engine._models))
            return "it needs more than there is"

        monkeypatch.setattr(gate, "too_large", short)
        write_version(root, "times", 2, 100)
        await lifecycle.ask(LoadModel("times"))
        assert served == [1]
        assert lifecycle.engines.versions("times") == ["2"]
        assert await lifecycle.predict("times", 3) == 300
