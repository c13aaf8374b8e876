"""Recipes: every number a training run depends on, in one frozen value, each with its source or reason.

A recipe and a commit make a version again. Every field of `Recipe` is a flag of `python -m training <recipe>`, with the
description and the bounds written here; the manifest records what was run, not what was written here. A new data set
is a `Source` in `data.py` and a recipe here; a new kind of network is a function in `architectures.py`.
Checked by tests/training/test_recipes.py.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from training.errors import RecipeInvalid

NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]*$"
Scalar = str | int | float | bool | None

Architecture = Literal["linear", "mlp", "lenet", "plain_cnn", "whitened_cnn", "whitened_resnet", "resnet"]
Loss = Literal["cross_entropy", "bce", "mse"]
Optimizer = Literal["sgd", "adam", "adamw", "rmsprop", "adagrad", "adadelta"]
LrScheduler = Literal["constant", "step", "cosine", "onecycle", "plateau"]
Flip = Literal["none", "random", "alternating"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


_Count = Annotated[int, Meta(ge=1)]
_Positive = Annotated[float, Meta(gt=0)]


def _count(description: str) -> Meta:
    return Meta(ge=1, description=description)


def _size(description: str) -> Meta:
    return Meta(ge=0, description=description)


def _fraction(description: str) -> Meta:
    return Meta(ge=0, le=1, description=description)


class Recipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Lengths are pixels, angles degrees, durations epochs; a fraction is of 1."""

    name: Annotated[str, Meta(pattern=NAME_PATTERN, description="what the model is published as")]
    dataset: Annotated[str, Meta(description="what it is trained on")]

    architecture: Annotated[Architecture, Meta(description="the network, a function of training/architectures.py")]
    width: Annotated[int, _count("channels of the first stage, or units of the hidden layer")] = 64
    dropout: Annotated[float, Meta(ge=0, lt=1, description="fraction of the last features zeroed in a step")] = 0.0

    epochs: Annotated[int, _count("passes over the training set")]
    batch_size: Annotated[int, _count("items of one step, all processes together")]
    loss: Annotated[Loss, Meta(description="what is minimised; mse of a classifier is its Brier score")] = (
        "cross_entropy"
    )
    label_smoothing: Annotated[float, _fraction("share of the target spread over all labels")] = 0.0
    logit_scale: Annotated[float, Meta(gt=0, description="constant the network's last layer is multiplied by")] = 1.0

    optimizer: Annotated[Optimizer, Meta(description="of torch.optim")] = "adamw"
    lr: Annotated[float, Meta(gt=0, description="highest learning rate")]
    momentum: Annotated[float, Meta(ge=0, lt=1, description="of sgd and rmsprop")] = 0.9
    nesterov: Annotated[bool, Meta(description="Nesterov's momentum, for sgd")] = True
    beta2: Annotated[float, Meta(gt=0, lt=1, description="decay of the squared gradient, for adam and adamw")] = 0.999
    weight_decay: Annotated[float, _size("of matrices and convolutions, not of biases and norms")] = 0.0
    norm_lr_scale: Annotated[float, Meta(gt=0, description="learning rate of normalisation biases over lr")] = 1.0
    clip_norm: Annotated[_Positive | None, Meta(description="longest gradient, in the 2-norm; none for no limit")] = (
        None
    )

    lr_scheduler: Annotated[LrScheduler, Meta(description="how the learning rate moves")] = "onecycle"
    warm_up: Annotated[float, _fraction("fraction of all steps in which the rate rises to lr")] = 0.2
    anneal: Annotated[Literal["cos", "linear"], Meta(description="shape of onecycle's rise and fall")] = "cos"
    step_epochs: Annotated[int, _count("epochs between two drops of the step scheduler")] = 10
    gamma: Annotated[float, Meta(gt=0, lt=1, description="factor of a drop, for step and plateau")] = 0.1
    plateau_epochs: Annotated[int, _count("epochs without progress before plateau drops the rate")] = 3

    flip: Annotated[Flip, Meta(description="mirror left and right; alternating: every other epoch")] = "none"
    shift: Annotated[int, _size("farthest random shift, in pixels, mirrored at the border")] = 0
    rotate: Annotated[float, _size("largest random rotation either way, in degrees")] = 0.0
    translate: Annotated[float, _fraction("largest random shift, as a fraction of the side, black outside")] = 0.0
    scale: Annotated[float, Meta(ge=0, lt=1, description="largest random change of size either way")] = 0.0
    shear: Annotated[float, _size("largest random shear along x either way, in degrees")] = 0.0
    erase: Annotated[int, _size("side of a randomly placed square set to the mean, in pixels; 0 for none")] = 0
    early_side: Annotated[_Count | None, Meta(description="shorter side of images in the early epochs, in pixels")] = (
        None
    )
    early_epochs: Annotated[int, _size("epochs trained on images of early_side")] = 0

    ema: Annotated[float, Meta(ge=0, lt=1, description="decay of the averaged weights, per step; 0 for none")] = 0.0
    validation: Annotated[float, Meta(ge=0, lt=1, description="fraction of the training set held out")] = 0.0
    patience: Annotated[int, _size("epochs without progress on the held-out part before stopping; 0: never")] = 0

    precision: Annotated[Precision, Meta(description="auto: bf16 where the device multiplies it, else fp32")] = "auto"
    compile: Annotated[bool, Meta(description="torch.compile the network; pays on GPUs, not on CPUs")] = False
    deterministic: Annotated[bool, Meta(description="only algorithms that repeat bit by bit; slower on GPUs")] = False
    seed: Annotated[int, Meta(ge=0, description="of weights, order and augmentation")] = 0
    limit: Annotated[_Count | None, Meta(description="a trial: train on the first N items, ask no accuracy")] = None
    min_accuracy: Annotated[float, _fraction("what the exported file must reach on the test set")] = 0.0
    min_r2: Annotated[float | None, Meta(description="what it must reach on the test set, for a regression")] = None


MNIST_RECIPE = Recipe(
    name="mnist",
    dataset="mnist",
    architecture="plain_cnn",
    width=32,  # 0.29 M weights, 21 M multiplications an image
    epochs=16,
    batch_size=250,  # divides 60,000: no short last batch
    lr=4e-3,  # AdamW's usual 1e-3 with one cycle's higher peak, arXiv 1708.07120
    weight_decay=0.05,  # decoupled from the rate, arXiv 1711.05101
    label_smoothing=0.05,  # arXiv 1512.00567 takes 0.1 for 1,000 classes; also keeps logits small
    # Within what a digit survives: 6 and 9 stay apart, and the margin of 4 pixels absorbs most of the shift.
    rotate=15.0,
    translate=0.1,
    scale=0.15,
    shear=10.0,
    early_side=22,  # 0.6 of the work of 28, for the epochs in which the rate is still high
    early_epochs=8,
    ema=0.995,  # nearly an epoch
    min_accuracy=0.997,
)

# airbench94 (arXiv 2404.00498), whose rate is 11.5 for 1,024 images of a summed loss, over what momentum adds up to.
_AIRBENCH_LR = 11.5 / (1024 * (1 + 1 / (1 - 0.85))) * 500

CIFAR10_RECIPE = Recipe(
    name="cifar10",
    dataset="cifar10",
    architecture="whitened_cnn",
    width=64,  # airbench94's widths: 64, 256, 256; 2 M weights, 118 M multiplications an image
    epochs=60,  # airbench94 takes 9.9 for 94 % of six views an image; one view and half a point more take longer
    batch_size=500,  # divides 50,000; airbench94 takes 1,024
    label_smoothing=0.2,  # airbench94, as the next seven
    logit_scale=1 / 9,
    optimizer="sgd",
    lr=_AIRBENCH_LR * 9.0 / 11.5,  # airbench96's, which is the one for longer runs; shift and erase likewise
    momentum=0.85,
    weight_decay=0.0153 / 11.5,
    norm_lr_scale=64.0,
    anneal="linear",
    flip="alternating",
    shift=4,
    erase=12,
    early_side=24,  # half the work of 32, for the epochs in which the rate is still high
    early_epochs=14,
    ema=0.995,  # about two epochs: takes the place of airbench94's lookahead
    min_accuracy=0.945,
)

# The same in the proportions of 28 pixels, with airbench94's rate and shift, and a square of a quarter of the side:
# half the epochs leave less to be memorised.
FASHION_MNIST_RECIPE = msgspec.structs.replace(
    CIFAR10_RECIPE,
    name="fashion_mnist",
    dataset="fashion_mnist",
    epochs=28,
    lr=_AIRBENCH_LR,
    shift=2,
    erase=7,
    early_side=21,
    early_epochs=10,
)

# Full batches to the minimum of a convex function: the closed form is the check, not the test score.
LINEAR_REGRESSION_RECIPE = Recipe(
    name="linear_regression",
    dataset="auto_mpg",
    architecture="linear",
    epochs=600,
    batch_size=400,  # more than there are rows: every step sees all of them
    loss="mse",
    optimizer="sgd",
    lr=0.1,
    momentum=0.95,
    lr_scheduler="constant",
    warm_up=0.0,
    precision="fp32",
    min_r2=0.7,
)

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe for recipe in (MNIST_RECIPE, FASHION_MNIST_RECIPE, CIFAR10_RECIPE, LINEAR_REGRESSION_RECIPE)
}


def changed(recipe: Recipe, fields: Mapping[str, object]) -> Recipe:
    """`recipe` with other values, which may be text: "none" is None. Raises RecipeInvalid naming field and bounds."""
    values = msgspec.to_builtins(recipe)
    fields = {name: None if value == "none" and name in _OPTIONAL else value for name, value in fields.items()}
    for name, value in fields.items():
        try:
            msgspec.convert(values | {name: value}, Recipe, strict=False)
        except msgspec.ValidationError as error:
            expected = str(error).partition(" - at ")[0]
            raise RecipeInvalid(f"--{name.replace('_', '-')} {value}: {expected[0].lower()}{expected[1:]}") from error
    return check(msgspec.convert(values | fields, Recipe, strict=False))


# Of these "none" means None; of `flip` it is a value.
_OPTIONAL = frozenset({"clip_norm", "early_side", "limit", "min_r2"})


def check(recipe: Recipe) -> Recipe:
    """What one field cannot say alone. Raises RecipeInvalid."""
    if recipe.early_epochs and not recipe.early_side:
        raise RecipeInvalid("early_epochs without early_side: say how small the images of the early epochs are.")
    if (recipe.patience or recipe.lr_scheduler == "plateau") and not recipe.validation:
        raise RecipeInvalid(
            "early stopping (patience) and the plateau scheduler watch a held-out part of the training set: "
            "give --validation, for example 0.1."
        )
    if recipe.optimizer == "sgd" and recipe.nesterov and not recipe.momentum:
        raise RecipeInvalid("nesterov needs momentum above 0; give --momentum or --no-nesterov.")
    return recipe


def as_scalars(recipe: Recipe) -> dict[str, Scalar]:
    """Flat, for the manifest's provenance."""
    scalars: dict[str, Scalar] = msgspec.to_builtins(recipe)
    return scalars
