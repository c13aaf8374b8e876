"""Every knob of the service, once: name, unit, bounds, default and meaning.

Sources, strongest first: flags (`--batching.max-batch-size 32`), environment (`SHOAL_BATCHING__MAX_BATCH_SIZE=32`), the
TOML file that `--config` or `SHOAL_CONFIG` names (`[batching]` `max_batch_size = 32`). A name nobody knows or a value
that does not fit stops the start, with a message that names it: a typo must not become a silent default.
docs/configuration.md is generated from this file (`make docs`) and tests/architecture/test_docs.py compares the two.
"""

import argparse
import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as PydanticSettingsError

from service.admin_key import check_reach
from service.settings_lifecycle import Admin, Cache, Control
from service.settings_remote import RemoteRepository, located

ENV_PREFIX = "SHOAL_"
_NESTED = "__"
# Kubernetes puts these into each container for a Service called "shoal"; the last two are for training and the tests.
_NOT_SETTINGS = re.compile(r"SHOAL_((SERVICE_(HOST|PORT\w*)|PORT(_\d+_\w+)?)|DATA_DIR|REQUIRE_ALL)")


# Bounds that a model's own settings file shares (service/lifecycle/model_file.py).
BatchSize = Annotated[int, Field(ge=1, le=1024)]
QueueDelay = Annotated[int, Field(ge=0)]
QueueItems = Annotated[int, Field(ge=1, le=65536)]
Count = Annotated[int, Field(ge=1, le=256)]
Timeout = Annotated[int, Field(ge=1)]


class SettingsError(Exception):
    """Settings that cannot be used. The message is one line for each, naming the setting, its source and what fits."""


class Server(BaseModel, frozen=True, extra="forbid"):
    """Where the server listens, and how it ends."""

    host: Annotated[str, Field(description="Address to listen on.")] = "0.0.0.0"  # noqa: S104 a container's port
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")] = 8000
    grpc_port: Annotated[
        int | None,
        Field(
            ge=0,
            le=65535,
            description="Port for gRPC, 0 takes a free one. Default: no gRPC. Needs the extra `grpc`.",
        ),
    ] = None
    frontends: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=0, le=16)],
        Field(
            description="HTTP processes, beside an engine process for each device. 0: HTTP and engine share one "
            "process. `auto` goes by the cores."
        ),
    ] = "auto"
    max_body_bytes: Annotated[
        int, Field(ge=1024, description="Longest request body; longer ones are answered 413.")
    ] = 64 << 20
    body_timeout_s: Annotated[float, Field(gt=0, description="How long a body may take to arrive, else 408.")] = 30.0
    request_timeout_ms: Annotated[
        Timeout, Field(description="A request without an answer after this is answered 504.")
    ] = 30_000
    drain_delay_s: Annotated[
        float,
        Field(
            ge=0, description="After SIGTERM, how long to go on serving with `ready` false, so that balancers notice."
        ),
    ] = 0.0
    drain_timeout_s: Annotated[
        int, Field(ge=1, description="After that, how long requests in flight may take to finish.")
    ] = 30


class Images(BaseModel, frozen=True, extra="forbid"):
    """What is accepted as an uploaded image."""

    max_pixels: Annotated[
        int, Field(ge=1, description="Largest image by width x height, checked before decoding; larger ones get 400.")
    ] = 25_000_000
    decode_in_thread_pixels: Annotated[
        int, Field(ge=0, description="Images of at least this many pixels are decoded outside the event loop.")
    ] = 65_536


class Batching(BaseModel, frozen=True, extra="forbid"):
    """How concurrent requests become batches."""

    max_batch_size: Annotated[
        BatchSize,
        Field(
            description="Most items one run executes; less when measuring shows that less is enough, which it does not "
            "look for where `engine.tune_budget_s` is 0 and, on a CPU, instances or threads are given.",
        ),
    ] = 64
    max_queue_delay_us: Annotated[
        QueueDelay,
        Field(
            description="How long the oldest item may wait for company. 0 runs whatever is there: lowest latency, "
            "smaller batches.",
        ),
    ] = 0
    max_queue_items: Annotated[
        QueueItems, Field(description="Items in flight per model; beyond that requests are answered 503.")
    ] = 1024
    max_row_bytes: Annotated[
        int,
        Field(
            ge=1024,
            le=64 << 20,
            description="Largest item of a tensor whose items differ in size (variable axes, strings), for each of "
            "its tensors. Memory is taken as items use it and kept; where all rows together would pass 1 GiB, fewer "
            "items fit in flight, down to 16.",
        ),
    ] = 1 << 20


class Engine(BaseModel, frozen=True, extra="forbid"):
    """What runs the models. What is left out comes from `tuning.json`, or is chosen by measuring at load."""

    device: Annotated[
        Literal["auto", "cpu", "cuda", "tensorrt"],
        Field(
            description="`auto` takes CUDA where the installed onnxruntime has it, `cuda` fails without it. `tensorrt` "
            "leaves what TensorRT does not take to CUDA."
        ),
    ] = "auto"
    cores: Annotated[
        int | None,
        Field(ge=1, description="CPU cores to use. Default: those the process may use, by affinity and quota."),
    ] = None
    engines: Annotated[
        int | None, Field(ge=1, le=64, description="Engine processes. Default: one for each GPU, else one.")
    ] = None
    instances: Annotated[
        Count | None, Field(description="Copies of each model that run side by side. Default: measured.")
    ] = None
    threads: Annotated[Count | None, Field(description="Threads of each copy. Default: measured.")] = None
    tune_budget_s: Annotated[
        float, Field(ge=0, le=60, description="How long the measuring at start may take, for all models together.")
    ] = 1.0
    allow_cpu_nodes: Annotated[
        bool, Field(description="Serve a model on a GPU also when some of its nodes would run on the CPU.")
    ] = False
    cuda_graphs: Annotated[
        bool, Field(description="Capture a CUDA graph for each batch size, where the model allows it.")
    ] = True
    gpu_mem_limit_bytes: Annotated[
        int | None, Field(ge=1 << 20, description="Most GPU memory of each instance's arena. Default: all there is.")
    ] = None
    tf32: Annotated[
        bool, Field(description="Let CUDA multiply FP32 with a mantissa of 10 bits: faster, and less exact.")
    ] = False
    fp16: Annotated[bool, Field(description="Let TensorRT compute in half precision. Needs device `tensorrt`.")] = False
    tensorrt_cache: Annotated[
        Path | None, Field(description="A folder for TensorRT's engines, which are else built at every start.")
    ] = None


class Logging(BaseModel, frozen=True, extra="forbid"):
    """What goes to standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least severe event that is logged.")
    ] = "info"
    format: Annotated[
        Literal["auto", "text", "json"],
        Field(description="`auto` is text on a terminal and one JSON object a line else."),
    ] = "auto"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter=_NESTED, case_sensitive=False
    )

    repository: Annotated[
        Path, Field(description="The models, `<name>/<version>/model.onnx`: a folder, or a URL (docs/remote.md).")
    ] = Path("models")
    server: Server = Server()
    images: Images = Images()
    batching: Batching = Batching()
    engine: Engine = Engine()
    control: Control = Control()
    admin: Admin = Admin()
    cache: Cache = Cache()
    remote: RemoteRepository = RemoteRepository()
    logging: Logging = Logging()

    config: Annotated[Path | None, Field(description="A TOML file with any of these settings.")] = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, _file.get())

    @model_validator(mode="before")
    @classmethod
    def locate(cls, values: dict[str, Any]) -> dict[str, Any]:
        return located(values)

    @model_validator(mode="after")
    def check(self) -> Self:
        batching = self.batching
        if batching.max_batch_size > batching.max_queue_items:
            raise ValueError(
                f"batching.max_batch_size ({batching.max_batch_size}) is larger than batching.max_queue_items "
                f"({batching.max_queue_items}), so such a batch could never form"
            )
        if self.server.frontends != "auto" and self.server.frontends > batching.max_queue_items:
            raise ValueError(
                f"server.frontends ({self.server.frontends}) is larger than batching.max_queue_items "
                f"({batching.max_queue_items}), of which each has its share"
            )
        admin, ports = self.admin, (self.server.port, self.server.grpc_port)
        check_reach(admin.secret is not None, admin.host, admin.port, admin.public, ports)
        if self.engine.fp16 and self.engine.device != "tensorrt":
            raise ValueError(
                f"engine.fp16 needs engine.device tensorrt, not {self.engine.device}: onnxruntime's other providers "
                "compute in the precision of the file"
            )
        return self


_file: ContextVar[Path | None] = ContextVar("settings file", default=None)


def read_settings(flags: Sequence[str], command: str) -> Settings:
    """Settings from all sources. Raises SettingsError; `--help` and unknown flags end the process, as argparse does."""
    path = _config_path(flags)
    if unknown := sorted(set(_shoal_names()) - set(environment_names())):
        raise SettingsError("\n".join(f"{name}: no such setting{_suggestion(name)}" for name in unknown))
    token = _file.set(path)
    try:
        return Settings(  # type: ignore[call-arg]  # the names with an underscore are pydantic-settings' own
            _cli_parse_args=list(flags),
            _cli_prog_name=f"python -m service {command}",
            _cli_kebab_case=True,
            _cli_shortcuts={
                "server.port": "port",
                "server.host": "host",
                "server.frontends": "frontends",
                "control.require-signature": "require-signature",
            },
            _cli_avoid_json=True,
            _cli_hide_none_type=True,
        )
    except ValidationError as error:
        lines = [_explain(item, flags, path) for item in error.errors()]
        raise SettingsError("\n".join(lines)) from error
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error
    except PydanticSettingsError as error:
        raise SettingsError(str(error)) from error
    finally:
        _file.reset(token)


# What `tune` decides for a model; given by hand from any source, it is left alone.
_TUNED = (
    *(("engine", "instances"), ("engine", "threads")),
    *(("batching", "max_batch_size"), ("batching", "max_queue_delay_us")),
)


def settings_by_hand(settings: Settings) -> tuple[str, ...]:
    """Those of the settings that `tune` decides which some source gives, were it the default: "engine.threads"."""
    return tuple(f"{section}.{name}" for section, name in _TUNED if name in getattr(settings, section).model_fields_set)


def walk(model: type[BaseModel] = Settings, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every knob: its path and its field."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from walk(info.annotation, (*path, name))
        else:
            yield (*path, name), info


def environment_names() -> list[str]:
    return [environment_name(path) for path, _ in walk()]


def environment_name(path: Sequence[str]) -> str:
    return ENV_PREFIX + _NESTED.join(path).upper()


def flag_name(path: Sequence[str]) -> str:
    return "--" + ".".join(path).replace("_", "-")


def _config_path(flags: Sequence[str]) -> Path | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    chosen = parser.parse_known_args(list(flags))[0].config or os.environ.get(environment_name(["config"]))
    if chosen and not Path(chosen).is_file():
        raise SettingsError(f"config: {chosen!r} is not a file")
    return Path(chosen) if chosen else None


def _shoal_names() -> Iterator[str]:
    return (name for name in os.environ if name.startswith(ENV_PREFIX) and not _NOT_SETTINGS.fullmatch(name))


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, environment_names(), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _explain(error: ErrorDetails, flags: Sequence[str], config: Path | None) -> str:
    """One line: where the value came from, what it is, what fits."""
    path = [str(part) for part in error["loc"]]
    if not path:
        return str(error["msg"]).removeprefix("Value error, ")
    flag, variable = flag_name(path), environment_name(path)
    if any(word.split("=")[0] in (flag, f"--{path[-1]}") for word in flags):
        source = flag
    elif variable in os.environ:
        source = variable
    else:
        source = f"{config}: {'.'.join(path)}"
    if error["type"] == "extra_forbidden":
        return f"{source}: no such setting"
    return f"{source}: {error['msg']}" + ("" if path == ["admin", "key"] else f", not {error['input']!r}")
