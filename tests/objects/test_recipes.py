"""The two readers of recipes say the same of whatever they are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading.errors import Corrupt
from lading.objects.recipe import MAGIC, Literal, RecipeEncoder, Reference, read_recipe, read_references

SIZES = st.one_of(st.integers(0, 300), st.integers(0, 1 << 63))
PARTS = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=400).map(Literal),
        st.builds(Reference, st.binary(min_size=32, max_size=32), SIZES),
    ),
    max_size=30,
)


def written(parts: Iterable[Literal | Reference]) -> bytes:
    """A recipe of these parts."""
    out: list[bytes] = []
    encoder = RecipeEncoder(out.append)
    total = 0
    for part in parts:
        if isinstance(part, Literal):
            encoder.literal(part.data)
            total += len(part.data)
        else:
            encoder.reference(*part)
            total += part.size
    encoder.finish(total, "ab" * 32)
    return b"".join(out)


def told(read: Callable[[Iterable[bytes]], Iterator[Literal | Reference]], recipe: bytes, step: int) -> list[object]:
    """The references that a reader gives, then what it says of the recipe if it is no good."""
    found: list[object] = []
    try:
        chunks = (recipe[at : at + step] for at in range(0, len(recipe), step))
        found.extend(part for part in read(chunks) if isinstance(part, Reference))
    except Corrupt as error:
        found.append(str(error))
    return found


@given(parts=PARTS, step=st.integers(1, 700))
def test_references_are_those_of_the_parts(parts: list[Literal | Reference], step: int) -> None:
    recipe = written(parts)
    named = [part for part in parts if isinstance(part, Reference)]
    assert told(read_references, recipe, step) == named
    assert told(read_recipe, recipe, step) == named


@given(parts=PARTS, step=st.integers(1, 700), at=st.integers(0), byte=st.integers(0, 255), cut=st.integers(0))
def test_both_refuse_the_same_damage(parts: list[Literal | Reference], step: int, at: int, byte: int, cut: int) -> None:
    recipe = bytearray(written(parts))
    recipe[at % len(recipe)] = byte
    damaged = bytes(recipe[: len(recipe) - cut % len(recipe)])
    assert told(read_references, damaged, step) == told(read_recipe, damaged, step)


@pytest.mark.parametrize("tag", [b"\x01", b"\x02", b"\x03"])
@pytest.mark.parametrize("length", [9, 10, 11, 100])
def test_numbers_that_do_not_end(tag: bytes, length: int) -> None:
    recipe = MAGIC + tag + b"\xff" * length + b"\x00" * 100
    for step in (1, 7, 1000):
        assert told(read_references, recipe, step) == told(read_recipe, recipe, step)
    if length >= 10:
        assert told(read_references, recipe, 1000) == ["recipe has a number that does not end"]
