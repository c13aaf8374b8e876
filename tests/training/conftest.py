"""A data set of 300 + 200 real digits with a digest of its own, and one small model trained on it for the whole run."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from training.architectures import build
from training.data import MNIST, DataSet, Source, digest, load
from training.evaluate import Score, evaluate
from training.export import Exported, export
from training.loop import Trained, train
from training.recipes import MNIST_RECIPE, Recipe
from training.verify import Verified, verify

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds tiny.npz, cut from the committed samples in the layout of the caches."""
    with np.load(CHECKOUT / "loadtests/samples/mnist.npz") as samples:
        images, labels = samples["images"][..., 0], samples["labels"]
    folder = tmp_path_factory.mktemp("data")
    np.savez(
        folder / "tiny.npz",
        train_x=images[:300],
        train_y=labels[:300],
        test_x=images[300:500],
        test_y=labels[300:500],
    )
    return folder


@pytest.fixture(scope="session")
def source(data_dir: Path) -> Source:
    with np.load(data_dir / "tiny.npz") as arrays:
        return msgspec.structs.replace(MNIST, name="tiny", torchvision_class="Tiny", sha256=digest(arrays))


@pytest.fixture(scope="session")
def recipe(source: Source) -> Recipe:
    return msgspec.structs.replace(
        MNIST_RECIPE, name="tiny", source=source, width=4, epochs=3, batch_size=32, min_accuracy=0.0
    )


@pytest.fixture(scope="session")
def data(recipe: Recipe, data_dir: Path) -> DataSet:
    return load(recipe.source, data_dir)


@pytest.fixture(scope="session")
def trained(recipe: Recipe, data: DataSet) -> Trained:
    torch.manual_seed(recipe.seed)
    return train(recipe, build(recipe), data, torch.device("cpu"), watch=lambda report: None)


@pytest.fixture(scope="session")
def score(trained: Trained, data: DataSet) -> Score:
    return evaluate(trained.model, data)


@pytest.fixture(scope="session")
def exported(trained: Trained, recipe: Recipe) -> Exported:
    return export(trained.model, recipe)


@pytest.fixture(scope="session")
def verified(exported: Exported, trained: Trained, score: Score, data: DataSet, recipe: Recipe) -> Verified:
    return verify(exported, trained.model, score, data, recipe)
