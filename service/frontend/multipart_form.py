"""multipart/form-data: the parts of a body that is whole, each an item. Sources: RFC 7578, RFC 2046 §5.1.1."""

from typing import NamedTuple

from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header

from service.errors import MalformedRequest, WrongTensor

_MOST_HEADER_BYTES = 4096  # of one header of a part
_MOST_NAME_CHARACTERS = 80  # of what the client calls a part, in an error


class Part(NamedTuple):
    """`where`: its place, from 0, and its file or field name; what an error calls it."""

    where: str
    media_type: bytes
    body: bytes


def read_parts(content_type: bytes, body: bytes, most: int) -> list[Part]:
    """In the order of the body, one to `most`. Raises MalformedRequest, WrongTensor where there are more or none."""
    boundary = parse_options_header(content_type.decode("latin-1"))[1].get("boundary", "")
    if not boundary:
        raise MalformedRequest("Content-Type multipart/form-data has no boundary; expected boundary=... as in the body")
    try:
        with PushMultipartParser(
            boundary, len(body), max_header_size=_MOST_HEADER_BYTES, max_segment_count=most
        ) as parser:
            parts = _collect(parser, body)
    except ParserLimitReached as error:
        raise WrongTensor(f"the form: {error}; expected 1 to {most} parts with short headers") from error
    except MultipartError as error:
        raise MalformedRequest(f"the body is no multipart/form-data: {error}") from error
    if not parts:
        raise WrongTensor("the form has no part; expected at least one, each an item")
    return parts


def _collect(parser: PushMultipartParser, body: bytes) -> list[Part]:
    parts: list[Part] = []
    segment: MultipartSegment | None = None
    chunks: list[bytes] = []
    for event in parser.parse(body):
        if isinstance(event, MultipartSegment):
            segment, chunks = event, []
        elif event is not None:
            chunks.append(bytes(event))
        else:
            assert segment is not None, "bug: a part ends that did not begin"
            parts.append(Part(_where(segment, len(parts)), _media_type(segment), b"".join(chunks)))
    return parts


def _where(segment: MultipartSegment, i: int) -> str:
    name = segment.filename or segment.name or ""
    return f"parts[{i}] ({name[:_MOST_NAME_CHARACTERS]!r})"


def _media_type(segment: MultipartSegment) -> bytes:
    return (segment.content_type or "").encode("latin-1", "replace")
