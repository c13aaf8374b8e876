"""Networks, and what wraps them so that training and serving cannot disagree about preprocessing.

    served   raw item ──► floats ──► normalised ──► body ──► answers      `forward`, exported
    trained               floats ──► normalised ──► body ──► loss         `scores`

A body is any module from normalised float32 to one number per label (or one number); `_BODIES` holds those that a
recipe can name, written as `nn.Sequential` where the data flows in a line and as `nn.Module` where it does not.
Checked by tests/training/test_architectures.py.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from training.data import DataSet, Source
from training.errors import RecipeInvalid
from training.recipes import Architecture, Recipe


class Served(nn.Module):
    """`body` behind the normalisation of its data set.

    body   float32 [n, channels, height, width] or [n, features], zero mean and unit deviation → float32 [n, numbers]
    """

    mean: Tensor
    deviation: Tensor
    input: str
    outputs: tuple[str, ...]

    def __init__(self, body: nn.Module, source: Source) -> None:
        super().__init__()
        self.body = body
        shape = (1, -1, 1, 1) if len(source.shape) == 3 else (1, -1)
        self.register_buffer("mean", torch.tensor(source.mean).view(shape))
        self.register_buffer("deviation", torch.tensor(source.deviation).view(shape))

    def scores(self, items: Tensor) -> Tensor:
        """float32 [n, channels, height, width] in 0..255, or [n, features] → what the body says, float32."""
        found: Tensor = self.body((items - self.mean) / self.deviation)
        return found


class Classifier(Served):
    """`independent` labels have a sigmoid each (trained with bce); otherwise the probabilities sum to 1."""

    input = "image"
    outputs = ("logits", "probabilities")

    def __init__(self, body: nn.Module, source: Source, independent: bool = False) -> None:
        super().__init__(body, source)
        self.independent = independent

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [n, height, width, channels] → logits and probabilities, both float32 [n, labels]."""
        logits = self.scores(to_pixels(image))
        return logits, logits.sigmoid() if self.independent else logits.softmax(dim=1)


class Regressor(Served):
    input = "features"
    outputs = ("prediction",)

    def forward(self, features: Tensor) -> tuple[Tensor]:
        """float32 [n, features] in their own units → the number, float32 [n, 1]."""
        return (self.scores(features),)


def to_pixels(image: Tensor) -> Tensor:
    """uint8 [n, h, w, c] → float32 [n, c, h, w] in 0..255; a view of channels-last memory, not a copy."""
    return image.permute(0, 3, 1, 2).to(torch.float32)


def build(recipe: Recipe, data: DataSet) -> Served:
    """Untrained, its weights drawn from torch's global generator; a whitening layer also looks at the images.

    Raises   RecipeInvalid where the network does not fit the data
    """
    if len(data.source.shape) != 3 and recipe.architecture not in ("linear", "mlp"):
        raise RecipeInvalid(
            f"architecture {recipe.architecture} needs images, {data.source.name} has rows: linear or mlp."
        )
    body = _BODIES[recipe.architecture](data.source, recipe)
    if isinstance(body, WhitenedCNN):
        body.whiten(normalised(data, WHITENING_ITEMS))
    return try_out(wrap(body, recipe, data.source), recipe, data.source)


def wrap(body: nn.Module, recipe: Recipe, source: Source) -> Served:
    if source.labels:
        return Classifier(body, source, independent=recipe.loss == "bce")
    return Regressor(body, source)


def try_out(model: Served, recipe: Recipe, source: Source) -> Served:
    """`model`, after it took two items of every size it will meet. Raises RecipeInvalid where it cannot."""
    numbers = len(source.labels) or 1
    shapes = [(2, *source.shape)]
    if len(source.shape) == 3:
        sides = {(source.shape[0], source.shape[1])}
        if recipe.early_side and recipe.early_epochs:
            shorter = min(source.shape[:2])  # which becomes early_side, and the other keeps the ratio
            sides.add((recipe.early_side * source.shape[0] // shorter, recipe.early_side * source.shape[1] // shorter))
        shapes = [(2, source.shape[2], *side) for side in sorted(sides)]
    was_training = model.training
    model.eval()
    for shape in shapes:
        try:
            with torch.inference_mode():
                scores: object = model.scores(torch.zeros(shape))
        except (RuntimeError, ValueError, IndexError) as error:
            what = f"float32 {shape}, two items of {source.name}"
            raise RecipeInvalid(f"The network cannot take {what}: {error}") from error
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        if found != (2, numbers):
            raise RecipeInvalid(f"The network gives {found} for two items of {source.name}; expected (2, {numbers}).")
    return model.train(was_training)


def normalised(data: DataSet, items: int) -> Tensor:
    """The first training images as a body sees them: float32 [n, c, h, w]."""
    pixels = to_pixels(torch.from_numpy(data.train_x[:items]))
    mean, deviation = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.source.mean, data.source.deviation))
    return (pixels - mean) / deviation


def linear(source: Source, recipe: Recipe) -> nn.Module:
    """One matrix; of a row of features this is linear regression."""
    return nn.Sequential(nn.Flatten(), nn.Linear(_numbers_in(source), _numbers_out(source)))


def mlp(source: Source, recipe: Recipe) -> nn.Module:
    """Two hidden layers of `width` units."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(_numbers_in(source), recipe.width),
        nn.ReLU(),
        nn.Linear(recipe.width, recipe.width),
        nn.ReLU(),
        nn.Dropout(recipe.dropout),
        nn.Linear(recipe.width, _numbers_out(source)),
    )


def lenet(source: Source, recipe: Recipe) -> nn.Module:
    """LeNet-5's layout (LeCun 1998) with ReLU and max-pooling; `width` channels, then 2.5 times as many."""
    second = 5 * recipe.width // 2
    return nn.Sequential(
        nn.Conv2d(source.shape[2], recipe.width, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(recipe.width, second, kernel_size=5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(5),
        nn.Flatten(),
        nn.Linear(25 * second, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Dropout(recipe.dropout),
        nn.Linear(84, len(source.labels)),
    )


def plain_cnn(source: Source, recipe: Recipe) -> nn.Module:
    """Six 3x3 convolutions in three stages, for images of about 28 pixels; width doubles where the side halves.

    The first stage does not pad: borders are background in the data sets this is for, and 24x24 costs a quarter less
    than 28x28. Every BatchNorm directly follows its convolution, and pooling the ReLU: the export folds the former
    into the weights and onnxruntime fuses the latter, so the served graph is convolutions, pools and one matrix.
    """
    width = recipe.width
    return nn.Sequential(
        *_convolution(source.shape[2], width, padding=0),
        *_convolution(width, width, padding=0),
        nn.MaxPool2d(2),
        *_convolution(width, 2 * width),
        *_convolution(2 * width, 2 * width),
        nn.MaxPool2d(2),
        *_convolution(2 * width, 4 * width),
        *_convolution(4 * width, 4 * width),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Dropout(recipe.dropout),
        nn.Linear(4 * width, len(source.labels)),
    )


WHITENING_ITEMS = 5000  # arXiv 2404.00498 §3.2: statistics of the first 5,000 images are enough


class WhitenedCNN(nn.Module):
    """airbench94's network (arXiv 2404.00498): fixed 2x2 patch whitening, then three stages that pool before they
    normalise. Convolutions start as the identity where they can, norms have a bias and no scale.

    residual   airbench96's: a third convolution in each stage, and the stage's pooled features added behind it
    """

    def __init__(
        self, channels: int, width: int, labels: int, logit_scale: float, dropout: float, residual: bool
    ) -> None:
        super().__init__()
        whitened = 8 * channels  # the 4 * channels eigenvectors and their opposites
        self.whitening = nn.Conv2d(channels, whitened, kernel_size=2)
        self.whitening.weight.requires_grad_(False)
        self.activation = nn.GELU()
        self.stages = nn.Sequential(
            *_pooled_stage(whitened, width, residual),
            *_pooled_stage(width, 4 * width, residual),
            *_pooled_stage(4 * width, 4 * width, residual),
        )
        self.head = nn.Sequential(
            nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * width, labels, bias=False)
        )
        self.logit_scale = logit_scale

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.head(self.stages(self.activation(self.whitening(pixels))))
        return scores * self.logit_scale

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Make the first layer turn 2x2 patches of `images`, float32 [n, c, h, w], into uncorrelated numbers."""
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 4 * images.shape[1])
        variance, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (variance + 5e-4).sqrt()).T.flip(0).reshape(-1, images.shape[1], 2, 2)
        self.whitening.weight.copy_(torch.cat([filters, -filters]))
        self.whitening.bias.zero_()  # type: ignore[union-attr]  # Conv2d has one unless told otherwise


def whitened_cnn(source: Source, recipe: Recipe, residual: bool) -> nn.Module:
    return WhitenedCNN(
        source.shape[2], recipe.width, len(source.labels), recipe.logit_scale, recipe.dropout, residual=residual
    )


class ResNet(nn.Module):
    """A residual network for small images: a stem and three stages of two basic blocks (arXiv 1512.03385), the width
    doubling where the side halves."""

    def __init__(self, channels: int, width: int, labels: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(channels, width))
        self.blocks = nn.Sequential(
            ResidualBlock(width, width, stride=1),
            ResidualBlock(width, width, stride=1),
            ResidualBlock(width, 2 * width, stride=2),
            ResidualBlock(2 * width, 2 * width, stride=1),
            ResidualBlock(2 * width, 4 * width, stride=2),
            ResidualBlock(4 * width, 4 * width, stride=1),
        )
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * width, labels)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.head(self.blocks(self.stem(pixels)))
        return scores


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around which the input goes unchanged, or through a 1x1 one where the shape differs."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_convolution(channels_in, channels_out, stride=stride),
            nn.Conv2d(channels_out, channels_out, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )
        self.activation = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.activation(self.shortcut(features) + self.residual(features))
        return found


def _convolution(channels_in: int, channels_out: int, padding: int = 1, stride: int = 1) -> tuple[nn.Module, ...]:
    # No bias: BatchNorm's shift would undo it.
    convolution = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=padding, stride=stride, bias=False)
    return convolution, nn.BatchNorm2d(channels_out), nn.ReLU()


def _pooled_stage(channels_in: int, channels_out: int, residual: bool) -> tuple[nn.Module, ...]:
    pooled = (
        _identity_convolution(channels_in, channels_out),
        nn.MaxPool2d(2),
        _bias_norm(channels_out),
        nn.GELU(),
    )
    second = (_identity_convolution(channels_out, channels_out), _bias_norm(channels_out))
    if not residual:
        return *pooled, *second, nn.GELU()
    third = (_identity_convolution(channels_out, channels_out), _bias_norm(channels_out))
    return *pooled, Added(nn.Sequential(*second, nn.GELU(), *third)), nn.GELU()


class Added(nn.Module):
    """What goes in and what `residual` makes of it, together."""

    def __init__(self, residual: nn.Module) -> None:
        super().__init__()
        self.residual = residual

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = features + self.residual(features)
        return found


def _identity_convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight.data[:channels_in])
    return convolution


def _bias_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, momentum=0.4)  # airbench's 0.6 counts the other way round
    norm.weight.requires_grad_(False)
    return norm


def _numbers_in(source: Source) -> int:
    count = 1
    for length in source.shape:
        count *= length
    return count


def _numbers_out(source: Source) -> int:
    return len(source.labels) or 1


_BODIES: Mapping[Architecture, Callable[[Source, Recipe], nn.Module]] = {
    "linear": linear,
    "mlp": mlp,
    "lenet": lenet,
    "plain_cnn": plain_cnn,
    "whitened_cnn": lambda source, recipe: whitened_cnn(source, recipe, residual=False),
    "whitened_resnet": lambda source, recipe: whitened_cnn(source, recipe, residual=True),
    "resnet": lambda source, recipe: ResNet(source.shape[2], recipe.width, len(source.labels), recipe.dropout),
}


@torch.no_grad()
def folded(model: Served) -> Served:
    """`model`, in evaluation mode, with the norms that follow a pooled convolution folded into it, in place.

    The exporter folds BatchNorm into the convolution right before it. Between the two lies a max-pool here, which
    commutes with a norm whose scales are positive, as these are.
    """
    for parts in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        for at in range(len(parts) - 2):
            convolution, pool, norm = parts[at], parts[at + 1], parts[at + 2]
            if not (
                isinstance(convolution, nn.Conv2d)
                and isinstance(pool, nn.MaxPool2d)
                and isinstance(norm, nn.BatchNorm2d)
                and norm.affine
                and norm.track_running_stats
                and bool((norm.weight > 0).all())
            ):
                continue
            parts[at] = fuse_conv_bn_eval(convolution, norm)
            parts[at + 2] = nn.Identity()
    return model
