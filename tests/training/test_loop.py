import math

import msgspec
import pytest
import torch

from training.architectures import build
from training.data import DataSet
from training.errors import DeviceUnavailable, Diverged
from training.loop import Report, Trained, augment, choose_device, decay_groups, scheduled_rate, train
from training.recipes import Affine, Recipe

CPU = torch.device("cpu")
STILL = Affine(rotate=0.0, translate=0.0, scale=0.0, shear=0.0)


def ignore(report: Report) -> None:
    pass


def weights_after_one_epoch(recipe: Recipe, data: DataSet) -> dict[str, torch.Tensor]:
    torch.manual_seed(recipe.seed)
    short = msgspec.structs.replace(recipe, epochs=1)
    return train(short, build(short), data, CPU, ignore).model.state_dict()


def test_the_same_seed_gives_the_same_weights_twice(recipe: Recipe, data: DataSet) -> None:
    first, second = weights_after_one_epoch(recipe, data), weights_after_one_epoch(recipe, data)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_other_weights(recipe: Recipe, data: DataSet) -> None:
    other = weights_after_one_epoch(msgspec.structs.replace(recipe, seed=1), data)
    first = weights_after_one_epoch(recipe, data)
    assert not torch.equal(first["body.0.weight"], other["body.0.weight"])


def test_history_has_one_report_per_epoch_and_the_loss_falls(trained: Trained, recipe: Recipe) -> None:
    assert [report.epoch for report in trained.history] == list(range(1, recipe.epochs + 1))
    assert [report.items for report in trained.history] == [300 * epoch for epoch in range(1, recipe.epochs + 1)]
    assert all(report.ends_epoch for report in trained.history)
    assert trained.history[-1].loss < trained.history[0].loss
    assert trained.history[-1].accuracy > trained.history[0].accuracy


def test_the_result_is_ready_to_be_evaluated(trained: Trained) -> None:
    assert not trained.model.training
    assert {parameter.device.type for parameter in trained.model.parameters()} == {"cpu"}
    assert trained.device == "cpu"


def test_reports_come_every_twenty_steps_and_at_the_end_of_an_epoch(recipe: Recipe, data: DataSet) -> None:
    seen: list[Report] = []
    short = msgspec.structs.replace(recipe, epochs=1, batch_size=9)  # 34 steps
    train(short, build(short), data, CPU, seen.append)
    assert [(report.items, report.ends_epoch) for report in seen] == [(180, False), (300, True)]


def test_a_loss_that_is_not_a_number_stops_the_run(recipe: Recipe, data: DataSet) -> None:
    wild = msgspec.structs.replace(recipe, learning_rate=float("inf"))
    with pytest.raises(Diverged, match=r"loss is nan .* epoch 1: training diverged\. Lower the recipe's learning_rate"):
        train(wild, build(wild), data, CPU, ignore)


def test_fewer_items_than_a_batch_still_train(recipe: Recipe, data: DataSet) -> None:
    few = msgspec.structs.replace(data, train_x=data.train_x[:5], train_y=data.train_y[:5])
    trained = train(recipe, build(recipe), few, CPU, ignore)
    assert [report.items for report in trained.history] == [5, 10, 15]


@pytest.mark.parametrize(
    ("progress", "fraction"),
    [(0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.6, 0.5), (1.0, 0.0)],
)
def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine(recipe: Recipe, progress: float, fraction: float) -> None:
    recipe = msgspec.structs.replace(recipe, warm_up=0.2)
    assert scheduled_rate(recipe, progress) == pytest.approx(fraction * recipe.learning_rate)


def test_only_matrices_and_kernels_decay(recipe: Recipe) -> None:
    model = build(recipe)
    decaying, free = decay_groups(model, 0.1)
    assert (decaying["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    counts = [sum(parameter.numel() for parameter in group["params"]) for group in (decaying, free)]  # type: ignore[attr-defined]
    assert sum(counts) == sum(parameter.numel() for parameter in model.parameters())
    assert all(parameter.ndim == 1 for parameter in free["params"])  # type: ignore[attr-defined]


def test_no_deviation_leaves_an_image_as_it_is() -> None:
    pixels = torch.rand(2, 1, 8, 8) * 255
    torch.testing.assert_close(augment(pixels, STILL, torch.Generator()), pixels)


def test_a_shift_moves_the_image_and_brings_in_background() -> None:
    pixels = torch.full((64, 1, 8, 8), 200.0)
    moved = augment(pixels, msgspec.structs.replace(STILL, translate=0.25), torch.Generator().manual_seed(0))
    assert moved.min().item() == 0.0  # beyond the edge
    assert moved.max().item() == pytest.approx(200.0)
    kept = moved.mean(dim=(1, 2, 3)) / 200
    assert kept.min().item() >= 0.75**2 - 1e-3  # two of eight rows and columns at most


def test_a_rotation_keeps_the_centre_and_turns_the_rest() -> None:
    pixels = torch.zeros(32, 1, 9, 9)
    pixels[:, :, 4, :] = 255.0  # a bar across
    turned = augment(pixels, msgspec.structs.replace(STILL, rotate=90.0), torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned[:, 0, 4, 4], torch.full((32,), 255.0))
    assert turned[:, 0, 1, 4].max().item() > 200.0  # of 32 angles, one brings it upright


def test_every_image_gets_its_own_map() -> None:
    pixels = (torch.rand(1, 1, 8, 8) * 255).expand(4, 1, 8, 8)
    wild = Affine(rotate=10.0, translate=0.1, scale=0.1, shear=8.0)
    moved = augment(pixels, wild, torch.Generator().manual_seed(0))
    assert all(not torch.equal(moved[0], moved[other]) for other in (1, 2, 3))


def test_auto_is_cuda_where_there_is_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == CPU


def test_asking_for_cuda_without_one_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceUnavailable, match="use --device auto or cpu"):
        choose_device("cuda")


@pytest.mark.gpu
def test_training_on_cuda_gives_a_model_on_the_cpu(recipe: Recipe, data: DataSet) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    trained = train(recipe, build(recipe), data, torch.device("cuda"), ignore)
    assert trained.device == "cuda"
    assert next(trained.model.parameters()).device.type == "cpu"
    assert math.isfinite(trained.history[-1].loss)
