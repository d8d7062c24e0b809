"""Capsule runs untrusted programs on Linux in an isolated environment: no root, no daemon.

General layout, from top to bottom; nothing imports upward:

    cli, doctor         the command line
    policy_verb         what the command line says of policies
    request             from options to a policy
    options, report     what the command line takes and says
    found               a capsule.toml that was found, not named
    schema, profile     policies as TOML, and a JSON Schema of them
    profile_text, toml_text, shapes
                        parts of that
    profiles            the policies that are built in
    checks, causes, trials
                        what doctor says, concludes and tries
    api                 run(), start(), plan(): glue
    terminal            a pty for interactive runs
    supervise, streams, records, verdict
                        Process: pipes, kill, reap, Result
    closing             what is done when all is dead
    layers, aftermath   what overlays changed; what must not stay
    applying, comparing
                        parts of the former
    launch              plan -> running command, or the error that says why not
    hints               what a failed step means, and what to do
    plan                pure: policy x host x command -> steps; the one place that orders them
    protections, limits
                        what a plan promises; what enforces a limit
    view, identity      pure parts of it: what stands where, and who runs
    command             where the program lies
    needs, loader, elf  what a program needs of /usr
    homes               which directories are homes
    surveyor            what lies where a policy points
    examine             the part of it that only some policies need
    hiding, sources     parts of that
    survey, sightings   what was found; how protected names are
    overlaps, leads     files with two ways to them; where a link in a tree leads
    sockets             which sockets lie in a tree
    guards, patterns    names that are protected; patterns of what is hidden
    cursor, walk        ways through trees that follow no link
    host                what this kernel offers
    delegation          where a cgroup can be
    cgroup              control groups: one of a capsule's own
    spawn               the only code that starts the launcher
    failure             the error of a step
    steps, file_steps, step, policy, result, changes
    mounts, quantities, paths
                        parts of a policy
    errors
    descriptors, signals, choice, values, text, path_text
                        small things below all
"""

from .api import DEVNULL, INHERIT, PIPE, STDOUT, plan, run, start
from .changes import Action, Change, SetAside
from .errors import CapsuleError, HostError, InternalError, PolicyError
from .failure import SetupError
from .host import Host, probe
from .mounts import Mount
from .plan import Plan, Terminal
from .policy import IdMap, Limits, Network, Policy, System
from .result import CommandFailed, Outcome, Result, Usage
from .seccomp import Seccomp
from .supervise import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capsule.seccomp.denials import Denial

    from . import profile
    from .layers import Layer, open_layer

__version__ = "0.1.0"

__all__ = [
    "DEVNULL",
    "INHERIT",
    "PIPE",
    "STDOUT",
    "Action",
    "CapsuleError",
    "Change",
    "CommandFailed",
    "Denial",
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
    "start",
]


def __getattr__(name: str) -> object:
    """What few programs use is imported when it is used."""
    if name in ("Layer", "open_layer"):
        from . import layers

        return getattr(layers, name)
    if name == "Denial":
        from capsule.seccomp.denials import Denial

        return Denial
    if name == "profile":
        import importlib

        return importlib.import_module(".profile", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
