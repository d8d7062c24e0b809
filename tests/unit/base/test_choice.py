"""Capsule's enumerations behave as enum.Enum in what their users need."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from capsule.policy.mounts import MountKind
from capsule.policy.policy import IdMap, Network
from capsule.process.result import Outcome

KINDS: list[Any] = [IdMap, MountKind, Network, Outcome]


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_found_by_name_and_value(kind: Any) -> None:
    """Each member is one object, however it is looked up."""
    assert len(kind) == len(list(kind)) == len({member.value for member in kind})
    for member in kind:
        assert kind(member.value) is kind[member.name] is kind(member) is member
        assert getattr(kind, member.name) is member
        assert member in kind
        assert isinstance(member, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_survives_pickle_and_copy(kind: Any) -> None:
    """What comes back is the same object, so that `is` holds between processes too."""
    for member in kind:
        assert pickle.loads(pickle.dumps(member)) is member
        assert copy.deepcopy(member) is member


@pytest.mark.parametrize("value", ["bridge", None, [], 1])
def test_another_value_is_a_value_error(value: Any) -> None:
    """What is no member's value is a ValueError that shows it."""
    with pytest.raises(ValueError, match="not a valid Network"):
        Network(value)


def test_a_member_cannot_be_changed() -> None:
    """Neither its name nor its value can be set."""
    member: Any = Network.HOST
    with pytest.raises(AttributeError):
        member.value = "other"
    assert Network("host") is Network.HOST


def test_members_of_two_kinds_differ() -> None:
    """A member equals itself alone, and prints its kind."""
    assert len({*IdMap, *Network}) == len(IdMap) + len(Network)
    assert (repr(Network.HOST), str(Network.HOST)) == ("<Network.HOST: 'host'>", "Network.HOST")
