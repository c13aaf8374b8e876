"""Memory that the frontends share: a region for each, of entries that have a key and 64-bit cells.

    region │ entry: generation, key, cells │ entry │ … │ free (no key) │ free │ …

A frontend writes its own region alone and reads all of them, without a lock. An entry is given to another key by its
owner only, who makes the generation odd, empties and renames the entry, and makes it even again: whoever read
meanwhile sees that and reads again, so nothing is told under another's key. Free entries are all behind the others.
Checked by tests/unit/test_entries.py.
"""

import mmap
import struct
from collections.abc import Iterator

_GENERATION = struct.Struct("<Q")
_KEY_BYTES = 512  # two names of files, with a slash between
_HEAD_BYTES = _GENERATION.size + _KEY_BYTES
_TRIES = 3


class Entries:
    """Processes forked after this share it; pages cost memory once written."""

    def __init__(self, n_regions: int, n_entries: int, n_cells: int) -> None:
        self._n_entries = n_entries
        self._entry_bytes = _HEAD_BYTES + 8 * n_cells
        self._memory = memoryview(mmap.mmap(-1, n_regions * n_entries * self._entry_bytes))

    def cells(self, region: int, key: str) -> memoryview | None:
        """The key's, for the region's owner to write; a free entry becomes its. None: there is none."""
        free: memoryview | None = None
        for entry in self._entries(region):
            found = _key(entry)
            if found == key:
                return entry[_HEAD_BYTES:].cast("q")
            if not found:
                free = entry if free is None else free
                if _generation(entry) % 2 == 0:  # else a predecessor died while it renamed this one: more may follow
                    break
        return None if free is None else _rename(free, key)

    def replace(self, region: int, old: str, key: str) -> memoryview:
        """The entry of `old`, which is there, becomes that of `key`, with cells of 0. For the region's owner."""
        return _rename(next(entry for entry in self._entries(region) if _key(entry) == old), key)

    def keys(self, region: int) -> list[str]:
        """For the region's owner."""
        return [key for entry in self._entries(region) if (key := _key(entry))]

    def read(self, region: int, cells: slice, wanted: str | None = None) -> Iterator[tuple[str, list[int]]]:
        """Some cells of every entry, or of the one that is wanted."""
        for entry in self._entries(region):
            for _ in range(_TRIES):
                generation, key = _generation(entry), _key(entry)
                values = entry[_HEAD_BYTES:].cast("q")[cells].tolist() if wanted in (None, key) else []
                if generation % 2 or _generation(entry) != generation:
                    continue
                if not key:
                    return
                if wanted in (None, key):
                    yield key, values
                break

    def _entries(self, region: int) -> Iterator[memoryview]:
        size = self._entry_bytes
        first = region * self._n_entries * size
        for at in range(first, first + self._n_entries * size, size):
            yield self._memory[at : at + size]


def _generation(entry: memoryview) -> int:
    return int(_GENERATION.unpack_from(entry)[0])


def _key(entry: memoryview) -> str:
    return bytes(entry[_GENERATION.size : _HEAD_BYTES]).rstrip(b"\0").decode(errors="replace")


def _rename(entry: memoryview, key: str) -> memoryview:
    odd = _generation(entry) | 1  # it is odd already where the owner's predecessor died here
    _GENERATION.pack_into(entry, 0, odd)
    entry[_GENERATION.size :] = bytes(len(entry) - _GENERATION.size)
    name = key.encode()[:_KEY_BYTES]
    entry[_GENERATION.size : _GENERATION.size + len(name)] = name
    _GENERATION.pack_into(entry, 0, odd + 1)
    return entry[_HEAD_BYTES:].cast("q")
