"""House words: the glossary's banned suffixes stay out, and modules say what they are for."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    path for package in ("service", "training", "models", "loadtests") for path in (ROOT / package).rglob("*.py")
)
BANNED_SUFFIXES = ("Manager", "Handler", "Helper", "Util", "Utils", "Base", "Data", "Custom", "Processor")
LONGEST_MODULE = 400


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_for_and_uses_our_words(module: Path) -> None:
    tree = ast.parse(module.read_text())
    if tree.body:
        assert ast.get_docstring(tree), "no module docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            assert not node.name.endswith(BANNED_SUFFIXES), node.name
    assert len(module.read_text().splitlines()) <= LONGEST_MODULE
