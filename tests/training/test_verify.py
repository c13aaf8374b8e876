import dataclasses
from collections.abc import Callable

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest

from tests.training.conftest import fitted
from training.data import DataSet
from training.errors import VerificationFailed
from training.evaluate import Score, evaluate
from training.export import Exported, export
from training.loop import Trained
from training.quantise import Speed
from training.recipes import Recipe, changed
from training.verify import GOLDEN_ROWS, Verified, verify, verify_quantised


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
        np.testing.assert_array_equal(session.run([name], {"image": images})[0], expected)
    labels = {int(data.test_y[(data.test_x == image).all(axis=(1, 2, 3)).argmax()]) for image in images}
    assert labels == set(range(10))


@pytest.mark.parametrize("name", ["body.0.weight", "body.17.weight", "body.23.bias", "mean"])
def test_a_graph_with_other_weights_is_refused(
    exported: Exported, trained: Trained, score: Score, data: DataSet, recipe: Recipe, name: str
) -> None:
    other = rewritten(exported, name, lambda values: values + np.float32(0.01) * (1 + np.abs(values)))
    with pytest.raises(VerificationFailed, match=r"not the trained model: .* differ by .* at batch size"):
        verify(other, trained.model, score, data, recipe)


def test_a_graph_that_answers_nan_is_refused(
    exported: Exported, trained: Trained, score: Score, data: DataSet, recipe: Recipe
) -> None:
    other = rewritten(exported, "body.23.bias", lambda values: values * np.float32("nan"))
    with pytest.raises(VerificationFailed, match="differ by nan"):
        verify(other, trained.model, score, data, recipe)


def test_disagreeing_with_torch_on_the_test_set_is_refused(
    exported: Exported, trained: Trained, score: Score, data: DataSet, recipe: Recipe
) -> None:
    logits = score.answers["logits"].copy()
    logits[:3] = np.roll(logits[:3], 1, axis=1)
    with pytest.raises(VerificationFailed, match="disagree on 3 of 200"):
        verify(
            exported,
            trained.model,
            msgspec.structs.replace(score, answers=score.answers | {"logits": logits}),
            data,
            recipe,
        )


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
    parts = (verified.onnx, verified.verification, verified.golden, {}, (), verified.tolerance)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'key'"):
        Verified(*parts)  # type: ignore[call-arg]  # what is tested
    for guess in (None, True, object()):
        with pytest.raises(TypeError, match=r"made by training\.verify alone"):
            Verified(*parts, key=guess)  # type: ignore[arg-type]  # what is tested


def test_a_verified_cannot_be_altered_or_copied_with_another_graph(verified: Verified) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        verified.onnx = b""  # type: ignore[misc]  # what is tested
    with pytest.raises(ValueError, match="key"):
        dataclasses.replace(verified, onnx=b"")  # type: ignore[call-arg]  # what is tested


def test_numbers_are_compared_scored_and_checked_against_the_closed_form(recipe: Recipe, rows: DataSet) -> None:
    plane = changed(
        recipe,
        {"architecture": "linear", "loss": "mse", "optimizer": "sgd", "lr": 0.1, "precision": "fp32", "epochs": 400}
        | {"lr_scheduler": "constant", "warm_up": 0, "batch_size": 90, "weight_decay": 0, "min_r2": 0.99}
        | dict.fromkeys(("rotate", "translate", "scale", "shear"), 0),
    )
    trained = fitted(plane, rows)
    exported = export(trained.model, plane, rows.source)
    score = evaluate(trained.model, rows)
    verified = verify(exported, trained.model, score, rows, plane)
    metrics = verified.verification.metrics
    assert metrics["r2"] > 0.999
    assert metrics["closed_form_difference"] < 1e-3
    assert [one.feature for one in verified.coefficients] == ["a", "b", "intercept"]
    assert verified.golden.outputs["prediction"].shape == (GOLDEN_ROWS, 1)

    hasty = fitted(changed(plane, {"epochs": 20}), rows)
    with pytest.raises(VerificationFailed, match="not reached the least-squares solution"):
        verify(export(hasty.model, plane, rows.source), hasty.model, evaluate(hasty.model, rows), rows, plane)
    with pytest.raises(VerificationFailed, match=r"\(R²\), and the recipe tiny asks for 100\.00%"):
        verify(exported, trained.model, score, rows, changed(plane, {"min_r2": 1.0}))


def test_an_int8_graph_is_scored_beside_the_float_one(verified: Verified, data: DataSet) -> None:
    fast = Speed(reference_us=300.0, candidate_us=100.0, ratio=3.0, batch_size=16, rounds=5)
    found = verify_quantised(verified.onnx, verified.onnx, data, fast)
    assert found.verification.metrics["float_accuracy"] == found.verification.metrics["accuracy"]
    assert found.verification.metrics["speedup"] == 3.0
    assert (found.verification.disagreements, found.verification.max_abs_difference) == (0, 0.0)
    assert found.tolerance.absolute > verified.tolerance.absolute
    with pytest.raises(VerificationFailed, match="times as fast"):
        verify_quantised(verified.onnx, verified.onnx, data, msgspec.structs.replace(fast, ratio=1.1))
