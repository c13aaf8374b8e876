"""What every answer has in the document: the body of an error, and the headers that each status carries.

A handler of Litestar states its errors with `responses=errors(UnknownModel, ...)`; the headers, and 405, which every
path answers, are put in by `complete`, so no operation can forget them.
"""

from collections.abc import Iterator
from http import HTTPStatus

from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import (
    OpenAPI,
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    PathItem,
    Reference,
    Schema,
)
from litestar.openapi.spec.enums import OpenAPIType
from msgspec import Struct

from service.errors import MethodNotAllowed, ServiceError

_WORDS = {
    400: "The request does not fit; the message names the field and what was expected.",
    401: "The key of the admin API is missing or wrong; the message says which.",
    403: "Not switched on in this server.",
    404: "No such model or version; the message lists those that answer.",
    405: "Another method; `Allow` says which are answered here.",
    406: "`Accept` names no form that is offered; the message lists them.",
    408: "The body did not arrive in time.",
    409: "An alias, a split or a shadow names the version; the message says which.",
    413: "The body is longer than the limit.",
    415: "The body is of a type the model does not take.",
    500: "The model failed on this input.",
    501: "A part of the protocol that this server does not have; the message says which.",
    503: "Overloaded, loading or draining: safe to send again after `Retry-After` seconds.",
    504: "The deadline passed before there was an answer.",
}
_STRING = Schema(type=OpenAPIType.STRING)
_HEADERS = {
    "X-Request-ID": OpenAPIHeader(
        schema=Schema(type=OpenAPIType.STRING, min_length=1, max_length=128),
        required=True,
        description="The request's own, where that is printable ASCII, else a new one; the server's log names it.",
    ),
    "Server-Timing": OpenAPIHeader(
        schema=_STRING,
        required=True,
        description="Milliseconds: `decode`, `queue`, `compute` and `total` of a prediction, `total` of anything else.",
    ),
    "Retry-After": OpenAPIHeader(
        schema=Schema(type=OpenAPIType.INTEGER, minimum=0), required=True, description="Seconds."
    ),
    "WWW-Authenticate": OpenAPIHeader(schema=_STRING, required=True, description="`Bearer`."),
    "Allow": OpenAPIHeader(schema=_STRING, required=True, description="The methods that this path answers."),
}
BEARER: list[dict[str, list[str]]] = [{"key": []}]
"""The `security` of an operation that asks for the key of the admin API."""
_ALWAYS = ("X-Request-ID", "Server-Timing")
_OF_STATUS = {"401": ("WWW-Authenticate",), "405": ("Allow",), "503": ("Retry-After",)}


class Error(Struct):
    """The body of every error."""

    error: str


def errors(*kinds: type[ServiceError]) -> dict[int, ResponseSpec]:
    """What a handler that raises these puts into its `responses`."""
    return {kind.status: ResponseSpec(Error, False, _words(kind.status)) for kind in kinds}


def error_responses(*kinds: type[ServiceError]) -> dict[str, OpenAPIResponse | Reference]:
    """The same for an operation that is written by hand."""
    return {str(status): _error_response(status) for status in sorted({kind.status for kind in kinds})}


def complete(document: OpenAPI) -> None:
    """Put in what all operations have in common."""
    document.components.headers = dict(_HEADERS)
    document.components.schemas["Error"] = Schema(
        type=OpenAPIType.OBJECT, title="Error", required=["error"], properties={"error": _STRING}
    )
    for item in (document.paths or {}).values():
        for operation in operations_of(item):
            _complete(operation)


def operations_of(item: PathItem) -> Iterator[Operation]:
    for operation in (item.get, item.put, item.post, item.delete, item.patch):
        if operation is not None:
            yield operation


def _complete(operation: Operation) -> None:
    responses = dict(operation.responses or {})
    if (refusal := responses.pop("400", None)) is not None and _can_misfit(operation):
        responses["400"] = refusal if _is_error(refusal) else _error_response(400)
    responses.setdefault("405", _error_response(MethodNotAllowed.status))
    for status, response in responses.items():
        assert isinstance(response, OpenAPIResponse), "bug: a response that is kept elsewhere cannot get its headers"
        names = _ALWAYS + _OF_STATUS.get(status, ())
        response.headers = dict(response.headers or {}) | {
            name: Reference(ref=f"#/components/headers/{name}") for name in names
        }
    operation.responses = dict(sorted(responses.items()))


def _can_misfit(operation: Operation) -> bool:
    """Text in a path always fits: what no model is called is 404. Litestar says 400 of any parameter."""
    parameters = operation.parameters or []
    return operation.request_body is not None or any(getattr(given, "param_in", "") != "path" for given in parameters)


def _is_error(response: OpenAPIResponse | Reference) -> bool:
    """Whether it is ours; Litestar describes its own body where it may refuse a parameter."""
    content = response.content if isinstance(response, OpenAPIResponse) else None
    return bool(content) and any(isinstance(media.schema, Reference) for media in (content or {}).values())


def _error_response(status: int) -> OpenAPIResponse:
    schema = Reference(ref="#/components/schemas/Error")
    return OpenAPIResponse(description=_words(status), content={"application/json": OpenAPIMediaType(schema=schema)})


def _words(status: int) -> str:
    return _WORDS.get(status, HTTPStatus(status).phrase)
