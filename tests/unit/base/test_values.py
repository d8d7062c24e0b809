"""The base of the frozen values."""

from __future__ import annotations

import copy
import pickle

import pytest

from capsule.base.values import Value


class Point(Value):
    """An example."""

    x: int
    y: int = 2
    table: dict[str, int] = {}  # noqa: RUF012 - what is tested is that a value may hold one


class Named(Point):
    """One that adds a field and keeps those of its base."""

    name: str = ""

    def __post_init__(self) -> None:
        self._set("name", self.name.upper())


def test_fields_by_place_and_by_name() -> None:
    """Fields are taken in order or by name, the rest has its default."""
    assert Point(1) == Point(x=1) == Point(1, 2) == Point(1, y=2)
    assert (Named(1, 2, {}, "a").name, Named(1, name="a").x) == ("A", 1)


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {}, "needs the argument 'x'"),
        ((1, 2, {}, 4), {}, "takes 3 arguments"),
        ((1,), {"z": 3}, "takes no other argument 'z'"),
        ((1,), {"x": 3}, "takes no other argument 'x'"),
    ],
)
def test_wrong_arguments_are_a_type_error(
    args: tuple[int, ...], kwargs: dict[str, int], says: str
) -> None:
    """A missing, unknown or doubled field is named."""
    with pytest.raises(TypeError, match=says):
        Point(*args, **kwargs)  # type: ignore[arg-type]


def test_a_value_is_frozen() -> None:
    """No field can be set, added or deleted, and the error says what to do instead."""
    point = Point(1)
    for name in ("x", "other"):
        with pytest.raises(AttributeError, match="replace"):
            setattr(point, name, 5)
    with pytest.raises(AttributeError, match="replace"):
        del point.x
    assert point.x == 1


def test_equality_is_of_class_and_fields() -> None:
    """A value equals only another of its own class with the same fields."""
    assert Point(1) != Point(2)
    assert Point(1) != Named(1)
    assert Point(1) != (1, 2)


def test_hash_goes_with_equality() -> None:
    """Equal values are one key, also if they hold a mapping."""
    assert len({Point(1, table={"a": 1, "b": 2}), Point(1, table={"b": 2, "a": 1}), Point(2)}) == 2
    assert hash(Point(1)) != hash(Named(1))


def test_replace_makes_another() -> None:
    """The copy has the change and is validated anew; the first is as before."""
    first = Named(1, name="a")
    second = first.replace(name="b", x=5)
    assert (first.name, second.name, second.x, second.y) == ("A", "B", 5, 2)
    with pytest.raises(TypeError, match="'z'"):
        first.replace(z=1)


def test_a_value_survives_pickle_and_copy() -> None:
    """What comes back is equal, and frozen."""
    first = Named(1, name="a", table={"k": 1})
    for again in (pickle.loads(pickle.dumps(first)), copy.copy(first), copy.deepcopy(first)):
        assert again == first
        with pytest.raises(AttributeError):
            setattr(again, "x", 2)  # noqa: B010 - mypy knows that it is frozen


def test_repr_is_the_call() -> None:
    """What is printed is what makes an equal value."""
    point = Point(1, table={"a": 1})
    assert repr(point) == "Point(x=1, y=2, table={'a': 1})"
    assert eval(repr(point)) == point
