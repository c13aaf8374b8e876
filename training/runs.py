"""A run on disk, and how it is told to stop.

    runs/<recipe>/<started>/checkpoint.pt     see checkpoint.py
                            events.out...     TensorBoard: `tensorboard --logdir runs`

Checked by tests/training/test_runs.py.
"""

import datetime
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from torch.utils.tensorboard.writer import SummaryWriter

from training.checkpoint import CHECKPOINT_FILE
from training.errors import CheckpointDamaged
from training.loop import Progress


def new_run(runs: Path, name: str) -> Path:
    """A folder of its own, so that no run overwrites another's checkpoint; named by the time it starts, in UTC, which
    no clock change puts out of order."""
    return runs / name / datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H-%M-%S.%fZ")


def latest_run(runs: Path, name: str) -> Path:
    """The folder last started that holds a checkpoint. Raises CheckpointDamaged where there is none."""
    found = sorted((runs / name).glob(f"*/{CHECKPOINT_FILE}"))
    if not found:
        raise CheckpointDamaged(
            f"--resume: no {CHECKPOINT_FILE} below {runs / name}; a run writes one between epochs and when stopped."
        )
    return found[-1].parent


@contextmanager
def events(folder: Path) -> Iterator[Callable[[Progress], None]]:
    """A `watch` that writes TensorBoard event files; the horizontal axis counts training items."""
    with SummaryWriter(str(folder)) as writer:

        def write(progress: Progress) -> None:
            writer.add_scalar("train/loss", progress.loss, progress.items)
            writer.add_scalar("train/learning_rate", progress.learning_rate, progress.items)
            writer.add_scalar("train/items_per_s", progress.items_per_s, progress.items)
            for tag, value in (
                ("train/accuracy", progress.accuracy),
                ("validation/loss", progress.validation_loss),
                ("validation/accuracy", progress.validation_accuracy),
            ):
                if value is not None:
                    writer.add_scalar(tag, value, progress.items)

        yield write


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM set what the returned function tells; a second one acts as it would without this.

    In another thread than the main one nothing is set.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield lambda: False
        return
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
