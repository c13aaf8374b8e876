"""Versions follow the repository: what is new and whole is loaded, what is gone is retired, what is torn is left."""

from pathlib import Path

from tests.lifecycle.conftest import Start, remove_version, write_version

POLL = {"mode": "poll", "settle_s": 0.2, "rescan_s": 1.0}


async def test_new_versions_are_served_and_old_ones_go(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    async with start(root, control=POLL) as lifecycle:
        write_version(root, "times", 2, 100)
        await lifecycle.until(lambda: lifecycle.engines.versions("times") == ["2"], "the new version alone")
        assert await lifecycle.predict("times", 3) == 300
        write_version(root, "other", 1, 5)
        await lifecycle.until(lambda: lifecycle.engines.names() == ["other", "times"], "the new model")
        remove_version(root, "times", 2)
        await lifecycle.until(lambda: lifecycle.engines.versions("times") == ["1"], "the older version again")
        remove_version(root, "other", 1)
        await lifecycle.until(lambda: lifecycle.engines.names() == ["times"], "the model to go")


async def test_a_version_that_is_being_written_is_not_picked_up(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    source = write_version(tmp_path, "source", 1, 100) / "model.onnx"
    content = source.read_bytes()
    async with start(root, control=POLL) as lifecycle:
        folder = root / "times/2"
        folder.mkdir()
        await lifecycle.until(lambda: "model.onnx is missing" in lifecycle.state("times", 2), "the reason")
        with (folder / "model.onnx").open("wb") as file:
            for i in range(0, len(content), 4):  # slower than it settles, in all
                file.write(content[i : i + 4])
                file.flush()
                if i % 40 == 0:
                    await lifecycle.predict("times", 3)
        await lifecycle.until(lambda: lifecycle.engines.versions("times") == ["2"], "the version once it is whole")
        assert await lifecycle.predict("times", 3) == 300


async def test_a_version_that_was_refused_is_tried_again_once_it_changes(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    write_version(root, "times", 2, 100, ready=False)
    good = (write_version(tmp_path, "source", 1, 1000) / "model.onnx").read_bytes()
    async with start(root, control=POLL) as lifecycle:
        assert await lifecycle.predict("times", 3) == 30
        (root / "times/2/model.onnx").write_bytes(good)
        await lifecycle.until(lambda: lifecycle.engines.versions("times") == ["2"], "the version as it was mended")
        assert await lifecycle.predict("times", 3) == 3000


async def test_routing_moves_by_the_settings_file(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    write_version(root, "times", 2, 100)
    async with start(root, control=POLL) as lifecycle:
        (root / "times/model.toml").write_text("[routing]\naliases = { stable = 1, canary = 2 }\n")
        await lifecycle.until(lambda: lifecycle.engines.versions("times") == ["1", "2"], "both versions")
        assert lifecycle.controls.table.routing["times"].aliases == {"stable": "1", "canary": "2"}


async def test_a_model_whose_settings_change_is_loaded_again_with_them(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_version(root, "times", 1, 10)
    engine = {"threads": 1, "tune_budget_s": 0, "device": "cpu", "cores": 2}
    async with start(root, control=POLL, engine=engine) as lifecycle:
        assert lifecycle.engines.find("times").facts.instances == 2
        (root / "times/model.toml").write_text("[engine]\ninstances = 1\n[batching]\nmax_batch_size = 3\n")
        await lifecycle.until(lambda: lifecycle.engines.find("times").facts.instances == 1, "one instance")
        assert lifecycle.engines.find("times").facts.max_batch_size == 3
        assert await lifecycle.predict("times", 3) == 30
