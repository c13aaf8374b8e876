"""The training loop: one function, seeded, from an untrained network and a data set to a trained one and its history.

The whole set lives on the device as uint8; a step is an index, an affine map per image, forward, backward. The test
set is not looked at here, not even to pick an epoch: the number in the manifest is measured once, afterwards.
Checked by tests/training/test_loop.py.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from msgspec import Struct
from torch import Tensor, nn

from training.architectures import Classifier, to_pixels
from training.data import DataSet, on_device
from training.errors import DeviceUnavailable, Diverged
from training.recipes import Affine, Recipe

# Reading the loss waits for the device; every 20 steps that is unmeasurable, and a divergence costs seconds at most.
STEPS_BETWEEN_REPORTS = 20


class Report(Struct, frozen=True):
    """Where the run stands. loss and accuracy are means over this epoch's augmented training items so far."""

    epoch: int
    items: int
    items_in_all: int
    loss: float
    accuracy: float
    items_per_s: float
    learning_rate: float
    ends_epoch: bool


class Trained(Struct, frozen=True):
    """`model` on the CPU, in evaluation mode; `history` one report per epoch; `device` the kind that trained it."""

    model: Classifier
    history: tuple[Report, ...]
    device: str
    seconds: float


def train(
    recipe: Recipe, model: Classifier, data: DataSet, device: torch.device, watch: Callable[[Report], None]
) -> Trained:
    """Train `model` in place.

    watch    called every 20 steps and at the end of each epoch
    Raises   Diverged as soon as a reported loss is not finite
    """
    started_at = time.monotonic()
    images, labels = on_device(data.train_x, device), on_device(data.train_y, device).long()
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # torch's stub
    steps = math.ceil(len(images) / recipe.batch_size)
    optimizer = torch.optim.AdamW(decay_groups(model, recipe.weight_decay), lr=recipe.learning_rate)
    generator = torch.Generator(device).manual_seed(recipe.seed)

    history = []
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator, device=device)
        sums = torch.zeros(2, device=device)
        for step in range(steps):
            chosen = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            learning_rate = scheduled_rate(recipe, (epoch * steps + step) / (recipe.epochs * steps))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            sums += take_step(recipe, model, images[chosen], labels[chosen], optimizer, generator)
            if (step + 1) % STEPS_BETWEEN_REPORTS and step + 1 != steps:
                continue
            items = min((step + 1) * recipe.batch_size, len(images))
            report = Report(
                epoch=epoch + 1,
                items=epoch * len(images) + items,
                items_in_all=recipe.epochs * len(images),
                loss=sums[0].item() / items,
                accuracy=sums[1].item() / items,
                items_per_s=(epoch * len(images) + items) / (time.monotonic() - started_at),
                learning_rate=learning_rate,
                ends_epoch=step + 1 == steps,
            )
            refuse_divergence(recipe, report)
            watch(report)
        history.append(report)
    return Trained(
        model=model.cpu().eval(), history=tuple(history), device=device.type, seconds=time.monotonic() - started_at
    )


def take_step(
    recipe: Recipe,
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> Tensor:
    """One optimizer step on uint8 [n, h, w, c]; returns the sums over the batch of loss and of right answers."""
    pixels = augment(to_pixels(images), recipe.augmentation, generator)
    with mixed_precision(pixels.device):
        logits = model.logits(pixels).float()
    loss = nn.functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
    optimizer.step()
    right = (logits.argmax(dim=1) == labels).sum()
    return torch.stack([loss.detach() * len(labels), right])


def scheduled_rate(recipe: Recipe, progress: float) -> float:
    """Up in a line to the peak at `warm_up`, down to 0 along half a cosine (arXiv 1708.07120); progress in 0..1."""
    if progress < recipe.warm_up:
        return recipe.learning_rate * progress / recipe.warm_up
    return recipe.learning_rate * (1 + math.cos(math.pi * (progress - recipe.warm_up) / (1 - recipe.warm_up))) / 2


def refuse_divergence(recipe: Recipe, report: Report) -> None:
    if not math.isfinite(report.loss):
        raise Diverged(
            f"The loss is {report.loss} after {report.items} items, in epoch {report.epoch}: training diverged. "
            f"Lower the recipe's learning_rate ({recipe.learning_rate:g}) or lengthen its warm_up ({recipe.warm_up:g})."
        )


def choose_device(wanted: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises DeviceUnavailable."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable("--device cuda, but torch sees no CUDA device here; use --device auto or cpu.")
    return torch.device(wanted)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights of convolutions and matrices decay; biases and BatchNorm's scales do not (arXiv 1812.01187 §3.1)."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where the device multiplies it: faster than float32 there, and slower than it on other CPUs."""
    if device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def augment(pixels: Tensor, affine: Affine, generator: torch.Generator) -> Tensor:
    """Map every image by its own random affine; what comes from outside is 0, the background.

    pixels   float32 [n, c, h, w] in 0..255, and so is the result
    """

    def spread(limit: float) -> Tensor:
        return (torch.rand(len(pixels), generator=generator, device=pixels.device) * 2 - 1) * limit

    angle, shear = spread(math.radians(affine.rotate)), spread(math.radians(affine.shear))
    scale = 1 + spread(affine.scale)
    # Coordinates run from -1 to 1, so a fraction of the side is twice that.
    shift_x, shift_y = spread(2 * affine.translate), spread(2 * affine.translate)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    rows = torch.stack(
        [
            torch.stack([cos, cos * shear.tan() - sin, shift_x], dim=1),
            torch.stack([sin, sin * shear.tan() + cos, shift_y], dim=1),
        ],
        dim=1,
    )
    grid = nn.functional.affine_grid(rows, list(pixels.shape), align_corners=False)
    return nn.functional.grid_sample(pixels, grid, align_corners=False)
