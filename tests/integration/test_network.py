"""A list of hosts: every program reaches what is allowed, by whatever way, and nothing else.

All in a lab with an internet of its own (`internet`). Each refusal has its control: the same from the
lab itself succeeds.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from typing import Any

import pytest

import capsule
from capsule import Network
from tests.attacks.lab import in_lab
from tests.integration.internet import SETUP, add_index, add_repository, internet
from tests.support import HANG, PYTHON, needs

pytestmark = needs("ipv6", "resolver", "unshare", "ip", "curl", "openssl", "git")

FETCH = """
fetch(process.argv[1]).then(r => r.text()).then(console.log)
    .catch(e => { console.error(String(e.cause)); process.exit(1) })
"""
URLLIB = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=9).read())"
# What each does with a host, and what it prints if it is reached.
PROGRAMS = {
    "curl": (["curl", "-sSm9", "http://@/hello"], "hello"),
    "curl by TLS": (["curl", "-sSm9", "https://@/hello"], "hello"),
    "urllib": ([PYTHON, "-c", URLLIB, "http://@/hello"], "hello"),
    "urllib by TLS": ([PYTHON, "-c", URLLIB, "https://@/hello"], "hello"),
    "node": (["node", "-e", FETCH, "http://@/hello"], "hello"),
    "node by TLS": (["node", "-e", FETCH, "https://@/hello"], "hello"),
    "git": (["git", "ls-remote", "http://@/repo.git"], "refs/heads"),
    "git by TLS": (["git", "clone", "-q", "https://@/repo.git", "/tmp/repo"], ""),
    "pip": (
        [PYTHON, "-m", "pip", "--disable-pip-version-check", "download", "--retries=0", "-d", "/tmp/d",
         "-i", "http://@/simple", "--trusted-host=@", "nothing"], "Saved",
    ),
}  # fmt: skip


def trusting(authority: str) -> dict[str, str]:
    """Variables by which programs trust an authority."""
    names = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS")
    return dict.fromkeys(names, authority)


def policy_for(net: Any, *rules: str, **more: Any) -> capsule.Policy:
    """A policy with a list of hosts that trusts the authority."""
    authority = str(net.authority)
    mounts = [capsule.Mount.read_only(authority)]
    variables = trusting(authority)
    return capsule.Policy(
        mounts=mounts, extra_env=variables, network=Network.only(*rules), cwd="/", **more
    )


def told(result: capsule.Result) -> list[str]:
    """What was reached and refused."""
    return sorted(one.describe() for one in result.network)


# --- programs -------------------------------------------------------------------------------------


def run_programs() -> Any:
    """(Control, reached, refused) of each program."""
    import os

    found = {}
    with internet() as net:
        add_repository(net)
        add_index(net)
        policy = policy_for(net, "allowed.example")
        variables = {**os.environ, **trusting(str(net.authority)), "HOME": "/tmp"}
        for name, (words, _) in PROGRAMS.items():
            args = [
                [word.replace("@", host) for word in words]
                for host in ("allowed.example", "other.example")
            ]
            control = subprocess.run(args[1], capture_output=True, env=variables, check=False)
            subprocess.run(["rm", "-rf", "/tmp/repo", "/tmp/d"], check=True)
            net.hits.clear()
            net.asked.clear()
            allowed, began = capsule.run(args[0], policy, text=True, timeout=HANG), time.monotonic()
            refused = capsule.run(args[1], policy, text=True, timeout=HANG)
            found[name] = {
                "control": [control.returncode, control.stdout.decode() + control.stderr.decode()],
                "allowed": [allowed.returncode, allowed.stdout + allowed.stderr, told(allowed)],
                "refused": [refused.returncode, refused.stdout + refused.stderr, told(refused)],
                "seconds": time.monotonic() - began,
                "hits": net.hits[:],
                "asked": net.asked[:],
            }
    return found


@functools.cache
def programs() -> dict[str, Any]:
    """What `run_programs` has found in a lab."""
    found: dict[str, Any] = in_lab(run_programs, mounts=SETUP)
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=needs("node")) if "node" in n else n for n in PROGRAMS]
)
def test_a_program_reaches_what_is_allowed_and_nothing_else(name: str) -> None:
    """Without a proxy variable; what is refused no server sees, and no name server is asked for."""
    seen, expected = programs()[name], PROGRAMS[name][1]
    assert seen["control"][0] == 0, seen["control"]
    assert seen["allowed"][0] == 0, seen["allowed"]
    assert expected in seen["allowed"][1]
    assert seen["refused"][0] != 0
    assert {address for address, _ in seen["hits"]} == {"93.184.216.34"}
    assert set(seen["asked"]) == {"allowed.example"}
    port = 443 if "TLS" in name else 80
    assert any(line.startswith(f"reached allowed.example:{port}") for line in seen["allowed"][2])
    assert any("refused dns other.example" in line for line in seen["refused"][2])
    assert "; --allow-net other.example allows it" in seen["refused"][2][0]
    print(f"{name}: refused after {seen['seconds']:.2f} s", file=sys.stderr)
