"""torchvision, imported so that it also works beside a CPU-only torch. Nothing else imports it.

The torchvision wheels of PyPI link CUDA. Beside a torch without CUDA their extension does not load, and the import then
fails with "operator torchvision::nms does not exist", because Python code registers a kernel for an operator that only
the extension defines. Declaring the two operators is enough: `datasets`, `transforms.v2`, `models` and `utils` work
afterwards; `ops` and `io` do not, and nothing here uses them.
"""

import importlib
import sys
from types import ModuleType

import torch

# Held for the life of the process: a Library takes its operators with it when it is collected.
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """The package with `datasets` and `transforms.v2` loaded. Raises ImportError where torchvision is not installed."""
    try:
        return _import()
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    declare_operators()
    return _import()


def declare_operators() -> None:
    if _declared:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch has no types here
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    _declared.append(library)


def _import() -> ModuleType:
    importlib.import_module("torchvision.datasets")
    importlib.import_module("torchvision.transforms.v2")
    return sys.modules["torchvision"]
