"""The table and both plots of `tune`: what they show is what was measured."""

import xml.etree.ElementTree as ET

import pytest

from service.engine.tuned import Knobs, Measurement
from service.tuning.report import axes_for, describe, svg_plot, table, terminal_plot
from service.tuning.search import Outcome, decide, summarise

DEFAULT, BETTER, SLOW = Knobs(2, 1, 32, 0), Knobs(1, 1, 16, 0), Knobs(1, 2, 32, 4000)
LIMIT = 20.0
SVG = "{http://www.w3.org/2000/svg}"


def measurement(knobs: Knobs, clients: int, rate: float, p99: float, repeat: int = 0) -> Measurement:
    return Measurement(knobs, clients, rate, p99 / 2, p99, 1000, 0, 1.0, 0.2, repeat)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    evidence = [measurement(DEFAULT, 1, 500, 1.5), measurement(DEFAULT, 64, 4000, 15.0)]
    evidence += [measurement(BETTER, 64, 9999, 12.0), measurement(SLOW, 64, 3000, 45.0), measurement(SLOW, 1, 90, 30.0)]
    for repeat, rate in enumerate([5000, 6000, 7000], start=1):
        evidence += [measurement(BETTER, 64, rate, 12.0, repeat), measurement(DEFAULT, 64, rate - 2500, 15.0, repeat)]
    return decide(DEFAULT, evidence, 3, LIMIT)


def test_the_table_has_a_row_for_each_set_up_and_marks_choice_and_default(outcome: Outcome) -> None:
    _, *rows, key = table(outcome, LIMIT).splitlines()
    assert [" ".join(row.split()) for row in rows] == [
        "* 1 1 16 0 64 6,000 (5,000 to 7,000, 3) 6.00 12.00",
        "= 2 1 32 0 64 3,500 (2,500 to 4,500, 3) 7.50 15.00",
        "1 2 32 4000 1 90.0 15.00 30.00 over the limit",
    ]
    assert key == "* the choice   = what serve chooses by itself"


def test_the_terminal_plot_has_front_choice_and_limit(outcome: Outcome) -> None:
    lines = terminal_plot(outcome, LIMIT).splitlines()
    (limit,) = (line for line in lines if "limit 20" in line)
    assert limit.count("-") > 50
    plot = [line.partition("|")[2] for line in lines if "|" in line]
    (chosen,) = (i for i, line in enumerate(plot) if "*" in line)
    assert chosen > lines.index(limit) - 1  # below the limit: faster
    assert sum(line.count("o") for line in plot) == 1  # the default with one client; the choice hides the other
    assert sum(line.count(".") for line in plot) == 3
    assert max(len(line) for line in lines) <= 80


def test_the_svg_is_well_formed_and_each_point_says_its_set_up(outcome: Outcome) -> None:
    root = ET.fromstring(svg_plot(outcome, LIMIT, "a <title> & more", "2026"))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"a <title> & more", "limit 20 ms", "Pareto front", f"choice: {BETTER}"} <= set(texts)
    titles = [element.text for element in root.iter(f"{SVG}title")]
    points = [each for each in summarise(outcome.evidence) if each.knobs != BETTER or each.throughput == 6000]
    assert describe(outcome.choice) in titles
    assert len(titles) == len(points) + 1 + 1  # BETTER by its repeats alone, and the choice's ring
    box = [float(number) for number in root.get("viewBox").split()]
    for circle in root.iter(f"{SVG}circle"):
        assert 0 < float(circle.get("cx")) < box[2]
        assert 0 < float(circle.get("cy")) < box[3]


def test_without_a_choice_there_is_a_plot_all_the_same(outcome: Outcome) -> None:
    missed = decide(DEFAULT, outcome.evidence, 3, 1.0)
    assert missed.choice is None
    assert "*" not in terminal_plot(missed, 1.0).replace("limit", "")
    assert "choice:" not in svg_plot(missed, 1.0, "t", "s")
    assert "over the limit" in table(missed, 1.0)


def test_without_a_measurement_nothing_breaks() -> None:
    empty = decide(DEFAULT, [], 0, LIMIT)
    assert terminal_plot(empty, LIMIT) == ""
    ET.fromstring(svg_plot(empty, LIMIT, "t", "s"))
    assert table(empty, LIMIT)


def test_a_limit_far_from_the_points_is_on_the_plot() -> None:
    axes = axes_for(summarise([measurement(DEFAULT, 1, 100, 2.0)]), 500.0)
    assert 0 < axes.up(2.0) < axes.up(500.0) < 1
    assert 0 < axes.across(100) < 1
