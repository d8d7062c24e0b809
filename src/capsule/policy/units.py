"""Sizes and times as people write them."""

from __future__ import annotations

from capsule.base.errors import PolicyError
from capsule.base.text import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_SIZE_UNITS = {
    "": 1,
    "B": 1,
    **{f"{u}{s}": 1024 ** (n + 1) for n, u in enumerate("KMGT") for s in ("", "I", "IB")},
    **{f"{u}B": 1000 ** (n + 1) for n, u in enumerate("KMGT")},
}
_INFINITE = float("inf")
_TIME_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_LARGEST_SIZE = 2**63 - 1
_LONGEST_WORD = 40
MOST_CPUS = 8192  # as many as Linux can be built for
# What poll(2) and the launcher count in: more is no limit that anyone means.
_LONGEST_TIME = 10.0 * 365 * 86400


def wrong(field: str, value: object, wanted: str, hint: str) -> PolicyError:
    """Say that a field has a value that cannot be meant."""
    message = f"{field}: not {wanted}: {shown(value)}"
    return PolicyError(message, field=field, value=value, hint=hint)


def unknown(field: str, wanted: str, name: str, known: Iterable[str], where: str) -> PolicyError:
    """Say that a table has no such name, which of its names are like it, and where all of them are."""
    from difflib import get_close_matches  # slow to import

    close = get_close_matches(name, list(known), 3)
    meant = f"do you mean {' or '.join(close)}? " if close else ""
    message = f"{field}: not {wanted}: {name}"
    hint = f"{meant}{where}; all stands for the whole list"
    return PolicyError(message, field=field, value=name, hint=hint)


def parse_size(value: int | str, field: str) -> int:
    """Return a number of bytes: K, M, G, T are 1024-based (also KiB), KB, MB, GB 1000-based.

    Raises:
        PolicyError: it is not a size, is negative, not a whole number of bytes, or too large.
    """
    size = -1
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and len(value) < _LONGEST_WORD:
        digits, letters = _split_number(value.strip())
        size = _whole(digits, _SIZE_UNITS.get(letters.strip().upper(), 0))
    if not 0 <= size <= _LARGEST_SIZE:
        hint = "write bytes or a number with K, M, G, T (1024-based) or KB, MB, GB (1000-based)"
        raise wrong(field, value, "a size", hint)
    return size


def _whole(digits: str, unit: int) -> int:
    """A decimal number of units in bytes, exactly; -1 if it is no number or no whole one."""
    before, _, after = digits.partition(".")
    if not unit or not (before + after).isdigit():
        return -1
    bytes_, rest = divmod(int(before + after) * unit, 10 ** len(after))
    return -1 if rest else bytes_


def parse_time(value: float | str, field: str) -> float:
    """Return seconds: a number, or text such as ``10ms``, ``2.5s``, ``1m30s``, ``1h``.

    Raises:
        PolicyError: it is not a time, not above zero, or longer than ten years.
    """
    seconds = -1.0
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value) if value <= _LONGEST_TIME else -1.0
    elif isinstance(value, str) and 0 < len(value) < _LONGEST_WORD:
        seconds = _sum_times(value.strip())
    if not 0 < seconds <= _LONGEST_TIME:
        hint = "write seconds above zero or a time such as 10ms, 2.5s, 1m30s"
        raise wrong(field, value, "a time", hint)
    return seconds


def parse_count(value: int | str, field: str, most: int) -> int:
    """Return a whole number from 1 to *most*.

    Raises:
        PolicyError: it is none.
    """
    number = value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < _LONGEST_WORD:
        number = int(value)
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= most:
        hint = f"write a whole number from 1 to {most}"
        raise wrong(field, value, "a number", hint)
    return number


def parse_cpus(value: float | str, field: str) -> float:
    """Return a number of CPUs, such as 0.5 or 2: at least a hundredth.

    Raises:
        PolicyError: it is none.
    """
    cpus = -1.0
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        cpus = float(value) if abs(value) <= MOST_CPUS else -1.0
    elif isinstance(value, str) and len(value) < _LONGEST_WORD and not value.strip("0123456789."):
        cpus = _to_float(value)
    if not 0.01 <= cpus <= MOST_CPUS:
        hint = f"write a number of CPUs from 0.01 to {MOST_CPUS}, for instance 0.5 or 2"
        raise wrong(field, value, "a number of CPUs", hint)
    return cpus


def _sum_times(text: str) -> float:
    """Seconds of parts in falling order of unit, or -1: 1m30s is a time, 30s1m and 1m30 are not."""
    total, last = 0.0, _INFINITE
    parts = 0
    while text:
        digits, text = _split_number(text)
        letters = text[: len(text) - len(text.lstrip("mshMSH"))]
        text = text[len(letters) :]
        unit = _TIME_UNITS.get(letters.lower(), 0.0)
        number = _to_float(digits)
        if number < 0 or not unit or unit >= last or (not letters and parts):
            return -1.0
        total, last, parts = total + number * unit, unit, parts + 1
    return total


def _split_number(text: str) -> tuple[str, str]:
    rest = text.lstrip("0123456789.")
    return text[: len(text) - len(rest)], rest


def _to_float(digits: str) -> float:
    try:
        return float(digits)
    except ValueError:
        return -1.0


def check_ports(value: object, field: str) -> tuple[int, ...]:
    """Return ports in their order, each once.

    Raises:
        PolicyError: it is no list of them.
    """
    hint = "write numbers from 1 to 65535, such as [443]"
    if not isinstance(value, (list, tuple)):
        raise wrong(field, value, "a list of ports", hint)
    return tuple(sorted({_port(port, field, hint) for port in value}))


def _port(value: object, field: str, hint: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 1 << 16:
        raise wrong(field, value, "a port", hint)
    return value
