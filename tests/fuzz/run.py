"""./check --fuzz MINUTES: inputs at random for as long as that, then the lines of the launcher reached.

Two things go on at once: libFuzzer on the plan parser, with the sanitizers for addresses and
undefined behaviour, and round after round of every test that draws its inputs (hypothesis), each with
another seed. A finding ends the command with status 1, and is printed in a form that repeats it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from tests.fuzz import coverage
from tests.launcher.test_plan_parser import PLANS, libfuzzer

# Of each test, in a round: half a minute on a usual machine.
EXAMPLES = 300


def start_plans(place: Path, seconds: int) -> subprocess.Popen[str]:
    """Start the fuzzer of the plan parser in a directory."""
    command = libfuzzer(place, f"-max_total_time={seconds}", "-rss_limit_mb=4096")
    with (place / "log").open("w") as log:
        return subprocess.Popen(command, cwd=place, stdout=log, stderr=log, text=True)


def end_plans(running: subprocess.Popen[str], place: Path) -> bool:
    """Wait for it, print what it did, and tell whether it found nothing."""
    status = running.wait()
    log = (place / "log").read_text(errors="replace")
    units = re.search(r"number_of_executed_units: *(\d+)", log)
    print(f"plan parser: {units[1] if units else 'unknown'} plans, exit status {status}")
    if status == 0:
        return True
    print(log[-8000:])
    for found in place.glob("*-[0-9a-f]*"):
        print(f"{found.name}: {found.read_bytes()!r}")
    return False


def keep_plans(place: Path) -> None:
    """Write the corpus anew: the fewest plans that reach all that was reached."""
    (place / "least").mkdir()
    merge = [str(place / "fuzz"), "-set_cover_merge=1", "least", "corpus", "seeds"]
    subprocess.run(merge, cwd=place, check=True, capture_output=True)
    with zipfile.ZipFile(PLANS, "w", zipfile.ZIP_DEFLATED) as kept:
        for path in sorted((place / "least").iterdir()):
            kept.writestr(zipfile.ZipInfo(path.name), path.read_bytes())


def try_inputs(seconds: int) -> bool:
    """Rounds of the tests that draw inputs, until the time is over; tell whether nothing failed."""
    until = time.monotonic() + seconds
    first = int.from_bytes(os.urandom(4), "little")
    environment = {**os.environ, "CAPSULE_EXAMPLES": str(EXAMPLES)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "hypothesis"]
    done = tests = 0
    while time.monotonic() < until:
        seed = f"--hypothesis-seed={first + done}"
        one = subprocess.run(
            [*command, seed, "tests/unit", "tests/fuzz"],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        if one.returncode != 0:
            print(f"round {done}, {seed}\n{one.stdout[-20000:]}{one.stderr[-2000:]}")
            return False
        done += 1
        tests = int((re.search(r"(\d+) passed", one.stdout) or [0, 0])[1])
    print(f"inputs: {done} rounds of {tests} tests with up to {EXAMPLES} each, from seed {first} on")
    return True


def main(words: list[str]) -> int:
    """``MINUTES [keep]``: with keep, the corpus of plans is written anew."""
    seconds = round(float(words[0]) * 60)
    with tempfile.TemporaryDirectory(prefix="capsule-fuzz-") as name:
        place = Path(name)
        with start_plans(place, seconds) as plans:
            try:
                found_none = try_inputs(seconds)
            except BaseException:
                plans.kill()
                raise
            found_none = end_plans(plans, place) and found_none
        if "keep" in words:
            keep_plans(place)
    print("the lines of the launcher that the tests reach:", flush=True)
    return coverage.main([]) or (0 if found_none else 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
