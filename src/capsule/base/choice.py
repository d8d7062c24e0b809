"""The base of Capsule's enumerations.

To a type checker it is `enum.Enum`, and it behaves as such in what users of Capsule need: members are
unique objects with a name and a value, found by value, iterable, picklable. Importing enum costs about
4 ms, a quarter of what the whole start of the command line may take.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from enum import Enum as Choice
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
        """One of a fixed set of named values."""

        def __setattr__(self, name, value):
            raise AttributeError(f"{type(self).__name__}.{self.name} cannot be changed")

        def __repr__(self):
            return f"<{type(self).__name__}.{self.name}: {self.value!r}>"

        def __str__(self):
            return f"{type(self).__name__}.{self.name}"

        def __reduce__(self):
            return type(self), (self.value,)


__all__ = ["Choice"]
