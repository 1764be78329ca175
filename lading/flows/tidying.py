"""What is left to do once an answer is certain: tidying, whose failure is a warning."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lading.errors import LadingError, Untidy


@contextmanager
def tidying(what: str, *, later: str = "it goes with a later gc") -> Iterator[None]:
    """Remove what nobody needs any more; when it cannot be, a later collection does.

    After a commit the change is made, and nothing may say that it was not. While another error is on its way,
    it must stay the one that is told.

    Args:
        what: what is being removed, for the warning.
        later: what becomes of it.
    """
    try:
        yield
    except (OSError, LadingError) as error:
        warnings.warn(Untidy(f"{what}: {reason(error)}; {later}"), stacklevel=3)


def reason(error: OSError | LadingError) -> str:
    """Why something failed, for a sentence that says what."""
    return str(error) if isinstance(error, LadingError) else (error.strerror or str(error)).lower()
