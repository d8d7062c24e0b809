"""The bases of frozen values and of enumerations.

The standard library's dataclasses and enum would do, but importing them costs 14 and 4 ms, where the
whole start of the command line may take 15. This is the small part of them that is used here.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from enum import Enum
    from typing import Any, ClassVar, Self, dataclass_transform
else:

    def dataclass_transform(**_options):
        """Only type checkers know more."""
        return lambda cls: cls


def _hashable(value: object) -> object:
    return tuple(sorted(value.items())) if isinstance(value, dict) else value


@dataclass_transform(frozen_default=True, kw_only_default=False, eq_default=True)
class Value:
    """A frozen, comparable, hashable, printable, picklable record of its annotated fields."""

    __value_fields__: ClassVar[tuple[str, ...]] = ()
    __value_names__: ClassVar[frozenset[str]] = frozenset()
    __value_defaults__: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        own = [name for name in cls.__annotations__ if not name.startswith("_")]
        fields = cls.__value_fields__ = (*cls.__value_fields__, *own)
        cls.__value_names__ = frozenset(fields)
        cls.__value_defaults__ = {name: getattr(cls, name) for name in fields if hasattr(cls, name)}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # A run makes a dozen of these, so no loop in Python.
        cls, values = type(self), self.__dict__
        values.update(cls.__value_defaults__)
        given = {**dict(zip(cls.__value_fields__, args, strict=False)), **kwargs}
        values.update(given)
        if len(given) != len(args) + len(kwargs) or values.keys() != cls.__value_names__:
            raise self._wrong_arguments(args, kwargs)
        self.__post_init__()

    def _wrong_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TypeError:
        name, fields = type(self).__name__, type(self).__value_fields__
        if len(args) > len(fields):
            return TypeError(f"{name} takes {len(fields)} arguments")
        for one in kwargs:
            if one not in fields or one in fields[: len(args)]:
                return TypeError(f"{name} takes no other argument {one!r}")
        missing = next(one for one in fields if one not in self.__dict__)
        return TypeError(f"{name} needs the argument {missing!r}")

    def __post_init__(self) -> None:
        """Validate and normalise; the one place that may still change a field."""

    def _set(self, name: str, value: object) -> None:
        self.__dict__[name] = value

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: use replace()")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: use replace()")

    def _key(self) -> tuple[object, ...]:
        return tuple(self.__dict__[name] for name in type(self).__value_fields__)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash((type(self), tuple(map(_hashable, self._key()))))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={self.__dict__[name]!r}" for name in self.__value_fields__)
        return f"{type(self).__name__}({shown})"

    def replace(self, **changes: Any) -> Self:
        """Return a copy with the named fields changed, validated anew."""
        return type(self)(**{**{n: self.__dict__[n] for n in self.__value_fields__}, **changes})


if TYPE_CHECKING:
    Choice = Enum
else:

    class _ChoiceType(type):
        """Turns the attributes in capitals into members."""

        def __new__(mcs, name, bases, namespace):
            cls = super().__new__(mcs, name, bases, namespace)
            cls.__members__ = {}
            for key, value in namespace.items():
                if key.isupper() and not key.startswith("_"):
                    member = object.__new__(cls)
                    member.__dict__.update(name=key, value=value)
                    cls.__members__[key] = member
                    type.__setattr__(cls, key, member)
            return cls

        def __call__(cls, value):
            for member in cls:
                if value is member or value == member.value:
                    return member
            raise ValueError(f"{value!r} is not a valid {cls.__name__}")

        def __iter__(cls):
            return iter(cls.__members__.values())

        def __len__(cls):
            return len(cls.__members__)

        def __getitem__(cls, name):
            return cls.__members__[name]

        def __contains__(cls, value):
            return any(value is member for member in cls)

    class Choice(metaclass=_ChoiceType):
        """One of a fixed set of named values.

        To a type checker it is `enum.Enum`, and it behaves as such in what users of Capsule need:
        members are unique objects with a name and a value, found by value, iterable, picklable.
        """

        def __setattr__(self, name, value):
            raise AttributeError(f"{type(self).__name__}.{self.name} cannot be changed")

        def __repr__(self):
            return f"<{type(self).__name__}.{self.name}: {self.value!r}>"

        def __str__(self):
            return f"{type(self).__name__}.{self.name}"

        def __reduce__(self):
            return type(self), (self.value,)
