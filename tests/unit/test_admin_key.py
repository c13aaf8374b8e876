"""When the admin API needs a key, what a key has to be, and that no message shows it."""

from pathlib import Path

import pytest

from service.settings import SettingsError, read_settings
from service.settings_page import page

KEY = "a-key-of-24-characters.."


def refusal(*flags: str) -> str:
    with pytest.raises(SettingsError) as caught:
        read_settings(flags, "serve")
    return str(caught.value)


def key_file(folder: Path, text: str) -> str:
    (folder / "key").write_text(text)
    return str(folder / "key")


def test_without_a_port_there_is_nothing_to_protect() -> None:
    assert read_settings(["--admin.host", "0.0.0.0"], "serve").admin.secret is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_on_loopback_no_key_is_needed(host: str) -> None:
    assert read_settings(["--admin.port", "0", "--admin.host", host], "serve").admin.secret is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "admin.example"])
def test_elsewhere_a_key_is_needed(host: str) -> None:
    said = refusal("--admin.port", "0", "--admin.host", host)
    for words in ("admin.host", host, "admin.key_file"):
        assert words in said


def test_the_public_port_needs_a_key() -> None:
    said = refusal("--admin.public", "true")
    assert "admin.public" in said
    assert "admin.key_file" in said


def test_with_a_key_every_place_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_ADMIN__KEY", KEY)
    flags = ["--admin.port", "0", "--admin.host", "0.0.0.0", "--admin.public", "true"]
    admin = read_settings(flags, "serve").admin
    assert admin.secret is not None
    assert admin.secret.get_secret_value() == KEY


def test_a_file_may_have_the_key_and_is_read_once(tmp_path: Path) -> None:
    path = key_file(tmp_path, f"{KEY}\n")
    admin = read_settings(["--admin.key-file", path], "serve").admin
    key_file(tmp_path, "another key, from then on")
    assert admin.secret is not None
    assert admin.secret.get_secret_value() == KEY


def test_two_keys_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHOAL_ADMIN__KEY", KEY)
    said = refusal("--admin.key-file", key_file(tmp_path, KEY))
    assert "admin.key and admin.key_file" in said
    assert KEY not in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "0 characters; expected 16"),
        ("\n", "0 characters; expected 16"),
        ("too-short-a-key", "15 characters; expected 16"),
        ("a key that has spaces", "without spaces"),
        ("two-lines-of-it\nthis-is-the-other", "printable ASCII"),
        ("schlüssel-mit-umlaut", "printable ASCII"),
    ],
)
def test_a_key_that_is_none_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, said: str
) -> None:
    path = key_file(tmp_path, text)
    by_file = refusal("--admin.key-file", path)
    assert said in by_file
    assert f"admin.key_file {path}" in by_file
    monkeypatch.setenv("SHOAL_ADMIN__KEY", text.strip())
    by_environment = refusal()
    assert said in by_environment
    assert "admin.key:" in by_environment
    for message in (by_file, by_environment):
        assert not text.strip() or text.strip() not in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        said = refusal("--admin.key-file", str(path))
        assert f"admin.key_file {path} cannot be read" in said
    (tmp_path / "key").write_bytes(b"\xff" * 32)
    assert "expected text" in refusal("--admin.key-file", str(tmp_path / "key"))


def test_what_was_meant_as_a_key_is_not_shown_where_it_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "shoal.toml").write_text("[admin]\nkey = 1234567890123456\n")
    said = refusal("--config", str(tmp_path / "shoal.toml"))
    assert "admin.key" in said
    assert "valid string" in said
    assert "1234567890123456" not in said


@pytest.mark.parametrize("other", ["--port", "--server.grpc-port"])
def test_two_servers_on_one_port_could_not_be_told_apart(other: str) -> None:
    assert "admin.port 8123" in refusal("--admin.port", "8123", other, "8123")


def test_the_settings_do_not_print_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_ADMIN__KEY", KEY)
    settings = read_settings([], "serve")
    assert settings.admin.secret is not None
    for text in (repr(settings), str(settings), settings.model_dump_json(), page()):
        assert KEY not in text
