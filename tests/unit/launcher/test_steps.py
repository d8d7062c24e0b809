"""The vocabulary of steps, against launcher/steps.def and an independent decoder."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsule.base.text import describe_size, printable
from capsule.launcher import network  # noqa: F401 - steps as well
from capsule.launcher import steps as s
from capsule.launcher.shown import describe_attributes
from tests.unit.examples import CASES
from tests.unit.wire import Kind, decode, kinds

CLASSES: dict[str, type[s.Step]] = {kind.word: kind for kind in s.Step.__subclasses__()}
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
paths = words.map(lambda word: "/" + word)
numbers = st.integers(0, 2**64 - 1)
VALUES = {"p": paths, "s": words, "n": numbers}
# One text more than the launcher is told, for people.
LABELS = {
    "any-address": 1,
    "attach": 1,
    "cgroup": 2,
    "landlock-beneath": 1,
    "landlock-port": 1,
    "landlock-ruleset": 1,
    "listen": 2,
    "rlimit": 1,
    "seccomp": 1,
    "setrlimit": 3,
}


def some_step(word: str) -> st.SearchStrategy[s.Step]:
    """Any step of a kind, with arguments that fit its signature."""
    if word == "exec":
        lists = st.lists(words, min_size=1, max_size=3).map(tuple)
        return st.builds(s.Exec, lists, lists, st.lists(words, max_size=3).map(tuple))
    if word == "ceilings":
        return st.builds(s.Ceilings, st.lists(st.tuples(numbers, numbers)).map(tuple), words)
    if word == "mask":
        return st.builds(s.Mask, numbers, st.lists(paths, max_size=3).map(tuple))
    signature = CLASSES[word].signature
    values = [VALUES[letter] for letter in signature] + [words] * LABELS.get(word, 0)
    return st.tuples(*values).map(lambda given: CLASSES[word](*given))


steps = st.lists(st.sampled_from(sorted(CLASSES)).flatmap(some_step), max_size=8)


def test_the_vocabulary_is_the_launchers() -> None:
    """Each word of steps.def has a class with the same signature, and no class is left over."""
    assert {kind.word: kind.signature for kind in kinds()} == {
        word: kind.signature for word, kind in CLASSES.items()
    }


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.word)
def test_names_agree(kind: Kind) -> None:
    """Function, word and class of a step are one name in three spellings."""
    assert kind.function.replace("_", "-") == kind.word
    assert CLASSES[kind.word].__name__ == "".join(part.capitalize() for part in kind.word.split("-"))
    assert kind.phases <= {"LAUNCH", "INIT", "COMMAND"}
    assert kind.phases


def test_words_are_unique() -> None:
    """No word stands twice in steps.def: the launcher takes the first."""
    found = [kind.word for kind in kinds()]
    assert len(set(found)) == len(found)


@given(steps)
def test_encode_round_trips(given: list[s.Step]) -> None:
    """The decoder finds what was encoded, whatever the words hold, and as many as steps.def has."""
    assert list(decode(s.encode(given))) == [(step.word, list(step.words())) for step in given]
    for step in given:
        if step.signature != "*":
            assert len(list(step.words())) == len(step.signature)


@given(numbers, paths, paths)
def test_a_mask_names_every_path(attributes: int, one: str, two: str) -> None:
    """The attributes come first, then the paths; the text has them all."""
    step = s.Mask(attributes, (one, two))
    assert list(step.words()) == [str(attributes), one, two]
    assert all(printable(path) in step.describe() for path in (one, two))


@given(words, words)
def test_exec_lists_can_be_told_apart(one: str, two: str) -> None:
    """Each list of an exec is preceded by its length, so no word can pass for another's."""
    step = s.Exec((one, two), (two,), ("A=1", "B=2"))
    assert list(step.words()) == ["2", one, two, "1", two, "2", "A=1", "B=2"]


@given(steps)
def test_a_step_is_a_value_with_a_text(given: list[s.Step]) -> None:
    """A step keeps class and values in pickle; no name breaks out of its line or into the terminal."""
    again = pickle.loads(pickle.dumps(given))
    assert [(type(step), tuple(step)) for step in again] == [
        (type(step), tuple(step)) for step in given
    ]
    assert all(step.describe().isprintable() for step in given)


def test_every_step_of_the_examples_names_its_path() -> None:
    """What an error's filename is made of is one of the arguments, and absolute but for a command."""
    for case in CASES.values():
        for step in case.plan().steps:
            assert step.path is None or isinstance(step, s.Exec) or step.path.startswith("/")


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        (0, "as it is"),
        (s.READ_ONLY, "read-only"),
        (s.NO_SUID | s.NO_DEV, "nosuid, nodev"),
        (15, "read-only, nosuid, nodev, noexec"),
    ],
)
def test_attributes_in_words(attributes: int, text: str) -> None:
    """Every attribute that is set is named."""
    assert describe_attributes(attributes) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (1, "1"),
        (1023, "1023"),
        (1024, "1K"),
        (1536, "1536"),
        (4 << 20, "4M"),
        (3 << 30, "3G"),
    ],
)
def test_sizes_in_words(size: int, text: str) -> None:
    """The largest unit that needs no fraction."""
    assert describe_size(size) == text


def test_an_empty_argument_is_visible() -> None:
    """An empty word of the command is shown as one, not as nothing."""
    assert s.Exec(("/x",), ("x", ""), ()).describe() == "execute x ''"
