import numpy as np
import pytest
import torch

from training.data import DataSet
from training.evaluate import Score, metrics_of, predicted, torch_answers
from training.loop import Trained


def test_rows_stay_in_order_across_batches(trained: Trained, data: DataSet) -> None:
    images = np.tile(data.test_x, (4, 1, 1, 1))[:777]  # one full batch of 500 and a part
    with torch.inference_mode():
        expected = torch.cat([trained.model(torch.from_numpy(image[None]))[0] for image in images[:3]]).numpy()
    found = torch_answers(trained.model, images)["logits"]
    assert found.shape == (777, 10)
    np.testing.assert_allclose(found[:3], expected, atol=1e-5)
    np.testing.assert_allclose(found[600:603], expected, atol=1e-5)  # 600 is image 0 again


def test_the_score_is_of_the_test_set(score: Score, data: DataSet) -> None:
    assert list(score.answers) == ["logits", "probabilities"]
    assert score.metrics["accuracy"] == (predicted(score.answers, data.source) == data.test_y).mean()
    assert score.metrics["accuracy"] > 0.15  # chance is 0.1


def test_numbers_are_scored_as_numbers(rows: DataSet) -> None:
    answers = {"prediction": rows.test_y[:, None] + np.float32(2)}
    metrics = metrics_of(answers, rows.source, rows.test_y)
    assert metrics["mae"] == pytest.approx(2, rel=1e-6)
    assert metrics["mse"] == pytest.approx(4, rel=1e-6)
    assert predicted(answers, rows.source).tolist() == (rows.test_y + np.float32(2)).tolist()
