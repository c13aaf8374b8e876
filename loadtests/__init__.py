"""Measures a running server from outside."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported (docs/adr/0016)
