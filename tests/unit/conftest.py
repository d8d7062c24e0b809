"""Unit tests: pure code, no kernel needed.

The golden plans are rewritten by ``pytest tests/unit --update-golden``; review the difference as code.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the switch that rewrites the golden files."""
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written instead of compared."""
    # Absent if this file was loaded too late for its option to be known: then nobody gave it.
    return bool(request.config.getoption("--update-golden", default=False))
