"""The shapes of what predictions take and answer, for the operations that Litestar does not know."""

from collections.abc import Sequence
from typing import get_args

from litestar.openapi.spec import Reference, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType

from models.manifest import Datatype

STRING = Schema(type=OpenAPIType.STRING)
BYTES = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
_ANY = Schema()
_PARAMETERS = Schema(type=OpenAPIType.OBJECT)


def _array(items: Schema | Reference, description: str | None = None, min_items: int | None = None) -> Schema:
    return Schema(type=OpenAPIType.ARRAY, items=items, description=description, min_items=min_items)


def _object(required: Sequence[str], **properties: Schema | Reference) -> Schema:
    return Schema(type=OpenAPIType.OBJECT, required=list(required), properties=properties)


def named(name: str) -> Reference:
    """One of `SCHEMAS`, where it is kept in the document."""
    assert name in SCHEMAS, f"bug: no schema {name}"
    return Reference(ref=f"#/components/schemas/{name}")


FORM = Schema(
    type=OpenAPIType.OBJECT,
    properties={"image": _array(BYTES, "Each part is an item, whatever its field is called.")},
    additional_properties=_ANY,
    min_properties=1,
)
CSV = Schema(type=OpenAPIType.STRING, description="A header line, and a line for each item.")
LINES = Schema(type=OpenAPIType.STRING, description="A line of JSON for each item: what `predictions` has for it.")

_TENSOR: dict[str, Schema | Reference] = {
    "name": STRING,
    "shape": _array(Schema(type=OpenAPIType.INTEGER, minimum=0)),
    "datatype": Schema(type=OpenAPIType.STRING, enum=list(get_args(Datatype))),
    "parameters": _PARAMETERS,
    "data": _array(_ANY, "Nested or flat, row-major; absent where the tensor is binary."),
}
_LABEL: dict[str, Schema | Reference] = {
    "label": STRING,
    "probability": Schema(type=OpenAPIType.NUMBER),
}

SCHEMAS = {
    "InferRequest": _object(
        ["inputs"],
        id=STRING,
        parameters=_PARAMETERS,
        inputs=_array(_object(["name", "shape", "datatype"], **_TENSOR)),
        outputs=Schema(
            type=[OpenAPIType.ARRAY, OpenAPIType.NULL],
            items=_object(["name"], name=STRING, parameters=_PARAMETERS),
            description="Which outputs to answer, in this order; all where it is absent.",
        ),
    ),
    "InferResponse": _object(
        ["model_name", "model_version", "outputs"],
        model_name=STRING,
        model_version=STRING,
        id=STRING,
        outputs=_array(_object(["name", "shape", "datatype"], **_TENSOR)),
    ),
    "Instances": _object(
        ["instances"],
        instances=_array(_ANY, 'Items, each nested or flat, row-major, or `{"b64": image}`.', min_items=1),
    ),
    "Predictions": _object(
        ["model", "version", "predictions"],
        model=STRING,
        version=STRING,
        predictions=_array(
            Schema(any_of=[Reference(ref="#/components/schemas/Labelled"), Schema(type=OpenAPIType.OBJECT)]),
            "One for each item: its most probable label and the `top_k` best where the model has labels, else its "
            "outputs by name.",
        ),
    ),
    "Labelled": _object(
        ["label", "probability", "top"], **_LABEL, top=_array(_object(["label", "probability"], **_LABEL))
    ),
}

PREDICTED = {
    "model": "mnist",
    "version": "3",
    "predictions": [
        {
            "label": "7",
            "probability": 0.949916,
            "top": [{"label": "7", "probability": 0.949916}, {"label": "2", "probability": 0.008149}],
        }
    ],
}
INFERRED = {
    "model_name": "linear_regression",
    "model_version": "1",
    "outputs": [{"name": "prediction", "datatype": "FP32", "shape": [1, 1], "data": [16.25]}],
}
