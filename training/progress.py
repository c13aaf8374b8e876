"""What a person sees while a model trains: a bar on a terminal, one line per epoch elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from training.loop import Report
from training.recipes import Recipe


@contextmanager
def shown(recipe: Recipe, console: Console) -> Iterator[Callable[[Report], None]]:
    """A `watch` for `loop.train`."""
    if not console.is_terminal:
        yield lambda report: print_epoch(report, recipe, console)
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
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"epoch 1/{recipe.epochs}", total=None, facts="")

        def advance(report: Report) -> None:
            progress.update(
                task,
                description=f"epoch {report.epoch}/{recipe.epochs}",
                completed=report.items,
                total=report.items_in_all,
                facts=facts(report),
            )

        yield advance


def print_epoch(report: Report, recipe: Recipe, console: Console) -> None:
    if not report.ends_epoch:
        return
    left_s = (report.items_in_all - report.items) / report.items_per_s
    console.print(f"epoch {report.epoch}/{recipe.epochs}  {facts(report)}  {left_s:.0f} s left", soft_wrap=True)


def facts(report: Report) -> str:
    return f"loss {report.loss:.4f}  accuracy {report.accuracy:.2%}  {report.items_per_s:.0f} images/s"
