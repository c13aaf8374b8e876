"""Every error a client can see, whose fault it is, and its HTTP status.

ServiceError
├── RequestError                 the client's fault; the message names the field and what was expected
│   ├── MalformedRequest     400     broken JSON, truncated body, bad header
│   ├── MalformedImage       400     recognised as an image, but cannot be decoded
│   ├── WrongTensor          400     name, shape, datatype or number of values (the protocol asks for 400, never 422)
│   ├── LoadRefused          400     a version that may not serve: the message is the reason in the index
│   ├── Unauthorized         401     WWW-Authenticate; the admin API without its key
│   ├── ModelControlOff      403     loading and unloading by request is not switched on
│   ├── UnknownModel         404
│   ├── NotFound             404     no such path
│   ├── MethodNotAllowed     405     Allow
│   ├── NotAcceptable        406     Accept names no form that is offered
│   ├── VersionInUse         409     an alias, a split or a shadow names it
│   ├── BodyTimeout          408     the body did not arrive in time
│   ├── BodyTooLarge         413
│   └── UnsupportedMediaType 415
├── Unavailable              503     Retry-After; nothing was run, safe to retry
│   ├── Overloaded               no free slot
│   ├── ModelNotReady            known, but loading or refused; the message gives the reason
│   ├── Draining                 the server is going away; Connection: close
│   └── ControllerGone           nobody there to obey; another is started
├── EngineDied               503     in-flight items were lost with their engine; safe to retry
├── NotSupported             501     a part of the protocol that this server does not have
├── DeadlineExceeded         504     work may have been done
└── EngineError              500     our fault: logged with its traceback, the body says only that and the request id

The status lives on the class. tests/unit/test_errors.py checks that every leaf has one and is in docs/http-api.md.
"""

from collections.abc import Mapping
from typing import ClassVar


class ServiceError(Exception):
    status: ClassVar[int] = 500
    headers: Mapping[str, str] = {}


class RequestError(ServiceError):
    status = 400


class MalformedRequest(RequestError):
    status = 400


class MalformedImage(RequestError):
    status = 400


class WrongTensor(RequestError):
    status = 400


class LoadRefused(RequestError):
    status = 400


class Unauthorized(RequestError):
    status = 401
    headers: Mapping[str, str] = {"www-authenticate": "Bearer"}


class ModelControlOff(RequestError):
    status = 403


class UnknownModel(RequestError):
    status = 404


class NotFound(RequestError):
    status = 404


class MethodNotAllowed(RequestError):
    status = 405

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"{method} is not allowed here; allowed: {allowed}")
        self.headers = {"allow": allowed}


class NotAcceptable(RequestError):
    status = 406


class VersionInUse(RequestError):
    status = 409


class BodyTimeout(RequestError):
    status = 408
    headers: Mapping[str, str] = {"connection": "close"}


class BodyTooLarge(RequestError):
    status = 413
    headers: Mapping[str, str] = {"connection": "close"}  # the rest of the body is not read


class UnsupportedMediaType(RequestError):
    status = 415


class Unavailable(ServiceError):
    status = 503
    headers: Mapping[str, str] = {"retry-after": "1"}


class Overloaded(Unavailable):
    pass


class ModelNotReady(Unavailable):
    pass


class Draining(Unavailable):
    headers: Mapping[str, str] = {"retry-after": "1", "connection": "close"}


class ControllerGone(Unavailable):
    pass


class EngineDied(ServiceError):
    status = 503
    headers: Mapping[str, str] = {"retry-after": "1"}


class NotSupported(ServiceError):
    status = 501


class DeadlineExceeded(ServiceError):
    status = 504


class EngineError(ServiceError):
    status = 500
