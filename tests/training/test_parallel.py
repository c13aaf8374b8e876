"""Two processes under torchrun, joined by gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.manifest import read_manifest
from tests.training.conftest import fitted
from tests.training.two_processes import RECIPE, tiny
from training.errors import DeviceUnavailable, RecipeInvalid
from training.loop import Trained
from training.parallel import World, joined
from training.recipes import changed

CHECKOUT = Path(__file__).parents[2]
SCRIPT = CHECKOUT / "tests/training/two_processes.py"
CPU = torch.device("cpu")


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, timeout=110, env=environment)
    assert finished.returncode == 0, finished.stderr
    return finished


@pytest.fixture(scope="module")
def alone() -> Trained:
    return fitted(RECIPE, tiny())


def assert_as_alone(folder: Path, alone: Trained) -> None:
    """The sums are formed in another order, so the last bits may differ and nothing more."""
    together = torch.load(folder / "weights.pt", weights_only=True)
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(together[name], value, atol=1e-5, rtol=1e-4)
    history = json.loads((folder / "history.json").read_bytes())
    assert [one["items"] for one in history] == [one.items for one in alone.history]
    assert [one["accuracy"] for one in history] == [one.accuracy for one in alone.history]
    assert [one["loss"] for one in history] == pytest.approx([one.loss for one in alone.history], rel=1e-4)
    expected = [one.validation_loss for one in alone.history]
    assert [one["validation_loss"] for one in history] == pytest.approx(expected, rel=1e-4)


def test_two_processes_keep_their_gradients_in_step_and_learn_what_one_learns(tmp_path: Path, alone: Trained) -> None:
    torchrun(str(SCRIPT), str(tmp_path))
    assert_as_alone(tmp_path, alone)


def test_two_processes_stop_in_the_same_step_and_go_on_to_the_same_result(tmp_path: Path, alone: Trained) -> None:
    torchrun(str(SCRIPT), str(tmp_path), "13")  # of nine an epoch
    assert not (tmp_path / "weights.pt").exists()
    torchrun(str(SCRIPT), str(tmp_path), "resume")
    assert_as_alone(tmp_path, alone)


def test_the_command_line_publishes_once(tmp_path: Path) -> None:
    where = ["--repository", str(tmp_path / "models"), "--runs", str(tmp_path / "runs"), "--device", "cpu"]
    finished = torchrun("-m", "training", "linear_regression", "--batch-size", "314", *where)
    assert finished.stdout.count("Published linear_regression version 1") == 1
    assert "600 epochs on cpu, 2 processes" in finished.stdout
    assert [path.name for path in (tmp_path / "models/linear_regression").iterdir()] == ["1"]
    assert (
        read_manifest(tmp_path / "models/linear_regression/1").metrics["closed_form_difference"] < 0.03
    )  # 313 rows for two: one row is seen twice


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    world = World(rank=0, size=4, device=CPU)
    assert world.share(changed(RECIPE, {"batch_size": 32})) == 8
    with pytest.raises(RecipeInvalid, match="batch_size 30 cannot be shared evenly by 4 processes"):
        world.share(RECIPE)


def test_alone_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(CPU) as world:
        assert (world.rank, world.size, world.is_first) == (0, 1, True)
        values = torch.tensor([1.0, 2.0])
        assert world.total(values) is values
        assert (world.any(True), world.any(False), world.of_first(0.5)) == (True, False, 0.5)
        module = torch.nn.Linear(1, 1)
        assert world.wrap(module) is module


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(DeviceUnavailable, match=r"process 2 of this machine has no GPU .* --nproc-per-node 1"),
        joined(torch.device("cuda")),
    ):
        pass
