import io
import json
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from models.manifest import (
    Classification,
    DataSet,
    ImageInput,
    Manifest,
    Provenance,
    TensorInput,
    TensorSpec,
    Tolerance,
    Verification,
    digest_file,
    write_manifest,
)
from training.__main__ import main
from training.catalogue import print_catalogue, print_version
from training.errors import VersionUnknown

WHOLE = Manifest(
    name="digits",
    version=3,
    description="Ziffern, größtenteils",
    created_at="2026-11-23T21:17:59+00:00",
    inputs=(TensorSpec("image", "UINT8", (-1, 28, 28, 1)),),
    outputs=(TensorSpec("logits", "FP32", (-1, 2)), TensorSpec("probabilities", "FP32", (-1, 2))),
    input=ImageInput(height=28, width=28, channels=1),
    classification=Classification("probabilities", ("null", "eins")),
    metrics={"accuracy": 0.99684, "cross_entropy": 0.0123456789},
    tolerance=Tolerance(),
    files={},
    dataset=DataSet("mnist", "ab" * 32, 60_000, 10_000),
    verification=Verification((1, 2, 64), 2.5e-6, 10_000, 0, {"accuracy": 0.99684}),
    provenance=Provenance(
        {"epochs": 12, "limit": None}, "0123abc", "cuda", 3725.4, {"torch": "2"}, {"0": 0.99684, "1": 0.995}
    ),
)
PLANE = msgspec.structs.replace(
    WHOLE,
    name="plane",
    version=1,
    description="A plane: linear, R² 0.812.",
    inputs=(TensorSpec("features", "FP32", (-1, 2)),),
    outputs=(TensorSpec("prediction", "FP32", (-1, 1)),),
    input=TensorInput(("a", "b")),
    classification=None,
    metrics={"r2": 0.81249},
)


def version(repository: Path, manifest: Manifest, model_bytes: int = 1_155_796) -> Path:
    """A folder whose files are those the manifest lists."""
    folder = repository / manifest.name / str(manifest.version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(bytes(model_bytes))
    (folder / "golden.npz").write_bytes(bytes(4490))
    files = {name: digest_file(folder / name) for name in ("model.onnx", "golden.npz")}
    write_manifest(folder, msgspec.structs.replace(manifest, files=files))
    return folder


def numbered(number: int, **changes: object) -> Manifest:
    return msgspec.structs.replace(WHOLE, version=number, **changes)


def listed(repository: Path) -> list[str]:
    """The lines below the head, with single spaces."""
    written = io.StringIO()
    print_catalogue(repository, Console(file=written, width=200))
    head, *lines = [" ".join(line.split()) for line in written.getvalue().splitlines()]
    assert head == "model version score model.onnx what it is"
    return lines


def shown(repository: Path, wanted: str) -> str:
    written = io.StringIO()
    print_version(repository, wanted, Console(file=written, width=200))
    return written.getvalue()


# ---- list


def test_a_version_is_a_line_with_its_score_and_size(tmp_path: Path) -> None:
    version(tmp_path, WHOLE)
    version(tmp_path, PLANE, model_bytes=340)
    assert listed(tmp_path) == [
        "digits 3 99.68% 1.2 MB Ziffern, größtenteils",
        "plane 1 R² 0.812 0.3 kB A plane: linear, R² 0.812.",
    ]


def test_a_version_without_a_score_has_none(tmp_path: Path) -> None:
    version(tmp_path, numbered(1, metrics={}))
    assert listed(tmp_path) == ["digits 1 1.2 MB Ziffern, größtenteils"]


def test_models_are_in_order_of_their_names_and_versions_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        version(tmp_path, numbered(number))
    version(tmp_path, numbered(2, name="apples"))
    assert [line.split()[:2] for line in listed(tmp_path)] == [
        ["apples", "2"],
        ["digits", "1"],
        ["digits", "9"],
        ["digits", "10"],
    ]


def test_what_is_no_version_is_not_listed(tmp_path: Path) -> None:
    version(tmp_path, WHOLE)
    (tmp_path / "README.md").write_text("models")
    (tmp_path / "digits" / ".4-abcd").mkdir()
    (tmp_path / "digits" / "notes").mkdir()
    (tmp_path / "digits" / "5").write_text("a file, not a version")
    (tmp_path / "empty").mkdir()
    assert len(listed(tmp_path)) == 1


def test_a_model_without_a_manifest_is_listed_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "bare" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(bytes(2_500_000))
    assert listed(tmp_path) == ["bare 1 2.5 MB no manifest"]


def test_a_damaged_manifest_is_listed_with_what_is_wrong(tmp_path: Path) -> None:
    folder = version(tmp_path, WHOLE)
    (folder / "manifest.json").write_text("{")
    version(tmp_path, PLANE)
    damaged, whole = listed(tmp_path)
    assert damaged.startswith(f"digits 3 1.2 MB {folder / 'manifest.json'}: ")
    assert whole.startswith("plane 1")


def test_a_manifest_without_a_model_is_listed_without_a_size(tmp_path: Path) -> None:
    folder = version(tmp_path, WHOLE)
    (folder / "model.onnx").unlink()
    assert listed(tmp_path) == ["digits 3 99.68% Ziffern, größtenteils"]


def test_words_in_brackets_are_words(tmp_path: Path) -> None:
    description = "model [final] [/b].onnx, made by [red]them[/red]"
    version(tmp_path, numbered(1, description=description, classification=Classification("p", ("[a]", "[/b]"))))
    assert listed(tmp_path)[0].endswith(description)
    assert description in shown(tmp_path, "digits")
    assert "[a], [/b]" in shown(tmp_path, "digits")


def test_a_repository_without_models_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(VersionUnknown, match=r"holds no model; `python -m training mnist` makes one"):
        listed(tmp_path)


def test_a_repository_that_is_no_folder_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(VersionUnknown, match="missing is not a folder; --repository names another"):
        listed(missing)
    missing.write_text("a file")
    with pytest.raises(VersionUnknown, match="is not a folder"):
        listed(missing)


# ---- show


def test_a_version_shows_what_its_manifest_says(tmp_path: Path) -> None:
    folder = version(tmp_path, WHOLE)
    text = shown(tmp_path, "digits/3")
    for fact in (
        "digits version 3, made 2026-11-23T21:17:59+00:00",
        "Ziffern, größtenteils",
        "image  UINT8 [-1, 28, 28, 1]",
        "logits  FP32 [-1, 2]",
        "probabilities  FP32 [-1, 2]",
        "null, eins",
        "accuracy 0.99684",
        "cross_entropy 0.0123457",
        f"mnist, 60,000 training and 10,000 test items, {'ab' * 32}",
        "within 2.5e-06 at batch sizes 1, 2, 64",
        "epochs=12, limit=None",
        "trained   in 3,725 s on cuda, at 0123abc",
        "0: 0.9968, 1: 0.9950",
        f"{folder / 'model.onnx'}  1,155,796 bytes",
        f"{folder / 'golden.npz'}  4,490 bytes",
    ):
        assert fact in text, fact


def test_an_int8_version_was_quantised_and_not_trained(tmp_path: Path) -> None:
    assert WHOLE.provenance is not None
    recipe = WHOLE.provenance.recipe | {"quantised_from": 2}
    version(
        tmp_path,
        msgspec.structs.replace(WHOLE, provenance=msgspec.structs.replace(WHOLE.provenance, recipe=recipe)),
    )
    (line,) = [line for line in shown(tmp_path, "digits/3").splitlines() if " in 3,725 s on cuda" in line]
    assert line.split()[0] == "quantised"


def test_what_a_manifest_leaves_out_is_not_shown(tmp_path: Path) -> None:
    bare = msgspec.structs.replace(PLANE, dataset=None, verification=None, provenance=None)
    version(tmp_path, bare)
    titles = {line.split()[0] for line in shown(tmp_path, "plane").splitlines() if not line.startswith("  ")}
    assert titles >= {"model", "inputs", "outputs", "files"}
    assert titles.isdisjoint({"labels", "data", "verified", "recipe", "trained", "seeds"})


def test_without_a_number_the_highest_is_shown(tmp_path: Path) -> None:
    for number in (9, 10):
        version(tmp_path, numbered(number))
    assert "digits version 10," in shown(tmp_path, "digits")
    assert "digits version 9," in shown(tmp_path, "digits/9")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("letters", r"letters holds no version; `python -m training list` shows what there is"),
        ("digits/4", r"digits/4/manifest\.json: No such file or directory"),
        ("letters/1", r"letters/1/manifest\.json: No such file or directory"),
        ("digits/x", r"digits/x: expected a model's name, or name/version with a whole number"),
        ("digits/-1", r"digits/-1: expected a model's name"),
        ("digits/3/4", r"digits/3/4: expected a model's name"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, wanted: str, expected: str) -> None:
    version(tmp_path, WHOLE)
    with pytest.raises(VersionUnknown, match=expected):
        shown(tmp_path, wanted)


def test_a_file_that_is_not_the_manifests_is_named(tmp_path: Path) -> None:
    folder = version(tmp_path, WHOLE)
    (folder / "model.onnx").write_bytes(b"another")
    with pytest.raises(VersionUnknown, match=r"model\.onnx: SHA-256 .* \(7 bytes\) is not the manifest's"):
        shown(tmp_path, "digits")
    (folder / "model.onnx").unlink()
    with pytest.raises(VersionUnknown, match=r"model\.onnx: listed in the manifest, but No such file"):
        shown(tmp_path, "digits")


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    path = version(tmp_path, WHOLE) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": "good"}))
    with pytest.raises(VersionUnknown, match=r"manifest\.json: .*metrics"):
        shown(tmp_path, "digits")


# ---- the command line


def test_the_commands_print_and_tell_whether_they_could(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    version(tmp_path, WHOLE)
    assert main(["list", "--repository", str(tmp_path)]) == 0
    assert "99.68%" in capsys.readouterr().out
    assert main(["show", "digits/3", "--repository", str(tmp_path)]) == 0
    assert "digits version 3" in capsys.readouterr().out
    assert main(["show", "digits/x", "--repository", str(tmp_path)]) == 2
    assert main(["list", "--repository", str(tmp_path / "missing")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line[:7] for line in captured.err.splitlines()] == ["error: ", "error: "]
