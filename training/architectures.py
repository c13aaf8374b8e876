"""Networks. Each takes uint8 images as they are uploaded; what turns them into floats is part of the graph.

`Classifier` is what is trained, exported and checkpointed. `forward` is the served path, `logits` the training path;
they share everything after the cast, so training and serving cannot disagree about preprocessing.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from training.recipes import Recipe


class Classifier(nn.Module):
    """`body` behind the normalisation of its data set.

    body   float32 [n, channels, height, width], zero mean and unit deviation → float32 [n, labels]
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, body: nn.Module, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [n, height, width, channels] → logits and probabilities, both float32 [n, labels]."""
        logits = self.logits(to_pixels(image))
        return logits, logits.softmax(dim=1)

    def logits(self, pixels: Tensor) -> Tensor:
        """float32 [n, channels, height, width] in 0..255 → float32 [n, labels]."""
        scores: Tensor = self.body((pixels - self.mean) / self.deviation)
        return scores


def to_pixels(image: Tensor) -> Tensor:
    """uint8 [n, h, w, c] → float32 [n, c, h, w] in 0..255; a view of channels-last memory, not a copy."""
    return image.permute(0, 3, 1, 2).to(torch.float32)


def build(recipe: Recipe) -> Classifier:
    """Untrained, its weights drawn from torch's global generator."""
    source = recipe.source
    body = _BODIES[recipe.architecture](source.shape[2], len(source.labels), recipe.width)
    return Classifier(body, source.mean, source.deviation)


def plain_cnn(channels: int, labels: int, width: int) -> nn.Module:
    """Six 3x3 convolutions in three stages, for images of about 28 pixels; width doubles where the side halves.

    The first stage does not pad: borders are background in the data sets this is for, and 24x24 costs a quarter less
    than 28x28. Every BatchNorm directly follows its convolution, and pooling the ReLU: the export folds the former
    into the weights and onnxruntime fuses the latter, so the served graph is convolutions, pools and one matrix.
    """
    return nn.Sequential(
        *_convolution(channels, width, padding=0),
        *_convolution(width, width, padding=0),
        nn.MaxPool2d(2),
        *_convolution(width, 2 * width),
        *_convolution(2 * width, 2 * width),
        nn.MaxPool2d(2),
        *_convolution(2 * width, 4 * width),
        *_convolution(4 * width, 4 * width),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, labels),
    )


def _convolution(channels_in: int, channels_out: int, padding: int = 1) -> tuple[nn.Module, ...]:
    # No bias: BatchNorm's shift would undo it.
    convolution = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=padding, bias=False)
    return convolution, nn.BatchNorm2d(channels_out), nn.ReLU()


_BODIES: Mapping[str, Callable[[int, int, int], nn.Module]] = {"plain_cnn": plain_cnn}
