import pytest
import torch

from tests.training.conftest import fitted
from training.data import DataSet
from training.device import choose_device, mixed_precision
from training.errors import DeviceUnavailable
from training.recipes import Recipe, changed

CPU = torch.device("cpu")


def test_auto_is_cuda_where_there_is_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == CPU


def test_asking_for_cuda_without_one_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceUnavailable, match="use --device auto or cpu"):
        choose_device("cuda")


def test_half_precision_on_a_cpu_is_refused(recipe: Recipe, data: DataSet) -> None:
    with pytest.raises(DeviceUnavailable, match="--precision fp16 needs a CUDA device"):
        fitted(changed(recipe, {"precision": "fp16"}), data)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_precision_of_a_cpu_learns(recipe: Recipe, data: DataSet, precision: str) -> None:
    history = fitted(changed(recipe, {"precision": precision}), data).history
    assert history[-1].loss < history[0].loss


def test_the_deterministic_switch_is_set_and_taken_back(recipe: Recipe, data: DataSet) -> None:
    fitted(changed(recipe, {"deterministic": True, "epochs": 1}), data)
    assert torch.are_deterministic_algorithms_enabled()
    fitted(changed(recipe, {"epochs": 1}), data)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("multiplies", "expected"), [(True, torch.bfloat16), (False, None)])
def test_auto_is_bf16_where_the_processor_multiplies_it(
    recipe: Recipe, data: DataSet, monkeypatch: pytest.MonkeyPatch, multiplies: bool, expected: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: multiplies)
    autocast, scaled = mixed_precision(recipe, data.source, CPU)
    with autocast():
        assert torch.is_autocast_enabled("cpu") == (expected is not None)
        assert expected in (None, torch.get_autocast_dtype("cpu"))
    assert not scaled


def test_a_number_is_predicted_in_full_precision(
    recipe: Recipe, rows: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    autocast, _ = mixed_precision(recipe, rows.source, CPU)
    with autocast():
        assert not torch.is_autocast_enabled("cpu")
