"""The report of a model version: one HTML file that shows what the version is worth, where it errs and how it was made.

    Manifest, history, Answers ──► numbers, tables, pictures, plots (plots.py) ──► templates/report.html.j2

The page stands alone: no script, no font, no picture from elsewhere, and a policy in its head that forbids them. Words
in it come from data sets and recipes of other people, so the template escapes everything but the plots. The same input
gives the same bytes. Nothing is measured again here except what the manifest has no place for: which items, and how
sure. Checked by tests/training/test_report.py.
"""

import base64
import datetime
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import jinja2
import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct
from PIL import Image

from models.manifest import MODEL_FILE, Manifest
from training import plots
from training.metrics import accuracy_interval, calibration, confusion, per_class
from training.recipes import Recipe, Scalar

if TYPE_CHECKING:
    from training.loop import Progress  # brings torch along, which a report does not need

Bytes = npt.NDArray[np.uint8]
Singles = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

WORST_PICTURES = 24
WORST_ROWS = 10
MOST_PAIRS = 8
LARGEST_MATRIX = 20  # labels; beyond, a table of all pairs is neither readable nor small
MOST_LABELS = 50
LARGEST_SIDE = 48  # of a picture: 24 of them in colour stay below 230 kB

MEANINGS: Mapping[str, str] = {
    "accuracy": "of the test items, the share whose likeliest label is the true one",
    "top5_accuracy": "the share whose true label is among the five likeliest",
    "cross_entropy": "mean of −ln of the probability given to the true label, nats per item; 0 is perfect",
    "macro_precision": "when it says a label, how often that is true; mean over labels",
    "macro_recall": "of the items with a label, how many it finds; mean over labels",
    "macro_f1": "harmonic mean of precision and recall; mean over labels",
    "calibration_error": "how far the stated probability is from the share that is right, on average",
    "mse": "mean squared difference from the target, in its unit squared",
    "mae": "mean distance from the target, in its unit",
    "r2": "share of the target's variance that is explained; 0 is no better than the mean, 1 is perfect",
    "closed_form_difference": "largest difference of a coefficient from the exact least-squares solution",
    "float_accuracy": "accuracy of the version it was quantised from",
    "speedup": "how many times as many items a second as that version, on a CPU",
}
SHARES = {name for name in MEANINGS if name.split("_")[-1] in {"accuracy", "precision", "recall", "f1"}} | {
    "calibration_error"
}


class Classified(Struct, frozen=True):
    """What the served file answered to the test set, in its order.

    images                  uint8 [n, h, w, c], c 1 or 3
    labels                  uint8 [n], the true ones
    logits, probabilities   float32 [n, k]; the largest logit is the answer
    """

    images: Bytes
    labels: Bytes
    logits: Singles
    probabilities: Singles


class Coefficient(Struct, frozen=True):
    """Of one feature in standardised units: what training found, and what solving the normal equations gives."""

    feature: str
    learnt: float
    closed_form: float


class Regressed(Struct, frozen=True):
    """What the served file answered to the test set, in its order.

    targets, predictions   float32 [n], in `unit`, such as "miles per gallon"
    features               float32 [n, f], as the model got them; feature_names has f entries, or none to leave them out
    coefficients           in the order they are to be shown; () for a model without a closed form
    """

    targets: Singles
    predictions: Singles
    features: Singles
    feature_names: tuple[str, ...]
    coefficients: tuple[Coefficient, ...]
    unit: str


Answers = Classified | Regressed


class Line(Struct, frozen=True):
    """A metric or a setting of the recipe."""

    name: str
    value: str
    meaning: str


class Cell(Struct, frozen=True):
    """Of the confusion matrix. `share` is the strength of its colour, 0 to 1."""

    count: int
    share: float
    right: bool


class MatrixRow(Struct, frozen=True):
    label: str
    cells: tuple[Cell, ...]
    items: int


class Pair(Struct, frozen=True):
    true: str
    predicted: str
    count: int
    share: float


class Mistake(Struct, frozen=True):
    """`item` is its place in the test set; `png` a data URI."""

    item: int
    png: str
    true: str
    predicted: str
    probability: float


class Miss(Struct, frozen=True):
    item: int
    features: tuple[float, ...]
    target: float
    predicted: float


def write_report(
    path: Path, manifest: Manifest, history: "Sequence[Progress]", answers: Answers, parameters: int | None = None
) -> None:
    """Write the page to `path`.

    history      one per epoch, fewer of a long run; empty for a version that was not trained, such as a quantised one
    parameters   weights of the network, where somebody counted them
    """
    kind = classified(manifest, answers) if isinstance(answers, Classified) else regressed(answers)
    recipe = manifest.provenance.recipe if manifest.provenance else {}
    chosen, left = settings(recipe)
    template = environment().get_template("report.html.j2")
    page = template.render(
        manifest=manifest,
        created=datetime.datetime.fromisoformat(manifest.created_at),
        served=manifest.files.get(MODEL_FILE),
        parameters=parameters,
        quantised_from=recipe.get("quantised_from"),
        metrics=metric_rows(manifest.metrics),
        seeds=seed_lines(manifest),
        smoothed=recipe.get("label_smoothing"),
        curves=plots.curves(history),
        history=history,
        chosen=chosen,
        left=left,
        own_name=path.name,
        **kind,
    )
    path.write_text(page, encoding="utf-8")


def environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "percent": percent, "number": number, "count": count, "size": size, "duration": duration,
    }  # fmt: skip
    made.filters.update(filters)
    return made


# A classifier


def classified(manifest: Manifest, answers: Classified) -> dict[str, object]:
    """What the page shows of answers that are labels."""
    k = answers.logits.shape[1]
    labels = manifest.classification.labels if manifest.classification else tuple(map(str, range(k)))
    assert len(labels) == k, f"bug: {len(labels)} labels for {k} outputs"
    predictions = answers.logits.argmax(axis=1)
    counts = confusion(predictions, answers.labels, k)
    items, right = int(counts.sum()), int(counts.trace())
    binned = calibration(answers.probabilities, answers.labels)
    rows = list(zip(labels, per_class(counts), strict=True))
    return {
        "kind": "classified",
        "items": items,
        "wrong": items - right,
        "accuracy": right / items,
        "interval": accuracy_interval(right / items, items),
        "labels": labels,
        "matrix": matrix(counts, labels) if k <= LARGEST_MATRIX else (),
        "pairs": pairs(counts, labels),
        "label_rows": rows if k <= MOST_LABELS else sorted(rows, key=lambda row: row[1].f1)[:MOST_LABELS],
        "calibration": binned,
        "reliability": plots.reliability(binned),
        "mistakes": worst_mistakes(answers, predictions, labels),
    }


def matrix(counts: Counts, labels: Sequence[str]) -> tuple[MatrixRow, ...]:
    """The diagonal is coloured by its share of the row; mistakes by theirs, over that of the commonest mistake."""
    items = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(items, 1)
    mistakes = np.where(np.eye(len(labels), dtype=bool), 0, shares)
    relative = mistakes / max(mistakes.max(), 1e-12)
    return tuple(
        MatrixRow(
            label=label,
            cells=tuple(
                Cell(
                    int(counts[row, column]), float((shares if row == column else relative)[row, column]), row == column
                )
                for column in range(len(labels))
            ),
            items=int(items[row, 0]),
        )
        for row, label in enumerate(labels)
    )


def pairs(counts: Counts, labels: Sequence[str]) -> tuple[Pair, ...]:
    """The commonest mistakes, most frequent first."""
    mistakes = counts.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:MOST_PAIRS]
    return tuple(
        Pair(labels[row], labels[column], int(mistakes[row, column]), float(mistakes[row, column] / counts[row].sum()))
        for row, column in zip(*np.unravel_index(order, mistakes.shape), strict=True)
        if mistakes[row, column]
    )


def worst_mistakes(answers: Classified, predictions: Counts, labels: Sequence[str]) -> tuple[Mistake, ...]:
    """The wrong answers that were surest, surest first; of equally sure ones, in the order of the test set."""
    sure = answers.probabilities[np.arange(len(predictions)), predictions]
    wrong = np.flatnonzero(predictions != answers.labels)
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:WORST_PICTURES]
    return tuple(
        Mistake(
            item=int(item),
            png=data_uri(answers.images[item]),
            true=labels[answers.labels[item]],
            predicted=labels[predictions[item]],
            probability=float(sure[item]),
        )
        for item in worst
    )


def data_uri(image: Bytes) -> str:
    """uint8 [h, w, 1 or 3] as a PNG of at most LARGEST_SIDE pixels a side."""
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    written = io.BytesIO()
    picture.save(written, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


# A regression


def regressed(answers: Regressed) -> dict[str, object]:
    """What the page shows of answers that are numbers."""
    residuals = answers.targets - answers.predictions
    differences = [abs(each.learnt - each.closed_form) for each in answers.coefficients]
    worst = np.argsort(-np.abs(residuals), kind="stable")[:WORST_ROWS]
    return {
        "kind": "regressed",
        "items": len(residuals),
        "unit": answers.unit,
        "figures": (
            plots.scatter(answers.targets, answers.predictions, answers.unit),
            plots.histogram(residuals, answers.unit),
        ),
        "drawn": min(len(residuals), plots.MOST_POINTS),
        "coefficients": answers.coefficients,
        "largest_difference": max(differences, default=0.0),
        "feature_names": answers.feature_names,
        "misses": tuple(
            Miss(
                item=int(item),
                features=tuple(map(float, answers.features[item])) if answers.feature_names else (),
                target=float(answers.targets[item]),
                predicted=float(answers.predictions[item]),
            )
            for item in worst
        ),
    }


# Of both


def metric_rows(metrics: Mapping[str, float]) -> list[Line]:
    return [
        Line(name, (percent if name in SHARES else number)(value), MEANINGS.get(name, ""))
        for name, value in metrics.items()
    ]


def seed_lines(manifest: Manifest) -> list[Line]:
    """What the recipe reached with each seed tried, and their mean and spread; none for a single one."""
    scores = manifest.provenance.seeds if manifest.provenance else {}
    if len(scores) < 2:
        return []
    shown = percent if "accuracy" in manifest.metrics else number
    values = np.array(list(scores.values()))
    spread = f"standard deviation {shown(float(values.std(ddof=1)))} of {len(values)}"
    lines = [Line(f"seed {seed}", shown(score), "") for seed, score in scores.items()]
    return [*lines, Line("mean", shown(float(values.mean())), spread)]


def settings(recipe: Mapping[str, Scalar]) -> tuple[list[Line], list[Line]]:
    """What the recipe chose, and what it left at the default. Fields today's Recipe does not know were chosen."""
    fields = {field.name: field for field in msgspec.structs.fields(Recipe)}
    chosen: list[Line] = []
    left: list[Line] = []
    for name, value in recipe.items():
        field = fields.get(name)
        notes = [note for note in get_args(field.type) if isinstance(note, Meta)] if field else []
        setting = Line(name, setting_value(value), next((note.description or "" for note in notes), ""))
        (left if field and not field.required and value == field.default else chosen).append(setting)
    return chosen, left


def setting_value(value: Scalar) -> str:
    match value:
        case bool() | None:
            return {True: "yes", False: "no", None: "none"}[value]
        case float():
            return f"{value:.6g}"
        case _:
            return str(value)


def percent(share: float) -> str:
    """Two decimals, and never 100 or 0 by rounding alone."""
    if 0.99995 <= share < 1:
        return ">99.99%"
    if 0 < share < 0.00005:
        return "<0.01%"
    return f"{share:.2%}"


def number(value: float) -> str:
    """Four digits that count."""
    if value != 0 and abs(value) < 1e-4:
        return f"{value:.2e}"
    digits = max(3 - int(np.floor(np.log10(abs(value)))), 0) if value else 0
    return f"{value:,.{digits}f}"


def count(value: int) -> str:
    return f"{value:,}"


def size(n_bytes: int) -> str:
    for unit, of in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= of:
            return f"{n_bytes / of:.3g} {unit}"
    return f"{n_bytes} bytes"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
