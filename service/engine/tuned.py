"""What `python -m service tune` found for a model on a machine, beside its versions, and whether it is for us.

    <repository>/<name>/tuning.json   one entry for each pair of model file (its SHA-256) and machine
    <repository>/<name>/tuning.svg    the picture of the last search

A version's folder never changes, so what is learned about it later lies beside it. An entry is used when the model file
and everything in `Machine` are the same and none of the four settings was given by hand; else the one line that `Tuned`
carries says why not. A file that cannot be read costs a warning and nothing else.
Checked by tests/unit/test_tuned.py. Why remembered at all: docs/adr/0015.
"""

import functools
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
import onnxruntime as ort
from msgspec import Meta, Struct

from service.engine.providers import Device

TUNING_FILE = "tuning.json"
PLOT_FILE = "tuning.svg"

_GPU_QUERY_S = 10.0


class TuningError(Exception):
    """A tuning.json that cannot be read or written. The message names the file and what is wrong."""


class Knobs(Struct, frozen=True, forbid_unknown_fields=True):
    """How a model is run. Bounds: those of the settings."""

    instances: Annotated[int, Meta(ge=1, le=256)]
    threads: Annotated[int, Meta(ge=1, le=256)]
    max_batch_size: Annotated[int, Meta(ge=1, le=1024)]
    max_queue_delay_us: Annotated[int, Meta(ge=0)] = 0

    def flags(self) -> list[str]:
        """The flags with which `serve` takes these and measures nothing."""
        return [
            *("--engine.instances", str(self.instances)),
            *("--engine.threads", str(self.threads)),
            *("--batching.max-batch-size", str(self.max_batch_size)),
            *("--batching.max-queue-delay-us", str(self.max_queue_delay_us)),
            *("--engine.tune-budget-s", "0"),
        ]

    def __str__(self) -> str:
        runs = f"{self.instances} x {self.threads} threads, batch {self.max_batch_size}"
        return f"{runs}, delay {self.max_queue_delay_us} µs"


class Machine(Struct, frozen=True, forbid_unknown_fields=True):
    """What a measurement depends on. `gpu` is empty on a CPU, and where the driver does not tell."""

    cpu: str
    cores: int
    device: Device
    gpu: str
    onnxruntime: str


class Measurement(Struct, frozen=True, forbid_unknown_fields=True):
    """One load: `clients` connections, each with one request in flight, for `seconds`.

    throughput     answers per second that arrived in the window, one item each
    p50_ms p99_ms  of the requests sent in the window, as the client saw them
    failed         answers other than 200, and connections that broke
    client_cores   CPU time of the client over the window: on the server's machine, what the server had less
    repeat         0 while searching; 1, 2, ... when finalists were measured again
    """

    knobs: Knobs
    clients: int
    throughput: float
    p50_ms: float
    p99_ms: float
    answers: int
    failed: int
    seconds: float
    client_cores: float
    repeat: int = 0


class Summary(Struct, frozen=True, forbid_unknown_fields=True):
    """Medians over `runs` measurements of the same knobs and clients; `lowest` and `highest` are throughputs."""

    knobs: Knobs
    clients: int
    runs: int
    throughput: float
    lowest: float
    highest: float
    p50_ms: float
    p99_ms: float


class Entry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One search. `default` is what `serve` chose by itself; its summary is absent where it does not keep the SLO.

    made_at    UTC, ISO 8601
    flags      what was passed on to every server, beside the knobs
    packages   versions, for people
    load       one-minute load average when the search began
    """

    model_sha256: str
    version: str
    machine: Machine
    made_at: str
    slo_p99_ms: float
    choice: Summary
    default: Knobs
    default_summary: Summary | None
    verdict: str
    flags: tuple[str, ...]
    packages: dict[str, str]
    load: float
    evidence: tuple[Measurement, ...]


class Tuning(Struct, frozen=True, forbid_unknown_fields=True):
    schema: Literal[1] = 1
    entries: tuple[Entry, ...] = ()


class Tuned(NamedTuple):
    """The knobs to use, or None; and a line for the log, empty where there is nothing to say."""

    knobs: Knobs | None
    why: str


def read_tuning(folder: Path) -> Tuning:
    """What lies in a model's folder; nothing where there is no file. Raises TuningError."""
    path = folder / TUNING_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Tuning)
    except FileNotFoundError:
        return Tuning()
    except OSError as error:
        raise TuningError(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TuningError(f"{path}: {error}") from error


def write_entry(folder: Path, entry: Entry, plot: str) -> None:
    """Add the entry, in place of one for the same model file and machine, and the picture. Raises TuningError."""
    try:
        entries = read_tuning(folder).entries
    except TuningError:  # it could not be used, so nothing is lost
        entries = ()
    key = (entry.model_sha256, entry.machine)
    kept = tuple(old for old in entries if (old.model_sha256, old.machine) != key)
    text = json.dumps(msgspec.to_builtins(Tuning(entries=(*kept, entry))), indent=1, ensure_ascii=False)
    for name, content in ((PLOT_FILE, plot), (TUNING_FILE, text + "\n")):
        _replace(folder / name, content)


def require_writable(folder: Path) -> None:
    """Raises TuningError where a file cannot be made in `folder`; permission bits alone do not tell."""
    trial = folder / f".tuning-{os.getpid()}"
    try:
        trial.touch(exist_ok=False)
        trial.unlink()
    except OSError as error:
        raise TuningError(f"{folder}: {error.strerror}") from error


def choose_entry(tuning: Tuning, sha256: str, machine: Machine, by_hand: Sequence[str]) -> Tuned:
    """The newest entry that fits, or why none does."""
    if not tuning.entries:
        return Tuned(None, "")
    of_model = [entry for entry in tuning.entries if entry.model_sha256 == sha256]
    if not of_model:
        return Tuned(None, f"{TUNING_FILE} is for other versions; tune this one again")
    fitting = [entry for entry in of_model if entry.machine == machine]
    if not fitting:
        return Tuned(None, f"{TUNING_FILE} is for another machine: {difference(of_model[-1].machine, machine)}")
    if by_hand:
        return Tuned(None, f"{TUNING_FILE} gives way to settings made by hand: {', '.join(by_hand)}")
    entry = fitting[-1]
    return Tuned(
        entry.choice.knobs,
        f"set-up from {TUNING_FILE} of {entry.made_at[:10]} (p99 within {entry.slo_p99_ms:g} ms): {entry.choice.knobs}",
    )


def difference(theirs: Machine, ours: Machine) -> str:
    """Each field that differs: "cores 4, here 2"."""
    pairs = [(name, getattr(theirs, name), getattr(ours, name)) for name in Machine.__struct_fields__]
    return "; ".join(
        f"{name} {there or 'unknown'}, here {here or 'unknown'}" for name, there, here in pairs if there != here
    )


def look_at_machine(device: Device, cores: int) -> Machine:
    """`cores`: those the engine uses, which a setting may make fewer than there are."""
    return Machine(_cpu_name(), cores, device, "" if device == "cpu" else _gpu_name(), ort.__version__)


def _cpu_name() -> str:
    """The processor as /proc/cpuinfo names it; ARM kernels give numbers there, which tell two apart as well."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n", 1)[0].splitlines()
    except OSError:
        return platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "model name" in fields:
        return fields["model name"]
    return " ".join([platform.machine(), *(fields[key] for key in ("CPU implementer", "CPU part") if key in fields)])


@functools.cache  # the tool may take seconds, and every model asks
def _gpu_name() -> str:
    """The first device's, from the driver's own tool."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GPU_QUERY_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.partition("\n")[0].strip()


def _replace(path: Path, content: str) -> None:
    beside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        try:
            beside.write_text(content, encoding="utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise TuningError(f"{path}: {error.strerror}") from error
