"""What a command that has the host's network, or some hosts, is given to use it as the host does."""

from __future__ import annotations

import os

from capsule.base.descriptors import read_file
from capsule.host.places import is_of_system
from capsule.policy.policy import IdMap, Network, System

from .toolchains import Around

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from capsule.files.found import Shown
    from capsule.policy.policy import Policy

# Variables, these in capitals too: how the network is reached.
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
# Whom programs trust; openssl-env(7). What they name is shown.
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
# Some fill it with names to block: of more than this, the beginning counts.
HOSTS, HOSTS_SIZE = "/etc/hosts", 1 << 20


def variables(policy: Policy, host: Mapping[str, str]) -> dict[str, str]:
    """Those of the host's variables that say how to reach the network, and whom to trust there.

    What the latter name is there where the view is the host's. A list of hosts is reached directly.
    """
    named = CERTIFICATES if _has_hosts_view(policy) else ()
    proxies = PROXIES if policy.network is Network.HOST else ()
    return {name: host[name] for name in host if name.lower() in proxies or name in named}


def certificates(policy: Policy, env: Mapping[str, str], homes: list[str]) -> Iterator[Shown]:
    """Yield what variables name that say whom to trust, where the view is the host's."""
    if not _has_hosts_view(policy):
        return
    around = Around(homes, host_root=policy.id_map is IdMap.HOST_ROOT)
    for name in CERTIFICATES:
        path = os.path.normpath(env.get(name, ""))
        if path.startswith("/") and not is_of_system(path):
            yield from around.named(path, f"{name} names it")


def _has_hosts_view(policy: Policy) -> bool:
    return policy.root is None and policy.system is System.ALL


def hosts_file() -> str:
    """Return what the host has in hosts(5)."""
    try:
        said = read_file(HOSTS, HOSTS_SIZE)
    except OSError:
        return ""
    whole = said if len(said) < HOSTS_SIZE else said[: said.rfind(b"\n") + 1]
    return os.fsdecode(whole.replace(b"\0", b""))
