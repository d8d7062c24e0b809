"""Records of init, one at a time."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

from capsule.launcher import spawn
from capsule.process.records import Records


def test_the_end_is_the_last_record() -> None:
    """Who asks again in the same turn of the loop finds the end of file, which is no other end."""
    status, init = os.pipe()
    running: Any = SimpleNamespace(status=status, pidfd=-1, lifeline=-1)
    try:
        record = (spawn.ENDED, 9, *range(10))
        os.write(init, record_bytes(record))
        os.close(init)
        records = Records(running, filtered=False)
        for _ in range(2):
            records.read()
            assert records.ended == record
        records.notice_end()
        assert records.ended == record
    finally:
        os.close(status)


def record_bytes(record: tuple[int, ...]) -> bytes:
    """As init writes it."""
    data = b"".join(number.to_bytes(8, "little", signed=True) for number in record)
    assert len(data) == spawn.RECORD_SIZE
    return data
