"""What layers of images share: each distinct file content is stored once, whatever has it."""

from __future__ import annotations

from typing import Final

from lading.errors import InvalidInput
from lading.flows.context import Context

#: Ways of finding equal files that scripts may name. Ours is BLAKE3 and was used when the files came in.
METHODS: Final = ("crc", "size", "sha256")

_QUERY: Final = """
WITH used AS (SELECT DISTINCT content_id FROM v_image_content),
  counted AS (SELECT i.object_id, count(*) AS files FROM used u JOIN entry e ON e.content_id = u.content_id
    JOIN inode i ON i.id = e.inode_id WHERE e.link_path_id IS NULL AND i.object_id IS NOT NULL GROUP BY i.object_id)
SELECT coalesce(sum(o.size * (c.files - 1)), 0) FROM counted c JOIN object o ON o.id = c.object_id
"""


def shared_bytes(context: Context, method: str) -> int:
    """Bytes of files in images' layers that are stored once for several files: what sharing saves.

    Raises:
        InvalidInput: an unknown method.
    """
    if method not in METHODS:
        raise InvalidInput(f"invalid hash method: {method}")
    total = 0
    for part in context.stores[: context.writable_stores]:
        with part.catalog.read() as conn:
            total += int(conn.execute(_QUERY).fetchone()[0])
    return total
