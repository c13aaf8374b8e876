"""What /predict answers: the labels or outputs of each item, as JSON, CSV or NDJSON.

json      {"model": …, "version": …, "predictions": [item, …]}; the others tell the version in a header
ndjson    a line for each item, the object that JSON has for it
csv       a header line and a line for each item (RFC 4180), for spreadsheets and pandas.read_csv:
          label,probability,label_2,probability_2,…      the `top_k` best, where the model has labels
          y,z_0,z_1,…                                    else its outputs: a column, or one for each element of an
                                                         item; where items differ in size a column of JSON
"""

import csv
import functools
import io
from collections.abc import Callable
from math import prod
from typing import Any

import msgspec
from msgspec import Struct

from models.manifest import Classification, TensorSpec
from service.batching.arena import item_shape
from service.batching.claim import Claim
from service.batching.link import ModelFacts
from service.frontend.accept import Form
from service.frontend.http import Answer
from service.frontend.prepared import version_header
from service.frontend.shaped import nested_values

DEFAULT_TOP_K = 5
_PROBABILITY_DIGITS = 6
_CSV = b"text/csv; charset=utf-8"
_NDJSON = b"application/x-ndjson"

_encoder = msgspec.json.Encoder()


class Label(Struct):
    label: str
    probability: float


class Labelled(Struct):
    """One item of a classifier: the most probable label, and the best `top_k`."""

    label: str
    probability: float
    top: list[Label]


def encoding(facts: ModelFacts, form: Form = "json", top_k: int = DEFAULT_TOP_K) -> Callable[[Claim], Answer]:
    """From a claim that is done to its answer."""
    read: Callable[[Claim], list[Any]]  # Any: Labelled, or a dictionary of outputs
    write_csv: Callable[[Callable[[Claim], list[Any]], Claim], Answer]
    if facts.classification is None:
        read, write_csv = _outputs, _encode_outputs_csv
    else:
        read, write_csv = functools.partial(_labelled, facts.classification, top_k), _encode_labels_csv
    match form:
        case "json":
            begins = _encoder.encode({"model": facts.name, "version": facts.version})[:-1] + b',"predictions":'
            return functools.partial(_encode_json, begins, read)
        case "ndjson":
            return functools.partial(_encode_lines, read)
        case "csv":
            return functools.partial(write_csv, read)


def _encode_json(begins: bytes, read: Callable[[Claim], list[Any]], claim: Claim) -> Answer:
    return Answer(b"%s%s}" % (begins, _encoder.encode(read(claim))))


def _encode_lines(read: Callable[[Claim], list[Any]], claim: Claim) -> Answer:
    return Answer(_encoder.encode_lines(read(claim)), _NDJSON, headers=version_header(claim))


def _encode_labels_csv(read: Callable[[Claim], list[Any]], claim: Claim) -> Answer:
    predictions: list[Labelled] = read(claim)
    columns = ["label", "probability"]
    for place in range(2, len(predictions[0].top) + 1):
        columns += [f"label_{place}", f"probability_{place}"]
    rows = [[cell for best in item.top for cell in (best.label, best.probability)] for item in predictions]
    return _csv_answer(claim, columns, rows)


def _encode_outputs_csv(read: Callable[[Claim], list[Any]], claim: Claim) -> Answer:
    """The columns follow from the model, and where an output has an axis of any length it is one column."""
    model = claim.model
    columns: list[str] = []
    for spec in model.facts.outputs:
        columns += _columns(spec, model.facts.batch_axis) if spec.name in model.outputs else [spec.name]
    rows: list[list[Any]] = []
    for item in read(claim):
        row: list[Any] = []
        for name, value in item.items():
            if name in model.outputs:
                row += value
            else:
                row.append(_encoder.encode(value).decode() if isinstance(value, list) else value)
        rows.append(row)
    return _csv_answer(claim, columns, rows)


def _columns(spec: TensorSpec, batch_axis: bool) -> list[str]:
    """One for each element of an item of fixed size, row-major."""
    elements = prod(item_shape(spec, batch_axis))
    return [spec.name] if elements == 1 else [f"{spec.name}_{i}" for i in range(elements)]


def _csv_answer(claim: Claim, columns: list[str], rows: list[list[Any]]) -> Answer:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    return Answer(text.getvalue().encode(), _CSV, headers=version_header(claim))


def _labelled(classification: Classification, top_k: int, claim: Claim) -> list[Labelled]:
    """The most probable labels of each item, best first."""
    labels = classification.labels
    predictions = []
    for row in claim.read(classification.output).tolist():
        best = sorted(range(len(labels)), key=row.__getitem__, reverse=True)[:top_k]  # equals keep their order
        top = [Label(labels[i], round(row[i], _PROBABILITY_DIGITS)) for i in best]
        predictions.append(Labelled(top[0].label, top[0].probability, top))
    return predictions


def _outputs(claim: Claim) -> list[dict[str, Any]]:
    """Every output of each item: flat, or nested where items differ in size."""
    columns: dict[str, list[Any]] = {}
    for spec in claim.model.facts.outputs:
        if spec.name in claim.model.outputs:
            columns[spec.name] = claim.read(spec.name).tolist()  # flat: its rows have one axis
        else:
            columns[spec.name] = [nested_values(spec, row) for row in claim.read_shaped(spec.name)]
    return [{name: column[i] for name, column in columns.items()} for i in range(len(claim.slots))]
