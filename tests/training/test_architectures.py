import copy
from typing import get_args

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from training.architectures import (
    Added,
    Classifier,
    Regressor,
    WhitenedCNN,
    build,
    folded,
    normalised,
    to_pixels,
    try_out,
    wrap,
)
from training.data import DataSet, own_data
from training.errors import RecipeInvalid
from training.export import export
from training.recipes import CIFAR10_RECIPE, MNIST_RECIPE, Architecture, Recipe, changed


class Passing(nn.Module):
    """A body that hands its input on, flat."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1)


@pytest.fixture(scope="module")
def photos() -> DataSet:
    """Coloured noise with structure: 40 images of 32 pixels, of 3 labels."""
    generator = np.random.default_rng(0)
    rough = generator.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    images = rough.repeat(4, axis=1).repeat(4, axis=2)
    labels = (np.arange(40) % 3).astype(np.uint8)
    return own_data("photos", "Photos", (images[:30], labels[:30]), (images[30:], labels[30:]), labels=("a", "b", "c"))


def small(architecture: str, data: DataSet) -> Recipe:
    return changed(
        CIFAR10_RECIPE,
        {"architecture": architecture, "dataset": data.source.name, "width": 4, "dropout": 0.1, "early_epochs": 0},
    )


def test_the_graph_normalises_what_clients_send() -> None:
    one = np.array([[[[8, 16, 25]]], [[[12, 24, 35]]]], dtype=np.uint8)  # means 10, 20, 30 and deviations 2, 4, 5
    labels = np.array([0, 1], dtype=np.uint8)
    source = own_data("pair", "A pair", (one, labels), (one, labels), labels=("x", "y", "z")).source
    assert (source.mean, source.deviation) == ((10.0, 20.0, 30.0), (2.0, 4.0, 5.0))
    model = Classifier(Passing(), source)
    logits, probabilities = model(torch.tensor([[[[12, 28, 20]]]], dtype=torch.uint8))
    assert logits.tolist() == [[1.0, 2.0, -2.0]]
    assert probabilities.sum().item() == pytest.approx(1.0)


def test_pixels_keep_rows_columns_and_channels_apart() -> None:
    image = torch.arange(2 * 3 * 4 * 3, dtype=torch.uint8).reshape(2, 3, 4, 3)
    pixels = to_pixels(image)
    assert pixels.shape == (2, 3, 3, 4)
    assert pixels[1, 2, 0, 3].item() == image[1, 0, 3, 2].item()
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_serving_and_training_share_one_path(data: DataSet) -> None:
    torch.manual_seed(0)
    model = build(MNIST_RECIPE, data).eval()
    image = torch.from_numpy(data.test_x[:3])
    with torch.inference_mode():
        assert torch.equal(model(image)[0], model.scores(to_pixels(image)))


def test_the_checkpoint_carries_the_normalisation(data: DataSet) -> None:
    state = build(MNIST_RECIPE, data).state_dict()
    assert state["mean"].item() == pytest.approx(data.source.mean[0])
    assert state["deviation"].item() == pytest.approx(data.source.deviation[0])


@pytest.mark.parametrize("architecture", get_args(Architecture))
@pytest.mark.parametrize("coloured", [True, False])
def test_every_architecture_exports_to_what_torch_gives(
    architecture: str, coloured: bool, photos: DataSet, data: DataSet
) -> None:
    chosen = photos if coloured else data
    recipe = small(architecture, chosen)
    torch.manual_seed(1)
    model = build(recipe, chosen)
    with torch.no_grad():  # running statistics and shifts that are not those of a fresh norm
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]  # it tracks them
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
                module.bias.uniform_(-0.5, 0.5)
    model.eval()
    session = onnxruntime.InferenceSession(
        export(model, recipe, chosen.source).onnx, providers=["CPUExecutionProvider"]
    )
    for size in (1, 2, 7):
        images = chosen.test_x[:size]
        with torch.inference_mode():
            expected = [output.numpy() for output in model(torch.from_numpy(images))]
        for theirs, ours in zip(expected, session.run(None, {"image": images}), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("architecture", ["linear", "mlp"])
def test_networks_of_rows_export_too(architecture: str, rows: DataSet) -> None:
    recipe = changed(small("linear", rows), {"architecture": architecture, "loss": "mse"})
    model = build(recipe, rows).eval()
    assert isinstance(model, Regressor)
    session = onnxruntime.InferenceSession(export(model, recipe, rows.source).onnx, providers=["CPUExecutionProvider"])
    for size in (1, 2, 7):
        with torch.inference_mode():
            (expected,) = model(torch.from_numpy(rows.test_x[:size]))
        (found,) = session.run(None, {"features": rows.test_x[:size]})
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_norms_behind_a_pool_are_folded_without_changing_an_answer(photos: DataSet) -> None:
    torch.manual_seed(0)
    model = build(small("whitened_cnn", photos), photos)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]  # it tracks them
                module.running_var.uniform_(0.3, 3)  # type: ignore[union-attr]
    model.eval()
    small_model = folded(copy.deepcopy(model))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 6
    assert sum(isinstance(module, nn.BatchNorm2d) for module in small_model.modules()) == 3
    image = torch.from_numpy(photos.test_x)
    with torch.inference_mode():
        torch.testing.assert_close(small_model(image)[0], model(image)[0], atol=1e-5, rtol=1e-4)


def test_the_residual_network_is_airbench96s(photos: DataSet) -> None:
    def weights(width: int) -> int:
        whitening = 24 * 12 + 24
        stages = [(24, width), (width, 4 * width), (4 * width, 4 * width)]
        convolutions = sum(9 * (before + 2 * after) * after for before, after in stages)
        norms = sum(3 * 2 * after for _, after in stages)
        return whitening + convolutions + norms + 4 * width * 3

    body = build(small("whitened_resnet", photos), photos).body
    assert sum(isinstance(module, nn.Conv2d) for module in body.modules()) == 10
    assert sum(parameter.numel() for parameter in body.parameters()) == weights(4)
    kept = Added(nn.ReLU())(torch.tensor([-1.0, 2.0]))
    assert kept.tolist() == [-1.0, 4.0]


def test_a_norm_with_a_negative_scale_is_not_folded_through_a_pool(photos: DataSet) -> None:
    model = build(small("whitened_cnn", photos), photos).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(-1)  # a maximum would become a minimum
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded(model).modules()) == 6


def test_whitened_patches_are_uncorrelated_and_of_equal_size(photos: DataSet) -> None:
    body = build(small("whitened_cnn", photos), photos).body
    assert isinstance(body, WhitenedCNN)
    assert not body.whitening.weight.requires_grad
    with torch.inference_mode():
        features = body.whitening(normalised(photos, 30)).permute(1, 0, 2, 3).flatten(1)
    half = len(features) // 2
    torch.testing.assert_close(features[:half], -features[half:])
    moments = (features[:half] @ features[:half].T / features.shape[1]).double()
    strong = moments.diagonal() > 0.9  # directions with next to no variance are damped, not blown up
    assert strong.sum() >= 6
    torch.testing.assert_close(
        moments[strong][:, strong], torch.eye(int(strong.sum()), dtype=torch.float64), atol=0.1, rtol=0
    )


def test_a_network_that_the_images_are_too_small_for_is_refused(data: DataSet) -> None:
    tiny = own_data(
        "dots", "Dots", (data.train_x[:, :6, :6], data.train_y), (data.test_x[:, :6, :6], data.test_y),
        labels=data.source.labels,
    )  # fmt: skip
    with pytest.raises(RecipeInvalid, match=r"cannot take float32 \(2, 1, 6, 6\), two items of dots"):
        build(MNIST_RECIPE, tiny)


def test_a_body_with_the_wrong_number_of_outputs_is_refused(recipe: Recipe, data: DataSet) -> None:
    with pytest.raises(RecipeInvalid, match=r"gives \(2, 784\) for two items of tiny; expected \(2, 10\)"):
        try_out(wrap(Passing(), recipe, data.source), recipe, data.source)


def test_the_networks_are_both_sequential_and_modules_of_their_own(photos: DataSet) -> None:
    bodies = {name: build(small(name, photos), photos).body for name in ("plain_cnn", "mlp", "resnet", "whitened_cnn")}
    assert type(bodies["plain_cnn"]) is type(bodies["mlp"]) is nn.Sequential
    assert not isinstance(bodies["resnet"], nn.Sequential)
    assert not isinstance(bodies["whitened_cnn"], nn.Sequential)
