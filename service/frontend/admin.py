"""What is not a prediction: health, metadata, metrics. Ordinary Litestar handlers; a microsecond more does not matter.

Health follows the union of what the protocol's clients expect: JSON bodies, 200 or 503. `live` says that the process
answers; `ready` that it has models to answer with and is not draining.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Any, Literal

from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath
from litestar.response import Redirect
from msgspec import Struct

from service.batching.claim import ServedModel
from service.batching.engines import Engines
from service.errors import ModelNotReady, UnknownModel
from service.frontend.model_config import PLATFORM
from service.frontend.openapi.answers import errors
from service.settings import Settings

_EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "schedule_policy", "statistics"]


@dataclass
class Health:
    """Shared by the supervisor, which drains, and the handlers, which tell.

    serving    as usual
    leaving    not ready, but every request is still answered, with `Connection: close`
    closing    new predictions are refused; those in flight are finished
    """

    state: Literal["serving", "leaving", "closing"] = "serving"

    def not_ready_because(self, engines: Engines) -> str | None:
        if self.state != "serving":
            return "the server is draining"
        if not engines.alive:
            return "the engine is gone"
        if not engines.loaded:
            return "models are loading"
        if not engines.models():
            return "no model could be loaded" if engines.failures else "the repository holds no model"
        return None


class Live(Struct):
    live: bool = True


class Ready(Struct):
    ready: bool = True
    live: bool = True


class NotReady(Struct):
    error: str
    ready: bool = False


class ServerMetadata(Struct):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(Struct):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Struct):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, Any]


class ModelNames(Struct):
    models: list[str]


class ModelReadiness(Struct):
    name: str
    ready: bool


class Alive(Struct):
    status: str = "alive"


@get("/", include_in_schema=False)
async def index(request: Request[Any, Any, Any]) -> Response[Any]:
    """The documentation for a browser; for anything else, as for KServe's v1 client, that the process answers."""
    if "text/html" in request.headers.get("accept", ""):
        return Redirect("/docs", headers={"vary": "accept"})
    return Response(Alive(), headers={"vary": "accept"})


@get(["/health/live", "/v2/health/live"], tags=["health"], summary="The process answers")
async def live() -> Live:
    return Live()


@get(
    ["/health/ready", "/v2/health/ready"],
    tags=["health"],
    summary="Models answer; 503 with the reason when not",
    responses={503: ResponseSpec(NotReady, False, "Loading or draining; `error` says why.")},
)
async def ready(state: State) -> Response[Ready]:
    if reason := state.health.not_ready_because(state.engines):
        # Any: the document has both bodies, and a handler has one return type.
        refusal: Response[Any] = Response(NotReady(reason), status_code=503, headers={"retry-after": "1"})
        return refusal
    return Response(Ready())


@get(["/v2", "/v2/"], tags=["metadata"], summary="Name, version and protocol extensions of the server")
async def server_metadata(state: State, request: Request[Any, Any, Any]) -> ServerMetadata:
    offered = state.access.offered(request.scope["server"])
    return ServerMetadata("shoal", package_version("shoal"), extensions(state.settings, offered))


@get("/v2/models", tags=["metadata"], summary="Names of the models that answer")
async def model_names(state: State) -> ModelNames:
    return ModelNames(state.engines.names())


@get(
    ["/v2/models/{model_name:str}", "/v2/models/{model_name:str}/versions/{model_version:str}"],
    tags=["metadata"],
    summary="Inputs, outputs, labels of a model",
    responses=errors(UnknownModel, ModelNotReady),
)
async def model_metadata(
    state: State, model_name: FromPath[str], model_version: FromPath[str | None] = None
) -> ModelMetadata:
    return model_metadata_of(state.engines, state.engines.find(model_name, model_version))


@get(
    ["/v2/models/{model_name:str}/ready", "/v2/models/{model_name:str}/versions/{model_version:str}/ready"],
    tags=["health"],
    summary="This model answers; 503 with the reason when not, 404 when there is none",
    responses=errors(UnknownModel, ModelNotReady),
)
async def model_ready(
    state: State, model_name: FromPath[str], model_version: FromPath[str | None] = None
) -> ModelReadiness:
    state.engines.find(model_name, model_version)
    if state.health.state != "serving":
        raise ModelNotReady(f"model {model_name!r} is not ready: the server is draining")
    return ModelReadiness(model_name, True)


def metrics_handler(render: Callable[[], bytes]) -> HTTPRouteHandler:
    @get(
        "/metrics",
        tags=["metrics"],
        summary="Prometheus text format",
        media_type="text/plain; version=0.0.4",
    )
    async def metrics() -> bytes:
        return render()

    return metrics


def extensions(settings: Settings, offered: bool) -> list[str]:
    """Of the protocol, where it is asked; `offered`: it has the admin API, so that models are loaded there."""
    control = ["model_repository"] if offered and settings.control.mode == "explicit" else []
    return sorted(_EXTENSIONS + control)


def model_metadata_of(engines: Engines, model: ServedModel) -> ModelMetadata:
    facts = model.facts
    return ModelMetadata(
        name=facts.name,
        versions=engines.versions(facts.name),
        platform=PLATFORM,
        inputs=[TensorMetadata(spec.name, spec.datatype, list(spec.shape)) for spec in facts.inputs],
        outputs=[TensorMetadata(spec.name, spec.datatype, list(spec.shape)) for spec in facts.outputs],
        parameters={
            "version": facts.version,
            "aliases": engines.aliases(facts.name),
            "description": facts.description,
            "labels": list(facts.classification.labels) if facts.classification else [],
            "batch_axis": facts.batch_axis,
            "max_batch_size": facts.max_batch_size,
            "instances": facts.instances,
            "threads": facts.threads,
        },
    )
