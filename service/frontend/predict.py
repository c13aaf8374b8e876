"""POST /predict/{model}: an image, plain JSON, or raw rows in; labels and probabilities out.

    image/* or anything that starts like one     one image, decoded to the model's size and colours
    application/json                             {"instances": [item, …]}, each item nested or flat numbers; nested as
                                                 its own shape where items differ in size
    other bytes (application/octet-stream, …)    one or more raw rows

`?top_k=3` limits how many labels come back with each item (default 5).
"""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct

from models.manifest import Classification, ImageInput, TensorSpec
from service.batching.arena import Rows, ShapedRow, row_bytes
from service.batching.claim import Claim, ServedModel
from service.batching.link import ModelFacts
from service.errors import MalformedRequest, UnsupportedMediaType, WrongTensor
from service.frontend.decode import FORMATS, looks_like_image, open_image, render
from service.frontend.http import Answer, Request, decode_json
from service.frontend.prepared import Prepared, claim_rows
from service.frontend.shaped import nested_values, shaped_rows_from_instances
from service.frontend.tensors import items_in, rows_from_json, shape_text
from service.settings import Images

DEFAULT_TOP_K = 5
_PROBABILITY_DIGITS = 6
_MOST_DIGITS = 9  # more labels than any model has; Python refuses to read numbers of thousands of digits

# What curl, browsers and HTTP libraries send when nobody told them what a body is.
_UNSPECIFIC = (b"", b"application/octet-stream", b"application/x-www-form-urlencoded")

# Two at a time: a large image takes up to 8 bytes a pixel while it is decoded.
_large_decodes = ThreadPoolExecutor(2, thread_name_prefix="shoal-decode")

_encoder = msgspec.json.Encoder()


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


class _Plan(NamedTuple):
    """What is the same for every request to a version.

    spec           of its only input
    row_bytes      of an item, where they are all of one size and any byte is fine; else -1
    answer_begins  everything in front of the predictions
    encode         with as many labels as nobody asked for
    refusal        why its tensors do not fit here; "" where they do
    """

    spec: TensorSpec
    row_bytes: int
    image: ImageInput | None
    answer_begins: bytes
    encode: Callable[[Claim], Answer]
    refusal: str


def prepare(
    model: ServedModel, request: Request, body: bytes, deadline: int, images: Images
) -> Prepared | Coroutine[Any, Any, Prepared]:
    """A coroutine where a thread decodes a large image. Raises ServiceError."""
    plan: _Plan = model.plans.get("predict") or _make_plan(model)
    encode = _encoding(model.facts, plan.answer_begins, _top_k(request.query)) if request.query else plan.encode
    kind = _kind(plan, request.headers.get(b"content-type", b""), body)
    if kind == "rows" and len(body) == plan.row_bytes:  # the usual case
        claim = model.claim(1)
        claim.deadline = deadline
        claim.write(plan.spec.name, body)
        return Prepared(claim, encode)
    if plan.refusal:
        raise WrongTensor(plan.refusal)
    if kind == "image":
        return _prepare_image(model, plan, body, images, deadline, encode)
    rows, n_items = _rows(model, plan, kind, body)
    return Prepared(claim_rows(model, n_items, {plan.spec.name: rows}, deadline), encode)


def _make_plan(model: ServedModel) -> _Plan:
    facts = model.facts
    spec = facts.inputs[0] if facts.inputs else TensorSpec("", "BOOL", ())
    plain_rows = spec.name in model.inputs and spec.datatype != "BOOL"
    begins = _encoder.encode({"model": facts.name, "version": facts.version})[:-1] + b',"predictions":'
    refusal = _misfit(facts)
    plan = model.plans["predict"] = _Plan(
        spec,
        row_bytes(spec, facts.batch_axis) if plain_rows and not refusal else -1,
        facts.input if isinstance(facts.input, ImageInput) else None,
        begins,
        _encoding(facts, begins, DEFAULT_TOP_K),
        refusal,
    )
    return plan


def _encoding(facts: ModelFacts, begins: bytes, top_k: int) -> Callable[[Claim], Answer]:
    if facts.classification is None:
        return functools.partial(_encode_plain, begins)
    return functools.partial(_encode_labels, begins, facts.classification, top_k)


def _misfit(facts: ModelFacts) -> str:
    if len(facts.inputs) != 1:
        return (
            f"model {facts.name!r} has {len(facts.inputs)} inputs; /predict serves models with one, "
            f"/v2/models/{facts.name}/infer all"
        )
    for spec in facts.outputs:
        if spec.datatype == "BF16":
            return (
                f"output {spec.name!r} is BF16, which JSON has no form for; "
                f"/v2/models/{facts.name}/infer answers it as a binary tensor"
            )
    return ""


def _prepare_image(
    model: ServedModel,
    plan: _Plan,
    body: bytes,
    images: Images,
    deadline: int,
    encode: Callable[[Claim], Answer],
) -> Prepared | Coroutine[Any, Any, Prepared]:
    """The slot is claimed before any pixel is decoded: a full server must not decode what it will refuse."""
    target = plan.image
    assert target is not None, "bug: an image for a model that takes none"
    image = open_image(body, images.max_pixels)  # its header

    @contextmanager
    def claimed() -> Iterator[Claim]:
        """Released where decoding fails or is cancelled."""
        claim = model.claim(1)
        claim.deadline = deadline
        try:
            yield claim
        except BaseException:
            claim.release()
            raise

    if image.width * image.height < images.decode_in_thread_pixels:
        with claimed() as claim:
            claim.write(plan.spec.name, render(image, target).tobytes())
        return Prepared(claim, encode)

    async def decode() -> Prepared:
        # Claimed in here: a coroutine that is cancelled before it begins runs no line that could release.
        with claimed() as claim:
            loop = asyncio.get_running_loop()
            pixels = await loop.run_in_executor(_large_decodes, render, image, target)
            claim.write(plan.spec.name, pixels.tobytes())
        return Prepared(claim, encode)

    return decode()


def _kind(plan: _Plan, content_type: bytes, body: bytes) -> str:
    """image, json or rows."""
    media_type = _media_type(content_type)
    if media_type == b"application/json":
        return "json"
    if media_type in _UNSPECIFIC or media_type.startswith(b"image/"):
        if plan.image is not None and (media_type.startswith(b"image/") or looks_like_image(body)):
            return "image"
        if media_type in _UNSPECIFIC:
            return "rows"
    expected = f"an image ({', '.join(FORMATS)}), " if plan.image is not None else ""
    raise UnsupportedMediaType(
        f"Content-Type {media_type.decode('latin-1')!r}; "
        f"expected {expected}application/json or application/octet-stream"
    )


@functools.lru_cache(64)
def _media_type(content_type: bytes) -> bytes:
    return content_type.split(b";", 1)[0].strip().lower()


def _rows(model: ServedModel, plan: _Plan, kind: str, body: bytes) -> tuple[Rows, int]:
    """The rows and how many they are."""
    if plan.spec.name not in model.inputs:
        shaped = _shaped_rows(model, plan.spec, kind, body)
        return shaped, len(shaped)
    if kind == "json":
        request: Instances = decode_json(body, Instances, "the prediction request")
        return rows_from_json(model.facts, plan.spec, request.instances, None, "instances")
    try:
        return body, items_in(model.facts, plan.spec, body)
    except WrongTensor as error:
        if plan.image is None:
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


def _encode_labels(begins: bytes, classification: Classification, top_k: int, claim: Claim) -> Answer:
    """The most probable labels of each item, best first."""
    labels = classification.labels
    predictions = []
    for row in claim.read(classification.output).tolist():
        best = sorted(range(len(labels)), key=row.__getitem__, reverse=True)[:top_k]  # equals keep their order
        top = [Label(labels[i], round(row[i], _PROBABILITY_DIGITS)) for i in best]
        predictions.append(Labelled(top[0].label, top[0].probability, top))
    return Answer(b"%s%s}" % (begins, _encoder.encode(predictions)))


def _encode_plain(begins: bytes, claim: Claim) -> Answer:
    """Every output of each item: flat, or nested where items differ in size."""
    columns: dict[str, list[Any]] = {}
    for spec in claim.model.facts.outputs:
        if spec.name in claim.model.outputs:
            columns[spec.name] = claim.read(spec.name).tolist()  # flat: its rows have one axis
        else:
            columns[spec.name] = [nested_values(spec, row) for row in claim.read_shaped(spec.name)]
    predictions = [{name: column[i] for name, column in columns.items()} for i in range(len(claim.slots))]
    return Answer(b"%s%s}" % (begins, _encoder.encode(predictions)))


def _top_k(query: bytes) -> int:
    given = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("top_k", [str(DEFAULT_TOP_K)])[-1]
    digits = given.lstrip("0")
    if not given.isdecimal() or not digits:
        raise MalformedRequest(f"top_k is {given!r}; expected a whole number from 1")
    return int(digits[:_MOST_DIGITS])
