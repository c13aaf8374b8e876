"""The document behind /docs. Litestar writes the part of its own handlers; predictions take the short way in front of
Litestar, so their operations are written here. The page works without the internet: its script is served from here.
"""

from pathlib import Path
from typing import Any

from litestar import Litestar, Request, Response, get
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin
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
    Tag,
)
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType

from service.errors import NotFound

_FILES = Path(__file__).parent / "static/swagger-ui"
_MEDIA_TYPES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}

_STRING = Schema(type=OpenAPIType.STRING)
_BYTES = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
_ERROR = Schema(type=OpenAPIType.OBJECT, required=["error"], properties={"error": _STRING})

_TENSOR_PROPERTIES: dict[str, Schema | Reference] = {
    "name": _STRING,
    "shape": Schema(type=OpenAPIType.ARRAY, items=Schema(type=OpenAPIType.INTEGER)),
    "datatype": Schema(type=OpenAPIType.STRING, examples=["UINT8"]),
    "data": Schema(type=OpenAPIType.ARRAY, items=Schema(), description="Nested or flat, row-major."),
    "parameters": Schema(type=OpenAPIType.OBJECT),
}
_INFER_REQUEST = Schema(
    type=OpenAPIType.OBJECT,
    required=["inputs"],
    properties={
        "id": _STRING,
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
                properties={"name": _STRING, "parameters": Schema(type=OpenAPIType.OBJECT)},
            ),
        ),
    },
)
_INFER_RESPONSE = Schema(
    type=OpenAPIType.OBJECT,
    required=["model_name", "model_version", "outputs"],
    properties={
        "model_name": _STRING,
        "model_version": _STRING,
        "id": _STRING,
        "outputs": Schema(
            type=OpenAPIType.ARRAY,
            items=Schema(
                type=OpenAPIType.OBJECT, required=["name", "shape", "datatype"], properties=_TENSOR_PROPERTIES
            ),
        ),
    },
)
_LABEL: dict[str, Schema | Reference] = {"label": _STRING, "probability": Schema(type=OpenAPIType.NUMBER)}
_PREDICTIONS = Schema(
    type=OpenAPIType.OBJECT,
    required=["model", "version", "predictions"],
    properties={
        "model": _STRING,
        "version": _STRING,
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


def _path_parameter(name: str) -> Parameter:
    return Parameter(name=name, param_in="path", required=True, schema=_STRING)


def _responses(schema: Schema, binary: bool) -> dict[str, OpenAPIResponse | Reference]:
    content = {"application/json": OpenAPIMediaType(schema=schema)}
    if binary:
        content["application/octet-stream"] = OpenAPIMediaType(schema=_BYTES)
    error = {"application/json": OpenAPIMediaType(schema=_ERROR)}
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
                    "application/json": OpenAPIMediaType(schema=_INFER_REQUEST),
                    "application/octet-stream": OpenAPIMediaType(schema=_BYTES),
                },
            ),
            responses=_responses(_INFER_RESPONSE, binary=True),
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
                        "image/png": OpenAPIMediaType(schema=_BYTES),
                        "image/jpeg": OpenAPIMediaType(schema=_BYTES),
                        "application/json": OpenAPIMediaType(
                            schema=Schema(
                                type=OpenAPIType.OBJECT,
                                required=["instances"],
                                properties={"instances": Schema(type=OpenAPIType.ARRAY, items=Schema(), min_items=1)},
                            ),
                            examples={"rows": Example(value={"instances": [[0, 0, 255]]})},
                        ),
                        "application/octet-stream": OpenAPIMediaType(schema=_BYTES),
                    },
                ),
                responses=_responses(_PREDICTIONS, binary=False),
            )
        ),
        "/v2/models/{model_name}/infer": _infer([name], "Infer"),
        "/v2/models/{model_name}/versions/{model_version}/infer": _infer([name, version], "InferVersion"),
    }


class SwaggerPage(OpenAPIRenderPlugin):
    """Swagger UI from this server's own files."""

    def __init__(self) -> None:
        super().__init__(path="/")

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return b"""<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>Shoal API</title>
  <link rel="icon" href="data:,">
  <link rel="stylesheet" href="/static/swagger-ui/swagger-ui.css">
  <style>.swagger-ui .info { margin: 24px 0 } .swagger-ui .scheme-container { display: none }</style>
</head>
<body>
  <div id="page"></div>
  <script src="/static/swagger-ui/swagger-ui-bundle.js"></script>
  <script>SwaggerUIBundle({ url: "/docs/openapi.json", dom_id: "#page", tryItOutEnabled: true })</script>
</body>
</html>
"""


@get("/static/swagger-ui/{name:str}", include_in_schema=False, sync_to_thread=True)
def page_file(name: str) -> Response[bytes]:
    """The page's script and style, kept and sent compressed: every browser takes that."""
    if name not in _MEDIA_TYPES:
        raise NotFound(f"no such file: {name}")
    return Response(
        (_FILES / f"{name}.gz").read_bytes(),
        media_type=_MEDIA_TYPES[name],
        headers={"content-encoding": "gzip", "cache-control": "max-age=86400"},
    )


def openapi_config(version: str) -> OpenAPIConfig:
    return OpenAPIConfig(
        title="Shoal",
        version=version,
        description="Predictions from ONNX models over HTTP. Every answer carries `X-Request-ID` and `Server-Timing`; "
        'every error is `{"error": "..."}` with the status that fits.',
        path="/docs",
        render_plugins=[SwaggerPage(), JsonRenderPlugin()],
        tags=[
            Tag("predictions", "What the server is for."),
            Tag("metadata", "What it serves."),
            Tag("statistics", "What was asked so far."),
            Tag("repository", "What there is to serve."),
            Tag("settings", "What the protocol's clients may ask of logging and tracing."),
            Tag("health", "For probes and load balancers."),
            Tag("metrics", "For Prometheus."),
        ],
    )


def add_predictions(app: Litestar) -> None:
    """Put the operations of the short way into the app's document, first."""
    schema = app.openapi_schema
    schema.paths = {**prediction_paths(), **(schema.paths or {})}
