"""Golden rows: checked against the tensors, then replayed; a version whose answers differ is not served."""

from models.manifest import GOLDEN_FILE, NUMPY_OF, Golden, TensorSpec, Tolerance
from service.batching.arena import item_shape
from service.engine.agreement import Array, agrees, largest_difference
from service.engine.session import Session, UnservableModel


def check_golden(session: Session, golden: Golden, batch_axis: bool) -> None:
    """Rows for every input and output, at least one, equally many, of the model's types and shapes.

    Raises UnservableModel.
    """
    n_rows = {len(array) if array.ndim else 0 for array in (*golden.inputs.values(), *golden.outputs.values())}
    if len(n_rows) != 1 or n_rows == {0}:
        raise UnservableModel(
            f"{GOLDEN_FILE}: arrays of {sorted(n_rows)} rows; expected at least one, and as many in all"
        )
    for side, specs, arrays in (
        ("inputs", session.inputs, golden.inputs),
        ("outputs", session.outputs, golden.outputs),
    ):
        found = {name: (_element_text(array), array.shape[1:]) for name, array in arrays.items()}
        expected = {spec.name: (_expected_element(spec), item_shape(spec, batch_axis)) for spec in specs}
        if found.keys() != expected.keys() or not all(
            found[name][0] == element and _fits(found[name][1], shape) for name, (element, shape) in expected.items()
        ):
            raise UnservableModel(f"{GOLDEN_FILE}: {side} are {found}; expected {expected}")


def replay(session: Session, golden: Golden, tolerance: Tolerance, batch_axis: bool) -> None:
    """Run the golden rows, all at once and the first alone; without a batch axis, each alone.

    Raises RunFailed, and UnservableModel when an answer is out of tolerance.
    """
    n_rows = row_count(golden)
    for rows in [slice(0, 1), slice(0, n_rows)] if batch_axis else range(n_rows):
        outputs = session.run(golden_feeds(session, golden, rows))
        for spec, output in zip(session.outputs, outputs, strict=True):
            expected = golden.outputs[spec.name][rows]
            if not agrees(spec, output, expected, tolerance):
                raise UnservableModel(
                    f"golden rows: output {spec.name!r} differs from the published answers by up to "
                    f"{largest_difference(spec, output, expected)}; tolerance {tolerance.absolute} + "
                    f"{tolerance.relative} x |value|"
                )


def golden_feeds(session: Session, golden: Golden, rows: slice | int) -> dict[str, Array]:
    """Inputs as `Session.run` takes them: a slice keeps the batch axis, a number is one item without it."""
    feeds = {}
    for spec in session.inputs:
        array = golden.inputs[spec.name]
        array = array.astype(object) if spec.datatype == "BYTES" else array
        feeds[spec.name] = array[rows] if isinstance(rows, slice) else array[rows, ...]
    return feeds


def row_count(golden: Golden) -> int:
    return len(next(iter(golden.inputs.values())))


def _element_text(array: Array) -> str:
    return "text" if array.dtype.kind == "U" else str(array.dtype)


def _expected_element(spec: TensorSpec) -> str:
    return "text" if spec.datatype == "BYTES" else str(NUMPY_OF[spec.datatype])


def _fits(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(found) == len(expected) and all(
        size == wanted or wanted == -1 for size, wanted in zip(found, expected, strict=True)
    )
