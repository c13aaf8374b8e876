"""The model repository extension: what there is, and loading and unloading by request.

Every version that was found is in the index, with its state and, where it does not answer, the reason. The index is
public; loading and unloading are for who may use the admin API (auth.py), in mode `explicit`.
"""

from collections.abc import Iterable
from typing import Any, Literal

from litestar import Request, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from msgspec import Struct

from service.batching.client import version_key
from service.batching.engines import Engines
from service.errors import (
    ControllerGone,
    LoadRefused,
    MalformedRequest,
    ModelControlOff,
    NotSupported,
    Unauthorized,
    UnknownModel,
    VersionInUse,
)
from service.frontend.auth import control_guard
from service.frontend.http import decode_json
from service.frontend.openapi.answers import BEARER, errors
from service.lifecycle.controls import Controls
from service.lifecycle.messages import LoadModel, UnloadModel

Verb = Literal["load", "unload"]

_COMMANDS: dict[str, type[LoadModel | UnloadModel]] = {"load": LoadModel, "unload": UnloadModel}
_WHAT = {"load": "Load the versions that the model's policy wants", "unload": "Unload every version of a model"}


class IndexRequest(Struct):
    ready: bool = False


class ControlRequest(Struct):
    """What Triton's clients may send along; of `parameters` only the names are looked at."""

    parameters: dict[str, Any] = {}


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


async def load_or_unload(controls: Controls, verb: Verb, model: str, parameters: Iterable[str]) -> None:
    """Until it is done. Raises NotSupported, MalformedRequest and what the controller refuses with."""
    for name in parameters:
        if verb == "load" and (name == "config" or name.startswith("file:")):
            raise NotSupported(f"parameters.{name}: a model is loaded as it is in the repository; write it there")
        if (verb, name) != ("unload", "unload_dependents"):
            raise MalformedRequest(f"parameters.{name}: there is no such parameter of {verb}")
    await controls.ask(_COMMANDS[verb](model))


async def _index(state: State, request: Request[Any, Any, Any]) -> list[IndexEntry]:
    body = await request.body()
    wanted: IndexRequest = decode_json(body, IndexRequest, "the index request") if body.strip() else IndexRequest()
    return index(state.engines, wanted.ready)


async def _control(state: State, request: Request[Any, Any, Any], verb: Verb, model: str) -> None:
    body = await request.body()
    wanted: ControlRequest = (
        decode_json(body, ControlRequest, f"the {verb} request") if body.strip() else ControlRequest()
    )
    await load_or_unload(state.controls, verb, model, wanted.parameters)


def _control_handler(verb: Verb) -> HTTPRouteHandler:
    @post(
        f"/v2/repository/models/{{model_name:str}}/{verb}",
        status_code=200,
        tags=["repository"],
        summary=f"{_WHAT[verb]}; 403 where that is not switched on",
        operation_id=f"{verb.capitalize()}Model",
        responses=errors(
            *(MalformedRequest, LoadRefused, Unauthorized, ModelControlOff, UnknownModel, VersionInUse),
            *(NotSupported, ControllerGone),
        ),
        security=BEARER,
        guards=[control_guard],
    )
    async def control(state: State, request: Request[Any, Any, Any], model_name: FromPath[str]) -> None:
        await _control(state, request, verb, model_name)

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


def _named_control_handler(verb: Verb) -> HTTPRouteHandler:
    @post(
        f"/v2/repository/{{repository:str}}/models/{{model_name:str}}/{verb}",
        status_code=200,
        include_in_schema=False,
        guards=[control_guard],
    )
    async def named_control(state: State, request: Request[Any, Any, Any], model_name: FromPath[str]) -> None:
        await _control(state, request, verb, model_name)

    return named_control


HANDLERS = (
    *(repository_index, named_repository_index),
    *(_control_handler("load"), _control_handler("unload")),
    *(_named_control_handler("load"), _named_control_handler("unload")),
)
