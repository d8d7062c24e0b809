"""Look at all that a policy points to: the part of `survey` that only some policies need."""

from __future__ import annotations

import os
import stat

from capsule.base.errors import PolicyError
from capsule.base.text import above, is_below, listed, printable
from capsule.files.trees.aliases import Overlaps, linked_files
from capsule.host.ids import NOBODY, group_of
from capsule.host.places import ROOT_OWN
from capsule.policy.mounts import CONTENT_SIZE, FROM_HOST, TREES, Mount, MountKind, in_force
from capsule.policy.policy import IdMap, System

from .found import Found, Guarded, Survey, Watch, name_of
from .git.index import known_repositories
from .hides import Matches, Tree, find_place, program_trees
from .kept import check_kept, check_lower, keep_directory
from .lookup import check_kind, follow, read_file, trusts_root
from .secrets import check_names, find_secrets
from .sockets import gives_away, live, live_below, not_all, sockets_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from capsule.policy.policy import Policy
    from capsule.policy.protected import Guard

    from .found import Shown
    from .lookup import Place


def survey_mounts(
    policy: Policy,
    unasked: Survey,
    repositories: Sequence[Mount],
    *,
    cwd_shown: str | None,
    shown: Sequence[Shown],
    uid: int,
) -> Survey:
    """As `survey.survey`, which has found what is shown unasked to hold, and the repositories."""
    trusted = trusts_root(uid, host_root=policy.id_map is IdMap.HOST_ROOT)
    root = ""
    if policy.root is not None:
        root = follow(policy.root, f"root: {policy.root}", trusted=trusted).path
    mounts = _among(policy.mounts, repositories)
    guards = _guards(policy, mounts)
    check_names(policy.show_secrets)
    sources = _Sources(mounts, uid, trusted=trusted)
    look = _Look(sources, uid)
    if mounts:
        look.add_trees(policy.root, cwd_shown, shown)
        programs = policy.root is None and policy.system is not System.NEEDED
        look.find_hides(mounts, programs=programs)
        look.hide_secrets(NOBODY if uid == 0 and trusted else uid, policy.show_secrets)
    look.check_sockets(policy.root, repositories)
    covers = look.covers()
    look.hidden |= {place: False for place, _ in unasked.hidden if not _is_covered(place, covers)}
    look.notes += unasked.notes
    look.guard(guards)
    return look.survey().replace(root=root, cwd=unasked.cwd)


def _among(mounts: Sequence[Mount], repositories: Sequence[Mount]) -> tuple[Mount, ...]:
    """The mounts with the repositories each as early as can be: what was asked for comes after it."""
    ordered = list(mounts)
    for one in repositories:
        holding = (number for number, mount in enumerate(ordered, 1) if is_below(one.at, mount.at))
        ordered.insert(max(holding, default=0), one)
    return in_force(ordered)


def _guards(policy: Policy, mounts: Sequence[Mount]) -> tuple[Guard, ...]:
    """The guards in force. Their names are checked even if there is nothing to guard."""
    writable = any(mount.kind is MountKind.READ_WRITE for mount in mounts)
    if not (writable or policy.protect or policy.unprotect):
        return ()
    from capsule.policy import protected

    return protected.in_force(policy.protect, policy.unprotect)


class _Sources:
    """The sources of the mounts: each looked at once.

    Attributes:
        found: what each mount found, by its number; those that are left out have none.
        notes: on what was left out.
    """

    def __init__(self, mounts: Sequence[Mount], uid: int, *, trusted: bool) -> None:
        self.found: dict[int, Found] = {}
        self.notes: list[str] = []
        self._uid = uid
        self._trusted = trusted
        self._left = CONTENT_SIZE - sum(len(mount.data) for mount in mounts)
        for number, mount in enumerate(mounts):
            if mount.kind in FROM_HOST:
                self._find(number, mount)
            elif mount.kind is not MountKind.HIDE:
                made_directory = mount.kind in (MountKind.TMPFS, MountKind.DIRECTORY)
                self.found[number] = Found(mount, "", made_directory, data=mount.data)
        self._keep()

    def _find(self, number: int, mount: Mount) -> None:
        what = name_of(mount)
        place = follow(mount.source, what, trusted=self._trusted)
        if place.is_missing and mount.optional:
            self.notes.append(f"{mount.source} does not exist and is left out")
            return
        if place.stat is not None:
            check_kind(mount, place, what)
            self.found[number] = self._of_place(mount, place, what)
        elif mount.kind is MountKind.FILE:
            why = os.strerror(place.error)
            message = f"{what}: {place.path}: {why}"
            hint = "create it, or correct the path" if place.is_missing else None
            raise PolicyError(message, field="mounts", value=mount.source, hint=hint)
        else:
            # The step that opens it says so.
            self.found[number] = Found(mount, place.path, is_directory=False)

    def _of_place(self, mount: Mount, place: Place, what: str) -> Found:
        assert place.stat is not None
        device = None
        if stat.S_ISCHR(place.kind) or stat.S_ISBLK(place.kind):
            device = os.major(place.stat.st_rdev), os.minor(place.stat.st_rdev)
        data = b""
        if mount.kind is MountKind.FILE:
            data = read_file(place, what, self._left)
            self._left -= len(data)
        owner = place.stat.st_uid, place.stat.st_gid
        if self._uid == 0:
            owner = owner[0], group_of(*owner)
        return Found(mount, place.path, stat.S_ISDIR(place.kind), owner, device, data)

    def _keep(self) -> None:
        """Find where upper layers are kept, and that nobody else reaches those or the lower ones."""
        overlays = [one for one in self.found.values() if one.mount.kind is MountKind.OVERLAY]
        apart = [one.path for one in self.found.values() if one.mount.kind is MountKind.READ_WRITE]
        for one in overlays:
            if one.is_directory:
                check_lower(one.path, apart, name_of(one.mount))
        apart += [one.path for one in overlays]
        for number, one in self.found.items():
            if one.mount.keep and one.is_directory:
                what = name_of(one.mount)
                kept = keep_directory(one.mount, one.path, what, self._uid, trusted=self._trusted)
                check_kept(kept, apart, what)
                apart.append(kept)
                self.found[number] = one.replace(keep=kept)


class _Look:
    """What is found in the trees that are shown."""

    def __init__(self, sources: _Sources, uid: int) -> None:
        self.notes = list(sources.notes)
        self.hidden: dict[str, bool] = {}
        # With what the mounts found, by their numbers, and after them what patterns add.
        self._found = [(number, one) for number, one in sources.found.items()]
        self._uid = uid
        self._trees: list[Tree] = []
        self._guarded: dict[str, bool] = {}
        self._hidden: list[str] = []
        self._watched: list[Watch] = []

    def survey(self) -> Survey:
        self._found.sort(key=_number)
        guarded = [
            Guarded(at, read_only=read_only)
            for at, read_only in self._guarded.items()
            if not any(self._guarded.get(one) for one in above(os.path.dirname(at)))
        ]
        return Survey(
            found=tuple(one for _, one in self._found),
            hidden=tuple(sorted(self.hidden.items())),
            guarded=tuple(sorted(guarded, key=lambda one: (one.at.count("/"), one.at))),
            watched=tuple(self._watched),
            notes=tuple(map(printable, self.notes)),
        )

    def add_trees(self, root: str | None, cwd_shown: str | None, shown: Iterable[Shown]) -> None:
        """All directories of the host that are shown, but for its programs."""
        if root is not None:
            self._trees.append(Tree("/", root))
        self._trees += [
            Tree(one.mount.at, one.path, one.mount)
            for _, one in self._found
            if one.mount.kind in TREES and one.is_directory
        ]
        unasked = [(one.path, one.source, True) for one in shown]
        if cwd_shown is not None:
            unasked.insert(0, (cwd_shown, os.path.realpath(cwd_shown), False))
        for path, source, holds_programs in unasked:
            if not any(t.mount and is_below(path, t.at) for t in self._trees):
                self._trees.append(Tree(path, source, holds_programs=holds_programs))

    def find_hides(self, mounts: Sequence[Mount], *, programs: bool) -> None:
        """Find what the hides of the policy cover, wherever it is shown.

        Args:
            mounts: the mounts of the policy.
            programs: whether the host's programs are shown as a whole.
        """
        hides = [item for item in enumerate(mounts) if item[1].kind is MountKind.HIDE]
        for number, mount in hides:
            if not mount.is_pattern:
                one = find_place(mount, self._trees, [one.mount for _, one in self._found])
                if isinstance(one, str):
                    self.notes.append(one)
                else:
                    self._found.append((number, one))
                    if not one.path and not mount.optional:
                        self.notes.append(f"hide {mount.at}: it is not there on the host")
        if hides:
            self._find_matches([item for item in hides if item[1].is_pattern], programs=programs)

    def hide_secrets(self, command_id: int, leave: Sequence[str]) -> None:
        """Hide what is known to be secret in a home that is shown as a whole."""
        found, notes = find_secrets(self._trees, self.covers(), command_id, leave)
        self._found += [(-1, one) for one in found]
        self.notes += notes

    def _find_matches(self, patterns: list[tuple[int, Mount]], *, programs: bool) -> None:
        """Of a mount and a pattern that hides its place, or a place above it, the later one counts."""
        matches = Matches(patterns, self._places(), self._uid)
        matches.look(self._trees)
        for number, one in self._found:
            hider = matches.match(one.mount.at)
            if hider > number:
                matches.found[one.mount.at] = (hider, one.is_directory)
            else:
                matches.found.pop(one.mount.at, None)
        self._find_again(matches, programs=programs)
        for place, (hider, is_directory) in sorted(matches.found.items()):
            if any(one in matches.found for one in above(os.path.dirname(place))):
                continue
            if self._drop(place, hider):
                # A cover of its own, in which there can be places to mount at.
                cover = Mount.hide(place, optional=True)
                self._found.append((hider, Found(cover, "", is_directory)))
            else:
                self.hidden[place] = is_directory
        self.notes += matches.notes + matches.idle()

    def _find_again(self, matches: Matches, *, programs: bool) -> None:
        """Hide what is hidden at one place wherever else a directory that holds it is shown.

        A mount of the hidden file or directory itself, or of something in it, was meant.
        """
        trees = self._trees + (program_trees(self._places()) if programs else [])
        shown = Overlaps(tree.path for tree in trees)
        hidden = matches.sources(trees)
        hidden += [
            (number, one.path, one.is_directory)
            for number, one in self._found
            if one.mount.kind is MountKind.HIDE and one.path
        ]
        covers = self._places() | matches.found.keys()
        again: list[str] = []
        self._hidden = [path for _, path, _ in hidden]
        for hider, path, is_directory in hidden:
            for number, below in shown.showing(path):
                place = trees[number].place(below)
                if not _is_covered(place, covers, trees[number].at):
                    matches.add(place, hider, is_directory=is_directory)
                    covers.add(place)
                    again.append(place)
        if again:
            self.notes.append(f"hidden, too, because it is the same: {listed(again, 'paths')}")
        self.notes += linked_files([path for _, path, is_directory in hidden if not is_directory])

    def _drop(self, place: str, hider: int) -> bool:
        """Leave out the mounts at a hidden place that came before its hide; say if there are others."""
        here = [item for item in self._found if is_below(item[1].mount.at, place)]
        for item in here:
            if item[0] < hider:
                self._found.remove(item)
                self.notes.append(f"{name_of(item[1].mount)}: hidden by a pattern given after it")
        return any(number >= hider for number, _ in here)

    def _places(self) -> set[str]:
        return {one.mount.at for _, one in self._found}

    def covers(self) -> set[str]:
        """Where something is put that hides what lies there on the host."""
        return self._places() | self.hidden.keys()

    def check_sockets(self, root: str | None, repositories: Sequence[Mount]) -> None:
        """Hide sockets that nobody named; refuse those in use, unless nobody named the tree either.

        Raises:
            PolicyError: there are some.
        """
        trees = [
            (name_of(one.mount), one.mount.at, one.path, one.mount in repositories)
            for _, one in self._found
            if one.is_directory and one.mount.kind in (*TREES, MountKind.DEVICE)
        ]
        if root is not None:
            trees.append((f"root: {root}", "/", root, False))
        in_use = live() if trees else frozenset()
        for what, at, path, is_unasked in trees:
            names = {*live_below(path, in_use)}
            if at != "/":
                found, complete = sockets_in(path)
                names.update(found)
                if not complete:
                    self.notes.append(not_all(path))
            covers = self.covers() | (set(ROOT_OWN) if at == "/" else set())
            base = at.rstrip("/")
            given = sorted(name for name in names if not _is_covered(f"{base}/{name}", covers, at))
            used = [name for name in given if f"{path.rstrip('/')}/{name}" in in_use]
            if used and not is_unasked:
                raise gives_away(what, path, used)
            # Nobody may listen there, but a program of another network namespace is not known.
            self.hidden |= {f"{base}/{name}": False for name in given}
            if given:
                self.notes.append(f"hidden in {path}: {listed(given, 'sockets')}")

    def guard(self, guards: tuple[Guard, ...]) -> None:
        """Protect what guards name in the writable trees, and remember it for when all is over."""
        trees = [
            one
            for _, one in self._found
            if guards and one.mount.kind is MountKind.READ_WRITE and one.is_directory
        ]
        shown = Overlaps(one.path for one in trees)
        for one in trees:
            for path in self._guard_tree(one, guards):
                # Each writable tree that shows it is a way to it.
                for number, below in shown.showing(f"{one.path.rstrip('/')}/{path}"):
                    self._protect(below, trees[number].mount.at)
        if self._hidden and trees and any(guard.name == ".git" for guard in guards):
            for one, path, note in known_repositories(self._hidden, trees):
                self._protect(path, one.mount.at)
                self.notes.append(note)
        if self._guarded:
            from .guards import check_places

            check_places(self._guarded)

    def _protect(self, path: str, at: str) -> None:
        """Make a path of the tree at a place read-only, and keep all above it from being renamed."""
        whole = f"{at}/{path}"
        if _is_covered(whole, self.covers(), at):
            return
        self._guarded[whole] = True
        for place in above(os.path.dirname(whole)):
            if place != at and is_below(place, at):
                self._guarded.setdefault(place, False)

    def _guard_tree(self, one: Found, guards: tuple[Guard, ...]) -> list[str]:
        """Remember what is in a writable tree; the paths in it that are to be protected."""
        from .guarded import first_look
        from .guards import within

        at = one.mount.at
        looked = first_look(one.path, within(guards, one.path))
        if looked is None:
            return []
        seen, identity = looked
        self.notes += seen.notes(one.path)
        known = tuple(sorted((sight.path, sight.identity) for sight in seen.found))
        names = tuple(guard.name for guard in guards)
        self._watched.append(Watch(at, one.path, names, known, seen.depth, seen.deeper, identity))
        kept = [sight.path for sight in seen.found if sight.kind != "symlink"]
        links = [sight.path for sight in seen.found if sight.kind == "symlink"]
        kept += [target for path in links if (target := _inside(one.path, path)) not in ("", *kept)]
        covers = self.covers()
        kept = [path for path in sorted(kept) if not _is_covered(f"{at}/{path}", covers, at)]
        if kept:
            self.notes.append(f"read-only in {one.path}: {listed(kept, 'paths')}")
        return kept


def _inside(tree: str, link: str) -> str:
    """Where in a tree a link in it leads, or "" if it leads elsewhere or nowhere."""
    real = os.path.realpath(f"{tree}/{link}")
    is_inside = real != tree and is_below(real, tree) and os.path.lexists(real)
    return real[len(tree.rstrip("/")) + 1 :] if is_inside else ""


def _is_covered(place: str, covers: set[str], at: str = "/") -> bool:
    """Return whether something else than the mount *at* stands at a place in it, or above that."""
    return any(one in covers for one in above(place) if one != at and is_below(one, at))


def _number(item: tuple[int, Found]) -> int:
    return item[0]
