import io
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from rich.console import Console

import training.__main__
import training.data
from models.manifest import check_files, read_manifest
from training.__main__ import chosen_recipe, main, make, parser
from training.recipes import MNIST_RECIPE, Recipe


def offline() -> None:
    raise ImportError("No module named 'torchvision'")


def test_the_whole_way_from_data_to_a_version_that_loads(recipe: Recipe, data_dir: Path, tmp_path: Path) -> None:
    written = io.StringIO()
    published = make(recipe, data_dir, tmp_path, None, torch.device("cpu"), Console(file=written, width=80))
    assert published == tmp_path / "tiny" / "1"
    manifest = read_manifest(published)
    check_files(published, manifest)

    session = onnxruntime.InferenceSession(published / "model.onnx", providers=["CPUExecutionProvider"])
    with np.load(data_dir / "tiny.npz") as arrays:
        (logits,) = session.run(["logits"], {"image": arrays["test_x"][..., None]})
        accuracy = (logits.argmax(axis=1) == arrays["test_y"]).mean()
    assert manifest.metrics["accuracy"] == pytest.approx(accuracy)

    text = written.getvalue()
    assert f"Published tiny version 1 in {published}" in text
    assert f"{accuracy:.2%} right on 200 test items" in text
    assert "Next: make serve" in text


def test_a_clash_of_versions_is_found_before_training(
    recipe: Recipe, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mnist" / "3").mkdir(parents=True)
    monkeypatch.setattr(training.__main__, "load", lambda *arguments: pytest.fail("the data was loaded"))
    assert main(["mnist", "--version", "3", "--repository", str(tmp_path)]) == 2
    assert "a published version never changes" in capsys.readouterr().err


def test_a_users_error_is_one_line_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training.data, "import_torchvision", offline)
    assert main(["mnist", "--data-dir", str(tmp_path), "--repository", str(tmp_path), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: MNIST handwritten digits is not at ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert main(["samples", "--data-dir", str(tmp_path / "file" / "data")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(tmp_path / "file") in error
    assert error.count("\n") == 1


def test_an_unknown_recipe_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["mnits"])
    assert raised.value.code == 2
    error = capsys.readouterr().err
    assert "invalid choice: 'mnits'" in error
    assert "mnist" in error.replace("mnits", "")


@pytest.mark.parametrize("flag", ["--epochs", "--limit", "--version"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_counts_are_whole_and_positive(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["mnist", flag, value])
    assert flag in capsys.readouterr().err


def test_without_flags_the_recipe_is_run_as_written() -> None:
    assert chosen_recipe(parser().parse_args(["mnist"])) == MNIST_RECIPE


def test_flags_change_the_recipe_that_is_recorded() -> None:
    recipe = chosen_recipe(parser().parse_args(["mnist", "--epochs", "2", "--seed", "0", "--limit", "300"]))
    assert (recipe.epochs, recipe.seed, recipe.limit, recipe.min_accuracy) == (2, 0, 300, 0.0)


def test_the_data_folder_comes_from_the_flag_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOAL_DATA_DIR", raising=False)
    assert parser().parse_args(["mnist"]).data_dir == Path("data")
    monkeypatch.setenv("SHOAL_DATA_DIR", "elsewhere")
    assert parser().parse_args(["mnist"]).data_dir == Path("elsewhere")
    assert parser().parse_args(["samples", "--data-dir", "here"]).data_dir == Path("here")


def test_an_interrupted_run_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training.__main__, "load", interrupt)
    assert main(["mnist", "--repository", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted: nothing was published\n"
