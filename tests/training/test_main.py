import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import training.data
import training.pipeline
from training.__main__ import given_fields, main, parser
from training.recipes import CIFAR10_RECIPE, RECIPES, Recipe, changed


def offline() -> None:
    raise ImportError("No module named 'torchvision'")


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


@pytest.mark.parametrize("flag", ["--version", "--seeds"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_counts_are_whole_and_positive(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["mnist", flag, value])
    assert flag in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "0"], "error: --epochs 0: expected `int` >= 1\n"),
        (["--limit", "-1"], "error: --limit -1: expected `int` >= 1\n"),
        (["--lr", "fast"], "error: --lr fast: expected `float`, got `str`\n"),
        (["--patience", "3"], "give --validation, for example 0.1.\n"),
        (["--dataset", "minst"], "error: dataset 'minst' is none of mnist,"),
        (["--dataset", "auto_mpg"], "needs images, auto_mpg has rows"),
        (["--resume", "--epochs", "3"], "--resume: no checkpoint.pt below"),
    ],
)
def test_a_field_that_cannot_be_is_refused_in_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mnist", "--repository", str(tmp_path), "--runs", str(tmp_path), "--device", "cpu", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_unknown_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["mnist", "--epoch", "3"])  # no guessing at abbreviations
    assert raised.value.code == 2
    assert "unrecognized arguments: --epoch 3" in capsys.readouterr().err


def test_without_flags_the_recipe_is_run_as_written() -> None:
    for name in RECIPES:
        assert given_fields(parser().parse_args([name])) == {}, name


def test_flags_change_the_recipe_that_is_recorded() -> None:
    flags = (
        "--epochs 30 --optimizer sgd --lr 0.1 --lr-scheduler onecycle --no-nesterov --clip-norm 1 --ema 0 --limit 300"
    )
    recipe = changed(CIFAR10_RECIPE, given_fields(parser().parse_args(["cifar10", *flags.split()])))
    assert (recipe.epochs, recipe.optimizer, recipe.lr, recipe.lr_scheduler) == (30, "sgd", 0.1, "onecycle")
    assert (recipe.nesterov, recipe.clip_norm, recipe.ema) == (False, 1.0, 0.0)
    assert recipe.limit == 300


def test_every_field_is_a_flag_that_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["mnist", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name in Recipe.__struct_fields__:
        assert f"--{name.replace('_', '-')}" in said, name
    assert "highest learning rate (0.004)" in said


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

    monkeypatch.setattr(training.pipeline, "load", interrupt)
    assert main(["mnist", "--repository", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted: nothing was published\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_and_resume_publishes_the_same_model(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command line, in processes of their own: one is stopped and resumed, one runs through."""
    common = ["--repository", str(tmp_path / "models"), "--device", "cpu"]
    fields = ["--epochs", "150", "--version", "1"]
    command = [sys.executable, "-m", "training", "linear_regression", *common, "--runs", str(tmp_path / "runs")]
    slow = [*command, *fields, "--min-r2", "-1", "--lr", "0.05", "--weight-decay", "1e-9"]
    run = subprocess.Popen(slow, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith("epoch 3/"):
            run.send_signal(number)
            break
    _, error = run.communicate(timeout=60)
    assert run.returncode == 130, error
    assert "nothing was published. Go on with: python -m training linear_regression --resume" in error
    assert not (tmp_path / "models/linear_regression/1").exists()

    python, *said = shlex.split(error.partition("Go on with: ")[2])
    assert python == "python"
    (run_folder,) = (tmp_path / "runs/linear_regression").iterdir()
    assert main(["mnist", "--resume", str(run_folder)]) == 2
    assert "is one of auto_mpg, not of mnist" in capsys.readouterr().err

    resumed = subprocess.run([sys.executable, *said], capture_output=True, text=True, timeout=60)
    assert resumed.returncode == 0, resumed.stderr
    slow[slow.index("--version") + 1] = "2"
    straight = subprocess.run(slow, capture_output=True, text=True, timeout=60)
    assert straight.returncode == 0, straight.stderr
    first, second = (tmp_path / "models/linear_regression" / version / "model.onnx" for version in "12")
    assert first.read_bytes() == second.read_bytes()
