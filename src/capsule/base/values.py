"""The base of Capsule's frozen values.

The standard library's dataclasses would do, but importing them costs about 14 ms, as much as the
whole start of the command line may take. This is the small part of them that is used here.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
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

    def __init_subclass__(cls) -> None:
        own = [name for name in cls.__annotations__ if not name.startswith("_")]
        cls.__value_fields__ = (*cls.__value_fields__, *own)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        fields = type(self).__value_fields__
        values = self.__dict__
        if len(args) > len(fields):
            raise TypeError(f"{type(self).__name__} takes {len(fields)} arguments")
        values.update(zip(fields, args, strict=False))
        for name, value in kwargs.items():
            if name not in fields or name in values:
                raise TypeError(f"{type(self).__name__} takes no other argument {name!r}")
            values[name] = value
        for name in fields:
            if name not in values:
                if not hasattr(type(self), name):
                    raise TypeError(f"{type(self).__name__} needs the argument {name!r}")
                values[name] = getattr(type(self), name)
        self.__post_init__()

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
