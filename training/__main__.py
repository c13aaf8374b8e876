"""`python -m training <recipe>`: from a data set to a model version that the service can load, in eight calls."""

import argparse
import os
import sys
from pathlib import Path

import msgspec
import torch
from rich.console import Console

from training.architectures import build
from training.data import MNIST, load, write_samples
from training.errors import TrainingError
from training.evaluate import evaluate
from training.export import export
from training.loop import choose_device, train
from training.progress import shown
from training.publish import choose_version, publish
from training.recipes import RECIPES, Recipe, limited
from training.verify import verify


def make(
    recipe: Recipe, data_dir: Path, repository: Path, version: int | None, device: torch.device, console: Console
) -> Path:
    """One recipe to one published version; returns its folder. Raises TrainingError."""
    version = choose_version(repository, recipe.name, version)
    torch.manual_seed(recipe.seed)

    data = load(recipe.source, data_dir, recipe.limit)
    model = build(recipe)
    console.print(f"{recipe.source.title}: {len(data.train_x):,} items, {recipe.epochs} epochs on {device.type}")
    with shown(recipe, console) as watch:
        trained = train(recipe, model, data, device, watch)
    score = evaluate(trained.model, data)
    exported = export(trained.model, recipe)
    verified = verify(exported, trained.model, score, data, recipe)
    published = publish(verified, trained, data, recipe, repository, version)

    seen = verified.verification
    console.print(
        f"\nPublished {recipe.name} version {version} in {published}\n"
        f"  {seen.metrics['accuracy']:.2%} right on {seen.test_items:,} test items, measured with onnxruntime on "
        f"the exported file\n"
        f"  within {seen.max_abs_difference:.1g} of torch at batch sizes {', '.join(map(str, seen.batch_sizes))}; "
        f"trained in {trained.seconds:.0f} s\n"
        f"Next: make serve",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return published


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 published, 1 the result was not good enough, 2 the call was wrong."""
    options = parser().parse_args(arguments)
    console = Console()
    try:
        if options.recipe == "samples":
            path = write_samples(load(MNIST, options.data_dir), options.output)
            console.print(f"Wrote {path}", markup=False, highlight=False, soft_wrap=True)
        else:
            device = choose_device(options.device)
            make(chosen_recipe(options), options.data_dir, options.repository, options.version, device, console)
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


def parser() -> argparse.ArgumentParser:
    data_dir = argparse.ArgumentParser(add_help=False)
    data_dir.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("SHOAL_DATA_DIR") or "data"),
        help="where data sets are cached as <name>.npz (default: SHOAL_DATA_DIR, else data)",
    )
    top = argparse.ArgumentParser(prog="python -m training", description="Train, verify and publish a model version.")
    commands = top.add_subparsers(dest="recipe", required=True, metavar="recipe")
    for recipe in RECIPES.values():
        command = commands.add_parser(recipe.name, parents=[data_dir], help=f"{recipe.source.title} ({recipe.name})")
        command.add_argument("--epochs", type=positive, help=f"passes over the training set (recipe: {recipe.epochs})")
        command.add_argument("--seed", type=int, help=f"of weights, order and augmentation (recipe: {recipe.seed})")
        command.add_argument("--repository", type=Path, default=Path("models"), help="where versions go (models)")
        command.add_argument("--version", type=positive, help="number of the new version (default: the next free one)")
        command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        command.add_argument("--limit", type=positive, help="a trial: train on the first N items, ask no accuracy")
    samples = commands.add_parser("samples", parents=[data_dir], help="write 1,000 MNIST test images for load tests")
    samples.add_argument("--output", type=Path, default=Path("loadtests/samples/mnist.npz"))
    return top


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def chosen_recipe(options: argparse.Namespace) -> Recipe:
    given = {name: getattr(options, name) for name in ("epochs", "seed") if getattr(options, name) is not None}
    recipe = msgspec.structs.replace(RECIPES[options.recipe], **given)
    return recipe if options.limit is None else limited(recipe, options.limit)


if __name__ == "__main__":
    sys.exit(main())
