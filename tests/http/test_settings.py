"""Settings that cannot be used stop the start: exit code 2, a message that names them, and no traceback."""

from pathlib import Path

import pytest

from tests.support.server import starting_server


@pytest.mark.parametrize(
    ("flags", "environment", "file", "said"),
    [
        (["--prot", "1"], {}, "", ["--prot"]),
        (["--batching.max-batch", "1"], {}, "", ["--batching.max-batch"]),
        (["--batching.max-queue-items", "many"], {}, "", ["--batching.max-queue-items", "integer", "'many'"]),
        (["--server.drain-delay-s", "-1"], {}, "", ["--server.drain-delay-s", "greater than or equal to 0"]),
        (["--engine.device", "tpu"], {}, "", ["--engine.device", "'cpu'", "'tpu'"]),
        (["--port", "70000"], {}, "", ["--server.port", "65535"]),
        (["--port"], {}, "", ["--port"]),
        (["surplus"], {}, "", ["surplus"]),
        ([], {"SHOAL_PROT": "1"}, "", ["SHOAL_PROT", "no such setting"]),
        (
            [],
            {"SHOAL_BATCHING_MAX_BATCH_SIZE": "1"},
            "",
            ["SHOAL_BATCHING_MAX_BATCH_SIZE", "did you mean SHOAL_BATCHING__MAX_BATCH_SIZE?"],
        ),
        ([], {"SHOAL_BATCHING": "{}"}, "", ["SHOAL_BATCHING"]),
        ([], {"SHOAL_SERVER__BODY_TIMEOUT_S": "soon"}, "", ["SHOAL_SERVER__BODY_TIMEOUT_S", "number", "'soon'"]),
        ([], {"SHOAL_SERVER__PORT": ""}, "", ["SHOAL_SERVER__PORT", "integer"]),
        ([], {}, "[batching]\nmax_batch = 1\n", ["shoal.toml", "batching.max_batch", "no such setting"]),
        ([], {}, "[batsching]\nmax_batch_size = 1\n", ["shoal.toml", "batsching", "no such setting"]),
        ([], {}, "[server]\nport = 'http'\n", ["shoal.toml", "server.port", "integer", "'http'"]),
        ([], {}, "server = 7\n", ["shoal.toml", "server"]),
        ([], {}, "[server\n", ["shoal.toml", "line 1"]),
        (["--config", "/nowhere.toml"], {}, "", ["/nowhere.toml", "not a file"]),
        (["--batching.max-queue-items", "8"], {}, "", ["max_batch_size", "max_queue_items", "never form"]),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_and_the_exit_code_is_2(
    tmp_path: Path, flags: list[str], environment: dict[str, str], file: str, said: list[str]
) -> None:
    if file:
        (tmp_path / "shoal.toml").write_text(file)
        flags = [*flags, "--config", str(tmp_path / "shoal.toml")]
    with starting_server(*flags, environment=environment) as (server, _):
        assert server.wait() == 2
        for words in said:
            assert words in server.log()
        assert "Traceback" not in server.log()
        assert not server.printed
