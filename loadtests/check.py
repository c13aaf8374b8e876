"""Before anything is measured: are the server's answers those of bare onnxruntime on the same file?

The rows are sent sixteen at a time, so that they meet in batches: a row that gets its neighbour's answer is found.
"""

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from loadtests import bare
from loadtests.server import BenchError
from models.manifest import MANIFEST_FILE, Classification, read_manifest

ANSWERS = 50
ABSOLUTE, RELATIVE = 1e-4, 1e-3  # batches of other sizes run other kernels; a wrong row differs by far more
_AT_ONCE = 16


def check(url: str, model: Path, rows: bare.Array) -> int:
    """How many answers of `url` (/predict) were compared. Raises BenchError at the first that differs."""
    rows = rows[:ANSWERS]
    expected = bare.answers(model, rows)
    version_dir = model.parent
    manifest = read_manifest(version_dir) if (version_dir / MANIFEST_FILE).is_file() else None
    classification = manifest.classification if manifest else None
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answered = list(pool.map(lambda row: _ask(f"{url}?top_k=100000", row.tobytes()), rows))
    for i, prediction in enumerate(answered):
        if fault := disagreement(prediction, {name: array[i] for name, array in expected.items()}, classification):
            raise BenchError(f"answer {i} is not bare onnxruntime's: {fault}")
    return len(rows)


def disagreement(
    prediction: dict[str, Any],  # Any: a JSON object
    expected: dict[str, bare.Array],
    classification: Classification | None,
) -> str | None:
    """What differs between one item of a /predict answer and the outputs for that row, if anything."""
    if classification is not None:
        probability = {entry["label"]: entry["probability"] for entry in prediction["top"]}
        given = {classification.output: [probability[label] for label in classification.labels]}
    else:
        given = prediction
    for name, values in given.items():
        difference = np.abs(np.asarray(values, np.float64).ravel() - expected[name].ravel())
        if not (difference <= ABSOLUTE + RELATIVE * np.abs(expected[name].ravel())).all():
            return f"{name} differs by up to {difference.max():.3g}"
    return None


def _ask(url: str, body: bytes) -> dict[str, Any]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/octet-stream"})
    try:
        with urllib.request.urlopen(request) as response:
            (prediction,) = json.load(response)["predictions"]
    except urllib.error.HTTPError as error:
        raise BenchError(f"{url}: {error.code}: {error.read().decode(errors='replace')}") from error
    return dict(prediction)
