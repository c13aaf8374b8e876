"""Who may use the admin API: the ports that offer it, and its key.

a port that does not offer it   as if it were not there, 404; loading and unloading, which are the protocol's, 403
a key is set                    whoever sends it as `Authorization: Bearer`
no key is set                   whoever reaches the port, which is open to this machine alone; but for a page of
                                another site in a browser here, which says by `Origin` where it is from
"""

import hashlib
import hmac
import logging
from typing import Any
from urllib.parse import urlsplit

from litestar.connection import ASGIConnection
from litestar.exceptions import NotFoundException
from litestar.handlers import BaseRouteHandler
from pydantic import SecretStr

from service.errors import ModelControlOff, Unauthorized
from service.settings import Settings
from service.settings_lifecycle import Admin

log = logging.getLogger(__name__)

_LOOPBACK = ("localhost", "127.0.0.1", "::1")

Server = tuple[str, int | None] | None
"""The local address of a connection, as ASGI has it."""


class Access:
    """Of one frontend."""

    def __init__(self, admin: Admin) -> None:
        self.public = admin.public
        self._port = admin.port
        self._digest = None if admin.secret is None else _digest(admin.secret)

    def offered(self, server: Server) -> bool:
        """Whether a connection to this address has the admin API."""
        return self.public or (self._port is not None and server is not None and server[1] == self._port)

    def check(self, authorization: str | None, origin: str | None, whence: str) -> None:
        """Raises Unauthorized, which is logged; `whence` says for the log what was asked, and by whom."""
        try:
            self._check(authorization, origin)
        except Unauthorized as error:
            log.warning("admin: refused %s: %s", whence, error)
            raise

    def _check(self, authorization: str | None, origin: str | None) -> None:
        if self._digest is None:
            if origin is not None and not self._is_own(origin):
                raise Unauthorized("the page of another site may not ask this without a key; set admin.key_file")
            return
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized("the admin API needs its key; expected the header Authorization: Bearer <key>")
        # Digests are of one length, so that the time tells neither the key's length nor how much of it fits.
        if not hmac.compare_digest(_digest(SecretStr(key.strip())), self._digest):
            raise Unauthorized("this is not the key of the admin API")

    def _is_own(self, origin: str) -> bool:
        try:
            page = urlsplit(origin)
            place = page.hostname, page.port
        except ValueError:
            return False
        return place in [(host, self._port) for host in _LOOPBACK]


def admin_guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Raises Unauthorized, and NotFoundException where the port does not offer what is asked."""
    access: Access = connection.app.state.access
    if not access.offered(connection.scope["server"]):
        raise NotFoundException
    _check(access, connection)


def control_guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Of loading and unloading in the protocol's paths. Raises ModelControlOff, Unauthorized."""
    access: Access = connection.app.state.access
    model, verb = connection.path_params["model_name"], connection.scope["path"].rstrip("/").rpartition("/")[2]
    require_control(connection.app.state.settings, access.offered(connection.scope["server"]), verb, model)
    _check(access, connection)


def require_control(settings: Settings, offered: bool, verb: str, model: str) -> None:
    """Raises ModelControlOff where models are not loaded and unloaded by request, or not where this is asked."""
    mode, cannot = settings.control.mode, f"cannot {verb} {model!r}: "
    if mode == "none":
        raise ModelControlOff(
            f"{cannot}model control is 'none', so the models are those that were there at the start; start the service "
            "with --control.mode explicit"
        )
    if mode == "poll":
        raise ModelControlOff(
            f"{cannot}model control is 'poll', so the models are those of the repository, which is watched: add or "
            "remove a version there, or start the service with --control.mode explicit"
        )
    if not offered:
        raise ModelControlOff(
            f"{cannot}this port does not offer it; ask on the port of --admin.port, or set admin.public and a key"
        )


def _check(access: Access, connection: ASGIConnection[Any, Any, Any, Any]) -> None:
    headers, client = connection.headers, connection.client
    whence = f"{connection.scope['path']!r} from {client.host if client else 'an unknown address'}"
    access.check(headers.get("authorization"), headers.get("origin"), whence)


def _digest(key: SecretStr) -> bytes:
    return hashlib.sha256(key.get_secret_value().encode()).digest()
