"""For every test: settings of the shell that started it do not reach it."""

import os

import pytest

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as the packages do, for tests that use onnxruntime alone

FOR_THE_TESTS = {"SHOAL_DATA_DIR", "SHOAL_REQUIRE_ALL"}  # not settings: they say which tests can run


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SHOAL_") and name not in FOR_THE_TESTS:
            monkeypatch.delenv(name)
