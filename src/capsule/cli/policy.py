"""`capsule policy`: what a policy is, as text."""

from __future__ import annotations

from .options import FLAGS, option_lines, parse_flags, usage_error
from .request import effective

HELP = """\
usage: capsule policy show [OPTIONS]
       capsule policy list
       capsule policy protected
       capsule policy schema

  show     print what these options come to, as TOML for --profile; the options
           are those of run, and --all: what is the default, too
  list     name the built-in profiles
  protected
           name what is read-only in a writable tree, and why, for --unprotect
  schema   print the JSON Schema of a profile, for editors
"""
_SHOW = {**FLAGS, "--all": ""}


def main(words: list[str]) -> str:
    """Return what to print.

    Raises:
        PolicyError: the words make no sense, or what they ask for.
    """
    if words in (["--help"], ["-h"]):
        return HELP
    verbs = {"show": _show, "list": _list, "protected": _protected, "schema": _schema}
    if not words or words[0] not in verbs:
        raise usage_error("policy", f"policy: {f'no {words[0]}' if words else 'needs a word'}")
    return verbs[words[0]](words[1:])


def _show(words: list[str]) -> str:
    options = parse_flags("policy show", words, _SHOW)
    if options.has("--help"):
        return "\n".join(["usage: capsule policy show [--all] [OPTIONS]", "", *option_lines(), ""])
    if options.command:
        raise usage_error("policy show", f"policy show takes no command: {options.command[0]}")
    from capsule.policy.toml.read import dump

    policy, _ = effective(options, guarded=False)
    if policy.unprotect:
        from capsule.policy.protected import in_force

        in_force((), policy.unprotect)  # refuses a name that there is not
    return dump(policy, everything=options.has("--all"))


def _list(words: list[str]) -> str:
    _nothing_more("list", words)
    from capsule.policy.builtin import NAMES

    return "".join(f"{name:14} {text}\n" for name, text in NAMES.items())


def _protected(words: list[str]) -> str:
    _nothing_more("protected", words)
    from capsule.policy.protected import TABLE

    return "".join(f"{guard.name:30} {guard.why}\n" for guard in TABLE)


def _schema(words: list[str]) -> str:
    _nothing_more("schema", words)
    import json

    from capsule.policy.toml.schema import schema

    return json.dumps(schema(), indent=2) + "\n"


def _nothing_more(verb: str, words: list[str]) -> None:
    if words:
        raise usage_error("policy", f"policy {verb} takes nothing more: {words[0]}")
