import dataclasses
from collections.abc import Callable

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest

from training.data import DataSet
from training.errors import VerificationFailed
from training.evaluate import Score
from training.export import INPUT, Exported
from training.loop import Trained
from training.recipes import Recipe
from training.verify import GOLDEN_ROWS, Verified, verify


def rewritten(exported: Exported, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Exported:
    """The graph with one initializer changed."""
    model = onnx.load_from_string(exported.onnx)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(onnx.numpy_helper.to_array(tensor).copy()), name))
    return Exported(model.SerializeToString())


def test_what_was_seen_is_reported(verified: Verified, score: Score) -> None:
    seen = verified.verification
    assert seen.batch_sizes == (1, 2, 7, 64)
    assert 0 <= seen.max_abs_difference < 1e-4
    assert (seen.test_items, seen.disagreements) == (200, 0)
    assert seen.metrics["accuracy"] == score.metrics["accuracy"]


def test_golden_rows_are_the_graphs_own_answers_and_cover_every_label(verified: Verified, data: DataSet) -> None:
    images = verified.golden.inputs["image"]
    assert images.shape == (GOLDEN_ROWS, 28, 28, 1)
    session = onnxruntime.InferenceSession(verified.onnx, providers=["CPUExecutionProvider"])
    for name, expected in verified.golden.outputs.items():
        np.testing.assert_array_equal(session.run([name], {INPUT: images})[0], expected)
    labels = {int(data.test_y[(data.test_x == image).all(axis=(1, 2, 3)).argmax()]) for image in images}
    assert labels == set(range(10))


@pytest.mark.parametrize("name", ["body.0.weight", "body.17.weight", "body.22.bias", "mean"])
def test_a_graph_with_other_weights_is_refused(
    exported: Exported, trained: Trained, score: Score, data: DataSet, recipe: Recipe, name: str
) -> None:
    other = rewritten(exported, name, lambda values: values + np.float32(0.01) * (1 + np.abs(values)))
    with pytest.raises(VerificationFailed, match=r"not the trained model: .* differ by .* at batch size"):
        verify(other, trained.model, score, data, recipe)


def test_a_graph_that_answers_nan_is_refused(
    exported: Exported, trained: Trained, score: Score, data: DataSet, recipe: Recipe
) -> None:
    other = rewritten(exported, "body.22.bias", lambda values: values * np.float32("nan"))
    with pytest.raises(VerificationFailed, match="differ by nan"):
        verify(other, trained.model, score, data, recipe)


def test_disagreeing_with_torch_on_the_test_set_is_refused(
    exported: Exported, trained: Trained, score: Score, data: DataSet, recipe: Recipe
) -> None:
    predictions = score.predictions.copy()
    predictions[:3] = (predictions[:3] + 1) % 10
    with pytest.raises(VerificationFailed, match="disagree on 3 of 200"):
        verify(exported, trained.model, msgspec.structs.replace(score, predictions=predictions), data, recipe)


def test_too_little_accuracy_is_refused_and_says_what_to_do(
    exported: Exported, trained: Trained, score: Score, data: DataSet, recipe: Recipe
) -> None:
    strict = msgspec.structs.replace(recipe, min_accuracy=0.9999)
    with pytest.raises(
        VerificationFailed, match=r"asks for 99\.99%\. Nothing was published\. Train longer \(--epochs\)"
    ):
        verify(exported, trained.model, score, data, strict)


def test_accuracy_is_that_of_the_file_and_not_of_the_score(
    exported: Exported, trained: Trained, score: Score, data: DataSet, recipe: Recipe
) -> None:
    boast = msgspec.structs.replace(score, metrics={"accuracy": 1.0})
    seen = verify(exported, trained.model, boast, data, recipe).verification
    assert seen.metrics["accuracy"] < 1.0


def test_nobody_else_makes_a_verified(verified: Verified) -> None:
    parts = (verified.onnx, verified.verification, verified.golden)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'key'"):
        Verified(*parts)  # type: ignore[call-arg]  # what is tested
    for guess in (None, True, object()):
        with pytest.raises(TypeError, match=r"made by training\.verify\.verify\(\)"):
            Verified(*parts, key=guess)  # type: ignore[arg-type]  # what is tested


def test_a_verified_cannot_be_altered_or_copied_with_another_graph(verified: Verified) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        verified.onnx = b""  # type: ignore[misc]  # what is tested
    with pytest.raises(ValueError, match="key"):
        dataclasses.replace(verified, onnx=b"")  # type: ignore[call-arg]  # what is tested
