"""The controller: decides which versions are served, and has engines load and retire them, one change at a time.

    catalogue (disk) ─┐
    policy, aliases  ─┼─ wanted(model) ─► what is missing is loaded, then what is no longer wanted is retired
    asked for        ─┘

At the start engines load at once, as nobody is answered yet; later a version passes the gate (gate.py) first, beside
what is served. A version that fails leaves everything as it was, and the next older one is wanted in its place.

The state is one `Table`, told to every frontend at each change. A controller that takes the place of one that died has
it from them, and what is loaded from the engines; nothing is loaded again. Decision: docs/adr/0020.
"""

import asyncio
import contextlib
import logging
import time
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from service.controller import gate
from service.controller.guarded import Guards
from service.controller.peers import EngineLost, EnginePeer, Peers
from service.controller.remote_repository import RemoteRepository
from service.controller.routes import Change, changed
from service.controller.state_file import restored, save
from service.controller.versions import ALL, Key, Versions
from service.controller.watch import changes
from service.errors import (
    EngineError,
    LoadRefused,
    MalformedRequest,
    ModelControlOff,
    ServiceError,
    UnknownModel,
    VersionInUse,
)
from service.lifecycle.catalogue import FoundVersion, RepositoryUnreadable, Settling, scan
from service.lifecycle.frames import Place
from service.lifecycle.messages import (
    AllLoaded,
    Ask,
    Command,
    Loaded,
    LoadModel,
    Plan,
    Refused,
    Reply,
    SetLog,
    SetLogLevel,
    Table,
    UnloadModel,
)
from service.lifecycle.routing import check_routing, named_versions, roll_back
from service.log import set_level
from service.metrics import SharedCounts
from service.settings import Settings

log = logging.getLogger(__name__)

_JUDGE_S = 1.0


class Controller:
    """In the event loop's thread. `n_engines`: how many there will be; a version is served when all of them have it."""

    def __init__(self, settings: Settings, n_engines: int, place: Place, counts: SharedCounts) -> None:
        self._settings = settings
        self._n_engines = n_engines
        self._peers = Peers(place, self._engine_came, self._frontend_came, self._asked)
        self._versions = Versions(settings)
        self._remote = RemoteRepository(settings)
        self._guards = Guards(counts)
        self._change = asyncio.Lock()
        self._started = False

    async def run(self) -> None:
        """For ever."""
        self._peers.keep(asyncio.create_task(self._peers.run()))
        async with self._change:  # whoever asks meanwhile waits
            await self._everybody()
            await self._start()
        async with asyncio.TaskGroup() as together:
            together.create_task(self._judge())
            if self._settings.control.mode == "poll":
                together.create_task(self._follow())

    # ── the start ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _everybody(self) -> None:
        """Until the first engines and a frontend are there; who comes later is told what it needs."""
        while len(self._peers.engines) < self._n_engines or not self._peers.frontends:
            self._peers.changed.clear()
            await self._peers.changed.wait()

    async def _start(self) -> None:
        versions = self._versions
        took_over = versions.table.complete
        for engine in self._peers.engines.values():
            for serving in engine.serving:
                versions.plans[serving.name, serving.version] = serving.plan
                versions.set_state((serving.name, serving.version), "READY")
        if not took_over and (path := self._settings.control.state_file) is not None:
            kept = restored(path)
            versions.table = replace(versions.table, routing=kept.routing, explicit=kept.explicit, files=kept.files)
        versions.look()
        if took_over:
            versions.end_what_was_begun()
        else:
            names = [name for name in versions.by_size() if versions.is_chosen(name)]
            for name in names:
                await self._reconcile(name, tried=True, share=len(names))
        versions.table = replace(versions.table, complete=True)
        self._started = True
        for engine in list(self._peers.engines.values()):
            await self._equip(engine)
        self._publish()

    def _engine_came(self, engine: EnginePeer) -> None:
        if self._started:
            self._peers.keep(asyncio.create_task(self._equip_later(engine)))

    async def _equip_later(self, engine: EnginePeer) -> None:
        async with self._change:
            await self._equip(engine)
            self._publish()

    async def _equip(self, engine: EnginePeer) -> None:
        """What is served and an engine has not, as it has taken another's place; then it may say that it is ready."""
        try:
            for key, plan in list(self._versions.plans.items()):
                if key in engine.has:
                    continue
                found = self._versions.found(key)
                answer = None if found is None else await engine.load(found, plan, 0.0)
                if not isinstance(answer, Loaded) and len(self._peers.engines) == 1:
                    del self._versions.plans[key]
                    reason = "it is no longer in the repository" if answer is None else answer.reason
                    self._versions.set_state(key, "UNAVAILABLE", reason)
            self._peers.tell_frontends(self._versions.told())
            engine.send(AllLoaded())
        except EngineLost:
            log.warning("engine %d died while it loaded what is served", engine.number)

    def _frontend_came(self, table: Table | None) -> None:
        """The newest of the tables holds: this controller may have taken another's place."""
        if table is not None and table.generation > self._versions.table.generation:
            self._versions.table = table
            for state in table.versions:
                self._versions.states.setdefault((state.name, state.version), state)
        self._peers.tell_frontends(self._versions.table)

    # ── what holds ───────────────────────────────────────────────────────────────────────────────────────────────

    def _publish(self) -> None:
        """Tell every frontend how things stand."""
        table = self._versions.told()
        self._peers.tell_frontends(table)
        if (path := self._settings.control.state_file) is not None and table.complete:
            save(path, table)

    # ── loading and retiring ─────────────────────────────────────────────────────────────────────────────────────

    async def _reconcile(self, name: str, tried: bool = False, share: int = 1) -> None:
        """Load what is wanted and missing, then retire what is not wanted. `tried`: without the gate, at the start."""
        while missing := self._versions.missing(name):
            await self._load((name, missing[0]), tried, self._settings.engine.tune_budget_s / share)
        for version in set(self._versions.served(name)) - set(self._versions.wanted(name)):
            await self._retire((name, version))
        for version in self._versions.outdated(name):
            await self._load((name, version), False, self._settings.engine.tune_budget_s)

    async def _load(self, key: Key, tried: bool, budget_s: float) -> None:
        """Served by all engines, or refused by state. A version of that number that is served goes on until then."""
        found = self._versions.found(key)
        assert found is not None, "bug: what is loaded has been found"
        begun = time.monotonic()
        plan = self._versions.plan_for(key)
        self._versions.set_by[key] = found.overrides
        if key not in self._versions.plans:
            self._versions.set_state(key, "LOADING")
            self._publish()
        reason = ""
        if not tried:
            verdict = await gate.try_version(found, self._settings, plan, budget_s)
            reason, plan = verdict.reason, verdict.plan
            if not reason and (short := gate.too_large(verdict)):
                reason = await self._make_room(key, short)
        if not reason:
            reason, plan = await self._load_everywhere(found, plan, budget_s)
        if not reason:
            assert plan is not None, "bug: loaded without a plan"
            self._versions.plans[key] = plan
            self._versions.refused.pop(key, None)
            self._versions.set_state(key, "READY")
            if not tried:
                log.info("model %s version %s is served, %.2f s after", *key, time.monotonic() - begun)
        else:
            self._versions.refused[key] = self._versions.fingerprint(key)
            self._versions.reasons[key] = reason
            if key in self._versions.plans:
                log.error("model %s version %s: another load of it failed, it goes on as it was: %s", *key, reason)
            else:
                self._versions.set_state(key, "UNAVAILABLE", reason)
                log.error("model %s version %s is not served: %s", *key, reason)
        self._publish()

    async def _load_everywhere(
        self, found: FoundVersion, plan: Plan | None, budget_s: float
    ) -> tuple[str, Plan | None]:
        """On each engine in turn, the later ones by the first one's plan. A reason: none of them has it."""
        loaded: list[EnginePeer] = []
        await self._peers.until_an_engine()
        for engine in list(self._peers.engines.values()):
            try:
                answer = await engine.load(found, plan, budget_s)
            except EngineLost:
                # It takes what it had to load with it; the one that comes in its place gets the rest.
                reason = "the engine died while it loaded this version"
            else:
                if not isinstance(answer, Refused):
                    loaded.append(engine)
                    plan = answer.plan
                    continue
                reason = answer.reason
            for other in loaded:
                with contextlib.suppress(EngineLost):
                    await other.unload(found.name, found.version)
            return reason, None
        return ("", plan) if loaded else ("no engine is there", None)

    async def _make_room(self, key: Key, short: str) -> str:
        """What stands against loading where memory is short: nothing, once what it replaces is gone."""
        name, version = key
        replaced = set(self._versions.served(name)) - (set(self._versions.wanted(name)) - {version})
        if self._settings.control.when_memory_is_short == "refuse" or not replaced:
            return short
        log.warning("model %s version %s: %s, so what it replaces goes first", name, version, short)
        for other in replaced:
            await self._retire((name, other))
        return ""

    async def _retire(self, key: Key) -> None:
        """Once its last request is answered, it is gone from every engine."""
        del self._versions.plans[key]
        self._versions.set_state(key, "UNLOADING")
        self._publish()
        await self._peers.until_told(self._versions.table.generation)  # nobody routes to it any more
        for engine in list(self._peers.engines.values()):
            with contextlib.suppress(EngineLost):
                await engine.unload(*key)
        self._versions.set_state(key, "UNAVAILABLE", "unloaded")
        self._publish()
        log.info("model %s version %s is no longer served", *key)

    # ── the repository ───────────────────────────────────────────────────────────────────────────────────────────

    async def _follow(self) -> None:
        """Mode poll: as the repository changes."""
        control = self._settings.control
        settling = Settling(control.settle_s)
        async for _ in changes(self._settings.repository, partial(settling.next_at), control.rescan_s):
            if self._remote.is_due:
                async with self._change:
                    await self._bring()
            try:
                seen = scan(self._settings.repository)
            except RepositoryUnreadable as error:
                log.error("%s", error)
                continue
            usable = settling.look(seen, time.monotonic())
            async with self._change:
                self._versions.look(seen, usable)
                for name in {*seen, *(name for name, _ in self._versions.plans)}:
                    await self._reconcile(name)
                self._publish()

    async def _bring(self) -> None:
        """From the remote, where there is one."""
        versions = self._versions
        for (name, version), reason in (await self._remote.bring(versions.wanted_of, set(versions.plans))).items():
            versions.reasons[name, version] = reason
            if (name, version) not in versions.plans and version:
                versions.set_state((name, version), "UNAVAILABLE", reason)
            log.error("model %s version %s is not brought: %s", name, version, reason)

    async def _judge(self) -> None:
        """Every second: whether a canary is to be taken out of its split."""
        while True:
            await asyncio.sleep(_JUDGE_S)
            for name, reason in self._guards.look(self._versions.table.routing, time.monotonic()).items():
                log.error("model %s: rolled back: %s", name, reason)
                self._versions.route(name, roll_back(self._versions.routing(name), reason))
                self._publish()

    # ── what is asked for ────────────────────────────────────────────────────────────────────────────────────────

    async def _asked(self, ask: Ask) -> Struct:
        try:
            async with self._change:
                await self._do(ask.command)
                await self._peers.until_told(self._versions.table.generation)
        except ServiceError as error:
            return Reply(ask.id, type(error).__name__, str(error))
        except ValueError as error:
            return Reply(ask.id, MalformedRequest.__name__, str(error))
        except Exception:  # the client is told; whatever it was, the controller goes on
            log.exception("bug: %s failed", ask.command)
            return Reply(ask.id, EngineError.__name__, "internal error")
        return Reply(ask.id)

    async def _do(self, command: Command) -> None:
        match command:
            case SetLogLevel(level=level):
                set_level(level)
                for engine in self._peers.engines.values():
                    engine.send(SetLog(level))
                self._peers.tell_frontends(SetLog(level))
            case LoadModel(name=name, version=version):
                await self._load_by_request(name, version)
            case UnloadModel(name=name, version=version):
                await self._unload_by_request(name, version)
            case _:
                await self._route(command)

    async def _load_by_request(self, name: str, version: str | None) -> None:
        """What is served already is loaded again, beside itself."""
        asked_before = self._versions.table.explicit
        self._versions.wish(name, version or ALL, True)
        await self._bring()
        self._versions.look()
        try:
            await self._load_wished(name, version)
        except UnknownModel:
            self._versions.table = replace(self._versions.table, explicit=asked_before)
            raise

    async def _load_wished(self, name: str, version: str | None) -> None:
        there = self._versions.on_disk(name)
        if version is not None and version not in there:
            raise UnknownModel(f"model {name!r} has no version {version!r}; found: {', '.join(there)}")
        for each in there if version is None else (version,):
            self._versions.refused.pop((name, each), None)
        targets = self._versions.wanted(name) if version is None else [version]
        again = [each for each in targets if (name, each) in self._versions.plans]
        await self._reconcile(name)
        for each in again:
            await self._load((name, each), False, 0.0)
        failed = [each for each in targets if (name, each) in self._versions.refused]
        if failed:
            reasons = "; ".join(f"version {each}: {self._versions.reasons[name, each]}" for each in failed)
            for each in failed:
                self._versions.refused.pop((name, each)) if each in again else self._versions.wish(name, each, None)
            raise LoadRefused(f"failed to load {name!r}, {reasons}")

    async def _unload_by_request(self, name: str, version: str | None) -> None:
        there = self._versions.served(name)
        if not there:
            self._versions.on_disk(name)  # raises where there is no such model
        if version is not None and version not in there:
            raise UnknownModel(
                f"model {name!r} version {version!r} is not served; served: {', '.join(there) or 'none'}"
            )
        used = named_versions(self._versions.routing(name)) & ({version} if version else set(there))
        if used:
            raise VersionInUse(
                f"model {name!r} version {', '.join(sorted(used))}: an alias, the split or the shadow names it; "
                "move or remove these first"
            )
        if version is None:
            self._versions.forget_wishes(name)
        self._versions.wish(name, version or ALL, False)
        await self._reconcile(name)

    async def _route(self, change: Change) -> None:
        """Change a model's routing. Versions that it names are loaded first, so that it never points at nothing."""
        name = change.name
        there = self._versions.on_disk(name)
        after = changed(self._versions.routing(name), change)
        check_routing(after, f"model {name!r}")
        for version in sorted(named_versions(after)):
            if version not in there and version not in self._versions.served(name):
                raise UnknownModel(f"model {name!r} has no version {version!r}; found: {', '.join(there)}")
            if (name, version) not in self._versions.plans:
                if self._settings.control.mode == "none":
                    raise ModelControlOff(
                        f"model {name!r} version {version} is not served, and with --control.mode none none is loaded; "
                        f"served: {', '.join(self._versions.served(name))}"
                    )
                await self._load((name, version), False, self._settings.engine.tune_budget_s)
                if (name, version) not in self._versions.plans:
                    raise LoadRefused(
                        f"failed to load {name!r} version {version}: {self._versions.reasons[name, version]}"
                    )
        # Once more, as a guard may have spoken while that was loaded.
        self._versions.route(name, changed(self._versions.routing(name), change))
        self._publish()
        await self._reconcile(name)
