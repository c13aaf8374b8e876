"""What is not a prediction over gRPC: health, metadata, the repository. The answers are those of HTTP (`admin.py`)."""

from collections.abc import Mapping
from importlib.metadata import version as package_version

import msgspec
from google.protobuf.json_format import ParseDict

from service.batching.engines import Engines
from service.errors import ModelNotReady, NotFound
from service.frontend.admin import Health, extensions, model_metadata_of
from service.frontend.auth import Access, require_control
from service.frontend.grpc.health_pb2 import HealthCheckRequest, HealthCheckResponse
from service.frontend.grpc.open_inference_pb2 import (
    ModelConfigRequest,
    ModelConfigResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ModelStatisticsRequest,
    ModelStatisticsResponse,
    RepositoryIndexRequest,
    RepositoryIndexResponse,
    RepositoryModelLoadRequest,
    RepositoryModelLoadResponse,
    RepositoryModelUnloadRequest,
    RepositoryModelUnloadResponse,
    ServerLiveRequest,
    ServerLiveResponse,
    ServerMetadataRequest,
    ServerMetadataResponse,
    ServerReadyRequest,
    ServerReadyResponse,
)
from service.frontend.model_config import model_config
from service.frontend.repository_api import Verb, index, load_or_unload
from service.frontend.statistics import statistics
from service.lifecycle.controls import Controls
from service.metrics import RequestMetrics
from service.settings import Settings

SERVICE = "inference.GRPCInferenceService"
HEALTH_SERVICE = "grpc.health.v1.Health"

Metadata = Mapping[str, str]


class Calls:
    """One method for each call, of the call's name in our spelling: a message in, a message out, or a ServiceError.

    Coroutines, which get the call's metadata too, are what the admin API has as well (auth.py).
    """

    def __init__(
        self,
        engines: Engines,
        health: Health,
        settings: Settings,
        metrics: RequestMetrics,
        access: Access,
        controls: Controls,
    ) -> None:
        self._engines = engines
        self._health = health
        self._settings = settings
        self._metrics = metrics
        self._access = access
        self._controls = controls

    def server_live(self, _: ServerLiveRequest) -> ServerLiveResponse:
        return ServerLiveResponse(live=True)

    def server_ready(self, _: ServerReadyRequest) -> ServerReadyResponse:
        return ServerReadyResponse(ready=self._ready())

    def model_ready(self, request: ModelReadyRequest) -> ModelReadyResponse:
        """Raises UnknownModel; of a model that is known and does not answer it says so."""
        try:
            self._engines.find(request.name, request.version or None)
        except ModelNotReady:
            return ModelReadyResponse(ready=False)
        return ModelReadyResponse(ready=self._health.state == "serving")

    def server_metadata(self, _: ServerMetadataRequest) -> ServerMetadataResponse:
        listed = extensions(self._settings, self._access.public)
        return ServerMetadataResponse(name="shoal", version=package_version("shoal"), extensions=listed)

    def model_metadata(self, request: ModelMetadataRequest) -> ModelMetadataResponse:
        metadata = model_metadata_of(self._engines, self._engines.find(request.name, request.version or None))
        answer = ModelMetadataResponse(name=metadata.name, versions=metadata.versions, platform=metadata.platform)
        for side, tensors in ((answer.inputs, metadata.inputs), (answer.outputs, metadata.outputs)):
            for tensor in tensors:
                side.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        return answer

    def model_config(self, request: ModelConfigRequest) -> ModelConfigResponse:
        model = self._engines.find(request.name, request.version or None)
        config = model_config(model, self._settings)
        answer = ModelConfigResponse()
        ParseDict(msgspec.to_builtins(config), answer.config)
        return answer

    def model_statistics(self, request: ModelStatisticsRequest) -> ModelStatisticsResponse:
        """Of all models where none is named; of all its versions where no version is."""
        name, version = request.name, request.version or None
        models = self._engines.named(name, version) if name else self._engines.models()
        answer = ModelStatisticsResponse()
        ParseDict(msgspec.to_builtins(statistics(self._metrics, models)), answer)
        return answer

    def repository_index(self, request: RepositoryIndexRequest) -> RepositoryIndexResponse:
        answer = RepositoryIndexResponse()
        for entry in index(self._engines, request.ready):
            answer.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
        return answer

    async def repository_model_load(
        self, request: RepositoryModelLoadRequest, metadata: Metadata
    ) -> RepositoryModelLoadResponse:
        await self._control("load", request, metadata)
        return RepositoryModelLoadResponse()

    async def repository_model_unload(
        self, request: RepositoryModelUnloadRequest, metadata: Metadata
    ) -> RepositoryModelUnloadResponse:
        await self._control("unload", request, metadata)
        return RepositoryModelUnloadResponse()

    def check(self, request: HealthCheckRequest) -> HealthCheckResponse:
        """As `server_ready`, in the words of gRPC's health checking. Raises NotFound for services that are not here."""
        if request.service not in ("", SERVICE, HEALTH_SERVICE):
            raise NotFound(f"no service {request.service!r}; expected {SERVICE!r}, or none for the server")
        status = HealthCheckResponse.SERVING if self._ready() else HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse(status=status)

    async def _control(
        self, verb: Verb, request: RepositoryModelLoadRequest | RepositoryModelUnloadRequest, metadata: Metadata
    ) -> None:
        """Raises ModelControlOff, Unauthorized and what the controller refuses with. Any client reaches this port."""
        require_control(self._settings, self._access.public, verb, request.model_name)
        self._access.check(metadata.get("authorization"), None, f"{verb} {request.model_name!r} over gRPC")
        await load_or_unload(self._controls, verb, request.model_name, request.parameters)

    def _ready(self) -> bool:
        return self._health.not_ready_because(self._engines) is None
