"""Health, metadata, configuration, statistics and the repository: what HTTP says, in messages."""

from types import SimpleNamespace

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict

from service.frontend.grpc import health_pb2
from service.frontend.grpc import open_inference_pb2 as messages
from tests.support.rpc import request
from tests.support.server import Server


def get(server: Server, path: str) -> dict[str, object]:
    answer = httpx.get(server.url + path, trust_env=False)
    assert answer.status_code == 200
    return answer.json()


def refused(call: grpc.UnaryUnaryMultiCallable, message: object) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as raised:
        call(message)
    return raised.value


def test_the_server_is_live_and_ready(rpc: SimpleNamespace) -> None:
    assert rpc.ServerLive(messages.ServerLiveRequest()).live is True
    assert rpc.ServerReady(messages.ServerReadyRequest()).ready is True


def test_a_model_is_ready_by_name_and_version(rpc: SimpleNamespace) -> None:
    assert rpc.ModelReady(messages.ModelReadyRequest(name="echo")).ready is True
    assert rpc.ModelReady(messages.ModelReadyRequest(name="echo", version="1")).ready is True
    for name, version in (("nothing", ""), ("echo", "7")):
        error = refused(rpc.ModelReady, messages.ModelReadyRequest(name=name, version=version))
        assert error.code() == grpc.StatusCode.NOT_FOUND
        assert repr(version or name) in error.details()


def test_server_metadata_is_that_of_http(rpc: SimpleNamespace, server: Server) -> None:
    assert MessageToDict(rpc.ServerMetadata(messages.ServerMetadataRequest())) == get(server, "/v2")


@pytest.mark.parametrize("model", ["echo", "two", "matrix", "words", "all-BF16"])
def test_model_metadata_is_that_of_http(rpc: SimpleNamespace, server: Server, model: str) -> None:
    found = rpc.ModelMetadata(messages.ModelMetadataRequest(name=model))
    expected = get(server, f"/v2/models/{model}")
    assert (found.name, list(found.versions), found.platform) == (model, expected["versions"], expected["platform"])
    for side in ("inputs", "outputs"):
        tensors = [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in getattr(found, side)]
        assert tensors == expected[side]


@pytest.mark.parametrize("model", ["echo", "matrix", "words"])
def test_model_config_is_that_of_http(rpc: SimpleNamespace, server: Server, model: str) -> None:
    config = rpc.ModelConfig(messages.ModelConfigRequest(name=model)).config
    expected = get(server, f"/v2/models/{model}/config")
    assert (config.name, config.backend, config.platform) == (model, expected["backend"], expected["platform"])
    assert config.max_batch_size == expected["max_batch_size"]
    for side in ("input", "output"):
        found = [
            {"name": t.name, "data_type": messages.DataType.Name(t.data_type), "dims": list(t.dims)}
            for t in getattr(config, side)
        ]
        assert found == expected[side]
    assert config.HasField("dynamic_batching") == ("dynamic_batching" in expected)


def test_statistics_count_what_is_asked_over_grpc(rpc: SimpleNamespace, server: Server) -> None:
    def counted() -> messages.ModelStatistics:
        (found,) = rpc.ModelStatistics(messages.ModelStatisticsRequest(name="wide")).model_stats
        return found

    before = counted()
    for n in (1, 3):
        rpc.ModelInfer(request("wide", {"x": ("UINT64", np.ones((n, 2), np.uint64))}))
    refused(rpc.ModelInfer, request("wide", {"x": ("INT64", np.ones((1, 2), np.int64))}))
    after = counted()
    assert after.inference_count - before.inference_count == 4
    assert after.inference_stats.success.count - before.inference_stats.success.count == 2
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1
    assert after.inference_stats.success.ns > after.inference_stats.compute_infer.ns > 0
    names = {stats.name for stats in rpc.ModelStatistics(messages.ModelStatisticsRequest()).model_stats}
    assert names == set(get(server, "/v2/models")["models"])


def test_the_repository_index_is_that_of_http(rpc: SimpleNamespace, server: Server) -> None:
    found = rpc.RepositoryIndex(messages.RepositoryIndexRequest(ready=True)).models
    expected = httpx.post(f"{server.url}/v2/repository/index", json={"ready": True}, trust_env=False).json()
    assert [[m.name, m.version, m.state, m.reason] for m in found] == [list(entry.values()) for entry in expected]
    assert {m.state for m in found} == {"READY"}


def test_loading_and_unloading_is_refused_with_the_reason(rpc: SimpleNamespace) -> None:
    load, unload = messages.RepositoryModelLoadRequest, messages.RepositoryModelUnloadRequest
    for call, message in ((rpc.RepositoryModelLoad, load), (rpc.RepositoryModelUnload, unload)):
        error = refused(call, message(model_name="echo"))
        assert error.code() == grpc.StatusCode.PERMISSION_DENIED
        assert "'echo'" in error.details()
        assert "model control is 'none'" in error.details()


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService"])
def test_probes_learn_that_it_serves(rpc: SimpleNamespace, service: str) -> None:
    answer = rpc.Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_probes_of_another_service_are_told_so(rpc: SimpleNamespace) -> None:
    error = refused(rpc.Check, health_pb2.HealthCheckRequest(service="other"))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert "'other'" in error.details()
