"""Turning a fuzzer's bytes into choices: every input means something, and bytes that run out are zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from lading.errors import LadingError

T = TypeVar("T")

#: Characters of the longest message that is still "one clear line".
MESSAGE_MAX = 2000


class Draw:
    """Reads choices off some bytes, forwards."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        """The next bytes, filled up with zeros."""
        found = self.data[self.position : self.position + size]
        self.position += size
        return found.ljust(size, b"\0")

    def some(self, most: int) -> bytes:
        """A byte string whose length comes first."""
        return self.take(self.below(most + 1))

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def number(self, size: int) -> int:
        """A number of so many bytes."""
        return int.from_bytes(self.take(size), "little")

    def below(self, bound: int) -> int:
        """A number from 0 up to one less than the bound."""
        return self.number(1 if bound <= 256 else 4) % bound

    def pick(self, values: Sequence[T]) -> T:
        """One of several values."""
        return values[self.below(len(values))]

    def chance(self, one_in: int) -> bool:
        """True for one value in so many, never when the bytes have run out."""
        return self.byte() % one_in == 1

    @property
    def more(self) -> bool:
        """Whether bytes are left."""
        return self.position < len(self.data)

    def rest(self) -> bytes:
        """All that is left."""
        found = self.data[self.position :]
        self.position = len(self.data)
        return found


def check_message(error: LadingError, *, extra: int = 0) -> None:
    """An error is one printable line of bounded length.

    Args:
        error: what was raised.
        extra: characters by which it may be longer, where it repeats what the user typed.
    """
    text = str(error)
    assert text, repr(error)
    assert text.isprintable(), text
    assert len(text) <= MESSAGE_MAX + extra, len(text)
