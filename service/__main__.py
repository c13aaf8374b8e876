"""python -m service serve     serve the model repository over HTTP
python -m service check     load every model as `serve` would and say which would answer; exit 1 when one would not
python -m service bench-engine MODEL   items/s of the engine alone, by batch size
Flags: python -m service serve --help
"""

import logging
import os
import sys

from service.settings import Settings, SettingsError, read_settings

_COMMANDS = ("serve", "check", "bench-engine")


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in _COMMANDS:
        print(__doc__.strip(), file=sys.stdout if arguments in (["-h"], ["--help"]) else sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    command, *flags = arguments
    model = ""
    if command == "bench-engine":
        if not flags or flags[0].startswith("-"):
            print("bench-engine: name a model, then flags", file=sys.stderr)
            return 2
        model, *flags = flags
    try:
        settings = read_settings(flags, command)
    except SettingsError as error:
        print(f"settings: {error}".replace("\n", "\nsettings: "), file=sys.stderr)
        return 2
    try:
        if model:
            return _bench_engine(model, settings)
        return _serve(settings) if command == "serve" else _check(settings)
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        print("onnxruntime is not installed: pip install 'shoal[cpu]' or 'shoal[gpu]', never both", file=sys.stderr)
        return 1


def _serve(settings: Settings) -> int:
    from service.supervisor import StartError, serve  # here, so that `--help` and wrong settings answer at once

    try:
        return serve(settings, say=lambda line: print(line, flush=True))
    except StartError as error:
        print(error, file=sys.stderr)
        return 1


def _check(settings: Settings) -> int:
    from service.engine.repository import find_versions, load_version
    from service.engine.serve import model_settings
    from service.engine.session import UnservableModel

    logging.basicConfig(level=logging.WARNING)
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


def _bench_engine(model: str, settings: Settings) -> int:
    from service.engine.bench import bench_engine
    from service.engine.serve import model_settings
    from service.engine.session import UnservableModel

    logging.basicConfig(level=logging.WARNING)
    try:
        bench_engine(model, settings, model_settings(settings), say=lambda line: print(line, flush=True))
    except UnservableModel as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
