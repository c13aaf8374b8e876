"""Rates of torch alone: the published network is what is measured."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.manifest import read_golden
from training.__main__ import main
from training.errors import VersionUnknown
from training.evaluate import torch_answers
from training.rate import newest_with_weights, published, rates

MODELS = Path(__file__).parents[2] / "models"


def test_the_network_measured_answers_the_golden_rows() -> None:
    folder = newest_with_weights(MODELS, "mnist")
    golden = read_golden(folder)
    (items,) = golden.inputs.values()
    for name, found in torch_answers(published(folder, items), items).items():
        np.testing.assert_allclose(found, golden.outputs[name], atol=1e-4, rtol=1e-5)


def test_every_batch_size_is_measured() -> None:
    folder = newest_with_weights(MODELS, "linear_regression")
    found = list(rates(folder, torch.device("cpu"), 5, 0.01))
    assert [rate.batch for rate in found] == [1, 2, 4]
    assert all(rate.items_per_s * rate.ms / 1e3 == pytest.approx(rate.batch) for rate in found)


def test_a_model_without_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(VersionUnknown, match="No version of absent"):
        newest_with_weights(tmp_path, "absent")
    assert main(["rate", "absent", "--repository", str(tmp_path), "--device", "cpu"]) != 0
    assert "No version of absent" in capsys.readouterr().err
