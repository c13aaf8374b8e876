"""POST /predict/{model}: an image, plain JSON, or raw rows in; labels and probabilities out.

    image/* or anything that starts like one     one image, decoded to the model's size and colours
    application/json                             {"instances": [item, …]}, each item nested or flat numbers; nested as
                                                 its own shape where items differ in size
    other bytes (application/octet-stream, …)    one or more raw rows

`?top_k=3` limits how many labels come back with each item (default 5).
"""

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct

from models.manifest import Classification, ImageInput, TensorSpec
from service.batching.arena import RowBytes, ShapedRow
from service.batching.claim import Claim, ServedModel
from service.errors import MalformedRequest, UnsupportedMediaType, WrongTensor
from service.frontend.decode import FORMATS, looks_like_image, open_image, render
from service.frontend.http import Answer, Request, decode_json
from service.frontend.shaped import nested_values, shaped_rows_from_instances
from service.frontend.tensors import items_in, rows_from_json, shape_text, to_json
from service.settings import Images

DEFAULT_TOP_K = 5
_PROBABILITY_DIGITS = 6
_MOST_DIGITS = 9  # more labels than any model has; Python refuses to read numbers of thousands of digits

# What curl, browsers and HTTP libraries send when nobody told them what a body is.
_UNSPECIFIC = (b"", b"application/octet-stream", b"application/x-www-form-urlencoded")

# Two at a time: a large image takes up to 8 bytes a pixel while it is decoded.
_large_decodes = ThreadPoolExecutor(2, thread_name_prefix="shoal-decode")


class Instances(Struct):
    instances: msgspec.Raw


class Label(Struct):
    label: str
    probability: float


class Labelled(Struct):
    """One item of a classifier: the most probable label, and the best `top_k`."""

    label: str
    probability: float
    top: list[Label]


class Predictions(Struct):
    model: str
    version: str
    predictions: list[Any]


_encoder = msgspec.json.Encoder()


async def predict(model: ServedModel, request: Request, body: bytes, deadline: int, images: Images) -> Answer:
    top_k = _top_k(request.query)
    kind = _kind(model, request.headers.get(b"content-type", b""), body)
    spec = _only_input(model)
    _check_outputs(model)
    if isinstance(model.facts.input, ImageInput) and kind == "image":
        with model.claim(1) as claim:  # before decoding: a full server must not decode what it will refuse
            claim.write(spec.name, await _pixels(body, model.facts.input, images))
            request.decoded()
            request.timings = await claim.run(deadline)
            return _answer(claim, top_k)
    rows, n_items = _rows(model, spec, kind, body)
    with model.claim(n_items) as claim:
        if isinstance(rows, list):
            claim.write_shaped(spec.name, rows)
        else:
            claim.write(spec.name, rows)
        request.decoded()
        request.timings = await claim.run(deadline)
        return _answer(claim, top_k)


def _answer(claim: Claim, top_k: int) -> Answer:
    facts = claim.model.facts
    predictions = _labelled(claim, facts.classification, top_k) if facts.classification else _plain(claim)
    return Answer(_encoder.encode(Predictions(facts.name, facts.version, predictions)))


def _kind(model: ServedModel, content_type: bytes, body: bytes) -> str:
    """image, json or rows."""
    media_type = _media_type(content_type)
    if media_type == b"application/json":
        return "json"
    takes_images = isinstance(model.facts.input, ImageInput)
    if media_type in _UNSPECIFIC or media_type.startswith(b"image/"):
        if takes_images and (media_type.startswith(b"image/") or looks_like_image(body)):
            return "image"
        if media_type in _UNSPECIFIC:
            return "rows"
    expected = f"an image ({', '.join(FORMATS)}), " if takes_images else ""
    raise UnsupportedMediaType(
        f"Content-Type {media_type.decode('latin-1')!r}; "
        f"expected {expected}application/json or application/octet-stream"
    )


@functools.lru_cache(64)
def _media_type(content_type: bytes) -> bytes:
    return content_type.split(b";", 1)[0].strip().lower()


async def _pixels(body: bytes, target: ImageInput, limits: Images) -> RowBytes:
    """The row of an image. Raises MalformedImage."""
    image = open_image(body, limits.max_pixels)
    if image.width * image.height >= limits.decode_in_thread_pixels:
        pixels = await asyncio.get_running_loop().run_in_executor(_large_decodes, render, image, target)
    else:
        pixels = render(image, target)
    return pixels.tobytes()


def _rows(
    model: ServedModel, spec: TensorSpec, kind: str, body: bytes
) -> tuple[RowBytes, int] | tuple[list[ShapedRow], int]:
    """The rows and how many they are."""
    if spec.name not in model.inputs:
        shaped = _shaped_rows(model, spec, kind, body)
        return shaped, len(shaped)
    if kind == "json":
        request: Instances = decode_json(body, Instances, "the prediction request")
        return rows_from_json(model.facts, spec, request.instances, None, "instances")
    try:
        return body, items_in(model.facts, spec, body)
    except WrongTensor as error:
        if not isinstance(model.facts.input, ImageInput):
            raise
        raise WrongTensor(f"the body is neither an image ({', '.join(FORMATS)}) nor raw rows: {error}") from error


def _shaped_rows(model: ServedModel, spec: TensorSpec, kind: str, body: bytes) -> list[ShapedRow]:
    """Items that differ in size: JSON shows where each ends."""
    if kind != "json":
        raise WrongTensor(
            f"items of input {spec.name!r} ({spec.datatype} {shape_text(model.facts, spec)}) differ in size, so the "
            'body cannot be raw rows; send {"instances": [item, ...]} as application/json'
        )
    request: Instances = decode_json(body, Instances, "the prediction request")
    return shaped_rows_from_instances(model.facts, spec, request.instances)


def _only_input(model: ServedModel) -> TensorSpec:
    inputs = model.facts.inputs
    if len(inputs) != 1:
        raise WrongTensor(
            f"model {model.facts.name!r} has {len(inputs)} inputs; /predict serves models with one, "
            f"/v2/models/{model.facts.name}/infer all"
        )
    return inputs[0]


def _check_outputs(model: ServedModel) -> None:
    for spec in model.facts.outputs:
        if spec.datatype == "BF16":
            raise WrongTensor(
                f"output {spec.name!r} is BF16, which JSON has no form for; "
                f"/v2/models/{model.facts.name}/infer answers it as a binary tensor"
            )


def _labelled(claim: Claim, classification: Classification, top_k: int) -> list[Labelled]:
    """The most probable labels of each item, best first."""
    labels = classification.labels
    predictions = []
    for row in claim.read(classification.output).tolist():
        best = sorted(range(len(labels)), key=row.__getitem__, reverse=True)[:top_k]  # equals keep their order
        top = [Label(labels[i], round(row[i], _PROBABILITY_DIGITS)) for i in best]
        predictions.append(Labelled(top[0].label, top[0].probability, top))
    return predictions


def _plain(claim: Claim) -> list[dict[str, Any]]:
    """Every output of each item: flat, or nested where items differ in size."""
    columns: dict[str, list[Any]] = {}
    for spec in claim.model.facts.outputs:
        if spec.name in claim.model.outputs:
            columns[spec.name] = [to_json(row) for row in claim.read(spec.name)]
        else:
            columns[spec.name] = [nested_values(spec, row) for row in claim.read_shaped(spec.name)]
    return [{name: column[i] for name, column in columns.items()} for i in range(len(claim.slots))]


def _top_k(query: bytes) -> int:
    if not query:
        return DEFAULT_TOP_K
    given = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("top_k", [str(DEFAULT_TOP_K)])[-1]
    digits = given.lstrip("0")
    if not given.isdecimal() or not digits:
        raise MalformedRequest(f"top_k is {given!r}; expected a whole number from 1")
    return int(digits[:_MOST_DIGITS])
