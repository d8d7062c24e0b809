"""Canaries: secrets wherever a caller may have them, and one scanner that reads all that can be read.

The scanner knows what a canary looks like and not one of them, so what it finds it has from elsewhere.
Outside, as a child of the same caller, it finds every one of them; inside, it finds none.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.calls import NUMBERS
from tests.support import HANG, PYTHON, shared_directory

PLACES = ("environment", "arguments", "heap", "input", "home", "name", "socket", "keyring")

# Reads the files and names below the given roots, the memory of the given processes, the keyrings.
SCANNER = r"""
import ctypes, json, os, re, stat, sys
sys.setrecursionlimit(10000)
given = json.loads(sys.argv[1])
# In two parts: the text of this program is in its own arguments.
canary = re.compile(b"CANARY" + b"-[a-z]+-[0-9a-f]{32}")
found, count = {}, 0

def look(data, where):
    for match in canary.findall(data):
        found.setdefault(match.decode(), where)

def read(path):
    global count
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            count += 1
            left = b""
            for _ in range(4096):
                data = os.read(fd, 1 << 16)
                if not data:
                    break
                look(left + data, path)
                left = data[-64:]
    except OSError:
        pass
    finally:
        os.close(fd)

def walk(top):
    look(os.fsencode(top), "a name: " + top)
    try:
        entries = list(os.scandir(top))
    except OSError:
        read(top)
        return
    for entry in entries:
        look(os.fsencode(entry.name), "a name: " + entry.path)
        try:
            if entry.is_symlink():
                look(os.fsencode(os.readlink(entry.path)), "a link: " + entry.path)
                # Those of /proc lead where no path does.
                if entry.path.startswith("/proc/") and "/map_files/" not in entry.path:
                    read(entry.path)
            elif entry.is_dir():
                if entry.path not in given["skip"]:
                    walk(entry.path)
            elif entry.name not in ("mem", "pagemap"):
                read(entry.path)
        except OSError:
            pass

def memory(pid):
    global count
    try:
        maps = open(f"/proc/{pid}/maps").read()
        fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    except OSError:
        return
    count += 1
    for line in maps.splitlines():
        start, end = (int(word, 16) for word in line.split()[0].split("-"))
        if line.split()[1].startswith("rw") and end - start < 1 << 28:
            try:
                os.lseek(fd, start, 0)
                look(os.read(fd, end - start), f"memory of {pid}: {line}")
            except OSError:
                pass

def keys(ring, depth=0):
    libc = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(65536)
    size = libc.syscall(given["keyctl"], 11, ring, buffer, len(buffer), 0)
    if size > 0 and depth < 8:
        look(buffer.raw[:size], f"key {ring}")
        for at in range(0, size - 3, 4):
            keys(int.from_bytes(buffer.raw[at:at + 4], "little", signed=True), depth + 1)

for top in given["roots"]:
    walk(top)
for pid in given["pids"]:
    memory(pid)
keys(-3)
print(json.dumps([found, count]))
"""

# Has them all, and starts the scanner: with nothing between them, or in capsules.
CALLER = r"""
import ctypes, json, os, subprocess, sys
import capsule
given = json.loads(os.read(int(sys.argv[1]), 65536))
heap = [word * 2 for word in given["heap"]]
# What it reads ahead of its standard input lies in its buffer.
first = sys.stdin.buffer.readline()
libc = ctypes.CDLL(None)
libc.syscall(given["keyctl"], 1, None)
libc.syscall(given["add_key"], b"user", b"of the caller", given["keyring"].encode(), 46, -3)
scanner = [sys.executable, "-I", "-S", "-c", given["scanner"]]
def scan(roots, pids, skip=()):
    asked = {"roots": roots, "pids": pids, "skip": skip, "keyctl": given["keyctl"]}
    return [*scanner, json.dumps(asked)]
me = os.getpid()
places = [os.environ["HOME"], given["tmp"], "/proc/net/unix"]
places += [f"/proc/{me}/environ", f"/proc/{me}/cmdline"]
told = [json.loads(subprocess.run(scan(places, [me]), capture_output=True, check=True).stdout)]
for policy in given["policies"]:
    # What is shown of the host's programs was there before.
    skip = ["/usr", sys.prefix, sys.base_prefix]
    result = capsule.run(scan(["/"], [1, 2, "self"], skip), capsule.Policy(**policy))
    told.append(json.loads(result.stdout) if result.ok else [result.describe(), repr(result.stderr)])
os.write(1, json.dumps(told).encode())
"""

# Put inside on purpose: that the scanner sees something in there, too.
PLANTED = f"CANARY-planted-{secrets.token_hex(16)}"
POLICIES: list[dict[str, Any]] = [
    {},
    {"seccomp": "off"},
    {"landlock": "off"},
    {"seccomp": "debug"},
    {"extra_env": {"PLANTED": PLANTED}},
]


@pytest.fixture
def canaries() -> dict[str, str]:
    """One of each place, new ones each time."""
    return {place: f"CANARY-{place}-{secrets.token_hex(16)}" for place in PLACES}


def scanned(
    canaries: dict[str, str], home: Path, tmp: Path, cwd: Path
) -> list[tuple[dict[str, str], int]]:
    """What the scanner finds outside, and in each capsule; and how many files it read."""
    given = {
        "heap": [canaries["heap"]], "keyring": canaries["keyring"], "scanner": SCANNER, "tmp": str(tmp),
        "keyctl": NUMBERS["keyctl"], "add_key": NUMBERS["add_key"], "policies": POLICIES,
    }  # fmt: skip
    reading, writing = os.pipe()
    os.write(writing, json.dumps(given).encode())
    os.close(writing)
    environment = {**os.environ, "HOME": str(home), "A_TOKEN": canaries["environment"]}
    try:
        done = subprocess.run(
            [PYTHON, "-I", "-c", CALLER, str(reading), canaries["arguments"]],
            input=f"a line\n{canaries['input']}\n".encode(),
            env=environment,
            cwd=cwd,
            pass_fds=(reading,),
            capture_output=True,
            timeout=HANG * 3,
        )
    finally:
        os.close(reading)
    assert done.returncode == 0, done.stderr.decode()
    told: list[tuple[dict[str, str], int]] = json.loads(done.stdout)
    return told


@pytest.mark.row("B-01", "B-03")
def test_no_canary_is_found_inside(canaries: dict[str, str]) -> None:
    """Every secret of the caller is found outside, and none in a capsule, whatever wall is off."""
    with (
        shared_directory() as home,
        shared_directory() as cwd,
        shared_directory() as elsewhere,
        socket.socket(socket.AF_UNIX) as server,
    ):
        server.bind("\0" + canaries["socket"])
        (home / ".ssh").mkdir(mode=0o700)
        (home / ".ssh" / "id_ed25519").write_text(canaries["home"])
        # A name in a place where anybody could look; the working directory is another.
        (elsewhere / canaries["name"]).touch()
        outside, *inside = scanned(canaries, home, elsewhere, cwd)
    assert set(outside[0]) - {PLANTED} == set(canaries.values())
    for policy, (found, count) in zip(POLICIES, inside, strict=True):
        assert set(found) == ({PLANTED} if "extra_env" in policy else set()), policy
        assert count > 200, policy
