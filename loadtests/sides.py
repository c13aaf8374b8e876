"""The servers that are compared: how each is started for a model, how it is asked, and how its answer is read.

    Shoal      raw rows or {"instances": [row]} to /predict; answers JSON. /v2/models/<model>/infer was no faster.
    mosec      row bytes in and out, or JSON in and out; once with batches of up to 16 and once with up to 64
    FastAPI    row bytes in and out, or JSON in and out; no batching

All get the same file and the same rows, and as many processes of one thread as there are cores, except that Shoal
chooses for itself. A peer lives in an environment of its own, made by `make peers`; one that is absent is left out.
Checked by tests/unit/test_bench.py.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from models.manifest import MANIFEST_FILE, Classification, read_manifest

Body = Literal["raw", "json"]
Peer = Literal["shoal", "mosec", "fastapi"]

PEERS: tuple[Peer, ...] = ("mosec", "fastapi")
MOSEC_BATCHES = (16, 64)
MOSEC_WAIT_MS = 1  # the least mosec takes; 2 was slower
CONTENT_TYPE: Mapping[Body, str] = {"raw": "application/octet-stream", "json": "application/json"}

_ROOT = Path(__file__).parents[1]
_PEERS_FOLDER = Path(__file__).parent / "peers"
_UVICORN = ("-m", "uvicorn", "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning")

Array = npt.NDArray[Any]  # Any: of whatever element type the model takes


class Side(Struct, frozen=True):
    """One server for one model and one kind of body. `{port}` in `command` is where the port goes."""

    name: str
    peer: Peer
    setup: str
    command: tuple[str, ...]
    environment: dict[str, str]
    path: str
    body: Body
    classification: Classification | None = None

    @property
    def checked_path(self) -> str:
        """Where an answer holds everything that the model put out."""
        return self.path + ("?top_k=100000" if self.peer == "shoal" else "")

    def write(self, row: Array) -> bytes:
        """The body for one row."""
        if self.body == "raw":
            return row.tobytes()
        numbers = row.ravel().tolist()
        return json.dumps({"instances": [numbers]} if self.peer == "shoal" else numbers, separators=(",", ":")).encode()

    def read(self, answer: bytes, expected: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs in an answer, flat, by name. `expected` tells their order, sizes and types."""
        if self.peer == "shoal":
            return read_predictions(answer, self.classification)
        if self.body == "json":
            return {name: np.ravel(values) for name, values in zip(expected, json.loads(answer), strict=True)}
        return read_rows(answer, expected)


def read_predictions(answer: bytes, classification: Classification | None) -> dict[str, Array]:
    """The one item of an answer of /predict: probabilities in the order of the labels, or the outputs as they are."""
    (item,) = json.loads(answer)["predictions"]
    if classification is None:
        return {name: np.ravel(values) for name, values in item.items()}
    probability = {entry["label"]: entry["probability"] for entry in item["top"]}
    return {classification.output: np.array([probability[label] for label in classification.labels])}


def read_rows(answer: bytes, expected: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs' bytes, one after another. Raises ValueError where they are more or fewer than expected."""
    found, at = {}, 0
    for name, array in expected.items():
        found[name] = np.frombuffer(answer[at : at + array.nbytes], array.dtype)
        at += array.nbytes
    if at != len(answer):
        raise ValueError(f"{len(answer)} bytes; expected {at}")
    return found


def sides(model: Path, body: Body, cores: int, flags: Sequence[str], peers: Sequence[Peer]) -> list[Side]:
    """Shoal and the given peers. `model` is <repository>/<name>/<version>/model.onnx, alone in its repository."""
    found = [_shoal(model, body, flags)]
    if "mosec" in peers:
        found += [_mosec(model, body, cores, batch) for batch in MOSEC_BATCHES]
    if "fastapi" in peers:
        found.append(_fastapi(model, body, cores))
    return found


def python_of(peer: Peer) -> Path:
    """The interpreter of a peer's environment, whether or not it is there."""
    return _ROOT / ".peers" / peer / "bin" / "python"


def is_installed(peer: Peer) -> bool:
    return (python_of(peer).parent.parent / ".ready").is_file()


def how_to_install(peer: Peer) -> str:
    return f"{peer} is not installed and is left out: `make peers` installs it"


def _shoal(model: Path, body: Body, flags: Sequence[str]) -> Side:
    version, repository = model.parent, model.parents[2]
    manifest = read_manifest(version) if (version / MANIFEST_FILE).is_file() else None
    return Side(
        name="Shoal",
        peer="shoal",
        setup=" ".join(["python -m service serve", *flags]),
        command=(
            *(sys.executable, "-m", "service", "serve", "--repository", str(repository)),
            *("--host", "127.0.0.1", "--port", "{port}", *flags),
        ),
        environment={},
        path=f"/predict/{version.parent.name}",
        body=body,
        classification=manifest.classification if manifest else None,
    )


def _mosec(model: Path, body: Body, cores: int, max_batch: int) -> Side:
    return Side(
        name=f"mosec, batch {max_batch}",
        peer="mosec",
        setup=f"{cores} worker processes of one thread, max_batch_size {max_batch}, max_wait_time {MOSEC_WAIT_MS} ms",
        command=(
            *(str(python_of("mosec")), str(_PEERS_FOLDER / "serve_mosec.py")),
            *("--address", "127.0.0.1", "--port", "{port}", "--log-level", "warning"),
        ),
        environment={
            "PEER_MODEL": str(model),
            "PEER_BODY": body,
            "PEER_WORKERS": str(cores),
            "PEER_MAX_BATCH": str(max_batch),
            "PEER_WAIT_MS": str(MOSEC_WAIT_MS),
        },
        path="/inference",
        body=body,
    )


def _fastapi(model: Path, body: Body, cores: int) -> Side:
    return Side(
        name="FastAPI",
        peer="fastapi",
        setup=f"uvicorn with {cores} processes, uvloop and httptools; onnxruntime with one thread, on the event loop",
        command=(
            *(str(python_of("fastapi")), *_UVICORN, "--app-dir", str(_PEERS_FOLDER), "serve_fastapi:app"),
            *("--workers", str(cores), "--host", "127.0.0.1", "--port", "{port}"),
        ),
        environment={"PEER_MODEL": str(model)},
        path=f"/{body}",
        body=body,
    )
