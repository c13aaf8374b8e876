"""python -m service serve         serve the model repository over HTTP
python -m service check         load every model as `serve` would and say which would answer; exit 1 when one would not
python -m service tune          find out under load how a model is best run within a latency; `serve` uses it
python -m service bench-engine  items/s of one model in the engine alone, by batch size
python -m service index DIR     write DIR/index.json, from which a web server's folder DIR is a repository
Flags: python -m service serve --help, and so for each of the others
"""

import logging
import os
import sys
from pathlib import Path

from service.lifecycle.remote_source import RemoteError
from service.settings import Settings, SettingsError, read_settings

_COMMANDS = ("serve", "check", "tune", "bench-engine", "index")


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in _COMMANDS:
        print(__doc__.strip(), file=sys.stdout if arguments in (["-h"], ["--help"]) else sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    command, *flags = arguments
    try:
        if command == "tune":
            return _tune(flags)
        if command == "bench-engine":
            return _bench_engine(flags)
        if command == "index":
            return _index(flags)
        settings = read_settings(flags, command)
        return _serve(settings) if command == "serve" else _check(settings)
    except SettingsError as error:
        print(f"settings: {error}".replace("\n", "\nsettings: "), file=sys.stderr)
        return 2
    except RemoteError as error:
        print(error, file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        print("onnxruntime is not installed: pip install 'shoal[cpu]' or 'shoal[gpu]', never both", file=sys.stderr)
        return 1


def _serve(settings: Settings) -> int:
    from service.listening import StartError
    from service.supervisor import serve  # here, so that `--help` and wrong settings answer at once

    try:
        return serve(settings, say=lambda line: print(line, flush=True))
    except StartError as error:
        print(error, file=sys.stderr)
        return 1


def _tune(arguments: list[str]) -> int:
    from service.tuning.command import main as tune

    return tune(arguments)


def _check(settings: Settings) -> int:
    from service.engine.repository import find_versions, load_version
    from service.engine.serve import model_settings
    from service.engine.session import UnservableModel
    from service.lifecycle.remote_start import settled_repository

    logging.basicConfig(level=logging.WARNING)
    settings = settled_repository(settings)
    try:
        found = find_versions(settings.repository)
    except UnservableModel as error:
        print(error, file=sys.stderr)
        return 1
    failures = 0
    for version in found:
        try:
            loaded = load_version(version, model_settings(settings))
        except UnservableModel as error:
            failures += 1
            print(f"{version.name} version {version.version}: refused: {error}")
            continue
        os.close(loaded.arena_fd)
        setup = loaded.setup
        print(
            f"{version.name} version {version.version}: ready, {loaded.golden_rows} golden rows, "
            f"{len(setup.instances)} instances x {setup.threads} threads, "
            + (", ".join(f"batch {size}: {rate:.0f} items/s" for size, rate in setup.rates.items()) or "unmeasured")
        )
    if not found:
        print(f"{settings.repository} holds no <name>/<version>/ folder", file=sys.stderr)
    return 1 if failures or not found else 0


def _bench_engine(arguments: list[str]) -> int:
    model = arguments[0] if arguments and not arguments[0].startswith("-") else None
    settings = read_settings(arguments[1:] if model else arguments, "bench-engine MODEL")  # answers --help
    if model is None:
        print("bench-engine: name a model, then flags", file=sys.stderr)
        return 2
    from service.engine.bench import bench_engine
    from service.engine.serve import model_settings
    from service.engine.session import UnservableModel
    from service.lifecycle.remote_start import settled_repository

    logging.basicConfig(level=logging.WARNING)
    settings = settled_repository(settings)
    try:
        bench_engine(model, settings, model_settings(settings), say=lambda line: print(line, flush=True))
    except UnservableModel as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _index(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("index: name the folder of a model repository", file=sys.stderr)
        return 2
    from service.lifecycle.remote_index import INDEX_FILE, write_index

    folder = Path(arguments[0])
    print(f"{folder / INDEX_FILE} lists {write_index(folder)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
