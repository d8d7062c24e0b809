"""What installed programs keep outside of /usr: what of it is there, and what never is.

The host of most of these tests is a lab: directories of tests' own over /etc, /opt and others.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from pathlib import Path
from typing import Any

import pytest

import capsule
from capsule import Network
from capsule.host import places
from capsule.host.host import version
from capsule.planner import tail
from capsule.policy import builtin
from tests.programs.table import PROGRAMS, is_right
from tests.support import CAPSULE, HANG, REAL_ROOT, ask, ask_outside, lab, needs

CLOSED = sorted(places.ETC_CLOSED)
PARTS = {f"{folder}/{path}" for folder, paths in places.ETC_PARTS.items() for path in paths}
# Before what a test makes there: the host's own, as far as the caller may read it, in memory; in
# /usr/share there is what lets a name be taken for a program's.
HOST = """
mount -t tmpfs -o mode=755 none /mnt
mkdir -p /mnt/etc /mnt/share
cp -a /etc/. /mnt/etc/ 2>/dev/null || true
mount --bind /mnt/etc /etc
mount --bind /mnt/share /usr/share
for place in /opt /var/lib /usr/local/bin; do mount -t tmpfs -o mode=755 none $place; done
cd /etc
"""
# What a capsule shows, and what the capsule's own /etc holds.
INSIDE = """
import subprocess
import capsule
policy = capsule.Policy(show_cwd=False)
def inside(script, **more):
    return capsule.run(["sh", "-c", script], policy, text=True, **more)
"""


def in_lab(made: str, code: str, *arguments: object) -> Any:
    """What a probe tells on a host where a script has made things."""
    return lab(HOST + made, INSIDE + code, *arguments)


# --- what never is -------------------------------------------------------------------------------

_SECRETS = """
for name in $1; do
    mkdir -p /usr/share/"$(basename "$name")" /usr/share/"$(basename "$name" .conf)"
    rm -rf /etc/"$name"
    mkdir -p /etc/"$name"
    echo "$2" >/etc/"$name"/key
    chmod 755 /etc/"$name" && chmod 644 /etc/"$name"/key
done
for name in $3; do
    rm -rf /etc/"$name" && echo "$2" >/etc/"$name" && chmod 644 /etc/"$name"
done
for name in private postgresql mysql git docker systemd; do
    mkdir -p /var/lib/$name /usr/share/$name && echo "$2" >/var/lib/$name/key
done
mkdir -p /opt/stack && echo "$2" >/opt/stack/.env
ln -s /etc/shadow /etc/hosts.conf && mkdir -p /usr/share/hosts
"""
_SEARCH = """
canary = sys.argv[3]
def found(*where):
    return ["grep", "-rsl", "--devices=skip", canary, *where]
outside = subprocess.run(found("/etc", "/var", "/opt"), capture_output=True, text=True).stdout
seen = {}
for name in sys.argv[5].split():
    more = {"own": {}, "host-root": {"id_map": "host-root"}, "network": {"network": "host"}}[name]
    done = capsule.run(found("/etc", "/var", "/opt"), policy, text=True, **more)
    alive = inside("test ! -e /etc/shadow && test ! -e /etc/ssl/private && echo alive", **more)
    seen[name] = [done.stdout.split(), alive.stdout]
tell([len(outside.split()), seen])
"""


@needs("unshare")
def test_none_of_the_secrets_is_there() -> None:
    """Names of the tables, for everybody and called like a program: outside read, inside not there.

    For who calls, with the host's network, and as the host's root, where permissions do not count.
    """
    files = {"passwd", "group", "shadow", "hosts", "hostname", "machine-id", "resolv.conf", "fstab"}
    files |= {"nsswitch.conf", "sudoers", "npmrc", "pip.conf", "krb5.conf", "krb5.keytab"}
    folders = sorted({*CLOSED, *PARTS} - files)
    canary = f"canary{secrets.token_hex(8)}"
    ways = ["own", "network", *(["host-root"] if REAL_ROOT else [])]
    outside, seen = lab(
        HOST + _SECRETS, INSIDE + _SEARCH,
        " ".join(folders), canary, " ".join(sorted(files)), " ".join(ways),
    )  # fmt: skip
    assert outside >= len(folders) + len(files)
    allowed = {"network": {"/etc/hosts", "/etc/resolv.conf"}}
    for way, (found, alive) in seen.items():
        assert set(found) <= allowed.get(way, set()), way
        assert alive == "alive\n", way


def test_the_tables_are_those_of_the_docs() -> None:
    """docs/files.md has the same names in its tables."""
    text = Path("docs/files.md").read_text()
    part = text[text.index("## What of the host is there unasked") : text.index("## Order")]
    rows = [line.split("|")[2] for line in part.split("\n") if line.startswith("|")]
    told = [set(re.findall(r"`([^`]+)`", row)) for row in rows]
    assert {*places.ETC, *(f"{prefix}*" for prefix in places.ETC_PREFIXES)} <= told[2]
    assert set(places.VAR) == told[3]
    assert set(places.TOPOLOGY) == told[5]
    assert told[8] == places.ETC_SECRET | PARTS
    assert told[9:] == [places.ETC_IDENTITY, places.ETC_SYSTEM]
    assert not places.ETC & places.ETC_CLOSED


# --- the rule for /etc -----------------------------------------------------------------------------

_ENTRIES = """
mkdir /usr/share/thing /usr/share/daemon /usr/share/linked
mkdir thing thing.d other daemon init.d/ 2>/dev/null || true
echo a >thing/a; echo b >thing.conf; echo c >thingrc; echo d >thing.d/d; echo e >other/e
echo f >daemon/f; echo '#!/bin/sh' >init.d/daemon
mkdir -m 700 thing.config; echo x >thing.config/x
echo x >thing.ini; chmod 666 thing.ini
mkdir -p alternatives
mkfifo thing.cfg
echo g >linked-1.cfg; ln -s /etc/linked-1.cfg alternatives/linked.cfg
ln -s /etc/alternatives/linked.cfg linked.cfg
ln -s /etc/other/e linked.conf
ln -s /root linked.d
"""


@needs("unshare")
def test_the_configuration_of_programs_is_shown() -> None:
    """By the name of the program, with or without what a configuration adds to it; links, too."""
    code = """
act = "import errno"
for path in ("/etc/thing/a", "/etc/new"):
    act += f"\\ntry: open({path!r}, 'a').close(); print('done')"
    act += "\\nexcept OSError as error: print(errno.errorcode[error.errno])"
act += "\\nprint(open('/etc/thing/a').read().strip())"
words = ["python3", "-I", "-c", act]
os.chmod("/etc/thing/a", 0o666)  # for the command it is another's
done = inside("cat /etc/thing/a /etc/thing.conf /etc/thingrc /etc/thing.d/d /etc/linked.cfg")
refused = capsule.run(words, policy, text=True)
outside = subprocess.run(words, capture_output=True, text=True)
tell([done.stdout.split(), done.returncode, outside.stdout.split(), refused.stdout.split()])
"""
    shown, status, outside, refused = in_lab(_ENTRIES, code)
    assert (shown, status) == (["a", "b", "c", "d", "g"], 0)
    assert outside == ["done", "done", "a"]
    assert refused == ["EROFS", "EROFS", "a"]


@needs("unshare")
def test_nothing_else_is_shown() -> None:
    """Of no program, of a service, not for everybody, by everybody, a FIFO, links elsewhere."""
    code = """
names = "other daemon init.d thing.config thing.ini thing.cfg linked.conf linked.d".split()
done = inside("ls /etc")
tell([[os.path.lexists(f"/etc/{name}") for name in names],
      sorted(set(names) & set(done.stdout.split())), "thing" in done.stdout.split()])
"""
    assert in_lab(_ENTRIES, code) == [[True] * 8, [], True]


@needs("unshare")
@pytest.mark.parametrize("runs", [1, 6])
def test_what_is_removed_while_capsules_run_does_not_end_them(runs: int) -> None:
    """A package goes, in whole or replaced by another version: what is there by then is shown."""
    made = f"{_ENTRIES}{_OPT}mkdir -p /var/lib/texmf"
    code = """
import shutil
def shown():
    return inside("ls -d /etc/thing /etc/thing.d /opt/beside /var/lib/texmf 2>/dev/null").stdout.split()
seen = [shown() for _ in range(int(sys.argv[2]))][-1:]
for path in ("/etc/thing", "/opt/beside", "/var/lib/texmf"):
    shutil.rmtree(path)
    seen += [shown() for _ in range(int(sys.argv[2]))][:1]
tell(seen)
"""
    every = ["/etc/thing", "/etc/thing.d", "/opt/beside", "/var/lib/texmf"]
    left = [every, every[1:], [every[1], every[3]], [every[1]]]
    assert in_lab(made, code, runs) == left


@needs("unshare", "real root")
def test_what_is_not_roots_is_not_shown() -> None:
    """A directory that another user could change is none of an installed program."""
    for change in ("chown 1000 thing", "chown :1000 thing; chmod g+w thing"):
        made = f"mkdir /usr/share/thing thing; echo a >thing/a; {change}"
        assert in_lab(made, 'tell(inside("ls /etc/thing").returncode)') == 2
    made = "mkdir /usr/share/thing thing; echo a >thing/a"
    assert in_lab(made, 'tell(inside("ls /etc/thing").returncode)') == 0


@needs("unshare")
def test_a_directory_with_secrets_is_shown_without_them() -> None:
    """Certificates are there beside keys that are not."""
    made = """
rm -rf ssl pki; mkdir -p ssl/private ssl/certs pki/tls/private pki/tls/certs pki/ca
echo a >ssl/private/key; echo b >ssl/certs/b; echo c >ssl/openssl.cnf
echo d >pki/tls/private/d; echo e >pki/tls/certs/e; echo f >pki/ca/f
chmod -R a+rX ssl pki
"""
    code = """
done = inside("cd /etc; find ssl pki -type f | sort; find ssl pki -name private")
tell(done.stdout.split())
"""
    assert in_lab(made, code) == ["pki/ca/f", "pki/tls/certs/e", "ssl/certs/b", "ssl/openssl.cnf"]


def test_strict_shows_none_of_it() -> None:
    """Where only what the command needs is shown, that is none of this."""
    plan = capsule.plan(["true"], builtin.strict(os.environ["HOME"]))
    shown = {str(step[1]) for step in plan.steps if step.word in ("attach", "symlink")}
    assert "/usr/bin/true" in shown | {os.path.realpath(place) for place in shown}
    assert not [place for place in shown if place.startswith(("/sys", "/var/lib", "/opt"))]
    assert {place for place in shown if place.startswith("/etc/")} <= {"/etc/ld.so.cache"}


# --- /var, /opt, /sys ------------------------------------------------------------------------------

_OPT = """
mkdir -p /opt/vendor/tool/bin /opt/vendor/tool/lib
mkdir -p /opt/beside /opt/bin /opt/open /opt/unlinked
script='#!/bin/sh
cat "$(dirname "$(readlink -f "$0")")/'
echo pak >/opt/vendor/tool/lib/data; echo near >/opt/beside/data; echo no >/opt/unlinked/data
echo "${script}../lib/data\\"" >/opt/vendor/tool/bin/prefixed
echo "${script}data\\"" >/opt/beside/beside
echo "${script}data\\"" >/opt/open/open; echo no >/opt/open/data
printf '#!/bin/sh\\necho alone\\n' >/opt/alone
chmod 755 /opt/*/* /opt/vendor/tool/bin/* /opt/alone; chmod 777 /opt/open
for name in vendor/tool/bin/prefixed beside/beside open/open alone; do
    ln -s /opt/$name /usr/local/bin
done
"""


@needs("unshare")
def test_programs_of_opt_that_root_has_linked_run() -> None:
    """The directory beside the program is there, or that above a bin, or it alone; no other."""
    code = """
names = ("prefixed", "beside", "alone", "open")
ran = [inside(f"/usr/local/bin/{name}").stdout for name in names]
tell([ran, inside("ls /opt /opt/vendor").stdout.split()])
"""
    ran, shown = in_lab(_OPT, code)
    assert ran == ["pak\n", "near\n", "alone\n", ""]
    assert shown == ["/opt:", "alone", "beside", "vendor", "/opt/vendor:", "tool"]


@needs("unshare")
def test_a_program_of_opt_that_is_named_runs() -> None:
    """Named by its path, what is beside it is there without a link."""
    made = f"{_OPT}\nrm /usr/local/bin/*"
    code = """
done = capsule.run(["/opt/vendor/tool/bin/prefixed"], policy, text=True)
tell([done.stdout, inside("ls /opt").returncode])
"""
    assert in_lab(made, code) == ["pak\n", 2]


@needs("unshare")
def test_a_link_of_somebody_elses_shows_nothing_of_opt(tmp_path: Path) -> None:
    """What a program may have planted leads nowhere that root's links do not."""
    code = """
os.symlink("/opt/unlinked/data", sys.argv[2] + "/tool")
os.chmod("/opt/unlinked/data", 0o755)
named, planted = "/opt/unlinked/data", sys.argv[2] + "/tool"
seen = [capsule.plan([path], policy).encode() for path in (named, planted)]
tell([b"/opt/unlinked\\0" in text for text in seen])
"""
    assert in_lab(_OPT, code, tmp_path) == [True, False]


@needs("unshare")
def test_data_of_programs_in_var_is_shown() -> None:
    """Of /var/lib what is named in the table, and root's."""
    made = """
mkdir -p /var/lib/texmf /var/lib/ghc /var/lib/other /usr/share/other
chmod 700 /var/lib/ghc; echo a >/var/lib/texmf/a
"""
    code = 'tell([inside("ls /var/lib").stdout.split(), inside("cat /var/lib/texmf/a").stdout])'
    assert in_lab(made, code) == [["texmf"], "a\n"]


def test_processors_are_there_and_nothing_else_of_sys() -> None:
    """How many there are, read-only."""
    code = """
cpu = "/sys/devices/system/cpu"
try:
    os.open(f"{cpu}/new", os.O_WRONLY | os.O_CREAT)
except OSError as error:
    refused = errno.errorcode[error.errno]
tell([open(f"{cpu}/online").read(), os.listdir("/sys"), os.listdir("/sys/devices"),
      sorted(os.listdir("/sys/devices/system")), refused])
"""
    online = Path("/sys/devices/system/cpu/online").read_text()
    there = [name for name in ("cpu", "node") if os.path.isdir(f"/sys/devices/system/{name}")]
    assert ask(code, cwd="/") == [online, ["devices"], ["system"], there, "EROFS"]


# --- the network -----------------------------------------------------------------------------------


def test_low_ports_and_echoes_are_for_the_command_in_its_own_network() -> None:
    """Port 80 can be bound, a ping socket be made; another capsule has its own."""
    code = """
import socket
ping = socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP
with socket.socket() as low, socket.socket(*ping) as echo:
    low.bind(("127.0.0.1", 80))
    echo.settimeout(5)
    echo.sendto(b"\\x08\\0\\0\\0\\0\\0\\0\\x01ping", ("127.0.0.1", 0))
    tell([low.getsockname()[1], echo.recv(64)[8:].decode()])
"""
    assert ask(code) == [80, "ping"]
    if version(capsule.probe().kernel) >= tail.SETS_NETWORK:
        assert ask(code, uid=1000, gid=1000) == [80, "ping"]
    else:
        assert ask("tell(os.getuid())", uid=1000, gid=1000) == 1000


@needs("unshare")
def test_with_the_host_s_network_its_names_are_known() -> None:
    """The host's hosts behind the capsule's own name; resolv.conf through any chain of root's links."""
    made = """
rm -f hosts resolv.conf
echo 10.1.2.3 build.internal >hosts
mkdir -p /mnt/a /mnt/b; echo nameserver 10.9.9.9 >/mnt/b/real
ln -s ../b/real /mnt/a/stub; ln -s /mnt/a/stub resolv.conf
"""
    code = """
names = "getent hosts build.internal; getent hosts capsule; cat /etc/resolv.conf"
shared, own = inside(names, network="host"), inside(names + "; cat /etc/hosts")
tell([shared.stdout.split(), own.stdout.split()])
"""
    shared, own = in_lab(made, code)
    assert shared == ["10.1.2.3", "build.internal", "127.0.0.1", "localhost", "capsule",
                      "nameserver", "10.9.9.9"]  # fmt: skip
    assert "build.internal" not in own
    assert own[:3] == ["127.0.0.1", "localhost", "capsule"]


@needs("unshare")
def test_a_long_hosts_ends_with_a_whole_line() -> None:
    """Of more than a MiB the beginning counts."""
    made = "seq -f '10.0.0.1 name%010g.example' 1 60000 >hosts"
    code = """
done = inside("wc -c </etc/hosts; tail -n 1 /etc/hosts", network="host")
tell(done.stdout.split())
"""
    size, address, name = in_lab(made, code)
    assert (1 << 20) - 200 < int(size) <= (1 << 20) + 200
    assert (address, len(name)) == ("10.0.0.1", len("name0000000001.example"))


def test_variables_of_the_network_are_passed_on_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Proxies in both spellings, and certificates with the file they name; without the network none."""
    bundle = tmp_path / "ca.pem"
    bundle.write_text("certificates\n")
    wanted = {"http_proxy": "http://p:1", "HTTPS_PROXY": "http://p:2", "no_proxy": "localhost"}
    wanted["SSL_CERT_FILE"] = str(bundle)
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    code = """
names = given["names"]
path = os.environ.get("SSL_CERT_FILE")
found = {name: os.environ[name] for name in names if name in os.environ}
tell([found, path and open(path).read()])
"""
    names = {"names": list(wanted)}
    assert ask(code, given=names, network=Network.HOST, cwd="/") == [wanted, "certificates\n"]
    assert ask(code, given=names, cwd="/") == [{}, None]
    assert ask(code, given=names, network=Network.HOST, cwd="/", env={"PATH": "/bin"}) == [{}, None]
    # In a view that is not the host's there would be no such file.
    plan = capsule.plan(["true"], network=Network.HOST, cwd="/", system=capsule.System.NEEDED)
    passed = str(plan.steps[-1])
    assert ("http_proxy" in passed, "SSL_CERT_FILE" in passed) == (True, False)


def test_certificates_that_are_a_home_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that names a directory with a home in it shows nothing of that."""
    code = """
try:
    seen = open(given["path"]).read()
except OSError as error:
    seen = errno.errorcode[error.errno]
tell([seen, os.environ["SSL_CERT_DIR"]])
"""
    home = os.environ["HOME"]
    monkeypatch.setenv("SSL_CERT_DIR", home)
    canary = Path(home, f"capsule-{secrets.token_hex(8)}")
    canary.write_text("there")
    try:
        given = {"path": str(canary)}
        assert ask_outside(code, given) == ["there", home]
        assert ask(code, given=given, network=Network.HOST, cwd="/") == ["ENOENT", home]
    finally:
        canary.unlink()


# --- shared memory ---------------------------------------------------------------------------------

_FILL = """
import mmap, os
fd = os.open("/dev/shm/x", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 8 << 20)
room = mmap.mmap(fd, 8 << 20)
for at in range(0, 8 << 20, 4096):
    room[at] = 1
os.unlink("/dev/shm/x")
print("filled")
"""
_FULL = "shared memory was full, and SIGBUS refuses more; --tmpfs /dev/shm:SIZE gives it"


def fill(*options: str, script: str = '"$@"; exit $?') -> subprocess.CompletedProcess[str]:
    """Run what maps 8 MiB of /dev/shm and writes to all of it."""
    words = ["sh", "-c", script, "sh", "python3", "-I", "-S", "-c", _FILL]
    return subprocess.run(
        [CAPSULE, "run", *options, "--", *words], capture_output=True, text=True, timeout=HANG
    )


@pytest.mark.parametrize("script", ['exec "$@"', '"$@"; exit $?'])
def test_a_full_shared_memory_is_told(script: str) -> None:
    """Of a command that is ended by SIGBUS, or a shell that tells so; with more of it nothing is."""
    full = fill("--tmpfs", "/dev/shm:1M", script=script)
    assert (full.returncode, _FULL in full.stderr) == (135, True), full.stderr
    enough = fill("--tmpfs", "/dev/shm:16M", script=script)
    assert (enough.returncode, enough.stderr) == (0, "")
    assert "filled" in enough.stdout


def test_another_sigbus_is_not_about_shared_memory() -> None:
    """Where there is room left, nothing is said of it."""
    result = capsule.run(["sh", "-c", "kill -BUS $$"])
    assert (result.returncode, result.detail) == (-7, "")
    full = capsule.run(["sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M; exit 3"], mounts=[
        capsule.Mount.tmpfs("/dev/shm", "1M")])  # fmt: skip
    assert (full.returncode, full.detail) == (3, "")


# --- what is told, and what runs -------------------------------------------------------------------


@needs("unshare")
def test_what_the_view_lacks_of_a_program_is_told() -> None:
    """A program's own directory in /etc that is not shown, by its name, its package's, in a script."""
    made = "mkdir -m 700 mkdir.d sed.d; mkdir -p /var/lib/mkdir sed"
    code = """
def hints(*words):
    return capsule.run(words, policy).hints
tell([hints("mkdir", "/proc/no"), hints("sh", "-c", "sed -n p /proc/no; exit 1"),
      hints("ls", "/proc/no"), hints("mkdir", "/tmp/yes")])
"""
    named, script, other, fine = in_lab(made, code)
    assert named == [f"not shown inside: {path}; show it with --ro {path}"
                     for path in ("/etc/mkdir.d", "/var/lib/mkdir")]  # fmt: skip
    assert script == ["not shown inside: /etc/sed.d; show it with --ro /etc/sed.d"]
    assert (other, fine) == ([], [])


# Rows that need nothing but what is on most machines of Debian's.
USUAL = ("dpkg", "update-alternatives", "perl", "openssl")


@needs("update-alternatives", "openssl")
@pytest.mark.parametrize("name", USUAL)
def test_programs_of_this_machine_run(name: str, tmp_path: Path) -> None:
    """Rows of the table of tests/programs: each does outside what it is for, and inside."""
    program = PROGRAMS[name]
    words = ["sh", "-c", program.script.replace("/tmp/k", f"{tmp_path}/k")]
    done = subprocess.run(words, cwd="/", capture_output=True, timeout=HANG, text=True)
    assert is_right(program, done.returncode, done.stdout + done.stderr)
    result = capsule.run(["sh", "-c", program.script], text=True, cwd="/")
    assert is_right(program, result.returncode, result.stdout + result.stderr), result.stderr
