"""Random changes to training images: each image its own, a batch at a time, on whatever device the batch is on.

torchvision's random transforms draw once per call, so a batch would get one and the same shift. These draw once per
image; `augmentation` puts them in line with torchvision's own in a `transforms.v2.Compose`. All of them take and give
float32 [n, c, h, w] in 0..255 and draw from torch's global generators, which the loop seeds for every step.
Checked by tests/training/test_augment.py.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from training.data import Source
from training.errors import RecipeInvalid
from training.recipes import Recipe
from training.vision import import_torchvision


def augmentation(recipe: Recipe, source: Source, epoch: int) -> Callable[[Tensor], Tensor]:
    """What `recipe` does to images in `epoch`, counted from 0. Raises RecipeInvalid for rows of a table."""
    steps: list[nn.Module] = []
    if recipe.flip == "random":
        steps.append(Flip())
    if recipe.shift:
        steps.append(Shift(recipe.shift))
    if recipe.rotate or recipe.translate or recipe.scale or recipe.shear:
        steps.append(Affine(recipe.rotate, recipe.translate, recipe.scale, recipe.shear))
    if recipe.erase:
        steps.append(Erase(recipe.erase, source.mean))
    if recipe.early_side and epoch < recipe.early_epochs:
        steps.append(import_torchvision().transforms.v2.Resize(recipe.early_side, antialias=True))
    if len(source.shape) != 3 and (steps or recipe.flip != "none"):  # the loop does alternating flips
        raise RecipeInvalid(f"{source.name} has rows, and flip, shift, rotate, erase and the like are for images.")
    if recipe.shift and recipe.shift >= min(source.shape[:2]):
        raise RecipeInvalid(f"--shift {recipe.shift}: expected less than the side of {source.name}'s images.")
    if not steps:
        return nn.Identity()
    composed: Callable[[Tensor], Tensor] = import_torchvision().transforms.v2.Compose(steps)
    return composed


class Flip(nn.Module):
    """Left and right change places, in every second image."""

    def forward(self, pixels: Tensor) -> Tensor:
        return mirror(pixels, torch.rand(len(pixels), device=pixels.device) < 0.5)


def mirror(pixels: Tensor, chosen: Tensor) -> Tensor:
    """`chosen` bool [n]: those images with left and right changed."""
    return torch.where(chosen[:, None, None, None], pixels.flip(3), pixels)


class AlternatingFlip:
    """Each item is seen one way in even epochs and mirrored in odd ones, which way first is drawn once per item
    (arXiv 2404.00498 §3.6): in two epochs every image is seen both ways, where a coin would repeat half of them."""

    def __init__(self, items: int, seed: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.first = (torch.rand(items, generator=generator) < 0.5).to(device)

    def __call__(self, pixels: Tensor, items: Tensor, epoch: int) -> Tensor:
        """items   int64 [n], which of the training items these are"""
        return mirror(pixels, self.first[items] ^ bool(epoch % 2))


class Shift(nn.Module):
    """By whole pixels, up to `farthest` either way; what comes in at a border is the picture mirrored there."""

    def __init__(self, farthest: int) -> None:
        super().__init__()
        self.farthest = farthest

    def forward(self, pixels: Tensor) -> Tensor:
        n, _, height, width = pixels.shape
        rows = self.moved(n, height, pixels.device)[:, :, None]
        columns = self.moved(n, width, pixels.device)[:, None, :]
        of_item = torch.arange(n, device=pixels.device)[:, None, None]
        # Indexed with channels last, which is how the memory lies: a pixel is one piece.
        return pixels.permute(0, 2, 3, 1)[of_item, rows, columns].permute(0, 3, 1, 2)

    def moved(self, n: int, length: int, device: torch.device) -> Tensor:
        by = torch.randint(-self.farthest, self.farthest + 1, (n, 1), device=device)
        place = (torch.arange(length, device=device) + by).abs()
        return (length - 1) - ((length - 1) - place).abs()


class Affine(nn.Module):
    """A random affine map; what comes from outside is 0, the background.

    rotate, shear       degrees, largest either way
    translate, scale    fractions, largest either way
    """

    def __init__(self, rotate: float, translate: float, scale: float, shear: float) -> None:
        super().__init__()
        self.rotate, self.translate, self.scale, self.shear = rotate, translate, scale, shear

    def forward(self, pixels: Tensor) -> Tensor:
        def spread(limit: float) -> Tensor:
            return (torch.rand(len(pixels), device=pixels.device) * 2 - 1) * limit

        angle, shear = spread(math.radians(self.rotate)), spread(math.radians(self.shear))
        scale = 1 + spread(self.scale)
        # Coordinates run from -1 to 1, so a fraction of the side is twice that.
        shift_x, shift_y = spread(2 * self.translate), spread(2 * self.translate)
        cos, sin = angle.cos() / scale, angle.sin() / scale
        aspect = pixels.shape[2] / pixels.shape[3]  # of a side that is 2 long in both directions
        rows = torch.stack(
            [
                torch.stack([cos, (cos * shear.tan() - sin) * aspect, shift_x], dim=1),
                torch.stack([sin / aspect, sin * shear.tan() + cos, shift_y], dim=1),
            ],
            dim=1,
        )
        grid = nn.functional.affine_grid(rows, list(pixels.shape), align_corners=False)
        return nn.functional.grid_sample(pixels, grid, align_corners=False)


class Erase(nn.Module):
    """A square of `side` pixels set to the data set's mean (Cutout, arXiv 1708.04552); its centre lies anywhere."""

    def __init__(self, side: int, mean: tuple[float, ...]) -> None:
        super().__init__()
        self.side = side
        self.fill = torch.tensor(mean).view(1, -1, 1, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        n, _, height, width = pixels.shape
        inside = self.covered(n, height, pixels.device)[:, :, None] & self.covered(n, width, pixels.device)[:, None, :]
        if self.fill.device != pixels.device:  # once: a copy makes the device wait
            self.fill = self.fill.to(pixels.device)
        return torch.where(inside[:, None], self.fill, pixels)

    def covered(self, n: int, length: int, device: torch.device) -> Tensor:
        start = torch.randint(length, (n, 1), device=device) - self.side // 2
        place = torch.arange(length, device=device)
        return (place >= start) & (place < start + self.side)
