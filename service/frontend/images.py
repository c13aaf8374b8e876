"""Images among a request's items: one as a body, parts of a form, base64 in JSON. Slots first, pixels afterwards.

A full server must not decode what it will refuse, so the slots are claimed once the headers are read. Where a request
has many pixels, a thread decodes them one image at a time: two requests share the threads, and one that is cancelled or
late stops at the next image.
"""

import asyncio
import binascii
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from PIL import Image

from models.manifest import ImageInput, TensorSpec
from service.batching.arena import RowBytes
from service.batching.claim import Claim, ServedModel
from service.errors import DeadlineExceeded, MalformedImage, MalformedRequest, WrongTensor
from service.frontend.decode import open_image, render
from service.frontend.http import Answer, decode_json
from service.frontend.prepared import Prepared
from service.frontend.tensors import rows_from_json
from service.settings import Images

# Two at a time: a large image takes up to 8 bytes a pixel while it is decoded.
_large_decodes = ThreadPoolExecutor(2, thread_name_prefix="shoal-decode")


class Base64(Struct, forbid_unknown_fields=True):
    """Bytes as JSON carries them: `{"b64": "..."}`."""

    b64: str


class Upload(NamedTuple):
    """An image whose header is read and whose pixels are not. `where`: what an error calls it; "" for a whole body."""

    image: Image.Image
    where: str


Item = Upload | RowBytes
"""RowBytes: exactly one row."""


def open_upload(body: bytes, images: Images, where: str = "") -> Upload:
    """Raises MalformedImage."""
    try:
        return Upload(open_image(body, images.max_pixels), where)
    except MalformedImage as error:
        raise _named(error, where) from error


def items_from_json(model: ServedModel, spec: TensorSpec, data: msgspec.Raw, images: Images, field: str) -> list[Item]:
    """Items of a model that takes images, each `{"b64": image}` or its numbers. Raises MalformedImage, WrongTensor."""
    given: list[msgspec.Raw] = decode_json(data, list[msgspec.Raw], field)
    if not 0 < len(given) <= model.capacity:
        raise WrongTensor(f"input {spec.name!r}: {field} has {len(given)} items; expected 1 to {model.capacity}")
    items: list[Item] = []
    for i, raw in enumerate(given):
        item, where = bytes(raw), f"{field}[{i}]"
        if item.startswith(b"{"):
            items.append(open_upload(decode_base64(item, where), images, where))
        else:
            items.append(rows_from_json(model.facts, spec, msgspec.Raw(b"[%s]" % item), 1, where)[0])
    return items


def decode_base64(item: bytes, where: str) -> bytes:
    """The bytes of `{"b64": "..."}`. Raises MalformedRequest."""
    return bytes_of(decode_json(item, Base64, where).b64, where)


def bytes_of(text: str, where: str) -> bytes:
    """Of RFC 4648 §4, padded. Raises MalformedRequest."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:  # binascii.Error, or text that is not ASCII
        raise MalformedRequest(f"{where}.b64 is not base64: {error}") from error


def prepare_items(
    model: ServedModel,
    name: str,
    target: ImageInput | None,
    items: Sequence[Item],
    images: Images,
    deadline: int,
    encode: Callable[[Claim], Answer],
) -> Prepared | Coroutine[Any, Any, Prepared]:
    """Rows of the input `name`, in the order of `items`; a coroutine where a thread decodes them.

    target   None: there are no images among the items
    Raises   ServiceError
    """

    @contextmanager
    def claimed() -> Iterator[Claim]:
        """Released where decoding fails or is cancelled."""
        claim = model.claim(len(items))
        claim.deadline = deadline
        try:
            yield claim
        except BaseException:
            claim.release()
            raise

    pixels = sum(item.image.width * item.image.height for item in items if isinstance(item, Upload))
    if not pixels or pixels < images.decode_in_thread_pixels:
        with claimed() as claim:
            claim.write(name, b"".join([_row(item, target) for item in items]))
        return Prepared(claim, encode)

    async def decode() -> Prepared:
        # Claimed in here: a coroutine that is cancelled before it begins runs no line that could release.
        with claimed() as claim:
            loop = asyncio.get_running_loop()
            rows = []
            for i, item in enumerate(items):
                if time.monotonic_ns() > deadline:
                    raise DeadlineExceeded(f"the deadline passed when {i} of {len(items)} items were decoded")
                rows.append(await loop.run_in_executor(_large_decodes, _row, item, target))
            claim.write(name, b"".join(rows))
        return Prepared(claim, encode)

    return decode()


def _row(item: Item, target: ImageInput | None) -> RowBytes:
    if not isinstance(item, Upload):
        return item
    assert target is not None, "bug: an image for a model that takes none"
    try:
        return render(item.image, target).tobytes()
    except MalformedImage as error:
        raise _named(error, item.where) from error


def _named(error: MalformedImage, where: str) -> MalformedImage:
    return MalformedImage(f"{where}: {error}") if where else error
