"""Versions loaded, replaced and unloaded by request, with requests in flight all the time."""

import asyncio
from collections import Counter

import pytest

from service.errors import LoadRefused, ModelNotReady, UnknownModel, VersionInUse
from service.lifecycle.messages import LoadModel, MoveAlias, Promote, SetSplit, UnloadModel
from tests.lifecycle.conftest import Lifecycle, Start, remove_version, write_version


async def test_the_newest_version_answers_and_a_newer_one_takes_its_place(start: Start, tmp_path) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    async with start(root) as lifecycle:
        assert await lifecycle.predict("times", 7) == 70
        write_version(root, "times", 2, 100)
        await lifecycle.ask(LoadModel("times"))
        assert await lifecycle.predict("times", 7) == 700
        assert lifecycle.state("times", 2) == "READY"
        assert lifecycle.state("times", 1) == "UNAVAILABLE unloaded"
        with pytest.raises((UnknownModel, ModelNotReady)):
            await lifecycle.predict("times", 7, "1")


async def keep_asking(lifecycle: Lifecycle, seen: Counter[int], stop: asyncio.Event) -> None:
    x = 0
    while not stop.is_set():
        x += 1
        answer = await lifecycle.predict("times", x)
        assert answer % x == 0
        seen[answer // x] += 1


async def test_reloads_and_swaps_under_load_lose_nothing(start: Start, tmp_path) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    async with start(root) as lifecycle:
        seen: Counter[int] = Counter()
        stop = asyncio.Event()
        clients = [asyncio.create_task(keep_asking(lifecycle, seen, stop)) for _ in range(8)]
        for version in range(2, 7):
            write_version(root, "times", version, 10**version)
            await lifecycle.ask(LoadModel("times"))
            await lifecycle.ask(LoadModel("times"))  # once more, beside itself
            at = sum(seen.values())
            await lifecycle.until(lambda at=at: sum(seen.values()) > at + 50, "answers after the swap")
        stop.set()
        await asyncio.gather(*clients)
        assert set(seen) == {10**version for version in range(1, 7)}
        assert len(lifecycle.engine._models) == 1
        assert sum(model.in_flight for model in lifecycle.engines.models()) == 0


async def test_a_new_version_that_fails_leaves_the_old_one_serving(start: Start, tmp_path) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    async with start(root) as lifecycle:
        write_version(root, "times", 2, 0, ready=False)
        with pytest.raises(LoadRefused, match=r"version 2: model\.onnx: .*"):
            await lifecycle.ask(LoadModel("times"))
        assert lifecycle.state("times", 2).startswith("UNAVAILABLE model.onnx")
        assert await lifecycle.predict("times", 3) == 30


async def test_at_the_start_an_older_version_serves_where_the_newest_fails(start: Start, tmp_path) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    write_version(root, "times", 2, 0, ready=False)
    async with start(root) as lifecycle:
        assert await lifecycle.predict("times", 3) == 30
        assert lifecycle.state("times", 2).startswith("UNAVAILABLE model.onnx")


async def test_policies_of_the_settings_file_are_kept(start: Start, tmp_path) -> None:
    root = tmp_path / "models"
    for version in range(1, 5):
        write_version(root, "times", version, 10**version)
    (root / "times/model.toml").write_text("[versions]\nlatest = 2\n")
    async with start(root) as lifecycle:
        assert lifecycle.engines.versions("times") == ["3", "4"]
        (root / "times/model.toml").write_text("[versions]\nspecific = [1, 4]\n")
        await lifecycle.ask(LoadModel("times"))
        assert lifecycle.engines.versions("times") == ["1", "4"]
        (root / "times/model.toml").write_text("[versions]\nall = true\n")
        await lifecycle.ask(LoadModel("times"))
        assert lifecycle.engines.versions("times") == ["1", "2", "3", "4"]


async def test_a_settings_file_that_is_wrong_is_the_reason_and_stops_nothing(start: Start, tmp_path) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    write_version(root, "other", 1, 5)
    (root / "other/model.toml").write_text("[batching]\nmax_batch_size = 0\n")
    async with start(root) as lifecycle:
        assert await lifecycle.predict("times", 3) == 30
        assert "model.toml: batching.max_batch_size" in lifecycle.state("other", 1)
        with pytest.raises(LoadRefused, match="max_batch_size"):
            await lifecycle.ask(LoadModel("other"))


async def test_unloaded_models_are_gone_and_come_back(start: Start, tmp_path) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    async with start(root) as lifecycle:
        await lifecycle.ask(UnloadModel("times"))
        assert lifecycle.engines.names() == []
        assert lifecycle.engine._models == {}
        with pytest.raises((UnknownModel, ModelNotReady)):
            await lifecycle.predict("times", 3)
        await lifecycle.ask(LoadModel("times"))
        assert await lifecycle.predict("times", 3) == 30


async def test_a_version_loaded_by_number_stays_beside_the_newest(start: Start, tmp_path) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    write_version(root, "times", 2, 100)
    async with start(root) as lifecycle:
        await lifecycle.ask(LoadModel("times", "1"))
        assert lifecycle.engines.versions("times") == ["1", "2"]
        await lifecycle.ask(UnloadModel("times", "1"))
        assert lifecycle.engines.versions("times") == ["2"]
        with pytest.raises(UnknownModel, match="no version '9'"):
            await lifecycle.ask(LoadModel("times", "9"))
        with pytest.raises(UnknownModel, match="no model 'nothing'"):
            await lifecycle.ask(LoadModel("nothing"))


async def test_what_an_alias_names_is_loaded_kept_and_not_unloaded(start: Start, tmp_path) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    write_version(root, "times", 2, 100)
    async with start(root) as lifecycle:
        await lifecycle.ask(MoveAlias("times", "stable", "1"))
        assert lifecycle.engines.versions("times") == ["1", "2"]
        with pytest.raises(VersionInUse, match="an alias"):
            await lifecycle.ask(UnloadModel("times", "1"))
        await lifecycle.ask(MoveAlias("times", "canary", "2"))
        await lifecycle.ask(SetSplit("times", {"stable": 90, "canary": 10}))
        await lifecycle.ask(Promote("times"))
        routing = lifecycle.controls.table.routing["times"]
        assert (routing.aliases, routing.split) == ({"stable": "2"}, {})
        await lifecycle.until(lambda: lifecycle.engines.versions("times") == ["2"], "version 1 to go")
        with pytest.raises(UnknownModel, match="no version '7'"):
            await lifecycle.ask(MoveAlias("times", "stable", "7"))


async def test_only_models_that_are_chosen_are_loaded_at_the_start(start: Start, tmp_path) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    write_version(root, "other", 1, 5)
    async with start(root, control={"mode": "explicit", "load_at_start": "other"}) as lifecycle:
        assert lifecycle.engines.names() == ["other"]
        await lifecycle.ask(LoadModel("times"))
        assert lifecycle.engines.names() == ["other", "times"]


async def test_a_version_that_went_from_disk_goes_on_until_it_is_replaced(start: Start, tmp_path) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    async with start(root) as lifecycle:
        remove_version(root, "times", 1)
        assert await lifecycle.predict("times", 3) == 30
        write_version(root, "times", 2, 100)
        await lifecycle.ask(LoadModel("times"))
        assert await lifecycle.predict("times", 3) == 300


async def test_what_was_asked_for_is_kept_over_a_restart(start: Start, tmp_path) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    write_version(root, "times", 2, 100)
    control = {"mode": "explicit", "state_file": tmp_path / "state.json"}
    async with start(root, control=control) as lifecycle:
        await lifecycle.ask(MoveAlias("times", "stable", "1"))
    async with start(root, control=control) as lifecycle:
        assert lifecycle.engines.versions("times") == ["1", "2"]
        assert lifecycle.controls.table.routing["times"].aliases == {"stable": "1"}
