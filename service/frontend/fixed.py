"""Parts of the protocol's extensions that this server answers, and does not let anybody change: logging is set for all
processes at the start or by the admin API, nothing is traced; tensors do not pass through memory that a client shares.
"""

import logging
from typing import Any, Literal, TypeVar

from litestar import Request, get, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler, route
from litestar.params import FromPath
from msgspec import Struct, field
from msgspec.structs import asdict

from service.errors import MalformedRequest, ModelNotReady, NotSupported, UnknownModel
from service.frontend.http import decode_json
from service.frontend.openapi.answers import errors

_Settings = TypeVar("_Settings", bound=Struct)

_CHANGE = errors(MalformedRequest, NotSupported)
_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)


class LogSettings(Struct):
    """`log_file` empty: standard error. `log_verbose_level` 1: debug."""

    log_file: str
    log_info: bool
    log_warning: bool
    log_error: bool
    log_verbose_level: int
    log_format: str


class TraceSettings(Struct):
    """Nothing is traced."""

    trace_level: list[str] = field(default_factory=lambda: ["OFF"])
    trace_rate: str = "1000"
    trace_count: str = "-1"
    log_frequency: str = "0"
    trace_file: str = ""
    trace_mode: str = "triton"


def log_settings() -> LogSettings:
    """Of this process, as of all others."""
    debug, info, warning, error = (logging.getLogger().isEnabledFor(level) for level in _LEVELS)
    return LogSettings("", info, warning, error, int(debug), "default")


@get("/v2/logging", tags=["settings"], summary="What is logged; set by `logging.level` and `PUT /admin/log-level`")
async def get_logging() -> LogSettings:
    return log_settings()


@post(
    "/v2/logging",
    status_code=200,
    tags=["settings"],
    summary="The same, where nothing would change; else 501",
    responses=_CHANGE,
)
async def post_logging(request: Request[Any, Any, Any]) -> LogSettings:
    return await _unchanged(request, log_settings(), "; PUT /admin/log-level sets the least that is logged")


@get("/v2/trace/setting", tags=["settings"], summary="Nothing is traced")
async def get_trace() -> TraceSettings:
    return TraceSettings()


@post(
    "/v2/trace/setting",
    status_code=200,
    tags=["settings"],
    summary="The same, where nothing would change; else 501",
    responses=_CHANGE,
)
async def post_trace(request: Request[Any, Any, Any]) -> TraceSettings:
    return await _unchanged(request, TraceSettings(), "")


@get(
    "/v2/models/{model_name:str}/trace/setting",
    tags=["settings"],
    summary="Nothing is traced",
    responses=errors(UnknownModel, ModelNotReady),
)
async def get_model_trace(state: State, model_name: FromPath[str]) -> TraceSettings:
    state.engines.find(model_name)
    return TraceSettings()


@post(
    "/v2/models/{model_name:str}/trace/setting",
    status_code=200,
    tags=["settings"],
    summary="The same, where nothing would change; else 501",
    responses=_CHANGE | errors(UnknownModel, ModelNotReady),
)
async def post_model_trace(state: State, request: Request[Any, Any, Any], model_name: FromPath[str]) -> TraceSettings:
    state.engines.find(model_name)
    return await _unchanged(request, TraceSettings(), "")


def shared_memory(kind: Literal["system", "cuda"]) -> HTTPRouteHandler:
    @route(
        [f"/v2/{kind}sharedmemory", f"/v2/{kind}sharedmemory/{{what:path}}"],
        http_method=["GET", "POST"],
        include_in_schema=False,
    )
    async def refuse() -> None:
        raise NotSupported(f"tensors in {kind} shared memory are not supported; send them in the body")

    return refuse


async def _unchanged(request: Request[Any, Any, Any], now: _Settings, where: str) -> _Settings:
    """Raises MalformedRequest for a name that is no setting, NotSupported for another value."""
    body = await request.body()
    wanted: dict[str, Any] = decode_json(body, dict[str, Any], "the settings") if body.strip() else {}
    have = asdict(now)
    for name, value in wanted.items():
        if name not in have:
            raise MalformedRequest(f"no setting {name!r}; expected {', '.join(have)}")
        if value != have[name]:
            raise NotSupported(f"{name} is {have[name]!r} and cannot be changed here{where}")
    return now
