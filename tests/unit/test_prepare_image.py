"""Slots of images: claimed before pixels are decoded, free again whatever becomes of the decoding."""

import asyncio
import io
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from models.manifest import ImageInput, TensorSpec
from service.batching.arena import create_arena
from service.batching.claim import ModelObserver, ServedModel
from service.batching.link import ModelFacts
from service.errors import DeadlineExceeded, MalformedImage, Overloaded, WrongTensor
from service.frontend import images, predict
from service.frontend.http import Request
from service.frontend.prepared import Prepared
from service.settings import Images
from tests.support.claims import deadline_in

INPUTS = (TensorSpec("image", "UINT8", (-1, 8, 8, 3)),)
OUTPUTS = (TensorSpec("y", "FP32", (-1, 2)),)
FACTS = ModelFacts("m", "1", "", INPUTS, OUTPUTS, ImageInput(8, 8, 3), None, 1, 1, 1, 1, 1.0)
IN_A_THREAD = Images(decode_in_thread_pixels=0)


def served(slots: int) -> Iterator[ServedModel]:
    fd, arena = create_arena(INPUTS, OUTPUTS, slots)
    yield ServedModel(FACTS, 0, (0, slots), arena, lambda _: None, ModelObserver())
    os.close(fd)


@pytest.fixture
def model() -> Iterator[ServedModel]:
    """With one slot."""
    yield from served(1)


@pytest.fixture
def roomy() -> Iterator[ServedModel]:
    """With four slots."""
    yield from served(4)


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


def prepare_form(model: ServedModel, n: int, deadline: int, settings: Images = IN_A_THREAD) -> object:
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + png() + b"\r\n"
    headers = {b"content-type": b"multipart/form-data; boundary=x"}
    return predict.prepare(model, Request(headers, b""), part * n + b"--x--\r\n", deadline, settings)


async def test_a_form_holds_a_slot_for_each_part(roomy: ServedModel) -> None:
    prepared = await prepare_form(roomy, 3, deadline_in(10))
    assert isinstance(prepared, Prepared)
    assert roomy.in_flight == 3
    assert (roomy.inputs["image"].array[prepared.claim.slots] == 7).all()
    prepared.claim.release()
    assert roomy.in_flight == 0


async def test_small_images_are_decoded_at_once_unless_their_sum_is_large(roomy: ServedModel) -> None:
    limit = Images(decode_in_thread_pixels=2 * 16 * 16 + 1)
    small = prepare_form(roomy, 2, deadline_in(10), limit)
    assert isinstance(small, Prepared)
    small.claim.release()
    large = prepare_form(roomy, 3, deadline_in(10), limit)
    assert asyncio.iscoroutine(large)
    (await large).claim.release()
    assert roomy.in_flight == 0


async def test_a_form_that_is_cancelled_stops_at_the_next_image(
    roomy: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()
    rendered = []

    def slow(*_: object) -> np.ndarray:
        rendered.append(1)
        begun.release()
        go_on.wait(10)
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(images, "render", slow)
    task = asyncio.ensure_future(prepare_form(roomy, 3, deadline_in(10)))
    await asyncio.to_thread(begun.acquire)
    assert roomy.in_flight == 3
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert roomy.in_flight == 0
    await asyncio.get_running_loop().run_in_executor(images._large_decodes, int)  # whatever was left has run
    assert len(rendered) == 1


async def test_a_form_whose_deadline_has_passed_is_not_decoded_further(
    roomy: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "render", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DeadlineExceeded, match="0 of 3 items"):
        await prepare_form(roomy, 3, deadline_in(-1))
    assert roomy.in_flight == 0


@pytest.mark.parametrize("settings", [IN_A_THREAD, Images()], ids=["thread", "loop"])
async def test_a_form_that_finds_no_room_is_not_decoded(
    roomy: ServedModel, settings: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "render", lambda *_: pytest.fail("decoded"))
    claim = roomy.claim(2)
    with pytest.raises(Overloaded):
        await prepare_form(roomy, 3, deadline_in(10), settings)
    with pytest.raises(WrongTensor, match="1 to 4 parts"):
        await prepare_form(roomy, 5, deadline_in(10), settings)
    claim.release()
    assert roomy.in_flight == 0
