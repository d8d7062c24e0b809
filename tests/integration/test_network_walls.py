"""No way around a list of hosts: addresses, resolvers, families, sockets; and names that lie.

Each has its control: the same from the lab, where the capsule is made, reaches something.
"""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import threading
from typing import Any

import pytest

import capsule
from tests.attacks.lab import in_lab
from tests.integration.internet import (
    ALLOWED,
    DNS,
    METADATA,
    OTHER,
    OWN,
    PRIVATE,
    PUBLIC,
    SETUP,
    SIX,
    internet,
)
from tests.integration.test_network import policy_for, told
from tests.support import HANG, PYTHON, needs

pytestmark = needs("ipv6", "resolver", "unshare", "ip", "openssl")

# A probe prints "reached", or the errno that it met.
HEAD = """
import errno, os, socket, struct, sys
def tcp(host, port, family=socket.AF_INET):
    one = socket.socket(family)
    one.settimeout(9)
    one.connect((host, port))
    one.sendall(b"GET /hello HTTP/1.0\\r\\n\\r\\n")
    assert one.recv(9).startswith(b"HTTP"), "no answer"
def query(server, name, family=socket.AF_INET, port=53):
    one = socket.socket(family, socket.SOCK_DGRAM)
    one.settimeout(9)
    one.connect((server, port))
    labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split("."))
    one.send(struct.pack("!6H", 1, 256, 1, 0, 0, 0) + labels + b"\\0" + struct.pack("!HH", 1, 1))
    assert one.recv(512)[7] == 1, "no address"
def local(kind, address):
    one = socket.socket(socket.AF_UNIX, kind)
    one.settimeout(9)
    one.connect(address)
def get(url):
    import urllib.request
    return urllib.request.urlopen(url, timeout=9).read()
try:
    BODY
    print("reached")
except OSError as error:
    reason = getattr(error, "reason", error)
    print(errno.errorcode.get(reason.errno, reason.errno))
except AssertionError as error:
    print(error)
"""
ABSTRACT, PATH = "\0canary", "/tmp/canary"

_REQUEST = """
    import urllib.request as u
    get(u.Request("http://allowed.example/hello", headers={"Host": "other.example"}))
"""
_ABSOLUTE = """
    one = socket.create_connection(("allowed.example", 80), 9)
    one.sendall(b"GET http://other.example/ HTTP/1.1\\r\\nHost: other.example\\r\\n\\r\\n")
    assert one.recv(1), "no answer"
"""
_HELLO = """
    import ssl
    one = socket.create_connection(("allowed.example", 443), 9)
    ssl._create_unverified_context().wrap_socket(one, server_hostname="other.example").close()
"""

# What is tried, and what is met inside.
WAYS = {
    "an address": (f"tcp({OTHER!r}, 80)", "ECONNREFUSED"),
    "the address of the allowed name": (f"tcp({ALLOWED!r}, 80)", "ECONNREFUSED"),
    "IPv6": (f"tcp({SIX!r}, 80, socket.AF_INET6)", "ECONNREFUSED"),
    "IPv4 in IPv6": (f"tcp('::ffff:{OTHER}', 80, socket.AF_INET6)", "ECONNREFUSED"),
    "the host's address": (f"tcp({OWN!r}, 80)", "ECONNREFUSED"),
    "the host's loopback": ("tcp('127.0.0.1', 80)", "ECONNREFUSED"),
    "cloud metadata": (f"tcp({METADATA!r}, 80)", "ECONNREFUSED"),
    "the host's resolver": (f"query({DNS!r}, 'other.example')", "ECONNREFUSED"),
    "the same for the allowed name": (f"query({DNS!r}, 'allowed.example')", "ECONNREFUSED"),
    "a datagram": (f"query({OTHER!r}, 'any.example')", "ECONNREFUSED"),
    "QUIC": (f"query({OTHER!r}, 'any.example', port=443)", "ECONNREFUSED"),
    "a datagram by IPv6": (f"query({SIX!r}, 'any.example', socket.AF_INET6)", "ECONNREFUSED"),
    "another port of the name": ("tcp('allowed.example', 8080)", "ECONNREFUSED"),
    "an abstract socket": (f"local(socket.SOCK_STREAM, {ABSTRACT!r})", "ECONNREFUSED"),
    "a socket's path": (f"local(socket.SOCK_STREAM, {PATH!r})", "ENOENT"),
    "a raw socket": ("socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", "EPERM"),
    "a packet socket": ("socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)", "EAFNOSUPPORT"),
    "another name": ("get('http://other.example/hello')", "-2"),
    "its name in capitals": ("get('http://OTHER.example/hello')", "-2"),
    "a name below": ("get('http://www.allowed.example/hello')", "-2"),
    "another Host": (_REQUEST, "ECONNRESET"),
    "another request line": (_ABSOLUTE, "ECONNRESET"),
    "another SNI": (_HELLO, "ECONNRESET"),
}
# Names that are allowed and lead to what is not the internet's.
LIES = {
    "loopback.example": "loopback address 127.0.0.1",
    "mapped.example": "loopback address 127.0.0.1",
    "private.example": f"private address {PRIVATE}",
    "public.example": f"host's own address {PUBLIC}",
    "own.example": f"private address {OWN}",
    "metadata.example": f"link-local address {METADATA}",
    "zero.example": "this host address 0.0.0.0",
}


def probe(body: str) -> list[str]:
    """The words that try it."""
    return [PYTHON, "-c", HEAD.replace("BODY", body)]


def _listen() -> list[Any]:
    """Answer datagrams at the other server, TCP at another port, and on sockets of the host."""
    kept: list[Any] = []
    for family, address, port in (
        (socket.AF_INET, OTHER, 53), (socket.AF_INET, OTHER, 443), (socket.AF_INET6, SIX, 53),
    ):  # fmt: skip
        one = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, 78, 1)
        one.bind((address, port))
        kept.append(one)
        threading.Thread(target=_echo, args=(one,), daemon=True).start()
    for where in (ABSTRACT, PATH):
        one = socket.socket(socket.AF_UNIX)
        one.bind(where)
        one.listen(9)
        kept.append(one)
    return kept


def _echo(one: socket.socket) -> None:
    while True:
        data, client = one.recvfrom(512)
        one.sendto(data[:7] + b"\1" + data[8:], client)


def try_ways() -> Any:
    """(Control, inside, told) of each way, all in one capsule after the other."""
    from tests.integration import internet as module

    found: dict[str, Any] = {}
    with internet() as net:
        web = module._web(net, ALLOWED, 8080)
        threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
        kept = _listen()
        for name, (body, _) in WAYS.items():
            control = subprocess.run(probe(body), capture_output=True, text=True, check=False)
            net.hits.clear()
            net.asked.clear()
            result = capsule.run(
                ["sh", "-c", 'python3 -c "$1"; curl -sSm9 http://allowed.example/hello', "sh",
                 probe(body)[2]],
                policy_for(net, "allowed.example"), text=True, timeout=HANG,
            )  # fmt: skip
            found[name] = {
                "control": control.stdout + control.stderr,
                "inside": result.stdout + result.stderr,
                "told": told(result),
                "hits": sorted({address for address, _ in net.hits}),
                "asked": sorted(set(net.asked)),
            }
        del kept
    return found


@functools.cache
def ways() -> dict[str, Any]:
    """What `try_ways` has found in a lab."""
    found: dict[str, Any] = in_lab(try_ways, mounts=SETUP)
    return found


# What only root of the lab may do: there is nothing to reach by it.
PRIVILEGED = ("a raw socket", "a packet socket")


@pytest.mark.parametrize("name", WAYS)
def test_no_way_around(name: str) -> None:
    """It is refused at once and told; the same capsule still reaches what is allowed."""
    seen, expected = ways()[name], WAYS[name][1]
    if name not in PRIVILEGED:
        assert seen["control"] == "reached\n"
    assert seen["inside"] == f"{expected}\nhello\n"
    assert seen["hits"] == [ALLOWED]
    assert seen["asked"] == ["allowed.example"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("an address", f"refused tcp {OTHER}:80: no rule names it; --allow-net {OTHER}:80 allows it"),
        ("IPv6", f"refused tcp [{SIX}]:80: no rule names it; --allow-net [{SIX}]:80 allows it"),
        ("the host's resolver", f"refused udp {DNS}:53: only TCP is passed on"),
        ("QUIC", f"refused udp {OTHER}:443: only TCP is passed on"),
        ("a datagram by IPv6", f"refused udp [{SIX}]:53: only TCP is passed on"),
        (
            "another port of the name",
            "refused tcp {0}:8080: no rule names it; --allow-net {0}:8080 allows it",
        ),
        ("another Host", "refused tcp {0}:80: it asks {0} for {1}; --allow-net {1}:80 allows it"),
        ("another SNI", "refused tcp {0}:443: it asks {0} for {1}; --allow-net {1}:443 allows it"),
    ],
)
def test_a_refusal_is_told(name: str, line: str) -> None:
    """By which rule, and with the option that would allow it."""
    assert line.format("allowed.example", "other.example") in ways()[name]["told"]


# --- names that lie -------------------------------------------------------------------------------


def try_lies() -> Any:
    """What comes of each name, of one that leads elsewhere later, and of one that has both."""
    found: dict[str, Any] = {}
    with internet() as net:
        for name in LIES:
            body = f"get('http://{name}/hello')"
            control = subprocess.run(probe(body), capture_output=True, text=True, check=False)
            net.hits.clear()
            result = capsule.run(
                ["sh", "-c", 'python3 -c "$1"; curl -sSm9 http://allowed.example/hello', "sh",
                 probe(body)[2]],
                policy_for(net, name, "allowed.example"), text=True, timeout=HANG,
            )  # fmt: skip
            hits = sorted({address for address, _ in net.hits})
            found[name] = [control.stdout, result.stdout + result.stderr, told(result), hits]
        net.hits.clear()
        for name in ("mixed.example", "dead.example", "unknown.example", "six.example"):
            result = capsule.run(
                ["curl", "-sSm9", f"http://{name}/hello"],
                policy_for(net, name), text=True, timeout=HANG,
            )  # fmt: skip
            found[name] = [result.stdout + result.stderr, told(result)]
        words = 'curl -sSm9 http://rebinding.example/hello; echo; sleep 0.1; curl -sSm9 "$@"'
        rebound = capsule.run(
            ["sh", "-c", words, "sh", "http://rebinding.example/hello"],
            policy_for(net, "rebinding.example"), text=True, timeout=HANG,
        )  # fmt: skip
        found["rebinding.example"] = [rebound.stdout + rebound.stderr, told(rebound)]
        meant = policy_for(net, "own.example", f"{OWN}:80")
        result = capsule.run(["curl", "-sSm9", "http://own.example/hello"], meant, text=True)
        found["meant"] = [result.stdout + result.stderr, told(result)]
        found["hits"] = net.hits
    return found


@functools.cache
def lies() -> dict[str, Any]:
    """What `try_lies` has found in a lab."""
    found: dict[str, Any] = in_lab(try_lies, mounts=SETUP)
    return found


@pytest.mark.parametrize("name", LIES)
def test_a_name_that_leads_inwards(name: str) -> None:
    """It may be reached by its rule, but not there; what would allow that is told."""
    control, inside, lines, hits = lies()[name]
    assert control == "reached\n"
    assert inside == "ECONNRESET\nhello\n"
    assert hits == [ALLOWED]
    assert any(f"it leads to a {LIES[name]}; --allow-net " in line for line in lines)


def test_what_is_meant_is_reached() -> None:
    """A rule for the address says so."""
    out, lines = lies()["meant"]
    assert out == "hello\n"
    assert any(line.startswith("reached own.example:80") for line in lines)


def test_a_name_that_leads_to_both() -> None:
    """What may be reached of it is."""
    out, lines = lies()["mixed.example"]
    assert out == "hello\n"
    assert len(lines) == 2


def test_a_name_that_leads_elsewhere_later() -> None:
    """What was looked at is what is connected to, each time: the host's loopback is never."""
    out, _ = lies()["rebinding.example"]
    assert out.startswith("hello\n")
    assert {address for address, _ in lies()["hits"]} <= {ALLOWED, OWN, SIX}
    assert sum(address == OWN for address, _ in lies()["hits"]) == 1


@pytest.mark.parametrize(
    ("name", "said", "line"),
    [
        ("dead.example", "curl: (", "refused tcp dead.example:80: Connection refused"),
        ("unknown.example", "Could not resolve host", "there is no such name"),
    ],
)
def test_what_is_not_there(name: str, said: str, line: str) -> None:
    """It fails as it would without a list, as far as a connection that is accepted first can."""
    out, lines = lies()[name]
    assert said in out
    assert any(line in one for one in lines)


def test_a_host_that_has_ipv6_alone() -> None:
    """It is dialled by that, whatever the address inside is."""
    assert lies()["six.example"][0] == "hello\n"


# --- each kind of rule ----------------------------------------------------------------------------

# A rule, what it lets be reached, and what it does not, with the errno inside.
KINDS = {
    "a name below": (
        "*.wild.example:80", "get('http://a.b.wild.example/hello')",
        "get('http://wild.example/hello')", "-2",
    ),
    "any name": (
        "*:80", "get('http://other.example/hello')", f"tcp({OTHER!r}, 80)", "ECONNREFUSED",
    ),
    "an address": (
        f"{OTHER}:80", f"tcp({OTHER!r}, 80)", f"tcp({ALLOWED!r}, 80)", "ECONNREFUSED",
    ),
    "an address of IPv6": (
        f"[{SIX}]:80", f"tcp({SIX!r}, 80, socket.AF_INET6)", f"tcp({OTHER!r}, 80)", "ECONNREFUSED",
    ),
    "a network": (
        "93.184.216.34/31:80", f"tcp({OTHER!r}, 80)", f"tcp({METADATA!r}, 80)", "ECONNRESET",
    ),
    "all of the internet": (
        "0.0.0.0/0:80", f"tcp({ALLOWED!r}, 80)", f"tcp({PRIVATE!r}, 80)", "ECONNRESET",
    ),
    "this host's loopback": (
        "localhost:80", "tcp('localhost', 80)", f"tcp({OWN!r}, 80)", "ECONNREFUSED",
    ),
    "a port": (
        "allowed.example:443", "get('https://allowed.example/hello')", "tcp('allowed.example', 80)",
        "ECONNREFUSED",
    ),
}  # fmt: skip


def try_kinds() -> Any:
    """(Control of what is refused, refused, reached) of each, the latter two in one capsule."""
    found: dict[str, Any] = {}
    with internet() as net:
        for name, (rule, reached, refused, _) in KINDS.items():
            control = subprocess.run(probe(refused), capture_output=True, text=True, check=False)
            bodies = [probe(body)[2] for body in (refused, reached)]
            words = ["sh", "-c", 'python3 -c "$1"; python3 -c "$2"', "sh", *bodies]
            result = capsule.run(words, policy_for(net, rule), text=True, timeout=HANG)
            found[name] = [control.stdout, result.stdout + result.stderr, told(result)]
    return found


@functools.cache
def kinds() -> dict[str, Any]:
    """What `try_kinds` has found in a lab."""
    found: dict[str, Any] = in_lab(try_kinds, mounts=SETUP)
    return found


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_rule(name: str) -> None:
    """It lets be reached what it says, and nothing beside it."""
    control, inside, lines = kinds()[name]
    assert control == "reached\n"
    assert inside == f"{KINDS[name][3]}\nreached\n"
    assert any(line.startswith("reached ") for line in lines)
    assert any(line.startswith("refused ") for line in lines)


# Datagrams and beginnings at random, cut off and left open; then what is allowed, once more.
GARBAGE = """
import os, random, socket, urllib.request
random.seed(7)
kept = []
for number in range(400):
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.sendto(os.urandom(random.randrange(600)), ("198.18.0.1", 53))
    query = bytearray(b"\\0\\7\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\7allowed\\7example\\0\\0\\1\\0\\1")
    query[random.randrange(len(query))] = random.randrange(256)
    one.sendto(query, ("198.18.0.1", 53))
    one.close()
starts = [
    b"\\x16\\x03\\x01",
    b"GET / HTTP/1.1\\r\\n",
    b"GET ",
    b"",
    b"\\x16\\x03\\x01\\2\\0\\1\\0\\1\\xfc",
]
for number in range(200):
    one = socket.create_connection(("allowed.example", random.choice((80, 443))), 9)
    try:
        one.sendall(random.choice(starts) + os.urandom(random.choice((0, 1, 50, 40000))))
    except OSError:
        pass
    if number % 2:
        kept.append(one)
    else:
        one.close()
print(urllib.request.urlopen("http://allowed.example/hello", timeout=9).read().decode(), end="")
"""


# --- within ----------------------------------------------------------------------------------------


def try_within() -> Any:
    """A namespace within, and the capsule's own loopback."""
    with internet() as net:
        policy = policy_for(net, "allowed.example", seccomp="nest", keep_id=True)
        hello = "curl -sSm9 http://allowed.example/hello"
        words = f"unshare -rn {hello}; unshare -rn curl -sSm9 http://{OTHER}/hello; {hello}"
        nested = capsule.run(["sh", "-c", words], policy, text=True, timeout=HANG)
        server = (
            "python3 -m http.server 443 -b 127.0.0.1 -d /tmp & sleep 0.5; "
            "curl -sSm9 -o /dev/null -w '%{http_code}\\n' http://127.0.0.1:443/; "
            "curl -sSm9 https://allowed.example/hello"
        )
        own = capsule.run(["sh", "-c", server], policy_for(net, "allowed.example"), text=True)
        garbage = capsule.run(
            [PYTHON, "-c", GARBAGE], policy_for(net, "allowed.example"), text=True, timeout=HANG
        )
        hits = sorted({address for address, _ in net.hits})
    said = [nested.stdout, nested.stderr, own.stdout, garbage.stdout + garbage.stderr]
    return [*said, garbage.notes, hits]


def test_within() -> None:
    """A namespace within has no way out; the loopback is the capsule's own; garbage stops nothing."""
    nested, said, own, garbage, notes, hits = in_lab(try_within, mounts=SETUP)
    assert nested == "hello\n"
    assert garbage == "hello\n"
    assert notes == []
    assert said.count("curl: (") == 2
    assert own == "200\nhello\n"
    assert hits == [ALLOWED]


def test_the_files_that_lead_to_it() -> None:
    """resolv.conf names the server inside, nsswitch.conf the DNS; no proxy of the caller is there."""
    words = "cat /etc/resolv.conf; grep hosts /etc/nsswitch.conf; env | grep -ci _proxy"
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "x"}
    run = f"capsule.run(['sh', '-c', {words!r}], network=['a.b'], text=True)"
    code = [PYTHON, "-c", f"import capsule; print({run}.stdout)"]
    done = subprocess.run(code, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split("\n")[0] == "nameserver 198.18.0.1"
    assert "hosts: files dns\n0\n" in done.stdout
