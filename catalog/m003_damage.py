"""Schema 3: objects that were found damaged. Frozen."""

from __future__ import annotations

from typing import Final

STATEMENTS: Final[tuple[str, ...]] = (
    'ALTER TABLE "object" ADD COLUMN "damaged_at" INTEGER',
    "CREATE INDEX object_damaged ON object (damaged_at) WHERE damaged_at IS NOT NULL",
)
