"""A data set of 300 + 200 real digits with a digest of its own, and one small model trained on it for the whole run."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from training.architectures import build
from training.data import MNIST, DataSet, Source, digest, load, own_data
from training.evaluate import Score, evaluate
from training.export import Exported, export
from training.loop import Trained, train
from training.parallel import World
from training.recipes import MNIST_RECIPE, Recipe
from training.verify import Verified, verify

CHECKOUT = Path(__file__).parents[2]

# These networks are so small that a second thread costs more than it brings.
torch.set_num_threads(1)


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
        MNIST_RECIPE,
        name="tiny",
        dataset=source.name,
        width=4,
        epochs=3,
        batch_size=32,
        early_side=None,
        early_epochs=0,
        ema=0.0,
        min_accuracy=0.0,
    )


@pytest.fixture(scope="session")
def data(source: Source, data_dir: Path) -> DataSet:
    return load(source, data_dir)


@pytest.fixture(scope="session")
def rows() -> DataSet:
    """Two features and a number that is 3 times the first less 2 times the second plus 1, with noise."""
    generator = np.random.default_rng(0)
    x = generator.normal([10.0, -5.0], [2.0, 4.0], (120, 2)).astype(np.float32)
    y = (3 * x[:, 0] - 2 * x[:, 1] + 1 + generator.normal(0, 0.1, 120)).astype(np.float32)
    return own_data("plane", "A plane", (x[:90], y[:90]), (x[90:], y[90:]), features=("a", "b"), unit="metres")


@pytest.fixture(scope="session")
def trained(recipe: Recipe, data: DataSet) -> Trained:
    return fitted(recipe, data)


def fitted(recipe: Recipe, data: DataSet, **options: Any) -> Trained:  # Any: those of `train`
    """Seeded and trained in this process, on the CPU."""
    torch.manual_seed(recipe.seed)
    world = World(rank=0, size=1, device=torch.device("cpu"))
    return train(recipe, build(recipe, data), data, world, watch=lambda progress: None, **options)


@pytest.fixture(scope="session")
def score(trained: Trained, data: DataSet) -> Score:
    return evaluate(trained.model, data)


@pytest.fixture(scope="session")
def exported(trained: Trained, recipe: Recipe, source: Source) -> Exported:
    return export(trained.model, recipe, source)


@pytest.fixture(scope="session")
def verified(exported: Exported, trained: Trained, score: Score, data: DataSet, recipe: Recipe) -> Verified:
    return verify(exported, trained.model, score, data, recipe)
