"""The public views: what users may ask. docs/catalog.md describes every column.

Tables are private and change; views keep their columns. Contents that are being built or are condemned are
not seen through any of them. A path is visible in an image when nothing above it hides it: no entry of the
same path in a higher content, no removal, no opaque directory and no other file in place of a parent.
"""

from __future__ import annotations

from typing import Final

_LAYER: Final = """
CREATE VIEW v_layer AS
SELECT l.id, (SELECT json_group_array(n.name) FROM (SELECT name FROM layer_name WHERE owner_id = l.seq ORDER BY position) n) AS names,
  nullif(l.parent, '') AS parent,
  strftime('%Y-%m-%dT%H:%M:%SZ', l.created_ns / 1000000000, 'unixepoch') AS created,
  nullif(l.diff_digest, '') AS diff_digest, l.diff_size,
  nullif(l.compressed_digest, '') AS compressed_digest, l.compressed_size, l.compression, l.metadata,
  (SELECT count(*) FROM layer_content lc WHERE lc.layer_id = l.seq) AS contents,
  (SELECT coalesce(sum(c.entries), 0) FROM layer_content lc JOIN content c ON c.id = lc.content_id WHERE lc.layer_id = l.seq) AS entries,
  l.write_kind <> '' AS open
FROM layer l
"""

_IMAGE: Final = """
CREATE VIEW v_image AS
SELECT i.id, (SELECT json_group_array(n.name) FROM (SELECT name FROM image_name WHERE owner_id = i.seq ORDER BY position) n) AS names,
  nullif(i.layer, '') AS layer, nullif(i.digest, '') AS digest,
  strftime('%Y-%m-%dT%H:%M:%SZ', i.created_ns / 1000000000, 'unixepoch') AS created, i.metadata,
  (SELECT count(*) FROM image_data d WHERE d.owner_id = i.seq) AS data_items,
  (SELECT coalesce(sum(d.size), 0) FROM image_data d WHERE d.owner_id = i.seq) AS data_bytes,
  (SELECT count(*) FROM container c WHERE c.image = i.id) AS containers
FROM image i
"""

_CONTAINER: Final = """
CREATE VIEW v_container AS
SELECT c.id, (SELECT json_group_array(n.name) FROM (SELECT name FROM container_name WHERE owner_id = c.seq ORDER BY position) n) AS names,
  nullif(c.image, '') AS image, c.layer,
  strftime('%Y-%m-%dT%H:%M:%SZ', c.created_ns / 1000000000, 'unixepoch') AS created, c.metadata, c.flags
FROM container c
"""

#: An image's layers from the top down, and their contents with a rank: the higher one hides the lower.
_CHAIN: Final = """
CREATE VIEW v_image_content AS
WITH RECURSIVE chain(image, layer, depth) AS (
  SELECT i.id, i.layer, 0 FROM image i WHERE i.layer <> ''
  UNION ALL
  SELECT c.image, l.parent, c.depth + 1 FROM chain c JOIN layer l ON l.id = c.layer WHERE l.parent <> '' AND c.depth < 10000
)
SELECT c.image, c.layer, c.depth, k.key AS content, lc.position, -c.depth * 100000 + lc.position AS rank, k.id AS content_id
FROM chain c JOIN layer l ON l.id = c.layer JOIN layer_content lc ON lc.layer_id = l.seq
JOIN content k ON k.id = lc.content_id AND k.state = 'ready'
"""

#: What hides a path: the path's own row is compared by equality, its ancestors by walking up.
_FILE: Final = """
CREATE VIEW v_file AS
SELECT f.image, f.path, f.layer, f.content, f.type, f.mode, f.uid, f.gid, f.mtime_ns, f.size, f.link_target, f.object,
  NOT f.shadowed AND f.kind <> 2 AS visible, f.shadowed, f.kind = 2 AS whiteout
FROM (
  SELECT v.image, p.path, v.layer, v.content, e.kind,
    CASE e.kind WHEN 1 THEN 'd' ELSE i.type END AS type, i.mode, i.uid, i.gid, i.mtime_ns, i.size,
    CAST(i.link_target AS TEXT) AS link_target, lower(hex(o.digest)) AS object,
    EXISTS (
      SELECT 1 FROM entry h JOIN v_image_content w ON w.content_id = h.content_id
      WHERE h.path_id = e.path_id AND w.image = v.image AND w.rank > v.rank
    ) OR EXISTS (
      WITH RECURSIVE up(id) AS (
        SELECT p.parent_id UNION ALL SELECT q.parent_id FROM up JOIN path q ON q.id = up.id WHERE q.parent_id IS NOT NULL
      )
      SELECT 1 FROM up JOIN entry h ON h.path_id = up.id JOIN v_image_content w ON w.content_id = h.content_id
      LEFT JOIN inode hi ON hi.id = h.inode_id
      WHERE w.image = v.image AND w.rank > v.rank AND (h.kind = 2 OR h.opaque OR hi.type <> 'd')
    ) AS shadowed
  FROM v_image_content v JOIN entry e ON e.content_id = v.content_id JOIN path p ON p.id = e.path_id
  LEFT JOIN inode i ON i.id = e.inode_id LEFT JOIN object o ON o.id = i.object_id
) f
"""

_REFS: Final = """
CREATE VIEW v_object_refs AS
SELECT lower(hex(o.digest)) AS object, 'file' AS kind, c.key AS owner, p.path AS name
FROM object o JOIN inode i ON i.object_id = o.id JOIN entry e ON e.inode_id = i.id
JOIN content c ON c.id = e.content_id AND c.state = 'ready' JOIN path p ON p.id = e.path_id
UNION ALL SELECT lower(hex(o.digest)), 'recipe', c.key, NULL FROM object o JOIN content c ON c.recipe_id = o.id AND c.state = 'ready'
UNION ALL SELECT lower(hex(o.digest)), 'shadowed', c.key, NULL FROM object o JOIN content_object x ON x.object_id = o.id
JOIN content c ON c.id = x.content_id AND c.state = 'ready'
UNION ALL SELECT lower(hex(o.digest)), 'layer data', l.id, d.key FROM object o JOIN layer_data d ON d.object_id = o.id JOIN layer l ON l.seq = d.owner_id
UNION ALL SELECT lower(hex(o.digest)), 'image data', m.id, d.key FROM object o JOIN image_data d ON d.object_id = o.id JOIN image m ON m.seq = d.owner_id
UNION ALL SELECT lower(hex(o.digest)), 'container data', c.id, d.key FROM object o JOIN container_data d ON d.object_id = o.id JOIN container c ON c.seq = d.owner_id
"""

#: Objects an image reaches through its contents, recipes and data, each once.
_IMAGE_OBJECT: Final = """
CREATE VIEW v_image_object AS
SELECT v.image, i.object_id FROM v_image_content v JOIN entry e ON e.content_id = v.content_id JOIN inode i ON i.id = e.inode_id
WHERE i.object_id IS NOT NULL
UNION SELECT v.image, c.recipe_id FROM v_image_content v JOIN content c ON c.id = v.content_id WHERE c.recipe_id IS NOT NULL
UNION SELECT v.image, x.object_id FROM v_image_content v JOIN content_object x ON x.content_id = v.content_id
UNION SELECT m.id, d.object_id FROM image m JOIN image_data d ON d.owner_id = m.seq WHERE d.object_id IS NOT NULL
"""

_COST: Final = """
CREATE VIEW v_image_cost AS
WITH uses AS MATERIALIZED (SELECT image, object_id FROM v_image_object),
  counted AS MATERIALIZED (SELECT object_id, count(*) AS users FROM uses GROUP BY object_id)
SELECT m.id AS image,
  (SELECT coalesce(sum(c.size), 0) FROM v_image_content v JOIN content c ON c.id = v.content_id WHERE v.image = m.id) AS logical,
  coalesce(sum(CASE WHEN n.users = 1 THEN o.stored_size END), 0) AS unique_bytes,
  coalesce(sum(CASE WHEN n.users > 1 THEN o.stored_size END), 0) AS shared_bytes,
  CAST(round(coalesce(sum(o.stored_size * 1.0 / n.users), 0)) AS INTEGER) AS amortised_bytes
FROM image m LEFT JOIN uses u ON u.image = m.id LEFT JOIN counted n ON n.object_id = u.object_id LEFT JOIN object o ON o.id = u.object_id
GROUP BY m.id
"""

_GARBAGE: Final = """
CREATE VIEW v_garbage AS
SELECT 'content' AS kind, coalesce(c.key, 'content ' || c.id) AS name, c.state AS state, c.size AS bytes FROM content c
WHERE c.state = 'condemned' OR (c.state = 'ready' AND NOT EXISTS (SELECT 1 FROM layer_content lc WHERE lc.content_id = c.id)
  AND NOT EXISTS (SELECT 1 FROM layer l WHERE l.replay_content_id = c.id))
UNION ALL SELECT 'object', lower(hex(o.digest)), 'condemned', o.stored_size FROM object o WHERE o.condemned IS NOT NULL
UNION ALL SELECT 'pack', p.name, 'dead', p.payload - coalesce((SELECT sum(o.stored_size) FROM object o WHERE o.pack_id = p.id), 0) FROM pack p
WHERE p.payload > coalesce((SELECT sum(o.stored_size) FROM object o WHERE o.pack_id = p.id), 0)
"""

_BALANCE: Final = """
CREATE VIEW v_store_balance AS
SELECT 'packs: live' AS class, coalesce(sum(stored_size), 0) AS bytes FROM object WHERE condemned IS NULL
UNION ALL SELECT 'packs: dead', (SELECT coalesce(sum(payload), 0) FROM pack) - (SELECT coalesce(sum(stored_size), 0) FROM object WHERE condemned IS NULL)
UNION ALL SELECT 'packs: overhead', coalesce(sum(size - payload), 0) FROM pack
UNION ALL SELECT 'cache', coalesce(sum(size), 0) FROM cache_entry
"""

_EVENT: Final = """
CREATE VIEW v_event AS
SELECT e.seq, strftime('%Y-%m-%dT%H:%M:%SZ', e.at_ns / 1000000000, 'unixepoch') AS at, e.verb, e.kind, e.record_id, e.before, e.after FROM event e
"""

#: The last reading of all bytes. It has still to look at what was found neither sound nor damaged since it began.
_SCRUB: Final = """
CREATE VIEW v_scrub AS
SELECT strftime('%Y-%m-%dT%H:%M:%SZ', s.began_ns / 1000000000, 'unixepoch') AS began,
  CASE WHEN s.ended_ns > 0 THEN strftime('%Y-%m-%dT%H:%M:%SZ', s.ended_ns / 1000000000, 'unixepoch') END AS ended,
  s.objects, s.bytes, s.damaged, s.seconds,
  (SELECT count(*) FROM object o WHERE o.condemned IS NULL AND coalesce(o.verified_at, 0) < s.began_ns
    AND coalesce(o.damaged_at, 0) < s.began_ns) AS objects_left,
  (SELECT coalesce(sum(o.size), 0) FROM object o WHERE o.condemned IS NULL AND coalesce(o.verified_at, 0) < s.began_ns
    AND coalesce(o.damaged_at, 0) < s.began_ns) AS bytes_left,
  (SELECT strftime('%Y-%m-%dT%H:%M:%SZ', min(coalesce(o.verified_at, 0)) / 1000000000, 'unixepoch') FROM object o
    WHERE o.condemned IS NULL AND o.damaged_at IS NULL HAVING min(coalesce(o.verified_at, 0)) > 0) AS oldest
FROM (
  SELECT json_extract(m.value, '$.began_ns') AS began_ns, json_extract(m.value, '$.ended_ns') AS ended_ns,
    json_extract(m.value, '$.objects') AS objects, json_extract(m.value, '$.bytes') AS bytes,
    json_extract(m.value, '$.damaged') AS damaged, json_extract(m.value, '$.seconds') AS seconds
  FROM meta m WHERE m.key = 'scrub'
) s
"""

_DAMAGED: Final = """
CREATE VIEW v_damaged AS
SELECT lower(hex(o.digest)) AS object, strftime('%Y-%m-%dT%H:%M:%SZ', o.damaged_at / 1000000000, 'unixepoch') AS found,
  p.name AS pack, o.offset, o.stored_size, o.size
FROM object o JOIN pack p ON p.id = o.pack_id WHERE o.damaged_at IS NOT NULL AND o.condemned IS NULL
"""

VIEWS_SQL: Final[tuple[str, ...]] = tuple(
    text.strip()
    for text in (
        _LAYER,
        _IMAGE,
        _CONTAINER,
        _CHAIN,
        _FILE,
        _REFS,
        _IMAGE_OBJECT,
        _COST,
        _GARBAGE,
        _BALANCE,
        _EVENT,
        _SCRUB,
        _DAMAGED,
    )
)
