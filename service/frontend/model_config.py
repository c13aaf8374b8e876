"""The model configuration extension: what clients such as perf_analyzer ask before they send anything.

The form is that of Triton's ModelConfig as JSON. `max_batch_size` is the most items that a request may carry, which
are run in several batches where they are more than `dynamic_batching.preferred_batch_size`; 0 where there is no batch
axis, and then `dims` are the whole shape.
"""

from typing import Any

from litestar import get
from litestar.datastructures import State
from litestar.params import FromPath
from msgspec import Struct

from models.manifest import TensorSpec
from service.batching.claim import ServedModel
from service.errors import ModelNotReady, UnknownModel
from service.frontend.openapi.answers import errors
from service.settings import Settings

PLATFORM = "onnxruntime_onnx"


class ConfigTensor(Struct):
    name: str
    data_type: str
    dims: list[int]


class InstanceGroup(Struct):
    name: str
    kind: str
    count: int


class DynamicBatching(Struct):
    preferred_batch_size: list[int]
    max_queue_delay_microseconds: int


class ResponseCacheConfig(Struct):
    enable: bool


class ModelConfig(Struct, omit_defaults=True):
    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[ConfigTensor]
    output: list[ConfigTensor]
    instance_group: list[InstanceGroup]
    default_model_filename: str
    version_policy: dict[str, Any]
    dynamic_batching: DynamicBatching | None = None
    response_cache: ResponseCacheConfig | None = None


def model_config(model: ServedModel, settings: Settings) -> ModelConfig:
    facts, max_queue_delay_us = model.facts, settings.batching.max_queue_delay_us

    def tensor(spec: TensorSpec) -> ConfigTensor:
        datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
        return ConfigTensor(spec.name, f"TYPE_{datatype}", list(spec.shape[1:] if facts.batch_axis else spec.shape))

    return ModelConfig(
        name=facts.name,
        platform=PLATFORM,
        backend="onnxruntime",
        max_batch_size=model.capacity if facts.batch_axis else 0,
        input=[tensor(spec) for spec in facts.inputs],
        output=[tensor(spec) for spec in facts.outputs],
        instance_group=[InstanceGroup(f"{facts.name}_0", "KIND_AUTO", facts.instances)],
        default_model_filename="model.onnx",
        version_policy={"latest": {"num_versions": 1}},
        dynamic_batching=DynamicBatching([facts.max_batch_size], max_queue_delay_us) if facts.batch_axis else None,
        response_cache=ResponseCacheConfig(True) if settings.cache.max_bytes else None,
    )


@get(
    ["/v2/models/{model_name:str}/config", "/v2/models/{model_name:str}/versions/{model_version:str}/config"],
    tags=["metadata"],
    summary="How a model runs, in the form of Triton's model configuration",
    responses=errors(UnknownModel, ModelNotReady),
)
async def config(state: State, model_name: FromPath[str], model_version: FromPath[str | None] = None) -> ModelConfig:
    model = state.engines.find(model_name, model_version)
    return model_config(model, state.settings)
