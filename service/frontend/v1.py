"""POST /v1/models/{model}[/versions/{version}]:predict, :classify, :regress: TensorFlow Serving's REST, KServe's v1.
/labels/{label} may stand for /versions/{version}. Answers tell the version in a header: their bodies have no place for
it.

    :predict    {"instances": [item, …]}                 → {"predictions": [item, …]}
                {"inputs": tensor or {name: tensor}}     → {"outputs": tensor or {name: tensor}}
    :classify   {"examples": [{feature: value}, …]}      → {"results": [[[label, score], …], …]}   in the model's order
    :regress    the same                                 → {"results": [number, …]}

An item is the value of the only input, or an object with a value for each input; of a single output the answer holds
bare values, of several objects by name. Where the manifest names the columns of the only input, an object may give
those. Without a batch axis an item is the tensors of a run, and a tensor in `inputs` is that of a single item.
`{"b64": "..."}` stands for text in a BYTES tensor, and for an image of a model that takes images.
Source: tensorflow.org/tfx/serving/api_rest. It writes NaN as a bare token; here it is null, as everywhere.
"""

from collections.abc import Callable, Coroutine
from functools import partial
from math import prod
from typing import Any

import msgspec
from msgspec import Struct

from models.manifest import ImageInput
from service.batching.arena import item_shape
from service.batching.claim import Claim, ServedModel
from service.batching.engines import Engines
from service.batching.link import ModelFacts
from service.errors import MalformedRequest, UnknownModel, WrongTensor
from service.frontend.http import Answer, Request, decode_json
from service.frontend.images import prepare_items
from service.frontend.prepared import Prepared, claim_rows, version_header
from service.frontend.shaped import nested_values
from service.frontend.tensors import no_json_for
from service.frontend.v1_inputs import Given, from_examples, from_inputs, from_instances, images_in, rows_of
from service.settings import Images

SIGNATURE = "serving_default"

_encoder = msgspec.json.Encoder()


class PredictRequest(Struct):
    signature_name: str = ""
    instances: msgspec.Raw = msgspec.Raw()
    inputs: msgspec.Raw = msgspec.Raw()


class ExamplesRequest(Struct):
    """`context`: features that all examples share."""

    examples: list[dict[str, msgspec.Raw]]
    signature_name: str = ""
    context: dict[str, msgspec.Raw] = {}


def prepare(
    model: ServedModel, kind: str, request: Request, body: bytes, deadline: int, images: Images
) -> Prepared | Coroutine[Any, Any, Prepared]:
    """A coroutine where a thread decodes large images. Raises ServiceError."""
    match kind:
        case "v1:predict":
            data, encode = _read_predict(model.facts, body)
        case "v1:classify":
            data, encode = _read_examples(model.facts, body, "classify"), _classification(model.facts)
        case _:
            data, encode = _read_examples(model.facts, body, "regress"), _regression(model)
    target = model.facts.input
    if isinstance(target, ImageInput) and (items := images_in(model, data, images)) is not None:
        return prepare_items(model, model.facts.inputs[0].name, target, items, images, deadline, encode)
    rows, n_items = rows_of(model, data)
    return Prepared(claim_rows(model, n_items, rows, deadline), encode)


def version_with_label(engines: Engines, model: str, label: str) -> str:
    """The version that a label points to, ready or not. Raises UnknownModel, ModelNotReady."""
    aliases = engines.aliases(model)
    if label not in aliases:
        engines.find(model)
        raise UnknownModel(f"model {model!r} has no label {label!r}; labels: {', '.join(sorted(aliases)) or 'none'}")
    return aliases[label]


def _read_predict(facts: ModelFacts, body: bytes) -> tuple[Given, Callable[[Claim], Answer]]:
    request: PredictRequest = decode_json(body, PredictRequest, "the predict request")
    _check_signature(request.signature_name, "predict")
    if refusal := no_json_for(facts):
        raise WrongTensor(refusal)
    by_row, by_column = memoryview(request.instances).nbytes > 0, memoryview(request.inputs).nbytes > 0
    if by_row == by_column:
        raise MalformedRequest(
            f"the predict request has {'both' if by_row else 'neither'} 'instances' {'and' if by_row else 'nor'} "
            "'inputs'; expected one of them"
        )
    if by_row:
        return from_instances(facts, request.instances), _encode_rows
    return from_inputs(facts, request.inputs), _encode_columns


def _read_examples(facts: ModelFacts, body: bytes, verb: str) -> Given:
    request: ExamplesRequest = decode_json(body, ExamplesRequest, f"the {verb} request")
    _check_signature(request.signature_name, verb)
    return from_examples(facts, request.examples, request.context)


def _check_signature(name: str, verb: str) -> None:
    """An exported model has the one signature; `tensorflow/serving/…` is how its verbs are called in old exports."""
    if name not in ("", SIGNATURE, f"tensorflow/serving/{verb}"):
        raise MalformedRequest(f'Serving signature name: "{name}" not found in signature def; expected "{SIGNATURE}"')


def _classification(facts: ModelFacts) -> Callable[[Claim], Answer]:
    if facts.classification is None:
        raise WrongTensor(f"model {facts.name!r} has no labels, so there is nothing to classify; use :predict")
    return partial(_encode_scores, facts.classification.labels, facts.classification.output)


def _regression(model: ServedModel) -> Callable[[Claim], Answer]:
    facts = model.facts
    if len(facts.outputs) != 1:
        raise WrongTensor(
            f"model {facts.name!r} has {len(facts.outputs)} outputs; :regress serves models with one number for each "
            "item, :predict all"
        )
    spec = facts.outputs[0]
    number = spec.datatype not in ("BOOL", "BF16") and spec.name in model.outputs
    if not number or prod(item_shape(spec, facts.batch_axis)) != 1:
        raise WrongTensor(
            f"output {spec.name!r} of model {facts.name!r} is {spec.datatype} {list(spec.shape)}; :regress serves "
            "models with one number for each item, :predict all"
        )
    return partial(_encode_numbers, spec.name)


def _encode_rows(claim: Claim) -> Answer:
    columns = _outputs(claim)
    if len(columns) == 1:
        (predictions,) = columns.values()
    else:
        predictions = [{name: values[i] for name, values in columns.items()} for i in range(len(claim.slots))]
    return _answer(claim, {"predictions": predictions})


def _encode_columns(claim: Claim) -> Answer:
    columns: dict[str, Any] = {**_outputs(claim)}
    if not claim.model.facts.batch_axis:
        columns = {name: values[0] for name, values in columns.items()}
    return _answer(claim, {"outputs": columns if len(columns) != 1 else next(iter(columns.values()))})


def _encode_scores(labels: tuple[str, ...], output: str, claim: Claim) -> Answer:
    results = [list(zip(labels, row, strict=True)) for row in claim.read(output).tolist()]
    return _answer(claim, {"results": results})


def _encode_numbers(output: str, claim: Claim) -> Answer:
    return _answer(claim, {"results": claim.read(output).ravel().tolist()})


def _answer(claim: Claim, content: dict[str, Any]) -> Answer:
    return Answer(_encoder.encode(content), headers=version_header(claim))


def _outputs(claim: Claim) -> dict[str, list[Any]]:
    """Of each output the items, nested as their shape; an item without axes is a single value."""
    facts = claim.model.facts
    columns: dict[str, list[Any]] = {}
    for spec in facts.outputs:
        if spec.name in claim.model.outputs:
            rows = claim.read(spec.name)
            columns[spec.name] = rows.reshape(len(rows), *item_shape(spec, facts.batch_axis)).tolist()
        else:
            columns[spec.name] = [nested_values(spec, row) for row in claim.read_shaped(spec.name)]
    return columns
