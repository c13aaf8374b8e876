"""wrk as the client: a closed loop of connections that sends another body with every request, and what it reports.

wrk costs a few microseconds a request, less than any client in Python, but it shares the machine with the server, so
its own CPU time is reported too. Two habits of wrk to know when reading its percentiles: each connection has one
request in flight (the offered load follows the answers), and where an answer took more than twice a connection's mean,
wrk adds the samples that a steady sender would have seen.
"""

import json
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from loadtests.server import BenchError

_MARK = "shoal-bench "

# Requests are made once in init(), so that request() is one table look-up. done() prints what the report needs exactly;
# the text that wrk prints itself is rounded.
SCRIPT = """
local requests, at = {}, 0

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  local headers = {["Content-Type"] = arguments[2]}
  while true do
    local length = file:read(8)
    if not length then break end
    requests[#requests + 1] = wrk.format("POST", nil, headers, file:read(tonumber(length)))
  end
  file:close()
  local think_ms = tonumber(arguments[3])
  if think_ms then  -- wrk waits only where there is such a function
    math.randomseed(tonumber(tostring(requests):match("0x(%x+)"), 16) or 1)
    function delay() return math.floor(0.5 - think_ms * math.log(1 - math.random())) end
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'MARK{"requests": %d, "microseconds": %d, "p50_us": %d, "p99_us": %d, "non_2xx": %d, "socket_errors": %d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end
""".replace("MARK", _MARK)


class Load(Struct, frozen=True):
    """What the client saw. `non_2xx` answers are among `requests`; `socket_errors` are not."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    non_2xx: int
    socket_errors: int
    client_cpu_seconds: float


def require_wrk() -> None:
    """Raises BenchError where wrk is missing."""
    if shutil.which("wrk") is None:
        raise BenchError("wrk is not installed: `apt-get install wrk`, `brew install wrk`, or build it from its source")


def send(
    url: str, bodies: Sequence[bytes], content_type: str, clients: int, seconds: float, think_ms: float | None = None
) -> Load:
    """Bodies in turn to `url`, from `clients` connections. Raises BenchError.

    think_ms   mean of the exponential pause of each connection before each request, in whole ms; None: no pause
    """
    with tempfile.TemporaryDirectory() as folder:
        script, file = Path(folder) / "rotate.lua", Path(folder) / "bodies"
        script.write_text(SCRIPT)
        file.write_bytes(b"".join(framed(bodies)))
        command = ["wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
        command += ["-s", str(script), url, "--", str(file), content_type]
        command += [] if think_ms is None else [f"{think_ms:.3f}"]
        before = _children_cpu()
        result = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 90, check=False)
        return parse(result.stdout + result.stderr, _children_cpu() - before)


def framed(bodies: Sequence[bytes]) -> Iterator[bytes]:
    """Each behind its length in eight digits, as the script reads them."""
    for body in bodies:
        yield b"%08d%s" % (len(body), body)


def parse(output: str, client_cpu_seconds: float) -> Load:
    """The line that `done` wrote. Raises BenchError with wrk's words when there is none."""
    for line in output.splitlines():
        if line.startswith(_MARK):
            seen = json.loads(line.removeprefix(_MARK))
            return Load(
                requests=seen["requests"],
                seconds=seen["microseconds"] / 1e6,
                p50_ms=seen["p50_us"] / 1e3,
                p99_ms=seen["p99_us"] / 1e3,
                non_2xx=seen["non_2xx"],
                socket_errors=seen["socket_errors"],
                client_cpu_seconds=client_cpu_seconds,
            )
    raise BenchError(f"wrk failed: {output.strip() or 'no output'}")


def _children_cpu() -> float:
    """CPU seconds of ended children. The server is a child too, but it counts only when it ends."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
