"""A server under measurement, ours or a peer's: started, asked until it answers, stopped with all it started."""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from msgspec import Struct

from loadtests import processes

_START_S = 120.0
_STOP_S = 0.5
_KILL_S = 5.0
_SETTLE_S = 30.0
_POLL_S = 0.005
_QUIET_S = 0.1
_QUIET_CPU_S = 0.015  # CPU times come in hundredths of a second; an idle server uses less than one a poll


class BenchError(Exception):
    """The measurement cannot go on. The message is for the person who started it."""


class Server(Struct, frozen=True):
    """`first_answer_s` is from the start of the process to its first right answer."""

    pid: int
    port: int
    first_answer_s: float

    def cpu_seconds(self) -> float:
        return processes.cpu_seconds(self.pid)

    def settle(self) -> None:
        """Wait until it computes nothing: a client that ends leaves a request on each of its connections."""
        give_up_at = time.monotonic() + _SETTLE_S
        before = self.cpu_seconds()
        while True:
            time.sleep(_QUIET_S)
            after = self.cpu_seconds()
            if after - before < _QUIET_CPU_S:
                return
            if time.monotonic() > give_up_at:
                raise BenchError(f"the server still computes {_SETTLE_S:.0f} s after the last request")
            before = after


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], probe: Callable[[int], bool], port: int
) -> Iterator[Server]:
    """The server of `command`, once `probe(port)` is true.

    probe         asks for a prediction; false while there is none; raises BenchError at a wrong one
    environment   added to ours, from which our own settings are taken
    Raises        BenchError with the end of what it printed, where it ends or does not answer in time
    """
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    with tempfile.TemporaryDirectory() as scratch, (Path(scratch) / "said").open("w+") as said:
        added = {**environment, "TMPDIR": scratch}  # what a server leaves behind when it is killed goes too
        begun = time.monotonic()
        # A session of its own: what it starts can be told apart, and ended, even if its parent is gone.
        process = subprocess.Popen(
            command, env={**ours, **added}, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait(process, said, lambda: probe(port), begun + _START_S)
            yield Server(process.pid, port, time.monotonic() - begun)
        finally:
            _stop(process)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _wait(process: "subprocess.Popen[bytes]", said: IO[str], answers: Callable[[], bool], give_up_at: float) -> None:
    while not answers():
        if process.poll() is not None or time.monotonic() > give_up_at:
            said.seek(0)
            tail = said.read()[-2000:].strip()
            why = f"exit status {process.returncode}" if process.returncode is not None else f"not in {_START_S:.0f} s"
            raise BenchError(f"the server did not start ({why}):\n{tail or 'it printed nothing'}")
        time.sleep(_POLL_S)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """A moment to leave politely, then everything in its group is killed: some servers take seconds to leave."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    give_up_at = time.monotonic() + _KILL_S
    while processes.pids(process.pid) and time.monotonic() < give_up_at:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(_POLL_S)
    process.wait()
