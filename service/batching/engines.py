"""All engines as one frontend sees them: finds a model wherever it is served, and spreads requests over devices.

Where several engines serve a model, a request goes to the one with the shortest expected wait: items in flight over
the rate that the engine measured. An engine that dies is absent until the supervisor connects its successor.
What the controller says (`apply`) decides who answers a request that names no version, or a label.
"""

import asyncio
from collections.abc import Callable

from service.batching.claim import ServedModel
from service.batching.client import Client, Observer, version_key
from service.batching.link import Link
from service.errors import ModelNotReady, UnknownModel
from service.lifecycle.messages import Table, VersionState
from service.lifecycle.routing import Routing, Shares, is_version, likeliest, pick, shares


class Engines:
    """Of one frontend, in its event loop's thread. `observer` sees the answers of all engines.

    table    what the controller said last
    sticky   of the models that have a split: what decides about a request, as `Routing` has it
    """

    def __init__(self, links: list[Link], observer: Observer | None = None) -> None:
        self._observer = observer
        self._changed = asyncio.Event()
        self._clients = [Client(link, observer, self._change) for link in links]
        self._found: dict[tuple[str, str | None], ServedModel] = {}  # of a single engine, since its last change
        self._shares: dict[str, Shares] = {}  # of the splits that were asked for, since the last change
        self.table = Table()
        self.has_controller = False  # then its table is needed too
        self.sticky: dict[str, str] = {}
        self.watchers: list[Callable[[], None]] = []  # called when models or the table have changed

    def connect(self, engine: int, link: Link) -> None:
        """A link to the successor of an engine that is gone."""
        self._clients[engine].close()
        self._clients[engine] = Client(link, self._observer, self._change)
        self._forget()

    def apply(self, table: Table) -> None:
        """What the controller says of versions and routing holds from now on."""
        self.table = table
        self.sticky = {name: routing.sticky for name, routing in table.routing.items() if routing.split}
        self._change()

    def holds(self, table: Table) -> bool:
        """Whether every version that it says is ready is, on all engines that are there."""
        ready = {(each.name, each.version) for each in table.versions if each.state == "READY"}
        alive = [client for client in self._clients if client.alive]
        return all(ready <= {(model.facts.name, model.facts.version) for model in client.models()} for client in alive)

    def close(self) -> None:
        """Leave all links. Requests in flight fail with EngineDied."""
        for client in self._clients:
            client.close()

    async def any_loaded(self) -> None:
        """Until the first engine has announced everything it found, or the last is gone."""
        while self.alive and not self.loaded:
            self._changed.clear()
            await self._changed.wait()

    async def all_lost(self) -> None:
        while self.alive:
            self._changed.clear()
            await self._changed.wait()

    @property
    def alive(self) -> bool:
        return any(client.alive for client in self._clients)

    @property
    def loaded(self) -> bool:
        told = self.table.complete or not self.has_controller
        return told and any(client.loaded.is_set() for client in self._clients if client.alive)

    @property
    def failures(self) -> dict[tuple[str, str], str]:
        """The reason against each version that no engine serves, and none will."""
        return {key: each.reason for key, each in self.states().items() if each.state == "UNAVAILABLE"}

    def states(self) -> dict[tuple[str, str], VersionState]:
        """Of every version that anybody knows of, by name and version. READY is what an engine answers with here."""
        states: dict[tuple[str, str], VersionState] = {}
        for client in self._clients:
            for key, reason in client.failures.items():
                states[key] = VersionState(*key, "UNAVAILABLE", reason)
        for told in self.table.versions:
            key = told.name, told.version
            if told.state != "READY":
                states[key] = told
            elif key not in states:
                states[key] = VersionState(*key, "LOADING")  # no engine has announced it here yet, or again
        for model in self.models():
            key = model.facts.name, model.facts.version
            if key not in states or states[key].state != "UNLOADING":
                states[key] = VersionState(*key, "READY")
        return states

    def models(self) -> list[ServedModel]:
        """One of each ready version."""
        everywhere = (model for client in self._clients for model in client.models())
        return list({(model.facts.name, model.facts.version): model for model in everywhere}.values())

    def names(self) -> list[str]:
        """Of the models that have a ready version, in order."""
        return sorted({model.facts.name for model in self.models()})

    def named(self, name: str, version: str | None = None) -> list[ServedModel]:
        """The ready versions of a model, or the one. Raises UnknownModel, ModelNotReady."""
        found = self.find(name, version)
        return [model for model in self.models() if model.facts.name == name] if version is None else [found]

    def versions(self, name: str) -> list[str]:
        """Ready versions, in ascending order."""
        return sorted({v for client in self._clients for v in client.versions(name)}, key=version_key)

    def in_flight(self) -> dict[tuple[str, str], int]:
        """Slots that are not free, by version."""
        totals: dict[tuple[str, str], int] = {}
        for client in self._clients:
            for model in client.models():
                key = model.facts.name, model.facts.version
                totals[key] = totals.get(key, 0) + model.in_flight
        return totals

    def aliases(self, name: str) -> dict[str, str]:
        """Version by label."""
        return self._routing(name).aliases

    def known(self, name: str, version: str | None = None) -> ServedModel | None:
        """Where it is answered soonest: the version, or that with this label; without one, what most requests get that
        name none. None where no engine has it.
        """
        if name in self.table.routing:
            version = self._routed(name, version)
        if len(self._clients) == 1:
            return self._clients[0].known(name, version)
        if version is None:
            if not (versions := self.versions(name)):
                return None
            version = versions[-1]
        found = [model for client in self._clients if (model := client.known(name, version)) is not None]
        return min(found, key=_expected_wait, default=None)

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """As `known`. Raises UnknownModel, ModelNotReady."""
        if (model := self._found.get((name, version))) is not None:
            return model
        if (model := self.known(name, version)) is None:
            raise self._absent(name, version)
        if len(self._clients) == 1:
            self._found[name, version] = model
        return model

    def draw(self, name: str, point: float) -> ServedModel:
        """Of a model in `sticky`: the version that its split has at `point`, in [0, 1). Raises as `find`."""
        if (parts := self._shares.get(name)) is None:
            parts = self._shares[name] = shares(self._routing(name), self.versions(name))
        return self.find(name, pick(parts, point))

    def _routing(self, name: str) -> Routing:
        return self.table.routing.get(name, _NO_ROUTING)

    def _routed(self, name: str, version: str | None) -> str | None:
        """The version that is meant, where routing says so."""
        if version is None:
            return likeliest(self._routing(name), self.versions(name))
        return self.aliases(name).get(version, version)

    def _change(self) -> None:
        self._forget()
        self._changed.set()
        for changed in self.watchers:
            changed()

    def _forget(self) -> None:
        self._found.clear()
        self._shares.clear()

    def _absent(self, name: str, version: str | None) -> UnknownModel | ModelNotReady:
        """Say why there is no such model: loading, refused, or never heard of."""
        if not self.alive:
            return ModelNotReady(f"model {name!r} is not ready: the engine is gone")
        meant = self._routed(name, version)
        if known := [each for each in self.states().values() if each.name == name and meant in (None, each.version)]:
            return _not_ready(max(known, key=lambda each: version_key(each.version)), version)
        if not self.loaded:
            return ModelNotReady(f"model {name!r} is not ready: models are loading")
        if not (versions := self.versions(name)):
            return UnknownModel(f"no model {name!r}; ready: {', '.join(self.names()) or 'none'}")
        ready = f"ready: {', '.join(versions)}"
        if version is None or is_version(version):
            return UnknownModel(f"model {name!r} has no version {version!r}; {ready}")
        if meant != version:
            return UnknownModel(f"model {name!r} has no version {meant!r}, which label {version!r} points to; {ready}")
        labels = ", ".join(sorted(self.aliases(name))) or "none"
        return UnknownModel(f"model {name!r} has no version or label {version!r}; labels: {labels}; {ready}")


_NO_ROUTING = Routing()


def _not_ready(known: VersionState, asked_for: str | None) -> ModelNotReady:
    label = f" ({asked_for})" if asked_for not in (None, known.version) else ""
    which = f"model {known.name!r} version {known.version}{label}"
    match known.state:
        case "UNAVAILABLE":
            return ModelNotReady(f"{which} is not served: {known.reason}")
        case "UNLOADING":
            return ModelNotReady(f"{which} is not served: it is being unloaded")
        case _:
            return ModelNotReady(f"{which} is not ready: it is loading")


def _expected_wait(model: ServedModel) -> float:
    """Seconds until an item that comes now would be answered."""
    return (model.in_flight + 1) / model.facts.items_per_s
