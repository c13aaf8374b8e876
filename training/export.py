"""The trained model as one ONNX graph: uint8 images in, logits and probabilities out, any batch size.

The bytes depend on weights and recipe alone. torch notes the source line of every node in the graph; here that goes,
because it names folders of the machine that exported and would give each checkout its own digest.
Checked by tests/training/test_export.py.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from msgspec import Struct

from training.architectures import Classifier
from training.recipes import Recipe

OPSET = 20  # what torch's exporter translates to without a conversion; every onnxruntime since 1.17 reads it
INPUT = "image"
LOGITS = "logits"
PROBABILITIES = "probabilities"


class Exported(Struct, frozen=True):
    """A serialised graph that nobody has compared with the model yet; `verify` does."""

    onnx: bytes


def export(model: Classifier, recipe: Recipe) -> Exported:
    """Trace `model`, which must be in evaluation mode, and leave it as it was."""
    assert not model.training, "bug: BatchNorm would be exported in training mode"
    example = torch.zeros((2, *recipe.source.shape), dtype=torch.uint8)  # a batch of 1 would be taken for a constant
    with quiet():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[LOGITS, PROBABILITIES],
            dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
            external_data=False,
        )
    assert program is not None, "bug: torch.onnx.export returns a program when dynamo is on"
    graph = strip_origin(program.model_proto)
    describe(graph, recipe)
    onnx.checker.check_model(graph, full_check=True)
    return Exported(graph.SerializeToString(deterministic=True))


def strip_origin(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what tells where and from which lines the graph was made."""
    model.doc_string = ""
    del model.metadata_props[:]
    for graph in (model.graph, *model.functions):
        graph.doc_string = ""
        del graph.metadata_props[:]
        for part in (*graph.node, *graph.value_info):
            part.doc_string = ""
            del part.metadata_props[:]
    for named in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        named.doc_string = ""
        del named.metadata_props[:]
    return model


def describe(model: onnx.ModelProto, recipe: Recipe) -> None:
    """Facts that a reader of the bare file wants; onnxruntime gives them as `custom_metadata_map`."""
    source = recipe.source
    facts = {
        "name": recipe.name,
        "task": "image-classification",
        "labels": json.dumps(source.labels, ensure_ascii=False),
        "input_layout": "uint8 NHWC, 0..255; normalisation is part of the graph",
        "dataset": source.name,
        "dataset_sha256": source.sha256,
    }
    onnx.helper.set_model_props(model, facts)


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's notes to itself: a FutureWarning about its own tree registry, and that torchvision is absent."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
