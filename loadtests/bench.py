"""`python -m loadtests.bench`: what serving costs, beside bare onnxruntime on the same cores, in two to three minutes.

For the model, then for one that costs next to nothing:

    1  start `python -m service serve` with this model alone, on a free port
    2  compare 50 answers with bare onnxruntime on the same file; stop if one differs
    3  run bare onnxruntime in batches of 1, 8 and 64, one process a core
    4  send rows with wrk from 1, 8, 64 and 256 clients in turn, round after round
    5  run bare onnxruntime again: what changed between 3 and 5 is the machine, not the server

and write loadtests/records/<date>_<name>/ (see record.py). Settings for the server follow `--`:
python -m loadtests.bench -- --batching.max-batch-size 16
"""

import argparse
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from loadtests import bare, record, tiny, wrk
from loadtests.check import check
from loadtests.record import BareRun, ModelResult, Record, ServedRun, digits
from loadtests.server import BenchError, Server, running
from models.manifest import MODEL_FILE, digest_file

CLIENTS = (1, 8, 64, 256)
_RECORDS = Path(__file__).parent / "records"
_BUSY = 0.3  # load average for each core from which numbers are not worth much
_OVERHEAD_S = 5  # starting a server and the processes of bare onnxruntime


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 measured, 1 it could not be, 2 the call was wrong."""
    options = _parser().parse_args(arguments)
    created_at = datetime.now(UTC)
    folder = options.out or _RECORDS / f"{created_at:%Y-%m-%d}_{options.name}"
    try:
        record.require_new(folder)
        wrk.require_wrk()
        machine = record.look_at_machine(bare.cores())
        _announce(machine, options)
        with tempfile.TemporaryDirectory() as temporary:
            repositories = [_only(options.repository, options.model, Path(temporary)), Path(temporary) / "tiny"]
            tiny.build(repositories[1])
            models = [_measure(repository, machine.cores, options) for repository in repositories]
        result = Record(
            created_at=created_at.isoformat(timespec="seconds"),
            command=_command(options),
            commit=record.look_at_commit(),
            machine=machine,
            packages=record.look_at_packages(),
            seconds=options.seconds,
            rounds=options.rounds,
            models=models,
        )
        record.write(folder, result)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    for model in models:
        print(f"\n{model.name}: " + " ".join(record.sentences(model, machine.cores)))
        print(f"\n{record.served_table(model)}", end="")
    print(f"\nWritten: {folder}/README.md and record.json")
    return 0


def _measure(repository: Path, cores: int, options: argparse.Namespace) -> ModelResult:
    """Steps 1 to 5 for the only model of `repository`."""
    (model,) = repository.glob(f"*/*/{MODEL_FILE}")
    name = model.parent.parent.name
    rows = bare.rows_for(model)
    with running(repository, options.flags) as server:
        url = f"{server.url}/predict/{name}"
        setup = server.describe(name)
        checked = check(url, model, rows)
        print(f"\n{name}: {checked} answers are those of bare onnxruntime", flush=True)
        wrk.send(url, rows, 64, 1)  # warm: sockets, caches, what Python specialises
        server.settle(name)
        bare_runs = _run_bare(model, rows, cores, options.seconds / 2, "before")
        served = [
            _run_served(server, name, rows, clients, number, options)
            for number in range(1, options.rounds + 1)
            for clients in CLIENTS
        ]
        server.settle(name)
        bare_runs += _run_bare(model, rows, cores, options.seconds / 2, "after")
    return ModelResult(name, digest_file(model).sha256, setup, checked, bare_runs, served)


def _run_bare(model: Path, rows: bare.Array, cores: int, seconds: float, when: record.When) -> list[BareRun]:
    runs = []
    for result in bare.measure(model, rows, cores, seconds):
        runs.append(BareRun(when, result))
        print(
            f"  bare       batch {result.batch:<3}    {digits(result.items / result.seconds):>7} items/s"
            f"{'':41}CPU {digits(1e6 * result.cpu_seconds / result.items):>5} µs/item",
            flush=True,
        )
    return runs


def _run_served(
    server: Server, name: str, rows: bare.Array, clients: int, number: int, options: argparse.Namespace
) -> ServedRun:
    server.settle(name)
    items, batches = server.batches(name)
    cpu_seconds = server.cpu_seconds()
    result = wrk.send(f"{server.url}/predict/{name}", rows, clients, options.seconds)
    cpu_seconds = server.cpu_seconds() - cpu_seconds
    items_after, batches_after = server.batches(name)
    if not result.requests:
        raise BenchError(f"no request of {clients} clients was answered within {options.seconds} s")
    print(
        f"  round {number}/{options.rounds}  {clients:>3} clients  {digits(result.requests / result.seconds):>7} "
        f"requests/s   p50 {digits(result.p50_ms):>5} ms   p99 {digits(result.p99_ms):>5} ms   "
        f"CPU {digits(1e6 * cpu_seconds / result.requests):>5} µs/request"
        + (f"   {result.non_2xx + result.socket_errors:,} failed" if result.non_2xx + result.socket_errors else ""),
        flush=True,
    )
    return ServedRun(number, clients, result, cpu_seconds, items_after - items, batches_after - batches)


def _only(repository: Path, name: str, temporary: Path) -> Path:
    """A repository with the newest version of one model, so that the server has nothing else to do."""
    versions = [path for path in (repository / name).glob("*") if path.name.isdecimal() and path.is_dir()]
    if not versions:
        raise BenchError(f"no version of model {name!r} in {repository}; see --repository and --model")
    newest = max(versions, key=lambda path: int(path.name))
    shutil.copytree(newest, temporary / "one" / name / newest.name)
    return temporary / "one"


def _announce(machine: record.Machine, options: argparse.Namespace) -> None:
    one = _OVERHEAD_S + len(CLIENTS) * options.rounds * options.seconds + len(bare.BATCHES) * options.seconds
    print(f"{machine.cpu}, {machine.cores} cores; about {2 * one / 60:.1f} minutes")
    if machine.load_before > _BUSY * machine.cores:
        print(f"the machine is busy (load {machine.load_before:.2f}): expect noise, and do not keep this as a record")


def _command(options: argparse.Namespace) -> str:
    """What repeats this measurement; paths outside the working directory are left out."""
    words = ["python", "-m", "loadtests.bench", "--seconds", f"{options.seconds:g}", "--rounds", str(options.rounds)]
    words += ["--name", options.name, "--model", options.model]
    words += ["--repository", "<repository>" if options.repository.is_absolute() else str(options.repository)]
    return shlex.join(words + (["--", *options.flags] if options.flags else []))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench", description="Measure a server beside bare onnxruntime, and keep the record."
    )
    parser.add_argument("--repository", type=Path, default=Path("models"), help="model repository (default: models)")
    parser.add_argument("--model", default="mnist", help="model to measure, beside a tiny one (default: mnist)")
    parser.add_argument("--seconds", type=_positive, default=4, help="length of one run, whole seconds (default: 4)")
    parser.add_argument("--rounds", type=_positive, default=3, help="runs for each number of clients (default: 3)")
    parser.add_argument("--name", default="serving", help="name of the record, after the date (default: serving)")
    parser.add_argument("--out", type=Path, help="folder of the record, instead of loadtests/records/<date>_<name>")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="flags for `python -m service serve`")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
