"""Plans: the golden files, and what holds of every plan whatever the policy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsule.base.errors import HostError, PolicyError
from capsule.confine.seccomp import filters
from capsule.confine.seccomp.spec import Seccomp
from capsule.host.host import Host
from capsule.launcher import steps as s
from capsule.planner.plan import Plan, Terminal, make_plan
from capsule.planner.view import FILE_SYSTEMS, TREES
from capsule.policy.limits import Limits
from capsule.policy.mounts import Mount, MountKind
from capsule.policy.policy import IdMap, Network, Policy
from capsule.program.command import Command
from tests.unit.examples import (
    CASES,
    COMMAND,
    HOST,
    IMAGE_COMMAND,
    OLD_HOST,
    RANGE_HOST,
    RANGES,
    ROOT_HOST,
    VENV_COMMAND,
    Case,
    surveyed,
)
from tests.unit.wire import decode, kinds

GOLDEN = Path(__file__).parent / "golden"

# --- golden files ---------------------------------------------------------------------------


def text_of(plan: Plan) -> str:
    """All that a plan says: to people, about protections, to the launcher."""
    protections = [f"{name}: {how}" for name, how in plan.protections.items()]
    encoded = [" ".join([word, *map(quote, words)]) for word, words in decode(plan.encode())]
    parts = (str(plan), "\n".join(protections), "\n".join(encoded))
    return "\n\n".join(parts) + "\n"


def quote(word: str) -> str:
    """A word on one line, told apart from its neighbours; a filter by its length alone."""
    if len(word) > 4000 and set(word) <= set("0123456789abcdef"):
        return f"({len(word) // 16} instructions)"
    return word if word.isprintable() and word and " " not in word else repr(word)


@pytest.mark.parametrize("name", CASES)
def test_golden_plan(name: str, update_golden: bool) -> None:
    """The plan of each example is, to the word, the one that was reviewed."""
    path = GOLDEN / f"{name}.plan"
    text = text_of(CASES[name].plan())
    if update_golden:
        path.write_text(text)
    assert path.read_text() == text, "if this is meant: pytest tests/unit --update-golden"


def test_a_plan_carries_the_filter_s_very_bytes() -> None:
    """What the simulator judges (unit/confine/seccomp) is what the launcher is told to install."""
    plan = CASES["default"].plan()
    (words,) = (words for word, words in decode(plan.encode()) if word == "filter")
    expected = filters.load(Seccomp(), arch="x86_64")
    assert expected is not None
    assert words == [expected.program, "1"]
    assert plan.filter == expected


def test_no_golden_file_is_orphaned() -> None:
    """Each golden file belongs to an example."""
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


# --- what holds of every plan ---------------------------------------------------------------

names = st.text("abcdeé .\n\udc80\\", min_size=1, max_size=4).filter(lambda n: n not in (".", ".."))
made_up = st.lists(names, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
known = st.sampled_from(
    [place for place, *_ in (*HOST.system, *HOST.etc, *HOST.etc_files)]
    + ["/tmp", "/tmp/a", "/dev/shm", "/dev/null", "/dev/x", "/var", "/var/tmp/b", "/run", "/etc"]
    + ["/home/ada", "/home/ada/project", "/home/ada/project/out", "/opt/venv/lib", "/sys"]
)
places = made_up | known


def any_mount(kind: MountKind, at: str, source: str, *, flag: bool) -> Mount:
    """A mount of any kind, as its class method makes it."""
    makers: dict[MountKind, Callable[[], Mount]] = {
        MountKind.READ_ONLY: lambda: Mount.read_only(source, at, noexec=flag),
        MountKind.READ_WRITE: lambda: Mount.read_write(source, at, optional=flag),
        MountKind.OVERLAY: lambda: Mount.overlay(source, at, keep="/keep" if flag else None),
        MountKind.TMPFS: lambda: Mount.tmpfs(at, noexec=flag),
        MountKind.HIDE: lambda: Mount.hide(f"{at}/*" if flag else at),
        MountKind.SYMLINK: lambda: Mount.symlink(source, at),
        MountKind.DIRECTORY: lambda: Mount.directory(at),
        MountKind.FILE: lambda: Mount.file(source, at),
        MountKind.CONTENT: lambda: Mount.content(b"\0", at),
        MountKind.DEVICE: lambda: Mount.device(source, at),
    }
    return makers[kind]()


class Wish(NamedTuple):
    """What a mount is made of. Making it may be refused, which is a part of what is tested."""

    kind: MountKind
    at: str
    source: str
    flag: bool

    def mount(self) -> Mount:
        """Make it."""
        return any_mount(self.kind, self.at, self.source, flag=self.flag)


wishes = st.lists(
    st.builds(Wish, st.sampled_from(list(MountKind)), places, places, st.booleans()), max_size=6
)
policies = st.builds(
    Policy,
    root=st.none() | st.just("/srv/image"),
    network=st.sampled_from(list(Network)),
    uid=st.integers(0, 70000),
    gid=st.integers(0, 70000),
    id_map=st.sampled_from(list(IdMap)),
    limits=st.builds(Limits, timeout=st.none() | st.floats(0.0001, 1e6)),
)
hosts = st.sampled_from([HOST, OLD_HOST, ROOT_HOST, RANGE_HOST, ROOT_HOST.replace(**RANGES)])
commands = st.sampled_from([COMMAND, VENV_COMMAND, COMMAND.replace(cwd="/", working_directory=None)])
terminals = st.none() | st.builds(Terminal)


def compiled(
    policy: Policy, wanted: list[Wish], host: Host, command: Command, terminal: Terminal | None
) -> Plan | None:
    """The plan, or None if the request was refused as it should be."""
    chosen = command if policy.root is None else IMAGE_COMMAND
    try:
        policy = policy.replace(mounts=[wish.mount() for wish in wanted])
        survey = surveyed(policy)
        return make_plan(policy, host, chosen, survey, descriptors=((11, 5),), terminal=terminal)
    except (PolicyError, HostError):
        return None


def index(plan: Plan, kind: type[s.Step]) -> int:
    """Where the only step of a kind stands."""
    (found,) = [i for i, step in enumerate(plan.steps) if isinstance(step, kind)]
    return found


def placed(plan: Plan) -> Iterator[tuple[int, str]]:
    """(Index, path) of each step that puts something into the new root."""
    kinds = (s.Attach, s.Tmpfs, s.Devpts, s.Directory, s.File, s.Symlink, s.Content, s.Overlay)
    for i, step in enumerate(plan.steps):
        if isinstance(step, kinds):
            yield i, str(step.path)


def contains(parent: str, child: str) -> bool:
    """Whether a path lies strictly below another."""
    return parent != child and child.startswith(parent.rstrip("/") + "/")


def check_parents_first(plan: Plan) -> None:
    where = [(i, path) for i, path in placed(plan)]
    late = [
        (parent, child)
        for i, child in where
        for j, parent in where
        if contains(parent, child) and j > i
    ]
    assert not late, late
    assert len({path for _, path in where}) == len(where), "a place is taken twice"


def check_attached(plan: Plan) -> None:
    """Each tree that is taken is used once, and attached under its own description."""
    kinds = (s.MappedTree, s.Tree, s.Device, s.Proc)
    taken = [step for step in plan.steps if isinstance(step, kinds)]
    attached = [step for step in plan.steps if isinstance(step, s.Attach)]
    layers = [
        number
        for step in plan.steps
        if isinstance(step, s.Overlay)
        for number in step[1:3]
        if number != s.Overlay.NONE
    ]
    assert sorted([step[0] for step in attached] + layers) == list(range(len(taken)))
    for step in attached:
        source = taken[step[0]]
        if isinstance(source, s.Proc):
            assert step[1] == "/proc"
        else:
            assert step[2] == source[0]


def check_sources(plan: Plan) -> None:
    """The host's paths are used before the host's tree is let go, places only after that."""
    pivot = index(plan, s.PivotRoot)
    sources = [i for i, step in enumerate(plan.steps) if isinstance(step, s.Tree | s.Device)]
    assert max(sources) < index(plan, s.Identity) < index(plan, s.Proc) < pivot
    assert index(plan, s.Private) < min(sources)
    mapped = [i for i, step in enumerate(plan.steps) if isinstance(step, s.MappedTree)]
    assert all(i < index(plan, s.Namespaces) for i in mapped)
    assert all(i > pivot for i, _ in placed(plan))


def check_end(plan: Plan) -> None:
    """What cannot be undone comes after all that can fail; exec, and exec alone, is the end."""
    final = (s.BoundingSet, s.Credentials, s.Capabilities, s.NoNewPrivs, s.LandlockRestrict, s.Seccomp)
    first = min(i for i, step in enumerate(plan.steps) if isinstance(step, final))
    assert all(isinstance(step, final) for step in plan.steps[first:-1])
    order = [type(step) for step in plan.steps[first:-1]]
    assert order == [kind for kind in final if kind in order]
    assert {s.BoundingSet, s.Capabilities, s.NoNewPrivs} <= set(order)
    made = [i for i, step in enumerate(plan.steps) if isinstance(step, s.LandlockRuleset)]
    assert (s.LandlockRestrict in order) is bool(made)
    # A rule is about what lies at its place when it is made.
    mounts = (s.Attach, s.Tmpfs, s.Overlay, s.Devpts, s.Remount, s.Mask, s.Hide, s.Protect)
    assert not any(isinstance(step, mounts) for i in made for step in plan.steps[i:])
    assert (order[-1] is s.Seccomp) is (plan.filter is not None)
    assert index(plan, s.Exec) == len(plan.steps) - 1


def check_phases(plan: Plan) -> None:
    """Launcher, init, command: the launcher refuses any other order."""
    phases = {kind.word: kind.phases for kind in kinds()}
    now = 0
    for step in plan.steps:
        while ("LAUNCH", "INIT", "COMMAND")[now] not in phases[step.word]:
            now += 1


def check_private(plan: Plan) -> None:
    """Init is closed to others before it holds anything; everything mounted is nosuid."""
    closed = [i for i, step in enumerate(plan.steps) if isinstance(step, s.Undumpable)]
    assert closed[0] < index(plan, s.Private)
    # A change of ids would open it again, if it is one.
    by_root = isinstance(plan.steps[0], s.DropGroups | s.MappedTree)
    assert len(closed) == 1 or closed[1] == index(plan, s.Identity) + 1
    assert len(closed) == 2 or not by_root
    for step in plan.steps:
        if isinstance(step, s.Tmpfs):
            assert step[4] & s.NO_SUID
            assert step[1] > 0


def check_closed(plan: Plan, host: Host) -> None:
    """Each bind is nosuid, and read-only unless asked for; on old kernels by a remount."""
    for step in plan.steps:
        if isinstance(step, s.Tree):
            assert step[1] == 0 or step[1] & s.NO_SUID
            assert bool(step[1]) == host.mount_setattr
    if host.mount_setattr:
        return
    for step, then in zip(plan.steps, plan.steps[1:], strict=False):
        # Before anything is attached below it, which has attributes of its own.
        if isinstance(step, s.Attach) and step[1] != "/proc":
            assert type(then) is s.Remount
            assert (then[0], then[2], then[1] & s.NO_SUID) == (step[1], 1, s.NO_SUID)
    closed = {step[0] for step in plan.steps if isinstance(step, s.Remount) and step[1] & s.READ_ONLY}
    assert closed >= {step[0] for step in plan.steps if isinstance(step, s.Protect)}
    assert not any(step[1] for step in plan.steps if isinstance(step, s.Protect | s.Hide))
    assert closed >= {path for step in plan.steps if isinstance(step, s.Mask) for path in step[1]}


def check_encoding(plan: Plan) -> None:
    """An independent decoder finds each step's word and its arguments, in order, and nothing else."""
    decoded = list(decode(plan.encode()))
    assert decoded == [(step.word, list(step.words())) for step in plan.steps]
    for step, (_, words) in zip(plan.steps, decoded, strict=True):
        if step.signature != "*":
            assert words == [str(value) for value in step[: len(step.signature)]]


def check_text(plan: Plan) -> None:
    """Whatever is in a file's name, a step's text is one printable line."""
    lines = str(plan).split("\n")
    assert len(lines) == len(plan.steps) + len(plan.notes)
    assert all(line.isprintable() for line in lines)


@given(policies, wishes, hosts, commands, terminals)
def test_every_plan(
    policy: Policy, wanted: list[Wish], host: Host, command: Command, terminal: Terminal | None
) -> None:
    """Any policy gives a plan in the promised order, or a PolicyError or HostError; nothing else."""
    plan = compiled(policy, wanted, host, command, terminal)
    assert plan == compiled(policy, wanted, host, command, terminal)
    if plan is None:
        return
    for check in (check_parents_first, check_attached, check_sources, check_end, check_phases):
        check(plan)
    for check in (check_private, check_encoding, check_text):
        check(plan)
    check_closed(plan, host)


def test_a_plan_does_not_depend_on_the_one_before() -> None:
    """What is remembered of the last plan is used for no other: each after each gives the same text."""
    alone = {name: case.plan().encode() for name, case in CASES.items()}
    for before in CASES.values():
        for name, case in CASES.items():
            before.plan()
            assert case.plan().encode() == alone[name]


# --- single decisions -----------------------------------------------------------------------


@pytest.mark.parametrize(("missing", "name"), [("mount_api", "mount API"), ("openat2", "openat2")])
def test_a_kernel_without_the_mount_api_is_refused(missing: str, name: str) -> None:
    """What Capsule cannot do without is a HostError that names it and the kernel that has it."""
    with pytest.raises(HostError, match=name) as caught:
        Case(host=HOST.replace(**{missing: False})).plan()
    assert "Linux 5.10" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("host", "says"),
    [
        (HOST, "/etc/subuid"),
        (HOST.replace(subuids=RANGES["subuids"]), "/etc/subgid"),
        (HOST.replace(**RANGES), "newuidmap"),
        (RANGE_HOST.replace(newgidmap=None), "newgidmap"),
    ],
)
def test_a_map_without_its_means_is_refused(host: Host, says: str) -> None:
    """A range of ids that the host does not give is a HostError with the remedy."""
    with pytest.raises(HostError, match=says) as caught:
        Case(Policy(id_map=IdMap.AUTO), host).plan()
    assert caught.value.hint


@pytest.mark.parametrize(
    ("host", "largest"), [(RANGE_HOST, 65536), (ROOT_HOST.replace(**RANGES), 65535)]
)
def test_an_id_outside_of_the_range_is_refused(host: Host, largest: int) -> None:
    """The last id of the map is taken, the one after it is a PolicyError."""
    for field in ("uid", "gid"):
        given: dict[str, Any] = {field: largest}
        policy = Policy(id_map=IdMap.AUTO, **given)
        Case(policy, host).plan()
        with pytest.raises(PolicyError) as caught:
            Case(policy.replace(**{**given, field: largest + 1}), host).plan()
        assert (caught.value.field, caught.value.value) == (field, largest + 1)


def test_host_root_is_for_root() -> None:
    """Nobody else can ask to be host root."""
    with pytest.raises(PolicyError, match="root only"):
        Case(Policy(id_map=IdMap.HOST_ROOT)).plan()


@pytest.mark.parametrize("host", [ROOT_HOST, ROOT_HOST.replace(**RANGES)])
@pytest.mark.parametrize("id_map", [IdMap.CALLER, IdMap.AUTO])
def test_real_root_is_never_mapped_unasked(host: Host, id_map: IdMap) -> None:
    """Started by real root, no line of either map begins at host id 0 or reaches it."""
    try:
        plan = Case(Policy(id_map=id_map), host).plan()
    except HostError:
        assert host.subuids is None
        return
    for step in plan.steps:
        if isinstance(step, s.UidMap | s.GidMap):
            assert 0 not in [int(word) for word in step[0].split()[1::3]]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_setgroups_is_denied_unless_it_is_needed(case: Case) -> None:
    """The command of a range of ids calls setgroups itself; for all others it is denied."""
    kinds_of_steps = [type(step) for step in case.plan().steps]
    assert (s.DenySetgroups in kinds_of_steps) != (s.Credentials in kinds_of_steps)


@pytest.mark.parametrize("host", [HOST, OLD_HOST])
def test_only_the_hosts_own_device_stands_without_nodev(host: Host) -> None:
    """Another file at a device's place is nodev like any other, whichever way the kernel is told."""
    plan = Case(Policy(mounts=[Mount.read_write("/dev/sda", at="/dev/null")]), host).plan()
    wanted = {step[1] for step in plan.steps if isinstance(step, s.Tree) and step[0] == "/dev/sda"}
    wanted |= {step[1] for step in plan.steps if isinstance(step, s.Remount) and step[0] == "/dev/null"}
    assert wanted - {0} == {s.NO_SUID | s.NO_DEV}


@pytest.mark.parametrize("at", ["/etc", "/var", "/etc/ssl"])
def test_a_directory_brings_what_it_holds(at: str) -> None:
    """Where a directory of the host stands, nothing of Capsule's own has to be made inside of it."""
    plan = Case(Policy(mounts=[Mount.read_only(at)])).plan()
    made = (s.File, s.Symlink, s.Directory)
    assert not [step for step in plan.steps if isinstance(step, made) and contains(at, str(step.path))]
    assert at in [step.path for step in plan.steps if isinstance(step, s.Attach)]


@pytest.mark.parametrize(("seconds", "ms"), [(0.0001, 1), (0.0015, 2), (1.0, 1000), (90.0, 90000)])
def test_a_deadline_is_never_nothing(seconds: float, ms: int) -> None:
    """The shortest time still is a deadline: 0 would be none."""
    plan = Case(Policy(limits=Limits(timeout=seconds))).plan()
    assert plan.steps[index(plan, s.Deadline)] == s.Deadline(ms)


def test_the_namespaces_are_those_of_the_text() -> None:
    """The plan names every namespace that its flags enter; --net host leaves out one."""
    assert set(Case().plan().namespaces) == set(s.NAMESPACES)
    shared = Case(Policy(network=Network.HOST)).plan()
    assert set(s.NAMESPACES) - set(shared.namespaces) == {"net"}
    assert shared.steps[index(shared, s.Namespaces)] == s.Namespaces(
        sum(s.NAMESPACES.values()) - s.NAMESPACES["net"]
    )


def test_the_resolver_comes_with_the_network() -> None:
    """The host's resolv.conf is shown with the host's network, and only then."""
    shown = {step[0] for step in CASES["network-host"].plan().steps if isinstance(step, s.Tree)}
    assert "/run/resolver/resolv.conf" in shown
    assert "/run/resolver/resolv.conf" not in str(CASES["default"].plan())


def test_a_later_mount_of_the_same_place_wins() -> None:
    """Two mounts at one place are one: the last."""
    plan = Case(Policy(mounts=[Mount.read_only("/a", at="/x"), Mount.read_only("/b", at="/x")])).plan()
    shown = [step[0] for step in plan.steps if isinstance(step, s.Tree)]
    assert "/b" in shown
    assert "/a" not in shown


def test_the_environment_is_not_in_the_text() -> None:
    """The text of a plan, which gets into logs, holds no variable: it may be a secret."""
    plan = Case(command=COMMAND.replace(env=("TOKEN=hunter2",))).plan()
    assert "hunter2" not in str(plan)
    assert b"TOKEN=hunter2" in plan.encode()


def test_the_launcher_s_own_limits_are_the_plan_s() -> None:
    """What launcher/mount.c has room for is what a plan is refused for, with the policy's word."""
    text = (Path(__file__).parents[3] / "launcher" / "mount.c").read_text(encoding="utf-8")
    room = dict(re.findall(r"^#define (\w+_MAX) (\d+)$", text, re.MULTILINE))
    assert room == {"TREES_MAX": str(TREES), "OURS_MAX": str(FILE_SYSTEMS)}


def test_more_file_systems_than_the_launcher_holds() -> None:
    """As many tmpfs as there is room for beside Capsule's own are planned; one more is refused."""
    own = sum(isinstance(step, s.Tmpfs | s.PivotRoot) for step in Case().plan().steps)
    mounts = [Mount.tmpfs(f"/t/{number}") for number in range(FILE_SYSTEMS - own)]
    assert Case(Policy(mounts=mounts)).plan().steps
    with pytest.raises(PolicyError, match="1025 file systems in memory") as caught:
        Case(Policy(mounts=[*mounts, Mount.tmpfs("/more")])).plan()
    assert caught.value.field == "mounts"
    assert caught.value.hint
