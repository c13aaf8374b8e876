"""Content-Encoding both ways: gzip, and deflate, which in HTTP is the zlib container (RFC 9110 §8.4.1).

A body is decompressed before it is looked at, so `Inference-Header-Content-Length` counts the JSON as it is without.
Nothing is decompressed beyond `server.max_body_bytes`, and only the first of it in the event loop; what is larger is
for a thread. Answers are compressed where the client's Accept-Encoding asks and they have at least `LEAST_BYTES`.
"""

import functools
import re
import zlib

from service.errors import BodyTooLarge, MalformedRequest
from service.frontend.http import Answer

LEAST_BYTES = 1024  # a shorter answer is one packet with or without
INLINE_BYTES = 65536  # uncompressed; about a millisecond

_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_NAMES = {b"gzip": "gzip", b"x-gzip": "gzip", b"deflate": "deflate"}
_FASTEST = 1
_QUALITY = re.compile(rb"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")
_STEP_BYTES = 8 << 20


class Decompression:
    """Of one body: `begin` in the event loop, and, unless that was all, `rest` anywhere."""

    def __init__(self, encoding: str, body: bytes, max_bytes: int) -> None:
        self._encoding = encoding
        self._max_bytes = max_bytes
        self._left = body
        self._zlib = zlib.decompressobj(_WINDOW[encoding])
        self._chunks: list[bytes] = []
        self._size = 0

    def begin(self) -> bytes | None:
        """The whole body, or None: it is long. Raises MalformedRequest, BodyTooLarge."""
        return self._read(INLINE_BYTES)

    def rest(self) -> bytes:
        """The whole body. Raises MalformedRequest, BodyTooLarge."""
        while (body := self._read(_STEP_BYTES)) is None:
            pass
        return body

    def _read(self, step: int) -> bytes | None:
        """Up to `step` bytes more; the whole once that was the end."""
        end = self._size + min(step, self._max_bytes - self._size + 1)
        while self._size < end:
            try:
                chunk = self._zlib.decompress(self._left, end - self._size)
            except zlib.error as error:
                raise MalformedRequest(f"the body is not valid {self._encoding}: {error}") from error
            self._chunks.append(chunk)
            self._size += len(chunk)
            if self._zlib.eof:
                return self._whole()
            if not self._zlib.unconsumed_tail and self._size < end:
                raise MalformedRequest(f"the body ends in the middle of its {self._encoding} data")
            self._left = self._zlib.unconsumed_tail
        self._check_size()
        return None

    def _whole(self) -> bytes:
        self._check_size()
        if more := self._zlib.unused_data:  # members after the first would cost a copy of what is left for each
            raise MalformedRequest(f"{len(more)} bytes follow the body's {self._encoding} data; expected none")
        return b"".join(self._chunks)

    def _check_size(self) -> None:
        if self._size > self._max_bytes:
            raise BodyTooLarge(
                f"the body is more than {self._max_bytes} bytes once decompressed; at most that many are accepted"
            )


def encoding_of(header: bytes) -> str | None:
    """What Content-Encoding says; None: the body is as it is. Raises MalformedRequest."""
    name = header.strip().lower()
    if name in (b"", b"identity"):
        return None
    if (encoding := _NAMES.get(name)) is None:
        raise MalformedRequest(
            f"Unsupported content-encoding {header.decode('latin-1')!r}; expected gzip, deflate or identity"
        )
    return encoding


@functools.lru_cache(256)
def accepted_encoding(header: bytes) -> str | None:
    """The one that Accept-Encoding wants most; None: none of ours. RFC 9110 §12.5.3, gzip before deflate."""
    wanted: dict[str, float] = {}
    for item in header.lower().split(b","):
        name, *parameters = (part.strip() for part in item.split(b";"))
        matches = (_QUALITY.fullmatch(parameter) for parameter in parameters)
        quality = next((float(match.group(1)) for match in matches if match), 1.0)
        if name == b"*":
            for encoding in _WINDOW:
                wanted.setdefault(encoding, quality)
        elif (name_of := _NAMES.get(name)) is not None:
            wanted[name_of] = quality
    best = max(_WINDOW, key=lambda encoding: wanted.get(encoding, 0.0))
    return best if wanted.get(best, 0.0) > 0 else None


def wanted_encoding(headers: dict[bytes, bytes], answer: Answer) -> str | None:
    """How the answer should go out; None: as it is."""
    header = headers.get(b"accept-encoding")
    if header is None or answer.status != 200 or len(answer.body) < LEAST_BYTES:
        return None
    return accepted_encoding(header)


def compress(encoding: str, answer: Answer) -> Answer:
    """The answer with its body compressed."""
    compressor = zlib.compressobj(_FASTEST, wbits=_WINDOW[encoding])
    answer.body = compressor.compress(answer.body) + compressor.flush()
    answer.headers += ((b"content-encoding", encoding.encode()), (b"vary", b"accept-encoding"))
    return answer
