"""`python -m service tune MODEL --slo-p99-ms X`: search, show, write tuning.json and tuning.svg beside the versions.

Exit status: 0 written · 1 it could not be done · 2 the call was wrong · 3 no set-up keeps the limit, nothing written ·
130 stopped, nothing written. What can be known before the search is checked before it.
"""

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType

from models.manifest import MODEL_FILE, digest_file
from service.engine.providers import Device
from service.engine.repository import find_versions, overrides_by_hand
from service.engine.session import UnservableModel, default_device
from service.engine.tuned import (
    PLOT_FILE,
    TUNING_FILE,
    Entry,
    Knobs,
    Machine,
    Measurement,
    TuningError,
    look_at_machine,
    require_writable,
    write_entry,
)
from service.lifecycle.catalogue import FoundVersion
from service.machine import available_cores
from service.settings import Settings, read_settings, settings_by_hand
from service.tuning import report
from service.tuning.search import Outcome, SetupFailed, search, space_for
from service.tuning.trial import TrialError, Trials

_BUSY = 0.3  # load average for each core from which numbers are not worth much
_NOISY = 0.1  # spread of repeated runs from which a search is worth doing again
_LARGEST_BATCH = 256
_SHORTEST_S, _LONGEST_S = 0.2, 1.5  # of one measurement
_MEASUREMENTS = 80  # at that length, with their servers' starts, what a budget holds
_PACKAGES = ("shoal", "onnxruntime", "numpy", "uvicorn", "uvloop")

_DESCRIPTION = """\
Search instances x threads x largest batch x queue delay for the highest throughput whose p99 latency keeps a limit.
Every set-up is a real server with this one model, loaded over HTTP by up to 512 clients; the best few and what serve
chooses by itself are measured again, in turn. The choice is written with its evidence to tuning.json in the model's
folder, and a plot beside it; serve uses it when the model file, the machine and onnxruntime are the same."""
_EPILOG = """\
Settings for the servers follow `--`, as for serve: python -m service tune mnist --slo-p99-ms 20 -- --engine.cores 2
Exit status: 0 written, 1 failed, 2 wrong call, 3 no set-up keeps the limit (nothing is written), 130 stopped.
Leave the machine alone meanwhile: what else runs on it is measured too."""


class _Refused(Exception):
    """Nothing can be tuned. The message says what stands in the way."""


def main(arguments: Sequence[str]) -> int:
    """The exit status. Raises SettingsError."""
    own, flags = _split(arguments)
    options = _parser().parse_args(own)
    repository = [] if options.repository is None else ["--repository", str(options.repository)]
    settings = read_settings([*repository, *flags], "serve")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _interrupt)
    try:
        return _tune(options, settings, flags)
    except (_Refused, TrialError, SetupFailed) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130


def _tune(options: argparse.Namespace, settings: Settings, flags: Sequence[str]) -> int:
    found = _find(settings.repository, options.model)
    folder = found.path.parent
    _check(settings, folder, options.dry_run)
    begun = datetime.now(UTC)
    load = os.getloadavg()[0]
    cores = settings.engine.cores or available_cores()
    device: Device = default_device() if settings.engine.device == "auto" else settings.engine.device
    machine = look_at_machine(device, cores)
    _announce(options, found, machine, load)
    default, outcome = _search(options, found, device, cores, settings, flags)
    limit = options.slo_p99_ms
    print(f"\n{report.table(outcome, limit)}\n\n{report.terminal_plot(outcome, limit)}\n")
    if outcome.choice is None:
        closest = f"the closest: {report.describe(outcome.closest)}" if outcome.closest else "no load was answered"
        print(f"No set-up keeps p99 within {limit:g} ms; {closest}. Nothing was written.", file=sys.stderr)
        return 3
    print(f"choice   {report.describe(outcome.choice)}\n         {outcome.verdict}")
    if outcome.noise is not None and outcome.noise > _NOISY:
        print(
            f"noise    runs of one set-up differ by up to {100 * outcome.noise:.0f} %; less than that was not told "
            "apart: search again on a quieter machine"
        )
    print(f"flags    {shlex.join(outcome.choice.knobs.flags())}")
    if options.dry_run:
        return 0
    entry = Entry(
        model_sha256=digest_file(found.path / MODEL_FILE).sha256,
        version=found.version,
        machine=machine,
        made_at=begun.isoformat(timespec="seconds"),
        slo_p99_ms=limit,
        choice=outcome.choice,
        default=default,
        default_summary=outcome.default_summary,
        verdict=outcome.verdict,
        flags=tuple(flags),
        packages=_packages(),
        load=round(load, 2),
        evidence=outcome.evidence,
    )
    return _write(folder, entry, _plot(outcome, entry, found))


def _search(
    options: argparse.Namespace,
    found: FoundVersion,
    device: Device,
    cores: int,
    settings: Settings,
    flags: Sequence[str],
) -> tuple[Knobs, Outcome]:
    seconds = min(_LONGEST_S, max(_SHORTEST_S, options.budget_s / _MEASUREMENTS))
    begun = time.monotonic()
    with Trials(found, flags, seconds) as trials:
        default = trials.look().knobs
        print(f"serve by itself: {default}\n{_progress_head()}", flush=True)

        def measure(knobs: Knobs, clients: int, repeat: int) -> Measurement:
            try:
                measured = trials.measure(knobs, clients, repeat)
            except TrialError as error:
                print(f"  {error}; the search goes on without it", flush=True)
                raise SetupFailed(str(error)) from error
            print(_progress(measured, options.slo_p99_ms), flush=True)
            return measured

        largest = max(default.max_batch_size, min(_LARGEST_BATCH, settings.batching.max_queue_items))
        space = space_for(device, cores, options.slo_p99_ms, largest)
        left_s = options.budget_s - (time.monotonic() - begun)
        return default, search(default, space, options.slo_p99_ms, measure, time.monotonic, left_s)


def _find(repository: Path, name: str) -> FoundVersion:
    try:
        found = {version.name: version for version in find_versions(repository)}
    except UnservableModel as error:
        raise _Refused(str(error)) from error
    if name not in found:
        there = f"it has {', '.join(found)}" if found else "it has no <name>/<version>/ folder"
        raise _Refused(f"no model {name!r} in {repository}; {there}")
    if refused := found[name].refused:
        raise _Refused(f"model {name}: {refused}")
    if by_hand := overrides_by_hand(found[name].overrides):
        raise _Refused(f"model {name}: its settings file says {', '.join(by_hand)}; serve would use nothing else")
    if not (found[name].path / MODEL_FILE).is_file():
        raise _Refused(f"model {name} version {found[name].version}: {MODEL_FILE} is missing")
    return found[name]


def _check(settings: Settings, folder: Path, dry_run: bool) -> None:
    if by_hand := settings_by_hand(settings):
        raise _Refused(f"{', '.join(by_hand)}: given by hand, so serve would not use what is found; leave it out")
    if not dry_run:
        try:
            require_writable(folder)
        except TuningError as error:
            raise _Refused(
                f"{error}: {TUNING_FILE} cannot be written there; --dry-run only prints the choice"
            ) from error


def _announce(options: argparse.Namespace, found: FoundVersion, machine: Machine, load: float) -> None:
    gpu = f", {machine.gpu or 'a GPU'}" if machine.device != "cpu" else ""
    print(
        f"{found.name} version {found.version} on {machine.cpu}, {machine.cores} cores{gpu}, onnxruntime "
        f"{machine.onnxruntime}: p99 within {options.slo_p99_ms:g} ms, about {options.budget_s:g} s"
    )
    if load > _BUSY * machine.cores:
        print(f"the machine is busy (load {load:.2f}): expect noise")


def _write(folder: Path, entry: Entry, plot: str) -> int:
    try:
        write_entry(folder, entry, plot)
    except TuningError as error:
        print(f"{error}: the choice is not remembered; the flags above do the same", file=sys.stderr)
        return 1
    print(f"written  {folder / TUNING_FILE} and {PLOT_FILE}; serve uses it from its next start")
    return 0


def _plot(outcome: Outcome, entry: Entry, found: FoundVersion) -> str:
    machine = entry.machine
    title = f"{found.name} version {found.version}: throughput against p99"
    subtitle = f"{entry.made_at[:10]} · {machine.cpu}, {machine.cores} cores · onnxruntime {machine.onnxruntime}"
    if machine.gpu:
        subtitle += f" · {machine.gpu}"
    return report.svg_plot(outcome, entry.slo_p99_ms, title, f"{subtitle} · {len(entry.evidence)} measurements")


def _progress_head() -> str:
    return f"{'':8}{'set-up':44}{'clients':>7}{'requests/s':>12}{'p50 ms':>10}{'p99 ms':>10}"


def _progress(measured: Measurement, slo_p99_ms: float) -> str:
    stage = f"again {measured.repeat}" if measured.repeat else "search"
    note = f"  {measured.failed} failed" if measured.failed else "  over" if measured.p99_ms > slo_p99_ms else ""
    return (
        f"{stage:8}{measured.knobs!s:44}{measured.clients:>7}{measured.throughput:>12,.0f}"
        f"{measured.p50_ms:>10.2f}{measured.p99_ms:>10.2f}{note}"
    )


def _packages() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # not installed, or under another name: onnxruntime-gpu
            continue
    return found


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Ours, and those for the server, which follow `--`."""
    own = list(arguments)
    at = own.index("--") if "--" in own else len(own)
    return own[:at], own[at + 1 :]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service tune",
        usage="%(prog)s MODEL --slo-p99-ms X [options] [-- settings of serve]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="name of a model; its newest version is tuned")
    parser.add_argument("--slo-p99-ms", type=_positive, required=True, metavar="X", help="limit of p99, milliseconds")
    parser.add_argument("--budget-s", type=_positive, default=120.0, metavar="S", help="about how long (default: 120)")
    parser.add_argument("--repository", type=Path, metavar="PATH", help="model repository (default: serve's)")
    parser.add_argument("--dry-run", action="store_true", help="print the choice as flags and write nothing")
    return parser


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number
