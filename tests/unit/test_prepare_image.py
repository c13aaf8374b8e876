"""Slots of images: claimed before pixels are decoded, free again whatever becomes of the decoding."""

import asyncio
import io
import os
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from models.manifest import ImageInput, TensorSpec
from service.batching.arena import create_arena
from service.batching.claim import ModelObserver, ServedModel
from service.batching.link import ModelFacts
from service.errors import MalformedImage, Overloaded
from service.frontend import images, predict
from service.frontend.http import Request
from service.frontend.prepared import Prepared
from service.settings import Images
from tests.support.claims import deadline_in

INPUTS = (TensorSpec("image", "UINT8", (-1, 8, 8, 3)),)
OUTPUTS = (TensorSpec("y", "FP32", (-1, 2)),)
FACTS = ModelFacts("m", "1", "", INPUTS, OUTPUTS, ImageInput(8, 8, 3), None, 1, 1, 1, 1, 1.0)
IN_A_THREAD = Images(decode_in_thread_pixels=0)


@pytest.fixture
def model() -> Iterator[ServedModel]:
    """With one slot."""
    fd, arena = create_arena(INPUTS, OUTPUTS, 1)
    yield ServedModel(FACTS, 0, (0, 1), arena, lambda _: None, ModelObserver())
    os.close(fd)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 7, np.uint8)).save(file, "PNG")
    return file.getvalue()


def prepare(model: ServedModel, body: bytes, settings: Images = IN_A_THREAD) -> object:
    return predict.prepare(model, Request({}, b""), body, deadline_in(10), settings)


async def test_a_large_image_is_decoded_in_a_thread_and_holds_its_slot(model: ServedModel) -> None:
    prepared = await prepare(model, png())
    assert isinstance(prepared, Prepared)
    assert model.in_flight == 1
    assert (model.inputs["image"].array == 7).all()
    prepared.claim.release()
    assert model.in_flight == 0


async def test_a_decoding_that_is_cancelled_before_it_begins_holds_no_slot(model: ServedModel) -> None:
    task = asyncio.ensure_future(prepare(model, png()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.in_flight == 0


async def test_a_decoding_that_is_cancelled_while_a_thread_is_at_it_gives_its_slot_back(model: ServedModel) -> None:
    task = asyncio.ensure_future(prepare(model, png()))
    await asyncio.sleep(0)
    assert model.in_flight == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.in_flight == 0


@pytest.mark.parametrize("settings", [IN_A_THREAD, Images()], ids=["thread", "loop"])
async def test_an_image_that_cannot_be_decoded_gives_its_slot_back(model: ServedModel, settings: Images) -> None:
    broken = png()[:-30]
    with pytest.raises(MalformedImage):
        await prepare(model, broken, settings)
    assert model.in_flight == 0


@pytest.mark.parametrize("settings", [IN_A_THREAD, Images()], ids=["thread", "loop"])
async def test_a_full_server_does_not_decode(
    model: ServedModel, settings: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "render", lambda *_: pytest.fail("decoded"))
    claim = model.claim(1)
    with pytest.raises(Overloaded):
        await prepare(model, png(), settings)
    claim.release()
    assert model.in_flight == 0
