"""python -m service models: what the admin API of a running service does, from a shell.

The standard library alone, so that it starts at once and needs nothing of what serves.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

_URL = "http://127.0.0.1:8001"
_KEY = "SHOAL_ADMIN__KEY"
_CONNECT_S = 10.0
_COLUMNS = ("MODEL", "VERSION", "STATE", "ALIASES", "SPLIT", "REASON")

Body = dict[str, Any]  # Any: JSON


class CommandError(Exception):
    """What is said of it, in one line."""


class Call(NamedTuple):
    """One request to the admin API; `body` None: it has none."""

    method: str
    path: str
    body: Body | None = None


def main(arguments: Sequence[str]) -> int:
    """0: done, 1: the server refused or is not there, 2 (of argparse): a wrong call."""
    options = _parser().parse_args(list(arguments))
    try:
        answer = _send(options.url, _key(options.key_file), _call(options))
    except CommandError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(answer, indent=2) if options.json else _text(answer))
    return 0


# ── the command line ─────────────────────────────────────────────────────────────────────────────────────────────────


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--url", default=_URL, help=f"the admin port, or a public one with the API (default {_URL})")
    common.add_argument("--key-file", type=Path, help=f"a file that holds the key; else it is in {_KEY}")
    common.add_argument("--json", action="store_true", help="print the server's answer")
    parser = argparse.ArgumentParser(prog="python -m service models", description="Models of a running service.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help_: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, parents=[common], help=help_, description=f"{help_[0].upper()}{help_[1:]}.")

    def of_model(name: str, help_: str) -> argparse.ArgumentParser:
        made = command(name, help_)
        made.add_argument("model")
        return made

    command("list", "every version with its state, aliases and share").add_argument("model", nargs="?")
    for verb in ("load", "unload"):
        of_model(verb, f"{verb} a version, or what the policy wants").add_argument("version", nargs="?")
    alias = of_model("alias", "move an alias to a version, or remove it")
    alias.add_argument("alias")
    _add_or_remove(alias, "version")
    split = of_model("split", "share requests between versions or aliases, as in: stable=0.9 canary=0.1")
    _add_or_remove(split, "weights", metavar="TARGET=WEIGHT", nargs="*", type=_weight)
    split.add_argument("--sticky", default="", help="body, or header:<name>: equal ones get one target")
    shadow = of_model("shadow", "repeat requests on a version or alias and compare the answers")
    _add_or_remove(shadow, "target")
    shadow.add_argument("--sample", type=float, default=1.0, help="part of the requests (default 1)")
    _add_guard(of_model("guard", "when an alias is taken out of the split"))
    promote = of_model("promote", "move an alias to the version of another, which goes")
    promote.add_argument("--alias", default="canary", help="the one that goes (default canary)")
    promote.add_argument("--to", default="stable", help="the one that moves (default stable)")
    command("log-level", "the least severe event that is logged").add_argument(
        "level", choices=("debug", "info", "warning", "error")
    )
    command("drain", "end the service as SIGTERM does")
    return parser


def _add_or_remove(parser: argparse.ArgumentParser, name: str, nargs: str = "?", **options: Any) -> None:
    parser.add_argument(name, nargs=nargs, **options)
    parser.add_argument("--remove", action="store_true", help="have none")
    parser.set_defaults(needs=name, parser=parser)


def _add_guard(parser: argparse.ArgumentParser) -> None:
    """What is left out is the server's to choose."""
    parser.add_argument("--alias", help="the one that is guarded")
    parser.add_argument("--max-error-rate", type=float, help="part of its requests that fail, above that of the others")
    parser.add_argument("--max-latency-ratio", type=float, help="its mean latency over that of the others")
    parser.add_argument("--max-disagreement", type=float, help="part of the shadow's answers that differ")
    parser.add_argument("--min-requests", type=int, help="answers before it is judged")
    parser.add_argument("--window-s", type=float, help="seconds that are looked at")
    parser.add_argument("--remove", action="store_true", help="have none")


def _weight(text: str) -> tuple[str, float]:
    target, _, weight = text.rpartition("=")
    try:
        return target, float(weight)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected TARGET=WEIGHT, as in canary=0.1") from None


def _call(options: argparse.Namespace) -> Call:
    """What the command line asks for; a value that is missing ends the process, as argparse does."""
    if "needs" in options and not options.remove and not getattr(options, options.needs):
        options.parser.error(f"expected {options.needs} or --remove")
    if options.command == "list":
        return Call("GET", _path(options.model) if options.model else "/admin/models")
    if options.command == "log-level":
        return Call("PUT", "/admin/log-level", {"level": options.level})
    if options.command == "drain":
        return Call("POST", "/admin/drain")
    return _call_of_model(options)


def _call_of_model(options: argparse.Namespace) -> Call:
    match options.command:
        case "load" | "unload" as verb:
            return Call("POST", _path(options.model, verb), {"version": options.version} if options.version else {})
        case "promote":
            return Call("POST", _path(options.model, "promote"), {"alias": options.alias, "to": options.to})
        case "alias":
            path, body = _path(options.model, "aliases", options.alias), {"version": options.version}
        case "split":
            path, body = _path(options.model, "split"), {"weights": dict(options.weights), "sticky": options.sticky}
        case "shadow":
            path, body = _path(options.model, "shadow"), {"target": options.target, "sample": options.sample}
        case _:
            path, body = _path(options.model, "guard"), _guard(options)
    return Call("DELETE", path) if options.remove else Call("PUT", path, body)


def _guard(options: argparse.Namespace) -> Body:
    names = ("alias", "max_error_rate", "max_latency_ratio", "max_disagreement", "min_requests", "window_s")
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _path(*parts: str) -> str:
    return "/admin/models/" + "/".join(quote(part, safe="") for part in parts)


# ── the request ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _key(file: Path | None) -> str | None:
    """Raises CommandError."""
    source = _KEY if file is None else f"--key-file {file}"
    try:
        key = (os.environ.get(_KEY, "") if file is None else file.read_text()).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{source} cannot be read: {error}") from error
    if not key.isascii() or not key.isprintable():
        raise CommandError(f"{source}: expected printable ASCII in one line")
    return key or None


def _send(url: str, key: str | None, call: Call) -> Any:
    """The answer's JSON. Raises CommandError. Loading takes as long as it takes, so there is no limit on that."""
    try:
        connection = _connect(url)
    except (OSError, ValueError, HTTPException) as error:
        raise CommandError(
            f"cannot connect to {url}: {error}; is the service running with --admin.port, and is this its address?"
        ) from error
    try:
        connection.request(
            call.method,
            urlsplit(url).path.rstrip("/") + call.path,
            None if call.body is None else json.dumps(call.body),
            {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {}),
        )
        response = connection.getresponse()
        return _read(url, response.status, response.read())
    except (OSError, ValueError, HTTPException) as error:
        raise CommandError(f"no answer from {url}: {str(error) or type(error).__name__}") from error
    finally:
        connection.close()


def _connect(url: str) -> HTTPConnection:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected http://host:port or https://host:port")
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=_CONNECT_S)
    connection.connect()
    connection.sock.settimeout(None)
    return connection


def _read(url: str, status: int, body: bytes) -> Any:
    """Raises CommandError with the server's message."""
    try:
        answer = json.loads(body)
    except ValueError:
        raise CommandError(f"{url} answers {status}, and no JSON: is it Shoal's?") from None
    if status < 300:
        return answer
    message = answer.get("error") if isinstance(answer, dict) else None
    if status == 401:
        message = f"{message} (--key-file, or {_KEY})"
    if status == 404 and str(message).startswith("no such path: /admin"):
        message = f"{url} has no admin API; ask on the port of --admin.port, or set admin.public"
    raise CommandError(f"{status}: {message or answer}")


# ── what is printed ──────────────────────────────────────────────────────────────────────────────────────────────────


def _text(answer: Body) -> str:
    """A table of versions, or whatever else was answered, as words."""
    models = answer.get("models", [answer] if "versions" in answer else None)
    if models is None:
        return ", ".join(f"{name} {json.dumps(value)}" for name, value in answer.items())
    rows = [_COLUMNS, *(row for model in models for row in _rows(model))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *(note for model in models for note in _notes(model))])


def _rows(model: Body) -> Iterator[tuple[str, ...]]:
    aliases, split = model["routing"]["aliases"], model["routing"]["split"]
    total = sum(split.values())
    for found in model["versions"]:
        version = found["version"]
        names = [alias for alias, target in sorted(aliases.items()) if target == version]
        share = sum(split.get(target, 0) for target in (version, *names))
        shown = f"{share / total:.4g}" if total and share else ""
        yield model["name"], version, found["state"], " ".join(names), shown, found["reason"]


def _notes(model: Body) -> Iterator[str]:
    """What is of the model and not of a version."""
    name, routing = model["name"], model["routing"]
    if routing["sticky"]:
        yield f"{name}: sticky by {routing['sticky']}"
    for part in ("shadow", "guard"):
        if routing[part] is not None:
            values = ", ".join(f"{key} {value}" for key, value in routing[part].items() if value is not None)
            yield f"{name}: {part}: {values}"
    if routing["rolled_back"]:
        yield f"{name}: rolled back: {routing['rolled_back']}"
