"""`python -m training`: train and publish a recipe, or look at, quantise and publish what is there.

    python -m training cifar10 --epochs 30 --optimizer sgd --lr 0.1 --lr-scheduler onecycle
    torchrun --nproc-per-node 2 -m training mnist
    python -m training list | show mnist | quantise mnist | publish --onnx file.onnx --name mine
    python -m training keygen publisher | sign mnist --key publisher

Every field of a recipe is a flag, with the type, bounds and description of its declaration.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta, inspect
from rich.console import Console

from models.signature import fingerprint
from training.bring import publish_onnx
from training.catalogue import print_catalogue, print_version
from training.checkpoint import CHECKPOINT_FILE, read_checkpoint
from training.data import MNIST, SOURCES, load, write_samples
from training.device import choose_device
from training.errors import Interrupted, RecipeInvalid, TrainingError
from training.pipeline import Options, command_to_serve, make, make_quantised, tell
from training.rate import newest_with_weights, rates
from training.recipes import RECIPES, Recipe, changed
from training.runs import latest_run
from training.sign import key_to_sign_with, make_keys, sign


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 done, 1 the result was not good enough, 2 the call was wrong, 130 stopped."""
    options = parser().parse_args(arguments)
    console = Console()
    try:
        options.do(options, console)
    except Interrupted as stopped:
        print(f"{stopped}. Go on with: {command_to_resume(options, stopped.run)}", file=sys.stderr)
        return stopped.exit_code
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a folder that cannot be written, a full disk: the message names the path
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was published", file=sys.stderr)
        return 130
    return 0


def do_make(given: argparse.Namespace, console: Console) -> None:
    recipe = RECIPES[given.command]
    options = Options(
        data_dir=given.data_dir,
        repository=given.repository,
        runs=given.runs,
        version=given.version,
        device=given.device,
        seeds=given.seeds,
        resume=run_to_resume(given, recipe.name),
        sign_key=given_key(given),
    )
    if options.resume is None:
        make(changed(recipe, given_fields(given)), options, console)
        return
    if given_fields(given) or given.seeds > 1:
        raise RecipeInvalid("--resume goes on with the recipe it started with: leave out the fields and --seeds.")
    started = read_checkpoint(options.resume / CHECKPOINT_FILE).recipe
    if started.dataset != recipe.dataset:
        raise RecipeInvalid(f"--resume: the run in {options.resume} is one of {started.dataset}, not of {recipe.name}.")
    make(started, options, console)


def command_to_resume(given: argparse.Namespace, run: Path | None) -> str:
    """What goes on where this command stopped: the run has its recipe, and the options are said again."""
    words = ["python", "-m", "training", given.command, "--resume", str(run)]
    usual = parser().parse_args([given.command])
    for name in ("data_dir", "repository", "runs", "version", "device", "sign_key"):
        if getattr(given, name) != getattr(usual, name):
            words += [f"--{name.replace('_', '-')}", str(getattr(given, name))]
    return shlex.join(words)


def run_to_resume(given: argparse.Namespace, name: str) -> Path | None:
    if given.resume is None:
        return None
    return latest_run(given.runs, name) if given.resume == LATEST else Path(given.resume)


def given_fields(given: argparse.Namespace) -> dict[str, Any]:  # Any: strings and booleans
    """Of the recipe, those on the command line."""
    fields = Recipe.__struct_fields__
    return {name: value for name, value in vars(given).items() if name in fields and value is not None}


def do_quantise(given: argparse.Namespace, console: Console) -> None:
    options = Options(
        data_dir=given.data_dir, repository=given.repository, version=given.version, sign_key=given_key(given)
    )
    make_quantised(given.name, given.of, options, console)


def do_rate(given: argparse.Namespace, console: Console) -> None:
    folder = newest_with_weights(given.repository, given.name)
    for measured in rates(folder, choose_device(given.device), given.largest, given.seconds):
        print(msgspec.json.encode(measured).decode(), flush=True)


def do_publish(given: argparse.Namespace, console: Console) -> None:
    published = publish_onnx(
        *(given.onnx, given.name, given.repository),
        version=given.version,
        labels=given.labels,
        rows=given.golden,
        sign_key=given_key(given),
    )
    tell(console, f"Published {published}\nNext: {command_to_serve(given.repository)}")


def given_key(given: argparse.Namespace) -> Ed25519PrivateKey | None:
    """Read before anything is trained: a wrong file must not cost hours. Raises KeyUnsuited."""
    return None if given.sign_key is None else key_to_sign_with(given.sign_key)


def do_keygen(given: argparse.Namespace, console: Console) -> None:
    public_file, name = make_keys(given.prefix)
    tell(console, f"Wrote {given.prefix}, which signs and stays secret, and {public_file}: {name}")
    tell(console, f"Next: python -m service serve --require-signature {shlex.quote(str(public_file))}")


def do_sign(given: argparse.Namespace, console: Console) -> None:
    key = key_to_sign_with(given.key)
    folder = sign(given.repository, given.name, key)
    tell(console, f"Signed {folder} with {fingerprint(key.public_key())}")


def do_samples(given: argparse.Namespace, console: Console) -> None:
    tell(console, f"Wrote {write_samples(load(MNIST, given.data_dir), given.output)}")


LATEST = "latest"


def parser() -> argparse.ArgumentParser:
    data_dir = argparse.ArgumentParser(add_help=False)
    data_dir.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("SHOAL_DATA_DIR") or "data"),
        help="where data sets are cached as <name>.npz (default: SHOAL_DATA_DIR, else data)",
    )
    repository = argparse.ArgumentParser(add_help=False)
    repository.add_argument("--repository", type=Path, default=Path("models"), help="where versions are (models)")
    number = argparse.ArgumentParser(add_help=False)
    number.add_argument("--version", type=positive, help="number of the new version (default: the next free one)")

    signed = argparse.ArgumentParser(add_help=False)
    signed.add_argument("--sign-key", type=Path, help="sign what is published with this private key")

    top = argparse.ArgumentParser(prog="python -m training", description="Train, verify and publish a model version.")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for recipe in RECIPES.values():
        title = SOURCES[recipe.dataset].title
        command = commands.add_parser(
            recipe.name, parents=[data_dir, repository, number, signed], help=f"train: {title}", allow_abbrev=False
        )
        command.set_defaults(do=do_make)
        command.add_argument("--runs", type=Path, default=Path("runs"), help="where checkpoints and events go (runs)")
        command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        command.add_argument("--seeds", type=positive, default=1, help="train this many, publish the first, report all")
        command.add_argument(
            "--resume", nargs="?", const=LATEST, metavar="RUN", help="go on with a run's folder (default: the latest)"
        )
        add_fields(command.add_argument_group("recipe", "each field; in brackets its value in this recipe"), recipe)

    command = commands.add_parser("list", parents=[repository], help="the published versions")
    command.set_defaults(do=lambda given, console: print_catalogue(given.repository, console))
    command = commands.add_parser("show", parents=[repository], help="what one version says about itself")
    command.add_argument("name", help="of the model, or name/version")
    command.set_defaults(do=lambda given, console: print_version(given.repository, given.name, console))
    command = commands.add_parser(
        "quantise", parents=[data_dir, repository, number, signed], help="publish an int8 version of an image model"
    )
    command.add_argument("name", help="of the model")
    command.add_argument("--of", type=positive, help="version to start from (default: the highest)")
    command.set_defaults(do=do_quantise)
    command = commands.add_parser("rate", parents=[repository], help="items/s of a published network in torch alone")
    command.add_argument("name", help="of the model")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--largest", type=positive, default=1024, help="largest batch (1024)")
    command.add_argument("--seconds", type=float, default=1.0, help="for each batch size (1)")
    command.set_defaults(do=do_rate)
    command = commands.add_parser(
        "publish", parents=[repository, number, signed], help="publish an ONNX file made elsewhere"
    )
    command.add_argument("--onnx", type=Path, required=True, help="the file; weights inside")
    command.add_argument("--name", required=True, help="what the model is served as")
    command.add_argument("--labels", type=Path, help="text file, a label a line, for a model that gives probabilities")
    command.add_argument("--golden", type=Path, help="npz with an array per input, rows whose answers are kept")
    command.set_defaults(do=do_publish)
    command = commands.add_parser("keygen", help="make a pair of keys to sign versions with")
    command.add_argument("prefix", type=Path, help="file of the private key; the public one is beside it in .pub")
    command.set_defaults(do=do_keygen)
    command = commands.add_parser("sign", parents=[repository], help="sign a published version")
    command.add_argument("name", help="of the model, or name/version")
    command.add_argument("--key", type=Path, required=True, help="the private key")
    command.set_defaults(do=do_sign)
    command = commands.add_parser("samples", parents=[data_dir], help="write 1,000 MNIST test images for load tests")
    command.add_argument("--output", type=Path, default=Path("loadtests/samples/mnist.npz"))
    command.set_defaults(do=do_samples)
    return top


def add_fields(group: argparse._ArgumentGroup, recipe: Recipe) -> None:
    """A flag for each field of Recipe but its name. Values stay text: `changed` knows types and bounds."""
    hints = get_type_hints(Recipe, include_extras=True)
    declared = inspect.type_info(Recipe)
    assert isinstance(declared, inspect.StructType), "bug: Recipe is a Struct"
    for field in declared.fields:
        if field.name == "name":
            group.add_argument("--name", help=f"what the model is published as ({recipe.name})")
            continue
        (meta,) = [part for part in get_args(hints[field.name]) if isinstance(part, Meta)]
        kind = field.type.type if isinstance(field.type, inspect.Metadata) else field.type
        current = getattr(recipe, field.name)
        shown = f"{current:.6g}" if isinstance(current, float) else current
        about = f"{meta.description} ({shown})".replace("%", "%%")
        flag = "--" + field.name.replace("_", "-")
        if isinstance(kind, inspect.BoolType):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=about)
        elif isinstance(kind, inspect.LiteralType):
            group.add_argument(flag, choices=kind.values, help=about)
        else:
            group.add_argument(flag, metavar="X", help=about)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
