"""The page at /docs and the document it shows. It works without the internet: script and style are served from here."""

from pathlib import Path
from typing import Any

from litestar import Request, Response, get
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin
from litestar.params import FromPath

from service.errors import NotFound
from service.frontend.openapi.examples import with_examples

_FILES = Path(__file__).parents[1] / "static/swagger-ui"
_MEDIA_TYPES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}


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
  <style>
    .swagger-ui .info { margin: 24px 0 }
    .swagger-ui .scheme-container, .swagger-ui .response-col_links { display: none }
    /* All errors have one body and the same headers: their line says when, and that is enough. */
    .swagger-ui .responses-table:not(.live-responses-table) .response:not([data-code^="2"])
      :is(.response-controls, .model-example, .headers-wrapper) { display: none }
  </style>
</head>
<body>
  <div id="page"></div>
  <script src="/static/swagger-ui/swagger-ui-bundle.js"></script>
  <script>SwaggerUIBundle({
    url: "/docs/openapi.json", dom_id: "#page", tryItOutEnabled: true, defaultModelsExpandDepth: 0
  })</script>
</body>
</html>
"""


class LiveDocument(JsonRenderPlugin):
    """The document, with examples of the models that are loaded when it is asked for."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        models = [model.facts for model in request.app.state.engines.models()]
        return super().render(request, with_examples(openapi_schema, models))


@get("/static/swagger-ui/{name:str}", include_in_schema=False, sync_to_thread=True)
def page_file(name: FromPath[str]) -> Response[bytes]:
    """The page's script and style, kept and sent compressed: every browser takes that."""
    if name not in _MEDIA_TYPES:
        raise NotFound(f"no such file: {name}")
    return Response(
        (_FILES / f"{name}.gz").read_bytes(),
        media_type=_MEDIA_TYPES[name],
        headers={"content-encoding": "gzip", "cache-control": "max-age=86400"},
    )
