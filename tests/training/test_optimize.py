import math
from typing import get_args

import msgspec
import pytest
import torch
from torch import nn

from training.data import DataSet, Source
from training.errors import RecipeInvalid
from training.optimize import Average, Schedule, factor, loss_function, norm_parameters, optimizer_of
from training.recipes import MNIST_RECIPE, LrScheduler, Optimizer, Recipe

BARE = Recipe(name="bare", dataset="two", architecture="linear", epochs=2, batch_size=1, lr=0.5)
TWO = Source(name="two", title="Two", shape=(2,), labels=("yes", "no"), mean=(0, 0), deviation=(1, 1), sha256="")
LN2, LN3 = math.log(2), math.log(3)


def bare(**fields: object) -> Recipe:
    return msgspec.structs.replace(BARE, **fields)


# ---- losses: scores (ln 3, 0) are 3/4 and 1/4 by softmax, 3/4 and 1/2 by sigmoid


@pytest.mark.parametrize(
    ("loss", "smoothing", "expected"),
    [
        ("cross_entropy", 0.0, -math.log(0.75)),
        ("cross_entropy", 0.2, -0.9 * math.log(0.75) - 0.1 * math.log(0.25)),
        ("bce", 0.0, (-math.log(0.75) + LN2) / 2),
        ("bce", 0.2, (-0.9 * math.log(0.75) - 0.1 * math.log(0.25) + LN2) / 2),
        ("mse", 0.0, (0.25**2 + 0.25**2) / 2),
        ("mse", 0.2, (0.15**2 + 0.15**2) / 2),
    ],
)
def test_a_loss_of_labels_is_the_one_computed_by_hand(loss: str, smoothing: float, expected: float) -> None:
    found = loss_function(bare(loss=loss, label_smoothing=smoothing), TWO)
    assert found(torch.tensor([[LN3, 0.0]]), torch.tensor([0])).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("cross_entropy", (-math.log(0.75) - math.log(0.25)) / 2),
        ("bce", (-math.log(0.75) + LN2 - math.log(0.25) + LN2) / 4),
        ("mse", (0.25**2 + 0.75**2) / 2),
    ],
)
def test_a_loss_is_the_mean_of_the_batch(loss: str, expected: float) -> None:
    scores = torch.tensor([[LN3, 0.0], [LN3, 0.0]])  # right once, wrong once
    assert loss_function(bare(loss=loss), TWO)(scores, torch.tensor([0, 1])).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "mse"])
def test_every_loss_has_a_gradient_towards_the_label(loss: str) -> None:
    scores = torch.zeros(1, 2, requires_grad=True)
    loss_function(bare(loss=loss), TWO)(scores, torch.tensor([1])).backward()
    assert scores.grad is not None
    assert scores.grad[0, 0] > 0 > scores.grad[0, 1]


def test_numbers_are_held_to_their_squared_distance(rows: DataSet) -> None:
    found = loss_function(bare(loss="mse"), rows.source)
    assert found(torch.tensor([[1.0], [3.0]]), torch.tensor([2.0, 5.0])).item() == (1 + 4) / 2


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_a_loss_of_labels_is_refused_for_numbers(rows: DataSet, loss: str) -> None:
    with pytest.raises(RecipeInvalid, match=f"loss {loss} needs labels, and plane has numbers: use --loss mse"):
        loss_function(bare(loss=loss), rows.source)


# ---- optimizers


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_every_optimizer_lowers_a_loss(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = optimizer_of(bare(optimizer=name, lr=0.05), model)
    assert type(optimizer).__name__.lower() == name

    def loss() -> torch.Tensor:
        return (model(torch.eye(2)) - 1).square().mean()

    before = loss().item()
    for _ in range(20):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < before


@pytest.mark.parametrize(
    ("name", "option", "expected"),
    [
        ("sgd", "momentum", 0.7),
        ("sgd", "nesterov", False),
        ("rmsprop", "momentum", 0.7),
        ("adam", "betas", (0.9, 0.95)),
        ("adamw", "betas", (0.9, 0.95)),
    ],
)
def test_an_optimizer_gets_the_numbers_of_the_recipe(name: str, option: str, expected: object) -> None:
    recipe = bare(optimizer=name, momentum=0.7, nesterov=False, beta2=0.95)
    assert all(group[option] == expected for group in optimizer_of(recipe, nn.Linear(2, 1)).param_groups)


def test_sgd_takes_nesterovs_momentum_where_the_recipe_does() -> None:
    (group, _) = optimizer_of(bare(optimizer="sgd", nesterov=True), nn.Linear(2, 1)).param_groups
    assert group["nesterov"]


class Mixed(nn.Module):
    """A parameter of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.matrix = nn.Linear(2, 2)
        self.row_norm = nn.LayerNorm(2)
        self.scale = nn.Parameter(torch.ones(()))
        self.fixed = nn.Parameter(torch.ones(2, 2), requires_grad=False)


WEIGHTS = {"convolution.weight", "matrix.weight"}
NORMS = {"norm.weight", "norm.bias", "row_norm.weight", "row_norm.bias"}
OTHERS = {"convolution.bias", "matrix.bias", "scale"}


def settings(recipe: Recipe, model: nn.Module) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay by name of the parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer_of(recipe, model).param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize(
    ("norm_lr_scale", "expected"),
    [(1.0, (0.5, 0.0)), (4.0, (2.0, 0.025)), (0.5, (0.25, 0.2))],
)
def test_matrices_decay_and_biases_do_not_and_norms_as_the_recipe_says(
    norm_lr_scale: float, expected: tuple[float, float]
) -> None:
    found = settings(bare(weight_decay=0.1, norm_lr_scale=norm_lr_scale), Mixed())
    assert found.keys() == WEIGHTS | NORMS | OTHERS, "each once, and none that is not trained"
    assert {found[name] for name in WEIGHTS} == {(0.5, 0.1)}
    assert {found[name] for name in OTHERS} == {(0.5, 0.0)}
    assert [found[name] for name in NORMS] == [pytest.approx(expected)] * 4


def test_without_weight_decay_nothing_decays() -> None:
    assert {decay for _, decay in settings(bare(norm_lr_scale=4.0), Mixed()).values()} == {0.0}


def test_a_network_without_norms_has_no_group_for_them() -> None:
    model = nn.Linear(2, 1)
    assert norm_parameters(model) == []
    assert len(optimizer_of(BARE, model).param_groups) == 2


# ---- the learning rate of a step: (scheduler, warm_up, anneal, {step: factor}) of 2 epochs of 10 steps


@pytest.mark.parametrize(
    ("scheduler", "warm_up", "anneal", "expected"),
    [
        ("onecycle", 0.0, "linear", {0: 1.0, 1: 0.95, 10: 0.5, 19: 0.05, 20: 0.0}),
        ("onecycle", 0.2, "linear", {0: 0.2, 1: 0.4, 3: 0.8, 4: 1.0, 5: 0.9375, 12: 0.5, 19: 0.0625, 20: 0.0}),
        ("onecycle", 1.0, "linear", {0: 0.2, 10: 0.6, 15: 0.8, 19: 0.96, 20: 1.0}),
        ("onecycle", 0.0, "cos", {0: 1.0, 5: 0.853553, 10: 0.5, 15: 0.146447, 19: 0.006156, 20: 0.0}),
        ("onecycle", 0.2, "cos", {0: 0.2, 1: 0.317157, 2: 0.6, 4: 1.0, 8: 0.853553, 12: 0.5, 19: 0.009607, 20: 0.0}),
        ("onecycle", 1.0, "cos", {0: 0.2, 5: 0.317157, 10: 0.6, 15: 0.882843, 20: 1.0}),
        ("cosine", 0.0, "cos", {0: 1.0, 5: 0.853553, 10: 0.5, 20: 0.0}),
        ("cosine", 0.0, "linear", {0: 1.0, 5: 0.853553, 10: 0.5, 20: 0.0}),  # only onecycle has two shapes
        ("cosine", 0.2, "cos", {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 12: 0.5, 19: 0.009607, 20: 0.0}),
        ("cosine", 1.0, "cos", {0: 0.05, 9: 0.5, 19: 1.0, 20: 1.0}),
        ("step", 0.0, "cos", {0: 1.0, 9: 1.0, 10: 0.1, 19: 0.1, 20: 0.01}),
        ("step", 0.2, "cos", {0: 0.25, 3: 1.0, 4: 1.0, 9: 1.0, 10: 0.1, 19: 0.1}),
        ("step", 0.8, "cos", {0: 0.0625, 9: 0.625, 10: 0.06875, 15: 0.1, 16: 0.1, 19: 0.1}),
        ("step", 1.0, "cos", {0: 0.05, 9: 0.5, 10: 0.055, 19: 0.1}),
        ("constant", 0.0, "cos", {0: 1.0, 10: 1.0, 19: 1.0, 20: 1.0}),
        ("constant", 0.2, "linear", {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 19: 1.0}),
        ("constant", 1.0, "cos", {0: 0.05, 9: 0.5, 19: 1.0}),
        ("plateau", 0.0, "cos", {0: 1.0, 10: 1.0, 19: 1.0}),
        ("plateau", 0.2, "linear", {0: 0.25, 3: 1.0, 19: 1.0}),
        ("plateau", 1.0, "cos", {0: 0.05, 19: 1.0}),
    ],
)
def test_the_learning_rate_of_a_step_is_that_part_of_the_highest(
    scheduler: str, warm_up: float, anneal: str, expected: dict[int, float]
) -> None:
    recipe = bare(lr_scheduler=scheduler, warm_up=warm_up, anneal=anneal, step_epochs=1, gamma=0.1)
    assert {step: factor(recipe, step, steps=10) for step in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("scheduler", "warm_up", "expected"),
    [
        ("onecycle", 0.0, 1.0),
        ("onecycle", 0.2, 0.2),
        ("onecycle", 1.0, 0.2),
        ("cosine", 0.0, 1.0),
        ("cosine", 0.2, 1.0),
        ("cosine", 1.0, 1.0),
        ("step", 0.2, 1.0),
        ("constant", 1.0, 1.0),
        ("plateau", 0.2, 1.0),
    ],
)
def test_a_run_of_one_step_takes_it(scheduler: str, warm_up: float, expected: float) -> None:
    assert factor(bare(epochs=1, lr_scheduler=scheduler, warm_up=warm_up), 0, steps=1) == pytest.approx(expected)


def test_stairs_are_step_epochs_long() -> None:
    recipe = bare(epochs=5, lr_scheduler="step", warm_up=0.0, step_epochs=2, gamma=0.5)
    assert [factor(recipe, 3 * epoch + 2, steps=3) for epoch in range(5)] == [1.0, 1.0, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("scheduler", get_args(LrScheduler))
@pytest.mark.parametrize("warm_up", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_no_step_goes_above_the_highest_rate_or_below_none(scheduler: str, warm_up: float, anneal: str) -> None:
    recipe = bare(epochs=3, lr_scheduler=scheduler, warm_up=warm_up, anneal=anneal)
    found = [factor(recipe, step, steps=7) for step in range(21 + 1)]
    assert 0 <= min(found) <= max(found) <= 1
    assert max(found[:21]) > 0.9


# ---- Schedule


def scheduled(recipe: Recipe, steps: int) -> tuple[torch.optim.Optimizer, Schedule]:
    torch.manual_seed(0)
    model = Mixed()
    optimizer = optimizer_of(recipe, model)
    return optimizer, Schedule(recipe, optimizer, steps)


def last_rates(recipe: Recipe, losses: list[float]) -> list[float]:
    """Of the second of two steps in each epoch, which ends with a held-out loss."""
    optimizer, schedule = scheduled(recipe, steps=2)
    found = []
    for loss in losses:
        optimizer.step()
        schedule.after_step()
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.after_step()
        schedule.after_epoch(loss)
    return found


def test_every_group_has_the_rate_of_the_step() -> None:
    optimizer, schedule = scheduled(bare(lr_scheduler="cosine", warm_up=0.2, norm_lr_scale=4.0), steps=10)
    found = []
    for _ in range(13):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.after_step()
    assert found[0] == pytest.approx([0.125, 0.125, 0.5])
    assert found[3] == pytest.approx([0.5, 0.5, 2.0])
    assert found[12] == pytest.approx([0.25, 0.25, 1.0])


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        # the third epoch without progress is one more than two
        ([1.0, 1.0, 1.0, 1.0, 1.0], [1, 1, 1, 1, 0.5]),
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25]),
        # progress starts the count again, and the best is kept, not the last
        ([1.0, 0.9, 0.9, 0.9, 0.8, 0.9, 0.85, 0.9, 0.9], [1, 1, 1, 1, 1, 1, 1, 1, 0.5]),
        ([1.0, 1.0, 1.0, 0.9, 1.0, 1.0, 1.0, 1.0], [1, 1, 1, 1, 1, 1, 1, 0.5]),
        # less than one part in ten thousand is no progress
        ([1.0, 0.99995, 0.99994, 0.99993, 0.99992], [1, 1, 1, 1, 0.5]),
        ([1.0, 0.999, 0.998, 0.997, 0.996], [1, 1, 1, 1, 1]),
        ([math.nan, math.nan, math.nan, 1.0], [1, 1, 1, 0.5]),
    ],
)
def test_plateau_drops_after_more_epochs_without_progress_than_the_recipe_bears(
    losses: list[float], expected: list[float]
) -> None:
    recipe = bare(lr=1.0, lr_scheduler="plateau", warm_up=0.0, plateau_epochs=2, gamma=0.5, validation=0.1)
    assert last_rates(recipe, losses) == expected


def test_the_other_schedulers_do_not_look_at_the_held_out_loss() -> None:
    _, schedule = scheduled(bare(lr_scheduler="constant"), steps=2)
    for loss in (None, 1.0, 2.0, 3.0, 4.0, 5.0):
        schedule.after_epoch(loss)
    assert schedule.drop == 1


def test_plateau_without_a_held_out_part_is_a_bug() -> None:
    _, schedule = scheduled(bare(lr_scheduler="plateau", validation=0.1), steps=2)
    with pytest.raises(AssertionError, match="bug: plateau without a held-out part"):
        schedule.after_epoch(None)


@pytest.mark.parametrize("scheduler", get_args(LrScheduler))
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_schedule_goes_on_from_its_state(scheduler: str, stop: int) -> None:
    recipe = bare(epochs=6, lr_scheduler=scheduler, warm_up=0.25, plateau_epochs=1, gamma=0.5, step_epochs=2)

    def go_on(optimizer: torch.optim.Optimizer, schedule: Schedule, start: int, end: int) -> list[float]:
        found = []
        for step in range(start, end):
            found.append(optimizer.param_groups[-1]["lr"])
            optimizer.step()
            schedule.after_step()
            if step % 3 == 2:
                schedule.after_epoch(1.0)
        return found

    straight = go_on(*scheduled(recipe, steps=3), 0, 18)
    optimizer, schedule = scheduled(recipe, steps=3)
    before = go_on(optimizer, schedule, 0, stop)
    resumed_optimizer, resumed = scheduled(recipe, steps=3)
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert resumed.state_dict() == schedule.state_dict()
    assert before + go_on(resumed_optimizer, resumed, stop, 18) == straight


# ---- averages


class Counted(nn.Module):
    """A weight, a statistic and a counter."""

    def __init__(self, weight: float, statistic: float, counter: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))
        self.register_buffer("statistic", torch.tensor([statistic]))
        self.register_buffer("counter", torch.tensor(counter))

    def become(self, weight: float, statistic: float, counter: int) -> "Counted":
        self.load_state_dict(Counted(weight, statistic, counter).state_dict())
        return self


def state(module: nn.Module) -> tuple[float, float, int]:
    values = module.state_dict()
    return values["weight"].item(), values["statistic"].item(), values["counter"].item()


def test_a_young_average_follows_and_counters_are_copied() -> None:
    model = Counted(11.0, 110.0, 1)
    average = Average(model, 0.99)
    average.update(model)
    assert state(average.module) == (11.0, 110.0, 1), "the first is taken whole"
    average.update(model.become(22.0, 220.0, 2))  # 2/11 of what was
    assert state(average.module) == (pytest.approx(2 + 18), pytest.approx(20 + 180), 2)
    average.update(model.become(40.0, 400.0, 7))  # 3/12 of what was
    assert state(average.module) == (pytest.approx(5 + 30), pytest.approx(50 + 300), 7)
    assert state(model) == (40.0, 400.0, 7), "the model itself is left alone"


def test_a_decay_shorter_than_a_young_averages_is_kept() -> None:
    model = Counted(10.0, 0.0, 0)
    average = Average(model, 0.1)
    average.update(model)
    average.update(model.become(20.0, 0.0, 0))
    assert state(average.module)[0] == pytest.approx(1 + 18)


def test_an_old_average_forgets_as_slowly_as_the_recipe_says() -> None:
    model = Counted(0.0, 0.0, 0)
    average = Average(model, 0.5)
    for _ in range(9):
        average.update(model)
    average.update(model.become(8.0, 0.0, 0))  # (1 + 9) / (10 + 9) is more than a half
    assert state(average.module)[0] == pytest.approx(4)


def test_an_average_goes_on_from_its_state() -> None:
    model = Counted(1.0, 2.0, 3)
    first, second = (Average(model, 0.9) for _ in range(2))
    assert first is not None
    assert second is not None
    for step in range(5):
        first.update(model.become(float(step), step * 2.0, step))
    second.load_state_dict(first.state_dict())
    model.become(100.0, 200.0, 300)
    first.update(model)
    second.update(model)
    assert state(first.module) == state(second.module)


def test_the_recipes_own_network_can_be_averaged(recipe: Recipe, data: DataSet) -> None:
    assert MNIST_RECIPE.ema > 0
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    average = Average(model, MNIST_RECIPE.ema)
    for _ in range(3):
        model(torch.rand(4, 1, 8, 8))
        average.update(model)
    assert average.module[1].num_batches_tracked.item() == 3
