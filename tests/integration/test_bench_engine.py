"""`python -m service bench-engine` on a small model, and its refusals."""

import json
from pathlib import Path

import pytest

from service.__main__ import main
from service.engine.tuned import Knobs

CPU = ["--engine.device", "cpu", "--engine.instances", "1", "--batching.max-batch-size", "2"]


def test_each_batch_size_has_a_line_of_json(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench-engine", "tenfold", "--repository", str(repository), *CPU]) == 0
    head, *lines = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (head["model"], head["device"], head["instances"], head["graphs"]) == ("tenfold", "cpu", 1, [False])
    assert [line["batch"] for line in lines] == [1, 2]
    for line in lines:
        assert line["items_per_s"] * line["ms"] / 1e3 == pytest.approx(line["batch"])


def test_no_size_is_run_that_the_instances_do_not_take(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was tuned bounds the batch below the setting's 64."""
    monkeypatch.setattr("service.engine.repository._tuned", lambda *_: Knobs(1, 1, 2))
    assert main(["bench-engine", "tenfold", "--repository", str(repository), "--engine.device", "cpu"]) == 0
    _, *lines = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert [line["batch"] for line in lines] == [1, 2]


def test_help_names_the_command_and_its_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench-engine", "--help"])
    assert ended.value.code == 0
    assert "bench-engine MODEL" in capsys.readouterr().out


def test_a_model_that_is_not_there_is_named(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench-engine", "absent", "--repository", str(repository), *CPU]) == 1
    assert "holds no model 'absent'" in capsys.readouterr().err


def test_without_a_model_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench-engine", *CPU]) == 2
    assert "name a model" in capsys.readouterr().err
