"""The official clients, each in an environment of its own (`make clients`), and what a script in one of them found.

A script under tests/clients/scripts holds cases, functions called `case_<what>`, and prints for each what differed;
`scripts/cases.py` is that side. One process runs all cases of a script, since a client takes a second to import.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "clients" / "scripts"
REQUIREMENTS = ROOT / "tests" / "clients" / "requirements"

# Three windows are enough, whatever they differ: no test measures.
SHORT_WINDOWS = ("-p", "400", "-r", "10", "-s", "1000")
_SCRIPT_SECONDS = 90

Differences = dict[str, str]
"""By case: what differed, "" where nothing did."""


def environment(client: str) -> Path:
    """The folder of its virtual environment, whether or not it is there."""
    return ROOT / ".clients" / client


def needs(client: str) -> pytest.MarkDecorator:
    """Skip where the client cannot run, unless nothing may."""
    reason = _absence(client)
    return pytest.mark.skipif(
        bool(reason) and os.environ.get("SHOAL_REQUIRE_ALL") != "1", reason=reason or "it is there"
    )


def perf_analyzer() -> Path:
    return environment("perf-analyzer") / "bin" / "perf_analyzer"


def perf_analyzer_libraries() -> dict[str, str]:
    """The variables with which it finds libcudart, which it is linked with and does not use."""
    folders = environment("perf-analyzer").glob("lib/python*/site-packages/nvidia/cuda_runtime/lib")
    return {"LD_LIBRARY_PATH": ":".join(map(str, folders))}


def cases_of(script: str) -> list[str]:
    source = (SCRIPTS / f"{script}.py").read_text()
    return re.findall(r"^(?:async )?def case_(\w+)\(", source, re.MULTILINE)


def run_script(client: str, script: str, address: str) -> Differences:
    """Run every case against the server at `address`, which is what the client's constructor takes.

    Where the script itself fails, that is what differed in each of its cases.
    """
    python, cases = environment(client) / "bin" / "python", cases_of(script)
    try:
        done = subprocess.run(
            [python, SCRIPTS / f"{script}.py", address],
            capture_output=True,
            text=True,
            timeout=_SCRIPT_SECONDS,
            check=False,
        )
    except OSError as error:
        return dict.fromkeys(cases, f"{client}: {error}; `make clients` installs the clients")
    if done.returncode != 0:
        return dict.fromkeys(cases, f"{script}.py ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    found: Differences = json.loads(done.stdout.splitlines()[-1])
    assert sorted(found) == sorted(cases), "every case of the script has run"
    return found


def _absence(client: str) -> str:
    """Why it cannot run; empty where it can."""
    if not (environment(client) / ".ready").exists():
        return f"not installed: {client}; `make clients` installs the clients"
    if client == "perf-analyzer" and (missing := _missing_libraries()):
        return f"perf_analyzer needs {', '.join(missing)}; Debian's libb64-0d has libb64.so.0d"
    return ""


def _missing_libraries() -> list[str]:
    found = subprocess.run(
        ["ldd", perf_analyzer()],
        env=os.environ | perf_analyzer_libraries(),
        capture_output=True,
        text=True,
        check=False,
    )
    return re.findall(r"(\S+) => not found", found.stdout)
