"""Real programs under the default filter: each does its work, and is refused nothing.

The one option is ``--rw`` of the directory that they work in, and what a line says.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import capsule
from capsule import Mount, Policy, Result
from tests.support import PYTHON, give, needs, shared_directory

PATIENCE = 120


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory to work in."""
    with shared_directory() as path:
        yield give(path)
        # What was set aside, such as the hooks of a new repository, is closed.
        subprocess.run(["chmod", "-R", "u+rwX", path], check=True)


def works(place: Path, script: str, *words: str, **options: Any) -> Result:
    """What a shell script comes to in a place, with nothing refused on the way."""
    policy = Policy(mounts=(Mount.read_write(place),), cwd=str(place))
    command = ["sh", "-e", "-c", script, "sh", *words]
    result = capsule.run(command, policy, timeout=PATIENCE, text=True, **options)
    assert result.ok, (result.describe(), result.stdout, result.stderr, result.denials)
    assert (result.denials, result.denials_complete) == ((), True)
    return result


# --- compilers --------------------------------------------------------------------------------

_C = """
#include <pthread.h>
#include <stdio.h>
static void *run(void *sum) { __atomic_add_fetch((int *)sum, 1, __ATOMIC_SEQ_CST); return sum; }
int main(void)
{
	pthread_t thread[8];
	int sum = 0;
	for (int i = 0; i < 8; i++)
		if (pthread_create(&thread[i], NULL, run, &sum) != 0)
			return 1;
	for (int i = 0; i < 8; i++)
		pthread_join(thread[i], NULL);
	return printf("%d\\n", sum) < 0;
}
"""


@needs("gcc")
def test_gcc(place: Path) -> None:
    """It compiles and links with threads, at link time too, and the program runs."""
    (place / "x.c").write_text(_C)
    assert works(place, "gcc -O2 -flto=2 -pthread x.c -o x; ./x").stdout == "8\n"


@needs("make")
def test_make(place: Path) -> None:
    """Jobs side by side, with the pipe that they share."""
    rules = "".join(f"f{n}: ; sleep 0.01; echo {n} >$@\n" for n in range(20))
    (place / "Makefile").write_text(f"all: {' '.join(f'f{n}' for n in range(20))}\n{rules}")
    works(place, "make -s -j8; cat f* | wc -l")


@needs("node")
def test_node(place: Path) -> None:
    """Worker threads, a child process, a server on the loopback."""
    (place / "x.js").write_text("""
const { Worker, isMainThread, parentPort } = require('worker_threads');
const http = require('http'), { execFileSync } = require('child_process');
if (!isMainThread) { parentPort.postMessage(6 * 7); return; }
new Worker(__filename).on('message', (sum) => {
  const said = execFileSync('echo', ['child']).toString().trim();
  const server = http.createServer((_, answer) => answer.end(said + ' ' + sum));
  server.listen(0, '127.0.0.1', () =>
    http.get({ port: server.address().port, host: '127.0.0.1' }, (answer) => {
      answer.on('data', (data) => console.log(data.toString()));
      answer.on('end', () => server.close());
    }));
});
""")
    assert works(place, "node x.js").stdout == "child 42\n"


@needs("npm")
def test_npm(place: Path) -> None:
    """A script of a package."""
    (place / "package.json").write_text(
        '{"name": "x", "version": "1.0.0", "scripts": {"go": "echo $((6*7))"}}'
    )
    result = works(place, "npm run --silent --no-update-notifier go")
    assert result.stdout.splitlines()[-1] == "42"


@needs("javac")
def test_java(place: Path) -> None:
    """Compiler and virtual machine, with threads and its collector."""
    (place / "X.java").write_text("""
import java.util.stream.IntStream;
public class X {
    public static void main(String[] a) {
        IntStream numbers = IntStream.range(0, 1000000).parallel();
        System.out.println(numbers.mapToObj(n -> new int[n % 9]).filter(x -> x.length < 9).count());
    }
}
""")
    assert works(place, "javac X.java; java -XX:+UseG1GC X").stdout == "1000000\n"


# --- tools ------------------------------------------------------------------------------------


@needs("git")
def test_git(place: Path) -> None:
    """A repository is made, committed to, cloned, packed."""
    works(
        place,
        """
        git -c init.defaultBranch=main init -q one; cd one
        echo text >file; git add file
        git -c user.name=x -c user.email=x@x commit -qm first
        cd ..; git clone -q one two; cd two; git log --oneline; git gc -q; git fsck; git status --short
        """,
    )


@needs("sqlite3")
def test_sqlite(place: Path) -> None:
    """A write-ahead log, whose index is shared memory, and two at once."""
    result = works(
        place,
        """
        sqlite3 x.db 'pragma journal_mode=wal; create table t(n); insert into t values (41)'
        sqlite3 x.db 'update t set n = n + 1' & wait
        sqlite3 x.db 'select n from t; pragma integrity_check'
        """,
    )
    assert result.stdout.split() == ["wal", "42", "ok"]


_PYTHON = """
import asyncio, multiprocessing, multiprocessing.shared_memory as shared, subprocess, sys, threading
async def child():
    process = await asyncio.create_subprocess_exec("echo", "child", stdout=subprocess.PIPE)
    return (await process.communicate())[0]
def square(n): return n * n
if __name__ == "__main__":
    with multiprocessing.Pool(3) as pool:
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]
    for way in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(way)
        queue = context.Queue()
        process = context.Process(target=queue.put, args=(way,))
        process.start(); assert queue.get() == way; process.join()
    block = shared.SharedMemory(create=True, size=4096); block.close(); block.unlink()
    assert asyncio.run(child()) == b"child\\n"
    threads = [threading.Thread(target=square, args=(n,)) for n in range(9)]
    [t.start() for t in threads]; [t.join() for t in threads]
    print("done")
"""


def test_python(place: Path) -> None:
    """Processes in each way of multiprocessing, shared memory, children of an event loop, threads."""
    (place / "x.py").write_text(_PYTHON)
    policy = Policy(mounts=(Mount.read_write(place),), cwd=str(place))
    result = capsule.run([PYTHON, "x.py"], policy, timeout=PATIENCE, text=True)
    assert (result.stdout, result.denials) == ("done\n", ()), result


def test_pip(place: Path) -> None:
    """A package from a tree of sources."""
    (place / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "x"\nversion = "1"\n'
    )
    (place / "x").mkdir()
    (place / "x/__init__.py").write_text("answer = 42\n")
    give(place / "x")
    policy = Policy(mounts=(Mount.read_write(place),), cwd=str(place))
    options = ["--no-build-isolation", "--no-index", "--no-deps", "--disable-pip-version-check"]
    words = [PYTHON, "-m", "pip", "install", "-q", *options, "--target", str(place / "target"), "."]
    result = capsule.run(words, policy, timeout=PATIENCE, text=True)
    assert result.ok, result.stderr
    assert result.denials == ()
    assert (place / "target/x/__init__.py").exists()


@needs("gpg")
def test_gpg(place: Path) -> None:
    """A key is made, with an agent in the background, and used."""
    works(
        place,
        """
        export GNUPGHOME=/tmp/gnupg; mkdir -m 700 $GNUPGHOME
        gpg -q --batch --passphrase '' --quick-generate-key x@x ed25519 sign never
        echo text | gpg -q --batch -u x@x --clearsign | gpg -q --verify
        gpgconf --kill all
        """,
    )


@needs("ssh-keygen")
def test_ssh_keygen(place: Path) -> None:
    """A key is made and used for a signature."""
    works(
        place, "ssh-keygen -q -t ed25519 -N '' -f key; echo text | ssh-keygen -q -Y sign -f key -n file"
    )


@needs("busybox")
def test_busybox(place: Path) -> None:
    """A static program with another C library's idea of system calls, or the same one's."""
    script = (
        "busybox sh -c 'for n in 1 2 3; do echo $n; done | busybox sort -r | busybox tar -cf x.tar x.c'"
    )
    (place / "x.c").write_text(_C)
    works(place, script)


# --- servers ----------------------------------------------------------------------------------


def _postgres() -> str:
    """Where its programs are."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb")) or [shutil.which("initdb") or ""]
    return os.path.dirname(os.path.realpath(found[-1]))


@needs("postgres")
def test_postgres(place: Path) -> None:
    """A cluster is made, started, asked and stopped. It refuses to be root's."""
    result = works(
        place,
        """
        PATH=$1:$PATH; export PGHOST=/tmp
        initdb -D db -A trust -U me >/dev/null
        pg_ctl -D db -o "-k /tmp -c listen_addresses=127.0.0.1" -w -l log start >/dev/null
        psql -U me -d postgres -Atc 'select 6*7 from generate_series(1, 1000) having count(*) = 1000'
        psql -U me -h 127.0.0.1 -d postgres -Atc 'create table t as select 1'
        pg_ctl -D db -w stop >/dev/null
        """,
        _postgres(),
        uid=1000,
        gid=1000,
    )
    assert result.stdout == "42\nSELECT 1\n"


@needs("redis-server")
def test_redis(place: Path) -> None:
    """A server on the loopback, which writes its memory from a child."""
    result = works(
        place,
        """
        redis-server --port 7777 --daemonize yes --dir "$PWD" >/dev/null
        until redis-cli -p 7777 ping >/dev/null 2>&1; do sleep 0.05; done
        redis-cli -p 7777 set key 42 >/dev/null; redis-cli -p 7777 save >/dev/null
        redis-cli -p 7777 get key; redis-cli -p 7777 shutdown
        """,
    )
    assert result.stdout == "42\n"


# --- debuggers --------------------------------------------------------------------------------


@needs("strace")
def test_strace(place: Path) -> None:
    """With the profile for debuggers it traces; without, it is refused, and the account names that."""
    result = works(
        place, "strace -f -o trace sh -c 'echo traced'; grep -c execve trace", seccomp="debug"
    )
    assert result.stdout.startswith("traced\n")
    refused = capsule.run(["strace", "true"], cwd="/")
    assert not refused.ok
    assert {d.call for d in refused.denials} == {"ptrace"}


@needs("gdb", "gcc")
def test_gdb(place: Path) -> None:
    """With that profile a program is run to its end under it, and memory read."""
    (place / "x.c").write_text(_C)
    script = """
    gcc -g -pthread x.c -o x
    gdb -q -batch -nx -ex 'break main' -ex run -ex 'print 6*7' -ex continue ./x 2>&1
    """
    result = works(place, script, seccomp="debug")
    assert "$1 = 42" in result.stdout
    assert "exited normally" in result.stdout
