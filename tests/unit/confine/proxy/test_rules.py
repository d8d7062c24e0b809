"""What a rule allows: names on the boundary of a label, addresses by what they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsule.confine.proxy.addresses import describe, parse, special
from capsule.confine.proxy.rules import Rules, is_name


@pytest.mark.parametrize(
    ("rule", "name", "ports"),
    [
        ("example.org", "example.org", [80, 443]),
        ("example.org", "www.example.org", []),
        ("example.org", "notexample.org", []),
        ("example.org", "example.org.evil.com", []),
        ("*.example.org:1", "www.example.org", [1]),
        ("*.example.org:1", "a.b.example.org", [1]),
        ("*.example.org", "example.org", []),
        ("*.example.org", "notexample.org", []),
        ("*.example.org", ".example.org", []),
        ("*:7", "anything.example", [7]),
        ("*:7", "any\\032thing.example", []),
        ("*.example.org", "a..example.org", []),
        ("*.example.org", "-.example.org", []),
        ("localhost:5432", "localhost", []),
        ("93.184.216.34", "93.184.216.34", []),
    ],
)
def test_names(rule: str, name: str, ports: list[int]) -> None:
    """A suffix begins with a dot, and a name is not what only ends alike."""
    assert sorted(Rules([rule]).ports(name)) == ports


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "loopback"), ("127.255.255.255", "loopback"), ("10.1.2.3", "private"),
        ("172.16.0.1", "private"), ("172.32.0.1", ""), ("192.168.0.1", "private"),
        ("0.0.0.0", "this host"), ("169.254.169.254", "link-local"), ("100.64.0.1", "shared"),
        ("198.18.0.1", "benchmarking"), ("224.0.0.1", "multicast"),
        ("255.255.255.255", "reserved"), ("93.184.216.34", ""), ("8.8.8.8", ""),
        ("::", "this host"), ("::1", "loopback"), ("fe80::1", "link-local"),
        ("fd00:ec2::254", "private"), ("ff02::1", "multicast"), ("2606:2800::1", ""),
        ("2002:7f00:1::", "6to4"), ("2001::1", "reserved"), ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:8.8.8.8", ""), ("::127.0.0.1", "reserved"), ("64:ff9b::7f00:1", "loopback"),
        ("64:ff9b::808:808", ""), ("4000::1", "reserved"),
    ],
)  # fmt: skip
def test_what_is_not_the_internets(address: str, kind: str) -> None:
    """By each block of the registries, also where one of IPv6 stands for one of IPv4."""
    found = special(parse(address))
    assert (found[1] if found else "") == kind


@pytest.mark.parametrize(
    ("rule", "address", "allowed"),
    [
        ("0.0.0.0/0:1", "93.184.216.34", True),
        ("0.0.0.0/0:1", "10.0.0.1", False),
        ("0.0.0.0/0:1", "127.0.0.1", False),
        ("0.0.0.0/0:1", "169.254.169.254", False),
        ("10.0.0.0/8:1", "10.0.0.1", True),
        ("10.1.0.0/16:1", "10.1.0.1", True),
        ("10.1.0.0/16:1", "10.2.0.1", False),
        ("10.0.0.0/8:2", "10.0.0.1", False),
        ("127.0.0.1:1", "127.0.0.1", True),
        ("127.0.0.1:1", "127.0.0.2", False),
        ("169.254.169.254:1", "169.254.169.254", True),
        ("[::/0]:1", "2606:2800::1", True),
        ("[::/0]:1", "fd00::1", False),
        ("[::/0]:1", "64:ff9b::a00:1", False),
        ("[fd00::/8]:1", "fd00::1", True),
        ("localhost:1", "127.0.0.1", False),
        ("example.org:1", "93.184.216.34", False),
    ],
)
def test_addresses(rule: str, address: str, allowed: bool) -> None:
    """What is not the internet's has to be meant: no wider network does."""
    found = Rules([rule]).covering(parse(address), 1)
    assert (found is not None) == allowed


@given(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16))
def test_an_address_has_one_form(address: bytes) -> None:
    """What is written is read as the same, and an IPv4 address in IPv6 is that one."""
    assert special(address) == special(parse(describe(address)))


@given(st.text(max_size=12))
def test_a_name_is_letters_digits_and_hyphens(text: str) -> None:
    """Nothing else is one, and none can be taken for an address."""
    if is_name(text):
        assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")
        assert not text.rpartition(".")[2].isdigit()
