"""What a filter is asked to be: small, since every run makes one."""

from __future__ import annotations

from capsule.values import Value


class Spec(Value):
    """A source of rules, and what differs from it.

    Attributes:
        profile: a built-in profile; or the path of a file in the format of Docker and OCI, which has a
            slash in it or ends in .json; or calls and groups as in systemd's SystemCallFilter=.
        allow: calls and @groups that are allowed beside; the name of a call lifts its rule wholly.
        deny: calls and @groups that are refused.
    """

    profile: str = "default"
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    @property
    def path(self) -> str | None:
        """The file that the profile is in, or None."""
        named = "/" in self.profile or self.profile.endswith(".json")
        return self.profile if named else None
