"""An internet of the test's own: two servers behind names, a DNS, TLS with an authority of its own.

Made in a lab (`tests.attacks.lab`), whose network nobody else has. Its addresses are local there, but
not the host's own: what dials from the lab has another one.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import socket
import socketserver
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

ALLOWED, OTHER, SIX = "93.184.216.34", "93.184.216.35", "2606:2800::36"
DNS, OWN, METADATA = "93.184.216.53", "10.99.0.1", "169.254.169.254"
PRIVATE, PUBLIC = "10.99.0.7", "93.184.217.1"  # of somebody else; the lab's own

# As root of the lab. A host's own address is the one that it has to others.
SETUP = f"""
ip link set lo up
ip address add {OWN}/32 dev lo
ip address add {PUBLIC}/32 dev lo
ip route add local {PRIVATE}/32 dev lo src {OWN}
ip route add local 93.184.216.0/24 dev lo src {OWN}
ip route add local 169.254.0.0/16 dev lo src {OWN}
ip address add fd00:99::1/128 dev lo nodad
ip -6 route add local 2606:2800::/32 dev lo src fd00:99::1
echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start
echo 'nameserver {DNS}' >/mnt/resolv.conf
mount --bind /mnt/resolv.conf "$(realpath /etc/resolv.conf)"
echo '127.0.0.1 localhost' >/mnt/hosts
mount --bind /mnt/hosts /etc/hosts
"""

NAMES = {
    "allowed.example": [ALLOWED],
    "www.allowed.example": [ALLOWED],
    "other.example": [OTHER],
    "six.example": [SIX],
    "both.example": [SIX, ALLOWED],
    "loopback.example": ["127.0.0.1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "private.example": [PRIVATE],
    "public.example": [PUBLIC],
    "own.example": [OWN],
    "metadata.example": [METADATA],
    "zero.example": ["0.0.0.0"],
    "mixed.example": ["127.0.0.1", ALLOWED],
    "wild.example": [ALLOWED],
    "dead.example": ["93.184.216.99"],
}


class Internet:
    """What listens, and what came to it.

    Attributes:
        hits: (address, what was asked of it), of each request.
        asked: names that the DNS was asked for.
        root: the directory that is served.
        authority: the certificate of the authority.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.authority = root, root.parent / "ca.pem"
        self.hits: list[tuple[str, str]] = []
        self.asked: list[str] = []
        self._rebound = 0

    def resolve(self, name: str) -> list[str]:
        """What a name leads to. One that is asked for again leads elsewhere."""
        if name == "rebinding.example":
            self._rebound += 1
            return [ALLOWED] if self._rebound <= 1 else ["127.0.0.1"]
        if name.endswith(".wild.example"):
            return [ALLOWED]
        return NAMES.get(name, [])


@contextlib.contextmanager
def internet() -> Iterator[Internet]:
    """All of it, for as long as the block lasts."""
    root = Path(os.environ["HOME"], "www")
    root.mkdir()
    net = Internet(root)
    (root / "hello").write_text("hello\n")
    _certificates(root.parent)
    servers: list[Any] = [_Udp((DNS, 53), partial(_Answers, net=net))]
    places = [ALLOWED, OTHER, SIX, "127.0.0.1", OWN, PRIVATE, PUBLIC, METADATA]
    for address in places:
        servers.append(_web(net, address, 80))
        servers.append(_web(net, address, 443, tls=True))
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield net
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


# --- servers ------------------------------------------------------------------------------------


class _Files(http.server.SimpleHTTPRequestHandler):
    """Static files, and an account of who asked for them where."""

    def __init__(self, *args: Any, net: Internet, address: str, **more: Any) -> None:
        self.net, self.address = net, address
        super().__init__(*args, directory=str(net.root), **more)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep it."""
        self.net.hits.append((self.address, str(args[0]) if args else format))


class _Web(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever went away is no news."""


class _Web6(_Web):
    address_family = socket.AF_INET6


def _web(net: Internet, address: str, port: int, *, tls: bool = False) -> Any:
    kind = _Web6 if ":" in address else _Web
    server = kind((address, port), partial(_Files, net=net, address=address), bind_and_activate=False)
    if ":" in address:
        server.socket.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
    server.server_bind = lambda: socketserver.TCPServer.server_bind(server)  # type: ignore[method-assign]
    server.server_name, server.server_port = "server", port
    server.server_bind()
    server.server_activate()
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(net.root.parent / "server.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    return server


class _Udp(socketserver.ThreadingUDPServer):
    daemon_threads = True


class _Answers(socketserver.BaseRequestHandler):
    """A name server."""

    def __init__(self, *args: Any, net: Internet) -> None:
        self.net = net
        super().__init__(*args)

    def handle(self) -> None:
        """Answer one question."""
        data, reply = self.request
        at, labels = 12, []
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
        name, end = ".".join(labels).lower(), at + 5
        (kind,) = struct.unpack_from("!H", data, at + 1)
        if kind == 1:
            self.net.asked.append(name)
        found = self.net.resolve(name) if kind in (1, 28) else []
        wanted = [one for one in found if (":" in one) == (kind == 28)]
        known = bool(found) or name in NAMES
        head = data[:2] + struct.pack("!5H", 0x8180 | (0 if known else 3), 1, len(wanted), 0, 0)
        answers = b""
        for one in wanted:
            family = socket.AF_INET6 if ":" in one else socket.AF_INET
            address = socket.inet_pton(family, one)
            answers += struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(address)) + address
        reply.sendto(head + data[12:end] + answers, self.client_address)


def _certificates(place: Path) -> None:
    """An authority, and a certificate of it for every server here."""
    names = ",".join(f"DNS:{name}" for name in (*NAMES, "*.wild.example"))
    (place / "san").write_text(f"subjectAltName={names}\n")
    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    for line in (
        f"req -x509 {key} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem",
        f"req {key} -subj /CN=server -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -days 2 -extfile san -out server.crt",
    ):
        subprocess.run(["openssl", *line.split()], cwd=place, check=True, capture_output=True)
    whole = (place / "server.key").read_text() + (place / "server.crt").read_text()
    (place / "server.pem").write_text(whole)


def add_repository(net: Internet) -> None:
    """A repository of git's, to be read as files."""
    made = net.root.parent / "made"
    quiet = {"check": True, "capture_output": True}
    subprocess.run(["git", "init", "-q", str(made)], **quiet)  # type: ignore[call-overload]
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    commit = ["git", *name, "-C", str(made), "commit", "-q", "--allow-empty", "-m", "first"]
    subprocess.run(commit, **quiet)  # type: ignore[call-overload]
    bare = net.root / "repo.git"
    shutil.copytree(made / ".git", bare)
    subprocess.run(["git", "-C", str(bare), "update-server-info"], **quiet)  # type: ignore[call-overload]


def add_index(net: Internet) -> None:
    """A package index with one package that is nothing."""
    import zipfile

    folder = net.root / "simple" / "nothing"
    folder.mkdir(parents=True)
    wheel = folder / "nothing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("nothing.py", "")
        about = "nothing-1.0.dist-info"
        file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: nothing\nVersion: 1.0\n")
        file.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{about}/RECORD", "")
    (folder / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
