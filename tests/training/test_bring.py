"""Graphs as other tools write them, small enough that their answers can be told by eye."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.manifest import (
    NUMPY_OF,
    Classification,
    ImageInput,
    Manifest,
    TensorInput,
    TensorSpec,
    check_files,
    read_golden,
    read_manifest,
)
from training.__main__ import main
from training.bring import publish_onnx
from training.errors import ModelUnsuited, VersionExists

FLOAT, BYTE = TensorProto.FLOAT, TensorProto.UINT8
Tensor = tuple[str, int, Sequence[int | str | None]]


def node(operator: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


def saved(
    path: Path,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, np.ndarray] | None = None,
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(*tensor) for tensor in inputs],
        [helper.make_tensor_value_info(*tensor) for tensor in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, producer_name="maker", producer_version="1.2"
    )
    onnx.save(model, path)
    return path


def identity(folder: Path, element: int, *shape: int | str | None, name: str = "x") -> Path:
    tensors = ((name, element, shape), ("y", element, shape))
    return saved(folder / "identity.onnx", tensors[:1], tensors[1:], [node("Identity", name, "y")])


def doubled(folder: Path) -> Path:
    """x FP32 [n, 3] → y = 2 x."""
    x, y = ("x", FLOAT, ("n", 3)), ("y", FLOAT, ("n", 3))
    return saved(folder / "doubled.onnx", [x], [y], [node("Add", "x x", "y")])


def two_inputs(folder: Path) -> Path:
    """a FP32 [n, 3] and b INT64 [n] → total FP32 [n, 3] = a + b, and b as it came."""
    return saved(
        folder / "two.onnx",
        [("a", FLOAT, ("n", 3)), ("b", TensorProto.INT64, ("n",))],
        [("total", FLOAT, ("n", 3)), ("same", TensorProto.INT64, ("n",))],
        [
            node("Cast", "b", "b_float", to=FLOAT),
            node("Unsqueeze", "b_float axis", "b_column"),
            node("Add", "a b_column", "total"),
            node("Identity", "b", "same"),
        ],
        {"axis": np.array([1])},
    )


def classifier(folder: Path) -> Path:
    """x FP32 [n, 3] → logits and probabilities [n, 3]."""
    return saved(
        folder / "classifier.onnx",
        [("x", FLOAT, ("n", 3))],
        [("logits", FLOAT, ("n", 3)), ("probabilities", FLOAT, ("n", 3))],
        [node("Mul", "x ten", "logits"), node("Softmax", "logits", "probabilities", axis=1)],
        {"ten": np.array(10, np.float32)},
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "models"


def published(path: Path, repository: Path, **options: Path | int | None) -> tuple[Path, Manifest]:
    """A folder that is whole, whose golden rows the file in it answers."""
    folder = publish_onnx(path, "mine", repository, **({"labels": None, "rows": None} | options))  # type: ignore[arg-type]
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    golden = read_golden(folder)
    assert [tensor.name for tensor in manifest.inputs] == list(golden.inputs)
    assert [tensor.name for tensor in manifest.outputs] == list(golden.outputs)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    for name, expected in golden.outputs.items():
        np.testing.assert_allclose(session.run([name], dict(golden.inputs))[0], expected)
    return folder, manifest


def refused(path: Path, repository: Path, **options: Path | None) -> str:
    """The message. Nothing is in the repository afterwards."""
    with pytest.raises(ModelUnsuited) as raised:
        publish_onnx(path, "mine", repository, **({"labels": None, "rows": None} | options))  # type: ignore[arg-type]
    assert not repository.exists()
    message = str(raised.value)
    assert "\n" not in message
    return message


# ---- what is published


def test_a_version_holds_the_file_as_it_was_and_says_what_it_is(tmp_path: Path, repository: Path) -> None:
    path = doubled(tmp_path)
    folder, manifest = published(path, repository)
    assert folder == repository / "mine" / "1"
    assert {file.name for file in folder.iterdir()} == {"model.onnx", "golden.npz", "manifest.json"}
    assert (folder / "model.onnx").read_bytes() == path.read_bytes()
    assert set(manifest.files) == {"model.onnx", "golden.npz"}
    assert (manifest.name, manifest.version) == ("mine", 1)
    assert manifest.description == "doubled.onnx, made by maker 1.2"
    assert manifest.inputs == (TensorSpec("x", "FP32", (-1, 3)),)
    assert manifest.outputs == (TensorSpec("y", "FP32", (-1, 3)),)
    assert manifest.input == TensorInput()
    assert manifest.classification is None
    assert (manifest.dataset, manifest.verification, manifest.provenance) == (None, None, None)
    assert manifest.metrics == {}


def test_golden_rows_are_the_files_own_answers(tmp_path: Path, repository: Path) -> None:
    folder, _ = published(doubled(tmp_path), repository)
    golden = read_golden(folder)
    assert golden.inputs["x"].shape == (16, 3)
    assert len(np.unique(golden.inputs["x"], axis=0)) == 16
    np.testing.assert_array_equal(golden.outputs["y"], 2 * golden.inputs["x"])


def test_the_same_file_gives_the_same_golden_rows(tmp_path: Path, repository: Path) -> None:
    first, _ = published(doubled(tmp_path), repository)
    second, _ = published(doubled(tmp_path), repository)
    assert (first.name, second.name) == ("1", "2")
    np.testing.assert_array_equal(read_golden(first).inputs["x"], read_golden(second).inputs["x"])


def test_a_number_can_be_chosen_and_is_not_taken_twice(tmp_path: Path, repository: Path) -> None:
    path = doubled(tmp_path)
    folder, manifest = published(path, repository, version=7)
    assert (folder.name, manifest.version) == ("7", 7)
    with pytest.raises(VersionExists, match="a published version never changes"):
        published(path, repository, version=7)
    assert published(path, repository)[0].name == "8"


def test_a_file_of_an_unnamed_tool_says_so(tmp_path: Path, repository: Path) -> None:
    model = onnx.load(doubled(tmp_path))
    model.producer_name = model.producer_version = ""
    onnx.save(model, tmp_path / "anonymous.onnx")
    _, manifest = published(tmp_path / "anonymous.onnx", repository)
    assert manifest.description == "anonymous.onnx, made by an unnamed tool"


def test_several_inputs_and_outputs_keep_the_order_of_the_file(tmp_path: Path, repository: Path) -> None:
    folder, manifest = published(two_inputs(tmp_path), repository)
    assert manifest.inputs == (TensorSpec("a", "FP32", (-1, 3)), TensorSpec("b", "INT64", (-1,)))
    assert manifest.outputs == (TensorSpec("total", "FP32", (-1, 3)), TensorSpec("same", "INT64", (-1,)))
    golden = read_golden(folder)
    np.testing.assert_array_equal(golden.outputs["same"], golden.inputs["b"])


@pytest.mark.parametrize(
    ("element", "shape", "kind"),
    [
        (BYTE, (8, 6, 3), ImageInput(height=8, width=6, channels=3)),
        (BYTE, (8, 6, 1), ImageInput(height=8, width=6, channels=1)),
        (BYTE, (8, 6, 2), TensorInput()),
        (BYTE, (8, 6, 4), TensorInput()),
        (BYTE, (3, 8, 6), TensorInput()),  # channels first
        (BYTE, (6, 3), TensorInput()),
        (BYTE, (2, 8, 6, 3), TensorInput()),
        (TensorProto.INT8, (8, 6, 3), TensorInput()),
        (FLOAT, (8, 6, 3), TensorInput()),
    ],
)
def test_only_bytes_with_one_or_three_channels_last_are_an_image(
    tmp_path: Path, repository: Path, element: int, shape: tuple[int, ...], kind: ImageInput | TensorInput
) -> None:
    _, manifest = published(identity(tmp_path, element, "n", *shape), repository)
    assert manifest.input == kind
    assert manifest.inputs[0].shape == (-1, *shape)


def test_two_images_are_plain_tensors(tmp_path: Path, repository: Path) -> None:
    tensors = [(name, BYTE, ("n", 4, 4, 3)) for name in ("left", "right", "larger")]
    path = saved(tmp_path / "pair.onnx", tensors[:2], tensors[2:], [node("Max", "left right", "larger")])
    assert published(path, repository)[1].input == TensorInput()


@pytest.mark.parametrize(
    ("datatype", "low", "high"),
    [
        ("BOOL", 0, 1),
        ("UINT8", 0, 255),
        ("UINT16", 0, 255),
        ("UINT32", 0, 255),
        ("UINT64", 0, 255),
        ("INT8", 0, 127),
        ("INT16", 0, 255),
        ("INT32", 0, 255),
        ("INT64", 0, 255),
        ("FP16", -6, 6),
        ("FP32", -6, 6),
        ("FP64", -6, 6),
    ],
)
def test_every_datatype_of_the_protocol_is_published(
    tmp_path: Path, repository: Path, datatype: str, low: int, high: int
) -> None:
    dtype = NUMPY_OF[datatype]  # type: ignore[index]  # one of them
    element = helper.np_dtype_to_tensor_dtype(dtype.newbyteorder("="))
    folder, manifest = published(identity(tmp_path, element, "n", 40), repository)
    assert manifest.inputs == (TensorSpec("x", datatype, (-1, 40)),)  # type: ignore[arg-type]
    drawn = read_golden(folder).inputs["x"]
    assert drawn.dtype == dtype
    assert low <= drawn.min() < drawn.max() <= high
    if dtype.kind != "f":
        assert drawn.max() > 0.9 * high


@pytest.mark.parametrize("batch", ["n", "batch_size", None], ids=["n", "batch_size", "unnamed"])
def test_the_batch_may_be_called_anything(tmp_path: Path, repository: Path, batch: str | None) -> None:
    assert published(identity(tmp_path, FLOAT, batch, 3), repository)[1].inputs[0].shape == (-1, 3)


# ---- golden rows of one's own


def test_given_rows_are_kept_with_their_answers(tmp_path: Path, repository: Path) -> None:
    rows = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    np.savez(tmp_path / "rows.npz", x=rows)
    folder, _ = published(doubled(tmp_path), repository, rows=tmp_path / "rows.npz")
    golden = read_golden(folder)
    np.testing.assert_array_equal(golden.inputs["x"], rows)
    np.testing.assert_array_equal(golden.outputs["y"], [[2, 4, 6], [8, 10, 12]])


def test_one_row_and_arrays_in_any_order_will_do(tmp_path: Path, repository: Path) -> None:
    np.savez(tmp_path / "rows.npz", b=np.array([100]), a=np.array([[1, 2, 3]], np.float32))
    folder = publish_onnx(two_inputs(tmp_path), "mine", repository, labels=None, rows=tmp_path / "rows.npz")
    np.testing.assert_array_equal(read_golden(folder).outputs["total"], [[101, 102, 103]])


def embedding(folder: Path) -> Path:
    """token INT64 [n] → y = 11 times it, up to 9: a larger one ends the run."""
    return saved(
        folder / "embedding.onnx",
        [("token", TensorProto.INT64, ("n",))],
        [("y", TensorProto.INT64, ("n",))],
        [node("Gather", "table token", "y")],
        {"table": 11 * np.arange(10)},
    )


def test_a_model_that_random_rows_break_asks_for_others(tmp_path: Path, repository: Path) -> None:
    message = refused(embedding(tmp_path), repository)
    assert message.startswith("The model cannot answer 16 rows: ")
    assert message.endswith("Give rows it understands with --golden rows.npz.")
    np.savez(tmp_path / "rows.npz", token=np.array([0, 3, 9]))
    folder, _ = published(embedding(tmp_path), repository, rows=tmp_path / "rows.npz")
    np.testing.assert_array_equal(read_golden(folder).outputs["y"], [0, 33, 99])


A, B = np.zeros((2, 3), np.float32), np.zeros(2, np.int64)


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"a": A}, "holds a; expected a, b, one array per input"),
        ({}, "holds nothing; expected a, b, one array per input"),
        ({"a": A, "b": B, "c": B}, "holds a, b, c; expected a, b"),
        ({"a": A, "B": B}, "holds a, B; expected a, b"),
        ({"a": A.astype(np.float64), "b": B}, "a is float64 (2, 3); expected float32 ['rows', 3], at least one"),
        ({"a": A, "b": B.astype(np.int32)}, "b is int32 (2,); expected int64 ['rows'], at least one"),
        ({"a": A[:, :2], "b": B}, "a is float32 (2, 2); expected float32 ['rows', 3]"),
        ({"a": A[0], "b": B}, "a is float32 (3,); expected float32 ['rows', 3]"),
        ({"a": A[:0], "b": B[:0]}, "a is float32 (0, 3); expected float32 ['rows', 3], at least one"),
        ({"a": A, "b": B[:1]}, "the arrays have different numbers of rows"),
        ({"a": A, "b": np.array([None, None])}, "is not a readable npz"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    tmp_path: Path, repository: Path, arrays: dict[str, np.ndarray], expected: str
) -> None:
    np.savez(tmp_path / "rows.npz", **arrays)
    message = refused(two_inputs(tmp_path), repository, rows=tmp_path / "rows.npz")
    assert message.startswith(f"--golden {tmp_path / 'rows.npz'}")
    assert expected in message


def test_rows_in_a_file_of_another_kind_are_refused(tmp_path: Path, repository: Path) -> None:
    rows = tmp_path / "rows.npz"
    assert "is not a readable npz: " in refused(doubled(tmp_path), repository, rows=rows)  # missing
    for content in (b"", b"text", b"PK\x03\x04 and no more"):
        rows.write_bytes(content)
        assert "is not a readable npz: " in refused(doubled(tmp_path), repository, rows=rows)
    with rows.open("wb") as file:
        np.save(file, A)
    assert "is not a readable npz: " in refused(doubled(tmp_path), repository, rows=rows)


def test_rows_in_a_damaged_file_are_refused(tmp_path: Path, repository: Path) -> None:
    rows = tmp_path / "rows.npz"
    np.savez_compressed(rows, x=np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32))
    content = bytearray(rows.read_bytes())
    for place in range(60, 120, 7):
        content[place] ^= 0xFF
    rows.write_bytes(content)
    assert "is not a readable npz: " in refused(doubled(tmp_path), repository, rows=rows)


# ---- labels


def test_labels_belong_to_the_first_output_that_gives_probabilities(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\n  größer Hund \n\nbird\n", encoding="utf-8")
    _, manifest = published(classifier(tmp_path), repository, labels=tmp_path / "labels.txt")
    assert manifest.classification == Classification("probabilities", ("cat", "größer Hund", "bird"))


@pytest.mark.parametrize(
    ("labels", "count"), [("one\ntwo\n", 2), ("a\nb\nc\nd\n", 4), ("", 0)], ids=["too few", "too many", "none"]
)
def test_labels_of_another_number_are_refused(tmp_path: Path, repository: Path, labels: str, count: int) -> None:
    (tmp_path / "labels.txt").write_text(labels)
    message = refused(classifier(tmp_path), repository, labels=tmp_path / "labels.txt")
    assert f"has {count} labels, and no output gives that many probabilities between 0 and 1 a row" in message
    assert "(outputs: logits [3], probabilities [3])" in message


@pytest.mark.parametrize("make", [doubled, lambda folder: identity(folder, BYTE, "n", 3)], ids=["logits", "bytes"])
def test_labels_without_probabilities_are_refused(tmp_path: Path, repository: Path, make) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    message = refused(make(tmp_path), repository, labels=tmp_path / "labels.txt")
    assert message.endswith("Put a softmax at the end of the model, or leave --labels out.")


def test_labels_that_cannot_be_read_are_refused(tmp_path: Path, repository: Path) -> None:
    labels = tmp_path / "labels.txt"
    assert f"--labels {labels} is not a readable text file" in refused(classifier(tmp_path), repository, labels=labels)
    labels.write_bytes(b"\xff\xfe\x00c")
    assert f"--labels {labels} is not a readable text file" in refused(classifier(tmp_path), repository, labels=labels)


# ---- graphs that cannot be served


def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path, repository: Path) -> None:
    path = tmp_path / "model.onnx"
    assert refused(path, repository) == f"{path} cannot be read: No such file or directory."
    assert refused(tmp_path, repository) == f"{tmp_path} cannot be read: Is a directory."
    path.write_bytes(b"not a graph")
    assert refused(path, repository) == f"{path} is not an ONNX file."
    path.write_bytes(b"")
    assert refused(path, repository).startswith(f"{path} does not load in onnxruntime: ")


def test_an_operator_onnxruntime_does_not_know_is_refused(tmp_path: Path, repository: Path) -> None:
    x, y = ("x", FLOAT, ("n", 3)), ("y", FLOAT, ("n", 3))
    path = saved(tmp_path / "own.onnx", [x], [y], [node("MyOperator", "x", "y", domain="mine")])
    assert "does not load in onnxruntime: " in refused(path, repository)


@pytest.mark.parametrize(
    ("shape", "said"),
    [((1, 3), "[1, 3]"), (("n", "length"), "['n', 'length']"), (("n", None), "['n', None]"), ((), "[]")],
    ids=["fixed batch", "inner axis with a name", "inner axis without", "no axis"],
)
def test_shapes_that_cannot_be_batched_are_refused(
    tmp_path: Path, repository: Path, shape: tuple[int | str | None, ...], said: str
) -> None:
    message = refused(identity(tmp_path, FLOAT, *shape), repository)
    assert message.startswith(
        f"tensor x is {said}; expected a batch of any size in dimension 0 and fixed lengths after"
    )
    assert "torch.export.Dim('batch')" in message


def test_a_type_the_protocol_cannot_carry_is_refused(tmp_path: Path, repository: Path) -> None:
    message = refused(identity(tmp_path, TensorProto.STRING, "n", 3, name="words"), repository)
    assert message.startswith("tensor words is tensor(string); served are tensor(bool), ")
    assert "tensor(float)" in message


def test_an_output_that_cannot_be_carried_is_refused_too(tmp_path: Path, repository: Path) -> None:
    x, y = ("x", FLOAT, ("n", 3)), ("words", TensorProto.STRING, ("n", 3))
    path = saved(tmp_path / "words.onnx", [x], [y], [node("Cast", "x", "words", to=TensorProto.STRING)])
    assert refused(path, repository).startswith("tensor words is tensor(string); ")


def test_weights_in_another_file_are_refused(tmp_path: Path, repository: Path) -> None:
    x, y = ("x", FLOAT, ("n", 300)), ("y", FLOAT, ("n", 300))
    path = saved(
        tmp_path / "large.onnx", [x], [y], [node("MatMul", "x w", "y")], {"w": np.ones((300, 300), np.float32)}
    )
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="large.data")
    message = refused(path, repository)
    assert message.startswith(f"{path} keeps weights in another file (w and 0 more); save it with the weights inside")


def mixing(folder: Path, nodes: Sequence[onnx.NodeProto], output: Sequence[int | str]) -> Path:
    """x FP32 [n, 3] → y, by nodes that look along the batch."""
    x, y = ("x", FLOAT, ("n", 3)), ("y", FLOAT, output)
    constants = {"first": np.array([0]), "along": np.array(0), "start": np.array([0]), "end": np.array([5])}
    return saved(folder / "mixing.onnx", [x], [y], nodes, constants)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("ReduceMean", "x first", "mean"), node("Sub", "x mean", "y")],
        [node("CumSum", "x along", "y")],
        [node("CumSum", "x along", "y", reverse=1)],
        [node("Softmax", "x", "y", axis=0)],
    ],
    ids=["batch mean", "sum of those before", "sum of those after", "softmax over rows"],
)
def test_a_model_that_mixes_rows_is_refused(tmp_path: Path, repository: Path, nodes: list[onnx.NodeProto]) -> None:
    message = refused(mixing(tmp_path, nodes, ("n", 3)), repository)
    assert message.startswith(
        "output y of a row alone differs from that of the same row in a batch: the model mixes rows"
    )


def test_mixing_is_found_in_given_rows_too(tmp_path: Path, repository: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.array([[1, 1, 1], [5, 5, 5]], np.float32))
    path = mixing(tmp_path, [node("CumSum", "x along", "y")], ("n", 3))
    assert "the model mixes rows" in refused(path, repository, rows=tmp_path / "rows.npz")


def test_a_neighbour_that_is_nan_or_infinite_is_not_a_mix(tmp_path: Path, repository: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.array([[np.nan, 1, np.inf], [1, 2, 3]], np.float32))
    folder, _ = published(doubled(tmp_path), repository, rows=tmp_path / "rows.npz")
    np.testing.assert_array_equal(read_golden(folder).outputs["y"], [[np.nan, 2, np.inf], [2, 4, 6]])


def test_an_output_declared_without_the_batch_is_refused(tmp_path: Path, repository: Path) -> None:
    path = mixing(tmp_path, [node("ReduceMean", "x first", "y", keepdims=0)], (3,))
    assert refused(path, repository).startswith("tensor y is [3]; expected a batch of any size in dimension 0")


@pytest.mark.parametrize("count", [6, 16])
def test_an_output_that_lacks_rows_is_refused(tmp_path: Path, repository: Path, count: int) -> None:
    path = mixing(tmp_path, [node("Slice", "x start end", "y")], ("m", 3))  # the first five
    np.savez(tmp_path / "rows.npz", x=np.ones((count, 3), np.float32))
    message = refused(path, repository, rows=tmp_path / "rows.npz")
    assert message == f"output y is [5, 3] for {count} rows; expected as many rows as came in."


def test_an_output_of_another_length_than_declared_is_refused(tmp_path: Path, repository: Path) -> None:
    # Its length is the sum of what came in: onnxruntime cannot tell beforehand, and warns only when it runs.
    path = saved(
        tmp_path / "long.onnx",
        [("x", BYTE, ("n", 3))],
        [("y", FLOAT, ("n", 3))],
        [
            node("Cast", "x", "numbers", to=TensorProto.INT64),
            node("ReduceMax", "numbers", "length", keepdims=0),
            node("Shape", "x", "n", end=1),
            node("Unsqueeze", "length zero", "columns"),
            node("Concat", "n columns", "shape", axis=0),
            node("ConstantOfShape", "shape", "y"),
        ],
        {"zero": np.array([0])},
    )
    np.savez(tmp_path / "rows.npz", x=np.full((2, 3), 4, np.uint8))
    message = refused(path, repository, rows=tmp_path / "rows.npz")
    assert message == "output y is [2, 4], and the file declares ['rows', 3]."


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../up", "with space", "-flag"])
def test_a_name_that_is_no_plain_folder_is_refused(tmp_path: Path, repository: Path, name: str) -> None:
    with pytest.raises(ModelUnsuited, match="expected letters, digits"):
        publish_onnx(doubled(tmp_path), name, repository, labels=None, rows=None)
    assert not repository.exists()


# ---- the command line


def test_the_command_publishes_and_says_where(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    np.savez(tmp_path / "rows.npz", x=np.eye(3, dtype=np.float32))
    arguments = ["publish", "--onnx", str(classifier(tmp_path)), "--name", "mine", "--repository", str(repository)]
    more = ["--labels", str(tmp_path / "labels.txt"), "--golden", str(tmp_path / "rows.npz"), "--version", "4"]
    assert main(arguments + more) == 0
    folder = repository / "mine" / "4"
    assert (
        f"Published {folder}\nNext: python -m service serve --repository {folder.parents[1]}" in capsys.readouterr().out
    )
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    assert manifest.classification == Classification("probabilities", ("a", "b", "c"))
    np.testing.assert_array_equal(read_golden(folder).inputs["x"], np.eye(3))


def test_the_command_refuses_in_one_line(tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = identity(tmp_path, FLOAT, 1, 3)
    assert main(["publish", "--onnx", str(path), "--name", "mine", "--repository", str(repository)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: tensor x is [1, 3]; expected a batch of any size")
    assert error.count("\n") == 1
    assert not repository.exists()
