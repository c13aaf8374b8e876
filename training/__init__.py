"""From a data set to a published model version: `python -m training <recipe>`.

    recipe → data → architecture → train → evaluate → export → verify → publish

Eight calls in `pipeline.make`, values in and values out. What is published is read by `service` through
`models/manifest.py` only.
"""

import os

# Before anything imports torch, which reads it once: OpenMP threads that spin while they wait take the cores from the
# data loading between two steps, and on shared machines from everybody else.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported (docs/adr/0016)
