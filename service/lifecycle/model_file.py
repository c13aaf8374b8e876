"""A model's own settings: `<repository>/<name>/model.toml`, in force for every version of that model.

What it sets goes before the service's settings; what it leaves out is as they say. Unknown names and values that do not
fit are refused with one line for each, and then the model is not served: a typo must not become a silent default.
The page is docs/repository.md; tests/unit/test_model_file.py reads its example.
"""

import tomllib
from typing import Annotated, Literal, Self

from msgspec import Struct
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from service.lifecycle.messages import Overrides
from service.lifecycle.routing import Guard, Routing, Shadow, check_routing
from service.lifecycle.version_policy import All, Latest, Policy, Specific
from service.settings import BatchSize, Count, QueueDelay, QueueItems, Timeout

MODEL_SETTINGS_FILE = "model.toml"
TRITON_FILE = "config.pbtxt"  # read where there is no model.toml, by service/lifecycle/triton_config.py


class BadModelFile(Exception):
    """A settings file that cannot be used. One line for each fault: the file, the field, what fits."""


class ModelFile(Struct, frozen=True):
    """What a settings file says. policy, routing None: nothing about that.

    ignored   fields that it sets and that mean nothing here, for the log
    """

    policy: Policy | None = None
    overrides: Overrides = Overrides()
    routing: Routing | None = None
    ignored: tuple[str, ...] = ()


def _number_as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Target = Annotated[str, BeforeValidator(_number_as_text)]  # `stable = 3` and `stable = "3"` are the same


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Versions(_Section):
    latest: Annotated[int, Field(ge=1)] | None = None
    specific: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] | None = None
    all: Literal[True] | None = None


class _Batching(_Section):
    max_batch_size: BatchSize | None = None
    max_queue_delay_us: QueueDelay | None = None
    max_queue_items: QueueItems | None = None


class _Engine(_Section):
    instances: Count | None = None
    threads: Count | None = None


class _Requests(_Section):
    timeout_ms: Timeout | None = None


class _Routing(_Section):
    aliases: dict[str, Target] = {}
    split: dict[str, float] = {}
    sticky: str = ""


class _Shadow(_Section):
    target: Target
    sample: float = Shadow("").sample


class _Guard(_Section):
    alias: str = Guard().alias
    max_error_rate: float | None = Guard().max_error_rate
    max_latency_ratio: float | None = None
    max_disagreement: float | None = None
    min_requests: int = Guard().min_requests
    window_s: float = Guard().window_s


_SECTIONS: dict[str, type[BaseModel]] = {
    "versions": _Versions,
    "batching": _Batching,
    "engine": _Engine,
    "requests": _Requests,
    "routing": _Routing,
    "shadow": _Shadow,
    "guard": _Guard,
}


class _File(_Section):
    versions: _Versions | None = None
    batching: _Batching = _Batching()
    engine: _Engine = _Engine()
    requests: _Requests = _Requests()
    routing: _Routing | None = None
    shadow: _Shadow | None = None
    guard: _Guard | None = None

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.versions is not None and len(given := sorted(self.versions.model_fields_set)) != 1:
            raise ValueError(f"versions: expected one of latest, specific and all, not {' and '.join(given) or 'none'}")
        size, items = self.batching.max_batch_size, self.batching.max_queue_items
        if size is not None and items is not None and size > items:
            raise ValueError(
                f"batching.max_batch_size: {size} is larger than batching.max_queue_items ({items}), so such a batch "
                "could never form"
            )
        return self


def parse_model_file(text: str) -> ModelFile:
    """Raises BadModelFile."""
    try:
        file = _File.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadModelFile(f"{MODEL_SETTINGS_FILE}: {error}") from error
    except ValidationError as error:
        raise BadModelFile("\n".join(_explain(item) for item in error.errors())) from error
    return ModelFile(_policy(file.versions), _overrides(file), _routing(file))


def _policy(versions: _Versions | None) -> Policy | None:
    if versions is None:
        return None
    if versions.latest is not None:
        return Latest(versions.latest)
    return Specific(tuple(str(version) for version in versions.specific)) if versions.specific is not None else All()


def _overrides(file: _File) -> Overrides:
    return Overrides(**file.batching.model_dump(), **file.engine.model_dump(), **file.requests.model_dump())


def _routing(file: _File) -> Routing | None:
    if file.routing is None and file.shadow is None and file.guard is None:
        return None
    routing = Routing(
        **(file.routing.model_dump() if file.routing else {}),
        shadow=Shadow(**file.shadow.model_dump()) if file.shadow else None,
        guard=Guard(**file.guard.model_dump()) if file.guard else None,
    )
    try:
        check_routing(routing, MODEL_SETTINGS_FILE)
    except ValueError as error:
        raise BadModelFile(str(error)) from error
    return routing


def _explain(error: ErrorDetails) -> str:
    """One line: the file, the field, what it is and what fits."""
    path = [str(part) for part in error["loc"]]
    if not path:
        return f"{MODEL_SETTINGS_FILE}: {error['msg'].removeprefix('Value error, ')}"
    field = f"{MODEL_SETTINGS_FILE}: {'.'.join(path)}"
    if error["type"] == "extra_forbidden":
        known = _SECTIONS if len(path) == 1 else _SECTIONS[path[0]].model_fields
        return f"{field}: no such setting; expected one of {', '.join(known)}"
    if error["type"] == "missing":
        return f"{field}: it is missing"
    return f"{field}: {error['msg']}, not {error['input']!r}"
