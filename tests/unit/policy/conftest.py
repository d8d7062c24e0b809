"""A project of somebody's, for tests of profiles."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in a home, which is the working directory."""
    place = tmp_path / "home" / "project"
    place.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(place.parent))
    monkeypatch.chdir(place)
    return place
