"""Data sets as four arrays: from the cache, else through torchvision's download, and the same bytes either way.

    <data-dir>/<name>.npz ──► digest ──► DataSet
            ▲
            └── written once, after torchvision's download of the official files

The digest in `Source` is what makes both ways equal, and what the manifest later says the model was trained on. Images
stay uint8 until they are on the device: MNIST is 47 MB there, and a batch is an index, not a copy through a loader.
Checked by tests/training/test_data.py.
"""

import hashlib
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from msgspec import Struct

from training.errors import DataDamaged, DataUnavailable
from training.vision import import_torchvision

ARRAYS = ("train_x", "train_y", "test_x", "test_y")
SAMPLES = 1000

Bytes = npt.NDArray[np.uint8]


class Source(Struct, frozen=True):
    """What a data set is, before any of it is there.

    shape    (height, width, channels)
    sha256   over the bytes of train_x, train_y, test_x, test_y, in that order, all uint8
    mean     per channel, of train_x in 0..255; `deviation` likewise
    """

    name: str
    title: str
    torchvision_class: str
    shape: tuple[int, int, int]
    labels: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    sha256: str


class DataSet(Struct, frozen=True):
    """images uint8 [n, height, width, channels], labels uint8 [n]; the digest is that of the whole set."""

    source: Source
    train_x: Bytes
    train_y: Bytes
    test_x: Bytes
    test_y: Bytes


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


def load(source: Source, data_dir: Path, limit: int | None = None) -> DataSet:
    """The set, or its first `limit` training items with the whole test set.

    Raises   DataUnavailable where it is neither cached nor downloadable, DataDamaged where the cache holds other bytes
    """
    path = cache_path(source, data_dir)
    if path.exists():
        arrays = read_cache(source, path)
        check_digest(source, arrays, f"{path}")
    else:
        arrays = download(source, data_dir)
        check_digest(source, arrays, "the download")
        write_cache(path, arrays)
    images = {name: arrays[name].reshape(-1, *source.shape) for name in ("train_x", "test_x")}
    return DataSet(
        source=source,
        train_x=images["train_x"][:limit],
        train_y=arrays["train_y"][:limit],
        test_x=images["test_x"],
        test_y=arrays["test_y"],
    )


def cache_path(source: Source, data_dir: Path) -> Path:
    return data_dir / f"{source.name}.npz"


def read_cache(source: Source, path: Path) -> Mapping[str, Bytes]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ARRAYS}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataDamaged(
            f"{path} is not a readable npz with the arrays {', '.join(ARRAYS)}: {error}. "
            f"Delete it to have {source.title} downloaded again, or put an intact copy there."
        ) from error


def check_digest(source: Source, arrays: Mapping[str, Bytes], origin: str) -> None:
    found = digest(arrays)
    if found != source.sha256:
        raise DataDamaged(
            f"{origin} does not hold the official {source.title}: SHA-256 of the arrays is {found}, expected "
            f"{source.sha256}. Delete {source.name}.npz to have it downloaded again, or put an intact copy there."
        )


def digest(arrays: Mapping[str, Bytes]) -> str:
    sha256 = hashlib.sha256()
    for name in ARRAYS:
        sha256.update(np.ascontiguousarray(arrays[name]).tobytes())
    return sha256.hexdigest()


def download(source: Source, data_dir: Path) -> Mapping[str, Bytes]:
    """Through torchvision, into a folder that is gone afterwards: only the arrays are kept."""
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


def write_cache(path: Path, arrays: Mapping[str, Bytes]) -> None:
    """By rename, so that a run that is interrupted leaves no half file behind."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{name: arrays[name] for name in ARRAYS})
    partial.replace(path)


def write_samples(data: DataSet, path: Path) -> Path:
    """The first 1,000 test images, for load tests and examples: `images` uint8 [n, H, W, C], `labels` uint8 [n]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, images=data.test_x[:SAMPLES], labels=data.test_y[:SAMPLES])
    return path


def on_device(array: Bytes, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
