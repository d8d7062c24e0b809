"""From a policy's limits to what enforces them: pure, with hosts that are made up."""

from __future__ import annotations

from typing import Any

import pytest

from capsule.base.errors import HostError, PolicyError
from capsule.files.found import Found
from capsule.host.delegation import DELEGATED, OWN, SCOPE, Delegation
from capsule.host.host import Host
from capsule.launcher import steps as s
from capsule.planner.limits import check_out_of_reach, make_bounds
from capsule.policy.limits import Limits
from capsule.policy.mounts import Mount
from capsule.policy.policy import IdMap, Policy

WHERE = "/sys/fs/cgroup/user.slice/own"
WHOLE = Host(kernel="6.1.0", cpus=4, cgroup=Delegation(WHERE, ("memory", "pids", "cpu"), DELEGATED))
NO_CPU = Host(kernel="6.1.0", cpus=4, cgroup=Delegation(WHERE, ("memory", "pids"), DELEGATED))
NONE = Host(kernel="6.1.0", cpus=4, cgroup=Delegation("/sys/fs/cgroup", top=True))
NPROC = s.Rlimit(6, 2049, 2049, "processes")
CORE = s.Rlimit(4, 1, 1, "core dumps")
# One of each limit that holds for the tree.
TREE: dict[str, Any] = {"memory": "64M", "cpus": 0.5, "cpu_weight": 50, "pids": 32, "cpu_time": 2}


def test_without_limits() -> None:
    """No cgroup, but a bound on processes, where they are counted by user namespace."""
    bounds = make_bounds(Policy(), WHOLE)
    assert (bounds.settings, bounds.launcher_steps, bounds.init_steps) == (None, (), ())
    assert bounds.command_steps == (CORE, NPROC)
    assert dict(bounds.protections) == {
        "pids": "RLIMIT_NPROC 2048, which counts by user namespace",
    }


@pytest.mark.parametrize(
    ("host", "policy"),
    [
        (WHOLE.replace(kernel="5.13.19"), Policy()),
        (WHOLE, Policy(id_map=IdMap.AUTO)),
        (WHOLE, Policy(id_map=IdMap.HOST_ROOT)),
    ],
)
def test_where_processes_cannot_be_counted(host: Host, policy: Policy) -> None:
    """A count of all the user's processes on the host, or one for each of many ids, is none."""
    bounds = make_bounds(policy, host)
    assert NPROC not in bounds.command_steps
    assert dict(bounds.protections)["pids"] == "no limit but those of the caller"


def test_pid_max_where_it_is_the_namespace_s() -> None:
    """From 6.14, for the id maps of which RLIMIT_NPROC counts nothing; never where it is the host's."""
    pid_max = s.Sysctl("kernel/pid_max", "2048")
    new, old = WHOLE.replace(kernel="6.14.0"), WHOLE.replace(kernel="6.13.9")
    for id_map in (IdMap.AUTO, IdMap.HOST_ROOT):
        bounds = make_bounds(Policy(id_map=id_map), new)
        assert bounds.sysctls == (pid_max,)
        assert dict(bounds.protections)["pids"] == "kernel.pid_max 2048 of the PID namespace"
        assert make_bounds(Policy(id_map=id_map), old).sysctls == ()
        nest = Policy(id_map=id_map, limits=Limits(pids=4000), seccomp="nest")
        in_cgroup = make_bounds(nest, new)
        assert in_cgroup.sysctls == (s.Sysctl("user/max_cgroup_namespaces", "0"),)
    assert make_bounds(Policy(), new).sysctls == ()


def test_all_in_a_cgroup() -> None:
    """Each limit of the tree is a file of it; init is one process more than the command may have."""
    bounds = make_bounds(Policy(limits=Limits(**TREE)), WHOLE)
    assert dict(bounds.settings or ()) == {
        "memory.max": str(64 << 20),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": "50000 100000",
        "cpu.weight": "50",
        "pids.max": "33",
    }
    (step,) = bounds.launcher_steps
    assert isinstance(step, s.Cgroup)
    assert f"{WHERE} (a delegated subtree): memory.max 67108864," in step.describe()
    assert bounds.init_steps == (s.CpuTime(2_000_000, 4),)
    assert bounds.command_steps == (CORE,)
    told = dict(bounds.protections)
    assert told.keys() == {"memory", "cpus", "pids", "cpu_time"}
    assert all(WHERE in text and "degraded" not in text for text in told.values())


def test_one_limit_makes_one_setting() -> None:
    """Nothing is set that was not asked for; CPU time alone needs a cgroup for its account only."""
    assert make_bounds(Policy(limits=Limits(cpu_time=1)), NO_CPU).settings == ()
    assert make_bounds(Policy(limits=Limits(pids=1)), NO_CPU).settings == (("pids.max", "2"),)
    memory = make_bounds(Policy(limits=Limits(memory="1M", swap=None)), NO_CPU).settings
    assert dict(memory or ())["memory.swap.max"] == "max"


def test_root_has_a_subtree_of_its_own() -> None:
    """The way is a part of what is told."""
    host = WHOLE.replace(cgroup=Delegation("/sys/fs/cgroup", ("pids",), OWN, top=True))
    told = dict(make_bounds(Policy(limits=Limits(pids=4)), host).protections)
    assert told["pids"] == "cgroup in /sys/fs/cgroup (a subtree of root's own): pids.max 4"


@pytest.mark.parametrize("name", TREE)
@pytest.mark.parametrize("host", [NONE, NONE.replace(cgroup=Delegation()), NONE.replace(cgroup=None)])
def test_without_a_cgroup_is_refused(name: str, host: Host) -> None:
    """It says which limit, why, and what to do."""
    with pytest.raises(HostError) as caught:
        make_bounds(Policy(limits=Limits(**{name: TREE[name]})), host)
    assert caught.value.message.startswith(f"{name}: a limit of all processes together needs a cgroup")
    assert "systemd.unified_cgroup_hierarchy=1" in str(caught.value.hint)
    flag = f"--allow-degraded {name.replace('_', '-')}"
    assert (flag in str(caught.value.hint)) is (name != "cpu_weight")


def test_the_remedy_of_a_missing_controller() -> None:
    """The drop-in file; and the others are not refused with it."""
    with pytest.raises(HostError) as caught:
        make_bounds(Policy(limits=Limits(memory="1M", cpus=1)), NO_CPU)
    assert caught.value.message.startswith("cpus: ")
    assert "delegated without cpu" in caught.value.message
    assert "systemctl edit user@.service" in str(caught.value.hint)


def test_the_remedy_where_nothing_is_delegated() -> None:
    """The line of systemd-run."""
    own = Delegation(WHERE, ("memory", "pids", "cpu"), error=13)
    with pytest.raises(HostError) as caught:
        make_bounds(Policy(limits=Limits(memory="1M")), WHOLE.replace(cgroup=own))
    assert f"{WHERE} is not delegated: Permission denied" in caught.value.message
    assert "systemd-run --user --scope -p Delegate=yes" in str(caught.value.hint)


def test_degraded() -> None:
    """Each in its weaker way, and called so."""
    limits = Limits(memory="64M", cpus=1.5, pids=32, cpu_time=2)
    policy = Policy(limits=limits, allow_degraded=("memory", "cpus", "pids", "cpu-time"))
    bounds = make_bounds(policy, NONE)
    assert (bounds.settings, bounds.launcher_steps) == (None, ())
    assert bounds.init_steps == (s.CpuTime(2_000_000, 4), s.WatchMemory(64 << 20))
    assert bounds.command_steps == (
        CORE,
        s.Rlimit(2, 64 << 20, 64 << 20, "the private memory of a process"),
        s.Affinity(2),
        s.Rlimit(6, 33, 33, "processes"),
    )
    assert all(text.startswith("degraded: ") for _, text in bounds.protections)
    # Where there is a cgroup, nothing less is made of it.
    assert make_bounds(policy, WHOLE) == make_bounds(Policy(limits=limits), WHOLE)


def test_degraded_in_part() -> None:
    """What the cgroup can do it does, and only the rest is weaker."""
    policy = Policy(limits=Limits(memory="64M", cpus=0.5), allow_degraded=["cpus", "memory"])
    bounds = make_bounds(policy, NO_CPU)
    assert dict(bounds.settings or ()).keys() == {"memory.max", "memory.swap.max", "memory.oom.group"}
    assert s.Affinity(1) in bounds.command_steps
    assert {name: text.startswith("degraded") for name, text in bounds.protections} == {
        "memory": False,
        "cpus": True,
        "pids": False,
    }


def test_processes_that_nothing_counts() -> None:
    """Less may be accepted, but not nothing at all."""
    policy = Policy(limits=Limits(pids=32), allow_degraded=["pids"])
    with pytest.raises(HostError, match=r"this kernel \(5\.10\.0\) has no count of processes"):
        make_bounds(policy, NONE.replace(kernel="5.10.0"))


def test_limits_of_each_process() -> None:
    """They need nothing; the times are init's."""
    limits = Limits(timeout=1, idle="1.5s", file_size="1K", open_files=16)
    bounds = make_bounds(Policy(limits=limits), NONE)
    assert bounds.init_steps == (s.Deadline(1000), s.Idle(1500))
    assert bounds.command_steps == (
        CORE,
        s.Rlimit(1, 1024, 1024, "the size of a file"),
        s.Rlimit(7, 16, 16, "open files"),
        NPROC,
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory", "much"),
        ("memory", 0),
        ("memory", (1 << 20) - 1),
        ("memory", -1),
        ("swap", "x"),
        ("cpus", 0),
        ("cpus", 0.001),
        ("cpus", float("nan")),
        ("cpus", "1,5"),
        ("cpus", True),
        ("cpus", 10**400),
        ("cpu_weight", 0),
        ("cpu_weight", 10_001),
        ("pids", 0),
        ("pids", "many"),
        ("pids", 2.0),
        ("pids", 1 << 23),
        ("cpu_time", 0),
        ("idle", "soon"),
        ("file_size", -1),
        ("open_files", "0"),
        ("open_files", 15),
    ],
)
def test_a_value_that_cannot_be_meant(field: str, value: Any) -> None:
    """The error names the field and the value."""
    with pytest.raises(PolicyError) as caught:
        Limits(**{field: value})
    assert (caught.value.field, caught.value.value) == (field, value) or value != value
    assert caught.value.message.startswith(f"{field}: ")
    assert caught.value.hint


@pytest.mark.parametrize("path", ["/sys", "/sys/fs/cgroup", WHERE])
def test_the_cgroup_is_not_shown_writable(path: str) -> None:
    """Where there are limits in it; read-only, or beside it, it does no harm."""
    limited, free = make_bounds(Policy(limits=Limits(pids=4)), WHOLE), make_bounds(Policy(), WHOLE)
    shown = Found(Mount.read_write(path), path)
    with pytest.raises(PolicyError, match="change its own limits"):
        check_out_of_reach(limited, WHOLE, [shown])
    check_out_of_reach(free, WHOLE, [shown])
    for other in (Found(Mount.read_only(path), path), Found(Mount.read_write("/sys/x"), "/sys/x")):
        check_out_of_reach(limited, WHOLE, [other])


@pytest.mark.parametrize("value", ["memory", ["output"], ["cpu_weight"], 5])
def test_only_some_limits_can_be_degraded(value: Any) -> None:
    """And a text is no list of names."""
    with pytest.raises(
        PolicyError, match=r"allow_degraded: not (a list|one) of cpu_time, cpus, memory"
    ):
        Policy(allow_degraded=value)


def test_where_a_scope_will_be_is_out_of_reach_too() -> None:
    """It comes to be somewhere below the service manager's own cgroup."""
    manager = "/sys/fs/cgroup/user.slice/user@1000.service"
    host = WHOLE.replace(cgroup=Delegation(manager, ("memory",), SCOPE))
    limited = make_bounds(Policy(limits=Limits(memory="64M")), host)
    for path in (manager, "/sys/fs/cgroup", f"{manager}/app.slice"):
        with pytest.raises(PolicyError, match="change its own limits"):
            check_out_of_reach(limited, host, [Found(Mount.read_write(path), path)])
    check_out_of_reach(limited, host, [Found(Mount.read_write("/srv"), "/srv")])
