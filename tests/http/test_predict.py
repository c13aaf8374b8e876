"""POST /predict/{model}: images of all kinds, JSON, raw rows; every answer is checked against its own input."""

import io
import time
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support.build_models import COLOURS, QUARTERS, quarters_of
from tests.support.pictures import (
    bmp_header,
    encode,
    gif_header,
    jpeg_header,
    png_header,
    quarters,
    webp_header,
)

PIXELS_PER_QUARTER = 14 * 14
GREYS = (200, 40, 120, 10)
PICTURE = quarters(*GREYS)
OCTETS = {"content-type": "application/octet-stream"}


def predict(http: httpx.Client, body: bytes, model: str = "scores", content_type: str | None = None) -> httpx.Response:
    return http.post(f"/predict/{model}", content=body, headers={"content-type": content_type} if content_type else {})


def scores_of(answer: httpx.Response, labels: tuple[str, ...] = QUARTERS) -> list[list[float]]:
    """The probabilities of each item in the order of `labels`; `top` must be complete and best first."""
    assert answer.status_code == 200, answer.text
    items = []
    for prediction in answer.json()["predictions"]:
        top = prediction["top"]
        probabilities = [entry["probability"] for entry in top]
        assert probabilities == sorted(probabilities, reverse=True)
        assert {"label": prediction["label"], "probability": prediction["probability"]} == top[0]
        by_label = {entry["label"]: entry["probability"] for entry in top}
        assert by_label.keys() == set(labels)
        items.append([by_label[label] for label in labels])
    return items


def greys_of(answer: httpx.Response) -> list[float]:
    """The mean grey of each quarter."""
    ((*sums,),) = scores_of(answer)
    return [total / PIXELS_PER_QUARTER for total in sums]


def refusal(answer: httpx.Response, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    return answer.json()["error"]


# ── images ───────────────────────────────────────────────────────────────────────────────────────────────────────────

LOSSLESS = {
    "PNG": encode(PICTURE),
    "GIF": encode(PICTURE, "GIF"),
    "BMP": encode(PICTURE, "BMP"),
    "BMP of 24 bits": encode(np.stack([PICTURE] * 3, -1), "BMP"),
    "WebP": encode(np.stack([PICTURE] * 3, -1), "WEBP", lossless=True),
    "PNG optimised": encode(PICTURE, optimize=True),
}


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("content_type", [None, "application/octet-stream", "image/*", "image/png", "IMAGE/JPEG; q=1"])
def test_lossless_images_arrive_pixel_for_pixel_whatever_they_are_called(
    http: httpx.Client, name: str, content_type: str | None
) -> None:
    answer = predict(http, LOSSLESS[name], content_type=content_type)
    assert (answer.json()["model"], answer.json()["version"]) == ("scores", "1")
    assert greys_of(answer) == list(GREYS)
    assert answer.json()["predictions"][0]["label"] == "top left"


@pytest.mark.parametrize(
    "body",
    [
        encode(PICTURE, "JPEG", quality=95),
        encode(np.stack([PICTURE] * 3, -1), "JPEG", quality=95, progressive=True),
        encode(np.stack([PICTURE] * 3, -1), "WEBP", quality=95),
    ],
    ids=["JPEG", "progressive JPEG", "WebP"],
)
def test_lossy_images_arrive_nearly_so(http: httpx.Client, body: bytes) -> None:
    assert greys_of(predict(http, body)) == pytest.approx(GREYS, abs=4)


def in_mode(mode: str) -> Image.Image:
    return Image.fromarray(PICTURE).convert(mode)


def palette_with_transparency() -> bytes:
    """Palette entry 0 is white and transparent: over black it is black."""
    indices = (PICTURE > 100).astype(np.uint8)  # top left and bottom left: entry 1
    image = Image.frombytes("P", (28, 28), indices.tobytes())
    image.putpalette([255, 255, 255, 100, 100, 100])
    return encode(image, transparency=0)


def half_transparent() -> bytes:
    """White, opaque above and transparent below."""
    pixels = np.full((28, 28, 4), 255, np.uint8)
    pixels[14:, :, 3] = 0
    return encode(pixels)


def sixteen_bits() -> bytes:
    return encode(Image.fromarray(PICTURE.astype(np.uint16) * 257))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (encode(in_mode("RGB")), GREYS),
        (encode(in_mode("RGBA")), GREYS),
        (encode(in_mode("LA")), GREYS),
        (encode(in_mode("P")), GREYS),
        (encode(Image.fromarray(PICTURE > 100)), (255, 0, 255, 0)),
        (palette_with_transparency(), (100, 0, 100, 0)),
        (half_transparent(), (255, 255, 0, 0)),
        (sixteen_bits(), GREYS),
    ],
    ids=["RGB", "RGBA", "LA", "palette", "1 bit", "transparent palette", "transparent RGBA", "16 bits"],
)
def test_colours_become_grey_and_transparency_black(http: httpx.Client, body: bytes, expected: tuple) -> None:
    assert greys_of(predict(http, body)) == pytest.approx(expected, abs=1)


def test_a_cmyk_jpeg_is_converted(http: httpx.Client) -> None:
    body = encode(Image.fromarray(np.stack([PICTURE] * 3, -1)).convert("CMYK"), "JPEG", quality=95)
    assert greys_of(predict(http, body)) == pytest.approx(GREYS, abs=5)


# How each orientation of Exif 2.32 §4.6.5 (tag 0x0112) must be stored so that it shows as PICTURE.
STORED = {
    1: PICTURE,
    2: PICTURE[:, ::-1],
    3: PICTURE[::-1, ::-1],
    4: PICTURE[::-1],
    5: PICTURE.T,
    6: np.rot90(PICTURE),
    7: PICTURE[::-1, ::-1].T,
    8: np.rot90(PICTURE, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_an_image_is_turned_upright(http: httpx.Client, orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    body = encode(stored.convert("RGB"), file_format, quality=95, exif=exif.tobytes())
    assert greys_of(predict(http, body)) == pytest.approx(GREYS, abs=5)


@pytest.mark.parametrize("side", [2, 14, 56, 140, 1400])
def test_other_sizes_are_scaled(http: httpx.Client, side: int) -> None:
    tolerance = {2: 30, 14: 6}.get(side, 4)  # enlarging blurs the edges between quarters
    assert greys_of(predict(http, encode(quarters(*GREYS, side=side)))) == pytest.approx(GREYS, abs=tolerance)


def test_crop_cuts_the_centre(http: httpx.Client) -> None:
    wide = np.full((28, 84), 255, np.uint8)
    wide[:, 28:56] = PICTURE
    assert greys_of(predict(http, encode(wide))) == pytest.approx(GREYS, abs=1)
    assert greys_of(predict(http, encode(np.ascontiguousarray(wide.T)))) == pytest.approx([200, 120, 40, 10], abs=1)


def test_pad_shows_the_whole_and_stretch_fills(http: httpx.Client) -> None:
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, :8, 0], wide[:, 8:, 1] = 200, 100  # red left, green right
    padded = scores_of(predict(http, encode(wide), "padded"), COLOURS)
    stretched = scores_of(predict(http, encode(wide), "stretched"), COLOURS)
    assert padded[0] == pytest.approx([200 * 16, 100 * 16, 0], rel=0.02)
    assert stretched[0] == pytest.approx([200 * 32, 100 * 32, 0], rel=0.02)


def test_colour_images_keep_their_channels_in_order(http: httpx.Client) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:] = (10, 20, 30)
    for file_format in ("PNG", "BMP"):
        assert scores_of(predict(http, encode(pixels, file_format), "padded"), COLOURS) == [[640, 1280, 1920]]
    assert scores_of(predict(http, encode(np.full((8, 8), 9, np.uint8)), "padded"), COLOURS) == [[576] * 3]


def test_the_first_frame_of_an_animation_counts(http: httpx.Client) -> None:
    frames = [Image.fromarray(PICTURE), Image.fromarray(quarters(0, 0, 0, 255))]
    for file_format in ("GIF", "PNG"):
        body = encode(frames[0], file_format, save_all=True, append_images=frames[1:])
        assert greys_of(predict(http, body)) == pytest.approx(GREYS, abs=1)
    colour = [frame.convert("RGB") for frame in frames]
    body = encode(colour[0], "WEBP", save_all=True, append_images=colour[1:], lossless=True)
    assert greys_of(predict(http, body)) == pytest.approx(GREYS, abs=1)


@pytest.mark.parametrize("model", ["scores", "padded", "stretched"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 1000), (20000, 1)], ids=str)
def test_images_of_extreme_proportions_are_answered(http: httpx.Client, model: str, size: tuple[int, int]) -> None:
    body = encode(Image.new("L", size, 100))
    answer = predict(http, body, model)
    labels = QUARTERS if model == "scores" else COLOURS
    sums = scores_of(answer, labels)[0]
    if model != "padded":
        assert sums == pytest.approx([100 * 784 / 4] * 4 if model == "scores" else [100 * 64] * 3, rel=0.02)


PNG = encode(np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8))
JPEG = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), "JPEG")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", ["no image", "PNG"]),
        (b"x", ["no image", "PNG"]),
        (b"hello, world" * 10, ["no image", "JPEG"]),
        (b"\0" * 784, ["no image"]),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", ["no image"]),
        (PNG[:8], ["no image"]),
        (PNG[:20], []),
        (PNG[: len(PNG) // 2], ["decoded"]),
        (PNG[:-60], ["decoded"]),
        (JPEG[: len(JPEG) // 2], ["decoded"]),
        (encode(PICTURE, "TIFF"), ["no image"]),
        (encode(PICTURE, "ICO"), ["no image"]),
        (encode(PICTURE, "PPM"), ["no image"]),
        (b"\xff\xd8\xff" + b"\0" * 100, []),
        (b"GIF89a" + b"\0" * 100, []),
        (b"RIFF\x10\0\0\0WEBPVP8 ", []),
        (png_header(28, 28, bits=3), []),
        (png_header(280, 280), ["decoded"]),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else "",
)
def test_what_is_no_whole_image_is_refused(http: httpx.Client, body: bytes, said: list[str]) -> None:
    message = refusal(predict(http, body, content_type="image/png"))
    for words in said:
        assert words in message


@pytest.mark.parametrize("seed", range(8))
def test_damaged_images_are_refused_or_answered_but_never_our_fault(http: httpx.Client, seed: int) -> None:
    random = np.random.default_rng(seed)
    whole = [PNG, JPEG, *LOSSLESS.values()]
    for body in whole * 3:
        damaged = bytearray(body)
        for at in random.integers(0, len(body), 4):
            damaged[at] = random.integers(0, 256)
        answer = predict(http, bytes(damaged), content_type="image/png")
        assert answer.status_code in (200, 400), answer.text


@pytest.mark.parametrize("size", [(0, 28), (28, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("make", [png_header, gif_header, bmp_header, jpeg_header])
def test_an_image_without_pixels_is_refused(http: httpx.Client, make: Any, size: tuple[int, int]) -> None:
    refusal(predict(http, make(*size), content_type="image/png"))


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (png_header, (100_000, 100_000)),
        (png_header, (2**31 - 1, 2**31 - 1)),
        (png_header, (10_000, 10_000)),
        (png_header, (50_000_001, 1)),
        (gif_header, (65535, 65535)),
        (bmp_header, (30_000, 30_000)),
        (bmp_header, (9000, -9000)),
        (webp_header, (16_384, 16_384)),
        (jpeg_header, (65_500, 65_500)),
        (jpeg_header, (10_000, 10_000)),
    ],
)
def test_a_decompression_bomb_is_refused_by_its_header(http: httpx.Client, make: Any, size: tuple[int, int]) -> None:
    body = make(*size)
    begun = time.monotonic()
    message = refusal(predict(http, body, content_type="image/png"))
    assert time.monotonic() - begun < 0.5
    assert "pixels" in message


@pytest.mark.parametrize("content_type", ["text/plain", "text/html", "multipart/mixed; boundary=x", "video/mp4", "x"])
def test_an_unsupported_content_type_is_415(http: httpx.Client, content_type: str) -> None:
    message = refusal(predict(http, PNG, content_type=content_type), 415)
    assert content_type.split(";")[0] in message
    assert "application/json" in message


def test_a_model_without_an_image_input_refuses_images(http: httpx.Client) -> None:
    message = refusal(predict(http, PNG, "echo", "image/png"), 415)
    assert "image/png" in message
    assert "application/json, multipart/form-data or application/octet-stream" in message
    odd = PNG + b"!" * (1 - len(PNG) % 4 + 4)
    assert "multiple of 4" in refusal(predict(http, odd, "echo"))


@pytest.mark.parametrize("body", [PNG, b"{}", b"1234"])
@pytest.mark.parametrize("content_type", ["image/png", "application/json", "application/octet-stream"])
def test_a_model_with_two_inputs_points_to_infer(http: httpx.Client, body: bytes, content_type: str) -> None:
    answer = predict(http, body, "two", content_type)
    message = refusal(answer, 415 if content_type == "image/png" else 400)
    if content_type != "image/png":
        assert "2 inputs" in message
        assert "/v2/models/two/infer" in message


# ── JSON and raw rows ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (5, 28, 28, 1), np.uint8)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
def test_json_instances_are_answered_each_for_itself(
    http: httpx.Client, images: np.ndarray, n: int, flat: bool
) -> None:
    chosen = images[:n].reshape(n, -1) if flat else images[:n]
    answer = http.post("/predict/scores", json={"instances": chosen.tolist()})
    assert scores_of(answer) == quarters_of(images[:n]).tolist()


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("headers", [{}, OCTETS, {"content-type": "application/x-www-form-urlencoded"}])
def test_raw_rows_are_answered_each_for_itself(http: httpx.Client, images: np.ndarray, n: int, headers: dict) -> None:
    answer = http.post("/predict/scores", content=images[:n].tobytes(), headers=headers)
    assert scores_of(answer) == quarters_of(images[:n]).tolist()


def test_raw_rows_that_look_like_the_start_of_an_image_are_taken_for_one(http: httpx.Client) -> None:
    body = b"\x89PNG\r\n\x1a\n" + b"\0" * 776
    refusal(http.post("/predict/scores", content=body, headers=OCTETS))


def test_raw_rows_that_begin_with_bm_are_still_rows(http: httpx.Client, images: np.ndarray) -> None:
    row = b"BM" + images[0].tobytes()[2:]
    expected = quarters_of(np.frombuffer(row, np.uint8).reshape(1, 28, 28, 1)).tolist()
    assert scores_of(http.post("/predict/scores", content=row, headers=OCTETS)) == expected


@pytest.mark.parametrize(
    ("model", "instances", "expected"),
    [
        (
            "echo",
            [[2, 4, 6, 8], [1, 1, 1, 1]],
            [{"same": [2, 4, 6, 8], "half": [1, 2, 3, 4]}, {"same": [1] * 4, "half": [0.5] * 4}],
        ),
        ("halves", [[0.5, 1, 2]], [{"y": [1, 2, 4]}]),
        ("flags", [[True, False, False]], [{"y": [False, True, True]}]),
        ("floats", [[None, 2.5]], [{"y": [None, 2.5]}]),
        ("picky", [3, 9], [{"y": [33]}, {"y": [99]}]),
    ],
)
def test_a_model_without_labels_answers_its_outputs_by_name(
    http: httpx.Client, model: str, instances: list, expected: list
) -> None:
    answer = http.post(f"/predict/{model}", json={"instances": instances})
    assert answer.json() == {"model": model, "version": "1", "predictions": expected}


@pytest.mark.parametrize("values", [[3, 200, 7], [0, 0, 255], [255, 1, 0], [128, 127, 129]])
def test_labels_of_whole_numbers_are_ordered_too(http: httpx.Client, values: list[int]) -> None:
    prediction = http.post("/predict/votes", json={"instances": [values]}).json()["predictions"][0]
    assert prediction["probability"] == max(values)
    assert [entry["probability"] for entry in prediction["top"]] == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("query", "n"),
    [
        *(("", 4), ("?", 4), ("?other=1", 4), ("?top_k=1", 1), ("?top_k=3", 3), ("?top_k=4", 4), ("?top_k=5", 4)),
        *(("?top_k=1&top_k=2", 2), ("?top%5Fk=2", 2), ("?top_k=99999999999", 4), ("?top_k=" + "9" * 5000, 4)),
    ],
    ids=lambda value: str(value)[:24],
)
def test_top_k_limits_the_labels(http: httpx.Client, query: str, n: int) -> None:
    prediction = http.post(f"/predict/scores{query}", content=LOSSLESS["PNG"]).json()["predictions"][0]
    expected = sorted(zip(GREYS, QUARTERS, strict=True), reverse=True)[:n]
    assert [entry["label"] for entry in prediction["top"]] == [label for _, label in expected]
    assert prediction["label"] == "top left"


@pytest.mark.parametrize("given", ["0", "-1", "abc", "1.5", "", "+1", "1e1", "²", "null"])
def test_a_top_k_that_is_no_number_from_one_is_refused(http: httpx.Client, given: str) -> None:
    answer = http.post("/predict/scores", params={"top_k": given}, content=PNG)
    message = refusal(answer)
    assert "top_k" in message
    assert "whole number from 1" in message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", ["prediction request", "JSON"]),
        (b"{", ["prediction request", "JSON"]),
        (b"[[1, 2, 3, 4]]", ["object", "array"]),
        (b"{}", ["instances"]),
        (b'{"instances": 7}', ["instances", "array", "int"]),
        (b'{"instances": null}', ["instances", "array", "null"]),
        (b'{"instances": []}', ["instances", "empty"]),
        (b'{"instances": [[1, 2, 3]]}', ["'x'", "3 values", "4"]),
        (b'{"instances": [1, 2, 3, 4]}', ["'x'", "4 values", "16"]),
        (b'{"instances": [[1, 2, 3, 4], [1, 2]]}', ["'x'", "ragged"]),
        (b'{"instances": [[1, 2, 3, 256]]}', ["'x'", "256", "0 to 255"]),
        (b'{"instances": [[1, 2, 3, 0.5]]}', ["'x'", "whole numbers", "`float`"]),
        (b'{"instances": [["a", "b", "c", "d"]]}', ["'x'", "whole numbers", "`str`"]),
        (b'{"instances": [{"x": [1, 2, 3, 4]}]}', ["'x'", "whole numbers", "`object`"]),
        (b'{"instances": [[1, 2, 3, ' + b"9" * 5000 + b"]]}", []),
        (b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ["nested"]),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else "",
)
def test_json_that_does_not_fit_is_refused_and_named(http: httpx.Client, body: bytes, said: list[str]) -> None:
    message = refusal(predict(http, body, "echo", "application/json"))
    for words in said:
        assert words in message


@pytest.mark.parametrize("n_bytes", [0, 1, 783, 785, 1567])
def test_bytes_that_are_no_whole_rows_are_refused(http: httpx.Client, n_bytes: int) -> None:
    message = refusal(predict(http, b"\1" * n_bytes, content_type="application/octet-stream"))
    assert "multiple of 784" in message
    assert str(n_bytes) in message


def test_more_items_than_there_is_room_for_are_refused(http: httpx.Client) -> None:
    assert "1025 items" in refusal(predict(http, b"\1" * 4 * 1025, "echo"))
    assert "1024" in refusal(http.post("/predict/echo", json={"instances": [[1, 2, 3, 4]] * 1025}))


def test_the_picture_helper_is_what_the_model_sees() -> None:
    assert quarters_of(PICTURE.reshape(1, 28, 28, 1))[0].tolist() == [grey * PIXELS_PER_QUARTER for grey in GREYS]
    assert Image.open(io.BytesIO(LOSSLESS["PNG"])).size == (28, 28)
