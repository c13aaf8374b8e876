"""A process and everything it started, as Linux's /proc shows them: CPU time, memory, how many there are.

A server may be one process or ten: nothing here depends on which. What belongs to it is all that descends from the
process that was started, and all in its session, should one of those have lost its parent.
Checked by tests/unit/test_bench.py.
"""

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Stat(Struct, frozen=True):
    """One process. `ticks` is user and system time, its own and that of children it has waited for.

    ended   it runs no more, but whoever should has not waited for it
    """

    pid: int
    parent: int
    session: int
    ticks: int
    ended: bool = False


def cpu_seconds(root: int) -> float:
    """CPU time of the tree since its start; processes that ended count from when they were waited for."""
    return sum(stat.ticks for stat in tree(root, _stats())) / _TICKS_PER_S


def pids(root: int) -> list[int]:
    """Those that have not ended."""
    return [stat.pid for stat in tree(root, _stats()) if not stat.ended]


def memory_mb(root: int) -> float:
    """Proportional set size of the tree: a page that is shared counts once, over all who share it."""
    total = 0
    for pid in pids(root):
        with contextlib.suppress(OSError):  # it ended while we looked
            total += parse_pss(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return total / 2**20


def parse_stat(text: str) -> Stat:
    """A line of /proc/<pid>/stat. Source: proc(5); the name may hold spaces and brackets, so fields count from ')'."""
    pid = int(text.split(" ", 1)[0])
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(pid, int(fields[1]), int(fields[3]), sum(map(int, fields[11:15])), fields[0] in "ZX")


def parse_pss(text: str) -> int:
    """Bytes in the `Pss:` line of /proc/<pid>/smaps_rollup; 0 where there is none."""
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def tree(root: int, stats: Sequence[Stat]) -> list[Stat]:
    """`root`, everything below it, and everything in the session it leads."""
    by_pid = {stat.pid: stat for stat in stats}
    return [stat for stat in stats if stat.session == root or _is_below(root, stat, by_pid)]


def _is_below(root: int, stat: Stat, by_pid: dict[int, Stat]) -> bool:
    above: Stat | None = stat
    while above is not None and above.pid != root:
        above = by_pid.get(above.parent)
    return above is not None


def _stats() -> list[Stat]:
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended while we looked
            stats.append(parse_stat(path.read_text()))
    return stats
