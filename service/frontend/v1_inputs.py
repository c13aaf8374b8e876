"""What a v1 request gives, by input: `v1.py` reads the request, this its values.

Row by row or as tensors, each input's items end up in one JSON array; what follows is the same for both.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from models.manifest import TensorInput, TensorSpec
from service.batching.arena import MOST_ITEM_AXES, Rows
from service.batching.claim import ServedModel
from service.batching.link import ModelFacts
from service.errors import MalformedRequest, WrongTensor
from service.frontend.http import decode_json
from service.frontend.images import Item, bytes_of, items_from_json
from service.frontend.shaped import shaped_rows_from_instances
from service.frontend.tensors import rows_from_json
from service.settings import Images


class Given(NamedTuple):
    """
    arrays   a JSON array of items for each input
    field    what to call them in an error
    n_items  known only where there is no input to count
    """

    arrays: Mapping[str, msgspec.Raw]
    field: str
    n_items: int = 1


def from_instances(facts: ModelFacts, data: msgspec.Raw) -> Given:
    """Row format. Raises MalformedRequest, WrongTensor."""
    if len(facts.inputs) == 1 and b"{" not in bytes(data):
        return Given({facts.inputs[0].name: data}, "instances")
    instances: list[msgspec.Raw] = decode_json(data, list[msgspec.Raw], "instances")
    items = [_item(facts, bytes(instance), f"instances[{i}]") for i, instance in enumerate(instances)]
    return _by_input(facts, items, "instances")


def from_inputs(facts: ModelFacts, data: msgspec.Raw) -> Given:
    """Column format. Raises MalformedRequest, WrongTensor."""
    given = bytes(data)
    tensors: dict[str, bytes] | None = None
    if given.startswith(b"{"):
        values: dict[str, msgspec.Raw] = decode_json(data, dict[str, msgspec.Raw], "inputs")
        if len(facts.inputs) != 1 or values.keys() != {"b64"}:
            _check_names(values, [spec.name for spec in facts.inputs], "inputs")
            tensors = {name: bytes(value) for name, value in values.items()}
    if tensors is None:
        tensors = {_only_input(facts, "inputs"): given}
    # Without a batch axis a tensor is one item; a single {"b64": ...} is one, too.
    arrays = {
        name: msgspec.Raw(b"[%s]" % tensor if not facts.batch_axis or tensor.startswith(b"{") else tensor)
        for name, tensor in tensors.items()
    }
    return Given(arrays, "inputs")


def from_examples(
    facts: ModelFacts, examples: Sequence[Mapping[str, msgspec.Raw]], context: Mapping[str, msgspec.Raw]
) -> Given:
    """Raises WrongTensor."""
    items = []
    for i, example in enumerate(examples):
        if both := example.keys() & context.keys():
            raise WrongTensor(f"examples[{i}] has {_listed(both)}, which context has too; expected in one of them")
        items.append(_named(facts, {**context, **example}, f"examples[{i}]"))
    return _by_input(facts, items, "examples")


def rows_of(model: ServedModel, data: Given) -> tuple[dict[str, Rows], int]:
    """The rows of every input, and how many items they are. Raises WrongTensor."""
    rows: dict[str, Rows] = {}
    counts: dict[str, int] = {}
    for spec in model.facts.inputs:
        array = _with_text(spec, data.arrays[spec.name], data.field)
        if spec.name in model.inputs:
            rows[spec.name], counts[spec.name] = rows_from_json(model.facts, spec, array, None, data.field)
        else:
            shaped = shaped_rows_from_instances(model.facts, spec, array, data.field)
            rows[spec.name], counts[spec.name] = shaped, len(shaped)
    if len(set(counts.values())) > 1:
        raise WrongTensor(f"{data.field} have first dimensions {counts}; expected the same in all")
    return rows, next(iter(counts.values()), data.n_items)


def images_in(model: ServedModel, data: Given, images: Images) -> list[Item] | None:
    """The items of a model that takes images; None where all are numbers. Raises MalformedImage, WrongTensor."""
    spec = model.facts.inputs[0]
    array = data.arrays[spec.name]
    if b'"b64"' not in bytes(array):
        return None
    return items_from_json(model, spec, array, images, data.field)


def _item(facts: ModelFacts, instance: bytes, where: str) -> dict[str, bytes]:
    """One instance's value for each input."""
    if not instance.startswith(b"{"):
        return {_only_input(facts, where): instance}
    values: dict[str, msgspec.Raw] = decode_json(instance, dict[str, msgspec.Raw], where)
    if len(facts.inputs) == 1 and values.keys() == {"b64"}:
        return {facts.inputs[0].name: instance}
    return _named(facts, values, where)


def _named(facts: ModelFacts, values: Mapping[str, msgspec.Raw], where: str) -> dict[str, bytes]:
    """By input; where the columns of the only one have names, they may be given instead."""
    features = facts.input.features if isinstance(facts.input, TensorInput) and len(facts.inputs) == 1 else ()
    if features and not values.keys() & {facts.inputs[0].name}:
        _check_names(values, features, where)
        return {facts.inputs[0].name: b"[%s]" % b",".join(bytes(values[feature]) for feature in features)}
    _check_names(values, [spec.name for spec in facts.inputs], where)
    return {name: bytes(value) for name, value in values.items()}


def _by_input(facts: ModelFacts, items: Sequence[Mapping[str, bytes]], field: str) -> Given:
    if not items:
        raise WrongTensor(f"{field} is empty; expected at least one item")
    arrays = {spec.name: msgspec.Raw(b"[%s]" % b",".join([item[spec.name] for item in items])) for spec in facts.inputs}
    return Given(arrays, field, len(items))


def _only_input(facts: ModelFacts, where: str) -> str:
    if len(facts.inputs) != 1:
        names = [spec.name for spec in facts.inputs]
        raise WrongTensor(f"{where} is a plain value; expected an object with a value for each of {_listed(names)}")
    return facts.inputs[0].name


def _check_names(values: Mapping[str, Any], expected: Sequence[str], where: str) -> None:
    if missing := [name for name in expected if name not in values]:
        raise WrongTensor(f"{where} has no {_listed(missing)}; expected {_listed(expected)}")
    if more := values.keys() - set(expected):
        raise WrongTensor(f"{where} has {_listed(sorted(more))}; expected {_listed(expected)}")


def _listed(names: Any) -> str:  # Any: whatever can be iterated over
    return ", ".join(map(repr, names)) or "nothing"


def _with_text(spec: TensorSpec, data: msgspec.Raw, field: str) -> msgspec.Raw:
    """`data` with the text for each {"b64": ...} of a BYTES tensor."""
    if spec.datatype != "BYTES" or b'"b64"' not in bytes(data):
        return data
    return msgspec.Raw(msgspec.json.encode(_text(decode_json(data, list[Any], field), field, 0)))


def _text(value: Any, field: str, depth: int) -> Any:  # Any: JSON
    if depth > MOST_ITEM_AXES + 1:
        raise WrongTensor(f"{field} is nested too deeply; expected at most {MOST_ITEM_AXES + 1} axes")
    if isinstance(value, list):
        return [_text(entry, field, depth + 1) for entry in value]
    if not isinstance(value, dict):
        return value
    if value.keys() != {"b64"} or not isinstance(value["b64"], str):
        raise MalformedRequest(f'{field} holds an object with {_listed(value)}; expected {{"b64": text}}')
    try:
        return bytes_of(value["b64"], field).decode()
    except UnicodeDecodeError as error:
        raise WrongTensor(f"{field}: what b64 holds is not UTF-8 ({error.reason}); onnxruntime takes text") from error
