"""A run that was stopped goes on to the very weights it would have reached."""

from collections.abc import Callable
from itertools import count

import msgspec
import pytest
import torch

from tests.training.conftest import fitted
from training.checkpoint import Checkpoint
from training.data import DataSet
from training.errors import CheckpointDamaged, Interrupted
from training.loop import Trained
from training.recipes import Recipe, changed

# Everything with a state: momentum, averages, dropout, a held-out part, random augmentation, alternating flips.
STATEFUL = {
    "epochs": 4,
    "optimizer": "adamw",
    "ema": 0.95,
    "dropout": 0.3,
    "validation": 0.1,
    "patience": 3,
    "lr_scheduler": "plateau",
    "flip": "alternating",
    "shift": 2,
    "erase": 5,
}


def stopping_after(steps: int) -> Callable[[], bool]:
    calls = count(1)
    return lambda: next(calls) == steps


def stopped(recipe: Recipe, data: DataSet, steps: int) -> Checkpoint:
    kept: list[Checkpoint] = []
    with pytest.raises(Interrupted, match="stopped in epoch"):
        fitted(recipe, data, keep=kept.append, stop=stopping_after(steps))
    return kept[-1]


def assert_same(resumed: Trained, straight: Trained) -> None:
    theirs, ours = straight.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    facts = [(one.epoch, one.items, one.loss, one.accuracy, one.validation_loss) for one in straight.history]
    assert [(one.epoch, one.items, one.loss, one.accuracy, one.validation_loss) for one in resumed.history] == facts


@pytest.mark.parametrize("steps", [1, 9, 13, 27])  # of nine an epoch: in the middle of each, and at the end of one
def test_the_weights_are_those_of_a_run_that_never_stopped(recipe: Recipe, data: DataSet, steps: int) -> None:
    stateful = changed(recipe, STATEFUL)
    checkpoint = stopped(stateful, data, steps)
    assert (checkpoint.epoch * 9 + checkpoint.step) == steps
    assert_same(fitted(stateful, data, resume=checkpoint), fitted(stateful, data))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop", "adagrad", "adadelta"])
def test_every_optimizer_keeps_its_state(recipe: Recipe, data: DataSet, optimizer: str) -> None:
    other = changed(recipe, {"optimizer": optimizer, "epochs": 2, "lr_scheduler": "cosine"})
    assert_same(fitted(other, data, resume=stopped(other, data, 7)), fitted(other, data))


def test_a_run_can_stop_twice(recipe: Recipe, data: DataSet) -> None:
    kept: list[Checkpoint] = []
    with pytest.raises(Interrupted):
        fitted(recipe, data, resume=stopped(recipe, data, 4), keep=kept.append, stop=stopping_after(11))
    assert_same(fitted(recipe, data, resume=kept[-1]), fitted(recipe, data))


def test_a_finished_run_gives_its_result_again(recipe: Recipe, data: DataSet, trained: Trained) -> None:
    kept: list[Checkpoint] = []
    fitted(recipe, data, keep=kept.append)
    assert (kept[-1].epoch, kept[-1].step) == (recipe.epochs, 0)
    assert_same(fitted(recipe, data, resume=kept[-1]), trained)


def test_seconds_and_commits_add_up(recipe: Recipe, data: DataSet) -> None:
    kept: list[Checkpoint] = []
    with pytest.raises(Interrupted):
        fitted(recipe, data, keep=kept.append, stop=stopping_after(5), source="first")
    resumed = fitted(recipe, data, resume=kept[-1], source="second")
    assert resumed.source == ("first", "second")
    assert resumed.seconds > kept[-1].seconds > 0


def test_a_checkpoint_of_more_processes_is_refused(recipe: Recipe, data: DataSet) -> None:
    checkpoint = msgspec.structs.replace(stopped(recipe, data, 2), processes=2)
    with pytest.raises(CheckpointDamaged, match=r"another number of processes \(2\), not to 1"):
        fitted(recipe, data, resume=checkpoint)


def test_a_checkpoint_of_another_recipe_is_refused(recipe: Recipe, data: DataSet) -> None:
    checkpoint = stopped(recipe, data, 2)
    with pytest.raises(CheckpointDamaged, match="belongs to another recipe"):
        fitted(changed(recipe, {"lr": 1e-3}), data, resume=checkpoint)
