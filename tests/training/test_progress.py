import io

from rich.console import Console

from training.loop import Report
from training.progress import shown
from training.recipes import Recipe

HALF = Report(
    epoch=1, items=150, items_in_all=900, loss=2.0, accuracy=0.25, items_per_s=75.0, learning_rate=0.1, ends_epoch=False
)
WHOLE = Report(
    epoch=1, items=300, items_in_all=900, loss=1.5, accuracy=0.5, items_per_s=100.0, learning_rate=0.1, ends_epoch=True
)


def test_without_a_terminal_there_is_one_plain_line_per_epoch(recipe: Recipe) -> None:
    written = io.StringIO()
    with shown(recipe, Console(file=written)) as watch:
        watch(HALF)
        watch(WHOLE)
    assert written.getvalue() == "epoch 1/3  loss 1.5000  accuracy 50.00%  100 images/s  6 s left\n"


def test_on_a_terminal_the_bar_shows_loss_accuracy_and_speed(recipe: Recipe) -> None:
    written = io.StringIO()
    with shown(recipe, Console(file=written, force_terminal=True, width=140)) as watch:
        watch(HALF)
        watch(WHOLE)
    for fact in ("epoch 1/3", "33 %", "loss 1.5000", "accuracy 50.00%", "100 images/s", "left"):
        assert fact in written.getvalue()
