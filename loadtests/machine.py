"""Where a measurement is made: the machine, the versions of what takes part, the commit."""

import json
import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from msgspec import Struct

_PACKAGES = ("onnxruntime", "numpy", "litestar", "uvicorn", "uvloop", "httptools", "msgspec", "pillow")
_LIST_PACKAGES = (
    "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
)


class Machine(Struct, frozen=True):
    """`cores` are those this process may use; `load_before` is the one-minute load average at the start."""

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    load_before: float


def look_at_machine(cores: int) -> Machine:
    return Machine(
        cpu=_cpu_model(),
        cores=cores,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        kernel=platform.release(),
        load_before=os.getloadavg()[0],
    )


def look_at_packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    found["wrk"] = "absent"
    if shutil.which("wrk"):
        said = subprocess.run(["wrk", "--version"], capture_output=True, text=True, check=False).stdout
        found["wrk"] = said.split()[1]
    # The package that owns the module may be the one for GPUs.
    if found["onnxruntime"] == "absent":
        found["onnxruntime"] = version("onnxruntime-gpu")
    return found


def look_at_environment(python: Path) -> dict[str, str]:
    """Every package of another environment, by the word of its own interpreter."""
    said = subprocess.run([python, "-c", _LIST_PACKAGES], capture_output=True, text=True, check=True).stdout
    return dict(sorted(json.loads(said).items()))


def look_at_commit() -> str:
    """The commit, "-dirty" behind it where tracked files differ, "unknown" outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    except FileNotFoundError:
        return "unknown"
    return result.stdout.strip() or "unknown"


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()
