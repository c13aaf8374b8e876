"""Image bytes to rows: orientation, colours and the manifest's `fit`, also where an image is shrunk while decoded."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.manifest import ImageInput
from service.errors import MalformedImage
from service.frontend.decode import looks_like_image, open_image, render
from tests.support.pictures import encode, quarters

GREYS = (200, 40, 120, 10)
GREY, COLOUR = ImageInput(28, 28, 1), ImageInput(28, 28, 3)


def decoded(body: bytes, target: ImageInput = GREY) -> np.ndarray:
    return render(open_image(body, 25_000_000), target)


def greys_of(pixels: np.ndarray) -> list[float]:
    """The middle of each quarter, where nothing blurs."""
    side = pixels.shape[0] // 2
    middle = slice(side // 4, side - side // 4)
    corners = (pixels[:side, :side], pixels[:side, side:], pixels[side:, :side], pixels[side:, side:])
    return [float(corner[middle, middle].mean()) for corner in corners]


def picture(side: int = 28) -> np.ndarray:
    return quarters(*GREYS, side)


# How each orientation of Exif 2.32 §4.6.5 (tag 0x0112) must be stored so that it shows as the picture.
def stored(orientation: int, pixels: np.ndarray) -> np.ndarray:
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.T,
        6: np.rot90(pixels),
        7: pixels[::-1, ::-1].T,
        8: np.rot90(pixels, -1),
    }
    return np.ascontiguousarray(turned[orientation])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("side", [28, 64, 1500])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_an_image_is_turned_upright_whatever_its_size(orientation: int, file_format: str, side: int, mode: str) -> None:
    """1500 pixels are shrunk while they are decoded, which must not lose the orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(stored(orientation, picture(side))).convert(mode)
    body = encode(image, file_format, quality=95, exif=exif.tobytes())
    assert greys_of(decoded(body)) == pytest.approx(GREYS, abs=4)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_there_is_not_changes_nothing(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert greys_of(decoded(encode(picture(), "JPEG", quality=95, exif=exif.tobytes()))) == pytest.approx(GREYS, abs=4)


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12", b"Exif\0\0" + b"\xff" * 40]
)
def test_broken_exif_does_not_hide_the_picture(exif: bytes) -> None:
    assert greys_of(decoded(encode(picture(), "JPEG", quality=95, exif=exif))) == pytest.approx(GREYS, abs=4)


def png(colour_type: int, bits: int, rows: np.ndarray, *chunks: tuple[bytes, bytes], interlaced: int = 0) -> bytes:
    """`rows`: uint8 [height, bytes of a row], as the colour type packs them; PNG 3rd ed. §11.2.1."""
    height, n_bytes = rows.shape
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    width = n_bytes * 8 // (bits * channels)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, interlaced)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def sixteen(*channels: np.ndarray) -> np.ndarray:
    """Channels of 8 bits as interleaved ones of 16."""
    wide = np.stack(channels, -1).astype(">u2") * 257
    return wide.astype(">u2").view(np.uint8).reshape(len(channels[0]), -1)


OPAQUE = np.full((28, 28), 255, np.uint8)
TOP = np.repeat([255, 0], 14).astype(np.uint8)[:, None].repeat(28, 1)
"""Opaque above, transparent below."""


@pytest.mark.parametrize("target", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (png(0, 8, picture()), GREYS),
        (png(0, 16, sixteen(picture())), GREYS),
        (png(2, 16, sixteen(*[picture()] * 3)), GREYS),
        (png(4, 8, np.stack([picture(), TOP], -1).reshape(28, -1)), (200, 40, 0, 0)),
        (png(4, 16, sixteen(picture(), TOP)), (200, 40, 0, 0)),
        (png(6, 8, np.stack([*[picture()] * 3, TOP], -1).reshape(28, -1)), (200, 40, 0, 0)),
        (png(6, 16, sixteen(*[picture()] * 3, TOP)), (200, 40, 0, 0)),
        (png(6, 16, sixteen(*[picture()] * 3, OPAQUE)), GREYS),
        (png(0, 8, picture(), (b"tRNS", struct.pack(">H", 200))), (0, 40, 120, 10)),
        (png(0, 1, np.packbits(picture() > 100, axis=1)[:, :3], (b"tEXt", b"a\0b")), None),
        (png(3, 8, (picture() > 100).astype(np.uint8), (b"PLTE", bytes([9, 9, 9, 90, 90, 90]))), (90, 9, 90, 9)),
        (
            png(3, 8, (picture() > 100).astype(np.uint8), (b"PLTE", bytes([9] * 3 + [90] * 3)), (b"tRNS", b"\0\xff")),
            (90, 0, 90, 0),
        ),
        (encode(Image.fromarray(picture()).convert("LA"), "WEBP", lossless=True), GREYS),
        (encode(Image.fromarray(picture() > 100)), (255, 0, 255, 0)),
        (encode(Image.fromarray(picture()).quantize(4), "GIF"), GREYS),
        (encode(Image.fromarray(picture()).quantize(4), "BMP"), GREYS),
        (encode(Image.fromarray(picture() > 100), "BMP"), (255, 0, 255, 0)),
    ],
    ids=[
        *("grey", "grey 16", "colour 16", "grey + alpha", "grey + alpha 16", "RGBA", "RGBA 16", "opaque RGBA 16"),
        *("one grey transparent", "1 bit of 24 pixels", "palette", "transparent palette"),
        *("LA WebP", "1 bit", "GIF", "palette BMP", "1-bit BMP"),
    ],
)
def test_every_kind_of_pixel_becomes_the_models(body: bytes, expected: tuple | None, target: ImageInput) -> None:
    pixels = decoded(body, target)
    assert pixels.shape == (28, 28, target.channels)
    if expected is not None:
        assert greys_of(pixels) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("adobe", [False, True], ids=["plain", "inverted, as Adobe writes it"])
@pytest.mark.parametrize("side", [28, 1500])
def test_cmyk_is_not_inverted(adobe: bool, side: int) -> None:
    image = Image.fromarray(np.stack([picture(side)] * 3, -1)).convert("CMYK")
    body = encode(image, "JPEG", quality=95)
    assert (b"Adobe" in body) or not adobe
    if not adobe:  # without the marker's segment the values are those of the file
        at = body.index(b"\xff\xee")
        body = body[:at] + body[at + 2 + int.from_bytes(body[at + 2 : at + 4]) :]
        with Image.open(io.BytesIO(body)) as plain:
            expected = [np.asarray(plain.convert("L"))[y, x] for y in (side // 4, -5) for x in (side // 4, -5)]
        assert greys_of(decoded(body)) == pytest.approx([float(value) for value in expected], abs=5)
        return
    assert greys_of(decoded(body)) == pytest.approx(GREYS, abs=5)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_counts_also_where_later_ones_are_broken(file_format: str) -> None:
    frames = [Image.fromarray(picture()).convert("RGB"), Image.fromarray(quarters(0, 0, 0, 255)).convert("RGB")]
    options: dict[str, Any] = {"lossless": True} if file_format == "WEBP" else {}
    body = encode(frames[0], file_format, save_all=True, append_images=frames[1:], duration=50, **options)
    assert greys_of(decoded(body)) == pytest.approx(GREYS, abs=2)


@pytest.mark.parametrize("side", [28, 300, 1500])
@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
    ],
    ids=str,
)
def test_a_file_that_is_cut_off_is_refused(file_format: str, options: dict[str, Any], side: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
    body = encode(noise, file_format, **options)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(MalformedImage):
            decoded(body[: int(len(body) * share)])
    assert decoded(body).shape == (28, 28, 1)


WIDE = np.arange(64, dtype=np.uint8)[None].repeat(16, 0)
"""16 high, 64 wide: a column's grey is its number."""


@pytest.mark.parametrize("turned", [False, True], ids=["wide", "tall"])
def test_crop_keeps_the_centre(turned: bool) -> None:
    body = encode(np.ascontiguousarray(WIDE.T if turned else WIDE))
    pixels = decoded(body, ImageInput(16, 16, 1, "crop"))[..., 0]
    assert ((pixels if not turned else pixels.T) == np.arange(24, 40)).all()


@pytest.mark.parametrize("turned", [False, True], ids=["wide", "tall"])
def test_pad_puts_black_around_the_centre(turned: bool) -> None:
    body = encode(np.full((64, 16) if turned else (16, 64), 100, np.uint8))
    pixels = decoded(body, ImageInput(64, 64, 1, "pad"))[..., 0]
    expected = np.zeros((64, 64), np.uint8)
    expected[24:40] = 100
    assert (pixels == (expected.T if turned else expected)).all()


def test_stretch_fills_and_axes_are_not_swapped() -> None:
    body = encode(WIDE)
    pixels = decoded(body, ImageInput(32, 8, 1, "stretch"))[..., 0]
    assert pixels.shape == (32, 8)
    assert np.abs(pixels[5] - (np.arange(8) * 8 + 3.5)).max() < 2
    assert (pixels == pixels[0]).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_an_image_of_the_models_size_is_untouched(fit: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    assert (decoded(encode(noise), ImageInput(28, 28, 3, fit)) == noise).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_shrinking_while_decoding_looks_as_shrinking_afterwards(fit: Any, file_format: str) -> None:
    """Within what blocks of averaged pixels may differ; a smooth picture, so that a shift would show."""
    y, x = np.mgrid[0:900, 0:1600]
    smooth = (127 + 60 * np.sin(x / 150) + 60 * np.cos(y / 110)).astype(np.uint8)
    body = encode(smooth, file_format, **({"quality": 98} if file_format == "JPEG" else {}))
    target = ImageInput(28, 28, 1, fit)
    small = Image.fromarray(smooth).resize((160, 90), Image.Resampling.BOX)
    expected = decoded(encode(small), target).astype(int)
    assert np.abs(decoded(body, target).astype(int) - expected).max() <= 12


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_images_are_known_by_their_first_bytes(file_format: str) -> None:
    assert looks_like_image(encode(picture(), file_format))


@pytest.mark.parametrize("body", [b"", b"BM", b"RIFF\0\0\0\0WAVE", b"BM\x05\0\0\0 and more", b'{"instances": []}'])
def test_other_bytes_are_not_taken_for_images(body: bytes) -> None:
    assert not looks_like_image(body)
