"""A directory for surveys, for all tests of this room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Path]:
    """A directory whose path has no link in it and holds no bracket, removed even if closed."""
    top = Path(os.path.realpath(tmp_path)) / "lab"
    top.mkdir()
    yield top
    subprocess.run(["chmod", "-R", "u+rwx", str(top)], check=True)
    subprocess.run(["rm", "-rf", str(top)], check=True)
