import re
from pathlib import Path
from types import ModuleType

import pytest

import training
import training.vision
from training.vision import import_torchvision


def test_torchvision_can_be_imported_beside_any_torch() -> None:
    assert import_torchvision().datasets.MNIST.__name__ == "MNIST"
    assert import_torchvision() is import_torchvision()


def test_the_missing_operators_are_declared_and_the_import_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    package, declared = ModuleType("torchvision"), []

    def failing_until_declared() -> ModuleType:
        if not declared:
            raise RuntimeError("operator torchvision::nms does not exist")
        return package

    monkeypatch.setattr(training.vision, "_import", failing_until_declared)
    monkeypatch.setattr(training.vision, "declare_operators", lambda: declared.append(True))
    monkeypatch.setattr(training.vision.sys, "modules", {})
    assert import_torchvision() is package


def test_any_other_failure_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> ModuleType:
        raise RuntimeError("something else")

    monkeypatch.setattr(training.vision, "_import", broken)
    with pytest.raises(RuntimeError, match="something else"):
        import_torchvision()


def test_nothing_else_imports_torchvision() -> None:
    assert training.__file__ is not None
    for path in Path(training.__file__).parent.glob("*.py"):
        if path.name != "vision.py":
            assert not re.search(r"^\s*(import|from) torchvision", path.read_text(), re.MULTILINE), path
