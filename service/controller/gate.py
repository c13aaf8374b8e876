"""The load gate as the controller calls it: a version is tried in a process of its own (service/engine/preflight.py).

And the memory guard: what the trial took must be free beside what is served.
"""

import asyncio
import sys
from typing import Any

import msgspec

from service.lifecycle.catalogue import FoundVersion
from service.lifecycle.messages import Plan, Trial, Verdict
from service.machine import available_memory
from service.settings import Settings

_HEADROOM = 1.1  # requests need some, too
_MOST_STDERR = 500


async def try_version(found: FoundVersion, settings: Settings, plan: Plan | None, budget_s: float) -> Verdict:
    """What became of it; a process that dies is a reason too. Cancelled, it ends the process."""
    path = str(found.path)
    trial = Trial(found.name, found.version, path, _as_json(settings), found.overrides, plan, budget_s)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.engine.preflight"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate(msgspec.json.encode(trial))
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        said = err.decode(errors="replace").strip()[-_MOST_STDERR:]
        return Verdict(reason=f"the process that tried it ended with {process.returncode}: {said}")
    return msgspec.json.decode(out, type=Verdict)


def too_large(verdict: Verdict) -> str | None:
    """Why it does not fit into memory beside what is there; None: it does."""
    needed, there = int(verdict.memory_bytes * _HEADROOM), available_memory()
    if there is None or needed <= there:
        return None
    return f"it needs {needed >> 20} MiB beside what is served, and {there >> 20} MiB are free"


def _as_json(settings: Settings) -> dict[str, Any]:  # Any: whatever settings are
    return settings.model_dump(mode="json", exclude={"admin", "remote"})
