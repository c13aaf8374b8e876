"""Which methods a path of Litestar answers, for `Allow`: its own 405 does not say, and its OPTIONS tells of one handler
where a path has several.
"""

import re

from litestar import Litestar
from litestar.routes import HTTPRoute
from litestar.types.internal_types import PathParameterDefinition


def allowed_methods(app: Litestar, path: str) -> str:
    """As `Allow` has them; "" where there is no such path."""
    routes = [route for route in app.routes if isinstance(route, HTTPRoute) and _pattern(route).fullmatch(path)]
    # Litestar too takes a path as it stands before one with parameters.
    best = min(routes, key=lambda route: len(route.path_parameters), default=None)
    return ", ".join(sorted(best.methods - {"OPTIONS"})) if best is not None else ""


def _pattern(route: HTTPRoute) -> re.Pattern[str]:
    """Python keeps what it has compiled."""
    return re.compile("".join(f"/{_part(part)}" for part in route.path_components) + "/?")


def _part(part: str | PathParameterDefinition) -> str:
    if isinstance(part, str):
        return re.escape(part)
    return ".+" if part.full.endswith(":path") else "[^/]+"
