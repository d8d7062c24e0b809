"""What goes out of a capsule comes to the same; what is made up comes to an error, and to no more."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsule.fleet import codec, worker
from capsule.fleet.codec import Garbled

keys = st.one_of(
    st.none(),
    st.booleans(),
    st.text(),
    st.binary(),
    st.integers(-(1 << 59), 1 << 59),
    st.floats(allow_nan=False),
)
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.complex_numbers(allow_nan=False),
)
values = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(keys, inner),
        st.sets(keys),
        st.frozensets(keys),
        st.dictionaries(st.sampled_from(["$", "a", "value"]), inner),
    ),
    max_leaves=20,
)


def through(value: Any) -> Any:
    """What a value is on the other side."""
    encoder = worker.Encoder()
    framed = worker.frame({"id": "x", "value": encoder.encode(value)}, encoder)
    size, _ = worker.HEAD.unpack_from(framed)
    body = framed[worker.HEAD.size :]
    return codec.decode(body[:size], body[size:])["value"]


@given(values)
def test_a_value_is_the_same(value: object) -> None:
    """Of every type that goes out, nested."""
    found = through(value)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "dtype", ["?", "<i2", ">u8", "<f8", "<c16", "S3", "<U2", "<M8[ns]", "<m8[s]", "<f2"]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (1, 0, 4)])
def test_an_array_is_the_same(dtype: str, shape: tuple[int, ...]) -> None:
    """Its type, its shape and its bytes; one's own to write to."""
    array = numpy.arange(math.prod(shape)).astype("i8").reshape(shape).astype(dtype)
    for made in (array, array.T):
        found = through({"a": made})["a"]
        assert (found.dtype, found.shape) == (made.dtype, made.shape)
        assert found.tobytes() == made.tobytes()
        assert found.flags.writeable


def test_numpy_s_scalars_are_python_s() -> None:
    """A sum is a number."""
    assert through([numpy.float64(1.5), numpy.int8(3), numpy.bool_(True)]) == [1.5, 3, True]


class Mine:
    """A class that nobody else knows."""


@pytest.mark.parametrize(
    "value",
    [Mine(), [Mine()], {"a": Mine}, {Mine(): 1}, len, {(1, 2): 3}, {1 << 60: 1}, {(1,)},
     numpy.array([Mine()]), numpy.zeros(2, [("a", "i4")])],
    ids=repr,
)  # fmt: skip
def test_what_does_not_go_out(value: object) -> None:
    """It is told by its type, in the capsule."""
    with pytest.raises(TypeError, match="does not go out"):
        through(value)


GARBLED = [
    b"", b"{", b"[]", b"null", b'{"id": 1}', b'{"value": 1}', b"\xff\xfe", b"[" * 100_000,
    b'{"id": "x", "value": ' + b"9" * 5000 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("text", GARBLED, ids=lambda text: repr(text[:20]))
def test_text_that_is_none(text: bytes) -> None:
    """Cut off, of another shape, no UTF-8, nested without end, a number of 5,000 digits."""
    with pytest.raises(Garbled):
        codec.decode(text, b"")


MADE_UP: list[Any] = [
    {"$": "pickle", "at": [0, 4]}, {"$": "other"}, {"$": 1}, {"$": None, "at": []} | {"$": "bytes"},
    {"$": "bytes", "at": [0, 9]}, {"$": "bytes", "at": [-1, 2]}, {"$": "bytes", "at": [0, True]},
    {"$": "bytes", "at": [1 << 70, 1]}, {"$": "bytes"}, {"$": "bytes", "at": "ab"},
    [{"$": "bytes", "at": [0, 4]}, {"$": "bytes", "at": [0, 5]}],
    {"$": "tuple", "value": "ab"}, {"$": "set", "value": [[1]]}, {"$": "set", "value": [1 << 61]},
    {"$": "dict", "value": [[1]]}, {"$": "dict", "value": [[{"$": "tuple", "value": []}, 1]]},
    {"$": "dict", "value": {}}, {"$": "complex", "value": ["1", 2]}, {"$": "complex", "value": [1]},
    {"$": "ndarray", "dtype": "O", "shape": [1], "at": [0, 8]},
    {"$": "ndarray", "dtype": "|V8", "shape": [1], "at": [0, 8]},
    {"$": "ndarray", "dtype": "i4,O", "shape": [1], "at": [0, 8]},
    {"$": "ndarray", "dtype": "<f8", "shape": [2], "at": [0, 8]},
    {"$": "ndarray", "dtype": "<f8", "shape": [-1], "at": [0, 8]},
    {"$": "ndarray", "dtype": "<f8", "shape": [1 << 63, 0], "at": [0, 0]},
    {"$": "ndarray", "dtype": "<f8", "shape": [1] * 65, "at": [0, 8]},
    {"$": "ndarray", "dtype": ["<f8"], "shape": [1], "at": [0, 8]},
    {"$": "ndarray", "dtype": "<f8", "shape": 1, "at": [0, 8]},
    {"$": "ndarray", "dtype": "S0", "shape": [1 << 40], "at": [0, 0]},
    {"$": "ndarray", "dtype": "<M8[zz]", "shape": [1], "at": [0, 8]},
]  # fmt: skip


@pytest.mark.parametrize("value", MADE_UP, ids=json.dumps)
def test_values_that_are_none(value: object) -> None:
    """Objects of nothing, bytes that are not there or taken twice, arrays of code, wrong keys."""
    with pytest.raises(Garbled):
        codec.decode(json.dumps({"id": "x", "value": value}).encode(), b"12345678")


def test_too_many_values() -> None:
    """They are counted before one is made."""
    with pytest.raises(Garbled, match="values"):
        codec.decode(b'{"id": "x", "value": [' + b"[]," * (codec.MOST_VALUES // 2) + b"1]}", b"")


@given(st.binary(), st.binary())
def test_garbage(text: bytes, blob: bytes) -> None:
    """It comes to an error, or to an answer."""
    try:
        assert isinstance(codec.decode(text, blob), dict)
    except Garbled:
        pass


parts = st.recursive(
    st.one_of(st.none(), st.integers(-5, 20), st.sampled_from(["<f8", "bytes", "tuple", "|S2", "x"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["$", "at", "value", "dtype", "shape"]), inner, max_size=4),
    ),
    max_leaves=10,
)


@given(parts, st.binary(max_size=24))
def test_objects_of_the_right_words(value: object, blob: bytes) -> None:
    """Likewise where it looks like a result."""
    try:
        codec.decode(json.dumps({"id": "x", "value": value}).encode(), blob)
    except Garbled:
        pass
