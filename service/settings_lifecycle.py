"""Settings of a model's life: which versions are served, who may change that, and answers that are kept."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, SecretStr

from service.admin_key import read_key


class Control(BaseModel, frozen=True, extra="forbid"):
    """Which versions are served, and what may change that while the service runs."""

    mode: Annotated[
        Literal["none", "explicit", "poll"],
        Field(
            description="`none`: the versions of the start. `explicit`: they are loaded and unloaded by request. "
            "`poll`: as the repository changes."
        ),
    ] = "none"
    load_at_start: Annotated[
        str, Field(description="Models to load at the start: names with commas between, `*` is all, nothing is none.")
    ] = "*"
    latest: Annotated[
        int, Field(ge=1, description="How many of the newest versions of a model are served, where it does not say.")
    ] = 1
    settle_s: Annotated[
        float, Field(ge=0, description="Mode `poll`: a version is loaded once its files have not changed for so long.")
    ] = 2.0
    rescan_s: Annotated[
        float,
        Field(gt=0, description="Mode `poll`: how often to look where the file system tells of no change."),
    ] = 30.0
    require_signature: Annotated[
        Path | None,
        Field(
            description="A file of Ed25519 public keys as OpenSSH writes them, one a line; only versions signed with "
            "one of them are served. Needs the extra `sign`."
        ),
    ] = None
    when_memory_is_short: Annotated[
        Literal["refuse", "in_place"],
        Field(
            description="A new version that does not fit beside the one it replaces is refused, or takes its place "
            "once that is gone."
        ),
    ] = "refuse"
    state_file: Annotated[
        Path | None,
        Field(description="Keeps what was loaded and routed by request over a restart of the service. Default: lost."),
    ] = None


class Admin(BaseModel, frozen=True, extra="forbid"):
    """Who may load, unload, route, set the log level and drain, by request."""

    port: Annotated[
        int | None, Field(ge=0, le=65535, description="A port with the admin API beside all else; 0 takes a free one.")
    ] = None
    host: Annotated[str, Field(description="Address of that port.")] = "127.0.0.1"
    public: Annotated[bool, Field(description="The admin API is on the public port too. Needs a key.")] = False
    key: Annotated[
        SecretStr | None, Field(description="What clients send as `Authorization: Bearer`; rather in the environment.")
    ] = None
    key_file: Annotated[Path | None, Field(description="A file that holds the key.")] = None

    @cached_property
    def secret(self) -> SecretStr | None:
        """The key, as it was when first asked for. Raises ValueError."""
        return read_key(self.key, self.key_file)


class Cache(BaseModel, frozen=True, extra="forbid"):
    """Answers that are kept, to be given again for the same tensors."""

    max_bytes: Annotated[
        int, Field(ge=0, description="Memory for tensors and answers, over all frontends; 0 is no cache.")
    ] = 0
