"""POST /predict/{model}: images, plain JSON, or raw rows in; labels and probabilities out.

    image/* or anything that starts like one     one image, decoded to the model's size and colours
    multipart/form-data                          items in the order of the parts, each an image or one raw row
    application/json                             {"instances": [item, …]}, each item nested or flat numbers; nested as
                                                 its own shape where items differ in size; {"b64": image} among them
    other bytes (application/octet-stream, …)    one or more raw rows

`?top_k=3` limits how many labels come back with each item (default 5); `Accept` chooses JSON, CSV or NDJSON.
"""

import functools
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct

from models.manifest import ImageInput, TensorSpec
from service.batching.arena import Rows, ShapedRow, row_bytes
from service.batching.claim import Claim, ServedModel
from service.batching.link import ModelFacts
from service.errors import MalformedRequest, UnsupportedMediaType, WrongTensor
from service.frontend.accept import ANYTHING, form_asked_for
from service.frontend.decode import FORMATS, looks_like_image
from service.frontend.http import Answer, Request, decode_json
from service.frontend.images import Item, items_from_json, open_upload, prepare_items
from service.frontend.multipart_form import Part, read_parts
from service.frontend.predictions import DEFAULT_TOP_K, encoding
from service.frontend.prepared import Prepared, claim_rows
from service.frontend.shaped import shaped_rows_from_instances
from service.frontend.tensors import check_truth, items_in, no_json_for, rows_from_json, shape_text
from service.settings import Images

_MOST_DIGITS = 9  # more labels than any model has; Python refuses to read numbers of thousands of digits

# What curl, browsers and HTTP libraries send when nobody told them what a body is.
_UNSPECIFIC = (b"", b"application/octet-stream", b"application/x-www-form-urlencoded")
_UNSPECIFIC_PART = (b"", b"application/octet-stream", b"text/plain")  # RFC 7578 §4.4: text/plain is the default


class Instances(Struct):
    instances: msgspec.Raw


class _Plan(NamedTuple):
    """What is the same for every request to a version.

    spec           of its only input
    row_bytes      of an item, where they are all of one size and any byte is fine; else -1
    encode         as JSON, with as many labels as nobody asked for
    refusal        why its tensors do not fit here; "" where they do
    """

    spec: TensorSpec
    row_bytes: int
    image: ImageInput | None
    encode: Callable[[Claim], Answer]
    refusal: str


def prepare(
    model: ServedModel, request: Request, body: bytes, deadline: int, images: Images
) -> Prepared | Coroutine[Any, Any, Prepared]:
    """A coroutine where a thread decodes large images. Raises ServiceError."""
    plan: _Plan = model.plans.get("predict") or _make_plan(model)
    accept = request.headers.get(b"accept", ANYTHING)
    encode = plan.encode
    if request.query or accept != ANYTHING:
        encode = _encoding_asked_for(model, plan, accept, request.query)
    content_type = request.headers.get(b"content-type", b"")
    kind = _kind(plan, content_type, body)
    if kind == "rows" and len(body) == plan.row_bytes:  # the usual case
        claim = model.claim(1)
        claim.deadline = deadline
        claim.write(plan.spec.name, body)
        return Prepared(claim, encode)
    if plan.refusal:
        raise WrongTensor(plan.refusal)
    if kind == "image" or kind == "form" or (plan.image is not None and kind == "json" and b'"b64"' in body):
        items = _items(model, plan, kind, content_type, body, images)
        return prepare_items(model, plan.spec.name, plan.image, items, images, deadline, encode)
    rows, n_items = _rows(model, plan, kind, body)
    return Prepared(claim_rows(model, n_items, {plan.spec.name: rows}, deadline), encode)


def _make_plan(model: ServedModel) -> _Plan:
    facts = model.facts
    spec = facts.inputs[0] if facts.inputs else TensorSpec("", "BOOL", ())
    plain_rows = spec.name in model.inputs and spec.datatype != "BOOL"
    refusal = _misfit(facts)
    plan = model.plans["predict"] = _Plan(
        spec,
        row_bytes(spec, facts.batch_axis) if plain_rows and not refusal else -1,
        facts.input if isinstance(facts.input, ImageInput) else None,
        encoding(facts),
        refusal,
    )
    return plan


def _misfit(facts: ModelFacts) -> str:
    if len(facts.inputs) != 1:
        return (
            f"model {facts.name!r} has {len(facts.inputs)} inputs; /predict serves models with one, "
            f"/v2/models/{facts.name}/infer all"
        )
    return no_json_for(facts)


def _items(model: ServedModel, plan: _Plan, kind: str, content_type: bytes, body: bytes, images: Images) -> list[Item]:
    """Of a request that may hold images. Raises ServiceError."""
    if kind == "image":
        return [open_upload(body, images)]
    if kind == "json":
        request: Instances = decode_json(body, Instances, "the prediction request")
        return items_from_json(model, plan.spec, request.instances, images, "instances")
    if plan.spec.name not in model.inputs:
        raise _not_raw(model, plan.spec)
    parts = read_parts(content_type, body, model.capacity)
    return [
        open_upload(part.body, images, part.where) if _is_image(plan, part) else _part_row(model, plan, part)
        for part in parts
    ]


def _is_image(plan: _Plan, part: Part) -> bool:
    """Raises UnsupportedMediaType, naming the part."""
    if plan.image is not None and (part.media_type.startswith(b"image/") or looks_like_image(part.body)):
        return True
    if part.media_type in _UNSPECIFIC_PART:
        return False
    expected = "an image or " if plan.image is not None else ""
    raise UnsupportedMediaType(
        f"{part.where}: Content-Type {part.media_type.decode('latin-1')!r}; "
        f"expected {expected}application/octet-stream with one raw row"
    )


def _part_row(model: ServedModel, plan: _Plan, part: Part) -> bytes:
    """One raw row. Raises WrongTensor, naming the part."""
    size = row_bytes(plan.spec, model.facts.batch_axis)
    if len(part.body) != size:
        kind = f"neither an image ({', '.join(FORMATS)}) nor a raw row" if plan.image is not None else "no raw row"
        raise WrongTensor(f"{part.where} is {kind}: {len(part.body)} bytes; expected {size}")
    try:
        check_truth(plan.spec, part.body)
    except WrongTensor as error:
        raise WrongTensor(f"{part.where}: {error}") from error
    return part.body


def _kind(plan: _Plan, content_type: bytes, body: bytes) -> str:
    """image, json, form or rows."""
    media_type = _media_type(content_type)
    if media_type == b"application/json":
        return "json"
    if media_type in _UNSPECIFIC or media_type.startswith(b"image/"):
        if plan.image is not None and (media_type.startswith(b"image/") or looks_like_image(body)):
            return "image"
        if media_type in _UNSPECIFIC:
            return "rows"
    if media_type == b"multipart/form-data":
        return "form"
    expected = f"an image ({', '.join(FORMATS)}), " if plan.image is not None else ""
    raise UnsupportedMediaType(
        f"Content-Type {media_type.decode('latin-1')!r}; "
        f"expected {expected}application/json, multipart/form-data or application/octet-stream"
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
        raise _not_raw(model, spec)
    request: Instances = decode_json(body, Instances, "the prediction request")
    return shaped_rows_from_instances(model.facts, spec, request.instances)


def _not_raw(model: ServedModel, spec: TensorSpec) -> WrongTensor:
    return WrongTensor(
        f"items of input {spec.name!r} ({spec.datatype} {shape_text(model.facts, spec)}) differ in size, so the "
        'body cannot be raw rows; send {"instances": [item, ...]} as application/json'
    )


def _encoding_asked_for(model: ServedModel, plan: _Plan, accept: bytes, query: bytes) -> Callable[[Claim], Answer]:
    """Raises NotAcceptable, MalformedRequest."""
    form = form_asked_for(accept)
    if form == "json" and not query:
        return plan.encode
    return encoding(model.facts, form, _top_k(query))


def _top_k(query: bytes) -> int:
    given = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("top_k", [str(DEFAULT_TOP_K)])[-1]
    digits = given.lstrip("0")
    if not given.isdecimal() or not digits:
        raise MalformedRequest(f"top_k is {given!r}; expected a whole number from 1")
    return int(digits[:_MOST_DIGITS])
