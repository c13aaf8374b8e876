"""The load gate, tried in a process of its own before an engine that answers requests hears of a version.

    python -m service.engine.preflight     a Trial as JSON on standard input, a Verdict as JSON on standard output

What takes long or may go wrong happens here: digests, opening the file, whether items are independent, measuring,
golden rows. A file that crashes onnxruntime, or takes all memory, ends this process and nothing else. It runs at the
lowest priority, so what it computes comes from the time that requests leave. The engine then opens the file with the
plan found here and replays the golden rows once more.
"""

import ctypes
import logging
import os
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from service.engine.repository import load_version, plan_of
from service.engine.serve import model_settings
from service.engine.session import UnservableModel
from service.lifecycle.catalogue import FoundVersion
from service.lifecycle.messages import Trial, Verdict
from service.settings import Settings

_PR_SET_PDEATHSIG = 1
_LOWEST = 19


def try_version(trial: Trial) -> Verdict:
    settings = model_settings(Settings.model_validate(trial.settings))
    settings = replace(settings, tune_budget_s=trial.budget_s)
    found = FoundVersion(trial.name, trial.version, Path(trial.path), trial.overrides)
    before = _resident_bytes()
    try:
        loaded = load_version(found, settings, trial.plan)
    except UnservableModel as error:
        return Verdict(reason=str(error))
    except Exception as error:  # noqa: BLE001 whatever a version does to us is the reason against it
        return Verdict(reason=f"it could not be loaded: {error!r}")
    os.close(loaded.arena_fd)
    return Verdict(plan=plan_of(loaded), memory_bytes=max(0, _resident_bytes() - before))


def _resident_bytes() -> int:
    """The most there was so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(_LOWEST)
    logging.basicConfig(level=logging.ERROR)
    trial = msgspec.json.decode(sys.stdin.buffer.read(), type=Trial)
    sys.stdout.buffer.write(msgspec.json.encode(try_version(trial)))


if __name__ == "__main__":
    main()
