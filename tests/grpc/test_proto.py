"""The messages on the wire: what the .proto files generate, and the numbers that other clients have."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor

from service.frontend.grpc import health_pb2, open_inference_pb2
from tests.support.server import ROOT

FOLDER = "service/frontend/grpc"

# Of open_inference_grpc.proto (KServe), grpc_service.proto and model_config.proto (Triton), health.proto (gRPC): field
# numbers in the order of our fields, as Triton's and KServe's published clients have them.
NUMBERS = {
    "ServerLiveResponse": {"live": 1},
    "ServerReadyResponse": {"ready": 1},
    "ModelReadyRequest": {"name": 1, "version": 2},
    "ModelReadyResponse": {"ready": 1},
    "ServerMetadataResponse": {"name": 1, "version": 2, "extensions": 3},
    "ModelMetadataRequest": {"name": 1, "version": 2},
    "ModelMetadataResponse": {"name": 1, "versions": 2, "platform": 3, "inputs": 4, "outputs": 5},
    "ModelMetadataResponse.TensorMetadata": {"name": 1, "datatype": 2, "shape": 3},
    "InferParameter": {"bool_param": 1, "int64_param": 2, "string_param": 3, "double_param": 4, "uint64_param": 5},
    "InferTensorContents": {
        **{"bool_contents": 1, "int_contents": 2, "int64_contents": 3, "uint_contents": 4},
        **{"uint64_contents": 5, "fp32_contents": 6, "fp64_contents": 7, "bytes_contents": 8},
    },
    "ModelInferRequest": {
        **{"model_name": 1, "model_version": 2, "id": 3, "parameters": 4, "inputs": 5, "outputs": 6},
        "raw_input_contents": 7,
    },
    "ModelInferRequest.InferInputTensor": {"name": 1, "datatype": 2, "shape": 3, "parameters": 4, "contents": 5},
    "ModelInferRequest.InferRequestedOutputTensor": {"name": 1, "parameters": 2},
    "ModelInferResponse": {
        **{"model_name": 1, "model_version": 2, "id": 3, "parameters": 4, "outputs": 5},
        "raw_output_contents": 6,
    },
    "ModelInferResponse.InferOutputTensor": {"name": 1, "datatype": 2, "shape": 3, "parameters": 4, "contents": 5},
    "ModelStreamInferResponse": {"error_message": 1, "infer_response": 2},
    "ModelConfigRequest": {"name": 1, "version": 2},
    "ModelConfigResponse": {"config": 1},
    "ModelConfig": {
        **{"name": 1, "platform": 2, "version_policy": 3, "max_batch_size": 4, "input": 5, "output": 6},
        **{"instance_group": 7, "default_model_filename": 8, "dynamic_batching": 11, "backend": 17},
        "response_cache": 24,
    },
    "ModelInput": {"name": 1, "data_type": 2, "dims": 4},
    "ModelOutput": {"name": 1, "data_type": 2, "dims": 3},
    "ModelInstanceGroup": {"name": 1, "count": 2, "kind": 4},
    "ModelVersionPolicy": {"latest": 1},
    "ModelVersionPolicy.Latest": {"num_versions": 1},
    "ModelDynamicBatching": {"preferred_batch_size": 1, "max_queue_delay_microseconds": 2},
    "ModelResponseCache": {"enable": 1},
    "ModelStatisticsRequest": {"name": 1, "version": 2},
    "ModelStatisticsResponse": {"model_stats": 1},
    "ModelStatistics": {
        **{"name": 1, "version": 2, "last_inference": 3, "inference_count": 4, "execution_count": 5},
        **{"inference_stats": 6, "batch_stats": 7, "memory_usage": 8, "response_stats": 9},
    },
    "StatisticDuration": {"count": 1, "ns": 2},
    "InferStatistics": {
        **{"success": 1, "fail": 2, "queue": 3, "compute_input": 4, "compute_infer": 5, "compute_output": 6},
        **{"cache_hit": 7, "cache_miss": 8},
    },
    "InferResponseStatistics": {
        **{"compute_infer": 1, "compute_output": 2, "success": 3, "fail": 4, "empty_response": 5, "cancel": 6}
    },
    "InferBatchStatistics": {"batch_size": 1, "compute_input": 2, "compute_infer": 3, "compute_output": 4},
    "MemoryUsage": {"type": 1, "id": 2, "byte_size": 3},
    "RepositoryIndexRequest": {"repository_name": 1, "ready": 2},
    "RepositoryIndexResponse": {"models": 1},
    "RepositoryIndexResponse.ModelIndex": {"name": 1, "version": 2, "state": 3, "reason": 4},
    "ModelRepositoryParameter": {"bool_param": 1, "int64_param": 2, "string_param": 3, "bytes_param": 4},
    "RepositoryModelLoadRequest": {"repository_name": 1, "model_name": 2, "parameters": 3},
    "RepositoryModelUnloadRequest": {"repository_name": 1, "model_name": 2, "parameters": 3},
    "HealthCheckRequest": {"service": 1},
    "HealthCheckResponse": {"status": 1},
}


def numbers(message: Descriptor, prefix: str = "") -> dict[str, dict[str, int]]:
    """Of the message and those inside it; maps and messages without a field left out."""
    name = prefix + message.name
    found = {name: {field.name: field.number for field in message.fields}} if message.fields else {}
    for inner in message.nested_types:
        if not inner.GetOptions().map_entry:
            found |= numbers(inner, f"{name}.")
    return found


def test_field_numbers_are_those_of_other_clients() -> None:
    found: dict[str, dict[str, int]] = {}
    for file in (open_inference_pb2, health_pb2):
        for message in file.DESCRIPTOR.message_types_by_name.values():
            found |= numbers(message)
    assert found == NUMBERS


def test_services_have_the_names_that_clients_call() -> None:
    assert [*open_inference_pb2.DESCRIPTOR.services_by_name] == ["GRPCInferenceService"]
    assert open_inference_pb2.DESCRIPTOR.package == "inference"
    assert health_pb2.DESCRIPTOR.services_by_name["Health"].full_name == "grpc.health.v1.Health"


@pytest.mark.parametrize("name", ["open_inference", "health"])
def test_the_committed_messages_are_what_the_proto_generates(name: str, tmp_path: Path) -> None:
    flags = ["-I", ".", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", f"{FOLDER}/{name}.proto"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *flags], cwd=ROOT, check=True)
    for ending in ("py", "pyi"):
        generated = (tmp_path / FOLDER / f"{name}_pb2.{ending}").read_text()
        committed = (ROOT / FOLDER / f"{name}_pb2.{ending}").read_text()
        assert generated == committed, "run `make proto`"
