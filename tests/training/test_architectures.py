import pytest
import torch
from torch import nn

from training.architectures import Classifier, build, to_pixels
from training.recipes import MNIST_RECIPE


class Passing(nn.Module):
    """A body that hands its input on, flat."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1)


def test_the_graph_normalises_what_clients_send() -> None:
    model = Classifier(Passing(), mean=(10.0, 20.0, 30.0), deviation=(2.0, 4.0, 5.0))
    image = torch.tensor([[[[12, 28, 20]]]], dtype=torch.uint8)
    logits, probabilities = model(image)
    assert logits.tolist() == [[1.0, 2.0, -2.0]]
    assert probabilities.sum().item() == pytest.approx(1.0)


def test_pixels_keep_rows_columns_and_channels_apart() -> None:
    image = torch.arange(2 * 3 * 4 * 3, dtype=torch.uint8).reshape(2, 3, 4, 3)
    pixels = to_pixels(image)
    assert pixels.shape == (2, 3, 3, 4)
    assert pixels[1, 2, 0, 3].item() == image[1, 0, 3, 2].item()
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_serving_and_training_share_one_path() -> None:
    torch.manual_seed(0)
    model = build(MNIST_RECIPE).eval()
    image = torch.randint(0, 256, (3, 28, 28, 1), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(model(image)[0], model.logits(to_pixels(image)))


def test_the_checkpoint_carries_the_normalisation() -> None:
    state = build(MNIST_RECIPE).state_dict()
    assert state["mean"].item() == pytest.approx(MNIST_RECIPE.source.mean[0])
    assert state["deviation"].item() == pytest.approx(MNIST_RECIPE.source.deviation[0])
