import msgspec
import numpy as np
import pytest
import torch

from tests.training.conftest import fitted
from training.architectures import Regressor, build
from training.closed_form import check_closed_form, coefficients
from training.data import DataSet, own_data
from training.errors import VerificationFailed
from training.recipes import LINEAR_REGRESSION_RECIPE, Recipe
from training.report import Coefficient

PLANE = msgspec.structs.replace(LINEAR_REGRESSION_RECIPE, name="plane", dataset="plane", epochs=300, min_r2=None)

# y = 3 a - 2 b + 1. The means are 1 and 2, and so are the deviations: 3 and -4 a deviation, 3 - 4 + 1 at the mean.
CORNERS = np.array([[0, 0], [2, 0], [0, 4], [2, 4]], np.float32)
HEIGHTS = np.array([1, 7, -7, -1], np.float32)


def table(x: np.ndarray, y: np.ndarray = HEIGHTS, features: tuple[str, ...] = ("a", "b")) -> DataSet:
    return own_data("plane", "A plane", (x, y), (x, y), features=features)


def linear(data: DataSet, weights: list[float], bias: float) -> Regressor:
    model = build(PLANE, data)
    assert isinstance(model, Regressor)
    matrix = model.body.get_submodule("1")
    assert isinstance(matrix, torch.nn.Linear)
    with torch.no_grad():
        matrix.weight.copy_(torch.tensor([weights]))
        matrix.bias.fill_(bias)
    return model.eval()


def approximately(feature: str, learnt: float, closed_form: float) -> tuple[object, ...]:
    return feature, learnt, pytest.approx(closed_form, abs=1e-9)


def test_coefficients_are_those_of_the_layer_beside_the_solution() -> None:
    data = table(CORNERS)
    found = coefficients(linear(data, [2.5, -4.0], 0.5), data)
    assert [(each.feature, each.learnt, each.closed_form) for each in found] == [
        approximately("a", 2.5, 3),
        approximately("b", -4.0, -4),
        approximately("intercept", 0.5, 0),
    ]


def test_where_no_plane_fits_the_solution_has_the_least_squares() -> None:
    data = table(np.array([[0], [2], [4]], np.float32), np.array([0, 6, 0], np.float32), ("x",))
    slope, intercept = coefficients(linear(data, [0.0], 0.0), data)
    assert (slope.closed_form, intercept.closed_form) == (pytest.approx(0, abs=1e-9), pytest.approx(2))


def test_the_solution_is_that_of_the_training_rows_and_not_the_test_rows() -> None:
    data = own_data("plane", "A plane", (CORNERS, HEIGHTS), (CORNERS, HEIGHTS * 100), features=("a", "b"))
    assert coefficients(linear(data, [0, 0], 0), data)[0].closed_form == pytest.approx(3)


def test_features_without_names_are_numbered() -> None:
    data = table(CORNERS, features=())
    names = [each.feature for each in coefficients(linear(data, [0, 0], 0), data)]
    assert names == ["feature 0", "feature 1", "intercept"]


def test_an_exact_solution_predicts_the_targets() -> None:
    data = table(CORNERS)
    a, b, intercept = coefficients(linear(data, [0, 0], 0), data)
    solved = linear(data, [a.closed_form, b.closed_form], intercept.closed_form)
    (prediction,) = solved(torch.from_numpy(CORNERS))
    torch.testing.assert_close(prediction[:, 0], torch.from_numpy(HEIGHTS))


def test_a_hidden_layer_has_no_closed_form() -> None:
    data = table(CORNERS)
    deeper = msgspec.structs.replace(PLANE, architecture="mlp", width=2)
    assert coefficients(build(deeper, data), data) == ()


def test_neither_has_a_linear_classifier(recipe: Recipe, data: DataSet) -> None:
    flat = msgspec.structs.replace(recipe, architecture="linear")
    assert coefficients(build(flat, data), data) == ()


def test_nor_has_somebodys_own_network() -> None:
    data = table(CORNERS)
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 1), torch.nn.Softplus())
    assert coefficients(Regressor(body, data.source), data) == ()


@pytest.mark.parametrize(
    "third",
    [[5, 5, 5, 5], [0, 2, 0, 2], [0, 2, 8, 10]],
    ids=["constant", "the same as another", "the sum of a and twice b"],
)
def test_where_many_solutions_are_equally_good_there_is_none_to_compare(third: list[float]) -> None:
    data = table(np.hstack([CORNERS, np.array(third, np.float32)[:, None]]), features=("a", "b", "c"))
    assert coefficients(linear(data, [1, 1, 1], 0), data) == ()


# ---- the check


CLOSE = (Coefficient("a", 3.0, 3.0 + 2**-11), Coefficient("intercept", 1.0, 1.0 - 2**-12))
OFF = (Coefficient("a", 3.0, 3.01), Coefficient("b", -4.25, -4.0), Coefficient("intercept", 1.0, 1.0))


def test_the_largest_difference_becomes_a_metric() -> None:
    assert check_closed_form(CLOSE, PLANE) == {"closed_form_difference": 2**-11}


def test_too_large_a_difference_names_the_coefficient_farthest_off() -> None:
    with pytest.raises(VerificationFailed) as raised:
        check_closed_form(OFF, PLANE)
    assert str(raised.value) == (
        "Training has not reached the least-squares solution: b is -4.2500 and the closed form -4.0000, more than "
        "0.004 apart. Nothing was published. Train longer (--epochs) or with another --lr."
    )


@pytest.mark.parametrize("fields", [{"weight_decay": 0.1}, {"limit": 50}, {"validation": 0.1}])
def test_a_recipe_that_leads_elsewhere_is_not_held_to_the_closed_form(fields: dict[str, object]) -> None:
    assert check_closed_form(OFF, msgspec.structs.replace(PLANE, **fields)) == {}


def test_nothing_to_compare_is_no_metric() -> None:
    assert check_closed_form((), PLANE) == {}


def test_full_batches_reach_the_solution(rows: DataSet) -> None:
    found = coefficients(fitted(PLANE, rows).model, rows)
    assert check_closed_form(found, PLANE)["closed_form_difference"] < 1e-3
    assert [each.closed_form for each in found[:2]] == pytest.approx(
        [3 * rows.source.deviation[0], -2 * rows.source.deviation[1]],
        abs=0.1,  # the noise
    )


def test_a_run_that_is_too_short_does_not(rows: DataSet) -> None:
    short = msgspec.structs.replace(PLANE, epochs=10)
    with pytest.raises(VerificationFailed, match="has not reached the least-squares solution"):
        check_closed_form(coefficients(fitted(short, rows).model, rows), short)
