"""config.pbtxt: what is read of it, what is told as ignored, what refuses a model."""

import pytest

from service.lifecycle.messages import Overrides
from service.lifecycle.model_file import BadModelFile, ModelFile
from service.lifecycle.triton_config import parse_triton_config
from service.lifecycle.version_policy import All, Latest, Specific

# As Triton's own examples write them, all the forms of the text format among them.
WHOLE = """
name: "densenet"  # { a comment is no bracket
platform: "onnxruntime_onnx"
max_batch_size : 8
input [
  { name: "data_0" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 224, 224 ] reshape { shape: [ 1, 3 ] } }
]
output [ { name: "fc6_1", data_type: TYPE_FP32, dims: [ 1000 ], label_filename: "labels.txt" } ]
version_policy: { specific: { versions: [ 1, 3 ] } }
instance_group [ { count: 2 kind: KIND_CPU }, { kind: KIND_GPU gpus: [ 0, 1 ] } ]
dynamic_batching <
  preferred_batch_size: [ 4, 8 ];
  max_queue_delay_microseconds: 100;
  default_queue_policy { default_timeout_microseconds: 1500, max_queue_size: 64, allow_timeout_override: true }
  priority_levels: 2
>
optimization { execution_accelerators { gpu_execution_accelerator : [ { name : "tensorrt" } ] } }
parameters { key: "a" value: { string_value: "x: { [" } }
default_model_filename: "model.onnx"
"""


def test_what_means_something_here_is_read_and_the_rest_is_named() -> None:
    assert parse_triton_config(WHOLE, "densenet") == ModelFile(
        Specific(("1", "3")),
        Overrides(max_batch_size=8, max_queue_delay_us=100, max_queue_items=64, instances=3, timeout_ms=2),
        None,
        (
            "input",
            "output",
            "instance_group.kind",
            "instance_group.gpus",
            "dynamic_batching.preferred_batch_size",
            "dynamic_batching.default_queue_policy.allow_timeout_override",
            "dynamic_batching.priority_levels",
            "optimization",
            "parameters",
        ),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ModelFile()),
        ("max_batch_size: 0", ModelFile(overrides=Overrides(max_batch_size=1))),
        ("max_batch_size: 4096", ModelFile(overrides=Overrides(max_batch_size=1024))),
        ("dynamic_batching { }", ModelFile()),
        ("dynamic_batching { max_queue_delay_microseconds: 0 }", ModelFile(overrides=Overrides(max_queue_delay_us=0))),
        ("dynamic_batching { default_queue_policy { max_queue_size: 0 } }", ModelFile()),
        ("dynamic_batching { default_queue_policy { default_timeout_microseconds: 0 } }", ModelFile()),
        (
            "dynamic_batching { default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5000 } }",
            ModelFile(),
        ),
        (
            "dynamic_batching { default_queue_policy { timeout_action: REJECT default_timeout_microseconds: 5000 } }",
            ModelFile(overrides=Overrides(timeout_ms=5)),
        ),
        (
            "dynamic_batching { default_queue_policy { max_queue_size: 100000 } }",
            ModelFile(overrides=Overrides(max_queue_items=65536)),
        ),
        ("instance_group { }", ModelFile(overrides=Overrides(instances=1))),
        ("instance_group { count: 300 }", ModelFile(overrides=Overrides(instances=256))),
        ("version_policy { all { } }", ModelFile(All())),
        ("version_policy { latest { } }", ModelFile(Latest(1))),
        ("version_policy { latest { num_versions: 2 } }", ModelFile(Latest(2))),
        ('backend: "onnxruntime"', ModelFile()),
        ("max_batch: 3", ModelFile(ignored=("max_batch",))),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_each_field_by_itself(text: str, expected: ModelFile) -> None:
    assert parse_triton_config(text, "m") == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name: "other"', "name: 'other' is not served here, only 'm'"),
        ('backend: "python"', "backend: 'python' is not served here, only 'onnxruntime'"),
        ('platform: "ensemble"', "platform: 'ensemble' is not served here, only 'onnxruntime_onnx'"),
        ('default_model_filename: "net.onnx"', "default_model_filename: 'net.onnx' is not served here"),
        ("max_batch_size: -1", "max_batch_size: expected a number from 0, not -1"),
        ("version_policy { specific { versions: 0 } }", "version_policy.specific.versions: expected numbers from 1"),
        ('max_batch_size: "eight"', "max_batch_size"),
        ("max_batch_size: 1 max_batch_size: 2", "max_batch_size"),
        ("dynamic_batching { default_queue_policy { timeout_action: LATER } }", "LATER"),
        ("dynamic_batching {", "before a bracket of dynamic_batching is closed"),
        ("optimization { cuda {", "before a bracket of"),
        ("max_batch_size: 1 }", "}"),
        ("a { b " * 5000, "before a bracket of"),
        ('name: "m', "config.pbtxt"),
        ("8", "config.pbtxt"),
        ('{"max_batch_size": 8}', "config.pbtxt"),
    ],
    ids=lambda value: value[:40],
)
def test_what_refuses_a_model_is_one_line(text: str, said: str) -> None:
    with pytest.raises(BadModelFile) as caught:
        parse_triton_config(text, "m")
    (line,) = str(caught.value).splitlines()
    assert line.startswith("config.pbtxt: ")
    assert said in line
