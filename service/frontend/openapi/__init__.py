"""The document behind /docs. Litestar writes the part of its own handlers from their types.

    answers.py      what all answers share: `errors(...)` for a handler's `responses`, headers, 405
    schemas.py      shapes of requests and answers of the short way
    operations.py   its operations: those that Litestar does not know are added here
    v1.py           the same for /v1/models/…:predict, :classify, :regress
    examples.py     what can be tried with the models that are loaded
    page.py         the page that shows the document

Checked by tests/http/test_openapi.py, which sends what the document allows and forbids to a server.
"""

from litestar import Litestar
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, PathItem, SecurityScheme, Tag
from litestar.types import Method
from litestar.types.internal_types import PathParameterDefinition

from service.frontend.openapi.answers import complete, operations_of
from service.frontend.openapi.operations import add_optional_bodies, prediction_paths
from service.frontend.openapi.page import LiveDocument, SwaggerPage, page_file
from service.frontend.openapi.schemas import SCHEMAS
from service.frontend.openapi.v1 import V1_SCHEMAS, v1_paths

__all__ = ["finish_document", "openapi_config", "page_file"]

_TAGS = {
    "predictions": "What the server is for.",
    "metadata": "What it serves.",
    "v1": "For clients of TensorFlow Serving and of KServe's first protocol.",
    "statistics": "What was asked so far.",
    "repository": "What there is to serve.",
    "admin": "Which versions are served, and which answers. On the port of `admin.port`; on the public one where "
    "`admin.public` is set, else these paths are not there.",
    "settings": "What the protocol's clients may ask of logging and tracing.",
    "health": "For probes and load balancers.",
    "metrics": "For Prometheus.",
}


def openapi_config(version: str) -> OpenAPIConfig:
    return OpenAPIConfig(
        title="Shoal",
        version=version,
        description="Predictions from ONNX models over HTTP. Every answer carries `X-Request-ID` and `Server-Timing`; "
        'every error is `{"error": "..."}` with the status that fits. The examples name models that are loaded now.',
        path="/docs",
        render_plugins=[SwaggerPage(), LiveDocument()],
        tags=[Tag(name, description) for name, description in _TAGS.items()],
        components=Components(
            security_schemes={
                "key": SecurityScheme(type="http", scheme="bearer", description="The key of the admin API.")
            }
        ),
        operation_id_creator=_operation_id,
    )


def finish_document(app: Litestar) -> None:
    """Put in the operations of the short way and what all operations share; order them as the page shows them."""
    document = app.openapi_schema
    all_paths = {**prediction_paths(), **v1_paths(), **(document.paths or {})}
    document.paths = dict(sorted(all_paths.items(), key=lambda entry: _place(*entry)))
    add_optional_bodies(document)
    document.components.schemas.update(SCHEMAS | V1_SCHEMAS)
    complete(document)


def _place(path: str, item: PathItem) -> tuple[int, str]:
    """Where on the page: by tag, then by path."""
    tags = [tag for operation in operations_of(item) for tag in operation.tags or ()]
    places = list(_TAGS)
    return min((places.index(tag) for tag in tags if tag in places), default=len(places)), path


def _operation_id(handler: HTTPRouteHandler, _: Method, path: list[str | PathParameterDefinition]) -> str:
    """The handler's name, as generated clients call it; with what tells apart its other paths."""
    name = handler.handler_name.title().replace("_", "")
    first = path[0] if path and isinstance(path[0], str) else ""
    prefix = "" if first == "v2" or first == handler.handler_name else first.title()
    versioned = any(isinstance(part, PathParameterDefinition) and part.name == "model_version" for part in path)
    return f"{prefix}{name}{'Version' if versioned else ''}"
