"""The shapes of what predictions take and answer, for the operations that Litestar does not know."""

from litestar.openapi.spec import Reference, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType

STRING = Schema(type=OpenAPIType.STRING)
BYTES = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
ERROR = Schema(type=OpenAPIType.OBJECT, required=["error"], properties={"error": STRING})

_TENSOR_PROPERTIES: dict[str, Schema | Reference] = {
    "name": STRING,
    "shape": Schema(type=OpenAPIType.ARRAY, items=Schema(type=OpenAPIType.INTEGER)),
    "datatype": Schema(type=OpenAPIType.STRING, examples=["UINT8"]),
    "data": Schema(type=OpenAPIType.ARRAY, items=Schema(), description="Nested or flat, row-major."),
    "parameters": Schema(type=OpenAPIType.OBJECT),
}
INFER_REQUEST = Schema(
    type=OpenAPIType.OBJECT,
    required=["inputs"],
    properties={
        "id": STRING,
        "parameters": Schema(type=OpenAPIType.OBJECT),
        "inputs": Schema(
            type=OpenAPIType.ARRAY,
            items=Schema(
                type=OpenAPIType.OBJECT, required=["name", "shape", "datatype"], properties=_TENSOR_PROPERTIES
            ),
        ),
        "outputs": Schema(
            type=OpenAPIType.ARRAY,
            items=Schema(
                type=OpenAPIType.OBJECT,
                required=["name"],
                properties={"name": STRING, "parameters": Schema(type=OpenAPIType.OBJECT)},
            ),
        ),
    },
)
INFER_RESPONSE = Schema(
    type=OpenAPIType.OBJECT,
    required=["model_name", "model_version", "outputs"],
    properties={
        "model_name": STRING,
        "model_version": STRING,
        "id": STRING,
        "outputs": Schema(
            type=OpenAPIType.ARRAY,
            items=Schema(
                type=OpenAPIType.OBJECT, required=["name", "shape", "datatype"], properties=_TENSOR_PROPERTIES
            ),
        ),
    },
)
_LABEL: dict[str, Schema | Reference] = {"label": STRING, "probability": Schema(type=OpenAPIType.NUMBER)}
PREDICTIONS = Schema(
    type=OpenAPIType.OBJECT,
    required=["model", "version", "predictions"],
    properties={
        "model": STRING,
        "version": STRING,
        "predictions": Schema(
            type=OpenAPIType.ARRAY,
            description="One for each item; label and probability, and the top_k best, where the model has labels, "
            "else its outputs by name.",
            items=Schema(
                type=OpenAPIType.OBJECT,
                properties={
                    **_LABEL,
                    "top": Schema(type=OpenAPIType.ARRAY, items=Schema(type=OpenAPIType.OBJECT, properties=_LABEL)),
                },
            ),
        ),
    },
)
