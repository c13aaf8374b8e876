"""The eight steps together, on a few hundred real images."""

import io
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import training.pipeline
import training.quantise
from models.manifest import check_files, read_golden, read_manifest
from training.data import DataSet, Source
from training.errors import CheckpointDamaged, RecipeInvalid, VerificationFailed, VersionExists, VersionUnknown
from training.pipeline import Options, command_to_serve, make, make_quantised
from training.quantise import Speed
from training.recipes import LINEAR_REGRESSION_RECIPE, Recipe, changed
from training.runs import latest_run


@pytest.fixture
def options(data_dir: Path, tmp_path: Path) -> Options:
    return Options(data_dir=data_dir, repository=tmp_path / "models", runs=tmp_path / "runs", device="cpu")


@pytest.fixture
def known(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny data set among those a recipe can name."""
    monkeypatch.setattr(training.pipeline, "SOURCES", {source.name: source})


def test_the_whole_way_from_data_to_a_version_that_loads(
    recipe: Recipe, options: Options, data_dir: Path, known: None
) -> None:
    written = io.StringIO()
    published = make(recipe, options, Console(file=written, width=80))
    assert published == options.repository / "tiny" / "1"
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
    assert f"Next: python -m service serve --repository {options.repository}" in text
    run = latest_run(options.runs, "tiny")
    assert list(run.glob("events.out.tfevents.*"))


def test_a_user_brings_a_network_and_a_data_set(recipe: Recipe, options: Options, data: DataSet) -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
    published = make(changed(recipe, {"name": "mine"}), options, Console(quiet=True), data=data, body=body)
    assert published is not None
    state = torch.load(published / "checkpoint.pt", weights_only=True)
    assert {name for name in state if name.startswith("body.")} == {f"body.{name}" for name in body.state_dict()}
    assert not torch.equal(state["body.1.weight"], body.state_dict()["1.weight"]), "not trained, or trained in place"
    manifest = read_manifest(published)
    assert manifest.description.startswith("MNIST handwritten digits: Sequential, ")
    assert manifest.provenance is not None
    assert manifest.provenance.recipe["architecture"] == "Sequential"


def test_every_seed_starts_from_the_weights_a_user_brings(recipe: Recipe, options: Options, data: DataSet) -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    short = changed(recipe, {"name": "mine", "epochs": 1})
    one = make(short, options, Console(quiet=True), data=data, body=body)
    two = make(short, msgspec.structs.replace(options, seeds=2), Console(quiet=True), data=data, body=body)
    assert one is not None
    assert two is not None
    assert (one / "model.onnx").read_bytes() == (two / "model.onnx").read_bytes()


def test_a_network_that_cannot_be_exported_is_named(recipe: Recipe, options: Options, data: DataSet) -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Linear(784, 10)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            if torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting():
                raise RuntimeError("not in a graph")
            scores: torch.Tensor = self.matrix(pixels.flatten(1))
            return scores

    short = changed(recipe, {"name": "mine", "epochs": 1})
    with pytest.raises(RecipeInvalid, match="The network of mine cannot be exported to ONNX"):
        make(short, options, Console(quiet=True), data=data, body=Stubborn())


def test_a_trial_on_own_data_takes_the_first_items(recipe: Recipe, options: Options, data: DataSet) -> None:
    published = make(changed(recipe, {"limit": 64, "min_accuracy": 1}), options, Console(quiet=True), data=data)
    assert published is not None
    manifest = read_manifest(published)
    assert manifest.dataset is not None
    assert manifest.dataset.train_items == 64


def test_several_seeds_are_reported_and_the_first_is_published(
    recipe: Recipe, options: Options, data: DataSet, tmp_path: Path
) -> None:
    several = Options(repository=options.repository, runs=options.runs, device="cpu", seeds=3)
    written = io.StringIO()
    short = changed(recipe, {"epochs": 1})
    published = make(short, several, Console(file=written), data=data)
    single = make(
        short, Options(repository=tmp_path / "one", runs=options.runs, device="cpu"), Console(quiet=True), data=data
    )
    assert published is not None
    assert single is not None
    seeds = read_manifest(published).provenance.seeds  # type: ignore[union-attr]  # published versions have one
    assert list(seeds) == ["0", "1", "2"]
    assert len(set(seeds.values())) > 1
    assert seeds["0"] == pytest.approx(read_manifest(published).metrics["accuracy"])
    assert (published / "model.onnx").read_bytes() == (single / "model.onnx").read_bytes()
    reached = np.array(list(seeds.values()))
    assert f"3 seeds: {reached.mean():.4f} on average, ± {reached.std(ddof=1):.4f}" in written.getvalue()


def test_linear_regression_reaches_the_closed_form_on_real_data(options: Options) -> None:
    published = make(LINEAR_REGRESSION_RECIPE, options, Console(quiet=True))
    assert published is not None
    manifest = read_manifest(published)
    assert manifest.metrics["closed_form_difference"] < 1e-3
    assert manifest.metrics["r2"] == pytest.approx(0.769, abs=0.001)
    session = onnxruntime.InferenceSession(published / "model.onnx", providers=["CPUExecutionProvider"])
    golden = read_golden(published)
    (found,) = session.run(None, {"features": golden.inputs["features"]})
    np.testing.assert_allclose(found, golden.outputs["prediction"], rtol=1e-5)


def test_a_model_that_is_not_good_enough_is_not_published(recipe: Recipe, options: Options, data: DataSet) -> None:
    with pytest.raises(VerificationFailed, match=r"asks for 99\.99%"):
        make(changed(recipe, {"epochs": 1, "min_accuracy": 0.9999}), options, Console(quiet=True), data=data)
    assert not options.repository.exists()


def test_a_clash_of_versions_is_found_before_training(recipe: Recipe, options: Options, data: DataSet) -> None:
    (options.repository / "tiny" / "3").mkdir(parents=True)
    taken = Options(repository=options.repository, runs=options.runs, version=3)
    with pytest.raises(VersionExists, match="a published version never changes"):
        make(recipe, taken, Console(quiet=True), data=data)
    assert not options.runs.exists()


def test_an_unknown_data_set_names_those_there_are(recipe: Recipe, options: Options) -> None:
    with pytest.raises(RecipeInvalid, match=r"'minst' is none of mnist, fashion_mnist, cifar10, auto_mpg"):
        make(changed(recipe, {"dataset": "minst"}), options, Console(quiet=True))


def test_a_full_disk_during_training_is_told_and_publishes_nothing(
    recipe: Recipe, options: Options, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "checkpoint.pt")

    monkeypatch.setattr(training.pipeline, "write_checkpoint", full)
    with pytest.raises(OSError, match="No space left on device"):
        make(recipe, options, Console(quiet=True), data=data)
    assert not (options.repository / "tiny" / "1").exists()


def test_resuming_a_folder_without_a_checkpoint_is_refused(recipe: Recipe, options: Options, data: DataSet) -> None:
    lost = Options(repository=options.repository, runs=options.runs, resume=options.runs / "tiny" / "gone")
    with pytest.raises(CheckpointDamaged, match=r"checkpoint\.pt cannot be read: No such file"):
        make(recipe, lost, Console(quiet=True), data=data)


def test_an_int8_version_is_published_beside_the_float_one(
    recipe: Recipe, options: Options, source: Source, known: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(recipe, options, Console(quiet=True))
    fast = Speed(reference_us=300.0, candidate_us=100.0, ratio=3.0, batch_size=16, rounds=5)
    monkeypatch.setattr(training.pipeline, "compare_speed", lambda *arguments: fast)  # four channels gain nothing
    monkeypatch.setattr(training.quantise, "MAX_ACCURACY_LOSS", 0.1)  # nor is so small a network as good in int8
    written = io.StringIO()
    published = make_quantised("tiny", None, options, Console(file=written))
    assert published == options.repository / "tiny" / "2"
    manifest = read_manifest(published)
    check_files(published, manifest)
    assert manifest.provenance is not None
    assert manifest.provenance.recipe["quantised_from"] == 1
    assert manifest.metrics["speedup"] == 3.0
    assert "int8 of version 1" in manifest.description
    session = onnxruntime.InferenceSession(published / "model.onnx", providers=["CPUExecutionProvider"])
    golden = read_golden(published)
    (logits,) = session.run(["logits"], dict(golden.inputs))
    np.testing.assert_allclose(logits, golden.outputs["logits"], atol=1e-5)
    assert "3.00 times as fast" in written.getvalue()
    assert manifest.provenance.seconds > 0

    again = make_quantised("tiny", None, options, Console(quiet=True))
    # Of the float version again, not of the int8 one.
    assert read_manifest(again).provenance.recipe["quantised_from"] == 1  # type: ignore[union-attr]  # it has one
    with pytest.raises(VersionUnknown, match="version 2 is int8 already"):
        make_quantised("tiny", 2, options, Console(quiet=True))


def test_only_what_is_there_and_intact_is_quantised(recipe: Recipe, options: Options, data: DataSet) -> None:
    with pytest.raises(VersionUnknown, match="holds no version"):
        make_quantised("tiny", None, options, Console(quiet=True))
    published = make(recipe, options, Console(quiet=True), data=data)
    assert published is not None
    with pytest.raises(VersionUnknown, match="nothing to calibrate on"):  # tiny is no data set of a recipe here
        make_quantised("tiny", None, options, Console(quiet=True))
    (published / "model.onnx").write_bytes(b"")
    with pytest.raises(VersionUnknown, match="SHA-256"):
        make_quantised("tiny", 1, options, Console(quiet=True))


def test_progress_is_seen_by_the_display_and_by_tensorboard(recipe: Recipe, options: Options, data: DataSet) -> None:
    written = io.StringIO()
    make(recipe, options, Console(file=written), data=data)
    events = EventAccumulator(str(latest_run(options.runs, "tiny")))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert len(losses) == recipe.epochs
    assert f"loss {losses[-1]:.4f}" in written.getvalue()


def test_the_bundled_models_are_served_by_make() -> None:
    assert command_to_serve(Path("models")) == "make serve"
    assert command_to_serve(Path("my models")) == "python -m service serve --repository 'my models'"
