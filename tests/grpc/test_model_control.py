"""Loading and unloading over gRPC: who may, and what is then asked of the controller."""

import grpc
import pytest

from service.batching.engines import Engines
from service.errors import MalformedRequest, ModelControlOff, NotSupported, Unauthorized
from service.frontend.admin import Health
from service.frontend.auth import Access
from service.frontend.grpc import open_inference_pb2 as messages
from service.frontend.grpc.calls import Calls
from service.lifecycle.messages import LoadModel, UnloadModel
from service.metrics import RequestMetrics, SharedCounts
from service.settings import read_settings
from tests.grpc.conftest import Serve
from tests.support.admin import KEY, PlayedControls
from tests.support.rpc import client

PUBLIC = ("--control.mode", "explicit", "--admin.public", "true", "--admin.key", KEY)
BEARER = {"authorization": f"Bearer {KEY}"}

Load, Unload = messages.RepositoryModelLoadRequest, messages.RepositoryModelUnloadRequest


def calls(controls: PlayedControls, *flags: str) -> Calls:
    settings = read_settings(flags, "serve")
    metrics = RequestMetrics(SharedCounts(1), 0)
    return Calls(Engines([]), Health(), settings, metrics, Access(settings.admin), controls)


async def test_with_the_key_models_are_loaded_and_unloaded() -> None:
    controls = PlayedControls()
    made = calls(controls, *PUBLIC)
    await made.repository_model_load(Load(model_name="echo"), BEARER)
    unload = Unload(model_name="echo")
    unload.parameters["unload_dependents"].bool_param = True
    await made.repository_model_unload(unload, BEARER)
    assert controls.asked == [LoadModel("echo"), UnloadModel("echo")]
    assert "model_repository" in made.server_metadata(messages.ServerMetadataRequest()).extensions


@pytest.mark.parametrize(
    ("flags", "metadata", "error"),
    [
        (PUBLIC, {}, Unauthorized),
        (PUBLIC, {"authorization": KEY}, Unauthorized),
        (PUBLIC, {"authorization": f"Bearer {KEY}."}, Unauthorized),
        (("--control.mode", "explicit"), BEARER, ModelControlOff),
        (("--control.mode", "explicit", "--admin.port", "0", "--admin.key", KEY), BEARER, ModelControlOff),
        (("--admin.public", "true", "--admin.key", KEY), BEARER, ModelControlOff),
    ],
)
async def test_who_may_not_is_refused_and_nothing_is_asked(
    flags: tuple[str, ...], metadata: dict[str, str], error: type[Exception]
) -> None:
    controls = PlayedControls()
    made = calls(controls, *flags)
    for call, message in ((made.repository_model_load, Load), (made.repository_model_unload, Unload)):
        with pytest.raises(error):
            await call(message(model_name="echo"), metadata)
    assert controls.asked == []


@pytest.mark.parametrize(
    ("name", "error"), [("config", NotSupported), ("file:1/m", NotSupported), ("x", MalformedRequest)]
)
async def test_parameters_that_would_change_the_model_are_refused_by_name(name: str, error: type[Exception]) -> None:
    controls = PlayedControls()
    load = Load(model_name="echo")
    load.parameters[name].string_param = "{}"
    with pytest.raises(error, match=f"parameters.{name}"):
        await calls(controls, *PUBLIC).repository_model_load(load, BEARER)
    assert controls.asked == []


def test_the_key_is_taken_from_the_calls_metadata(serve: Serve) -> None:
    server = serve(*PUBLIC, models=("echo",))
    with client(server) as rpc:
        for call, message in ((rpc.RepositoryModelLoad, Load), (rpc.RepositoryModelUnload, Unload)):
            for metadata, codes in (
                ((), {grpc.StatusCode.UNAUTHENTICATED}),
                ((("authorization", "Bearer not-the-key-of-it"),), {grpc.StatusCode.UNAUTHENTICATED}),
                ((("authorization", f"Bearer {KEY}"),), {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE}),
            ):
                with pytest.raises(grpc.RpcError) as raised:
                    call(message(model_name="nothing"), metadata=metadata)
                assert raised.value.code() in codes
    assert KEY not in server.log()
