from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from training.data import DataSet, Source
from training.export import Exported, export, strip_origin
from training.loop import Trained
from training.recipes import Recipe


@pytest.fixture(scope="module")
def graph(exported: Exported) -> onnx.ModelProto:
    return onnx.load_from_string(exported.onnx)


@pytest.fixture(scope="module")
def session(exported: Exported) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(exported.onnx, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_every_batch_size_gives_what_torch_gives(
    session: onnxruntime.InferenceSession, trained: Trained, data: DataSet, size: int
) -> None:
    images = data.test_x[:size]
    with torch.inference_mode():
        logits, probabilities = (output.numpy() for output in trained.model(torch.from_numpy(images)))
    found = session.run(["logits", "probabilities"], {"image": images})
    np.testing.assert_allclose(found[0], logits, atol=1e-5)
    np.testing.assert_allclose(found[1], probabilities, atol=1e-6)


def test_an_item_is_answered_alike_alone_and_in_company(session: onnxruntime.InferenceSession, data: DataSet) -> None:
    (together,) = session.run(["logits"], {"image": data.test_x[:64]})
    for index in (0, 31, 63):
        (alone,) = session.run(["logits"], {"image": data.test_x[index : index + 1]})
        np.testing.assert_allclose(together[index], alone[0], atol=1e-5)


def test_inputs_and_outputs_are_those_of_the_contract(session: onnxruntime.InferenceSession) -> None:
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(uint8)", [28, 28, 1])
    assert [(out.name, out.type, out.shape[1:]) for out in session.get_outputs()] == [
        ("logits", "tensor(float)", [10]),
        ("probabilities", "tensor(float)", [10]),
    ]
    assert isinstance(image.shape[0], str), "the batch is not dynamic"
    assert {out.shape[0] for out in session.get_outputs()} == {image.shape[0]}


def test_batch_norm_is_folded_away(graph: onnx.ModelProto) -> None:
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("Conv") == 6
    assert "BatchNormalization" not in kinds
    assert len(kinds) < 25


def test_no_node_tells_where_it_was_made(graph: onnx.ModelProto) -> None:
    assert not graph.doc_string
    for part in (*graph.graph.node, *graph.graph.value_info, *graph.graph.initializer, *graph.graph.input):
        assert not part.metadata_props, part.name
        assert not part.doc_string, part.name


def test_the_file_names_no_folder(exported: Exported) -> None:
    checkout = str(Path(__file__).parents[2])
    for folder in (checkout, str(Path.home()), "site-packages", "/home", ".py"):
        assert folder.encode() not in exported.onnx, folder


def test_stripping_reaches_functions_and_values() -> None:
    node = onnx.helper.make_node("Relu", ["a"], ["b"], doc_string="from here")
    node.metadata_props.add(key="trace", value="here.py")
    value = onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [1], doc_string="from here")
    graph = onnx.helper.make_graph([node], "g", [value], [], doc_string="from here")
    function = onnx.helper.make_function("d", "f", ["a"], ["b"], [node], [])
    model = onnx.helper.make_model(graph, functions=[function], doc_string="from here")
    assert b"here" in model.SerializeToString()
    assert b"here" not in strip_origin(model).SerializeToString()


def test_the_file_describes_itself(session: onnxruntime.InferenceSession, source: Source) -> None:
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["name"] == "tiny"
    assert facts["labels"] == '["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]'
    assert facts["dataset_sha256"] == source.sha256


def test_the_same_model_gives_the_same_bytes(
    trained: Trained, recipe: Recipe, source: Source, exported: Exported
) -> None:
    assert export(trained.model, recipe, source).onnx == exported.onnx


def test_a_model_in_training_mode_is_not_exported(trained: Trained, recipe: Recipe, source: Source) -> None:
    trained.model.train()
    try:
        with pytest.raises(AssertionError, match="bug"):
            export(trained.model, recipe, source)
    finally:
        trained.model.eval()
