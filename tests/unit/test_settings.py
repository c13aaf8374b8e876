"""Settings: three sources in their order, and nothing unknown or unparsable gets through."""

from pathlib import Path

import pytest

from service.settings import Settings, SettingsError, environment_name, flag_name, read_settings, walk


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_flags_win_over_environment_and_environment_over_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "[batching]\nmax_batch_size = 1\nmax_queue_delay_us = 1\nmax_queue_items = 100\n"
    monkeypatch.setenv("SHOAL_CONFIG", write(tmp_path / "shoal.toml", text))
    monkeypatch.setenv("SHOAL_BATCHING__MAX_BATCH_SIZE", "2")
    monkeypatch.setenv("SHOAL_BATCHING__MAX_QUEUE_DELAY_US", "2")
    batching = read_settings(["--batching.max-batch-size", "3"], "serve").batching
    assert (batching.max_batch_size, batching.max_queue_delay_us, batching.max_queue_items) == (3, 2, 100)


def test_without_any_source_the_defaults_hold() -> None:
    assert read_settings([], "serve") == Settings()


def test_port_and_host_have_short_flags() -> None:
    server = read_settings(["--port", "8123", "--host", "127.0.0.1"], "serve").server
    assert (server.port, server.host) == (8123, "127.0.0.1")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("SHOAL_BATCHING__MAX_BATCHSIZE", "3", ["no such setting", "did you mean SHOAL_BATCHING__MAX_BATCH_SIZE?"]),
        ("SHOAL_PROT", "3", ["no such setting"]),
        ("SHOAL_BATCHING__MAX_BATCH_SIZE", "many", ["valid integer", "'many'"]),
        ("SHOAL_BATCHING__MAX_BATCH_SIZE", "0", ["greater than or equal to 1", "'0'"]),
        ("SHOAL_ENGINE__DEVICE", "tpu", ["'auto', 'cpu', 'cuda' or 'tensorrt'", "'tpu'"]),
        ("SHOAL_CONFIG", "/nowhere.toml", ["not a file"]),
    ],
)
def test_a_bad_variable_stops_the_start_and_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: list[str]
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        read_settings([], "serve")
    for words in [variable if variable != "SHOAL_CONFIG" else "config", *said]:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[batching]\nmax_batch = 3\n", ["shoal.toml: batching.max_batch", "no such setting"]),
        ("prt = 3\n", ["shoal.toml: prt", "no such setting"]),
        ("[server]\nport = 'http'\n", ["shoal.toml: server.port", "valid integer", "'http'"]),
        ("[server\n", ["shoal.toml", "line 1"]),
    ],
)
def test_a_bad_file_stops_the_start_and_is_named(tmp_path: Path, text: str, said: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings(["--config", write(tmp_path / "shoal.toml", text)], "serve")
    for words in said:
        assert words in str(caught.value)


def test_a_bad_flag_is_named() -> None:
    with pytest.raises(SettingsError, match=r"--server\.port: .*valid integer.*'http'"):
        read_settings(["--server.port", "http"], "serve")
    with pytest.raises(SystemExit):
        read_settings(["--prot", "1"], "serve")


def test_all_faults_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_ENGINE__CORES", "none")
    with pytest.raises(SettingsError) as caught:
        read_settings(["--port", "-5"], "serve")
    assert len(str(caught.value).splitlines()) == 2


def test_more_frontends_than_items_are_refused() -> None:
    with pytest.raises(SettingsError, match="of which each has its share"):
        read_settings(
            ["--frontends", "3", "--batching.max-queue-items", "2", "--batching.max-batch-size", "1"], "serve"
        )


def test_a_batch_that_could_never_form_is_refused() -> None:
    with pytest.raises(SettingsError, match="could never form"):
        read_settings(["--batching.max-batch-size", "64", "--batching.max-queue-items", "8"], "serve")


def test_what_kubernetes_puts_into_the_environment_is_not_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SHOAL_SERVICE_HOST", "SHOAL_SERVICE_PORT", "SHOAL_SERVICE_PORT_HTTP", "SHOAL_PORT"):
        monkeypatch.setenv(name, "tcp://10.0.0.1:8000")
    monkeypatch.setenv("SHOAL_PORT_8000_TCP_ADDR", "10.0.0.1")
    assert read_settings([], "serve").server.port == 8000


def test_every_knob_can_be_set_by_flag_and_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "host": "::1",
        "device": "tensorrt",
        "gpu_mem_limit_bytes": str(1 << 30),
        "level": "error",
        "format": "json",
        "repository": "s3://elsewhere/models",
        "url": "s3://elsewhere/models",
        "grpc_port": "3",  # no other server is there
        "key": "k" * 16,
    }
    flags: list[str] = []
    for path, info in walk():
        if path in (("config",), ("admin", "key_file")):  # a file that is read; not beside a key
            continue
        other = not info.default if isinstance(info.default, bool) else info.default or 2
        value = values.get(path[-1]) or str(other)
        monkeypatch.setenv(environment_name(path), value)
        flags += [flag_name(path), value]
    by_environment = read_settings([], "serve")
    for path, _ in walk():
        monkeypatch.delenv(environment_name(path), raising=False)
    assert read_settings(flags, "serve") == by_environment != Settings()
