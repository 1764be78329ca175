"""Schema 5: the views tell how the reading of all bytes goes on, and what is damaged. No table changes. Frozen."""

from __future__ import annotations

from typing import Final

STATEMENTS: Final[tuple[str, ...]] = ()
