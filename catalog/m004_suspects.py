"""Schema 4: what a collection looks at is noted when it comes about, by the database itself. Frozen.

Triggers write the notes, in the transaction that causes them, whoever makes the change. A pack's account
(``live``, ``objects``) is exact from the moment it is settled.
"""

from __future__ import annotations

from typing import Final

STATEMENTS: Final[tuple[str, ...]] = (
    'CREATE TABLE "content_suspect" ("content_id" INTEGER NOT NULL PRIMARY KEY)',
    'CREATE TABLE "stale_view" ("key" TEXT NOT NULL PRIMARY KEY) WITHOUT ROWID',
    'ALTER TABLE "pack" ADD COLUMN "live" INTEGER NOT NULL DEFAULT 0',
    'ALTER TABLE "pack" ADD COLUMN "objects" INTEGER NOT NULL DEFAULT 0',
    "UPDATE pack SET (live, objects) = "
    "(SELECT coalesce(sum(o.stored_size), 0), count(*) FROM object o WHERE o.pack_id = pack.id) WHERE settled",
    "CREATE INDEX pack_worn ON pack (id) WHERE settled AND (live < payload OR objects = 0)",
    "CREATE INDEX pack_small ON pack (name) WHERE settled AND size < 1048576",
    "CREATE TRIGGER object_added AFTER INSERT ON object BEGIN "
    "UPDATE pack SET live = live + NEW.stored_size, objects = objects + 1 WHERE id = NEW.pack_id AND settled; END",
    "CREATE TRIGGER object_moved AFTER UPDATE OF pack_id, stored_size ON object BEGIN "
    "UPDATE pack SET live = live - OLD.stored_size, objects = objects - 1 WHERE id = OLD.pack_id AND settled; "
    "UPDATE pack SET live = live + NEW.stored_size, objects = objects + 1 WHERE id = NEW.pack_id AND settled; END",
    "CREATE TRIGGER object_gone AFTER DELETE ON object BEGIN "
    "UPDATE pack SET live = live - OLD.stored_size, objects = objects - 1 WHERE id = OLD.pack_id AND settled; END",
    "CREATE TRIGGER content_added AFTER INSERT ON content WHEN NEW.state = 'ready' BEGIN "
    "INSERT INTO content_suspect (content_id) VALUES (NEW.id) ON CONFLICT DO NOTHING; END",
    "CREATE TRIGGER content_ready AFTER UPDATE OF state ON content WHEN NEW.state = 'ready' BEGIN "
    "INSERT INTO content_suspect (content_id) VALUES (NEW.id) ON CONFLICT DO NOTHING; END",
    "CREATE TRIGGER layer_content_gone AFTER DELETE ON layer_content BEGIN "
    "INSERT INTO content_suspect (content_id) VALUES (OLD.content_id) ON CONFLICT DO NOTHING; END",
    "CREATE TRIGGER layer_replay_changed AFTER UPDATE OF replay_content_id ON layer "
    "WHEN OLD.replay_content_id IS NOT NULL AND OLD.replay_content_id IS NOT NEW.replay_content_id BEGIN "
    "INSERT INTO content_suspect (content_id) VALUES (OLD.replay_content_id) ON CONFLICT DO NOTHING; END",
    "CREATE TRIGGER layer_replay_gone AFTER DELETE ON layer WHEN OLD.replay_content_id IS NOT NULL BEGIN "
    "INSERT INTO content_suspect (content_id) VALUES (OLD.replay_content_id) ON CONFLICT DO NOTHING; END",
    # What older versions would have found by looking at everything.
    "INSERT INTO content_suspect (content_id) SELECT c.id FROM content c WHERE c.state = 'ready' "
    "AND NOT EXISTS (SELECT 1 FROM layer_content lc WHERE lc.content_id = c.id) "
    "AND NOT EXISTS (SELECT 1 FROM layer l WHERE l.replay_content_id = c.id)",
    "INSERT INTO suspect (object_id) SELECT o.id FROM object o JOIN pack p ON p.id = o.pack_id "
    "WHERE p.settled AND o.condemned IS NULL "
    "AND NOT EXISTS (SELECT 1 FROM inode i WHERE i.object_id = o.id) "
    "AND NOT EXISTS (SELECT 1 FROM content c WHERE c.recipe_id = o.id) "
    "AND NOT EXISTS (SELECT 1 FROM content_object x WHERE x.object_id = o.id) "
    "AND NOT EXISTS (SELECT 1 FROM layer_data d WHERE d.object_id = o.id) "
    "AND NOT EXISTS (SELECT 1 FROM image_data d WHERE d.object_id = o.id) "
    "AND NOT EXISTS (SELECT 1 FROM container_data d WHERE d.object_id = o.id) "
    "AND NOT EXISTS (SELECT 1 FROM suspect s WHERE s.object_id = o.id)",
    # The cache was never noted: the next collection compares all of it.
    "INSERT INTO meta (key, value) VALUES ('views', 'unread')",
)
