import math

import numpy as np
import pytest
import torch

from training.data import DataSet
from training.evaluate import Score, metrics_of, torch_logits
from training.loop import Trained


def test_metrics_of_known_logits() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25], [0.1, 0.1, 0.8]], np.float32))
    metrics = metrics_of(logits, np.array([0, 2, 2], np.uint8))
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["cross_entropy"] == pytest.approx(-(math.log(0.7) + math.log(0.25) + math.log(0.8)) / 3, abs=1e-6)


def test_huge_logits_do_not_overflow() -> None:
    metrics = metrics_of(np.array([[1e4, 0.0]], np.float32), np.array([1], np.uint8))
    assert metrics == {"accuracy": 0.0, "cross_entropy": 1e4}


def test_rows_stay_in_order_across_batches(trained: Trained, data: DataSet) -> None:
    images = np.tile(data.test_x, (4, 1, 1, 1))[:777]  # one full batch of 500 and a part
    with torch.inference_mode():
        expected = torch.cat([trained.model(torch.from_numpy(image[None]))[0] for image in images[:3]]).numpy()
    found = torch_logits(trained.model, images)
    assert found.shape == (777, 10)
    np.testing.assert_allclose(found[:3], expected, atol=1e-5)
    np.testing.assert_allclose(found[600:603], expected, atol=1e-5)  # 600 is image 0 again


def test_the_score_is_of_the_test_set(score: Score, data: DataSet) -> None:
    assert score.metrics["accuracy"] == (score.predictions == data.test_y).mean()
    assert score.metrics["accuracy"] > 0.2  # chance is 0.1
