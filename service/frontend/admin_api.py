"""The admin API: every version with its state, and what changes which of them are served and which answers.

Each change is a command of `service/lifecycle/messages.py`: asked of the controller, waited for, and answered with what
then holds for the model. Loading takes as long as it takes; only the client may give up, and what it asked for goes on.
Who may ask: auth.py.
"""

import re
from typing import Annotated, Literal

from litestar import Router, delete, get, post, put
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath
from msgspec import Meta, Struct

from service.batching.client import version_key
from service.errors import (
    ControllerGone,
    LoadRefused,
    MalformedRequest,
    ModelControlOff,
    NotFound,
    ServiceError,
    Unauthorized,
    UnknownModel,
    VersionInUse,
)
from service.frontend.auth import admin_guard, require_control
from service.frontend.openapi.answers import BEARER, errors
from service.lifecycle.messages import (
    Command,
    LoadModel,
    MoveAlias,
    Promote,
    SetGuard,
    SetLogLevel,
    SetShadow,
    SetSplit,
    Table,
    UnloadModel,
)
from service.lifecycle.routing import Guard, Routing, Shadow

_STICKY = re.compile(r"(|body|header:[!#$%&'*+.^_`|~0-9A-Za-z-]+)")
_ALIAS = re.compile(r"(?![0-9]+$)[A-Za-z0-9_.-]{1,64}")

Version = Annotated[str, Meta(min_length=1, description="A version that was found.", examples=["3"])]
Alias = Annotated[str, Meta(min_length=1)]


class VersionEntry(Struct):
    """`reason`: why it does not answer."""

    version: str
    state: Literal["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]
    reason: str


class ModelState(Struct):
    name: str
    versions: list[VersionEntry]
    routing: Routing


class ModelStates(Struct):
    models: list[ModelState]


class Which(Struct, forbid_unknown_fields=True):
    """Without a version: all that the model's policy wants, or, to unload, all there are."""

    version: Version | None = None


class AliasTarget(Struct, forbid_unknown_fields=True):
    version: Version


class Split(Struct, forbid_unknown_fields=True):
    """weights   by version or alias; what counts is their proportion
    sticky    "" by chance, "body" by the tensors, "header:<name>" by that header's value
    """

    weights: Annotated[
        dict[str, Annotated[float, Meta(ge=0)]], Meta(min_length=1, examples=[{"stable": 0.9, "canary": 0.1}])
    ]
    sticky: Annotated[str, Meta(examples=["header:x-user"])] = ""


class Promotion(Struct, forbid_unknown_fields=True):
    alias: Alias = "canary"
    to: Alias = "stable"


class LogLevel(Struct, forbid_unknown_fields=True):
    level: Literal["debug", "info", "warning", "error"]


class Draining(Struct):
    draining: bool = True


def _responses(*more: type[ServiceError]) -> dict[int, ResponseSpec]:
    return errors(Unauthorized, NotFound, *more)


_CHANGE = _responses(MalformedRequest, UnknownModel, ControllerGone)
_CONTROL = _CHANGE | errors(LoadRefused, ModelControlOff, VersionInUse)
_ROUTE = _CHANGE | errors(VersionInUse)


@get("/models", summary="Every model: its versions with their state, and its routing", responses=_responses())
async def models(state: State) -> ModelStates:
    table: Table = state.controls.table
    return ModelStates([_model_state(table, name) for name in _names(table)])


@get("/models/{model_name:str}", summary="One of them", responses=_responses(UnknownModel))
async def model(state: State, model_name: FromPath[str]) -> ModelState:
    return _model_state(state.controls.table, model_name)


@post(
    "/models/{model_name:str}/load",
    status_code=200,
    summary="Load a version, or what the policy wants; answered once it serves or is refused",
    responses=_CONTROL,
)
async def load(state: State, model_name: FromPath[str], data: Which | None = None) -> ModelState:
    require_control(state.settings, True, "load", model_name)
    return await _change(state, LoadModel(model_name, data.version if data else None))


@post(
    "/models/{model_name:str}/unload",
    status_code=200,
    summary="Unload a version, or all; answered once the last request to it is",
    responses=_CONTROL,
)
async def unload(state: State, model_name: FromPath[str], data: Which | None = None) -> ModelState:
    require_control(state.settings, True, "unload", model_name)
    return await _change(state, UnloadModel(model_name, data.version if data else None))


@put("/models/{model_name:str}/aliases/{alias:str}", summary="Move an alias to a version", responses=_ROUTE)
async def move_alias(state: State, model_name: FromPath[str], alias: FromPath[str], data: AliasTarget) -> ModelState:
    return await _change(state, MoveAlias(model_name, _alias(alias), data.version))


@delete("/models/{model_name:str}/aliases/{alias:str}", status_code=200, summary="Remove an alias", responses=_ROUTE)
async def remove_alias(state: State, model_name: FromPath[str], alias: FromPath[str]) -> ModelState:
    return await _change(state, MoveAlias(model_name, _alias(alias), None))


@put("/models/{model_name:str}/split", summary="Share requests that name no version between targets", responses=_ROUTE)
async def set_split(state: State, model_name: FromPath[str], data: Split) -> ModelState:
    if sum(data.weights.values()) <= 0:
        raise MalformedRequest("weights: expected one above 0")
    if not _STICKY.fullmatch(data.sticky):
        raise MalformedRequest(f"sticky: expected '', 'body' or 'header:<name>', not {data.sticky!r}")
    return await _change(state, SetSplit(model_name, data.weights, data.sticky))


@delete("/models/{model_name:str}/split", status_code=200, summary="Remove the split", responses=_CHANGE)
async def remove_split(state: State, model_name: FromPath[str]) -> ModelState:
    return await _change(state, SetSplit(model_name, {}))


@put(
    "/models/{model_name:str}/shadow",
    summary="Repeat requests on a version or alias, and compare the answers",
    responses=_ROUTE,
)
async def set_shadow(state: State, model_name: FromPath[str], data: Shadow) -> ModelState:
    return await _change(state, SetShadow(model_name, data))


@delete("/models/{model_name:str}/shadow", status_code=200, summary="Remove the shadow", responses=_CHANGE)
async def remove_shadow(state: State, model_name: FromPath[str]) -> ModelState:
    return await _change(state, SetShadow(model_name, None))


@put("/models/{model_name:str}/guard", summary="When an alias is taken out of the split", responses=_ROUTE)
async def set_guard(state: State, model_name: FromPath[str], data: Guard) -> ModelState:
    return await _change(state, SetGuard(model_name, data))


@delete("/models/{model_name:str}/guard", status_code=200, summary="Remove the guard", responses=_CHANGE)
async def remove_guard(state: State, model_name: FromPath[str]) -> ModelState:
    return await _change(state, SetGuard(model_name, None))


@post(
    "/models/{model_name:str}/promote",
    status_code=200,
    summary="Move `to` to the version of `alias`, whose part of the split goes",
    responses=_ROUTE,
)
async def promote(state: State, model_name: FromPath[str], data: Promotion | None = None) -> ModelState:
    wanted = data or Promotion()
    return await _change(state, Promote(model_name, _alias(wanted.alias), _alias(wanted.to)))


@put(
    "/log-level",
    summary="The least severe event that every process logs",
    responses=_responses(MalformedRequest, ControllerGone),
)
async def log_level(state: State, data: LogLevel) -> LogLevel:
    await state.controls.ask(SetLogLevel(data.level))
    return data


@post("/drain", status_code=202, summary="End the service as SIGTERM does; answered at once", responses=_responses())
async def drain(state: State) -> Draining:
    """A second one changes nothing: one that is sent again must not cut short what the first allows."""
    if state.health.state == "serving":
        state.drain()
    return Draining()


async def _change(state: State, command: Command) -> ModelState:
    """What then holds for the model. Raises what the controller refuses with, ControllerGone."""
    assert not isinstance(command, SetLogLevel), "bug: a command of no model"
    await state.controls.ask(command)
    return _model_state(state.controls.table, command.name)


def _model_state(table: Table, name: str) -> ModelState:
    """Raises UnknownModel."""
    if name not in (names := _names(table)):
        raise UnknownModel(f"no model {name!r}; found: {', '.join(names) or 'none'}")
    versions = sorted((v for v in table.versions if v.name == name), key=lambda found: version_key(found.version))
    entries = [VersionEntry(found.version, found.state, found.reason) for found in versions]
    return ModelState(name, entries, table.routing.get(name, Routing()))


def _names(table: Table) -> list[str]:
    return sorted({version.name for version in table.versions} | table.routing.keys())


def _alias(name: str) -> str:
    """Raises MalformedRequest: what is all digits is a version."""
    if not _ALIAS.fullmatch(name):
        raise MalformedRequest(f"alias {name!r}: expected up to 64 of A-Z a-z 0-9 _ . -, and not digits alone")
    return name


ROUTER = Router(
    "/admin",
    route_handlers=[
        *(models, model, load, unload, move_alias, remove_alias, set_split, remove_split, set_shadow, remove_shadow),
        *(set_guard, remove_guard, promote, log_level, drain),
    ],
    guards=[admin_guard],
    security=BEARER,
    tags=["admin"],
)
