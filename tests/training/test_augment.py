import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.augment import Affine, AlternatingFlip, Erase, Flip, Shift, augmentation
from training.data import MNIST, DataSet, Source
from training.errors import RecipeInvalid
from training.recipes import Recipe
from training.vision import import_torchvision

CPU = torch.device("cpu")
PLAIN = Recipe(name="plain", dataset="mnist", architecture="linear", epochs=4, batch_size=1, lr=0.1)
WIDE = msgspec.structs.replace(MNIST, name="wide", shape=(12, 20, 3), mean=(1.0, 2.0, 3.0), deviation=(1.0, 1.0, 1.0))

STEPS = {
    "flip": Flip(),
    "shift": Shift(3),
    "affine": Affine(rotate=10.0, translate=0.1, scale=0.1, shear=8.0),
    "erase": Erase(4, (1.0, 2.0, 3.0)),
}


def plain(**fields: object) -> Recipe:
    return msgspec.structs.replace(PLAIN, **fields)


def places(n: int, channels: int, height: int, width: int) -> Tensor:
    """float32 [n, c, h, w], all images alike; each pixel says where it is, 10,000 c + 100 y + x."""
    c, y, x = torch.meshgrid(torch.arange(channels), torch.arange(height), torch.arange(width), indexing="ij")
    return (10_000.0 * c + 100.0 * y + x).expand(n, channels, height, width)


@pytest.mark.parametrize("name", STEPS)
def test_shape_and_type_stay_and_the_images_given_are_left_alone(name: str) -> None:
    pixels = places(16, 3, 12, 20).clone()
    changed = STEPS[name](pixels)
    assert changed.shape == (16, 3, 12, 20)
    assert changed.dtype == torch.float32
    assert torch.equal(pixels, places(16, 3, 12, 20))


@pytest.mark.parametrize("name", STEPS)
def test_every_image_has_its_own_draw(name: str) -> None:
    torch.manual_seed(0)
    changed = STEPS[name](places(16, 3, 12, 20))
    assert len({image.contiguous().numpy().tobytes() for image in changed}) >= (2 if name == "flip" else 10)


@pytest.mark.parametrize("name", STEPS)
def test_the_seed_decides(name: str) -> None:
    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        found: Tensor = STEPS[name](places(16, 3, 12, 20))
        return found

    assert torch.equal(drawn(5), drawn(5))
    assert not torch.equal(drawn(5), drawn(6))


# ---- flips


def test_about_every_second_image_is_mirrored_and_the_others_stay() -> None:
    torch.manual_seed(0)
    changed = Flip()(places(1000, 1, 2, 3))
    mirrored = (changed[:, 0] == torch.tensor([[2, 1, 0], [102, 101, 100]])).all(dim=(1, 2))
    same = (changed[:, 0] == torch.tensor([[0, 1, 2], [100, 101, 102]])).all(dim=(1, 2))
    assert bool((mirrored ^ same).all())
    assert 400 < int(mirrored.sum()) < 600  # six standard deviations


def ways(flip: AlternatingFlip, items: list[int], epoch: int) -> list[bool]:
    """Which of the items are seen mirrored."""
    changed = flip(places(len(items), 1, 2, 3), torch.tensor(items), epoch)
    assert set(changed[:, 0, 0, 0].tolist()) <= {0.0, 2.0}
    return (changed[:, 0, 0, 0] == 2).tolist()


def test_in_two_epochs_each_item_is_seen_both_ways() -> None:
    flip = AlternatingFlip(200, seed=0, device=CPU)
    first, second = ways(flip, list(range(200)), 0), ways(flip, list(range(200)), 1)
    assert [not way for way in first] == second
    assert 50 < sum(first) < 150
    assert ways(flip, list(range(200)), 2) == first
    assert ways(flip, list(range(200)), 3) == second


def test_an_item_is_seen_the_same_way_in_whatever_batch_it_comes() -> None:
    flip = AlternatingFlip(50, seed=3, device=CPU)
    by_item = ways(flip, list(range(50)), 0)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1)).tolist()
    assert ways(flip, order, 0) == [by_item[item] for item in order]
    assert ways(AlternatingFlip(50, seed=3, device=CPU), [7, 7, 8], 0) == [by_item[7], by_item[7], by_item[8]]
    assert ways(AlternatingFlip(50, seed=4, device=CPU), list(range(50)), 0) != by_item


def test_an_alternating_flip_mirrors_an_image_and_not_its_neighbour() -> None:
    flip = AlternatingFlip(9, seed=0, device=CPU)
    pixels = torch.arange(9.0)[:, None, None, None] * 10 + torch.arange(3.0)
    changed = flip(pixels, torch.arange(9), 0)
    assert torch.equal(changed[:, 0, 0, 1], torch.arange(9.0) * 10 + 1)


# ---- shift


@pytest.mark.parametrize(("height", "width"), [(7, 7), (6, 11)])
def test_a_shift_is_one_by_whole_pixels_mirrored_at_the_border(height: int, width: int) -> None:
    torch.manual_seed(0)
    images = places(200, 2, height, width)
    padded = np.pad(images[0].numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
    by_offset = {
        padded[:, 2 + y : 2 + y + height, 2 + x : 2 + x + width].tobytes(): (y, x)
        for y in range(-2, 3)
        for x in range(-2, 3)
    }
    assert len(by_offset) == 25
    seen = {by_offset[image.contiguous().numpy().tobytes()] for image in Shift(2)(images)}
    assert {y for y, _ in seen} == {x for _, x in seen} == {-2, -1, 0, 1, 2}
    assert len(seen) > 15, "rows and columns are drawn apart"


def test_a_shift_does_not_mix_images() -> None:
    images = torch.arange(8.0)[:, None, None, None].expand(8, 1, 5, 5)
    assert torch.equal(Shift(2)(images), images)


def test_a_shift_can_be_as_long_as_the_side_less_one() -> None:
    torch.manual_seed(0)
    assert set(Shift(4)(places(100, 1, 5, 5)).unique().tolist()) == set(places(1, 1, 5, 5).unique().tolist())
    assert augmentation(plain(shift=11), WIDE, 0)(places(4, 3, 12, 20)).shape == (4, 3, 12, 20)


@pytest.mark.parametrize(("shift", "source"), [(28, MNIST), (12, WIDE), (100, WIDE)])
def test_a_shift_beyond_the_picture_is_refused(shift: int, source: Source) -> None:
    with pytest.raises(RecipeInvalid, match=rf"--shift {shift}: expected less than the side of {source.name}'s images"):
        augmentation(plain(shift=shift), source, 0)


# ---- erase


@pytest.mark.parametrize("side", [1, 4, 5])
def test_what_is_erased_is_one_square_cut_at_the_border_and_set_to_the_mean(side: int) -> None:
    torch.manual_seed(0)
    changed = Erase(side, (10.0, 20.0, 30.0))(torch.full((400, 3, 9, 14), -1.0))
    erased = changed[:, 0] != -1
    for image, mask in zip(changed, erased, strict=True):
        top, bottom, left, right = borders(mask)
        assert mask[top : bottom + 1, left : right + 1].all()
        assert int(mask.sum()) == (bottom + 1 - top) * (right + 1 - left), "one rectangle and nothing else"
        assert image[:, mask].unique(dim=1).squeeze(1).tolist() == [10.0, 20.0, 30.0]
        assert image[:, ~mask].unique().tolist() == [-1.0]
        for low, high, length in ((top, bottom, 9), (left, right, 14)):
            whole = high + 1 - low == side
            assert whole or (low == 0 or high == length - 1)
            assert side // 2 <= high + 1 - low <= side


@pytest.mark.parametrize("side", [1, 4])
def test_every_pixel_can_be_erased(side: int) -> None:
    torch.manual_seed(0)
    assert bool((Erase(side, (5.0,))(torch.zeros(3000, 1, 9, 14)) == 5).any(dim=0).all())


def borders(mask: Tensor) -> tuple[int, int, int, int]:
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    return int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())


# ---- affine


def test_no_deviation_leaves_an_image_as_it_is() -> None:
    pixels = torch.rand(2, 1, 8, 11) * 255
    torch.testing.assert_close(Affine(0, 0, 0, 0)(pixels), pixels, rtol=0, atol=1e-3)


def test_a_translation_moves_the_image_and_brings_in_background() -> None:
    torch.manual_seed(0)
    moved = Affine(rotate=0, translate=0.25, scale=0, shear=0)(torch.full((64, 1, 8, 12), 200.0))
    assert moved.min().item() == 0.0  # beyond the edge
    assert moved.max().item() == pytest.approx(200.0)
    kept = moved.mean(dim=(1, 2, 3)) / 200
    assert kept.min().item() >= 0.75**2 - 1e-3  # a quarter of the rows and columns at most


def test_a_rotation_keeps_the_centre_and_turns_the_rest() -> None:
    torch.manual_seed(0)
    pixels = torch.zeros(32, 1, 9, 9)
    pixels[:, :, 4, :] = 255.0  # a bar across
    turned = Affine(rotate=90.0, translate=0, scale=0, shear=0)(pixels)
    torch.testing.assert_close(turned[:, 0, 4, 4], torch.full((32,), 255.0))
    assert turned[:, 0, 1, 4].max().item() > 200.0  # of 32 angles, one brings it upright


@pytest.mark.parametrize(("height", "width"), [(33, 33), (33, 65), (65, 33)])
def test_a_disc_stays_one_however_it_is_turned_also_in_an_oblong_image(height: int, width: int) -> None:
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(height) - height // 2, torch.arange(width) - width // 2, indexing="ij")
    disc = 255 * torch.exp(-(x**2 + y**2) / 50).expand(16, 1, height, width)
    turned = Affine(rotate=180.0, translate=0, scale=0, shear=0)(disc)
    assert (turned - disc).abs().max().item() < 5  # interpolation


def test_a_change_of_size_keeps_the_centre_and_stays_within_its_limit() -> None:
    torch.manual_seed(0)
    pixels = torch.zeros(64, 1, 41, 41)
    pixels[:, :, 10:31, 10:31] = 255.0  # 21 pixels, of 41
    lengths = (Affine(rotate=0, translate=0, scale=0.2, shear=0)(pixels)[:, 0, 20] / 255).sum(dim=1)
    assert 21 * 0.8 - 0.5 <= lengths.min().item() < 18
    assert 24 < lengths.max().item() <= 21 * 1.2 + 0.5


def test_a_shear_moves_rows_along_themselves_and_leaves_the_middle_one() -> None:
    torch.manual_seed(0)
    pixels = torch.zeros(32, 1, 21, 41)
    pixels[:, :, :, 20] = 255.0  # an upright bar
    sheared = Affine(rotate=0, translate=0, scale=0, shear=45.0)(pixels)
    torch.testing.assert_close(sheared[:, 0, 10], pixels[:, 0, 10], rtol=0, atol=0.1)
    torch.testing.assert_close(sheared.sum(dim=3), pixels.sum(dim=3), rtol=1e-3, atol=0.1)
    moved = (sheared[:, 0, 0] * torch.arange(41)).sum(dim=1) / 255 - 20  # ten rows up: ten pixels at 45 degrees
    assert 5 < moved.abs().max().item() <= 10.01


# ---- what a recipe asks for


def test_a_recipe_that_asks_for_nothing_changes_nothing(rows: DataSet) -> None:
    pixels = places(2, 3, 12, 20)
    assert torch.equal(augmentation(PLAIN, WIDE, 0)(pixels), pixels)
    assert torch.equal(augmentation(PLAIN, rows.source, 0)(torch.ones(4, 2)), torch.ones(4, 2))


def test_all_changes_together_keep_shape_and_type() -> None:
    everything = plain(flip="random", shift=2, rotate=10.0, translate=0.1, scale=0.1, shear=5.0, erase=3)
    changed = augmentation(everything, WIDE, 0)(places(5, 3, 12, 20))
    assert (changed.shape, changed.dtype) == ((5, 3, 12, 20), torch.float32)


def test_erased_pixels_have_the_mean_of_the_data_set() -> None:
    changed = augmentation(plain(erase=3), WIDE, 0)(torch.full((8, 3, 12, 20), -1.0))
    assert [channel.unique().tolist() for channel in changed.transpose(0, 1)] == [[-1.0, 1.0], [-1.0, 2.0], [-1.0, 3.0]]


def test_images_are_small_in_the_early_epochs_only() -> None:
    recipe = plain(early_side=14, early_epochs=2)
    sides = [augmentation(recipe, MNIST, epoch)(torch.rand(2, 1, 28, 28)).shape[2:] for epoch in range(4)]
    assert sides == [(14, 14), (14, 14), (28, 28), (28, 28)]


def test_a_small_image_is_the_large_one_seen_from_afar() -> None:
    large = torch.zeros(1, 1, 28, 28)
    large[:, :, :, 14:] = 200.0
    small = augmentation(plain(early_side=14, early_epochs=1), MNIST, 0)(large)
    assert small[0, 0, 7, [0, 4, 9, 13]].tolist() == pytest.approx([0, 0, 200, 200], abs=0.01)


@pytest.mark.parametrize(
    "fields",
    [
        {"flip": "random"},
        {"flip": "alternating"},
        {"shift": 1},
        {"rotate": 1.0},
        {"translate": 0.1},
        {"scale": 0.1},
        {"shear": 1.0},
        {"erase": 1},
        {"early_side": 1, "early_epochs": 1},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_is_for_images_is_refused_for_rows(rows: DataSet, fields: dict[str, object]) -> None:
    with pytest.raises(
        RecipeInvalid, match="plane has rows, and flip, shift, rotate, erase and the like are for images"
    ):
        augmentation(plain(**fields), rows.source, 0)


def test_every_step_is_a_module_that_stands_in_line_with_torchvisions_own() -> None:
    v2 = import_torchvision().transforms.v2
    assert all(isinstance(step, nn.Module) for step in STEPS.values())
    composed = v2.Compose([STEPS["flip"], v2.Resize(8), STEPS["erase"]])
    assert composed(places(2, 3, 12, 20)).shape[:3] == (2, 3, 8)
