"""Containers that end with the run root they were made under, as after a restart of the machine.

Their rows are in the catalog like all others. What says that they still exist is a token in the run root:
once it is gone, the next command that opens the store for writing drops them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lading import private
from lading.catalog import containers as catalog_containers
from lading.catalog import layers as catalog_layers
from lading.catalog.database import WriteTransaction
from lading.catalog.engine import Connection

if TYPE_CHECKING:
    from lading.flows.context import Context

#: Row of ``meta`` that says where the token lies and what it is.
_KEY: Final = "transient"

_FILE: Final = "transient"


def claim(context: Context) -> None:
    """Make sure that the run root has the token of the store's transient containers."""
    from lading.flows.opening import claim_run_root

    claim_run_root(context)
    with context.catalog.read() as conn:
        known = _known(conn)
    if known is not None and _is_there(known):
        return
    path = context.run / _FILE
    note = {"path": str(path), "token": os.urandom(16).hex()}
    with open(private.opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
        file.write(note["token"])
    with context.catalog.write_rows("transient store") as conn:
        conn.execute(
            "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (_KEY, json.dumps(note)),
        )


def note(tx: WriteTransaction, container_id: str, layer_id: str) -> None:
    """Mark a new container and its layer as part of a transaction."""
    rows = [("container", container_id), ("layer", layer_id)]
    tx.conn.executemany("INSERT INTO transient (kind, record_id) VALUES (?, ?) ON CONFLICT DO NOTHING", rows)


def forget_lost(context: Context) -> None:
    """Drop containers whose run root has lost its token. Their write areas go with the next collection."""
    if not context.writable:
        return
    with context.catalog.read() as conn:
        known = _known(conn)
    if known is None or _is_there(known):
        return
    with context.catalog.write("transient store", durable=True) as tx:
        for kind, record_id in tx.conn.execute("SELECT kind, record_id FROM transient").fetchall():
            if kind == "container" and catalog_containers.get_container(tx.conn, record_id) is not None:
                catalog_containers.delete_container(tx, record_id)
            if kind == "layer" and catalog_layers.get_layer(tx.conn, record_id) is not None:
                catalog_layers.delete_layer(tx, record_id)
        tx.conn.execute("DELETE FROM transient")
        tx.conn.execute("DELETE FROM meta WHERE key = ?", (_KEY,))


def _known(conn: Connection) -> dict[str, str] | None:
    row = conn.execute("SELECT value FROM meta WHERE key = ?", (_KEY,)).fetchone()
    return None if row is None else dict(json.loads(row[0]))


def _is_there(known: dict[str, str]) -> bool:
    try:
        return Path(known["path"]).read_text() == known["token"]
    except OSError:
        return False
