"""Triton's `config.pbtxt`, beside a model's versions: what of it means something here, and why it refuses a model.

It is protobuf's text format, so protobuf reads it (onnxruntime brings it), by the fields below alone: their numbers are
of no matter to text, and messages made by protoc would ask for a newer protobuf than onnxruntime does. Whatever else is
set is ignored and told by name. Unlike `model.toml` it was written for another server, so a value beyond our bounds is
brought within them. Meaning of the fields: Triton's model_config.proto; the page: docs/repository.md.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any, get_args  # Any: messages of a class that is made when the program runs

from annotated_types import Le
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from models.manifest import MODEL_FILE
from service.lifecycle.messages import Overrides
from service.lifecycle.model_file import TRITON_FILE, BadModelFile, ModelFile
from service.lifecycle.version_policy import All, Latest, Policy, Specific
from service.settings import BatchSize, Count, QueueItems

_MESSAGES = {
    "ModelConfig": {
        "name": "string",
        "platform": "string",
        "backend": "string",
        "default_model_filename": "string",
        "max_batch_size": "int32",
        "version_policy": "VersionPolicy",
        "dynamic_batching": "DynamicBatching",
        "instance_group": "repeated InstanceGroup",
    },
    "VersionPolicy": {"latest": "Latest", "specific": "Specific", "all": "All"},
    "Latest": {"num_versions": "uint32"},
    "Specific": {"versions": "repeated int64"},
    "All": {},
    "DynamicBatching": {"max_queue_delay_microseconds": "uint64", "default_queue_policy": "QueuePolicy"},
    "QueuePolicy": {
        "timeout_action": "TimeoutAction",
        "default_timeout_microseconds": "uint64",
        "max_queue_size": "uint32",
    },
    "InstanceGroup": {"count": "int32"},
}
_ENUMS = {"TimeoutAction": ("REJECT", "DELAY")}
_OPENING, _CLOSING = ("{", "<", "["), ("}", ">", "]")


def parse_triton_config(text: str, name: str) -> ModelFile:
    """`name`: of the model's folder. Raises BadModelFile."""
    config = _message_class()()
    try:
        read, ignored = _part_that_is_read(text)
        text_format.Parse(read, config)
    except text_format.ParseError as error:
        reason = re.sub(r"^[\d: ]+", "", " ".join(str(error).split()))  # the place in what is left of it
        raise BadModelFile(f"{TRITON_FILE}: {reason}") from error
    _refuse_what_is_not_ours(config, name)
    return ModelFile(_policy(config), _overrides(config), None, ignored)


def _refuse_what_is_not_ours(config: Any, name: str) -> None:
    for field, expected in (
        ("name", name),
        ("platform", "onnxruntime_onnx"),
        ("backend", "onnxruntime"),
        ("default_model_filename", MODEL_FILE),
    ):
        if (value := getattr(config, field)) not in ("", expected):
            raise BadModelFile(f"{TRITON_FILE}: {field}: {value!r} is not served here, only {expected!r}")
    if config.max_batch_size < 0:
        raise BadModelFile(f"{TRITON_FILE}: max_batch_size: expected a number from 0, not {config.max_batch_size}")
    for version in config.version_policy.specific.versions:
        if version < 1:
            raise BadModelFile(
                f"{TRITON_FILE}: version_policy.specific.versions: expected numbers from 1, not {version}"
            )


def _policy(config: Any) -> Policy | None:
    policy = config.version_policy
    if policy.HasField("all"):
        return All()
    if policy.HasField("specific"):
        return Specific(tuple(str(version) for version in policy.specific.versions))
    return Latest(max(1, policy.latest.num_versions)) if policy.HasField("latest") else None


def _overrides(config: Any) -> Overrides:
    """In a queue's policy 0 is no limit; as `max_batch_size` it is no batching."""
    batching = config.dynamic_batching
    queue = batching.default_queue_policy
    rejects = queue.timeout_action == _ENUMS["TimeoutAction"].index("REJECT")
    instances = sum(max(1, group.count) for group in config.instance_group)
    batched = config.HasField("max_batch_size")
    delayed = batching.HasField("max_queue_delay_microseconds")
    return Overrides(
        max_batch_size=min(max(1, config.max_batch_size), _most(BatchSize)) if batched else None,
        max_queue_delay_us=batching.max_queue_delay_microseconds if delayed else None,
        max_queue_items=min(queue.max_queue_size, _most(QueueItems)) or None,
        instances=min(instances, _most(Count)) or None,
        timeout_ms=(-(-queue.default_timeout_microseconds // 1000) or None) if rejects else None,
    )


def _most(bounded: Any) -> int:
    """The largest number that a bounded type of service/settings.py takes."""
    limits = [limit.le for limit in get_args(bounded)[1].metadata if isinstance(limit, Le)]
    assert isinstance(limits[0], int)
    return limits[0]


def _part_that_is_read(text: str) -> tuple[str, tuple[str, ...]]:
    """The text without the fields that are not in `_MESSAGES`, one field a line, and the paths of those, each once.

    A field's name is what a colon or a bracket follows; it is left out up to the next one beside it. (protobuf's own
    `allow_unknown_field` does not know `input [ { ... } ]`, which is how most of these files have it.)
    """
    tokens = text_format.Tokenizer(text.splitlines())
    known = set(_paths("ModelConfig", ""))
    kept: list[str] = []
    ignored: dict[str, None] = {}
    opened: list[str] = []  # for each bracket that is open the field it belongs to, "" for a list's
    name = ""
    left_out_at = None  # how many brackets are open around the field that is left out
    while not tokens.AtEnd():
        part = tokens.token
        tokens.NextToken()
        if part in _CLOSING and opened:
            name = opened.pop() or name
            if left_out_at is not None and len(opened) < left_out_at:
                left_out_at = None
        elif part in _OPENING:
            opened.append("" if part == "[" else name)
        elif part.isidentifier() and tokens.token in (":", *_OPENING) and left_out_at in (None, len(opened)):
            name = part
            path = ".".join(each for each in (*opened, name) if each)
            left_out_at = None if path in known else len(opened)
            if left_out_at is not None:
                ignored[path] = None
            kept.append("\n")
        if left_out_at is None:
            kept.append(part)
    if opened:
        raise BadModelFile(f"{TRITON_FILE}: it ends before a bracket of {name or opened[-1]} is closed")
    return " ".join(kept), tuple(ignored)


def _paths(message: str, prefix: str) -> Iterator[str]:
    for name, kind in _MESSAGES[message].items():
        yield prefix + name
        if (part := kind.removeprefix("repeated ")) in _MESSAGES:
            yield from _paths(part, f"{prefix}{name}.")


@functools.cache
def _message_class() -> Any:
    """The class of ModelConfig, in a pool of its own: the process may know another of that name."""
    file = descriptor_pb2.FileDescriptorProto(name="triton_config.proto")
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), start=1):
            _describe(message.field.add(name=field, number=number), kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("ModelConfig"))


def _describe(field: Any, kind: str) -> None:
    part = kind.removeprefix("repeated ")
    field.label = field.LABEL_REPEATED if part != kind else field.LABEL_OPTIONAL
    if part in _MESSAGES or part in _ENUMS:
        field.type = field.TYPE_MESSAGE if part in _MESSAGES else field.TYPE_ENUM
        field.type_name = part
    else:
        field.type = getattr(field, f"TYPE_{part.upper()}")
