"""Data sets as four arrays: from the cache, else through torchvision's download, and the same bytes either way.

    <data-dir>/<name>.npz ──► digest ──► DataSet
            ▲
            └── written once, after torchvision's download of the official files

The digest in `Source` is what makes both ways equal, and what the manifest later says the model was trained on. A
table of a few hundred rows comes with the code (`training/tables`), and a user's own arrays come from `own_data`.
Checked by tests/training/test_data.py.
"""

import csv
import hashlib
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from msgspec import Struct

from training.errors import DataDamaged, DataUnavailable, naming
from training.vision import import_torchvision

ARRAYS = ("train_x", "train_y", "test_x", "test_y")
SAMPLES = 1000
AUTO_MPG_TABLE = Path(__file__).parent / "tables" / "auto_mpg.csv"

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]  # uint8 or float32


class Source(Struct, frozen=True, kw_only=True):
    """What a data set is, before any of it is there.

    shape       of one item: (height, width, channels) of an image, (features,) of a row
    labels      () where the target is a number
    mean        per channel or feature, of train_x in its own units; `deviation` likewise
    sha256      over the bytes of train_x, train_y, test_x, test_y, in that order
    features    names of a row's columns; `unit` that of the number to predict
    """

    name: str
    title: str
    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    sha256: str
    torchvision_class: str | None = None
    features: tuple[str, ...] = ()
    unit: str = ""


class DataSet(Struct, frozen=True):
    """Images uint8 [n, height, width, channels] with labels uint8 [n], or rows float32 [n, features] with numbers
    float32 [n]. The source's digest is that of the whole set, also where `first` left some of it out."""

    source: Source
    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array


MNIST = Source(
    name="mnist",
    title="MNIST handwritten digits",
    torchvision_class="MNIST",
    shape=(28, 28, 1),
    labels=tuple("0123456789"),
    mean=(33.318,),  # 0.13066 and 0.30811 of 255: measured over train_x
    deviation=(78.567,),
    sha256="06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16",  # the official files' pixels and labels
)

FASHION_MNIST = Source(
    name="fashion_mnist",
    title="Fashion-MNIST articles of clothing",
    torchvision_class="FashionMNIST",
    shape=(28, 28, 1),
    labels=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    mean=(72.940,),
    deviation=(90.021,),
    sha256="ca3ab2a37f845e1b8ae23cab1b51749a3011ba3bf1d9016176d75cbaabac376f",
)

CIFAR10 = Source(
    name="cifar10",
    title="CIFAR-10 photographs",
    torchvision_class="CIFAR10",
    shape=(32, 32, 3),
    labels=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    mean=(125.307, 122.950, 113.865),
    deviation=(62.993, 62.089, 66.705),
    sha256="80387ddb9a0edf3fc4a964ee3770296169bb26a651050df20035579673099660",
)

# Fuel consumption of 392 cars of 1970 to 1982 (Quinlan 1993; UCI machine learning repository, CC BY 4.0), the rows with
# a missing number left out. Every fifth row is a test row: the file is sorted by year, so both parts span them all.
AUTO_MPG = Source(
    name="auto_mpg",
    title="Auto MPG, fuel consumption of cars",
    shape=(8,),
    features=("cylinders", "displacement", "horsepower", "weight", "acceleration", "year", "europe", "japan"),
    unit="miles per gallon",
    mean=(5.4665, 194.6054, 104.115, 2973.2939, 15.5949, 1976.0511, 0.1661, 0.2109),
    deviation=(1.7012, 104.8002, 38.5206, 859.384, 2.7966, 3.7787, 0.3722, 0.4079),
    sha256="7f8b6b55cf9428ffa3b96875f7dea33b98a1b6db182e13e7e39c9c3cdc4ebd37",
)

SOURCES: Mapping[str, Source] = {source.name: source for source in (MNIST, FASHION_MNIST, CIFAR10, AUTO_MPG)}


def load(source: Source, data_dir: Path) -> DataSet:
    """From the cache, or downloaded into it.

    Raises   DataUnavailable where it is neither cached nor downloadable, DataDamaged where the cache holds other bytes
    """
    path = cache_path(source, data_dir)
    if source == AUTO_MPG:
        arrays = read_auto_mpg()
        check_digest(source, arrays, f"{AUTO_MPG_TABLE}")
    elif path.exists():
        arrays = read_cache(source, path)
        check_digest(source, arrays, f"{path}")
    else:
        arrays = download(source, data_dir)
        check_digest(source, arrays, "the download")
        write_cache(path, arrays)
    items = {name: arrays[name].reshape(-1, *source.shape) for name in ("train_x", "test_x")}
    return DataSet(
        source=source,
        train_x=items["train_x"],
        train_y=arrays["train_y"],
        test_x=items["test_x"],
        test_y=arrays["test_y"],
    )


def first(data: DataSet, items: int | None) -> DataSet:
    """The first training `items`, all where it is None, and the whole test set."""
    return msgspec.structs.replace(data, train_x=data.train_x[:items], train_y=data.train_y[:items])


def read_auto_mpg() -> Mapping[str, Array]:
    """The table as float32; origin as two columns, with cars from the USA 0 in both."""
    with AUTO_MPG_TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ("cylinders", "displacement", "horsepower", "weight", "acceleration", "year")
    x = np.array(
        [
            [*(float(row[name]) for name in columns), row["origin"] == "Europe", row["origin"] == "Japan"]
            for row in rows
        ],
        dtype=np.float32,
    )
    y = np.array([float(row["mpg"]) for row in rows], dtype=np.float32)
    test = np.arange(len(rows)) % 5 == 0
    return {"train_x": x[~test], "train_y": y[~test], "test_x": x[test], "test_y": y[test]}


def cache_path(source: Source, data_dir: Path) -> Path:
    return data_dir / f"{source.name}.npz"


def read_cache(source: Source, path: Path) -> Mapping[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ARRAYS}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataDamaged(
            f"{path} is not a readable npz with the arrays {', '.join(ARRAYS)}: {error}. "
            f"Delete it to have {source.title} downloaded again, or put an intact copy there."
        ) from error


def check_digest(source: Source, arrays: Mapping[str, Array], origin: str) -> None:
    found = digest(arrays)
    if found != source.sha256:
        raise DataDamaged(
            f"{origin} does not hold the official {source.title}: SHA-256 of the arrays is {found}, expected "
            f"{source.sha256}. Delete {source.name}.npz to have it downloaded again, or put an intact copy there."
        )


def digest(arrays: Mapping[str, Array]) -> str:
    sha256 = hashlib.sha256()
    for name in ARRAYS:
        sha256.update(np.ascontiguousarray(arrays[name]).tobytes())
    return sha256.hexdigest()


def download(source: Source, data_dir: Path) -> Mapping[str, Array]:
    """Through torchvision, into a folder that is gone afterwards: only the arrays are kept."""
    assert source.torchvision_class, f"bug: nothing says where {source.name} comes from"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=f".{source.name}-") as raw:
            reader = getattr(import_torchvision().datasets, source.torchvision_class)
            splits = {split: reader(raw, train=split == "train", download=True) for split in ("train", "test")}
            return {
                f"{split}_{axis}": np.asarray(values, dtype=np.uint8)
                for split, items in splits.items()
                for axis, values in (("x", items.data), ("y", items.targets))
            }
    except (OSError, RuntimeError, ImportError) as error:  # RuntimeError: every mirror failed, or a file's MD5 differs
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataUnavailable(
            f"{source.title} is not at {cache_path(source, data_dir)}, and downloading it failed: {reason}. "
            f"Either run this once where the internet can be reached, or copy a {source.name}.npz made there "
            f"into {data_dir} (--data-dir or SHOAL_DATA_DIR names another folder)."
        ) from error


def write_cache(path: Path, arrays: Mapping[str, Array]) -> None:
    """By rename, so that a run that is interrupted leaves no half file behind."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with naming(partial), partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **{name: arrays[name] for name in ARRAYS})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_samples(data: DataSet, path: Path) -> Path:
    """The first 1,000 test images, for load tests and examples: `images` uint8 [n, H, W, C], `labels` uint8 [n]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, images=data.test_x[:SAMPLES], labels=data.test_y[:SAMPLES])
    return path


def own_data(
    name: str,
    title: str,
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    labels: tuple[str, ...] = (),
    features: tuple[str, ...] = (),
    unit: str = "",
) -> DataSet:
    """A user's own arrays as a data set; each pair is items and targets, shaped and typed as `DataSet` says.

    Raises   DataDamaged naming the array that does not fit
    """
    arrays: dict[str, Array] = {
        "train_x": np.ascontiguousarray(train[0]),
        "train_y": np.asarray(train[1]),
        "test_x": np.ascontiguousarray(test[0]),
        "test_y": np.asarray(test[1]),
    }
    check_own(arrays, labels)
    train_x = arrays["train_x"]
    axes = tuple(range(train_x.ndim - 1))
    source = Source(
        name=name,
        title=title,
        shape=train_x.shape[1:],
        labels=labels,
        mean=tuple(train_x.mean(axis=axes, dtype=np.float64).tolist()),
        deviation=tuple(np.maximum(train_x.std(axis=axes, dtype=np.float64), 1e-6).tolist()),
        sha256=digest(arrays),
        features=features,
        unit=unit,
    )
    return DataSet(source=source, **arrays)


def check_own(arrays: Mapping[str, Array], labels: tuple[str, ...]) -> None:
    kinds = ("uint8", 4, "images [n, height, width, channels]") if labels else ("float32", 2, "rows [n, features]")
    for part in ("train", "test"):
        items, targets = arrays[f"{part}_x"], arrays[f"{part}_y"]
        if (items.dtype.name, items.ndim) != kinds[:2] or not len(items):
            raise DataDamaged(
                f"{part}_x is {items.dtype} {items.shape}; {'labels' if labels else 'numbers'} are learnt from "
                f"{kinds[0]} {kinds[2]}, at least one."
            )
        if labels and items.shape[3] not in (1, 3):
            raise DataDamaged(f"{part}_x has {items.shape[3]} channels; expected 1 (grey) or 3 (red, green, blue).")
        if targets.shape != items.shape[:1]:
            raise DataDamaged(f"{part}_y is {targets.shape}; expected one target for each of the {len(items)} items.")
        if labels and not (targets.dtype.kind in "iu" and targets.min() >= 0 and targets.max() < len(labels)):
            raise DataDamaged(f"{part}_y holds something that is not a label: whole numbers 0 to {len(labels) - 1}.")
    train_item, test_item = arrays["train_x"].shape[1:], arrays["test_x"].shape[1:]
    if train_item != test_item:
        raise DataDamaged(f"train_x has items {train_item} and test_x {test_item}: expected one shape for both.")


def on_device(array: Array, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
