"""The model repository extension: what there is, and loading and unloading by request.

Every version that was found is in the index, with its state and, where it does not answer, the reason. Models are those
of the start, so `load` and `unload` are refused.
"""

from typing import Any

from litestar import Request, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from msgspec import Struct

from service.batching.client import version_key
from service.batching.engines import Engines
from service.errors import MalformedRequest, ModelControlOff, NotFound
from service.frontend.http import decode_json
from service.frontend.openapi.answers import errors

_CONTROL = "none"


class IndexRequest(Struct):
    ready: bool = False


class IndexEntry(Struct):
    """One version. `state` is LOADING, READY, UNLOADING or UNAVAILABLE, with the reason."""

    name: str
    version: str
    state: str
    reason: str


def index(engines: Engines, ready_only: bool = False) -> list[IndexEntry]:
    """By name and version."""
    entries = [IndexEntry(each.name, each.version, each.state, each.reason) for each in engines.states().values()]
    wanted = [entry for entry in entries if entry.state == "READY" or not ready_only]
    return sorted(wanted, key=lambda entry: (entry.name, version_key(entry.version)))


def refuse_control(verb: str, model: str) -> ModelControlOff:
    """`verb` is load or unload."""
    return ModelControlOff(
        f"cannot {verb} {model!r}: model control is {_CONTROL!r}, so the models are those that were there at the start"
    )


async def _index(state: State, request: Request[Any, Any, Any]) -> list[IndexEntry]:
    body = await request.body()
    wanted: IndexRequest = decode_json(body, IndexRequest, "the index request") if body.strip() else IndexRequest()
    return index(state.engines, wanted.ready)


def _control(verb: str) -> HTTPRouteHandler:
    @post(
        f"/v2/repository/models/{{model_name:str}}/{verb}",
        status_code=200,
        tags=["repository"],
        summary=f"{verb.capitalize()} a model: refused, as models are those of the start",
        operation_id=f"{verb.capitalize()}Model",
        responses=errors(ModelControlOff),
    )
    async def control(model_name: FromPath[str]) -> None:
        raise refuse_control(verb, model_name)

    return control


@post(
    "/v2/repository/index",
    status_code=200,
    tags=["repository"],
    summary="Every version with its state and the reason; the body may be empty",
    responses=errors(MalformedRequest),
)
async def repository_index(state: State, request: Request[Any, Any, Any]) -> list[IndexEntry]:
    return await _index(state, request)


@post("/v2/repository/{repository:str}/index", status_code=200, include_in_schema=False)
async def named_repository_index(state: State, request: Request[Any, Any, Any]) -> list[IndexEntry]:
    """There is one repository, whatever it is called."""
    return await _index(state, request)


@post("/v2/repository/{repository:str}/models/{model_name:str}/{verb:str}", include_in_schema=False)
async def named_control(model_name: FromPath[str], verb: FromPath[str]) -> None:
    if verb not in ("load", "unload"):
        raise NotFound(f"{verb!r} is nothing to do with a model; expected load or unload")
    raise refuse_control(verb, model_name)


HANDLERS = (repository_index, named_repository_index, _control("load"), _control("unload"), named_control)
