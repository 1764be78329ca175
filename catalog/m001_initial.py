"""Schema 1: the first. Frozen: later changes are steps of their own."""

from __future__ import annotations

from typing import Final

STATEMENTS: Final[tuple[str, ...]] = (
    'CREATE TABLE "meta" ("key" TEXT NOT NULL PRIMARY KEY, "value" TEXT NOT NULL) WITHOUT ROWID',
    'CREATE TABLE "pack" ("id" INTEGER NOT NULL PRIMARY KEY, "name" TEXT NOT NULL, "size" INTEGER NOT '
    'NULL, "payload" INTEGER NOT NULL, "epoch" INTEGER NOT NULL, "settled" INTEGER NOT NULL)',
    'CREATE UNIQUE INDEX "pack_name" ON "pack" ("name")',
    "CREATE INDEX pack_unsettled ON pack (epoch) WHERE NOT settled",
    'CREATE TABLE "object" ("id" INTEGER NOT NULL PRIMARY KEY, "digest" BLOB NOT NULL, "kind" INTEGER NOT '
    'NULL, "pack_id" INTEGER NOT NULL, "offset" INTEGER NOT NULL, "stored_size" INTEGER NOT NULL, "size" '
    'INTEGER NOT NULL, "codec" INTEGER NOT NULL, "frames" BLOB, "condemned" INTEGER, "verified_at" '
    'INTEGER, FOREIGN KEY ("pack_id") REFERENCES "pack" ("id") ON DELETE RESTRICT)',
    'CREATE UNIQUE INDEX "object_digest" ON "object" ("digest")',
    'CREATE INDEX "object_pack_id" ON "object" ("pack_id")',
    "CREATE INDEX object_condemned ON object (condemned) WHERE condemned IS NOT NULL",
    'CREATE TABLE "path" ("id" INTEGER NOT NULL PRIMARY KEY, "parent_id" INTEGER, "path" TEXT NOT NULL, '
    'FOREIGN KEY ("parent_id") REFERENCES "path" ("id") ON DELETE RESTRICT)',
    'CREATE INDEX "path_parent_id" ON "path" ("parent_id")',
    'CREATE UNIQUE INDEX "path_path" ON "path" ("path")',
    'CREATE TABLE "inode" ("id" INTEGER NOT NULL PRIMARY KEY, "key" BLOB NOT NULL, "type" TEXT NOT NULL, '
    '"mode" INTEGER NOT NULL, "uid" INTEGER NOT NULL, "gid" INTEGER NOT NULL, "mtime_ns" INTEGER NOT '
    'NULL, "size" INTEGER NOT NULL, "object_id" INTEGER, "link_target" BLOB, "rdev" INTEGER, "xattrs" '
    'BLOB, "sparse" BLOB, FOREIGN KEY ("object_id") REFERENCES "object" ("id") ON DELETE RESTRICT)',
    'CREATE UNIQUE INDEX "inode_key" ON "inode" ("key")',
    'CREATE INDEX "inode_object_id" ON "inode" ("object_id")',
    'CREATE TABLE "content" ("id" INTEGER NOT NULL PRIMARY KEY, "key" TEXT, "diff_id" TEXT, "size" '
    "INTEGER NOT NULL, \"recipe_id\" INTEGER, \"state\" TEXT NOT NULL CHECK (state IN ('building', 'ready', "
    '\'condemned\')), "epoch" INTEGER NOT NULL, "entries" INTEGER NOT NULL, "diff_bytes" INTEGER NOT NULL, '
    '"uids" TEXT NOT NULL, "gids" TEXT NOT NULL, FOREIGN KEY ("recipe_id") REFERENCES "object" ("id") ON '
    "DELETE RESTRICT)",
    'CREATE UNIQUE INDEX "content_key" ON "content" ("key")',
    'CREATE UNIQUE INDEX "content_diff_id" ON "content" ("diff_id")',
    'CREATE INDEX "content_recipe_id" ON "content" ("recipe_id")',
    "CREATE INDEX content_hidden ON content (state, epoch) WHERE state <> 'ready'",
    'CREATE TABLE "entry" ("content_id" INTEGER NOT NULL, "path_id" INTEGER NOT NULL, "seq" INTEGER NOT '
    'NULL, "kind" INTEGER NOT NULL, "opaque" INTEGER NOT NULL, "inode_id" INTEGER, "link_path_id" '
    'INTEGER, PRIMARY KEY ("content_id", "path_id"), FOREIGN KEY ("content_id") REFERENCES "content" '
    '("id") ON DELETE RESTRICT, FOREIGN KEY ("path_id") REFERENCES "path" ("id") ON DELETE RESTRICT, '
    'FOREIGN KEY ("inode_id") REFERENCES "inode" ("id") ON DELETE RESTRICT) WITHOUT ROWID',
    'CREATE INDEX "entry_path_id" ON "entry" ("path_id")',
    'CREATE INDEX "entry_inode_id" ON "entry" ("inode_id")',
    'CREATE TABLE "layer" ("seq" INTEGER NOT NULL PRIMARY KEY, "id" TEXT NOT NULL, "parent" TEXT NOT '
    'NULL, "metadata" TEXT NOT NULL, "mount_label" TEXT NOT NULL, "created_ns" INTEGER NOT NULL, '
    '"compressed_digest" TEXT NOT NULL, "compressed_size" INTEGER NOT NULL, "diff_digest" TEXT NOT NULL, '
    '"diff_size" INTEGER NOT NULL, "toc_digest" TEXT NOT NULL, "compression" INTEGER NOT NULL, "uids" '
    'TEXT NOT NULL, "gids" TEXT NOT NULL, "flags" TEXT NOT NULL, "uidmap" TEXT NOT NULL, "gidmap" TEXT '
    'NOT NULL, "replay_content_id" INTEGER, "write_area" INTEGER NOT NULL, "write_kind" TEXT NOT NULL, '
    '"root_mode" INTEGER NOT NULL, "root_uid" INTEGER NOT NULL, "root_gid" INTEGER NOT NULL, FOREIGN KEY '
    '("replay_content_id") REFERENCES "content" ("id") ON DELETE RESTRICT)',
    'CREATE UNIQUE INDEX "layer_id" ON "layer" ("id")',
    'CREATE INDEX "layer_parent" ON "layer" ("parent")',
    'CREATE INDEX "layer_compressed_digest" ON "layer" ("compressed_digest")',
    'CREATE INDEX "layer_diff_digest" ON "layer" ("diff_digest")',
    'CREATE INDEX "layer_toc_digest" ON "layer" ("toc_digest")',
    'CREATE INDEX "layer_replay_content_id" ON "layer" ("replay_content_id")',
    'CREATE TABLE "layer_content" ("layer_id" INTEGER NOT NULL, "position" INTEGER NOT NULL, "content_id" '
    'INTEGER NOT NULL, PRIMARY KEY ("layer_id", "position"), FOREIGN KEY ("layer_id") REFERENCES "layer" '
    '("seq") ON DELETE CASCADE, FOREIGN KEY ("content_id") REFERENCES "content" ("id") ON DELETE '
    "RESTRICT) WITHOUT ROWID",
    'CREATE INDEX "layercontent_content_id" ON "layer_content" ("content_id")',
    'CREATE TABLE "image" ("seq" INTEGER NOT NULL PRIMARY KEY, "id" TEXT NOT NULL, "digest" TEXT NOT '
    'NULL, "layer" TEXT NOT NULL, "mapped_layers" TEXT NOT NULL, "names_history" TEXT NOT NULL, '
    '"metadata" TEXT NOT NULL, "created_ns" INTEGER NOT NULL, "flags" TEXT NOT NULL)',
    'CREATE UNIQUE INDEX "image_id" ON "image" ("id")',
    'CREATE INDEX "image_digest" ON "image" ("digest")',
    'CREATE INDEX "image_layer" ON "image" ("layer")',
    "CREATE INDEX image_mapped ON image (seq) WHERE mapped_layers <> '[]'",
    'CREATE TABLE "container" ("seq" INTEGER NOT NULL PRIMARY KEY, "id" TEXT NOT NULL, "image" TEXT NOT '
    'NULL, "layer" TEXT NOT NULL, "metadata" TEXT NOT NULL, "created_ns" INTEGER NOT NULL, "uidmap" TEXT '
    'NOT NULL, "gidmap" TEXT NOT NULL, "flags" TEXT NOT NULL)',
    'CREATE UNIQUE INDEX "container_id" ON "container" ("id")',
    'CREATE INDEX "container_image" ON "container" ("image")',
    'CREATE INDEX "container_layer" ON "container" ("layer")',
    'CREATE TABLE "layer_name" ("name" TEXT NOT NULL PRIMARY KEY, "owner_id" INTEGER NOT NULL, "position" '
    'INTEGER NOT NULL, FOREIGN KEY ("owner_id") REFERENCES "layer" ("seq") ON DELETE CASCADE) WITHOUT '
    "ROWID",
    'CREATE INDEX "layername_owner_id" ON "layer_name" ("owner_id")',
    'CREATE TABLE "image_name" ("name" TEXT NOT NULL PRIMARY KEY, "owner_id" INTEGER NOT NULL, "position" '
    'INTEGER NOT NULL, FOREIGN KEY ("owner_id") REFERENCES "image" ("seq") ON DELETE CASCADE) WITHOUT '
    "ROWID",
    'CREATE INDEX "imagename_owner_id" ON "image_name" ("owner_id")',
    'CREATE TABLE "container_name" ("name" TEXT NOT NULL PRIMARY KEY, "owner_id" INTEGER NOT NULL, '
    '"position" INTEGER NOT NULL, FOREIGN KEY ("owner_id") REFERENCES "container" ("seq") ON DELETE '
    "CASCADE) WITHOUT ROWID",
    'CREATE INDEX "containername_owner_id" ON "container_name" ("owner_id")',
    'CREATE TABLE "layer_data" ("owner_id" INTEGER NOT NULL, "key" TEXT NOT NULL, "position" INTEGER NOT '
    'NULL, "object_id" INTEGER, "size" INTEGER NOT NULL, "digest" TEXT NOT NULL, PRIMARY KEY ("owner_id", '
    '"key"), FOREIGN KEY ("owner_id") REFERENCES "layer" ("seq") ON DELETE CASCADE, FOREIGN KEY '
    '("object_id") REFERENCES "object" ("id") ON DELETE RESTRICT) WITHOUT ROWID',
    'CREATE INDEX "layerdata_object_id" ON "layer_data" ("object_id")',
    'CREATE TABLE "image_data" ("owner_id" INTEGER NOT NULL, "key" TEXT NOT NULL, "position" INTEGER NOT '
    'NULL, "object_id" INTEGER, "size" INTEGER NOT NULL, "digest" TEXT NOT NULL, PRIMARY KEY ("owner_id", '
    '"key"), FOREIGN KEY ("owner_id") REFERENCES "image" ("seq") ON DELETE CASCADE, FOREIGN KEY '
    '("object_id") REFERENCES "object" ("id") ON DELETE RESTRICT) WITHOUT ROWID',
    'CREATE INDEX "imagedata_object_id" ON "image_data" ("object_id")',
    'CREATE INDEX "imagedata_digest" ON "image_data" ("digest")',
    'CREATE TABLE "container_data" ("owner_id" INTEGER NOT NULL, "key" TEXT NOT NULL, "position" INTEGER '
    'NOT NULL, "object_id" INTEGER, "size" INTEGER NOT NULL, "digest" TEXT NOT NULL, PRIMARY KEY '
    '("owner_id", "key"), FOREIGN KEY ("owner_id") REFERENCES "container" ("seq") ON DELETE CASCADE, '
    'FOREIGN KEY ("object_id") REFERENCES "object" ("id") ON DELETE RESTRICT) WITHOUT ROWID',
    'CREATE INDEX "containerdata_object_id" ON "container_data" ("object_id")',
    'CREATE TABLE "suspect" ("object_id" INTEGER NOT NULL PRIMARY KEY)',
    'CREATE TABLE "event" ("seq" INTEGER NOT NULL PRIMARY KEY, "at_ns" INTEGER NOT NULL, "verb" TEXT NOT '
    'NULL, "kind" TEXT NOT NULL, "record_id" TEXT NOT NULL, "before" TEXT, "after" TEXT)',
    'CREATE INDEX "event_kind_record_id" ON "event" ("kind", "record_id")',
    'CREATE TABLE "cache_entry" ("kind" TEXT NOT NULL, "key" TEXT NOT NULL, "size" INTEGER NOT NULL, '
    'PRIMARY KEY ("kind", "key")) WITHOUT ROWID',
)
