"""What must be there before anything is forked: a device, packages, and ports that can be had."""

import contextlib
import importlib.util
import socket
from collections.abc import Iterator

from service.machine import cuda_devices
from service.settings import Settings

_BACKLOG = 2048


class StartError(Exception):
    """The service cannot start. The message says what stands in the way."""


def require_device(settings: Settings) -> None:
    """Raises StartError where a GPU is asked for by name and there is none: no model would ever be ready."""
    if settings.engine.device in ("cuda", "tensorrt") and not cuda_devices():
        raise StartError(
            f"--engine.device {settings.engine.device}: no CUDA device here, or the package without CUDA is installed; "
            "needed are a driver's device and pip install 'shoal[gpu]' in place of 'shoal[cpu]'"
        )


def listen(host: str, port: int, n: int, flag: str = "--port") -> list[socket.socket]:
    """`n` sockets on one port, between which the kernel spreads connections. Raises StartError."""
    listeners: list[socket.socket] = []
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        for _ in range(n):
            listener = socket.socket(family, kind, protocol)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if n > 1:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address if listener is listeners[0] else listeners[0].getsockname())
        for listener in listeners:
            listener.listen(_BACKLOG)
    except OSError as error:
        raise StartError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with {flag}"
        ) from error
    return listeners


def listen_for_admin(settings: Settings, n: int) -> tuple[list[socket.socket], Settings]:
    """As `listen`, or none; and the settings with the port that `admin.port` turned out to be. Raises StartError."""
    admin = settings.admin
    if admin.port is None:
        return [], settings
    listeners = listen(admin.host, admin.port, n, "--admin.port")
    admin = admin.model_copy(update={"port": listeners[0].getsockname()[1]})
    return listeners, settings.model_copy(update={"admin": admin})


def require_grpc(settings: Settings) -> None:
    """Raises StartError where a port for gRPC is given and what serves it is not installed."""
    if settings.server.grpc_port is None:
        return
    for name in ("grpc", "google", "google.protobuf"):
        if importlib.util.find_spec(name) is None:
            raise StartError(
                f"--server.grpc-port {settings.server.grpc_port}: the extra `grpc` is not installed; pip install "
                "'shoal[cpu,grpc]', or 'shoal[gpu,grpc]'"
            )


@contextlib.contextmanager
def settled_grpc_port(settings: Settings) -> Iterator[Settings]:
    """The settings with a port that all frontends can share, which is kept until the end. Raises StartError.

    gRPC binds for itself, in each frontend. The port is first bound alone, which fails where anybody listens, even one
    who would share; then held by a socket that shares it and never listens.
    """
    host, port = settings.server.host, settings.server.grpc_port
    if port is None:
        yield settings
        return
    with contextlib.ExitStack() as stack:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind(address)
                address = alone.getsockname()
            held = stack.enter_context(socket.socket(family, kind, protocol))
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                held.setsockopt(socket.SOL_SOCKET, option, 1)
            held.bind(address)
        except OSError as error:
            raise StartError(
                f"cannot listen on {host} port {port}: {error.strerror}; choose another with --server.grpc-port"
            ) from error
        server = settings.server.model_copy(update={"grpc_port": address[1]})
        yield settings.model_copy(update={"server": server})
