"""`python -m loadtests.gpu_bench`: one network on one device, from bare onnxruntime to HTTP, batch 1 to 1024.

    engine           `python -m service bench-engine`: gather, copies, run and scatter, without HTTP; with CUDA graphs
    without graphs   the same with --engine.cuda-graphs false; on a GPU alone
    onnxruntime      session.run on numpy arrays of each batch size, the device's provider with its defaults
    torch            `python -m training rate`: the network in eager float32
    HTTP             wrk sends a row a request; the most that is answered a second, then p99 at 50 and 80 % of that

Each is a process of its own, and one runs at a time. Load below the most is a closed loop of many connections that
pause between requests; the share that was reached is written beside it. The server's answers are compared with bare
onnxruntime's on the CPU first. The record is loadtests/records/<date>_<name>/.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from loadtests import bare, machine, record, wrk
from loadtests.bench import published
from loadtests.check import check
from loadtests.compare import WARM_CLIENTS, WARM_S, case_of, running_side
from loadtests.machine import Machine
from loadtests.server import BenchError
from loadtests.sides import CONTENT_TYPE, sides
from loadtests.tables import digits, percent, table
from models.manifest import digest_file

_CLIENTS = (1, 16, 64, 256)
_SHARES = (0.5, 0.8)
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_LONGEST_S = 1800.0

Rates = dict[int, float]
"""Items/s by batch size."""


class Served(Struct, frozen=True):
    """`share` of the most that was wanted, None for the loop without pauses; `reached` is what came of it."""

    clients: int
    share: float | None
    reached: float | None
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int


class GpuRecord(Struct, frozen=True, kw_only=True):
    created_at: str
    command: str
    commit: str
    machine: Machine
    packages: dict[str, str]
    device: str
    gpu: str
    model: str
    sha256: str
    engine: dict[str, Any]  # Any: what bench-engine says about itself
    rates: dict[str, Rates]
    served: list[Served]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 measured, 1 it could not be."""
    options = _parser().parse_args(arguments)
    created_at = datetime.now(UTC)
    try:
        folder = record.new_folder(options.out, created_at, options.name)
        wrk.require_wrk()
        here = machine.look_at_machine(bare.cores())
        with tempfile.TemporaryDirectory() as temporary:
            # The newest version that has torch's weights, so that all run the same network.
            onnx = published(options.repository, options.model, Path(temporary), holding="checkpoint.pt")
            rates, engine = _measure_rates(onnx, options)
            served = _measure_http(onnx, options)
            sha256 = digest_file(onnx).sha256
        result = GpuRecord(
            created_at=created_at.isoformat(timespec="seconds"),
            command=f"python -m loadtests.gpu_bench --model {options.model} --device {options.device} "
            f"--seconds {options.seconds:g} --largest {options.largest}",
            commit=machine.look_at_commit(),
            machine=here,
            packages=machine.look_at_packages(),
            device=options.device,
            gpu=_gpu(options.device),
            model=options.model,
            sha256=sha256,
            engine=engine,
            rates=rates,
            served=served,
        )
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    record.write(folder, result, page(result))
    print(page(result))
    return 0


def page(result: GpuRecord) -> str:
    names = list(result.rates)
    sizes = sorted({size for rates in result.rates.values() for size in rates})
    rates = [[str(size), *(_cell(result.rates[name].get(size)) for name in names)] for size in sizes]
    served = [
        [
            str(run.clients),
            "most" if run.share is None else percent(run.share),
            "" if run.reached is None else percent(run.reached),
            *map(digits, (run.requests_per_s, run.p50_ms, run.p99_ms)),
            f"{run.failed:,}",
        ]
        for run in result.served
    ]
    here = result.machine
    return (
        f"# {result.model} on {result.gpu}, {result.created_at[:10]}\n\n"
        f"{here.cpu}, {here.cores} cores, load {here.load_before:.2f} before the start. Python "
        f"{result.packages['python']}, onnxruntime {result.packages['onnxruntime']}. Commit {result.commit}. "
        f"SHA-256 of the file {result.sha256}. To repeat:\n\n    {result.command}\n\n"
        f"Items/s by batch size:\n\n{table(['batch', *names], rates)}\n"
        f"Over HTTP, a row a request, wrk on the server's cores:\n\n"
        + table(["clients", "load", "reached", "requests/s", "p50 ms", "p99 ms", "failed"], served)
    )


def _cell(rate: float | None) -> str:
    return "-" if rate is None else digits(rate)


# ── rates ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _measure_rates(onnx: Path, options: argparse.Namespace) -> tuple[dict[str, Rates], dict[str, Any]]:
    rates: dict[str, Rates] = {}
    flags = _engine_flags(options)
    command = ["-m", "service", "bench-engine", options.model, "--repository", str(onnx.parents[2]), *flags]
    engine, *lines = _json_lines(command)
    rates["engine"] = _by_batch(lines)
    if options.device != "cpu":
        _, *lines = _json_lines([*command, "--engine.cuda-graphs", "false"])
        rates["without graphs"] = _by_batch(lines)
    bare_command = ["-m", "loadtests.gpu_bench", "--bare", str(onnx), "--device", options.device]
    rates["onnxruntime"] = _by_batch(_json_lines([*bare_command, *_sizes(options)]))
    torch_command = ["-m", "training", "rate", options.model, "--repository", str(options.repository)]
    rates["torch"] = _by_batch(_json_lines([*torch_command, "--device", options.device, *_sizes(options)]))
    return rates, engine


def _sizes(options: argparse.Namespace) -> list[str]:
    return ["--largest", str(options.largest), "--seconds", str(options.seconds)]


def _engine_flags(options: argparse.Namespace) -> list[str]:
    most = str(options.largest)
    flags = ["--engine.device", options.device, "--batching.max-batch-size", most]
    return [*flags, "--batching.max-queue-items", str(max(1024, options.largest)), "--engine.tune-budget-s", "5"]


def _by_batch(lines: list[dict[str, Any]]) -> Rates:
    return {int(line["batch"]): float(line["items_per_s"]) for line in lines}


def _json_lines(command: list[str]) -> list[dict[str, Any]]:
    print(" ".join(["python", *command]), file=sys.stderr, flush=True)
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=_LONGEST_S, check=False)
    if result.returncode:
        raise BenchError(f"{' '.join(command)} ended with {result.returncode}: {result.stderr.strip()[-2000:]}")
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def _print_bare(onnx: Path, options: argparse.Namespace) -> int:
    """What the process for bare onnxruntime does."""
    import onnxruntime as ort

    provider = _PROVIDERS[options.device]
    if options.device == "cuda":
        ort.preload_dlls(directory="")
    session = ort.InferenceSession(onnx, providers=[provider], enable_fallback=0)
    if session.get_providers()[0] != provider:
        print(f"onnxruntime took {session.get_providers()[0]} in place of {provider}", file=sys.stderr)
        return 1
    rows = bare.rows_for(onnx)
    name, batch = session.get_inputs()[0].name, 1
    while batch <= options.largest:
        feed = {name: np.resize(rows, (batch, *rows.shape[1:]))}
        for _ in range(3):  # the first runs of a size allocate
            session.run(None, feed)
        runs, begun = 0, time.monotonic()
        while time.monotonic() < begun + options.seconds:
            session.run(None, feed)
            runs += 1
        print(json.dumps({"batch": batch, "items_per_s": batch * runs / (time.monotonic() - begun)}), flush=True)
        batch *= 2
    return 0


# ── HTTP ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _measure_http(onnx: Path, options: argparse.Namespace) -> list[Served]:
    (side,) = sides(onnx, "raw", bare.cores(), _engine_flags(options), peers=())
    case = case_of(onnx)
    bodies = [side.write(row) for row in case.rows]
    with running_side(side, case) as server:
        check(side, server.port, case.rows, case.expected)

        def send(clients: int, seconds: float, think_ms: float | None = None) -> wrk.Load:
            url = f"http://127.0.0.1:{server.port}{side.path}"
            load = wrk.send(url, bodies, CONTENT_TYPE[side.body], clients, seconds, think_ms)
            server.settle()
            return load

        send(WARM_CLIENTS, WARM_S)
        found = [_served(send(clients, options.seconds), clients, None, None) for clients in _CLIENTS]
        most = max(found, key=lambda run: run.requests_per_s)
        for share in _SHARES:
            clients = max(_CLIENTS)
            think_ms = 1e3 * clients / (share * most.requests_per_s) - found[0].p50_ms
            load = send(clients, options.seconds, max(0.0, think_ms))
            found.append(_served(load, clients, share, most.requests_per_s))
    return found


def _served(load: wrk.Load, clients: int, share: float | None, most: float | None) -> Served:
    rate = load.requests / load.seconds
    reached = None if most is None else rate / most
    return Served(clients, share, reached, rate, load.p50_ms, load.p99_ms, load.non_2xx + load.socket_errors)


def _gpu(device: str) -> str:
    """The device's name, as the driver gives it."""
    if device == "cpu":
        return "the CPU"
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"nvidia-smi does not say which GPU this is: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.gpu_bench", description="Measure one device, all ways.")
    parser.add_argument("--repository", type=Path, default=Path("models"), help="model repository (models)")
    parser.add_argument("--model", default="mnist", help="model to measure (mnist)")
    parser.add_argument("--device", choices=sorted(_PROVIDERS), default="cuda")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one run (4)")
    parser.add_argument("--largest", type=int, default=1024, help="largest batch (1024)")
    parser.add_argument("--name", default="gpu", help="name of the record, after the date (gpu)")
    parser.add_argument("--out", type=Path, help="folder of the record, instead of loadtests/records/<date>_<name>")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    given = _parser().parse_args()
    sys.exit(_print_bare(given.bare, given) if given.bare else main())
