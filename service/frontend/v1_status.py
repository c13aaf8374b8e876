"""GET /v1/models…: what TensorFlow Serving and KServe's v1 tell of a model, in one answer for the clients of both.

A version that was refused or unloaded is in the state END, with the reason. While models are loading, which there will
be is not known, and the answer is 503 like that of the other routes.
Sources: get_model_status.proto, get_model_metadata.proto and meta_graph.proto in their JSON form, which writes 64-bit
numbers as strings; KServe's v1 protocol.
"""

from collections.abc import Sequence
from typing import Any

from litestar import Response, get
from litestar.datastructures import State
from litestar.params import FromPath
from msgspec import Struct

from models.manifest import Datatype, TensorSpec
from service.batching.client import version_key
from service.batching.engines import Engines
from service.errors import ModelNotReady, UnknownModel
from service.frontend.admin import ModelNames
from service.frontend.openapi.answers import errors
from service.frontend.v1 import SIGNATURE, version_with_label
from service.lifecycle.messages import VersionState

_MODEL = "/v1/models/{model_name:str}"
_VERSION = f"{_MODEL}/versions/{{model_version:str}}"
_LABEL = f"{_MODEL}/labels/{{label:str}}"

_STATES: dict[str, str] = {
    "LOADING": "LOADING",
    "READY": "AVAILABLE",
    "UNLOADING": "UNLOADING",
    "UNAVAILABLE": "END",
}
_DTYPES: dict[Datatype, str] = {
    "BOOL": "DT_BOOL",
    "UINT8": "DT_UINT8",
    "UINT16": "DT_UINT16",
    "UINT32": "DT_UINT32",
    "UINT64": "DT_UINT64",
    "INT8": "DT_INT8",
    "INT16": "DT_INT16",
    "INT32": "DT_INT32",
    "INT64": "DT_INT64",
    "FP16": "DT_HALF",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
    "BF16": "DT_BFLOAT16",
    "BYTES": "DT_STRING",
}


class Status(Struct):
    error_code: str = "OK"
    error_message: str = ""


class VersionStatus(Struct):
    version: str
    state: str
    status: Status


class ModelStatus(Struct):
    """`name` and `ready` are KServe's, the rest TensorFlow Serving's: the newest version first."""

    name: str
    ready: bool
    model_version_status: list[VersionStatus]


class NoVersionReady(ModelStatus):
    error: str


@get("/v1/models", tags=["v1"], summary="KServe v1: names of the models that answer")
async def model_names(state: State) -> ModelNames:
    return ModelNames(state.engines.names())


@get(
    [_MODEL, _VERSION],
    tags=["v1"],
    summary="KServe v1, TensorFlow Serving: state of a model's versions; 503 with the reason when none answers",
    responses=errors(UnknownModel, ModelNotReady),
)
async def model_status(
    state: State, model_name: FromPath[str], model_version: FromPath[str | None] = None
) -> Response[ModelStatus]:
    return status_of(state, model_name, model_version)


@get(_LABEL, include_in_schema=False)
async def label_status(state: State, model_name: FromPath[str], label: FromPath[str]) -> Response[ModelStatus]:
    return status_of(state, model_name, version_with_label(state.engines, model_name, label))


@get(
    [f"{_MODEL}/metadata", f"{_VERSION}/metadata"],
    tags=["v1"],
    summary="TensorFlow Serving: inputs and outputs as a signature",
    responses=errors(UnknownModel, ModelNotReady),
)
async def model_metadata(
    state: State, model_name: FromPath[str], model_version: FromPath[str | None] = None
) -> dict[str, Any]:
    return _metadata(state.engines, model_name, model_version)


@get(f"{_LABEL}/metadata", include_in_schema=False)
async def label_metadata(state: State, model_name: FromPath[str], label: FromPath[str]) -> dict[str, Any]:
    return _metadata(state.engines, model_name, version_with_label(state.engines, model_name, label))


HANDLERS = [model_names, model_status, label_status, model_metadata, label_metadata]


def status_of(state: State, name: str, version: str | None) -> Response[ModelStatus]:
    engines: Engines = state.engines
    if version is not None:
        version = engines.aliases(name).get(version, version)
    known = [each for each in engines.states().values() if each.name == name and version in (None, each.version)]
    if not known:
        engines.find(name, version)  # raises what is the matter
    known.sort(key=lambda each: version_key(each.version), reverse=True)
    versions = [_version_status(each) for each in known]
    answers = any(each.state == "AVAILABLE" for each in versions)
    if answers and state.health.state == "serving":
        return Response(ModelStatus(name, True, versions))
    reason = "the server is draining" if answers else "no version answers"
    status = NoVersionReady(name, False, versions, f"model {name!r} is not ready: {reason}")
    return Response(status, status_code=503, headers={"retry-after": "1"})


def _version_status(known: VersionState) -> VersionStatus:
    status = Status("FAILED_PRECONDITION", known.reason) if known.state == "UNAVAILABLE" else Status()
    return VersionStatus(known.version, _STATES[known.state], status)


def _metadata(engines: Engines, name: str, version: str | None) -> dict[str, Any]:
    facts = engines.find(name, version).facts
    signature = {
        "inputs": _tensors(facts.inputs, facts.batch_axis),
        "outputs": _tensors(facts.outputs, facts.batch_axis),
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": facts.name, "signature_name": "", "version": facts.version},
        "metadata": {
            "signature_def": {
                "@type": "type.googleapis.com/tensorflow.serving.SignatureDefMap",
                "signature_def": {SIGNATURE: signature},
            }
        },
    }


def _tensors(specs: Sequence[TensorSpec], batch_axis: bool) -> dict[str, Any]:
    """A tensor without axes in the file takes any shape, so its rank is unknown."""
    return {
        spec.name: {
            "name": spec.name,
            "dtype": _DTYPES[spec.datatype],
            "tensor_shape": {
                "dim": [{"size": str(size), "name": ""} for size in spec.shape],
                "unknown_rank": not spec.shape and not batch_axis,
            },
        }
        for spec in specs
    }
