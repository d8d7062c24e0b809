"""Inputs that are nearly right: seeds from files, of which pieces are dropped, repeated, exchanged."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

CORPUS = Path(__file__).parent / "corpus"


def seeds(name: str) -> list[bytes]:
    """The seeds of a target: parts of a file, each after a line of dashes."""
    parts = (CORPUS / f"{name}.txt").read_bytes().split(b"\n----\n")
    return [part for part in parts if part]


def mutants(of: list[bytes], words: list[bytes]) -> st.SearchStrategy[bytes]:
    """A seed after up to six changes, with the words that mean something to who reads it."""
    piece = st.sampled_from(words) | st.binary(max_size=4) | st.sampled_from(of).flatmap(_part)
    change = st.tuples(st.floats(0, 1), st.integers(0, 40), piece)
    return st.tuples(st.sampled_from(of), st.lists(change, max_size=6)).map(_changed)


def _part(seed: bytes) -> st.SearchStrategy[bytes]:
    size = len(seed)
    return st.tuples(st.integers(0, size), st.integers(0, 60)).map(lambda at: seed[at[0] : sum(at)])


def _changed(drawn: tuple[bytes, list[tuple[float, int, bytes]]]) -> bytes:
    text, changes = drawn
    for place, dropped, piece in changes:
        at = int(place * len(text))
        text = text[:at] + piece + text[at + dropped :]
    return text
