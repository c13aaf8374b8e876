"""Losses, optimizers, learning-rate schedulers and averaged weights of a recipe: torch's own, chosen by name.

Checked by tests/training/test_optimize.py.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from training.architectures import Served
from training.data import Source
from training.errors import RecipeInvalid
from training.recipes import Recipe

LossFunction = Callable[[Tensor, Tensor], Tensor]


def loss_function(recipe: Recipe, source: Source) -> LossFunction:
    """From scores float32 [n, labels] and labels int64 [n], or numbers float32 [n, 1] and [n], to the batch's mean.

    Raises   RecipeInvalid where the loss does not fit what is learnt
    """
    if not source.labels:
        if recipe.loss != "mse":
            raise RecipeInvalid(f"loss {recipe.loss} needs labels, and {source.name} has numbers: use --loss mse.")
        return lambda scores, targets: nn.functional.mse_loss(scores[:, 0], targets)
    k, smoothing = len(source.labels), recipe.label_smoothing
    if recipe.loss == "cross_entropy":
        return nn.CrossEntropyLoss(label_smoothing=smoothing)

    def smoothed(labels: Tensor) -> Tensor:
        return nn.functional.one_hot(labels, k).float() * (1 - smoothing) + smoothing / k

    if recipe.loss == "bce":
        return lambda scores, labels: nn.functional.binary_cross_entropy_with_logits(scores, smoothed(labels))
    return lambda scores, labels: nn.functional.mse_loss(scores.softmax(dim=1), smoothed(labels))


def optimizer_of(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Weights of convolutions and matrices decay; biases and norms do not (arXiv 1812.01187 §3.1), except where
    norms learn faster: airbench decays those biases by as much a step as the weights (arXiv 2404.00498)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norms = [p for p in norm_parameters(model) if p.requires_grad]
    rest = [p for p in trained if not any(p is norm for norm in norms)]
    matrices, other = [p for p in rest if p.ndim > 1], [p for p in rest if p.ndim <= 1]
    scale = recipe.norm_lr_scale
    groups = [
        {"params": matrices, "lr": recipe.lr, "weight_decay": recipe.weight_decay},
        {"params": other, "lr": recipe.lr, "weight_decay": 0.0},
        {
            "params": norms,
            "lr": recipe.lr * scale,
            "weight_decay": 0.0 if scale == 1 else recipe.weight_decay / scale,
        },
    ]
    return _OPTIMIZERS[recipe.optimizer]([group for group in groups if group["params"]], recipe)


def norm_parameters(model: nn.Module) -> list[nn.Parameter]:
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
    return [parameter for module in model.modules() if isinstance(module, norms) for parameter in module.parameters()]


Groups = Sequence[dict[str, object]]

_OPTIMIZERS: dict[str, Callable[[Groups, Recipe], torch.optim.Optimizer]] = {
    "sgd": lambda groups, recipe: torch.optim.SGD(
        groups, recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov
    ),
    "adam": lambda groups, recipe: torch.optim.Adam(groups, recipe.lr, betas=(0.9, recipe.beta2)),
    "adamw": lambda groups, recipe: torch.optim.AdamW(groups, recipe.lr, betas=(0.9, recipe.beta2)),
    "rmsprop": lambda groups, recipe: torch.optim.RMSprop(groups, recipe.lr, momentum=recipe.momentum),
    "adagrad": lambda groups, recipe: torch.optim.Adagrad(groups, recipe.lr),
    "adadelta": lambda groups, recipe: torch.optim.Adadelta(groups, recipe.lr),
}


class Schedule:
    """The learning rate of every step: `after_step` after each, `after_epoch` with the held-out loss if there is one.

    plateau watches that loss as torch's ReduceLROnPlateau does, which cannot be put in line with a warm-up; the others
    are functions of the step alone.
    """

    def __init__(self, recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """steps   of one epoch"""
        self.recipe = recipe
        self.optimizer = optimizer
        self.drop = 1.0
        self.best = math.inf
        self.epochs_without_progress = 0
        self.by_step = LambdaLR(optimizer, lambda step: self.drop * factor(recipe, step, steps))

    def after_step(self) -> None:
        self.by_step.step()

    def after_epoch(self, held_out_loss: float | None) -> None:
        if self.recipe.lr_scheduler != "plateau":
            return
        assert held_out_loss is not None, "bug: plateau without a held-out part; recipes.check refuses it"
        if held_out_loss < self.best * (1 - 1e-4):
            self.best, self.epochs_without_progress = held_out_loss, 0
            return
        self.epochs_without_progress += 1
        if self.epochs_without_progress > self.recipe.plateau_epochs:
            self.drop, self.epochs_without_progress = self.drop * self.recipe.gamma, 0
            for group in self.optimizer.param_groups:  # at once: the next step comes before the next `after_step`
                group["lr"] *= self.recipe.gamma

    def state_dict(self) -> dict[str, float]:
        """The rates themselves are in the optimizer's state."""
        return {
            "step": self.by_step.last_epoch,
            "drop": self.drop,
            "best": self.best,
            "epochs_without_progress": self.epochs_without_progress,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.by_step.last_epoch = int(state["step"])
        self.drop, self.best = state["drop"], state["best"]
        self.epochs_without_progress = int(state["epochs_without_progress"])


START = 0.2  # of onecycle's rise, in parts of the peak: airbench94's


def factor(recipe: Recipe, step: int, steps: int) -> float:
    """What `lr` is multiplied by in `step`, counted from 0, of a run whose epochs have `steps`.

    onecycle    from START up to 1 in `warm_up` of the run, then down to 0 (arXiv 1708.07120); both by a line or half a
                cosine
    others      up from 0 in a line in `warm_up` of the run; then half a cosine, stairs, or level
    """
    total = steps * recipe.epochs
    warm = recipe.warm_up * total
    fallen = min(1.0, max(0.0, (step - warm) / max(1.0, total - warm)))
    match recipe.lr_scheduler:
        case "onecycle":
            if step < warm:
                return 1 - (1 - START) * _fall(recipe.anneal, step / warm)
            return _fall(recipe.anneal, fallen)
        case "cosine":
            level = _fall("cos", fallen)
        case "step":
            level = recipe.gamma ** (step // steps // recipe.step_epochs)
        case _:
            level = 1.0
    return level * min(1.0, (step + 1) / warm) if step < warm else level


def _fall(anneal: str, progress: float) -> float:
    return 1 - progress if anneal == "linear" else (1 + math.cos(math.pi * progress)) / 2


class Average:
    """An exponential moving average of a model's weights and norm statistics, in `module`.

    Not torch's AveragedModel: that keeps its count in a tensor, and reading it makes every step wait for the device.
    """

    def __init__(self, model: Served, decay: float) -> None:
        self.module = copy.deepcopy(model)
        self.decay = decay
        self.count = 0

    @torch.no_grad()
    def update(self, model: Served) -> None:
        # Young averages forget faster, or the first random weights would stay in them (TensorFlow's num_updates rule).
        decay = min(self.decay, (1 + self.count) / (10 + self.count)) if self.count else 0.0
        mine, theirs = self.module.state_dict(), model.state_dict()
        floats = [name for name, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_([mine[name] for name in floats], [theirs[name] for name in floats], 1 - decay)
        for name in mine.keys() - set(floats):  # counters
            mine[name].copy_(theirs[name])
        self.count += 1

    def state_dict(self) -> dict[str, Any]:  # Any: tensors and a count
        return {"count": self.count, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        self.module.load_state_dict(state["module"])
