"""`python -m loadtests.bench`: what serving costs beside other servers and bare onnxruntime, in about six minutes.

    tiny         one 784x10 product: what is left is the serving       1, 64 and 256 clients
    mnist        24 million operations an image                        1 and 64 clients
    mnist-json   the same, its 784 numbers as JSON                     64 clients
    cifar        a residual network, which takes nearly all the time   64 clients

First the time from the start of each server to its first right answer, then each workload as compare.py says, with our
server and every peer that `make peers` has installed. The record is loadtests/records/<date>_<name>/ (see record.py).
`--model mnist` adds the newest version of a published model. Settings for our server follow `--`:
python -m loadtests.bench --workloads tiny -- --batching.max-batch-size 16
"""

import argparse
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from loadtests import bare, machine, networks, page, record, wrk
from loadtests.compare import WARM_S, Plan, Workload, measure, time_starts
from loadtests.record import Record
from loadtests.server import BenchError
from loadtests.sides import PEERS, Body, how_to_install, is_installed, python_of, sides
from loadtests.targets import targets
from models.manifest import MODEL_FILE

WORKLOADS = ("tiny", "mnist", "mnist-json", "cifar")
_CLIENTS = {"tiny": (1, 64, 256), "mnist": (1, 64), "mnist-json": (64,), "cifar": (64,)}
_PUBLISHED_CLIENTS = (1, 8, 64, 256)
_BUSY = 0.3  # load average for each core from which numbers are not worth much
_START_S, _SETTLE_S = 1.5, 0.3  # roughly: one server's start with its check, and the pause after a run


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 measured, 1 it could not be, 2 the call was wrong."""
    options = _parser().parse_args(arguments)
    created_at = datetime.now(UTC)
    try:
        folder = record.new_folder(options.out, created_at, options.name)
        wrk.require_wrk()
        result = _measure(options, created_at)
        record.write(folder, result, page.page(result))
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    for workload in result.workloads:
        print(f"\n{workload.name}: " + " ".join(page.sentences(workload, result.machine.cores)))
        print(f"\n{page.served_table(workload)}", end="")
    print(f"\n{page.targets_table(targets(result))}\nWritten: {folder}/README.md and record.json")
    return 0


def _measure(options: argparse.Namespace, created_at: datetime) -> Record:
    here = machine.look_at_machine(bare.cores())
    peers = tuple(peer for peer in options.peers if is_installed(peer))
    absent = [how_to_install(peer) for peer in options.peers if peer not in peers]
    plan = Plan(options.seconds, options.rounds, here.cores, tuple(options.flags), peers)
    with tempfile.TemporaryDirectory() as temporary:
        workloads = list(_workloads(options, Path(temporary)))
        if not workloads:
            raise BenchError("nothing to measure: --workloads none needs a --model")
        _announce(here, workloads, plan, options.starts, absent)
        starts = time_starts(_for_starts(workloads), plan, options.starts) if options.starts else []
        results = [measure(workload, plan) for workload in workloads]
    return Record(
        created_at=created_at.isoformat(timespec="seconds"),
        command=_command(options),
        commit=machine.look_at_commit(),
        machine=here,
        packages=machine.look_at_packages(),
        peers={peer: machine.look_at_environment(python_of(peer)) for peer in peers},
        absent=absent,
        seconds=options.seconds,
        rounds=options.rounds,
        workloads=results,
        starts=starts,
    )


def _workloads(options: argparse.Namespace, folder: Path) -> Iterator[Workload]:
    """Each network in a repository of its own, so that a server has nothing else to do."""
    models: dict[str, Path] = {}
    for name in options.workloads:
        network = name.removesuffix("-json")
        is_first = network not in models
        models[network] = path = models.get(network) or networks.build(network, folder / network)
        body: Body = "json" if name.endswith("-json") else "raw"
        yield Workload(name, path, body, options.clients or _CLIENTS[name], is_first)
    if options.model:
        path = published(options.repository, options.model, folder / "published")
        label = f"{options.model} version {path.parent.name}"
        yield Workload(label, path, "raw", options.clients or _PUBLISHED_CLIENTS, bare=True)


def _for_starts(workloads: Sequence[Workload]) -> Workload:
    """mnist where it is measured, else the first."""
    return next((workload for workload in workloads if workload.name == "mnist"), workloads[0])


def published(repository: Path, name: str, target: Path, holding: str = MODEL_FILE) -> Path:
    """The newest version of one model with a file of that name, copied into `target`. Raises BenchError."""
    versions = [path.parent for path in (repository / name).glob(f"*/{holding}") if path.parent.name.isdecimal()]
    if not versions:
        raise BenchError(f"no version of model {name!r} in {repository} has {holding}; see --repository and --model")
    newest = max(versions, key=lambda path: int(path.name))
    shutil.copytree(newest, target / name / newest.name)
    return target / name / newest.name / MODEL_FILE


def _announce(
    here: machine.Machine, workloads: Sequence[Workload], plan: Plan, starts: int, absent: Sequence[str]
) -> None:
    n_servers = len(sides(workloads[0].model, "raw", plan.cores, plan.flags, plan.peers))
    seconds = n_servers * starts * _START_S
    for workload in workloads:
        runs = plan.rounds * len(workload.clients) * (plan.seconds + _SETTLE_S)
        seconds += n_servers * (_START_S + WARM_S + _SETTLE_S + runs) + 1
        seconds += workload.bare * (len(bare.BATCHES) * plan.seconds + 2)
    print(f"{here.cpu}, {here.cores} cores; {n_servers} servers, about {seconds / 60:.1f} minutes", flush=True)
    for line in absent:
        print(line)
    if here.load_before > _BUSY * here.cores:
        print(f"the machine is busy (load {here.load_before:.2f}): expect noise, and do not keep this as a record")


def _command(options: argparse.Namespace) -> str:
    """What repeats this measurement; paths outside the working directory are left out."""
    words = ["python", "-m", "loadtests.bench", "--seconds", f"{options.seconds:g}", "--rounds", str(options.rounds)]
    words += ["--starts", str(options.starts), "--name", options.name, "--workloads", ",".join(options.workloads)]
    words += ["--peers", ",".join(options.peers) or "none"]
    if options.clients:
        words += ["--clients", ",".join(map(str, options.clients))]
    if options.model:
        words += ["--model", options.model]
        words += ["--repository", "<repository>" if options.repository.is_absolute() else str(options.repository)]
    return shlex.join(words + (["--", *options.flags] if options.flags else []))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench",
        description="Measure our server beside others and bare onnxruntime, and keep the record.",
    )
    parser.add_argument(
        "--workloads", type=_some_of(WORKLOADS), default=WORKLOADS, help=f"of {','.join(WORKLOADS)} (default: all)"
    )
    parser.add_argument(
        "--peers", type=_some_of(PEERS), default=PEERS, help=f"of {','.join(PEERS)} or none (default: all)"
    )
    parser.add_argument("--clients", type=_numbers, help="numbers of clients, for every workload: 1,8,64")
    parser.add_argument("--model", help="a published model to measure too, its newest version")
    parser.add_argument("--repository", type=Path, default=Path("models"), help="where it is (default: models)")
    parser.add_argument("--seconds", type=_positive, default=2, help="length of one run, whole seconds (default: 2)")
    parser.add_argument("--rounds", type=_positive, default=4, help="runs for each number of clients (default: 4)")
    parser.add_argument("--starts", type=_natural, default=3, help="starts to time for each server (default: 3)")
    parser.add_argument("--name", default="serving", help="name of the record, after the date (default: serving)")
    parser.add_argument("--out", type=Path, help="folder of the record, instead of loadtests/records/<date>_<name>")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="flags for `python -m service serve`")
    return parser


def _some_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        words = tuple(word for word in text.split(",") if word not in ("", "none"))
        if unknown := [word for word in words if word not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return tuple(dict.fromkeys(words))

    return read


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_positive(word) for word in text.split(","))


def _positive(text: str) -> int:
    return _whole(text, 1)


def _natural(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
