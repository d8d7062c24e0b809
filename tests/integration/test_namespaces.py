"""Every namespace is another one than the host's, seen from both sides."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import socket
from collections.abc import Iterator

import pytest

import capsule
from capsule import Network
from capsule.confine import landlock
from tests.support import (
    ask,
    ask_outside,
    assert_denied,
    command_of,
    needs,
    sleeper,
)

KINDS = {
    "mount": "mnt",
    "cgroup": "cgroup",
    "uts": "uts",
    "ipc": "ipc",
    "user": "user",
    "pid": "pid",
    "net": "net",
}


def inodes(pid: int | str = "self") -> dict[str, int]:
    """The inode of each namespace of a process."""
    return {kind: os.stat(f"/proc/{pid}/ns/{name}").st_ino for kind, name in KINDS.items()}


_INODES = f"""
tell({{kind: os.stat("/proc/self/ns/" + name).st_ino for kind, name in {KINDS!r}.items()}})
"""


@pytest.mark.parametrize("network", Network)
def test_the_command_sees_other_namespaces(network: Network) -> None:
    """From inside, each namespace but a shared network is another than the host's."""
    ours, theirs = inodes(), ask(_INODES, network=network)
    shared = {kind for kind in KINDS if ours[kind] == theirs[kind]}
    assert shared == ({"net"} if network is Network.HOST else set())


@pytest.mark.parametrize("network", Network)
def test_the_host_sees_other_namespaces(network: Network) -> None:
    """From outside, it is the same, and the process and its plan name what was entered."""
    with capsule.start(["cat"], stdin=capsule.PIPE, network=network) as process:
        ours, theirs = inodes(), inodes(command_of(process))
        entered = {kind for kind in KINDS if ours[kind] != theirs[kind]}
        assert entered == set(process.namespaces)
        assert process.namespaces == capsule.plan(["cat"], network=network).namespaces
        assert process.wait().namespaces == process.namespaces
    assert entered == set(KINDS) - ({"net"} if network is Network.HOST else set())


@needs("real root")
def test_init_is_in_the_same_namespaces() -> None:
    """Init and the command share all of them."""
    with capsule.start(["cat"], stdin=capsule.PIPE) as process:
        assert inodes(process.pid) == inodes(command_of(process))


def test_two_capsules_share_nothing() -> None:
    """Each capsule has namespaces of its own."""
    with (
        capsule.start(["cat"], stdin=capsule.PIPE) as one,
        capsule.start(["cat"], stdin=capsule.PIPE) as other,
    ):
        first, second = inodes(command_of(one)), inodes(command_of(other))
    assert all(first[kind] != second[kind] for kind in KINDS)


# --- PID --------------------------------------------------------------------------------------


@pytest.mark.row("B-11")
def test_no_process_of_the_host_can_be_named() -> None:
    """A process of the same user outside has no number inside: ESRCH, and no directory in /proc."""
    with sleeper() as other:
        given = {"pid": other.pid}
        assert_denied("os.kill(given['pid'], 0)", errno.ESRCH, outside=given)
        assert_denied("os.listdir(f'/proc/{given[\"pid\"]}')", errno.ENOENT, outside=given)


# --- network ------------------------------------------------------------------------------------

_ECHO = """
import socket, threading
address = given["address"]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with socket.socket(family) as server:
    server.bind((address, 0))
    server.listen()
    def answer():
        peer, _ = server.accept()
        with peer:
            peer.sendall(peer.recv(100).upper())
    thread = threading.Thread(target=answer)
    thread.start()
    with socket.create_connection(server.getsockname()[:2]) as client:
        client.sendall(b"hello")
        tell(client.recv(100).decode())
    thread.join()
"""


@pytest.mark.parametrize("network", Network)
@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
def test_a_server_and_a_client_inside_can_talk(address: str, network: Network) -> None:
    """The loopback interface works, by number and by name."""
    assert ask(_ECHO, given={"address": address}, network=network) == "HELLO"


@needs("ipv6")
def test_a_server_and_a_client_inside_can_talk_over_ipv6() -> None:
    """So does ::1 where the host has IPv6."""
    assert ask(_ECHO, given={"address": "::1"}) == "HELLO"


def test_loopback_is_the_only_interface_and_route() -> None:
    """No interface but lo is up, and no route leads through another."""
    code = """
import fcntl, socket, struct
def is_up(name):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh", name.encode(), 0).ljust(40, b"\\0")
        return struct.unpack("16sh", fcntl.ioctl(any_socket, 0x8913, request)[:18])[1] & 1 == 1
def routes(name):
    with open(f"/proc/net/{name}") as table:
        return {word for line in table for word in line.split() if word in names}
names = {name for _, name in socket.if_nameindex()}
tell([sorted(filter(is_up, names)), len(open("/proc/net/route").readlines()) <= 1,
      routes("ipv6_route") <= {"lo"} if os.path.exists("/proc/net/ipv6_route") else True])
"""
    assert ask(code) == [["lo"], True, True]


_CONNECT = """
import socket
with socket.socket(socket.AF_INET, getattr(socket, given.get("type", "SOCK_STREAM"))) as client:
    client.connect((given["address"], given["port"]))
"""


@pytest.fixture
def listener() -> Iterator[dict[str, object]]:
    """A service of the host."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {"address": "127.0.0.1", "port": server.getsockname()[1]}


def test_no_service_of_the_host_is_reachable(listener: dict[str, object]) -> None:
    """What listens on the host's loopback is not there inside: ECONNREFUSED."""
    assert_denied(_CONNECT, errno.ECONNREFUSED, outside=listener)


def test_the_hosts_network_is_shared_on_request(listener: dict[str, object]) -> None:
    """With Network.HOST the same service is reachable, and the result says so."""
    code = _CONNECT + "tell('connected')"
    assert ask(code, given=listener, network="host") == "connected"
    result = capsule.run(["true"], network=Network.HOST)
    assert result.protections["network"] == "none: the host's network is shared"
    assert "net" not in result.namespaces


@needs("route")
def test_no_network_is_reachable() -> None:
    """There is no route to anywhere: ENETUNREACH."""
    given = {"address": "192.0.2.1", "port": 9, "type": "SOCK_DGRAM"}
    assert_denied(_CONNECT, errno.ENETUNREACH, outside=given)


_ABSTRACT = """
import socket
with socket.socket(socket.AF_UNIX) as client:
    client.connect("\\0" + given["name"])
"""


@pytest.mark.row("B-15")
def test_no_abstract_socket_of_the_host_is_reachable() -> None:
    """Abstract names belong to the network namespace: refused; with the host's, EPERM of Landlock."""
    given = {"name": f"capsule-{secrets.token_hex(8)}"}
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + given["name"])
        server.listen()
        assert_denied(_ABSTRACT, errno.ECONNREFUSED, outside=given)
        connects = _ABSTRACT + "tell('connected')"
        assert ask(connects, given=given, network="host", landlock="off") == "connected"
        if capsule.probe().landlock_abi >= landlock.OF_SCOPES:
            assert_denied(_ABSTRACT, errno.EPERM, outside=given, network="host")


# --- IPC ----------------------------------------------------------------------------------------


@pytest.mark.row("B-14")
def test_no_shared_memory_of_the_host_is_reachable() -> None:
    """A System V segment that everybody may attach to has no key inside: ENOENT."""
    libc = ctypes.CDLL(None, use_errno=True)
    key = secrets.randbelow(2**30) + 1
    segment = libc.shmget(key, 4096, 0o1000 | 0o666)  # IPC_CREAT
    assert segment >= 0, os.strerror(ctypes.get_errno())
    act = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
if libc.shmget(given["key"], 0, 0) < 0:
    raise OSError(ctypes.get_errno(), "shmget")
"""
    try:
        assert_denied(act, errno.ENOENT, outside={"key": key})
    finally:
        libc.shmctl(segment, 0, None)  # IPC_RMID


@needs("mqueue")
@pytest.mark.row("B-14")
def test_no_message_queue_of_the_host_is_reachable() -> None:
    """A POSIX message queue of the host has no name inside: ENOENT."""
    libc = ctypes.CDLL(None, use_errno=True)
    name = f"/capsule-{secrets.token_hex(8)}"
    queue = libc.mq_open(name.encode(), os.O_CREAT | os.O_RDWR, 0o666, None)
    assert queue >= 0, os.strerror(ctypes.get_errno())
    act = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
if libc.mq_open(given["name"].encode(), os.O_RDONLY) < 0:
    raise OSError(ctypes.get_errno(), "mq_open")
"""
    try:
        assert_denied(act, errno.ENOENT, outside={"name": name})
    finally:
        os.close(queue)
        libc.mq_unlink(name.encode())


# --- UTS and cgroup -------------------------------------------------------------------------------


def test_the_hostname_is_the_capsules() -> None:
    """The hostname is `capsule` or the one asked for, in uname, in /etc, and by its address."""
    code = """
import socket
tell([os.uname().nodename, open("/etc/hostname").read(), socket.gethostbyname(os.uname().nodename)])
"""
    before = os.uname().nodename
    assert ask(code) == ["capsule", "capsule\n", "127.0.0.1"]
    assert ask(code, hostname="box.example") == ["box.example", "box.example\n", "127.0.0.1"]
    assert os.uname().nodename == before


def test_the_hostname_cannot_be_changed() -> None:
    """Without a capability, even the capsule's own hostname stays: EPERM."""
    code = """
import socket
try:
    socket.sethostname("other")
except OSError as error:
    tell([errno.errorcode[error.errno], os.uname().nodename])
"""
    assert ask(code) == ["EPERM", "capsule"]


@pytest.mark.row("E-12")
def test_cgroups_show_no_path_of_the_host() -> None:
    """Each cgroup of the command is the root of its cgroup namespace."""
    code = 'tell([line.rstrip().split(":", 2)[2] for line in open("/proc/self/cgroup")])'
    inside = ask(code)
    assert len(inside) == len(ask_outside(code)) > 0
    assert set(inside) == {"/"}
