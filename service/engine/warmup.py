"""Leaves an item that the model can run in the arena's first rows, so that instances can be warmed up and measured."""

from collections.abc import Iterator, Sequence

from models.manifest import Golden, TensorSpec
from service.batching import strings
from service.batching.arena import Arena, ShapedRow
from service.engine.agreement import Array
from service.engine.golden import golden_feeds
from service.engine.instance import Instance
from service.engine.samples import axis_lengths, sample_items
from service.engine.session import RunFailed, Session


def write_warm_up_items(
    session: Session, arena: Arena, golden: Golden | None, batch_axis: bool, n_slots: int, max_row_bytes: int
) -> None:
    """Write the first item that runs into the rows of slots 0 to `n_slots` - 1. Raises RunFailed when none does."""
    instance = Instance(session, arena, 1, batch_axis)
    failure = RunFailed(f"no item fits into {max_row_bytes} bytes")
    for item in _candidates(session, golden, batch_axis, max_row_bytes):
        for spec in session.inputs:
            _write(arena, spec, item[spec.name], range(n_slots))
        try:
            with session.quietly():
                instance.run([0])
        except RunFailed as error:
            failure = error
        else:
            return
    raise failure


def _candidates(
    session: Session, golden: Golden | None, batch_axis: bool, max_row_bytes: int
) -> Iterator[dict[str, Array]]:
    """Single items: a golden row, or zeros and then ones, with axes of any length at several lengths."""
    if golden is not None:
        yield {name: array[0, ...] for name, array in golden_feeds(session, golden, slice(0, 1)).items()}
        return
    for length in axis_lengths(session.inputs, batch_axis, max_row_bytes):
        items = sample_items(session.inputs, batch_axis, length, 2, "zeros and ones")
        for i in range(2):
            yield {name: array[i, ...] for name, array in items.items()}


def _write(arena: Arena, spec: TensorSpec, item: Array, slots: Sequence[int]) -> None:
    data = strings.pack(text.encode() for text in item.reshape(-1)) if spec.datatype == "BYTES" else item.tobytes()
    for slot in slots:
        if spec.name in arena.inputs:
            arena.inputs[spec.name].write([slot], data)
        else:
            arena.shaped_inputs[spec.name].write(slot, ShapedRow(item.shape, data))
