"""Capsule runs untrusted programs on Linux in an isolated environment: no root, no daemon.

The rooms, from top to bottom; one imports itself and those below it, nothing else:

    cli                 words in, words and an exit status out; the only code that prints
    fleet               many capsules: made ahead, on an event loop, for Python functions
    api                 run(), start(), plan()
    process             one capsule, from its plan to its Result
    changes             what a run left on the host
    planner             pure: policy x host x program x survey -> plan
    program             what is to be run, and what it needs to be seen
    files               what lies where a policy points, looked at without trusting it
    policy              what the user wants: frozen values, and as TOML
    host                what this host offers
    confine, launcher   walls beside the view; the Python half of the C launcher
    base                errors, values, text, paths, signals, descriptors
"""

# ruff: noqa: E402 - the bundle comes first
from capsule.base import bundle

bundle.install()

from capsule.base.errors import CapsuleError, HostError, InternalError, PolicyError
from capsule.confine.seccomp.spec import Seccomp
from capsule.host.host import Host, probe
from capsule.planner.plan import Plan, Terminal
from capsule.policy.limits import Limits
from capsule.policy.mounts import Mount
from capsule.policy.policy import Git, IdMap, Network, Policy, System
from capsule.process.stdio import DEVNULL, INHERIT, PIPE, STDOUT

from .api import plan, run, start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capsule.changes.layer import Layer, open_layer
    from capsule.changes.values import Action, Change, SetAside
    from capsule.confine.seccomp.denials import Denial
    from capsule.fleet.aio import AsyncProcess, run_async, start_async
    from capsule.fleet.codec import Garbled
    from capsule.fleet.executor import Executor
    from capsule.fleet.interpreter import CallFailed
    from capsule.fleet.pool import Pool
    from capsule.launcher.failure import SetupError
    from capsule.policy.toml import read as profile
    from capsule.process.handle import Process
    from capsule.process.network.contact import Contact
    from capsule.process.result import CommandFailed, Outcome, Result, Usage

__version__ = "0.1.0"

__all__ = [
    "DEVNULL",
    "INHERIT",
    "PIPE",
    "STDOUT",
    "Action",
    "AsyncProcess",
    "CallFailed",
    "CapsuleError",
    "Change",
    "CommandFailed",
    "Contact",
    "Denial",
    "Executor",
    "Garbled",
    "Git",
    "Host",
    "HostError",
    "IdMap",
    "InternalError",
    "Layer",
    "Limits",
    "Mount",
    "Network",
    "Outcome",
    "Plan",
    "Policy",
    "PolicyError",
    "Pool",
    "Process",
    "Result",
    "Seccomp",
    "SetAside",
    "SetupError",
    "System",
    "Terminal",
    "Usage",
    "__version__",
    "open_layer",
    "plan",
    "probe",
    "profile",
    "run",
    "run_async",
    "start",
    "start_async",
]


# What a start can do without until its launcher is at work, or for good: module to names.
_LAZY = {
    "capsule.changes.layer": ("Layer", "open_layer"),
    "capsule.changes.values": ("Action", "Change", "SetAside"),
    "capsule.confine.seccomp.denials": ("Denial",),
    "capsule.fleet.aio": ("AsyncProcess", "run_async", "start_async"),
    "capsule.fleet.codec": ("Garbled",),
    "capsule.fleet.executor": ("Executor",),
    "capsule.fleet.interpreter": ("CallFailed",),
    "capsule.fleet.pool": ("Pool",),
    "capsule.launcher.failure": ("SetupError",),
    "capsule.process.handle": ("Process",),
    "capsule.process.network.contact": ("Contact",),
    "capsule.process.result": ("CommandFailed", "Outcome", "Result", "Usage"),
}


def __getattr__(name: str) -> object:
    """Return what is imported when it is used."""
    import importlib

    if name == "profile":
        return importlib.import_module("capsule.policy.toml.read")
    for module, names in _LAZY.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names: the rooms are nobody else's business."""
    return sorted(__all__)
