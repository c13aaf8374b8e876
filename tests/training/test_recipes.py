from pathlib import Path

import numpy as np
import pytest

from training.data import MNIST
from training.recipes import MNIST_RECIPE, RECIPES, as_scalars, limited


def test_a_recipe_is_found_under_its_own_name() -> None:
    assert all(recipe.name == name for name, recipe in RECIPES.items())


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        MNIST_RECIPE.epochs = 1  # type: ignore[misc]  # what is tested


def test_a_limited_recipe_is_a_trial_and_says_so() -> None:
    trial = limited(MNIST_RECIPE, 300)
    assert (trial.limit, trial.min_accuracy) == (300, 0.0)
    assert (MNIST_RECIPE.limit, MNIST_RECIPE.min_accuracy) == (None, 0.996)


def test_provenance_is_flat_and_complete() -> None:
    scalars = as_scalars(MNIST_RECIPE)
    assert scalars["source"] == "mnist"
    assert scalars["augmentation.rotate"] == MNIST_RECIPE.augmentation.rotate
    assert scalars["limit"] is None
    assert all(isinstance(value, str | int | float | None) for value in scalars.values())
    assert {name.partition(".")[0] for name in scalars} == set(MNIST_RECIPE.__struct_fields__)


def test_the_normalisation_of_mnist_is_near_that_of_its_samples() -> None:
    with np.load(Path(__file__).parents[2] / "loadtests/samples/mnist.npz") as samples:
        images = samples["images"]
    assert MNIST.mean[0] == pytest.approx(images.mean(), rel=0.1)  # of 1,000 of them
    assert MNIST.deviation[0] == pytest.approx(images.std(), rel=0.1)
