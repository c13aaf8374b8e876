"""Errors as gRPC has them: a status code for each HTTP status of `service/errors.py`, and our message."""

from collections.abc import Mapping
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from service.errors import MalformedRequest, ServiceError

CODES: Mapping[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    406: grpc.StatusCode.INVALID_ARGUMENT,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

Message = TypeVar("Message")


def read(kind: type[Message], data: bytes) -> Message:
    """The message. Raises MalformedRequest: left to itself, grpcio would call that our fault."""
    message: Any = kind()  # Any: protobuf has no types
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise MalformedRequest(f"{len(data)} bytes are no {kind.__name__}; expected a message of it") from error
    return message  # type: ignore[no-any-return]


async def abort(context: grpc.aio.ServicerContext, error: ServiceError) -> None:
    """End the call with the error: raises grpcio's AbortError."""
    await context.abort(CODES[error.status], str(error))
