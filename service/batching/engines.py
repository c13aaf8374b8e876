"""All engines as one frontend sees them: finds a model wherever it is served, and spreads requests over devices.

Where several engines serve a model, a request goes to the one with the shortest expected wait: items in flight over
the rate that the engine measured. An engine that dies is absent until the supervisor connects its successor.
"""

import asyncio
from collections.abc import Callable

from service.batching.claim import ServedModel
from service.batching.client import Client, Observer, version_key
from service.batching.link import Link
from service.errors import ModelNotReady, UnknownModel
from service.lifecycle.messages import Table


class Engines:
    """Of one frontend, in its event loop's thread. `observer` sees the answers of all engines."""

    def __init__(self, links: list[Link], observer: Observer | None = None) -> None:
        self._observer = observer
        self._changed = asyncio.Event()
        self._clients = [Client(link, observer, self._change) for link in links]
        self._found: dict[tuple[str, str | None], ServedModel] = {}  # of a single engine, since its last change
        self.table = Table()
        self.watchers: list[Callable[[], None]] = []  # called when models or the table have changed

    def connect(self, engine: int, link: Link) -> None:
        """A link to the successor of an engine that is gone."""
        self._clients[engine].close()
        self._clients[engine] = Client(link, self._observer, self._change)
        self._found.clear()

    def apply(self, table: Table) -> None:
        """What the controller says of versions and routing holds from now on."""
        self.table = table
        self._change()

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
        return any(client.loaded.is_set() for client in self._clients if client.alive)

    @property
    def failures(self) -> dict[tuple[str, str], str]:
        """The reason against each version that no engine serves."""
        served = {(model.facts.name, model.facts.version) for model in self.models()}
        return {
            version: reason
            for client in self._clients
            for version, reason in client.failures.items()
            if version not in served
        }

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

    def known(self, name: str, version: str | None = None) -> ServedModel | None:
        """The version, or the newest, where it is answered soonest; None where no engine has it."""
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

    def _change(self) -> None:
        self._found.clear()
        self._changed.set()
        for changed in self.watchers:
            changed()

    def _absent(self, name: str, version: str | None) -> UnknownModel | ModelNotReady:
        """Say why there is no such model: loading, refused, or never heard of."""
        for (failed_name, failed_version), reason in self.failures.items():
            if failed_name == name and version in (None, failed_version):
                return ModelNotReady(f"model {name!r} version {failed_version} is not served: {reason}")
        if not self.alive:
            return ModelNotReady(f"model {name!r} is not ready: the engine is gone")
        if not self.loaded:
            return ModelNotReady(f"model {name!r} is not ready: models are loading")
        if versions := self.versions(name):
            return UnknownModel(f"model {name!r} has no version {version!r}; ready: {', '.join(versions)}")
        return UnknownModel(f"no model {name!r}; ready: {', '.join(self.names()) or 'none'}")


def _expected_wait(model: ServedModel) -> float:
    """Seconds until an item that comes now would be answered."""
    return (model.in_flight + 1) / model.facts.items_per_s
