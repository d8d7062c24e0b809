"""The command line: flags to a policy, and a result to an exit status.

What only some runs need is imported where it is needed: start-up time is a budget.
"""

from __future__ import annotations

import os
import sys

from capsule import api
from capsule.base import signals
from capsule.base.errors import CapsuleError, PolicyError

from .options import help_text, parse
from .request import place_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from capsule.planner.plan import Plan

    from .options import Options

VERBS = ("run", "plan", "policy", "doctor")

HELP = """\
usage: capsule [run] [OPTIONS] [--] COMMAND [ARG...]
       capsule plan [OPTIONS] [--] COMMAND [ARG...]
       capsule policy show [OPTIONS] | list | protected | schema
       capsule doctor [--json]

Run an untrusted program in an isolated environment: its own identity, files,
processes and network, without root and without a daemon.

  run      run the command (also without the word)
  plan     print every step that a run would take; nothing is executed
  policy   print a policy as TOML, the built-in profiles, the names that are
           protected, or the schema
  doctor   say what this host can enforce, what is missing, and the remedy

  capsule VERB --help   the options of a verb
  capsule --version     the version
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _main(words)
        sys.stdout.flush()
        return status
    except CapsuleError as error:
        from .report import say

        say(str(error))
        return error.exit_code
    except OSError as error:
        return _cannot_write(error)
    except MemoryError:
        os.write(2, _NO_MEMORY)
        return CapsuleError.exit_code


_NO_MEMORY = (
    b"capsule: out of memory\n"
    b"  The command was not run, or its result is lost.\n"
    b"  hint: raise ulimit -v and ulimit -d, or free some memory\n"
)


def _cannot_write(error: OSError) -> int:
    """The reader of what we print has gone, as it may, or its disk is full."""
    from .report import forget_output, say

    forget_output()
    if isinstance(error, BrokenPipeError):
        return 128 + signals.SIGPIPE
    say(f"cannot write the output: {error.strerror}")
    return CapsuleError.exit_code


def entry() -> NoReturn:
    """The command itself: `main`, without what the interpreter does at its end (2 ms)."""
    # A parent may have left it ignored, and then nothing could be waited for.
    signals.set_handler(signals.SIGCHLD, signals.SIG_DFL)
    _open_standard_streams()
    os._exit(main())


def _open_standard_streams() -> None:
    """Where the caller closed 0, 1 or 2, put /dev/null: no file of ours may get their numbers."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name, fd in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, "w", closefd=False))  # noqa: SIM115
        # A name that the locale has no letters for is shown all the same.
        getattr(sys, name).reconfigure(errors="backslashreplace")


def _main(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h"):
        (sys.stdout if words else sys.stderr).write(HELP)
        return 0 if words else 2
    if words[0] == "--version":
        from capsule import __version__

        print(f"capsule {__version__}")
        return 0
    verb = words.pop(0) if words[0] in VERBS else "run"
    if verb == "doctor":
        return _doctor(words)
    if verb == "policy":
        from . import policy as policy_verb

        sys.stdout.write(policy_verb.main(words))
        return 0
    options = parse(verb, words)
    if options.has("--help"):
        sys.stdout.write(help_text(verb))
        return 0
    if verb == "plan":
        print(_plan(options))
        return 0
    from . import run
    from .forward import Interrupted, die_of

    try:
        return run.run(options)
    except Interrupted as interrupt:
        # Nothing runs any more: end as any program does.
        die_of(interrupt.number)


def _plan(options: Options) -> Plan:
    from .run import policy_of

    try:
        return api.plan(options.command, policy_of(options))
    except CapsuleError as error:
        place_error(options, error)
        raise


def _doctor(words: list[str]) -> int:
    if words in (["--help"], ["-h"]):
        print("usage: capsule doctor [--json]\n\nSay what this host can enforce, and what to do.")
        return 0
    if words not in ([], ["--json"]):
        raise PolicyError(f"doctor: unknown option {words[0]}", hint="`capsule doctor --help`")
    from .doctor import doctor

    return doctor.main(json=bool(words))
