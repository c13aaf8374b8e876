"""The engine: owns a device and its sessions, and knows nothing of HTTP.

loop.py         executors take turns at the links, take a batch, run it, answer
run.py          a batch, or where it fails, its halves
instance.py     one loaded copy of a model: gather rows, run, scatter rows
session.py      onnxruntime behind a small face
loader.py       loads the repository, version by version
repository.py   finds versions, and lets one serve only after signature, digests, warm-up and golden rows
contract.py     what a version's folder promises, held against it
tune.py         picks instances, threads and batch size by measuring
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported (docs/adr/0016)
