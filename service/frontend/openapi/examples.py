"""Examples of the document that can be sent as they stand: names, versions and items of the models that are loaded."""

import copy
from collections.abc import Sequence
from math import prod
from typing import Any

from models.manifest import ImageInput, TensorSpec
from service.batching.link import ModelFacts

_MOST_VALUES = 1024  # of an example's tensor: more is nothing to read
_MOST_MODELS = 50  # so that a large repository does not make a large document
_ZERO_OF: dict[str, Any] = {"BOOL": False, "BYTES": ""}  # Any: the element is the tensor's

Document = dict[str, Any]  # Any: the document as plain JSON


def with_examples(document: Document, models: Sequence[ModelFacts]) -> Document:
    """A copy that names these models, for a person to try; those with small items first, images first for /predict."""
    document = copy.deepcopy(document)
    small_first = sorted(models, key=lambda facts: (_values(facts), facts.name))
    images_first = sorted(small_first, key=lambda facts: not isinstance(facts.input, ImageInput))
    for path, item in document["paths"].items():
        for operation in item.values():
            ordered = (images_first if path.startswith("/predict/") else small_first)[:_MOST_MODELS]
            _name(operation, ordered)
            _fill(operation, ordered)
    return document


def _name(operation: Document, models: Sequence[ModelFacts]) -> None:
    for parameter in operation.get("parameters", ()):
        match parameter["name"]:
            case "model_name" if models:
                parameter["examples"] = {facts.name: {"value": facts.name} for facts in models}
            case "model_version" if models:
                parameter["examples"] = {f"{facts.name} {facts.version}": {"value": facts.version} for facts in models}


def _fill(operation: Document, models: Sequence[ModelFacts]) -> None:
    json = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    make = {
        "#/components/schemas/InferRequest": _infer,
        "#/components/schemas/Instances": _instances,
        "#/components/schemas/V1PredictRequest": _instances,
    }
    if (body_of := make.get(json.get("schema", {}).get("$ref"))) is None:
        return
    examples = {
        facts.name: {"value": body}
        for facts in models
        if _values(facts) <= _MOST_VALUES and (body := body_of(facts)) is not None
    }
    if examples:
        json["examples"] = examples


def _infer(facts: ModelFacts) -> Document | None:
    if any(spec.datatype == "BF16" for spec in (*facts.inputs, *facts.outputs)):
        return None  # JSON has no form for it
    inputs = [
        {"name": spec.name, "shape": _shape(spec), "datatype": spec.datatype, "data": _zeros(spec)}
        for spec in facts.inputs
    ]
    return {"inputs": inputs}


def _instances(facts: ModelFacts) -> Document | None:
    """Items nested as their shape where they differ in size, else flat."""
    if len(facts.inputs) != 1 or not facts.batch_axis or -1 in facts.inputs[0].shape[1:]:
        return None
    spec = facts.inputs[0]
    zeros = _zeros(spec)
    return None if spec.datatype == "BF16" else {"instances": [zeros if len(spec.shape) > 1 else zeros[0]]}


def _values(facts: ModelFacts) -> int:
    return sum(prod(_shape(spec)) for spec in facts.inputs)


def _shape(spec: TensorSpec) -> list[int]:
    """One item; axes of any length have 1."""
    return [1 if size == -1 else size for size in spec.shape]


def _zeros(spec: TensorSpec) -> list[Any]:
    return [_ZERO_OF.get(spec.datatype, 0)] * prod(_shape(spec))
