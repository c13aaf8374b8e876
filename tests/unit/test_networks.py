"""The networks that are measured: the same file every time, and an answer of its own for every row."""

from pathlib import Path

import numpy as np
import pytest

from loadtests import bare, networks
from loadtests.check import ABSOLUTE, RELATIVE


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    return {name: networks.build(name, folder / name) for name in networks.NETWORKS}


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_a_network_is_the_same_file_every_time(name: str, built: dict[str, Path], tmp_path: Path) -> None:
    assert networks.build(name, tmp_path).read_bytes() == built[name].read_bytes()


@pytest.mark.parametrize(
    ("name", "shape", "weights"),
    [
        ("tiny", (28, 28, 1), 784 * 10),
        # 3x3 convolutions 1-32-64 with biases, 9216-128-10, and the two constants that scale the pixels
        ("mnist", (28, 28, 1), 9 * 32 + 32 + 9 * 32 * 64 + 64 + 9216 * 128 + 1280 + 2),
        ("cifar", (32, 32, 3), 6_570_880 + 2),
    ],
)
def test_a_network_has_the_size_it_says(
    name: str, shape: tuple[int, ...], weights: int, built: dict[str, Path]
) -> None:
    rows = bare.rows_for(built[name])
    assert rows.shape == (bare.ROWS, *shape)
    assert rows.dtype == np.uint8
    assert built[name].stat().st_size == pytest.approx(4 * weights, rel=0.05)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_no_two_rows_have_answers_that_pass_for_each_other(name: str, built: dict[str, Path]) -> None:
    (scores,) = bare.answers(built[name], bare.rows_for(built[name])[:50]).values()
    assert scores.shape == (50, 10)
    apart = np.abs(scores[:, None] - scores[None]) - ABSOLUTE - RELATIVE * np.abs(scores[None])
    pairs = ~np.eye(50, dtype=bool)
    assert (apart.max(axis=-1)[pairs] > 0).all()


def test_answers_of_a_whole_batch_are_those_of_its_rows(built: dict[str, Path]) -> None:
    rows = bare.rows_for(built["mnist"])[:8]
    session = bare.open_model(built["mnist"])
    (together,) = session.run(None, {"image": rows})
    (each,) = bare.answers(built["mnist"], rows).values()
    assert np.allclose(together, each, ABSOLUTE, RELATIVE)
