"""What a person sees while a model trains: a bar on a terminal, one line per epoch elsewhere.

Checked by tests/training/test_progress.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from training.data import Source
from training.loop import Progress
from training.recipes import Recipe


@contextmanager
def shown(recipe: Recipe, source: Source, console: Console) -> Iterator[Callable[[Progress], None]]:
    """A `watch` for `loop.train`."""
    unit = "images" if len(source.shape) == 3 else "rows"
    if not console.is_terminal:
        yield lambda progress: print_epoch(progress, recipe, unit, console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(f"epoch 1/{recipe.epochs}", total=None, facts="")

        def advance(progress: Progress) -> None:
            bar.update(
                task,
                description=f"epoch {progress.epoch}/{recipe.epochs}",
                completed=progress.items,
                total=progress.items_in_all,
                facts=facts(progress, unit),
            )

        yield advance


def print_epoch(progress: Progress, recipe: Recipe, unit: str, console: Console) -> None:
    """At most a hundred lines a run."""
    every = max(1, recipe.epochs // 100)
    if not progress.ends_epoch or (progress.epoch % every and progress.epoch != recipe.epochs):
        return
    left = ""
    if progress.items_per_s:  # 0 where a resumed run had only to finish an epoch
        left = f"  {(progress.items_in_all - progress.items) / progress.items_per_s:.0f} s left"
    console.print(
        f"epoch {progress.epoch}/{recipe.epochs}  {facts(progress, unit)}{left}",
        soft_wrap=True,
        highlight=False,
    )


def facts(progress: Progress, unit: str) -> str:
    said = f"loss {progress.loss:.4f}"
    if progress.accuracy is not None:
        said += f"  accuracy {progress.accuracy:.2%}"
    if progress.validation_loss is not None:
        said += f"  held out: loss {progress.validation_loss:.4f}"
    if progress.validation_accuracy is not None:
        said += f"  accuracy {progress.validation_accuracy:.2%}"
    return f"{said}  {progress.items_per_s:,.0f} {unit}/s"
