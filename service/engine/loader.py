"""Loads what the repository holds, version by version, and hands on each as it is loaded, or the reason against it."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from models.manifest import MODEL_FILE
from service.batching.link import ModelFailed
from service.engine.repository import LoadedVersion, ModelSettings, find_versions, load_version
from service.engine.session import UnservableModel
from service.lifecycle.catalogue import FoundVersion
from service.lifecycle.messages import Plan

log = logging.getLogger(__name__)


def load_all(repository: Path, settings: ModelSettings) -> Iterator[LoadedVersion | ModelFailed]:
    """The newest version of every model, as soon as it is loaded or refused: small files first, to answer early."""
    try:
        found = find_versions(repository)
    except UnservableModel as error:
        log.error("%s", error)
        return
    share = replace(settings, tune_budget_s=settings.tune_budget_s / max(1, len(found)))
    for version in sorted(found, key=_size):
        loaded = load(version, share)
        yield ModelFailed(version.name, version.version, loaded) if isinstance(loaded, str) else loaded


def _size(found: FoundVersion) -> int:
    try:
        return (found.path / MODEL_FILE).stat().st_size
    except OSError:
        return 0  # it is refused with the reason


def load(found: FoundVersion, settings: ModelSettings, plan: Plan | None = None) -> LoadedVersion | str:
    """The version, or the reason why it is not served; either is logged."""
    try:
        loaded = load_version(found, settings, plan)
    except UnservableModel as error:
        log.error("model %s version %s is not served: %s", found.name, found.version, error)
        return str(error)
    except Exception as error:  # whatever a version does to us, the others serve
        log.exception("model %s version %s is not served", found.name, found.version)
        return f"it could not be loaded: {error!r}"
    setup = loaded.setup
    rate = setup.rates.get(setup.max_batch_size)
    log.info(
        "model %s version %s is ready after %.2f s: %d instances x %d threads, batches up to %d (%s items/s), "
        "%d golden rows",
        *(found.name, found.version, loaded.seconds, len(setup.instances), setup.threads, setup.max_batch_size),
        *("unmeasured" if rate is None else f"{rate:.0f}", loaded.golden_rows),
    )
    return loaded
