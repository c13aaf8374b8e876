"""`python -m service.settings_page` prints docs/configuration.md, so that the page cannot differ from the settings."""

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from service.settings import Settings, environment_name, flag_name

_HEAD = """\
# Configuration

<!-- Written by `make docs` from service/settings.py. -->

Every setting has a default that is good for most; `make serve` needs none. Sources, strongest first:

1. a flag: `python -m service serve --batching.max-batch-size 32`
2. the environment: `SHOAL_BATCHING__MAX_BATCH_SIZE=32`
3. a TOML file named by `--config` or `SHOAL_CONFIG`, with a table for each section: `[batching]`, `max_batch_size = 32`

A name nobody knows, or a value that does not fit, stops the start with a message that names it.
"""


def page() -> str:
    return "\n".join([_HEAD, *_section("General", "", Settings, ()), *_sections()]).rstrip() + "\n"


def _sections() -> Iterator[str]:
    for name, info in Settings.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _section(f"`{name}`", (info.annotation.__doc__ or "").strip(), info.annotation, (name,))


def _section(title: str, text: str, model: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    yield f"## {title}\n"
    if text:
        yield f"{text}\n"
    yield "| flag | environment | fits | default | meaning |\n|---|---|---|---|---|"
    for name, info in model.model_fields.items():
        if not (isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)):
            names = f"`{flag_name((*path, name))}` | `{environment_name((*path, name))}`"
            yield f"| {names} | {_fits(info)} | {_default(info.default)} | {info.description} |"
    yield ""


def _fits(info: FieldInfo) -> str:
    """The type in words, with its bounds."""
    return " ".join([_type_text(info.annotation), *_bounds(info)])


def _bounds(info: FieldInfo) -> Iterator[str]:
    for limit in info.metadata:
        match limit:
            case Ge(ge=low):
                yield f"from {low}"
            case Gt(gt=low):
                yield f"above {low}"
            case Le(le=high):
                yield f"up to {high}"


def _type_text(annotation: Any) -> str:  # Any: whatever a field may be annotated with
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) is Annotated:
        inner, info = typing.get_args(annotation)
        return " ".join([_type_text(inner), *_bounds(info)])
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return " or ".join(_type_text(part) for part in typing.get_args(annotation) if part is not types.NoneType)
    return {
        int: "whole number",
        float: "number",
        str: "text",
        Path: "path",
        bool: "`true`, `false`",
        SecretStr: "text",
    }[annotation]


_WORDS = {
    int: "whole number",
    float: "number",
    str: "text",
    SecretStr: "text",
    Path: "path",
    bool: "`true`, `false`",
}


def _default(default: object) -> str:
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return "none" if default is None else f"`{default}`"


if __name__ == "__main__":
    print(page(), end="")
