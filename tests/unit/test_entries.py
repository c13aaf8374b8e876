"""Entries of shared memory: found by key, given to others when their key is gone, never told under another's."""

import threading

import pytest

from service.entries import Entries

ALL = slice(None)


def test_an_entry_is_found_again_by_its_key_and_regions_are_apart() -> None:
    entries = Entries(2, 3, 4)
    entries.cells(0, "a")[1] = 7
    entries.cells(1, "a")[1] = 9
    assert entries.cells(0, "a")[1] == 7
    assert list(entries.read(0, ALL)) == [("a", [0, 7, 0, 0])]
    assert list(entries.read(1, slice(1, 2))) == [("a", [9])]


def test_a_full_region_has_no_entry_to_give() -> None:
    entries = Entries(1, 2, 1)
    for key in ("a", "b"):
        entries.cells(0, key)[0] = 5
    assert entries.cells(0, "c") is None
    assert dict(entries.read(0, ALL)) == {"a": [5], "b": [5]}


def test_a_replaced_entry_begins_at_zero_and_its_old_key_is_gone() -> None:
    entries = Entries(1, 2, 2)
    for key in ("a", "b"):
        entries.cells(0, key)[1] = 5
    assert entries.replace(0, "a", "longer than it").tolist() == [0, 0]
    assert entries.keys(0) == ["longer than it", "b"]
    assert list(entries.read(0, ALL, "a")) == []
    assert list(entries.read(0, ALL, "b")) == [("b", [0, 5])]


@pytest.mark.parametrize("left", ["half", ""], ids=["with its key", "without a key"])
def test_what_an_owner_left_half_renamed_is_skipped_by_readers_and_mended_by_the_next_owner(left: str) -> None:
    entries = Entries(1, 2, 1)
    entries.cells(0, "half")
    entries.cells(0, "whole")[0] = 1
    entry = next(entries._entries(0))
    entry[0] += 1  # the owner died here, or a little later
    entry[8:12] = left.encode().ljust(4, b"\0")
    assert list(entries.read(0, ALL)) == [("whole", [1])]
    assert entries.cells(0, "whole")[0] == 1
    if left:
        entries.replace(0, "half", "new")[0] = 2
    else:
        entries.cells(0, "new")[0] = 2
    assert list(entries.read(0, ALL)) == [("new", [2]), ("whole", [1])]


def test_no_reader_sees_cells_under_another_key_than_their_own_or_misses_an_entry_that_stays() -> None:
    entries = Entries(1, 2, 64)
    entries.cells(0, "0")
    entries.cells(0, "stays")[0] = -1
    enough = threading.Event()

    def rename() -> None:
        number = 0
        while not enough.is_set():
            number += 1
            cells = entries.replace(0, str(number - 1), str(number))
            for i in range(0, 64, 16):
                cells[i] = number

    writer = threading.Thread(target=rename)
    writer.start()
    seen = set()
    try:
        while len(seen) < 50:
            read = dict(entries.read(0, ALL))
            assert read.pop("stays")[0] == -1
            for key, cells in read.items():
                assert set(cells) <= {0, int(key)}
                seen.add(key)
    finally:
        enough.set()
        writer.join()
