"""A repository that is a URL is followed while the service runs: what is new there is brought, tried and served."""

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from service.errors import UnknownModel
from service.lifecycle.messages import LoadModel
from service.lifecycle.remote_index import write_index
from service.lifecycle.remote_start import settled_repository
from service.settings import Settings
from tests.lifecycle.conftest import Start, write_version


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and where it is served."""
    folder = tmp_path / "remote"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def publish(folder: Path, version: int, factor: int) -> None:
    write_version(folder, "times", version, factor)
    write_index(folder)


@pytest.mark.parametrize("mode", ["poll", "explicit"])
async def test_what_is_new_at_the_remote_is_brought_and_served(
    start: Start, remote: tuple[Path, str], tmp_path: Path, mode: str
) -> None:
    folder, url = remote
    publish(folder, 1, 10)
    sections = {
        "remote": {"cache_dir": tmp_path / "cache"},
        "control": {"mode": mode, "settle_s": 0.2, "rescan_s": 0.5},
    }
    settled_repository(Settings(repository=url, **sections))  # as `serve` does before anything is forked
    async with start(url, **sections) as lifecycle:
        assert await lifecycle.predict("times", 3) == 30
        publish(folder, 2, 100)
        if mode == "explicit":
            await lifecycle.ask(LoadModel("times"))
        await lifecycle.until(lambda: lifecycle.engines.versions("times") == ["2"], "the new version")
        assert await lifecycle.predict("times", 3) == 300
        if mode == "explicit":
            with pytest.raises(UnknownModel, match="no version '9'"):
                await lifecycle.ask(LoadModel("times", "9"))
