"""Who the command is: a pure function from policy and host to the id maps; user_namespaces(7)."""

from __future__ import annotations

from capsule.base.errors import HostError, PolicyError
from capsule.base.values import Value
from capsule.host.ids import NOBODY
from capsule.policy.policy import IdMap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capsule.host.host import Host
    from capsule.policy.policy import Policy


class Ids(Value):
    """Who the command is, inside and outside.

    Attributes:
        uid_map: lines of uid_map; user_namespaces(7).
        gid_map: likewise.
        ranged: whether more than one id is mapped.
        helpers: newuidmap and newgidmap, if they have to write the maps.
        set_up: (uid, gid) inside that init takes.
        command: (uid, gid) inside of the command.
        outside: (uid, gid) on the host of the command.
    """

    uid_map: str
    gid_map: str
    ranged: bool
    helpers: tuple[str, str] | None
    set_up: tuple[int, int]
    command: tuple[int, int]
    outside: tuple[int, int]


def make_ids(policy: Policy, host: Host) -> Ids:
    """Decide the id maps.

    Raises:
        PolicyError: the ids do not fit the map, or host root was asked for by somebody else.
        HostError: a range of ids was asked for and the host gives none.
    """
    if policy.id_map is IdMap.AUTO:
        return _ranged_ids(policy, host)
    uid, gid = _outside(policy, host)
    inside = (uid, gid) if policy.keep_id else (policy.uid, policy.gid)
    maps = f"{inside[0]} {uid} 1", f"{inside[1]} {gid} 1"
    return Ids(*maps, False, None, inside, inside, (uid, gid))


def _outside(policy: Policy, host: Host) -> tuple[int, int]:
    """The caller's ids, but for real root those of nobody, unless host root was named."""
    if policy.id_map is IdMap.HOST_ROOT:
        if host.uid != 0:
            hint = "leave it out: the ids inside are then your own"
            raise PolicyError("id_map: host-root is for root only", field="id_map", hint=hint)
        return 0, 0
    if host.uid == 0 and host.initial_ids:
        return NOBODY, NOBODY
    return host.uid, host.gid


def _ranged_ids(policy: Policy, host: Host) -> Ids:
    uids, gids = host.subuids, host.subgids
    if uids is None or gids is None:
        table = "/etc/subuid" if uids is None else "/etc/subgid"
        hint = "as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER"
        raise HostError(f"id_map auto: {table} gives uid {host.uid} no range", hint=hint)
    real_root = host.uid == 0 and host.initial_ids
    helpers = (host.newuidmap, host.newgidmap)
    if not real_root and None in helpers:
        hint = "install newuidmap and newgidmap: the package uidmap (Debian) or shadow-utils (Fedora)"
        raise HostError("id_map auto: newuidmap or newgidmap is missing", hint=hint)
    for field, id_, range_ in (("uid", policy.uid, uids), ("gid", policy.gid, gids)):
        if id_ > range_.count - (1 if real_root else 0):
            hint = f"the range has {range_.count} ids"
            raise PolicyError(
                f"{field}: {id_} is outside of the map", field=field, value=id_, hint=hint
            )
    if real_root:
        maps = (f"0 {uids.start} {uids.count}", f"0 {gids.start} {gids.count}")
        outside = (uids.start + policy.uid, gids.start + policy.gid)
    else:
        # Root inside is the caller; every other id is one of the range.
        maps = (
            f"0 {host.uid} 1 1 {uids.start} {uids.count}",
            f"0 {host.gid} 1 1 {gids.start} {gids.count}",
        )
        outside = (
            host.uid if policy.uid == 0 else uids.start + policy.uid - 1,
            host.gid if policy.gid == 0 else gids.start + policy.gid - 1,
        )
    used = None if real_root else (str(helpers[0]), str(helpers[1]))
    return Ids(*maps, True, used, (0, 0), (policy.uid, policy.gid), outside)
