"""Image bytes to the uint8 row a model takes: right side up, in its colours, at its size.

Opening reads only the header, so size limits come before any pixel is decoded.
"""

import io
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from models.manifest import ImageInput
from service.errors import MalformedImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_RESAMPLING = Image.Resampling.BILINEAR


def looks_like_image(body: bytes) -> bool:
    """By the first bytes: PNG 3rd ed. §5.2, JPEG SOI, GIF89a, RIFF container, BMP with its own size in the header."""
    return (
        body.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a"))
        or (body[:4] == b"RIFF" and body[8:12] == b"WEBP")
        or (body[:2] == b"BM" and int.from_bytes(body[2:6], "little") == len(body))
    )


def open_image(body: bytes, max_pixels: int) -> Image.Image:
    """An image whose header is read and whose pixels are not. Raises MalformedImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is the one that counts
            image = Image.open(io.BytesIO(body), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise MalformedImage(f"{len(body)} bytes that are no image; expected {', '.join(FORMATS)}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MalformedImage(f"the image's header is broken: {error}") from error
    if image.width * image.height > max_pixels:
        raise MalformedImage(f"an image of {image.width} x {image.height}; at most {max_pixels} pixels are accepted")
    return image


def render(image: Image.Image, target: ImageInput) -> npt.NDArray[np.uint8]:
    """Pixels as uint8 [height, width, channels]; the first frame of an animation. Raises MalformedImage."""
    try:
        image = ImageOps.exif_transpose(_shrink(image, target))
        image = _as_mode(image, "L" if target.channels == 1 else "RGB")
    except Exception as error:  # decoders of damaged data raise whatever they tripped over
        raise MalformedImage(f"the image cannot be decoded: {error}") from error
    size = (target.width, target.height)
    if image.size != size:
        image = _resize(image, size, target.fit)
    return np.asarray(image, np.uint8).reshape(target.height, target.width, target.channels)


def _shrink(image: Image.Image, target: ImageInput) -> Image.Image:
    """Decode to about twice the size that is needed, so that what follows makes no copies of full size.

    JPEG is decoded at a fraction (draft); for others, blocks of pixels are averaged (reduce).
    """
    side = 2 * max(target.width, target.height)  # the longer, as turning it upright may swap the two
    image.draft(image.mode, (side, side))
    factor = min(image.width // side, image.height // side)
    if factor > 1 and image.mode in ("L", "RGB", "RGBA", "CMYK"):
        return _keeping_orientation(image.reduce(factor), image)
    return image


def _keeping_orientation(reduced: Image.Image, original: Image.Image) -> Image.Image:
    reduced.info = original.info
    reduced.getexif().update(original.getexif())
    return reduced


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        pixels: npt.NDArray[Any] = np.asarray(image, np.uint16)
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {image.mode}) have no fixed range; expected 8 or 16 bits a channel")
    if image.has_transparency_data:
        on_black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(on_black, image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)


def _resize(image: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    match fit:
        case "crop":
            return ImageOps.fit(image, size, _RESAMPLING)
        case "pad":
            return ImageOps.pad(image, size, _RESAMPLING, color=0)
        case _:
            return image.resize(size, _RESAMPLING)
