"""Recipes: every number a training run depends on, in one frozen value, each with its source or reason.

A recipe and a commit make a version again. A new data set is a `Source` in `data.py` and a recipe here; a new kind of
network is a function in `architectures.py`. Flags change a recipe through `msgspec.structs.replace`, so the manifest
records what was run and not what was written here.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec import Struct

from training.data import MNIST, Source

Scalar = str | int | float | bool | None


class Affine(Struct, frozen=True):
    """A random affine map per image; each number is the largest deviation either way.

    rotate      degrees
    translate   fraction of the side
    scale       fraction around 1
    shear       degrees, along x
    """

    rotate: float
    translate: float
    scale: float
    shear: float


class Recipe(Struct, frozen=True):
    """learning_rate is the peak; `warm_up` the fraction of all steps that rise to it; `limit` the training items used,
    None for all; `min_accuracy` what the exported file must reach on the test set to be published."""

    name: str
    source: Source
    architecture: Literal["plain_cnn"]
    width: int
    epochs: int
    batch_size: int
    learning_rate: float
    warm_up: float
    weight_decay: float
    label_smoothing: float
    augmentation: Affine
    seed: int
    min_accuracy: float
    limit: int | None = None


MNIST_RECIPE = Recipe(
    name="mnist",
    source=MNIST,
    architecture="plain_cnn",
    width=32,  # 0.29 M weights, 21 M multiplications an image
    epochs=10,  # about seven minutes on two CPU cores
    batch_size=250,  # divides 60,000: no short last batch
    learning_rate=4e-3,  # AdamW's usual 1e-3 with one cycle's higher peak, arXiv 1708.07120
    warm_up=0.2,  # of one cycle; a rise from 0, so that the first BatchNorm statistics settle
    weight_decay=0.05,  # decoupled from the rate, arXiv 1711.05101
    label_smoothing=0.05,  # arXiv 1512.00567 takes 0.1 for 1,000 classes; also keeps logits small
    # Within what a digit survives: 6 and 9 stay apart, and the margin of 4 pixels absorbs most of the shift.
    augmentation=Affine(rotate=15.0, translate=0.1, scale=0.15, shear=10.0),
    seed=0,
    min_accuracy=0.996,
)

RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in (MNIST_RECIPE,)}


def limited(recipe: Recipe, items: int) -> Recipe:
    """The same recipe on its first `items` training items, as a trial: published without asking for accuracy."""
    return msgspec.structs.replace(recipe, limit=items, min_accuracy=0.0)


def as_scalars(recipe: Recipe) -> dict[str, Scalar]:
    """Flat, for the manifest's provenance: `augmentation.rotate`; of the source, the name, as its digest is beside."""
    scalars: dict[str, Scalar] = {}
    for field, value in msgspec.to_builtins(recipe).items():
        if field == "source":
            scalars["source"] = recipe.source.name
        elif isinstance(value, dict):
            scalars |= {f"{field}.{name}": number for name, number in value.items()}
        else:
            scalars[field] = value
    return scalars
