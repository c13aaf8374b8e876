"""How many processes there are, and what the control group says of the cores."""

from pathlib import Path

import pytest

from service import machine, supervisor
from service.settings import read_settings


@pytest.mark.parametrize(
    ("cores", "expected"), [(1, 0), (2, 1), (3, 1), (4, 2), (8, 4), (64, 4)], ids=lambda value: str(value)
)
def test_auto_goes_by_the_cores(monkeypatch: pytest.MonkeyPatch, cores: int, expected: int) -> None:
    monkeypatch.setattr(supervisor, "available_cores", lambda: cores)
    assert supervisor.frontend_count(read_settings([], "serve")) == expected
    assert supervisor.frontend_count(read_settings(["--frontends", "3"], "serve")) == 3


def test_cores_that_are_set_are_those_that_auto_goes_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "available_cores", lambda: 64)
    assert supervisor.frontend_count(read_settings(["--engine.cores", "2"], "serve")) == 1


def test_one_engine_for_each_gpu_else_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "cuda_devices", lambda: ["0", "1", "2"])
    assert supervisor.engine_count(read_settings([], "serve")) == 3
    assert supervisor.engine_count(read_settings(["--engine.device", "cpu"], "serve")) == 1
    assert supervisor.engine_count(read_settings(["--engine.engines", "2"], "serve")) == 2
    monkeypatch.setattr(supervisor, "cuda_devices", list)
    assert supervisor.engine_count(read_settings([], "serve")) == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({}, None),
    ],
)
def test_the_quota_is_that_of_either_version(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.cpu_quota(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (2.0, 2), (2.1, 3), (0.5, 1), (64.0, 8)])
def test_a_part_of_a_core_counts_as_one(monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int) -> None:
    monkeypatch.setattr(machine, "cpu_quota", lambda _: quota)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    assert machine.available_cores() == expected


@pytest.mark.parametrize("n", [1, 3])
def test_all_listeners_are_on_one_port(n: int) -> None:
    listeners = supervisor.listen("127.0.0.1", 0, n)
    assert len({listener.getsockname() for listener in listeners}) == 1
    for listener in listeners:
        listener.close()
