"""What is there, what is served, and what is wanted: the controller's view of the repository, and nothing it does.

What is on disk, whole, settled and not refused is subject to the policy, or to what was asked for; what aliases, split
and shadow name is wanted as well.
"""

import logging
from collections.abc import Hashable, Sequence

from msgspec.structs import replace

from service.errors import LoadRefused, UnknownModel
from service.lifecycle.catalogue import Catalogue, FoundVersion, ListedModel, ListedVersion, RepositoryUnreadable, scan
from service.lifecycle.messages import Overrides, Plan, State, Table, VersionState
from service.lifecycle.routing import STABLE, Routing, named_versions
from service.lifecycle.version_policy import Latest, in_order, wanted
from service.settings import Settings

log = logging.getLogger(__name__)

ALL = "*"
Key = tuple[str, str]
"""A model's name, a version."""


class Versions:
    """`table` is what frontends were told, but for its versions, which `told` puts in.

    usable    what may be loaded; None: whatever is there whole
    plans     of what is served
    set_by    the settings of its model that a version was last loaded with, or refused
    refused   the fingerprint of what was refused, so that it is tried again once it changes
    reasons   of the last load that failed
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.catalogue: Catalogue = {}
        self.usable: set[Key] | None = None
        self.states: dict[Key, VersionState] = {}
        self.plans: dict[Key, Plan] = {}
        self.set_by: dict[Key, Overrides] = {}
        self.refused: dict[Key, Hashable] = {}
        self.reasons: dict[Key, str] = {}
        self.table = Table()

    def told(self) -> Table:
        """The next table to tell."""
        versions = tuple(self.states[key] for key in sorted(self.states))
        self.table = replace(self.table, generation=self.table.generation + 1, versions=versions)
        return self.table

    def plan_for(self, key: Key) -> Plan | None:
        """How it is run, or another version of the model: then nothing need be measured beside what is served.

        Not where the model's settings have changed since.
        """
        name, version = key
        now = self.catalogue[name].settings.overrides
        for other in (version, *self.served(name)):
            if (plan := self.plans.get((name, other))) is not None and self.set_by.get((name, other), now) == now:
                return plan
        return None

    def outdated(self, name: str) -> list[str]:
        """Versions that are served by settings that have changed since."""
        if (model := self.catalogue.get(name)) is None or model.refused:
            return []
        now = model.settings.overrides
        return [version for version in self.served(name) if self.set_by.get((name, version), now) != now]

    def end_what_was_begun(self) -> None:
        """States that another controller left: what it was about is not being done any more."""
        for key, state in list(self.states.items()):
            if key not in self.plans and state.state != "UNAVAILABLE":
                self.set_state(key, "UNAVAILABLE", "the controller died while it was loaded or unloaded")

    def forget_wishes(self, name: str) -> None:
        explicit = {each: wishes for each, wishes in self.table.explicit.items() if each != name}
        self.table = replace(self.table, explicit=explicit)

    def route(self, name: str, routing: Routing) -> None:
        self.table = replace(self.table, routing=_without_plain({**self.table.routing, name: routing}))

    def missing(self, name: str) -> list[str]:
        """What is wanted and not served, in the order to load it: who answers most requests comes first."""
        there = [version for version in reversed(self.wanted(name)) if (name, version) not in self.plans]
        stable = self.routing(name).aliases.get(STABLE)
        return sorted(there, key=lambda version: version != stable)

    def set_state(self, key: Key, state: State, reason: str = "") -> None:
        self.states[key] = VersionState(*key, state, reason)

    def routing(self, name: str) -> Routing:
        return self.table.routing.get(name, Routing())

    def served(self, name: str) -> list[str]:
        return [version for model, version in self.plans if model == name]

    def look(self, catalogue: Catalogue | None = None, usable: set[Key] | None = None) -> None:
        """What is on disk now, or was just seen there. A settings file that is new overrides what was asked for."""
        try:
            self.catalogue = scan(self._settings.repository) if catalogue is None else catalogue
        except RepositoryUnreadable as error:
            log.error("%s", error)  # what is served goes on
            return
        self.usable = usable
        routing, files = dict(self.table.routing), dict(self.table.files)
        for name, model in self.catalogue.items():
            if not model.refused and files.get(name, "") != model.digest:
                files[name] = model.digest
                routing[name] = model.settings.routing or Routing()
            for listed in model.versions:
                if (name, listed.version) not in self.plans and (why := model.refused or listed.incomplete):
                    self._refuse((name, listed.version), why)
        there = {(model.name, listed.version) for model in self.catalogue.values() for listed in model.versions}
        self.states = {key: state for key, state in self.states.items() if key in there or key in self.plans}
        self.table = replace(self.table, routing=_without_plain(routing), files=files)

    def _refuse(self, key: Key, why: str) -> None:
        """Without a trial. Logged once, as it is looked at again and again."""
        if key not in self.states or self.states[key].reason != why:
            log.error("model %s version %s is not served: %s", *key, why)
        self.set_state(key, "UNAVAILABLE", why)

    def found(self, key: Key) -> FoundVersion | None:
        model = self.catalogue.get(key[0])
        if model is None or key[1] not in {listed.version for listed in model.versions}:
            return None
        return model.found(key[1])

    def fingerprint(self, key: Key) -> Hashable:
        """Of the version and its model's settings, as they are on disk; None: it is not there."""
        if (model := self.catalogue.get(key[0])) is None:
            return None
        return model.digest, next((each.fingerprint for each in model.versions if each.version == key[1]), None)

    def kept(self, name: str) -> list[str]:
        """Of a model that is no longer there: what its routing names goes on."""
        return in_order(named_versions(self.routing(name)) & set(self.served(name)))

    def is_usable(self, name: str, listed: ListedVersion) -> bool:
        """Whether it may be loaded, or goes on: what was refused may not until it changes."""
        key = name, listed.version
        if key in self.plans:
            return True
        settled = self.usable is None or key in self.usable
        refused = key in self.refused and self.refused[key] == self.fingerprint(key)
        return settled and not listed.incomplete and not refused

    def wanted_of(self, name: str, versions: Sequence[str]) -> list[str]:
        """Of a model's versions at the remote, those to bring: as `wanted`, of what is not here yet."""
        asked = self.table.explicit.get(name, {})
        pinned = named_versions(self.routing(name)) | {version for version, wish in asked.items() if wish}
        refused = {version for model, version in self.refused if model == name}
        if not asked.get(ALL, self.is_chosen(name)):
            return [version for version in versions if version in pinned]
        model = self.catalogue.get(name)
        policy = (model.settings.policy if model else None) or Latest(self._settings.control.latest)
        return wanted(policy, versions, refused, pinned)

    def is_chosen(self, name: str) -> bool:
        """Whether it is served without being asked for."""
        chosen = [part.strip() for part in self._settings.control.load_at_start.split(",")]
        return self._settings.control.mode == "poll" or ALL in chosen or name in chosen

    def wanted(self, name: str) -> list[str]:
        """Versions that are to be served, in ascending order."""
        model = self.catalogue.get(name)
        if model is None:
            return self.kept(name)
        if model.refused:
            return self.served(name)
        asked = self.table.explicit.get(name, {})
        refused = {listed.version for listed in model.versions if not self.is_usable(name, listed)}
        refused |= {version for version, wish in asked.items() if not wish}
        pinned = named_versions(self.routing(name)) | {version for version, wish in asked.items() if wish}
        there = {listed.version for listed in model.versions}
        if asked.get(ALL, self.is_chosen(name)):
            policy = model.settings.policy or Latest(self._settings.control.latest)
            return wanted(policy, there, refused, pinned)
        return in_order((there & pinned) - refused)

    def by_size(self) -> list[str]:
        """Models, small ones first: they answer early."""
        return sorted(self.catalogue, key=lambda name: _newest_bytes(self.catalogue[name]))

    def wish(self, name: str, version: str, wish: bool | None) -> None:
        """None: as if nobody had asked."""
        wishes = {**self.table.explicit.get(name, {}), version: wish}
        kept = {each: value for each, value in wishes.items() if value is not None}
        self.table = replace(self.table, explicit={**self.table.explicit, name: kept})

    def on_disk(self, name: str) -> list[str]:
        """Those on disk. Raises UnknownModel, LoadRefused."""
        if (model := self.catalogue.get(name)) is None:
            raise UnknownModel(f"no model {name!r} in the repository; found: {', '.join(self.catalogue) or 'none'}")
        if model.refused:
            raise LoadRefused(model.refused)
        return [listed.version for listed in model.versions]


def _without_plain(routings: dict[str, Routing]) -> dict[str, Routing]:
    """Those that say anything."""
    return {name: routing for name, routing in routings.items() if routing != Routing()}


def _newest_bytes(model: ListedModel) -> int:
    return sum(size for _, size, _, _ in model.versions[-1].fingerprint) if model.versions else 0
