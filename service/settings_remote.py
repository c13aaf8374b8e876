"""The settings section `remote`, and what makes a URL given as `repository` into one.

A repository that is a URL is two things: the URL, and the folder that holds what was downloaded from it. Who serves
sees only the folder, which has the layout of any repository.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

SCHEMES = ("s3", "gs", "az", "https", "http", "hf")

_URL = re.compile(rf"({'|'.join(SCHEMES)})://[^/@?#\s]+(/[^?#\s]*)?")


class RemoteRepository(BaseModel, frozen=True, extra="forbid"):
    """What is downloaded where `repository` is a URL. Needs the extra `remote`."""

    url: Annotated[
        str | None,
        Field(description="Where versions are downloaded from; the same as a URL given as `repository`."),
    ] = None
    cache_dir: Annotated[
        Path | None,
        Field(description="The folder for what is downloaded. Default: `shoal` in `$XDG_CACHE_HOME` or `~/.cache`."),
    ] = None
    max_bytes: Annotated[
        int, Field(ge=1, description="Most that is kept there for one URL; what was used longest ago goes first.")
    ] = 20 << 30
    timeout_s: Annotated[
        float, Field(gt=0, description="How long a connection may be silent before it is given up and tried again.")
    ] = 30.0


def located(values: dict[str, Any]) -> dict[str, Any]:  # Any: what the sources gave, not yet validated
    """`values` with `repository` the folder of the cache and `remote.url` the URL, where either is one.

    Raises   ValueError
    """
    section = values.get("remote", {})
    section = section.model_dump(exclude_unset=True) if isinstance(section, RemoteRepository) else dict(section)
    given, url = values.get("repository"), section.get("url")
    if isinstance(given, str) and "://" in given:
        if url not in (None, given):
            raise ValueError(f"repository: {given!r} and remote.url: {url!r} are two places; give one")
        url = given
    elif url is not None and given is not None:
        raise ValueError(f"repository: {str(given)!r} and remote.url: {url!r} exclude each other; give one")
    if url is None:
        return values
    if not _URL.fullmatch(url):
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ValueError(
            f"repository: expected a folder, or a URL that starts with one of {known} and has no credentials and no "
            f"query, not {url.split('@')[-1].split('?')[0]!r}"
        )
    folder = cache_folder(url, Path(section["cache_dir"]) if section.get("cache_dir") else None)
    return values | {"repository": folder / "repository", "remote": section | {"url": url}}


def cache_folder(url: str, cache_dir: Path | None = None) -> Path:
    """The folder of one URL: its last part, so that people find it, and a digest, so that no two share one."""
    root = cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal"
    plain = url.rstrip("/")
    name = re.sub(r"[^\w.-]", "_", plain.rpartition("/")[2])
    return root / f"{name}-{hashlib.sha256(plain.encode()).hexdigest()[:12]}"
