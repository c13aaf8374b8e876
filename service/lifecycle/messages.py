"""What goes between the controller and the processes around it: JSON in frames of a known length.

    engine   → controller   Hello, Loaded, Refused, Unloaded     controller → engine     Load, Unload, AllLoaded, SetLog
    frontend → controller   Hello, Ask, Told                     controller → frontend   Table, Reply, SetLog

Everybody connects to the controller, says who it is, and what it was told last: so a controller that takes the place of
one that died goes on from there.
"""

from typing import Any, Literal

from msgspec import Struct

from models.manifest import TensorSpec
from service.lifecycle.routing import Guard, Routing, Shadow

State = Literal["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]


class Plan(Struct, frozen=True):
    """How a version is run, so that the next engine, or the next version of the same tensors, need not measure.

    rates   items/s of all instances together, by batch size
    """

    instances: int
    threads: int
    max_batch_size: int
    rates: dict[int, float]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Overrides(Struct, frozen=True):
    """What a model's own settings file says; None: as the service's settings have it."""

    max_batch_size: int | None = None
    max_queue_delay_us: int | None = None
    max_queue_items: int | None = None
    instances: int | None = None
    threads: int | None = None
    timeout_ms: int | None = None


class VersionState(Struct, frozen=True):
    """One version that was found. `reason`: why it does not answer."""

    name: str
    version: str
    state: State
    reason: str = ""


# ── to an engine ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Load(Struct, frozen=True, tag=True):
    """Load a version; one of that name and number that is served already is replaced and retired.

    plan     None: measure
    budget_s how long measuring may take
    """

    id: int
    name: str
    version: str
    path: str
    overrides: Overrides = Overrides()
    plan: Plan | None = None
    budget_s: float = 0.0


class Unload(Struct, frozen=True, tag=True):
    """Retire a version. Answered once nobody uses it any more and its memory is free."""

    id: int
    name: str
    version: str


class AllLoaded(Struct, frozen=True, tag=True):
    """What was there at the start has been loaded or refused."""


class SetLog(Struct, frozen=True, tag=True):
    level: Literal["debug", "info", "warning", "error"]


# ── from an engine ───────────────────────────────────────────────────────────────────────────────────────────────────


class Loaded(Struct, frozen=True, tag=True):
    id: int
    plan: Plan


class Refused(Struct, frozen=True, tag=True):
    id: int
    reason: str


class Unloaded(Struct, frozen=True, tag=True):
    id: int


class Serving(Struct, frozen=True):
    name: str
    version: str
    plan: Plan


# ── to a frontend ────────────────────────────────────────────────────────────────────────────────────────────────────


class Table(Struct, frozen=True, tag=True):
    """The whole state, each time any of it changes.

    versions   every version that is known, by name and version
    routing    of the models that have any
    explicit   by model, versions that were loaded (True) or unloaded (False) by request
    files      by model, the digest of the settings file that its routing last came from
    complete   what was there at the start has been loaded or refused
    """

    generation: int = 0
    versions: tuple[VersionState, ...] = ()
    routing: dict[str, Routing] = {}
    explicit: dict[str, dict[str, bool]] = {}
    files: dict[str, str] = {}
    complete: bool = False


class Reply(Struct, frozen=True, tag=True):
    """`error`: the name of a class in service/errors.py, "" where it was done."""

    id: int
    error: str = ""
    message: str = ""


# ── from a frontend ──────────────────────────────────────────────────────────────────────────────────────────────────


class LoadModel(Struct, frozen=True, tag=True):
    """version None: what the model's policy wants."""

    name: str
    version: str | None = None


class UnloadModel(Struct, frozen=True, tag=True):
    name: str
    version: str | None = None


class MoveAlias(Struct, frozen=True, tag=True):
    """version None: the alias is removed."""

    name: str
    alias: str
    version: str | None


class SetSplit(Struct, frozen=True, tag=True):
    """{}: no split."""

    name: str
    split: dict[str, float]
    sticky: str = ""


class SetShadow(Struct, frozen=True, tag=True):
    name: str
    shadow: Shadow | None


class SetGuard(Struct, frozen=True, tag=True):
    name: str
    guard: Guard | None


class Promote(Struct, frozen=True, tag=True):
    """`to` moves to the version of `alias`; `alias`, its part of the split, the guard's verdict and the shadow go."""

    name: str
    alias: str = "canary"
    to: str = "stable"


class SetLogLevel(Struct, frozen=True, tag=True):
    level: Literal["debug", "info", "warning", "error"]


Command = LoadModel | UnloadModel | MoveAlias | SetSplit | SetShadow | SetGuard | Promote | SetLogLevel


class Ask(Struct, frozen=True, tag=True):
    id: int
    command: Command


class Told(Struct, frozen=True, tag=True):
    """A frontend answers by this table from now on, with every version that it says is ready."""

    generation: int


# ── to the load gate and back (service/engine/preflight.py) ──────────────────────────────────────────────────────────


class Trial(Struct, frozen=True):
    """`settings`: those of the service, as JSON."""

    name: str
    version: str
    path: str
    settings: dict[str, Any]
    overrides: Overrides = Overrides()
    plan: Plan | None = None
    budget_s: float = 0.0


class Verdict(Struct, frozen=True):
    """`plan` None: refused, for the `reason`. `memory_bytes`: what the version takes beside an empty process."""

    reason: str = ""
    plan: Plan | None = None
    memory_bytes: int = 0


# ── the first message of each connection ─────────────────────────────────────────────────────────────────────────────


class Hello(Struct, frozen=True, tag=True):
    """Who connects. `secret` is what the supervisor gave to all of its children.

    serving   an engine's versions
    table     what a frontend was told last
    """

    secret: str
    role: Literal["engine", "frontend"]
    number: int
    serving: tuple[Serving, ...] = ()
    table: Table | None = None


ToController = Hello | Loaded | Refused | Unloaded | Ask | Told
FromController = Load | Unload | AllLoaded | SetLog | Table | Reply
