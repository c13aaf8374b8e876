"""Images whose content can be recognised after they were encoded, decoded and resized."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def encode(image: Image.Image | np.ndarray, file_format: str = "PNG", **options: Any) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def quarters(top_left: int, top_right: int, bottom_left: int, bottom_right: int, side: int = 28) -> np.ndarray:
    """uint8 [side, side], each quarter of one grey."""
    grey = np.array([[top_left, top_right], [bottom_left, bottom_right]], np.uint8)
    return grey.repeat(side // 2, 0).repeat(side // 2, 1)


def png_header(width: int, height: int, colour_type: int = 0, bits: int = 8) -> bytes:
    """A PNG of that size with next to no pixels behind it. PNG 3rd ed. §11.2.1."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def gif_header(width: int, height: int) -> bytes:
    """GIF89a §18, §20."""
    screen = struct.pack("<HHBBB", width, height, 0xF0, 0, 0)
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00;"
    return b"GIF89a" + screen + b"\0\0\0\xff\xff\xff" + frame


def bmp_header(width: int, height: int) -> bytes:
    """BITMAPINFOHEADER."""
    size = 54 + 12
    header = (
        b"BM" + struct.pack("<IHHI", size, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)
    )
    return header + bytes(12)


def webp_header(width: int, height: int) -> bytes:
    """An extended WebP (VP8X) with that canvas and a 1 x 1 frame behind it."""
    frame = encode(np.zeros((1, 1, 3), np.uint8), "WEBP", lossless=True)[12:]
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<II", 10, 0) + canvas + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_header(width: int, height: int) -> bytes:
    """A small JPEG whose SOF0 claims another size."""
    whole = bytearray(encode(np.zeros((8, 8), np.uint8), "JPEG"))
    at = whole.index(b"\xff\xc0") + 5
    whole[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(whole)
