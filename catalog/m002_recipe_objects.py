"""Schema 2: objects that only a recipe names, and records that end with the boot. Frozen."""

from __future__ import annotations

from typing import Final

STATEMENTS: Final[tuple[str, ...]] = (
    'CREATE TABLE "content_object" ("content_id" INTEGER NOT NULL, "object_id" INTEGER NOT NULL, PRIMARY '
    'KEY ("content_id", "object_id"), FOREIGN KEY ("content_id") REFERENCES "content" ("id") ON DELETE '
    'RESTRICT, FOREIGN KEY ("object_id") REFERENCES "object" ("id") ON DELETE RESTRICT) WITHOUT ROWID',
    'CREATE INDEX "contentobject_object_id" ON "content_object" ("object_id")',
    'CREATE TABLE "transient" ("kind" TEXT NOT NULL, "record_id" TEXT NOT NULL, PRIMARY KEY ("kind", '
    '"record_id")) WITHOUT ROWID',
    # What older catalogs never noted is in the recipes: the next collection reads them before it condemns anything.
    "INSERT INTO meta (key, value) SELECT 'recipes', 'unread' WHERE EXISTS (SELECT 1 FROM content)",
)
