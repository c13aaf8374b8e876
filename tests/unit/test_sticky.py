"""Which point a request has in a split."""

from service.frontend.sticky import point_for
from service.lifecycle.routing import point_of

HEADERS = {b"x-user": b"anna", b"host": b"x"}


def test_what_decides_gives_the_point() -> None:
    assert point_for("body", HEADERS, b"rows") == point_of(b"rows")
    assert point_for("header:X-User", HEADERS, b"rows") == point_of(b"anna")
    assert point_for("header:x-user", {b"x-user": b""}, b"rows") == point_of(b"")


def test_without_it_chance_does() -> None:
    for sticky in ("", "header:x-other"):
        points = [point_for(sticky, HEADERS, b"rows") for _ in range(20)]
        assert len(set(points)) == 20
        assert all(0 <= point < 1 for point in points)
