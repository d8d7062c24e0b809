"""A writable tree that the command moves, or puts a link in the way of, is looked through."""

from __future__ import annotations

import os
import stat

import capsule
from capsule import Mount
from tests.support import give, shared_directory


def test_a_link_in_the_way_leads_the_look_nowhere() -> None:
    """What the link leads to stays as it is; what the command made in its tree is set aside there."""
    with shared_directory() as top, shared_directory() as victim:
        (top / "a/b/c").mkdir(parents=True)
        for folder in (top, top / "a", top / "a/b", top / "a/b/c"):
            give(folder)
        (victim / "c").mkdir()
        (victim / "c/.bashrc").write_text("mine")
        mounts = [Mount.read_write(top / "a"), Mount.read_write(top / "a/b/c")]
        script = 'cd "$1"; echo x >a/b/c/.envrc; mv a/b a/x && ln -s "$2" a/b'
        result = capsule.run(["sh", "-c", script, "sh", str(top), str(victim)], mounts=mounts, cwd="/")
        assert result.ok, result.stderr
        assert os.path.islink(top / "a/b")
        assert os.listdir(victim / "c") == [".bashrc"]
        assert stat.S_IMODE((victim / "c").stat().st_mode) & 0o111
        assert os.listdir(top / "a/x/c") == [".envrc.capsule-aside-1"]
