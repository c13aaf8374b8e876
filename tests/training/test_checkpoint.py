import errno
import io
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from training.errors import CheckpointDamaged
from training.recipes import CIFAR10_RECIPE, MNIST_RECIPE, Recipe


def checkpoint(recipe: Recipe = MNIST_RECIPE, step: int = 3) -> Checkpoint:
    """With the states of a network and an optimizer that have taken a step."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    model(torch.rand(4, 2)).square().sum().backward()
    optimizer.step()
    return Checkpoint(
        recipe=recipe,
        dataset_sha256="ab" * 32,
        epoch=2,
        step=step,
        seconds=12.5,
        sums=[0.1, 2.0, 3.0],
        history=[{"epoch": 1, "loss": 0.5, "accuracy": None}, {"epoch": 2, "loss": 0.25, "accuracy": 0.75}],
        parts={"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": {"best": float("inf")}},
        source=["0123abc", "4567def-dirty"],
        best={"loss": 0.25, "epoch": 2, "weights": {"w": torch.ones(3, dtype=torch.bfloat16)}},
    )


def assert_equal(found: Any, expected: Any) -> None:  # Any: tensors and plain values, nested
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


def fields(of: Checkpoint) -> dict[str, Any]:  # Any: as above
    return {name: getattr(of, name) for name in of.__struct_fields__}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "tiny" / "now" / "checkpoint.pt"


@pytest.fixture
def written(path: Path) -> Path:
    write_checkpoint(path, checkpoint())
    return path


@pytest.mark.parametrize("recipe", [MNIST_RECIPE, CIFAR10_RECIPE], ids=lambda recipe: recipe.name)
def test_what_is_written_is_read(path: Path, recipe: Recipe) -> None:
    expected = checkpoint(recipe)
    write_checkpoint(path, expected)
    found = read_checkpoint(path)
    assert found.recipe == recipe
    assert_equal(fields(found), fields(expected))


def test_a_run_without_a_best_epoch_has_none(path: Path) -> None:
    write_checkpoint(path, msgspec.structs.replace(checkpoint(), best=None))
    assert read_checkpoint(path).best is None


def test_an_optimizer_goes_on_from_what_is_read(written: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    parts = read_checkpoint(written).parts
    model.load_state_dict(parts["model"])
    optimizer.load_state_dict(parts["optimizer"])
    assert optimizer.state[model[0].weight]["step"].item() == 1


def test_the_next_checkpoint_takes_the_place_of_the_last_and_nothing_lies_beside_it(written: Path) -> None:
    write_checkpoint(written, checkpoint(step=7))
    assert read_checkpoint(written).step == 7
    assert [file.name for file in written.parent.iterdir()] == ["checkpoint.pt"]


def test_a_partial_file_of_a_killed_run_is_in_nobodys_way(written: Path) -> None:
    (written.parent / ".checkpoint.pt.partial").write_bytes(b"half of it")
    write_checkpoint(written, checkpoint(step=7))
    assert read_checkpoint(written).step == 7
    assert [file.name for file in written.parent.iterdir()] == ["checkpoint.pt"]


# ---- what is not a checkpoint


class Code:
    """Creates a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.marker),)


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def refusal(path: Path) -> str:
    """The message, which is one line that names the file."""
    with pytest.raises(CheckpointDamaged) as raised:
        read_checkpoint(path)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def altered(path: Path, **changes: object) -> bytes:
    return saved(torch.load(path, weights_only=True) | changes)


def test_a_missing_file_is_named(path: Path) -> None:
    assert refusal(path).endswith("cannot be read: No such file or directory")


def test_a_folder_is_no_checkpoint(path: Path) -> None:
    path.mkdir(parents=True)
    assert "cannot be read" in refusal(path)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_file_that_ends_too_early_is_refused(written: Path, part: float) -> None:
    content = written.read_bytes()
    written.write_bytes(content[: int(part * len(content))])
    assert "is not a checkpoint of a training run, or a damaged one" in refusal(written)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_refused(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True)
    noise = bytes(torch.randint(256, (200,), generator=torch.Generator().manual_seed(seed)).tolist())
    for content in (noise, pickle.PROTO + b"\x02" + noise):  # the second looks like a pickle from its start
        path.write_bytes(content)
        assert "or a damaged one" in refusal(path)


def test_a_pickle_with_bytes_changed_is_refused(written: Path) -> None:
    content = pickle.dumps({"format": 1, "recipe": {"name": "x"}, "sums": [1.0, (2, 3)]}, protocol=2)
    for place in range(2, len(content)):
        written.write_bytes(content[:place] + bytes([content[place] ^ 0x15]) + content[place + 1 :])
        refusal(written)


@pytest.mark.parametrize(
    "content",
    [
        {"weights": torch.ones(2)},
        torch.ones(2),
        [1, 2],
        None,
        "text",
        {"format": 1},
        {"format": 1, "recipe": 5},
    ],
    ids=lambda content: type(content).__name__,
)
def test_what_somebody_else_saved_is_refused(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(saved(content))
    assert "is not a checkpoint of a training run" in refusal(path)


def test_another_format_asks_to_train_again(written: Path) -> None:
    written.write_bytes(altered(written, format=2))
    assert refusal(written).endswith("was written by another version of this code; train again.")


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": {"name": "x"}},
        {"recipe": msgspec.to_builtins(MNIST_RECIPE) | {"momentun": 0.9}},
        {"recipe": msgspec.to_builtins(MNIST_RECIPE) | {"lr": -1.0}},
        {"another": 1},
    ],
    ids=["fields missing", "unknown field", "out of bounds", "unknown part"],
)
def test_a_checkpoint_with_other_fields_is_refused(written: Path, changes: dict[str, object]) -> None:
    written.write_bytes(altered(written, **changes))
    assert "is not a checkpoint of a training run" in refusal(written)


@pytest.mark.parametrize("write", [saved, partial(pickle.dumps, protocol=2)], ids=["torch", "pickle"])
def test_a_checkpoint_runs_no_code(path: Path, tmp_path: Path, write: Callable[[object], bytes]) -> None:
    path.parent.mkdir(parents=True)
    marker = tmp_path / "ran"
    path.write_bytes(write({"format": 1, "recipe": Code(marker)}))
    refusal(path)
    assert not marker.exists()


# ---- disks


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_up(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fill_up)
    with pytest.raises(OSError, match=r"No space left on device: .*checkpoint\.pt"):
        write_checkpoint(written, checkpoint(step=7))
    monkeypatch.undo()
    assert [file.name for file in written.parent.iterdir()] == ["checkpoint.pt"]
    assert read_checkpoint(written).step == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("numbers", [1, 1_000_000])  # one that fits into the buffers on the way, and one that does not
def test_a_device_that_is_really_full_leaves_the_last_checkpoint(written: Path, numbers: int) -> None:
    (written.parent / ".checkpoint.pt.partial").symlink_to("/dev/full")
    large = msgspec.structs.replace(checkpoint(step=7), parts={"model": {"w": torch.zeros(numbers)}})
    with pytest.raises(OSError, match=r"No space left on device: .*checkpoint\.pt"):
        write_checkpoint(written, large)
    assert [file.name for file in written.parent.iterdir()] == ["checkpoint.pt"]
    assert read_checkpoint(written).step == 3


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_bytes(b"")
    with pytest.raises(OSError, match="runs"):
        write_checkpoint(tmp_path / "runs" / "tiny" / "checkpoint.pt", checkpoint())
