"""The operations of the short way: predictions go past Litestar, so it cannot describe them."""

from litestar.openapi.spec import (
    Example,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    Parameter,
    PathItem,
    Reference,
    RequestBody,
    Schema,
)
from litestar.openapi.spec.enums import OpenAPIType

from service.frontend.openapi.schemas import BYTES, ERROR, INFER_REQUEST, INFER_RESPONSE, PREDICTIONS, STRING


def _path_parameter(name: str) -> Parameter:
    return Parameter(name=name, param_in="path", required=True, schema=STRING)


def _responses(schema: Schema, binary: bool) -> dict[str, OpenAPIResponse | Reference]:
    content = {"application/json": OpenAPIMediaType(schema=schema)}
    if binary:
        content["application/octet-stream"] = OpenAPIMediaType(schema=BYTES)
    error = {"application/json": OpenAPIMediaType(schema=ERROR)}
    described = {
        "400": "The body does not fit; the message names the field and what was expected.",
        "404": "No such model or version.",
        "408": "The body did not arrive in time.",
        "413": "The body is longer than the limit.",
        "415": "The body is of a type the model does not take.",
        "500": "The model failed on this input.",
        "503": "Overloaded, loading or draining; safe to send again after `Retry-After`.",
        "504": "The deadline passed.",
    }
    return {
        "200": OpenAPIResponse(description="The answer.", content=content),
        **{status: OpenAPIResponse(description=text, content=error) for status, text in described.items()},
    }


def _infer(parameters: list[Parameter], operation_id: str) -> PathItem:
    return PathItem(
        post=Operation(
            operation_id=operation_id,
            tags=["predictions"],
            summary="Open Inference Protocol: tensors in, tensors out",
            parameters=parameters,  # type: ignore[arg-type]
            request_body=RequestBody(
                required=True,
                content={
                    "application/json": OpenAPIMediaType(schema=INFER_REQUEST),
                    "application/octet-stream": OpenAPIMediaType(schema=BYTES),
                },
            ),
            responses=_responses(INFER_RESPONSE, binary=True),
        )
    )


def prediction_paths() -> dict[str, PathItem]:
    name, version = _path_parameter("model_name"), _path_parameter("model_version")
    return {
        "/predict/{model_name}": PathItem(
            post=Operation(
                operation_id="Predict",
                tags=["predictions"],
                summary="An image, JSON or raw rows in; labels and probabilities out",
                parameters=[
                    name,
                    Parameter(
                        name="top_k",
                        param_in="query",
                        required=False,
                        schema=Schema(type=OpenAPIType.INTEGER, minimum=1, default=5),
                    ),
                ],
                request_body=RequestBody(
                    required=True,
                    content={
                        "image/png": OpenAPIMediaType(schema=BYTES),
                        "image/jpeg": OpenAPIMediaType(schema=BYTES),
                        "application/json": OpenAPIMediaType(
                            schema=Schema(
                                type=OpenAPIType.OBJECT,
                                required=["instances"],
                                properties={"instances": Schema(type=OpenAPIType.ARRAY, items=Schema(), min_items=1)},
                            ),
                            examples={"rows": Example(value={"instances": [[0, 0, 255]]})},
                        ),
                        "application/octet-stream": OpenAPIMediaType(schema=BYTES),
                    },
                ),
                responses=_responses(PREDICTIONS, binary=False),
            )
        ),
        "/v2/models/{model_name}/infer": _infer([name], "Infer"),
        "/v2/models/{model_name}/versions/{model_version}/infer": _infer([name, version], "InferVersion"),
    }
