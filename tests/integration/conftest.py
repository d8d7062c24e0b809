"""What many of the tests here need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import shared_directory


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the command may read."""
    with shared_directory() as directory:
        yield directory
