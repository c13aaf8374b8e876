"""What was loaded and routed by request, kept over a restart of the service (`control.state_file`)."""

import logging
import os
from pathlib import Path

import msgspec

from service.lifecycle.messages import Table

log = logging.getLogger(__name__)


def save(path: Path, table: Table) -> None:
    """There whole, or as before. That it cannot be written is logged; the service goes on."""
    kept = Table(routing=table.routing, explicit=table.explicit, files=table.files)
    beside = path.with_name(f".{path.name}.new")
    try:
        with beside.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        log.error("control.state_file %s cannot be written: %s", path, error.strerror)


def restored(path: Path) -> Table:
    """What was kept; nothing where there is no such file, or where it cannot be read, which is logged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Table)
    except FileNotFoundError:
        return Table()
    except (OSError, msgspec.DecodeError) as error:
        log.error("control.state_file %s is put aside: %s", path, error)
        return Table()
