"""BYTES elements as bytes: the protocol's binary form, on the wire and in rows alike.

    element, element, …     each its length (uint32, little-endian), then that many bytes

Checked by tests/unit/test_arena.py.
"""

import struct
from collections.abc import Iterable

_LENGTH = struct.Struct("<I")


def pack(elements: Iterable[bytes]) -> bytes:
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def unpack(data: bytes | bytearray | memoryview) -> list[bytes]:
    """Raises ValueError where an element is cut short."""
    view = memoryview(data)
    elements = []
    start, end = 0, view.nbytes
    while start < end:
        if end - start < _LENGTH.size:
            raise ValueError(f"{end - start} bytes at {start} are no length; expected {_LENGTH.size}")
        (size,) = _LENGTH.unpack_from(view, start)
        start += _LENGTH.size
        if size > end - start:
            raise ValueError(f"an element of {size} bytes at {start}, but {end - start} are left")
        elements.append(bytes(view[start : start + size]))
        start += size
    return elements
