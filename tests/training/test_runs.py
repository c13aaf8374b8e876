import datetime
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import msgspec
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.errors import CheckpointDamaged
from training.loop import Progress
from training.runs import events, latest_run, new_run, stop_on_signals

PROGRESS = Progress(
    epoch=1,
    items=300,
    items_in_all=900,
    loss=0.75,
    accuracy=0.5,
    items_per_s=1250.0,
    learning_rate=0.125,
    ends_epoch=True,
    validation_loss=0.875,
    validation_accuracy=0.25,
)


# ---- folders


def test_every_run_has_a_folder_of_its_own_and_their_names_sort_by_time(tmp_path: Path) -> None:
    folders = [new_run(tmp_path, "mnist") for _ in range(20)]
    assert {folder.parent for folder in folders} == {tmp_path / "mnist"}
    assert sorted(set(folders)) == folders


def test_a_folder_is_named_by_the_time_in_utc(tmp_path: Path) -> None:
    before = datetime.datetime.now(datetime.UTC)
    name = new_run(tmp_path, "mnist").name
    started = datetime.datetime.strptime(name, "%Y-%m-%dT%H-%M-%S.%f%z")
    assert before <= started <= datetime.datetime.now(datetime.UTC)


def test_a_new_run_is_not_yet_there(tmp_path: Path) -> None:
    assert not new_run(tmp_path, "mnist").exists()
    assert list(tmp_path.iterdir()) == []


def run_with(folder: Path, *files: str) -> Path:
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_bytes(b"")
    return folder


def test_the_latest_run_is_the_newest_that_has_a_checkpoint(tmp_path: Path) -> None:
    run_with(tmp_path / "mnist" / "2026-01-02T00-00-00.000000Z", "checkpoint.pt")
    newest = run_with(tmp_path / "mnist" / "2026-01-10T00-00-00.000000Z", "checkpoint.pt", "events.out.1")
    run_with(tmp_path / "mnist" / "2026-02-01T00-00-00.000000Z", "events.out.1", ".checkpoint.pt.partial")
    run_with(tmp_path / "cifar10" / "2026-03-01T00-00-00.000000Z", "checkpoint.pt")
    assert latest_run(tmp_path, "mnist") == newest


def test_runs_made_one_after_the_other_are_found_in_that_order(tmp_path: Path) -> None:
    for _ in range(3):
        newest = run_with(new_run(tmp_path, "mnist"), "checkpoint.pt")
        assert latest_run(tmp_path, "mnist") == newest


@pytest.mark.parametrize("files", [None, (), ("events.out.1",)], ids=["no folder", "empty folder", "no checkpoint"])
def test_without_a_checkpoint_the_folder_searched_is_named(tmp_path: Path, files: tuple[str, ...] | None) -> None:
    if files is not None:
        run_with(tmp_path / "mnist" / "2026-01-02T00-00-00.000000Z", *files)
    with pytest.raises(CheckpointDamaged) as raised:
        latest_run(tmp_path, "mnist")
    assert str(raised.value) == (
        f"--resume: no checkpoint.pt below {tmp_path / 'mnist'}; a run writes one between epochs and when stopped."
    )


# ---- TensorBoard


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads: (step, value) by tag."""
    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_reads_what_was_seen_over_the_items_trained_on(tmp_path: Path) -> None:
    with events(tmp_path / "run") as write:
        write(PROGRESS)
        write(msgspec.structs.replace(PROGRESS, items=600, loss=0.5, accuracy=0.75, learning_rate=0.0625))
    assert scalars(tmp_path / "run") == {
        "train/loss": [(300, 0.75), (600, 0.5)],
        "train/learning_rate": [(300, 0.125), (600, 0.0625)],
        "train/items_per_s": [(300, 1250.0), (600, 1250.0)],
        "train/accuracy": [(300, 0.5), (600, 0.75)],
        "validation/loss": [(300, 0.875), (600, 0.875)],
        "validation/accuracy": [(300, 0.25), (600, 0.25)],
    }


def test_what_a_run_does_not_have_is_not_drawn(tmp_path: Path) -> None:
    bare = msgspec.structs.replace(PROGRESS, accuracy=None, validation_loss=None, validation_accuracy=None)
    with events(tmp_path) as write:
        write(bare)
    assert scalars(tmp_path).keys() == {"train/loss", "train/learning_rate", "train/items_per_s"}


def test_an_accuracy_of_zero_is_drawn(tmp_path: Path) -> None:
    with events(tmp_path) as write:
        write(msgspec.structs.replace(PROGRESS, accuracy=0.0, validation_loss=0.0))
    found = scalars(tmp_path)
    assert found["train/accuracy"] == found["validation/loss"] == [(300, 0.0)]


def failing(folder: Path) -> None:
    with events(folder) as write:
        write(PROGRESS)
        raise ZeroDivisionError


def test_events_are_written_also_when_training_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        failing(tmp_path)
    assert scalars(tmp_path)["train/loss"] == [(300, 0.75)]


# ---- signals


@pytest.fixture
def term() -> Iterator[list[int]]:
    """SIGTERMs that reached a handler which was there before; none ends the tests."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGTERM, note)
    yield seen
    signal.signal(signal.SIGTERM, before)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_nothing_is_asked_without_a_signal_and_handlers_come_back(term: list[int]) -> None:
    before = handlers()
    with stop_on_signals() as stop:
        assert not stop()
        assert all(inside is not outside for inside, outside in zip(handlers(), before, strict=True))
    assert handlers() == before
    assert term == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_and_interrupts_nothing(number: signal.Signals, term: list[int]) -> None:
    before = handlers()
    with stop_on_signals() as stop:
        os.kill(os.getpid(), number)
        assert stop()
        assert stop(), "it stays asked"
    assert stop()
    assert handlers() == before
    assert term == []


def interrupted_twice(first: signal.Signals) -> None:
    with stop_on_signals():
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_does_not_wait(first: signal.Signals, term: list[int]) -> None:
    before = handlers()
    with pytest.raises(KeyboardInterrupt):
        interrupted_twice(first)
    assert handlers() == before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_sigterm_does_what_it_did_before(first: signal.Signals, term: list[int]) -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
    assert term == [signal.SIGTERM]


def test_handlers_come_back_after_an_error() -> None:
    before = handlers()
    with pytest.raises(ZeroDivisionError), stop_on_signals():
        raise ZeroDivisionError
    assert handlers() == before


def test_each_run_is_asked_for_itself(term: list[int]) -> None:
    with stop_on_signals() as first:
        os.kill(os.getpid(), signal.SIGINT)
    with stop_on_signals() as second:
        assert first()
        assert not second()
