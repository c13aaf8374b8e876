"""The operations of the short way: predictions go past Litestar, so it cannot describe them."""

from litestar.openapi.spec import (
    OpenAPI,
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    Parameter,
    PathItem,
    RequestBody,
    Schema,
)
from litestar.openapi.spec.enums import OpenAPIType

from service.errors import (
    BodyTimeout,
    BodyTooLarge,
    DeadlineExceeded,
    EngineError,
    MalformedRequest,
    NotAcceptable,
    Overloaded,
    UnknownModel,
    UnsupportedMediaType,
)
from service.frontend.openapi.answers import error_responses
from service.frontend.openapi.schemas import BYTES, CSV, FORM, INFERRED, LINES, PREDICTED, STRING, named

NAME = Parameter(name="model_name", param_in="path", required=True, schema=STRING)
VERSION = Parameter(
    name="model_version",
    param_in="path",
    required=True,
    description="A version's number, or a label that points to one.",
    schema=STRING,
)
VERSION_HEADER = {
    "X-Model-Version": OpenAPIHeader(
        schema=STRING, description="The version that answered, where the body does not tell it."
    )
}
_HEADER_LENGTH = "Inference-Header-Content-Length"
_LENGTH = Schema(type=OpenAPIType.INTEGER, minimum=0)
PREDICTION_ERRORS = (
    *(MalformedRequest, UnknownModel, BodyTimeout, BodyTooLarge),
    *(EngineError, Overloaded, DeadlineExceeded),
)


def prediction_paths() -> dict[str, PathItem]:
    model, version = "/v2/models/{model_name}", "/versions/{model_version}"
    return {
        "/predict/{model_name}": PathItem(post=_predict("Predict", NAME)),
        f"/predict/{{model_name}}{version}": PathItem(post=_predict("PredictVersion", NAME, VERSION)),
        f"{model}/infer": PathItem(post=_infer("Infer", NAME)),
        f"{model}{version}/infer": PathItem(post=_infer("InferVersion", NAME, VERSION)),
    }


def add_optional_bodies(document: OpenAPI) -> None:
    """Of handlers that read an optional body themselves, so that Litestar cannot describe it."""
    schemas = document.components.schemas
    trace = _part_of(schemas["TraceSettings"])
    control = Schema(type=OpenAPIType.OBJECT, properties={"parameters": Schema(type=OpenAPIType.OBJECT)})
    bodies = {
        "/v2/repository/index": Schema(
            type=OpenAPIType.OBJECT, properties={"ready": Schema(type=OpenAPIType.BOOLEAN, default=False)}
        ),
        "/v2/repository/models/{model_name}/load": control,
        "/v2/repository/models/{model_name}/unload": control,
        "/v2/logging": _part_of(schemas["LogSettings"]),
        "/v2/trace/setting": trace,
        "/v2/models/{model_name}/trace/setting": trace,
    }
    for path, schema in bodies.items():
        post = (document.paths or {})[path].post
        assert post is not None, f"bug: {path} is not answered"
        post.request_body = RequestBody(content={"application/json": OpenAPIMediaType(schema=schema)})


def _part_of(schema: Schema) -> Schema:
    """Some of its properties and no others."""
    return Schema(type=OpenAPIType.OBJECT, properties=schema.properties, additional_properties=False)


def _predict(operation_id: str, *path: Parameter) -> Operation:
    top_k = Parameter(
        name="top_k",
        param_in="query",
        description="How many labels to answer with each item.",
        schema=Schema(type=OpenAPIType.INTEGER, minimum=1, default=5),
    )
    answer = _answer(
        {
            "application/json": OpenAPIMediaType(schema=named("Predictions"), example=PREDICTED),
            "text/csv": OpenAPIMediaType(schema=CSV),
            "application/x-ndjson": OpenAPIMediaType(schema=LINES),
        }
    )
    answer.headers = {**VERSION_HEADER}
    binary = {media_type: OpenAPIMediaType(schema=BYTES) for media_type in ("image/png", "image/jpeg")}
    return Operation(
        operation_id=operation_id,
        tags=["predictions"],
        summary="Images, JSON or raw rows in; labels and probabilities out",
        parameters=[*path, top_k],
        request_body=RequestBody(
            required=True,
            description="Of an image model, any of the formats it takes. Raw rows are the items' bytes, row-major, "
            "little-endian, one item after another. Each part of a form is one item, an image or a raw row.",
            content={
                **binary,
                "multipart/form-data": OpenAPIMediaType(schema=FORM),
                "application/json": OpenAPIMediaType(schema=named("Instances")),
                "application/octet-stream": OpenAPIMediaType(schema=BYTES),
            },
        ),
        responses={"200": answer, **error_responses(*PREDICTION_ERRORS, NotAcceptable, UnsupportedMediaType)},
    )


def _infer(operation_id: str, *path: Parameter) -> Operation:
    length = Parameter(
        name=_HEADER_LENGTH,
        param_in="header",
        description="Bytes of JSON at the front of the body, where binary tensors follow; 0 where the body is one raw "
        "tensor; absent where it is all JSON.",
        schema=_LENGTH,
    )
    answer = _answer(
        {
            "application/json": OpenAPIMediaType(schema=named("InferResponse"), example=INFERRED),
            "application/octet-stream": OpenAPIMediaType(schema=BYTES),
        }
    )
    answer.headers = {
        _HEADER_LENGTH: OpenAPIHeader(schema=_LENGTH, description="Bytes of JSON in front of the binary outputs."),
    }
    return Operation(
        operation_id=operation_id,
        tags=["predictions"],
        summary="Open Inference Protocol: tensors in, tensors out",
        parameters=[*path, length],
        request_body=RequestBody(
            required=True,
            description="JSON; JSON with binary tensors behind it; or the only input as one raw tensor.",
            content={
                "application/json": OpenAPIMediaType(schema=named("InferRequest")),
                "application/octet-stream": OpenAPIMediaType(schema=BYTES),
            },
        ),
        responses={"200": answer, **error_responses(*PREDICTION_ERRORS)},
    )


def _answer(content: dict[str, OpenAPIMediaType]) -> OpenAPIResponse:
    return OpenAPIResponse(description="The answer.", content=content)
