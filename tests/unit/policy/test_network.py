"""Lists of hosts and published ports: what can be written, and what it means."""

from __future__ import annotations

import pickle

import pytest

from capsule.base.errors import PolicyError
from capsule.policy.network import Only
from capsule.policy.policy import Network, Policy


@pytest.mark.parametrize(
    ("rule", "normal"),
    [
        ("pypi.org", "pypi.org:80,443"),
        ("PyPI.org.:443", "pypi.org:443"),
        ("pypi.org:443,80,443", "pypi.org:80,443"),
        ("*.example.org:22", "*.example.org:22"),
        ("*:443", "*:443"),
        ("db:5432", "db:5432"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example:80,443"),
        ("_dmarc.example.org", "_dmarc.example.org:80,443"),
        ("93.184.216.34", "93.184.216.34:80,443"),
        ("10.0.0.0/8:5432", "10.0.0.0/8:5432"),
        ("[2606:2800::1]:443", "[2606:2800::1]:443"),
        ("2606:2800::1", "[2606:2800::1]:80,443"),
        ("[2606:2800::/32]:1", "[2606:2800::/32]:1"),
        ("[::ffff:1.2.3.4]:1", "1.2.3.4:1"),
        ("localhost:8080", "localhost:8080"),
        ("127.0.0.1:8080", "127.0.0.1:8080"),
    ],
)
def test_a_rule_has_one_form(rule: str, normal: str) -> None:
    """However it is written; and that reads as the same."""
    policy = Policy(network=Network.only(rule))
    assert isinstance(policy.network, Only)
    assert policy.network.rules == (normal,)
    assert Policy(network=[normal]) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy


# ATTACKS G-05: what has been read in two ways elsewhere.
AMBIGUOUS = (
    """
a b;a\tb;a\0.example.org;evil.com\0.google.com;a..b;.a;a/b;a@b;user:pw@example.org:1;-a.b;a-.b;*a.b
**;a.*.b;*.*;*.;a.b:*;a.b:0;a.b:65536;a.b:-1;a.b:1-2;a.b:;a.b:80,;a.b:,80;a.b:80 ;a.b: 80
a.b:+80;a.b:8_0;a.b:٤٤٣;1.2.3;1.2.3.4.5;1.2.3.256;01.2.3.4;0x7f.1;0x7f000001;2130706433;127.1;1.2.3.4/33;1.2.3.4/8;1.2.3.4/08
1.2.3.0/-1;1.2.3.4/;1.2.3.4:0;::1%lo:1;fe80::1%eth0;[::1;::1]:80;[::1]80;[1.2.3.4]:80;[a.b]:1;[]:1;[::1]:
bücher.example;a.b%00;a.b%2e;http://a.b;https://a.b:443;a.b?c;a.b#c;a.b\\c;a.b\r;a.b,c.d
localhost;127.0.0.1;10.0.0.0/8;192.168.1.1;169.254.169.254;[fd00::1];[::1];none;host
""".strip()
    .replace("\n", ";")
    .split(";")
)


@pytest.mark.parametrize("rule", [*AMBIGUOUS, "", "a" * 64, ".".join(["abc"] * 64)], ids=repr)
def test_what_can_be_read_in_two_ways_is_refused(rule: str) -> None:
    """One strict form; what is missing a port and is not the internet's is not guessed, either."""
    with pytest.raises(PolicyError) as caught:
        Network.only(rule)
    assert caught.value.field == "network"
    assert caught.value.hint


def test_an_empty_list_allows_nothing() -> None:
    """It is the same as no network."""
    assert Policy(network=[]).network is Network.NONE
    with pytest.raises(PolicyError):
        Policy(network=[""])


def test_too_many_addresses() -> None:
    """Each of their ports is a socket; of a network it is one a port."""
    many = [f"93.184.216.{number}:{','.join(map(str, range(1, 11)))}" for number in range(14)]
    with pytest.raises(PolicyError, match="more than 128"):
        Policy(network=many)
    assert Network.only("93.184.216.0/24:443").rules == ("93.184.216.0/24:443",)


@pytest.mark.parametrize(
    ("word", "normal"),
    [
        ("8080:80", "127.0.0.1:8080:80"),
        ("0:80", "127.0.0.1:0:80"),
        ("0.0.0.0:8080:80", "0.0.0.0:8080:80"),
        ("[::1]:8080:80", "[::1]:8080:80"),
    ],
)
def test_a_published_port_has_one_form(word: str, normal: str) -> None:
    """It is the loopback's unless an address is said."""
    policy = Policy(publish=[word])
    assert policy.publish == (normal,)
    assert Policy(publish=policy.publish) == policy


@pytest.mark.parametrize(
    "words",
    [
        ["80"], ["a:80"], ["80:0"], ["x:80:80"], ["8:80", "8:81"], ["-1:80"], ["80:65536"], ["::1:8:8"],
        ["[::1:8:8"], ["1.2.3:8:8"], ["80:80:80:80"], [""], ["80:80 "],
    ],
    ids=repr,
)  # fmt: skip
def test_what_cannot_be_published(words: list[str]) -> None:
    """Two numbers, and an address before them."""
    with pytest.raises(PolicyError) as caught:
        Policy(publish=words)
    assert caught.value.field == "publish"
    assert caught.value.hint


def test_nothing_is_published_of_the_hosts_network() -> None:
    """What listens there is the host's."""
    with pytest.raises(PolicyError, match="the network is the host's"):
        Policy(network="host", publish=["8080:80"])
