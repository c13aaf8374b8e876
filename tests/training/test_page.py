"""docs/training.md: its program runs, and what it lists is what there is."""

import re
from pathlib import Path
from typing import get_args

import pytest

from models.manifest import check_files, read_manifest
from training.__main__ import parser
from training.recipes import RECIPES, Architecture, Loss, LrScheduler, Optimizer

PAGE = (Path(__file__).parents[2] / "docs/training.md").read_text()


def test_the_program_for_an_own_network_and_data_set_publishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in program.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "docs/training.md", "exec"), {})
    published = tmp_path / "models/coins/1"
    check_files(published, read_manifest(published))
    assert read_manifest(published).classification.labels == ("heads", "tails")  # type: ignore[union-attr]  # it has labels


@pytest.mark.parametrize("kind", [Architecture, Loss, Optimizer, LrScheduler])
def test_every_choice_is_listed(kind: object) -> None:
    assert [choice for choice in get_args(kind) if f"`{choice}`" not in PAGE] == []


def test_every_command_on_the_page_is_understood() -> None:
    commands = re.findall(r"python -m training ([a-z].*?)(?:\s{2,}.*)?$", PAGE, re.MULTILINE)
    assert len(commands) >= 8
    for command in (one for one in commands if "--help" not in one):
        words = command.replace("<time>", "now").rstrip("`").split()
        assert parser().parse_args(words).command == words[0], command


def test_every_recipe_is_named() -> None:
    assert [name for name in RECIPES if name not in PAGE] == []
