"""Capsule runs untrusted programs on Linux in an isolated environment: no root, no daemon.

General layout, from top to bottom; nothing imports upward:

    cli, doctor         the command line
    options, report     what the command line takes and says
    checks, causes, trials
                        what doctor says, concludes and tries
    api                 run(), start(), plan(): glue
    terminal            a pty for interactive runs
    supervise, streams, verdict
                        Process: pipes, kill, reap, Result
    launch              plan -> running command, or the error that says why not
    plan                pure: policy x host x command -> steps; the one place that orders them
    view, identity      pure parts of it: what stands where, and who runs
    command             where the program lies and what it needs
    host                what this kernel offers
    spawn               the only code that starts the launcher
    steps, step, hints, policy, result, errors
    descriptors, signals, choice, values
                        small things below all
"""

from .api import DEVNULL, INHERIT, PIPE, STDOUT, plan, run, start
from .errors import (
    CapsuleError,
    CommandFailed,
    HostError,
    InternalError,
    PolicyError,
    SetupError,
)
from .host import Host, probe
from .plan import Plan, Terminal
from .policy import IdMap, Limits, Mount, Network, Policy
from .result import Outcome, Result, Usage
from .supervise import Process

__version__ = "0.1.0"

__all__ = [
    "DEVNULL",
    "INHERIT",
    "PIPE",
    "STDOUT",
    "CapsuleError",
    "CommandFailed",
    "Host",
    "HostError",
    "IdMap",
    "InternalError",
    "Limits",
    "Mount",
    "Network",
    "Outcome",
    "Plan",
    "Policy",
    "PolicyError",
    "Process",
    "Result",
    "SetupError",
    "Terminal",
    "Usage",
    "__version__",
    "plan",
    "probe",
    "run",
    "start",
]
