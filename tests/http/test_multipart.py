"""POST /predict/{model} with several items: the parts of a form, and base64 images among JSON's numbers."""

import base64
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from tests.http.conftest import Serve
from tests.http.test_predict import GREYS, PICTURE, PIXELS_PER_QUARTER, refusal, scores_of
from tests.support.build_models import quarters_of
from tests.support.pictures import encode, png_header, quarters
from tests.support.server import Server, wait_until
from tests.support.wire import Wire

File = tuple[str, tuple[str, bytes] | tuple[str, bytes, str]]


def post(http: httpx.Client, files: list[File], model: str = "scores", query: str = "") -> httpx.Response:
    return http.post(f"/predict/{model}{query}", files=files)


def form(*parts: bytes, boundary: bytes = b"x") -> bytes:
    """Parts with their own heads, as they stand."""
    return b"".join(b"--%s\r\n%s\r\n" % (boundary, part) for part in parts) + b"--%s--\r\n" % boundary


def post_form(http: httpx.Client, body: bytes, model: str = "scores", boundary: str = "x") -> httpx.Response:
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    return http.post(f"/predict/{model}", content=body, headers=headers)


def numbered(i: int, side: int = 28) -> np.ndarray:
    """Quarters that tell the number of the picture."""
    return quarters(i % 256, 255 - i % 256, (3 * i) % 256, (7 * i) % 256, side)


def b64(body: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(body).decode()}


# ── forms ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("n", [1, 2, 40])
def test_every_part_is_answered_in_the_order_of_the_form(http: httpx.Client, n: int) -> None:
    files: list[File] = [("images", (f"{i}.png", encode(numbered(i)), "image/png")) for i in range(n)]
    answer = post(http, files)
    assert (answer.json()["model"], answer.json()["version"]) == ("scores", "1")
    assert scores_of(answer) == quarters_of(np.stack([numbered(i) for i in range(n)])).tolist()


def test_formats_and_raw_rows_mix_and_field_names_are_free(http: httpx.Client) -> None:
    pictures = [numbered(i) for i in range(6)]
    files: list[File] = [
        ("a", ("a.png", encode(pictures[0]), "image/png")),
        ("b", ("b.bmp", encode(pictures[1], "BMP"), "image/bmp")),
        ("b", ("row.bin", pictures[2].tobytes(), "application/octet-stream")),
        ("", ("c.gif", encode(pictures[3], "GIF"), "application/octet-stream")),
        ("ü", ("unknown", encode(pictures[4]), "image/*")),
        ("text", ("row.txt", pictures[5].tobytes(), "text/plain")),
    ]
    assert scores_of(post(http, files)) == quarters_of(np.stack(pictures)).tolist()


def test_top_k_holds_for_every_part(http: httpx.Client) -> None:
    files: list[File] = [("image", (f"{i}.png", encode(numbered(i)))) for i in range(3)]
    assert [len(item["top"]) for item in post(http, files, query="?top_k=2").json()["predictions"]] == [2, 2, 2]


def test_rows_of_a_model_that_takes_no_images_come_in_parts_too(http: httpx.Client) -> None:
    files: list[File] = [("row", (f"{i}.bin", bytes([i, 1, 2, 3]))) for i in range(5)]
    predictions = post(http, files, "echo").json()["predictions"]
    assert [item["same"] for item in predictions] == [[i, 1, 2, 3] for i in range(5)]
    truths: list[File] = [("row", ("a", b"\1\0\1"))]
    assert post(http, truths, "flags").json()["predictions"] == [{"y": [False, True, False]}]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (("cat.png", encode(PICTURE)[:-40], "image/png"), ["parts[1] ('cat.png')", "decoded"]),
        (("cat.txt", b"meow", "text/plain"), ["parts[1] ('cat.txt')", "neither an image", "784"]),
        (("", b"", "application/octet-stream"), ["parts[1] ('second')", "0 bytes"]),
        (("cat.png", b"meow", "image/png"), ["parts[1] ('cat.png')", "no image", "PNG"]),
        (("big.png", png_header(10_000, 10_000), "image/png"), ["parts[1] ('big.png')", "pixels"]),
        (("x" * 5000, b"meow", "image/png"), []),
    ],
    ids=["truncated", "no image", "empty", "text", "bomb", "long name"],
)
def test_an_error_names_the_part(http: httpx.Client, server: Server, broken: Any, said: list[str]) -> None:
    good = ("good.png", encode(PICTURE), "image/png")
    message = refusal(post(http, [("first", good), ("second", broken), ("third", good)]))
    assert len(message) < 500
    for words in said:
        assert words in message
    server.assert_settled()


def test_a_part_of_another_type_is_415_and_named(http: httpx.Client) -> None:
    message = refusal(post(http, [("clip", ("clip.mp4", b"\0" * 784, "video/mp4"))]), 415)
    assert "parts[0] ('clip.mp4')" in message
    assert "an image" in message
    image: File = ("image", ("cat.png", encode(PICTURE), "image/png"))
    assert "image/png" in refusal(post(http, [image], "echo"), 415)


def test_a_byte_that_is_no_truth_is_named(http: httpx.Client) -> None:
    assert "parts[0] ('a')" in refusal(post(http, [("row", ("a", b"\1\0\2"))], "flags"))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", ["multipart/form-data"]),
        (b"--x--\r\n", ["no part"]),
        (form(b'Content-Disposition: form-data; name="a"\r\n\r\n' + PICTURE.tobytes())[:-8], ["multipart/form-data"]),
        (form(b"Content-Type: image/png\r\n\r\n" + encode(PICTURE)), ["Content-Disposition"]),
        (form(b'Content-Disposition: attachment; name="a"\r\n\r\nx'), ["Content-Disposition"]),
        (form(b'Content-Disposition: form-data; name="%s"\r\n\r\nx' % (b"n" * 9000)), ["short headers"]),
        (form(b"".join(b"X-%d: y\r\n" % i for i in range(50)) + b"\r\nx"), ["short headers"]),
        (b"--y\r\n\r\n--y--", ["multipart/form-data"]),
    ],
    ids=["empty", "no part", "cut off", "no name", "attachment", "long header", "many headers", "other boundary"],
)
def test_a_broken_form_is_refused(http: httpx.Client, body: bytes, said: list[str]) -> None:
    message = refusal(post_form(http, body))
    for words in said:
        assert words in message


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary="])
def test_a_form_without_a_boundary_is_refused(http: httpx.Client, content_type: str) -> None:
    answer = http.post("/predict/scores", content=form(b"x"), headers={"content-type": content_type})
    assert "boundary" in refusal(answer)


def test_more_parts_than_there_is_room_for_are_refused(http: httpx.Client) -> None:
    part = b'Content-Disposition: form-data; name="a"\r\n\r\n\1\2\3\4'
    assert len(post_form(http, form(*[part] * 1024), "echo").json()["predictions"]) == 1024
    assert "1 to 1024 parts" in refusal(post_form(http, form(*[part] * 1025), "echo"))


@pytest.mark.parametrize("seed", range(4))
def test_damaged_forms_are_refused_or_answered_but_never_our_fault(http: httpx.Client, seed: int) -> None:
    random = np.random.default_rng(seed)
    part = b'Content-Disposition: form-data; name="a"; filename="b"\r\nContent-Type: image/png\r\n\r\n' + encode(
        PICTURE
    )
    whole = form(part, part)
    for _ in range(40):
        damaged = bytearray(whole)
        for at in random.integers(0, 120, 3):
            damaged[at] = random.integers(0, 256)
        assert post_form(http, bytes(damaged)).status_code in (200, 400, 415)


def test_a_model_with_two_inputs_points_to_infer(http: httpx.Client) -> None:
    assert "/v2/models/two/infer" in refusal(post(http, [("a", ("a", b"1234"))], "two"))


def test_items_that_differ_in_size_are_refused_as_raw_rows(any_http: httpx.Client) -> None:
    assert '{"instances"' in refusal(post(any_http, [("a", ("a", b"1234"))], "ragged"))


# ── large forms ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_large_images_of_a_form_are_decoded_beside_the_event_loop(http: httpx.Client, server: Server) -> None:
    large = [encode(numbered(i, 2800)) for i in range(12)]
    files: list[File] = [("image", (f"{i}.png", body)) for i, body in enumerate(large)]

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{server.url}/predict/scores", files=files, timeout=30, trust_env=False)
        wait_until(lambda: server.items_in_flight() > 0, "slots are claimed before pixels are decoded")
        slowest = 0.0
        while not answer.done():
            begun = time.monotonic()
            assert http.get("/health/live").status_code == 200
            slowest = max(slowest, time.monotonic() - begun)
    expected = quarters_of(np.stack([numbered(i) for i in range(12)]))
    assert np.allclose(scores_of(answer.result()), expected, atol=8 * PIXELS_PER_QUARTER)  # edges blur
    assert slowest < 0.5


def test_many_small_images_whose_sum_is_large_are_decoded_there_too(serve: Serve, only: Any) -> None:
    """A small limit for the event loop, and more small images than it allows."""
    server = serve("--images.decode-in-thread-pixels", str(3 * 784), models=only("scores"))
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as http:
        for n in (1, 2, 3, 30):
            answer = post(http, [("image", (f"{i}.png", encode(numbered(i)))) for i in range(n)])
            assert scores_of(answer) == quarters_of(np.stack([numbered(i) for i in range(n)])).tolist()
        broken: list[File] = [("image", ("a.png", encode(PICTURE)))] * 5 + [("image", ("b.png", encode(PICTURE)[:-30]))]
        assert "parts[5] ('b.png')" in refusal(post(http, broken))
    server.assert_settled()


def test_a_form_that_cannot_be_decoded_in_time_is_504_and_its_slots_are_free(serve: Serve, only: Any) -> None:
    server = serve("--server.request-timeout-ms", "50", models=only("scores"))
    large = encode(np.random.default_rng(0).integers(0, 256, (2000, 2000), np.uint8))
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as http:
        message = refusal(post(http, [("image", ("a.png", large))] * 6), 504)
    assert "of 6 items were decoded" in message
    server.assert_settled()


def test_a_client_that_leaves_while_its_form_is_decoded_frees_its_slots(server: Server) -> None:
    large = encode(np.random.default_rng(0).integers(0, 256, (3000, 3000), np.uint8))
    part = b'Content-Disposition: form-data; name="a"; filename="b"\r\n\r\n' + large
    with Wire(server) as wire:
        wire.post("/predict/scores", form(part, part, part), "Content-Type: multipart/form-data; boundary=x")
        wait_until(lambda: server.items_in_flight() == 3, "three slots are claimed")
    server.assert_settled()


# ── base64 in JSON ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_base64_images_and_numbers_mix_in_json(http: httpx.Client) -> None:
    pictures = [numbered(i) for i in range(4)]
    instances: list[Any] = [
        b64(encode(pictures[0])),
        pictures[1].tolist(),
        b64(encode(pictures[2], "BMP")),
        pictures[3].ravel().tolist(),
    ]
    answer = http.post("/predict/scores", json={"instances": instances})
    assert scores_of(answer) == quarters_of(np.stack(pictures)).tolist()


def test_one_base64_image_is_the_picture(http: httpx.Client) -> None:
    ((*sums,),) = scores_of(http.post("/predict/scores", json={"instances": [b64(encode(PICTURE))]}))
    assert [total / PIXELS_PER_QUARTER for total in sums] == list(GREYS)


@pytest.mark.parametrize(
    ("instance", "said"),
    [
        ({"b64": "!!!"}, ["instances[1].b64", "base64"]),
        ({"b64": "AAA"}, ["instances[1].b64", "base64"]),
        ({"b64": "ü"}, ["instances[1].b64", "base64"]),
        ({"b64": ""}, ["instances[1]", "no image"]),
        ({"b64": 7}, ["instances[1]", "str"]),
        ({"b64": None}, ["instances[1]", "str"]),
        ({"b64": "AAAA", "more": 1}, ["instances[1]", "more"]),
        ({}, ["instances[1]", "b64"]),
        (b64(b"hello"), ["instances[1]", "no image"]),
        (b64(encode(PICTURE)[:-40]), ["instances[1]", "decoded"]),
        (b64(png_header(10_000, 10_000)), ["instances[1]", "pixels"]),
        ([1, 2, 3], ["instances[1]", "3 values", "784"]),
        ([256] * 784, ["instances[1]", "256"]),
        ("text", ["instances[1]", "whole numbers"]),
    ],
    ids=lambda value: str(value)[:24] if not isinstance(value, list) else "",
)
def test_an_instance_that_is_no_image_is_named(
    http: httpx.Client, server: Server, instance: Any, said: list[str]
) -> None:
    message = refusal(http.post("/predict/scores", json={"instances": [b64(encode(PICTURE)), instance]}))
    for words in said:
        assert words in message
    server.assert_settled()


def test_more_base64_images_than_there_is_room_for_are_refused(http: httpx.Client) -> None:
    assert "1 to 1024" in refusal(http.post("/predict/scores", json={"instances": [{"b64": ""}] * 1025}))


def test_base64_is_for_models_that_take_images(http: httpx.Client) -> None:
    message = refusal(http.post("/predict/echo", json={"instances": [{"b64": "AAAA"}]}))
    assert "whole numbers" in message
