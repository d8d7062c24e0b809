"""Reading what came out of a capsule: as hostile as everything else from there. Pure.

The text is JSON. What is more than JSON is an object with a ``$``: tuples, sets, dictionaries with
other keys than text, complex numbers, and bytes and arrays of numpy, which lie beside the text. Nothing
in it names code. What it comes to is bounded by what it takes: values are counted before anything is
read, and no byte beside the text is used twice.
"""

from __future__ import annotations

import json
import math
import re

from capsule.base.errors import CapsuleError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Values in one answer: each takes some 64 bytes here, and may take 2 there.
MOST_VALUES = 1_000_000
# Integers of this size and below each have a hash of their own.
_MOST_KEY = 1 << 60
_MOST_DIMENSIONS = 32
# Of numpy.dtype.str; no object, no structure.
_DTYPE = re.compile(r"[<>|=]?([biufcSU][0-9]{1,9}|[mM]8(\[[0-9]{0,4}[A-Za-z]{1,2}\])?)\Z")


_REFUSED = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    ImportError,
)


class Garbled(CapsuleError):
    """What came out of a capsule is not what a worker sends: the call was made, and has no result."""

    def __str__(self) -> str:
        return self.message


def decode(
    text: bytes, blob: bytes, *, unpickle: Callable[[bytes], Any] | None = None
) -> dict[str, Any]:
    """Return an answer.

    Args:
        text: JSON.
        blob: the bytes beside it.
        unpickle: called with a pickle, if those are trusted.

    Raises:
        Garbled: it is none.
    """
    if sum(map(text.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise Garbled(f"more than {MOST_VALUES} values in one result")
    decoder = _Decoder(blob, unpickle)
    try:
        found = json.loads(text.decode("utf-8", "surrogatepass"), object_hook=decoder.special)
    except _REFUSED as error:
        raise Garbled(f"a result that is none: {type(error).__name__}") from None
    if type(found) is not dict or type(found.get("id")) is not str:
        raise Garbled("a result that is none")
    return found


class _Decoder:
    def __init__(self, blob: bytes, unpickle: Callable[[bytes], Any] | None) -> None:
        self._blob, self._unpickle = blob, unpickle
        self._left = len(blob)

    def special(self, found: dict[str, Any]) -> Any:
        """Return what an object of JSON stands for."""
        kind = found.get("$")
        if kind is None:
            return found
        if kind == "tuple":
            return tuple(_list(found["value"]))
        if kind == "set":
            return set(map(_key, _list(found["value"])))
        if kind == "frozenset":
            return frozenset(map(_key, _list(found["value"])))
        if kind == "dict":
            return {_key(name): value for name, value in map(_pair, _list(found["value"]))}
        if kind == "complex":
            real, imaginary = _list(found["value"])
            return complex(_float(real), _float(imaginary))
        if kind == "bytes":
            return self._take(found["at"])
        if kind == "ndarray":
            return self._array(found["dtype"], _list(found["shape"]), found["at"])
        if kind == "pickle" and self._unpickle is not None:
            return self._unpickle(self._take(found["at"]))
        raise ValueError

    def _take(self, at: object) -> bytes:
        begin, size = map(_natural, _list(at))
        # Each byte once: else a few of them could be made to fill the memory here.
        self._left -= size
        if self._left < 0 or begin + size > len(self._blob):
            raise ValueError
        return self._blob[begin : begin + size]

    def _array(self, dtype: object, shape: list[Any], at: object) -> Any:
        if type(dtype) is not str or _DTYPE.match(dtype) is None or len(shape) > _MOST_DIMENSIONS:
            raise ValueError
        data, sizes = self._take(at), [*map(_natural, shape)]
        import numpy  # only where there is an array, and then it is installed or the result is none

        kind = numpy.dtype(dtype)
        if kind.hasobject or math.prod(sizes) * kind.itemsize != len(data):
            raise ValueError
        return numpy.frombuffer(bytearray(data), kind, math.prod(sizes)).reshape(sizes)


def _list(value: object) -> list[Any]:
    if type(value) is not list:
        raise TypeError
    return value


def _pair(value: object) -> tuple[Any, Any]:
    name, content = _list(value)
    return name, content


def _natural(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError
    return value


def _float(value: object) -> float:
    if type(value) not in (int, float):
        raise TypeError
    return float(value)  # type: ignore[arg-type]


def _key(value: Any) -> Any:
    if value is None or type(value) in (bool, str, float, bytes):
        return value
    if type(value) is int and abs(value) < _MOST_KEY:
        return value
    raise TypeError
