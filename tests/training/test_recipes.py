from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from msgspec import Meta

from training.data import MNIST, SOURCES
from training.errors import RecipeInvalid
from training.recipes import CIFAR10_RECIPE, MNIST_RECIPE, RECIPES, Recipe, as_scalars, changed, check


def test_a_recipe_is_found_under_its_own_name_and_its_data_set_exists() -> None:
    assert set(RECIPES) == {"mnist", "fashion_mnist", "cifar10", "linear_regression"}
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert recipe.dataset in SOURCES
        assert check(recipe) == recipe


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        MNIST_RECIPE.epochs = 1  # type: ignore[misc]  # what is tested


def test_provenance_is_flat_and_complete() -> None:
    scalars = as_scalars(MNIST_RECIPE)
    assert scalars["dataset"] == "mnist"
    assert scalars["rotate"] == MNIST_RECIPE.rotate
    assert scalars["limit"] is None
    assert all(isinstance(value, str | int | float | None) for value in scalars.values())
    assert set(scalars) == set(Recipe.__struct_fields__)


def test_every_field_describes_itself() -> None:
    hints = get_type_hints(Recipe, include_extras=True)
    for name in Recipe.__struct_fields__:
        (meta,) = [part for part in get_args(hints[name]) if isinstance(part, Meta)]
        assert meta.description, name


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("epochs", "30", 30),
        ("lr", "1e-2", 0.01),
        ("optimizer", "sgd", "sgd"),
        ("clip_norm", "1.5", 1.5),
        ("clip_norm", "none", None),
        ("limit", "none", None),
        ("deterministic", True, True),
    ],
)
def test_values_may_be_text(field: str, text: object, value: object) -> None:
    assert getattr(changed(CIFAR10_RECIPE, {field: text}), field) == value


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("epochs", "0", r"--epochs 0: expected `int` >= 1"),
        ("epochs", "many", r"--epochs many: expected `int`"),
        ("optimizer", "sdg", r"--optimizer sdg: invalid enum value 'sdg'"),
        ("label_smoothing", "2", r"--label-smoothing 2: expected `float` <= 1"),
        ("momentum", "1", r"--momentum 1: expected `float` < 1"),
        ("lr", "-1", r"--lr -1: expected `float` > 0"),
        ("name", "../up", r"--name \.\./up: expected `str` matching regex"),
    ],
)
def test_a_value_out_of_bounds_names_the_flag_and_what_is_expected(field: str, text: str, message: str) -> None:
    with pytest.raises(RecipeInvalid, match=message):
        changed(MNIST_RECIPE, {field: text})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"early_epochs": 3, "early_side": None}, "early_epochs without early_side"),
        ({"patience": 3}, "give --validation"),
        ({"lr_scheduler": "plateau"}, "give --validation"),
        ({"optimizer": "sgd", "momentum": 0}, "nesterov needs momentum above 0"),
    ],
)
def test_fields_that_need_another_say_which(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeInvalid, match=message):
        changed(MNIST_RECIPE, fields)


def test_the_normalisation_of_mnist_is_near_that_of_its_samples() -> None:
    with np.load(Path(__file__).parents[2] / "loadtests/samples/mnist.npz") as samples:
        images = samples["images"]
    assert MNIST.mean[0] == pytest.approx(images.mean(), rel=0.1)  # of 1,000 of them
    assert MNIST.deviation[0] == pytest.approx(images.std(), rel=0.1)
