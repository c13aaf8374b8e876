"""The document behind /docs. Litestar writes the part of its own handlers from their types.

    schemas.py      shapes of requests and answers of the short way
    operations.py   its operations: add those that Litestar does not know here
    page.py         the page that shows the document

Checked by tests/http/test_routes.py.
"""

from litestar import Litestar
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Tag

from service.frontend.openapi.operations import prediction_paths
from service.frontend.openapi.page import SwaggerPage, page_file

__all__ = ["add_predictions", "openapi_config", "page_file"]


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
            Tag("health", "For probes and load balancers."),
            Tag("metrics", "For Prometheus."),
        ],
    )


def add_predictions(app: Litestar) -> None:
    """Put the operations of the short way into the app's document, first."""
    schema = app.openapi_schema
    schema.paths = {**prediction_paths(), **(schema.paths or {})}
