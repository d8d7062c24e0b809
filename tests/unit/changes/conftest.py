"""A layer over a directory, for all tests of this room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import nothing_left
from tests.unit.changes.lab import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A lab that leaves no descriptor open, and no directory that cannot be removed."""
    with nothing_left():
        yield Lab(tmp_path)
    subprocess.run(["chmod", "-R", "u+rwx", tmp_path], check=True)
