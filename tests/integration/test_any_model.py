"""Engine and client with models whose items differ in shape, and what loading finds out about a batch axis."""

import asyncio
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.manifest import (
    GOLDEN_FILE,
    MODEL_FILE,
    Golden,
    Manifest,
    TensorInput,
    Tolerance,
    digest_file,
    write_golden,
    write_manifest,
)
from service.batching.arena import ShapedRow
from service.batching.client import Client
from service.batching.link import link_pair
from service.engine.batch_axis import try_batch
from service.engine.instance import Instance
from service.engine.loop import Engine
from service.engine.repository import FoundVersion, LoadedVersion, load_version
from service.engine.session import Session, UnservableModel
from service.errors import EngineError
from tests.integration.conftest import SETTINGS
from tests.support.build_any import build_any_repository
from tests.support.claims import answered

FAR = 10**18


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_any_repository(tmp_path_factory.mktemp("any"))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[tuple[int, ...]]]]:
    """For every run that frontends asked for, the shapes of its items."""
    batches: list[list[tuple[int, ...]]] = []
    run = Instance.run

    def recording(self: Instance, slots: list[int]) -> None:
        shapes = [tuple(region.shape(slot) for _, region in self._shaped_inputs) for slot in slots]
        batches.append(shapes)
        run(self, slots)

    monkeypatch.setattr(Instance, "run", recording)
    return batches


async def ask(client: Client, name: str, tensor: str, items: list[np.ndarray]) -> list[ShapedRow]:
    """The rows of the first output whose items differ in size."""
    model = client.known(name)
    assert model is not None
    with model.claim(len(items)) as claim:
        claim.write(tensor, [ShapedRow(item.shape, item.tobytes()) for item in items])
        await answered(claim, FAR)
        rows = claim.read_shaped(next(iter(model.shaped_outputs)))
        return [ShapedRow(row.shape, bytes(row.data)) for row in rows]


@pytest.mark.parametrize("max_queue_delay_us", [0, 20_000])
async def test_items_of_unequal_shapes_never_share_a_batch_and_equal_ones_do(
    models: Path, tmp_path: Path, recorded: list[list[tuple[int, ...]]], max_queue_delay_us: int
) -> None:
    shutil.copytree(models / "ragged", tmp_path / "ragged")
    frontend_link, engine_link = link_pair()
    client = Client(frontend_link)
    engine = Engine(tmp_path, replace(SETTINGS, max_queue_items=1024), max_queue_delay_us, {0: engine_link})
    engine.start()
    await asyncio.wait_for(client.loaded.wait(), 30)
    recorded.clear()
    chosen = random.Random(0)

    async def check(i: int) -> None:
        items = [np.full(chosen.randint(1, 4), i + k, np.float32) for k in range(chosen.choice([1, 1, 3]))]
        for item, row in zip(items, await ask(client, "ragged", "x", items), strict=True):
            assert row == ShapedRow(item.shape, (item + item).tobytes())

    await asyncio.gather(*(check(i) for i in range(400)))
    assert all(len(set(batch)) == 1 for batch in recorded)
    assert max(len(batch) for batch in recorded) > 1, "no batch formed: this shows nothing"
    assert len({batch[0] for batch in recorded}) == 4
    client.close()
    await asyncio.to_thread(engine.stop)


async def test_an_output_too_large_for_its_row_fails_alone_within_its_batch(
    models: Path, tmp_path: Path, recorded: list[list[tuple[int, ...]]]
) -> None:
    shutil.copytree(models / "repeated", tmp_path / "repeated")
    frontend_link, engine_link = link_pair()
    client = Client(frontend_link)
    engine = Engine(tmp_path, SETTINGS, 20_000, {0: engine_link})
    engine.start()
    await asyncio.wait_for(client.loaded.wait(), 30)
    recorded.clear()

    async def repeat(text: bytes) -> bytes:
        model = client.known("repeated")
        assert model is not None
        with model.claim(1) as claim:
            claim.write("x", [ShapedRow((), len(text).to_bytes(4, "little") + text)])
            await answered(claim, FAR)
            return bytes(claim.read_shaped("y")[0].data)

    texts = [b"a", b"b" * 1000, b"c", b"d"]  # five times 1000 bytes are more than a row holds
    answers = await asyncio.gather(*(repeat(text) for text in texts), return_exceptions=True)
    assert len(recorded[0]) == 4, "they ran together at first"
    for text, answer in zip(texts, answers, strict=True):
        if len(text) == 1000:
            assert isinstance(answer, EngineError)
            assert "batching.max_row_bytes" in str(answer)
        else:
            assert answer == b"\x05\0\0\0" + text * 5
    client.close()
    await asyncio.to_thread(engine.stop)


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        *(("ragged", "independent"), ("pictures", "independent"), ("words", "independent"), ("upper", "independent")),
        *(("centred", "dependent"), ("running", "dependent"), ("reversed", "dependent"), ("split", "dependent")),
        *(("narrow", "failed"), ("late", "independent"), ("labels", "alike")),  # no invented text is a cat or a dog
    ],
)
def test_a_trial_tells_a_batch_from_what_looks_like_one(models: Path, name: str, verdict: str) -> None:
    session = Session(models / name / "1" / MODEL_FILE, 1)
    assert session.batch_axis_by_name
    assert try_batch(session, None, 1 << 20) == verdict


@pytest.mark.parametrize("name", ["fixed", "matrix", "mixed", "constant", "either"])
def test_a_name_alone_can_rule_a_batch_out(models: Path, name: str) -> None:
    assert not Session(models / name / "1" / MODEL_FILE, 1).batch_axis_by_name


def published(models: Path, root: Path, name: str, golden: Golden) -> FoundVersion:
    """A copy with a manifest and these golden rows."""
    folder = root / name / "1"
    shutil.copytree(models / name / "1", folder)
    write_golden(folder, golden)
    session = Session(folder / MODEL_FILE, 1)
    manifest = Manifest(
        name=name,
        version=1,
        description="",
        created_at="2026-01-01T00:00:00Z",
        inputs=session.inputs,
        outputs=session.outputs,
        input=TensorInput(),
        classification=None,
        metrics={},
        tolerance=Tolerance(),
        files={file: digest_file(folder / file) for file in (MODEL_FILE, GOLDEN_FILE)},
    )
    write_manifest(folder, manifest)
    return FoundVersion(name, "1", folder)


X = np.float32([[1, 2, 3], [4, 5, 7]])
BITS = np.array([[0x3F80, 0x4000, 0x4040], [0x4080, 0x40A0, 0x40E0]], np.uint16)  # X
WORDS = np.array([["a", "b"], ["c", "dé"]])
GOLDEN = {
    "ragged": Golden({"x": X}, {"double": 2 * X, "total": X.sum(axis=1)}),
    "upper": Golden({"x": BITS}, {"y": 2 * X}),
    "words": Golden({"a": WORDS, "b": WORDS}, {"y": np.char.add(WORDS, WORDS)}),
    "fixed": Golden({"x": X.reshape(1, 3, 2)}, {"y": 2 * X.reshape(1, 3, 2)}),
    "late": Golden({"x": np.arange(120).reshape(2, 60)}, {"y": np.arange(120).reshape(2, 60)}),
    "narrow": Golden({"x": np.array([50, 59])}, {"y": np.array([0, 9])}),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_rows_of_every_kind_are_replayed(models: Path, tmp_path: Path, name: str) -> None:
    loaded = load_version(published(models, tmp_path, name, GOLDEN[name]), SETTINGS)
    assert loaded.golden_rows == len(next(iter(GOLDEN[name].inputs.values())))
    assert loaded.setup.rates, "measured with a golden row"
    close(loaded)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_rows_of_every_kind_that_differ_refuse_the_version(models: Path, tmp_path: Path, name: str) -> None:
    outputs = {
        tensor: np.char.add(array, "!") if array.dtype.kind == "U" else array + array.dtype.type(1)
        for tensor, array in GOLDEN[name].outputs.items()
    }
    found = published(models, tmp_path, name, Golden(GOLDEN[name].inputs, outputs))
    with pytest.raises(UnservableModel, match=r"golden rows: output .* differs"):
        load_version(found, SETTINGS)


def test_where_a_manifest_says_batch_dependent_items_run_one_by_one(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = Golden({"x": X[:1]}, {"y": np.zeros((1, 3), np.float32)})
    loaded = load_version(published(models, tmp_path, "centred", one), SETTINGS)
    assert (loaded.facts.batch_axis, loaded.facts.max_batch_size) == (True, 1)
    assert "items run one by one" in caplog.text
    close(loaded)


def test_only_models_whose_items_differ_in_shape_have_keys(models: Path) -> None:
    for name, has_key in (("all-FP32", False), ("ragged", True), ("labels", True)):
        loaded = load_version(FoundVersion(name, "1", models / name / "1"), SETTINGS)
        assert (loaded.key_of is not None) == has_key
        close(loaded)


@pytest.mark.parametrize(("max_row_bytes", "capacity"), [(4096, 64), (16 << 20, 32), (64 << 20, 16)])
def test_large_rows_leave_room_for_fewer_items(models: Path, max_row_bytes: int, capacity: int) -> None:
    settings = replace(SETTINGS, max_row_bytes=max_row_bytes)
    loaded = load_version(FoundVersion("outer", "1", models / "outer" / "1"), settings)
    assert abs(loaded.facts.capacity - capacity) <= 1  # a row has its shape in front
    close(loaded)


def close(loaded: LoadedVersion) -> None:
    os.close(loaded.arena_fd)
