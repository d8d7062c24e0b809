"""The fields of a policy and of its limits as keyword arguments, for type checkers alone.

Nothing imports this when it runs. That the names are those of `Policy` and `Limits`, a test says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Literal, TypedDict

from capsule.confine.seccomp.spec import Seccomp

from .mounts import Mount
from .policy import IdMap, Limits, Network, System

Size = int | str
Time = float | str
Variables = Mapping[str, str] | Mapping[bytes, bytes] | Sequence[tuple[str, str]]
Maybe = Variables | Mapping[str, str | None] | Sequence[tuple[str, str | None]]


class LimitFields(TypedDict, total=False):
    """What `Limits` takes."""

    timeout: Time | None
    output: Size | None
    cpu_time: Time | None
    idle: Time | None
    memory: Size | None
    swap: Size | None
    cpus: float | str | None
    cpu_weight: int | str | None
    pids: int | str | None
    file_size: Size | None
    open_files: int | str | None


class PolicyFields(TypedDict, total=False):
    """What `Policy` takes."""

    mounts: Sequence[Mount]
    root: str | PathLike[str] | None
    system: System | Literal["all", "needed"]
    show_cwd: bool
    protect: Sequence[str]
    unprotect: Sequence[str]
    network: Network | Literal["none", "host"]
    hostname: str
    uid: int
    gid: int
    id_map: IdMap | Literal["caller", "auto", "host-root"]
    env: Variables | None
    extra_env: Maybe
    inherit_env: bool
    cwd: str | PathLike[str] | None
    limits: Limits
    allow_degraded: Sequence[str]
    seccomp: Seccomp | str
    pretend_chown: bool


class Overrides(PolicyFields, LimitFields, total=False):
    """What `run`, `start` and `plan` take besides: fields of the policy, or of its limits."""
