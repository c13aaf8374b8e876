from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import training.data
from training.data import ARRAYS, DataSet, Source, digest, first, load, own_data, write_samples
from training.errors import DataDamaged, DataUnavailable


def offline() -> SimpleNamespace:
    def reader(*arguments: object, **options: object) -> None:
        raise RuntimeError("Error downloading tiny.gz:\nTried every mirror")

    return SimpleNamespace(datasets=SimpleNamespace(Tiny=reader))


def serving(arrays: dict[str, np.ndarray]) -> SimpleNamespace:
    """torchvision with one data set, whose readers give `data` and `targets` as the real ones do."""

    def reader(root: str, *, train: bool, download: bool) -> SimpleNamespace:
        assert download
        (Path(root) / "raw.gz").write_bytes(b"what the mirror sent")
        split = "train" if train else "test"
        return SimpleNamespace(data=arrays[f"{split}_x"], targets=arrays[f"{split}_y"].tolist())

    return SimpleNamespace(datasets=SimpleNamespace(Tiny=reader))


def arrays_in(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in ARRAYS}


def test_images_have_a_channel_axis_and_labels_stay_beside_them(source: Source, data_dir: Path) -> None:
    data = load(source, data_dir)
    raw = arrays_in(data_dir / "tiny.npz")
    assert data.train_x.shape == (300, 28, 28, 1)
    assert data.test_x.shape == (200, 28, 28, 1)
    assert data.train_x.dtype == data.test_y.dtype == np.uint8
    np.testing.assert_array_equal(data.train_x[..., 0], raw["train_x"])
    np.testing.assert_array_equal(data.test_y, raw["test_y"])


def test_a_limit_takes_the_first_training_items_and_the_whole_test_set(source: Source, data_dir: Path) -> None:
    whole = load(source, data_dir)
    limited = first(whole, 7)
    assert len(first(whole, None).train_x) == 300
    np.testing.assert_array_equal(limited.train_x, whole.train_x[:7])
    np.testing.assert_array_equal(limited.train_y, whole.train_y[:7])
    assert len(limited.test_x) == 200


def test_the_digest_covers_labels_as_well_as_pixels(data_dir: Path) -> None:
    arrays = arrays_in(data_dir / "tiny.npz")
    for name in ARRAYS:
        changed = arrays | {name: arrays[name] ^ 1}
        assert digest(changed) != digest(arrays), name


def test_a_cache_with_other_bytes_is_named_with_both_digests(source: Source, data_dir: Path, tmp_path: Path) -> None:
    arrays = arrays_in(data_dir / "tiny.npz")
    arrays["train_y"] = arrays["train_y"][::-1]
    np.savez(tmp_path / "tiny.npz", **arrays)
    with pytest.raises(DataDamaged) as raised:
        load(source, tmp_path)
    message = str(raised.value)
    assert str(tmp_path / "tiny.npz") in message
    assert source.sha256 in message
    assert digest(arrays) in message
    assert "Delete tiny.npz" in message


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off"])
def test_an_unreadable_cache_says_what_to_do(source: Source, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tiny.npz").write_bytes(content)
    with pytest.raises(DataDamaged, match=r"tiny\.npz is not a readable npz .* Delete it"):
        load(source, tmp_path)


def test_a_cache_without_one_of_the_arrays_names_the_four(source: Source, tmp_path: Path) -> None:
    np.savez(tmp_path / "tiny.npz", train_x=np.zeros((1, 28, 28), np.uint8))
    with pytest.raises(DataDamaged, match="train_x, train_y, test_x, test_y"):
        load(source, tmp_path)


def test_missing_data_names_both_ways_to_get_it(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.data, "import_torchvision", offline)
    with pytest.raises(DataUnavailable) as raised:
        load(source, tmp_path / "data")
    message = str(raised.value)
    assert "Error downloading tiny.gz: Tried every mirror" in message
    assert "where the internet can be reached" in message
    assert "copy a tiny.npz" in message
    assert "SHOAL_DATA_DIR" in message


def test_a_download_is_cached_and_not_repeated(
    source: Source, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = arrays_in(data_dir / "tiny.npz")
    monkeypatch.setattr(training.data, "import_torchvision", lambda: serving(arrays))
    first = load(source, tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["tiny.npz"]

    monkeypatch.setattr(training.data, "import_torchvision", offline)
    second = load(source, tmp_path / "data")
    np.testing.assert_array_equal(first.train_x, second.train_x)
    np.testing.assert_array_equal(second.test_y, arrays["test_y"])


def test_a_download_of_other_bytes_is_refused_and_not_cached(
    source: Source, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = arrays_in(data_dir / "tiny.npz")
    arrays["test_x"] = arrays["test_x"] // 2
    monkeypatch.setattr(training.data, "import_torchvision", lambda: serving(arrays))
    with pytest.raises(DataDamaged, match="the download does not hold the official"):
        load(source, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_samples_are_the_first_thousand_test_images_with_their_labels(source: Source, tmp_path: Path) -> None:
    index = np.arange(1200)
    images = np.zeros((1200, 28, 28, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = index % 256, index // 256
    labels = (index % 10).astype(np.uint8)
    data = DataSet(source, images[:0], labels[:0], images, labels)
    with np.load(write_samples(data, tmp_path / "new" / "samples.npz")) as samples:
        np.testing.assert_array_equal(samples["images"], images[:1000])
        np.testing.assert_array_equal(samples["labels"], labels[:1000])


def test_own_images_have_one_channel_or_three(data: DataSet) -> None:
    two = np.zeros((4, 8, 8, 2), np.uint8), np.zeros(4, np.uint8)
    with pytest.raises(DataDamaged, match=r"train_x has 2 channels; expected 1 \(grey\) or 3"):
        own_data("pairs", "Pairs", two, two, labels=("a",))
