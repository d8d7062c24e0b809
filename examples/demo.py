"""Runs one untrusted program twice, outside and in a capsule, and shows what each run could do.

The program (untrusted/report.py) makes a report of a table, and tries to steal and to break in. So
that it may succeed where nothing stops it, and harm nobody, what it reaches for is made up: a home
directory with a key in it, a token in the environment, a server that listens on the loopback. All of
that is gone when this ends.

Ends with status 0 if the report was made and every attempt failed inside.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import capsule

UNTRUSTED = Path(__file__).resolve().parent / "untrusted"


class Seen(NamedTuple):
    """What one run did: as the program tells it, and as it shows from here."""

    report: str
    attempts: dict[str, dict[str, str]]
    received: bytes  # by the server
    written: set[str]  # files that are new in the project
    output: str  # all that the program wrote


class Scene:
    """Stand-ins for what the program is after, in a directory of their own."""

    def __init__(self, place: Path) -> None:
        self.canary = secrets.token_hex(16)
        self.home = place / "home"
        self.project = self.home / "sales"
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        key = self.home / ".ssh" / "id_ed25519"
        key.parent.mkdir(parents=True)
        key.write_text(f"-----BEGIN MADE-UP PRIVATE KEY-----\n{self.canary}\n")
        self.project.mkdir()
        for source in UNTRUSTED.iterdir():
            if source.is_file():
                shutil.copyfile(source, self.project / source.name)
        # Started by root, the command inside is nobody on the host: it can read what all can.
        for path in (self.home, self.project, *self.project.iterdir()):
            path.chmod(0o755)
        # The program is not told which home is whose: both runs inherit these.
        os.environ["HOME"] = str(self.home)
        os.environ["DEPLOY_TOKEN"] = self.canary

    def command(self) -> list[str]:
        return [sys.executable, "report.py", "sales.csv", str(self.server.getsockname()[1])]

    def look(self, stdout: str, stderr: str) -> Seen:
        """Gather what a run did, and set the scene back."""
        lines = (parse(line) for line in stderr.splitlines())
        attempts = {line["attempt"]: line for line in lines if "attempt" in line}
        shipped = {path.name for path in UNTRUSTED.iterdir()}
        written = {path.name for path in self.project.iterdir()} - shipped
        for name in written:
            (self.project / name).unlink()
        return Seen(stdout, attempts, self.received(), written, stdout + stderr)

    def received(self) -> bytes:
        data = b""
        while True:
            try:
                connection, _ = self.server.accept()
            except BlockingIOError:
                return data
            with connection:
                connection.setblocking(True)
                while part := connection.recv(4096):
                    data += part


def parse(line: str) -> dict[str, str]:
    """What comes from inside is not to be trusted: a line that is none of ours says nothing."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(value, dict):
        return {}
    # Nor is it to reach the terminal with control characters in it.
    return {str(k): str(v) if str(v).isprintable() else repr(v) for k, v in value.items()}


def run_outside(scene: Scene) -> Seen:
    done = subprocess.run(scene.command(), cwd=scene.project, capture_output=True, text=True)
    return scene.look(done.stdout, done.stderr)


def run_inside(scene: Scene) -> tuple[capsule.Result, Seen]:
    result = capsule.run(scene.command(), cwd=str(scene.project), text=True, timeout=60)
    return result, scene.look(result.stdout, result.stderr)


def show_attempts(outside: Seen, inside: Seen) -> None:
    print(f"\n{'':34}{'outside':24}in Capsule")
    made = ["done" if seen.report else "failed" for seen in (outside, inside)]
    print(f"{'read the table, make the report':34}{made[0]:24}{made[1]}")
    for name in outside.attempts:
        cells = [told(seen.attempts.get(name, {})) for seen in (outside, inside)]
        print(f"{name:34}{cells[0]:24}{cells[1]}")
    print(f"{'bytes that the server received':34}{len(outside.received):<24}{len(inside.received)}")


def told(attempt: dict[str, str]) -> str:
    took, error = attempt.get("took", ""), attempt.get("error", "")
    if not took:
        return f"failed: {error or 'nothing there'}"
    # Neither the key nor the token is printed, made up as they are.
    return f"DONE: {took}" if len(took) <= 16 else "DONE"


def show_result(result: capsule.Result) -> None:
    usage = result.usage
    print(f"\noutcome      {result.outcome.value}, status {result.returncode}")
    print(f"namespaces   {', '.join(result.namespaces)}")
    print(
        f"usage        {usage.wall:.3f} s, {usage.cpu_user + usage.cpu_system:.3f} s of CPU, "
        f"{usage.peak_memory / 2**20:.1f} MiB at most in one process"
    )
    for number, (name, how) in enumerate(result.protections.items()):
        print(f"{'protections' if number == 0 else '':13}{name}: {how}")
    for number, denial in enumerate(result.denials):
        print(f"{'refused' if number == 0 else '':13}{denial.describe()}")


def faults(scene: Scene, result: capsule.Result, outside: Seen, inside: Seen) -> list[str]:
    """What went wrong, by the program's own word and by what was found out here."""
    found = [f"it could {name}" for name, told in inside.attempts.items() if told.get("took")]
    if not result.ok or not inside.report or inside.report != outside.report:
        found.append(f"the report was not made as outside: {result.describe()}")
    if inside.attempts.keys() != outside.attempts.keys():
        found.append("it did not say what came of every attempt")
    if scene.canary in inside.output:
        found.append("the key or the token got out")
    if inside.received or inside.written:
        found.append(f"bytes sent: {len(inside.received)}, files written: {sorted(inside.written)}")
    return found


def demonstrate(scene: Scene) -> int:
    outside = run_outside(scene)
    result, inside = run_inside(scene)
    print(f"The report, made in a capsule:\n\n{inside.report}")
    print("What else the program tried:")
    show_attempts(outside, inside)
    show_result(result)
    problems = faults(scene, result, outside, inside)
    for problem in problems:
        print(f"\nFAILED: {problem}")
    if not problems:
        print(f"\nThe report is the same, and all {len(inside.attempts)} attempts failed inside.")
    return 1 if problems else 0


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="capsule-demo-") as place:
        scene = Scene(Path(place))
        with scene.server:
            try:
                return demonstrate(scene)
            except capsule.CapsuleError as error:
                print(f"capsule: {error}", file=sys.stderr)
                return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
