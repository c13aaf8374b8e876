"""Starts the engine and the frontend, watches both, and drains on SIGTERM.

Here the engine's threads and the frontend's event loop share one process: the same arena, link and loops as between
processes, on a socket pair (docs/adr/0005).

    SIGTERM ─► leaving: ready is false, requests are answered as before, for `drain_delay_s`
            ─► closing: no new connections, new predictions refused, those in flight finished, for `drain_timeout_s`
            ─► exit 0.   A second signal skips what is left of the delay, a third the waiting.
    engine gone ─► in-flight requests are answered 503, exit 1
"""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
import uvloop

from models.manifest import EXAMPLE_FILE, EXAMPLE_ROW_FILE
from service.batching.client import Client
from service.batching.link import link_pair
from service.engine.loop import Engine
from service.engine.repository import ModelSettings
from service.engine.session import default_device
from service.engine.tune import available_cores
from service.frontend.app import Frontend
from service.frontend.protocol import Protocol
from service.log import configure_logging
from service.metrics import RequestMetrics
from service.settings import Settings, settings_by_hand

log = logging.getLogger(__name__)

_BACKLOG = 2048


class StartError(Exception):
    """The service cannot start. The message says what stands in the way."""


def serve(settings: Settings, say: Callable[[str], None]) -> int:
    """Run until a signal ends it; the exit status. `say` prints where to look. Raises StartError."""
    configure_logging(settings.logging)
    if not settings.repository.is_dir():
        raise StartError(f"model repository {settings.repository} is not a folder; choose one with --repository")
    listener = _listen(settings.server.host, settings.server.port)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, listener, say))


def model_settings(settings: Settings) -> ModelSettings:
    return ModelSettings(
        device=default_device() if settings.engine.device == "auto" else settings.engine.device,
        cores=settings.engine.cores or available_cores(),
        max_batch_size=settings.batching.max_batch_size,
        max_queue_items=settings.batching.max_queue_items,
        instances=settings.engine.instances,
        threads=settings.engine.threads,
        tune_budget_s=settings.engine.tune_budget_s,
        by_hand=settings_by_hand(settings),
    )


class _Server(uvicorn.Server):
    """uvicorn without its signal handling: the supervisor decides when it ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(settings: Settings, listener: socket.socket, say: Callable[[str], None]) -> int:
    frontend_link, engine_link = link_pair()
    metrics = RequestMetrics()
    client = metrics.client = Client(frontend_link, metrics)
    frontend = Frontend(client, settings, metrics)
    engine = Engine(settings.repository, model_settings(settings), settings.batching.max_queue_delay_us, [engine_link])
    server = _Server(
        uvicorn.Config(
            frontend,
            http=Protocol,
            ws="none",
            lifespan="off",
            proxy_headers=False,
            access_log=False,
            log_config=None,
            server_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=settings.server.drain_timeout_s,
        )
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    _drain_on_signals(server, frontend, settings.server.drain_delay_s)
    engine.start()
    watchers = [
        asyncio.create_task(_announce(client, settings, listener.getsockname()[1], say)),
        asyncio.create_task(_end_with_engine(client, server)),
    ]
    try:
        await server.serve(sockets=[listener])
    finally:
        for watcher in watchers:
            watcher.cancel()
        died = client.lost.is_set()
        client.close()
        await asyncio.to_thread(engine.stop)
    return 1 if died else 0


def _drain_on_signals(server: uvicorn.Server, frontend: Frontend, delay_s: float) -> None:
    loop = asyncio.get_running_loop()

    def close() -> None:
        frontend.health.state = "closing"
        server.should_exit = True

    def on_signal() -> None:
        match frontend.health.state:
            case "serving":
                frontend.health.state = "leaving"
                log.info("draining: not ready, still answering for %g s", delay_s)
                loop.call_later(delay_s, close)
            case "leaving":
                close()
            case "closing":
                server.force_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)


async def _announce(client: Client, settings: Settings, port: int, say: Callable[[str], None]) -> None:
    """Once models are loaded, say where to look; and keep the garbage collector away from what lives for ever."""
    await client.loaded.wait()
    # A full collection walks everything that was ever imported; frozen, it is not walked again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    for line in _where_to_look(client, settings, port):
        say(line)


async def _end_with_engine(client: Client, server: uvicorn.Server) -> None:
    await client.lost.wait()
    log.error("the engine is gone; the process ends")
    server.should_exit = True


def _where_to_look(client: Client, settings: Settings, port: int) -> Iterator[str]:
    host = "localhost" if settings.server.host in ("0.0.0.0", "127.0.0.1", "::") else settings.server.host  # noqa: S104
    host = f"[{host}]" if ":" in host else host
    url = f"http://{host}:{port}"
    yield f"Shoal serves on {url}"
    for model in client.models():
        facts = model.facts
        yield (
            f"  model     {facts.name} version {facts.version}: {facts.instances} instances x {facts.threads} threads, "
            f"batches up to {facts.max_batch_size}"
        )
    for (name, version), reason in client.failures.items():
        yield f"  refused   {name} version {version}: {reason}"
    yield f"  API       {url}/docs"
    yield f"  metrics   {url}/metrics"
    if client.models():
        yield f"  try       {_curl(client, settings.repository, url)}"
    elif client.failures:
        yield "  no model answers"
    else:
        yield f"  no model answers; put one at {settings.repository}/<name>/1/model.onnx"


def _curl(client: Client, repository: Path, url: str) -> str:
    """A line that works as it stands: an example image or row where a model brings one, else its metadata."""
    for model in client.models():
        facts = model.facts
        folder = repository / facts.name / facts.version
        if (folder / EXAMPLE_FILE).is_file():
            return f"curl --data-binary @{folder / EXAMPLE_FILE} {url}/predict/{facts.name}"
        if (folder / EXAMPLE_ROW_FILE).is_file():
            json = "-H 'Content-Type: application/json'"
            return f"curl {json} -d @{folder / EXAMPLE_ROW_FILE} {url}/predict/{facts.name}"
    return f"curl {url}/v2/models/{client.models()[0].facts.name}"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise StartError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port"
        ) from error
    return listener
