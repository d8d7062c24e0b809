"""That under a kernel of the tests' own nothing is skipped which these kernels have."""

from __future__ import annotations

import os

from capsule.host import delegation
from tests.support import needs


@needs("guest")
def test_a_cgroup_is_delegated() -> None:
    """All controllers, in the cgroup above the caller's own."""
    found = delegation.find()
    assert found.way == (delegation.OWN if os.geteuid() == 0 else delegation.DELEGATED)
    assert found.controllers == delegation.CONTROLLERS


@needs("guest")
def test_it_is_the_kernel_that_was_meant() -> None:
    """The runner names it."""
    assert os.uname().release.startswith(f"{os.environ['CAPSULE_KERNEL']}.")
