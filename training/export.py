"""The trained model as one ONNX graph: raw items in, answers out, any batch size.

The bytes depend on weights and recipe alone. torch notes the source line of every node in the graph; here that goes,
because it names folders of the machine that exported and would give each checkout its own digest.
Checked by tests/training/test_export.py.
"""

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from msgspec import Struct

from training.architectures import Served, folded
from training.data import Source
from training.errors import RecipeInvalid
from training.recipes import Recipe

OPSET = 20  # what torch's exporter translates to without a conversion; every onnxruntime since 1.17 reads it


class Exported(Struct, frozen=True):
    """A serialised graph that nobody has compared with the model yet; `verify` does."""

    onnx: bytes


def export(model: Served, recipe: Recipe, source: Source) -> Exported:
    """Trace a copy of `model`, which is on the CPU and in evaluation mode."""
    assert not model.training, "bug: BatchNorm would be exported in training mode"
    dtype = torch.uint8 if source.labels else torch.float32
    example = torch.zeros((2, *source.shape), dtype=dtype)  # a batch of 1 would be taken for a constant
    with quiet(), exporting(recipe):
        program = torch.onnx.export(
            folded(copy.deepcopy(model)),
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[model.input],
            output_names=list(model.outputs),
            dynamic_shapes={model.input: {0: torch.export.Dim("batch")}},
            external_data=False,
        )
    assert program is not None, "bug: torch.onnx.export returns a program when dynamo is on"
    graph = strip_origin(program.model_proto)
    describe(graph, recipe, source)
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


def describe(model: onnx.ModelProto, recipe: Recipe, source: Source) -> None:
    """Facts that a reader of the bare file wants; onnxruntime gives them as `custom_metadata_map`."""
    facts = {"name": recipe.name, "dataset": source.name, "dataset_sha256": source.sha256}
    if source.labels:
        facts |= {
            "task": "image-classification",
            "labels": json.dumps(source.labels, ensure_ascii=False),
            "input_layout": "uint8 NHWC, 0..255; normalisation is part of the graph",
        }
    else:
        facts |= {
            "task": "regression",
            "features": json.dumps(source.features, ensure_ascii=False),
            "unit": source.unit,
            "input_layout": "float32 [N, features] in their own units; normalisation is part of the graph",
        }
    onnx.helper.set_model_props(model, facts)


@contextmanager
def exporting(recipe: Recipe) -> Iterator[None]:
    """What the exporter raises for a network it cannot translate, as RecipeInvalid."""
    try:
        yield
    except Exception as error:  # whatever torch's passes and the network itself raise
        reason = " ".join(str(error).split())[:300]
        raise RecipeInvalid(f"The network of {recipe.name} cannot be exported to ONNX: {reason}") from error


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
