import io

import msgspec
from rich.console import Console

from training.data import DataSet, Source
from training.loop import Progress
from training.progress import shown
from training.recipes import Recipe, changed

HALF = Progress(
    epoch=1, items=150, items_in_all=900, loss=2.0, accuracy=0.25, items_per_s=75.0, learning_rate=0.1, ends_epoch=False
)
WHOLE = Progress(
    epoch=1, items=300, items_in_all=900, loss=1.5, accuracy=0.5, items_per_s=100.0, learning_rate=0.1, ends_epoch=True
)


def test_without_a_terminal_there_is_one_plain_line_per_epoch(recipe: Recipe, source: Source) -> None:
    written = io.StringIO()
    with shown(recipe, source, Console(file=written)) as watch:
        watch(HALF)
        watch(WHOLE)
    assert written.getvalue() == "epoch 1/3  loss 1.5000  accuracy 50.00%  100 images/s  6 s left\n"


def test_on_a_terminal_the_bar_shows_loss_accuracy_and_speed(recipe: Recipe, source: Source) -> None:
    written = io.StringIO()
    with shown(recipe, source, Console(file=written, force_terminal=True, width=140)) as watch:
        watch(HALF)
        watch(WHOLE)
    for fact in ("epoch 1/3", "33 %", "loss 1.5000", "accuracy 50.00%", "100 images/s", "left"):
        assert fact in written.getvalue()


def test_a_run_that_had_only_to_finish_an_epoch_has_no_speed(recipe: Recipe, source: Source) -> None:
    written = io.StringIO()
    with shown(recipe, source, Console(file=written)) as watch:
        watch(msgspec.structs.replace(WHOLE, items_per_s=0.0))
    assert written.getvalue() == "epoch 1/3  loss 1.5000  accuracy 50.00%  0 images/s\n"


def test_many_short_epochs_are_not_a_line_each(recipe: Recipe, source: Source) -> None:
    written = io.StringIO()
    long = changed(recipe, {"epochs": 1000})
    with shown(long, source, Console(file=written)) as watch:
        for epoch in range(1, 1001):
            watch(msgspec.structs.replace(WHOLE, epoch=epoch))
    lines = written.getvalue().splitlines()
    assert len(lines) == 100
    assert lines[-1].startswith("epoch 1000/1000")


def test_numbers_have_no_accuracy_and_a_held_out_part_is_shown(recipe: Recipe, rows: DataSet) -> None:
    written = io.StringIO()
    number = msgspec.structs.replace(WHOLE, accuracy=None, validation_loss=0.25)
    with shown(recipe, rows.source, Console(file=written)) as watch:
        watch(number)
    assert written.getvalue() == "epoch 1/3  loss 1.5000  held out: loss 0.2500  100 rows/s  6 s left\n"
