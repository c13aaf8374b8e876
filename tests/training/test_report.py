import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from models.manifest import (
    Classification,
    DataSet,
    FileDigest,
    ImageInput,
    Manifest,
    Provenance,
    TensorInput,
    TensorSpec,
    Tolerance,
    Verification,
)
from training import plots
from training.loop import Progress
from training.metrics import classification, regression
from training.recipes import MNIST_RECIPE, as_scalars
from training.report import (
    Answers,
    Classified,
    Coefficient,
    Regressed,
    duration,
    number,
    percent,
    size,
    write_report,
)

LABELS = ("cat", "dog", "bird")
ITEMS = 40


@pytest.fixture(scope="module")
def answers() -> Classified:
    """40 pictures whose upper left pixel is their index; items 3, 7 and 21 are wrong, and 7 is the surest of them."""
    images = np.zeros((ITEMS, 6, 6, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(ITEMS)
    labels = (np.arange(ITEMS) % 3).astype(np.uint8)
    probabilities = np.full((ITEMS, 3), 0.05, np.float32)
    probabilities[np.arange(ITEMS), labels] = 0.9
    for item, true, said, sure in ((3, 0, 2, 0.6), (7, 1, 2, 0.97), (21, 0, 1, 0.8)):
        probabilities[item] = (1 - sure) / 2
        probabilities[item, said] = sure
        assert labels[item] == true
    return Classified(images, labels, np.log(probabilities), probabilities)


@pytest.fixture(scope="module")
def manifest(answers: Classified) -> Manifest:
    metrics = classification(answers.logits, answers.probabilities, answers.labels)
    return Manifest(
        name="pets",
        version=4,
        description="Pets: a small network.",
        created_at="2026-11-23T21:17:59+00:00",
        inputs=(TensorSpec("image", "UINT8", (-1, 6, 6, 1)),),
        outputs=(TensorSpec("probabilities", "FP32", (-1, 3)),),
        input=ImageInput(height=6, width=6, channels=1),
        classification=Classification("probabilities", LABELS),
        metrics=metrics,
        tolerance=Tolerance(),
        files={"model.onnx": FileDigest("ab" * 32, 1_155_796), "golden.npz": FileDigest("cd" * 32, 4490)},
        dataset=DataSet("pets", "ef" * 32, 60_000, ITEMS),
        verification=Verification((1, 7), 2.5e-6, ITEMS, 0, metrics),
        provenance=Provenance(as_scalars(MNIST_RECIPE), "0123abc", "cuda", 3725.0, {"torch": "2.13.0"}),
    )


@pytest.fixture(scope="module")
def history() -> tuple[Progress, ...]:
    return tuple(
        Progress(
            epoch=epoch,
            items=100 * epoch,
            items_in_all=300,
            loss=1 / epoch,
            accuracy=1 - 0.5 / epoch,
            items_per_s=50.0,
            learning_rate=0.1 / epoch,
            ends_epoch=True,
            validation_loss=1.1 / epoch,
            validation_accuracy=1 - 0.6 / epoch,
        )
        for epoch in (1, 2, 3)
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest, history: tuple[Progress, ...], answers) -> str:
    return written(tmp_path_factory.mktemp("report"), manifest, history, answers)


@pytest.fixture(scope="module")
def fit() -> Regressed:
    targets = np.arange(20, dtype=np.float32)
    predictions = targets.copy()
    predictions[5] -= 3.25
    features = np.stack([np.arange(20) + 1000, np.zeros(20)], axis=1).astype(np.float32)
    coefficients = (Coefficient("weight", -1.5, -1.5 + 2e-6), Coefficient("year", 0.75, 0.75))
    return Regressed(targets, predictions, features, ("weight", "year"), coefficients, "miles per gallon")


@pytest.fixture(scope="module")
def fit_manifest(manifest: Manifest, fit: Regressed) -> Manifest:
    metrics = regression(fit.predictions, fit.targets)
    return msgspec.structs.replace(manifest, input=TensorInput(), classification=None, metrics=metrics)


def written(folder: Path, manifest: Manifest, history: tuple[Progress, ...], answers: Answers) -> str:
    write_report(folder / "report.html", manifest, history, answers)
    return (folder / "report.html").read_text(encoding="utf-8")


def rows(page: str, section: str) -> list[list[str]]:
    """The words of each table row of a section, cell by cell."""
    part = re.search(rf'<section id="{section}">.*?</section>', page, re.DOTALL)
    assert part, f"no section {section}"
    return [
        [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", part[0], re.DOTALL)
    ]


def test_the_head_says_what_it_is_and_how_good(page: str) -> None:
    head = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page[page.index("<body>") : page.index("</header>")]))
    for fact in ("pets / 4", "92.50% of 40 test items right: 3 wrong", "23 November 2026", "1.16 MB", "1 h 2 min"):
        assert fact in head


def test_every_metric_of_the_manifest_is_there_with_its_meaning(page: str, manifest: Manifest) -> None:
    found = {name: (value, meaning) for name, value, meaning in rows(page, "numbers")[1:]}
    assert found.keys() == manifest.metrics.keys()
    assert found["accuracy"] == ("92.50%", "of the test items, the share whose likeliest label is the true one")
    assert all(meaning for _, meaning in found.values())


def test_the_confusion_matrix_holds_the_counts(page: str) -> None:
    table = rows(page, "confusion")
    assert table[1:4] == [
        ["cat", "12", "1", "1", "14"],
        ["dog", "·", "12", "1", "13"],
        ["bird", "·", "·", "13", "13"],
    ]
    assert ["dog", "bird", "1", "7.69%"] in table


def test_each_label_has_its_scores(page: str) -> None:
    assert rows(page, "labels")[1:] == [
        ["cat", "100.00%", "85.71%", "92.31%", "14"],
        ["dog", "92.31%", "92.31%", "92.31%", "13"],
        ["bird", "86.67%", "100.00%", "92.86%", "13"],
    ]


def test_the_worst_mistakes_are_those_items_surest_first(page: str) -> None:
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))) for picture in pictures]
    assert [picture.shape for picture in shown] == [(6, 6)] * 3
    assert [int(picture[0, 0]) for picture in shown] == [7, 21, 3]
    words = re.findall(r"<li><img.*?</li>", page, re.DOTALL)
    for item, expected in zip(words, ("dog bird 97.00% #7", "cat dog 80.00% #21", "cat bird 60.00% #3"), strict=True):
        assert re.findall(r"<(?:b|span)>(.*?)</", item) == expected.split()


def test_at_most_24_mistakes_are_shown_and_large_pictures_shrink(manifest: Manifest, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 96, 80, 3), np.uint8)
    logits = np.tile(np.array([3, 2, 1], np.float32), (60, 1))
    wrong = Classified(noise, np.full(60, 1, np.uint8), logits, logits / 6)
    page = written(tmp_path, manifest, (), wrong)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 24
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).size == (40, 48)
    assert len(page) < 400_000


def test_of_many_labels_the_commonest_mistakes_stand_for_the_matrix(manifest: Manifest, tmp_path: Path) -> None:
    k = 60
    truth = np.repeat(np.arange(k), 2).astype(np.uint8)
    logits = np.eye(k, dtype=np.float32)[truth]
    logits[0] = np.eye(k)[59]
    labels = Classification("probabilities", tuple(f"label {index}" for index in range(k)))
    answers = Classified(np.zeros((2 * k, 4, 4, 3), np.uint8), truth, logits, logits)
    page = written(tmp_path, msgspec.structs.replace(manifest, classification=labels), (), answers)
    assert rows(page, "confusion")[1:] == [["label 0", "label 59", "1", "50.00%"]]
    assert [row[0] for row in rows(page, "labels")[1:3]] == ["label 0", "label 59"]
    assert len(rows(page, "labels")) == 1 + 50


def test_nothing_is_loaded_from_elsewhere_and_no_script_runs(page: str) -> None:
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    assert "@import" not in page
    assert all(source.startswith("data:") for source in re.findall(r'\bsrc="([^"]*)"', page))
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'\bhref="([^"]*)"', page))
    assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", page))


def test_ids_are_unique_and_every_reference_finds_one(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)


def test_every_element_that_opens_closes(page: str) -> None:
    void = {"meta", "link", "img", "br"}

    class Nesting(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attributes: object) -> None:
            if tag not in void:
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag, f"line {self.getpos()[0]}"

    nesting = Nesting()
    nesting.feed(page)
    assert nesting.open == []


def test_words_of_other_people_are_escaped(manifest: Manifest, answers: Classified, tmp_path: Path) -> None:
    hostile = '<script>alert("1")</script>'
    assert manifest.provenance
    spoilt = msgspec.structs.replace(
        manifest,
        name=hostile,
        description=hostile,
        classification=Classification("probabilities", (hostile, "dog", "bird")),
        provenance=msgspec.structs.replace(manifest.provenance, recipe={hostile: hostile}),
    )
    page = written(tmp_path, spoilt, (), answers)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(") >= 6


def test_words_in_plots_are_escaped_and_are_no_formulas(fit_manifest: Manifest, fit: Regressed, tmp_path: Path) -> None:
    page = written(tmp_path, fit_manifest, (), msgspec.structs.replace(fit, unit="<b>$x^2$</b>"))
    assert "<b>$x" not in page
    assert "&lt;b&gt;$x^2$&lt;/b&gt;</text>" in page


def test_the_same_input_gives_the_same_bytes(page, manifest, history, answers, tmp_path: Path) -> None:
    assert written(tmp_path, manifest, history, answers) == page


def test_curves_show_training_and_validation(page: str) -> None:
    part = page[page.index('<section id="curves">') : page.index('<section id="confusion">')]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", part) == ["Loss", "Accuracy", "Learning rate"]
    assert part.count(">validation</text>") == 2
    assert "3 epochs" in part


def test_without_a_history_there_are_no_curves(manifest: Manifest, answers: Classified, tmp_path: Path) -> None:
    assert manifest.provenance
    quantised = msgspec.structs.replace(manifest.provenance, recipe={"quantised_from": 3, "weights": "int8"})
    page = written(tmp_path, msgspec.structs.replace(manifest, provenance=quantised), (), answers)
    assert 'id="curves"' not in page
    assert 'href="#curves"' not in page
    assert "<dt>Quantised from</dt><dd>3</dd>" in page
    assert ["weights", "int8", ""] in rows(page, "making")


def test_of_one_epoch_without_validation_the_training_is_drawn(history: tuple[Progress, ...]) -> None:
    plain = msgspec.structs.replace(history[0], validation_loss=None, validation_accuracy=None)
    loss, accuracy, _ = plots.curves([plain])
    assert "<use" in loss.svg  # a marker: a line of one point is invisible
    assert ">validation</text>" not in loss.svg + accuracy.svg


def test_settings_that_differ_from_the_default_come_with_their_meaning(page: str) -> None:
    settings = {row[0]: row[1:] for row in rows(page, "making")}
    assert settings["lr"] == ["0.004", "highest learning rate"]
    left = re.findall(r'<li><span class="mono">(.*?)</span><span class="quiet">(.*?)</span></li>', page)
    assert ("momentum", "0.9") in left
    assert set(dict(left)).isdisjoint(settings)
    assert len(left) + len(settings.keys() & as_scalars(MNIST_RECIPE).keys()) == len(as_scalars(MNIST_RECIPE))


def test_the_spread_over_seeds_is_told(manifest: Manifest, answers: Classified, tmp_path: Path) -> None:
    assert manifest.provenance
    tried = msgspec.structs.replace(manifest.provenance, seeds={"0": 0.925, "1": 0.9, "2": 0.95})
    table = rows(written(tmp_path, msgspec.structs.replace(manifest, provenance=tried), (), answers), "making")
    assert ["seed 1", "90.00%", ""] in table
    assert ["mean", "92.50%", "standard deviation 2.50% of 3"] in table


def test_origin_files_and_verification_are_told(page: str) -> None:
    assert ["model.onnx", "1,155,796", "ab" * 32] in rows(page, "files")
    assert ["commit", "0123abc"] in rows(page, "making")
    assert ["largest difference of any output", "2.50e-06"] in rows(page, "verification")
    assert "ef" * 32 in page


def test_little_in_the_manifest_and_no_mistake_are_enough(
    manifest: Manifest, answers: Classified, tmp_path: Path
) -> None:
    bare = msgspec.structs.replace(
        manifest, classification=None, dataset=None, verification=None, provenance=None, files={}, metrics={}
    )
    right = msgspec.structs.replace(answers, labels=answers.logits.argmax(axis=1).astype(np.uint8))
    page = written(tmp_path, bare, (), right)
    assert "every test item was answered right" in page
    assert "Commonest mistakes" not in page
    assert page.count("The manifest does not say.") == 2
    assert rows(page, "labels")[1][0] == "0"


def test_a_regression_shows_its_coefficients_and_worst_misses(fit_manifest, fit, history, tmp_path: Path) -> None:
    unscored = tuple(msgspec.structs.replace(each, accuracy=None, validation_accuracy=None) for each in history)
    page = written(tmp_path, fit_manifest, unscored, fit)
    assert rows(page, "coefficients")[1:] == [
        ["weight", "-1.50000", "-1.50000", "-2.0e-06"],
        ["year", "0.75000", "0.75000", "+0.0e+00"],
    ]
    assert "<b>2e-06</b>" in page
    assert rows(page, "misses")[1] == ["5", "5.000", "1.750", "3.250", "1005", "0"]
    assert "off by 0.1625 miles per gallon on average" in page
    assert ">predicted, miles per gallon</text>" in page
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page) == [
        "Loss",
        "Learning rate",
        "Predicted against true",
        "Residuals",
    ]


def test_a_regression_without_a_closed_form_or_names_of_features_leaves_them_out(
    fit_manifest: Manifest, fit: Regressed, tmp_path: Path
) -> None:
    pictures = msgspec.structs.replace(
        fit, features=np.zeros((20, 4, 4, 1), np.float32), feature_names=(), coefficients=()
    )
    page = written(tmp_path, fit_manifest, (), pictures)
    assert "#coefficients" not in page
    assert 'id="coefficients"' not in page
    assert rows(page, "misses")[1] == ["5", "5.000", "1.750", "3.250"]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (percent(0.9968), "99.68%"),
        (percent(1.0), "100.00%"),
        (percent(0.99996), ">99.99%"),
        (percent(0.00004), "<0.01%"),
        (percent(0.0), "0.00%"),
        (number(0.0), "0"),
        (number(-5.4321), "-5.432"),
        (number(123456.7), "123,457"),
        (number(0.0123456), "0.01235"),
        (number(2.5e-6), "2.50e-06"),
        (size(999), "999 bytes"),
        (size(4490), "4.49 kB"),
        (size(1_155_796), "1.16 MB"),
        (duration(9.94), "9.9 s"),
        (duration(59.96), "1 min 0 s"),
        (duration(3725), "1 h 2 min"),
    ],
)
def test_numbers_are_rounded_sensibly(found: str, expected: str) -> None:
    assert found == expected
