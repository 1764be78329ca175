"""The audit log."""

from __future__ import annotations

import json

from lading.catalog import layers, names
from lading.catalog.database import Catalog
from lading.values import Layer


def test_each_change_says_what_was_before_and_after(catalog: Catalog) -> None:
    """In order, with what was done to which record; states chain."""
    with catalog.write("create-layer") as tx:
        layers.create_layer(tx, Layer("a", names=("n",)))
    with catalog.write("set-metadata") as tx:
        names.set_metadata(tx, "layer", "a", "m")
    with catalog.write("delete-layer") as tx:
        layers.delete_layer(tx, "a")

    query = "SELECT verb, kind, record_id, before, after, at_ns FROM event ORDER BY seq"
    rows = catalog.connection().execute(query).fetchall()
    states = [None if text is None else json.loads(text) for row in rows for text in row[3:5]]

    assert [row[:3] for row in rows] == [
        (verb, "layer", "a") for verb in ("create-layer", "set-metadata", "delete-layer")
    ]
    assert [row[4] for row in rows[:-1]] == [row[3] for row in rows[1:]]
    assert (states[0], states[-1]) == (None, None)
    assert [(state["names"], state["metadata"]) for state in states if state] == [
        (["n"], text) for text in ("", "", "m", "m")
    ]
    assert rows[0][5] > 1_600_000_000 * 10**9


def test_a_record_made_and_deleted_in_one_transaction_leaves_no_trace(catalog: Catalog) -> None:
    """Nobody could have seen it."""
    with catalog.write("x") as tx:
        layers.create_layer(tx, Layer("a"))
        layers.delete_layer(tx, "a")

    assert catalog.connection().execute("SELECT count(*) FROM event").fetchone()[0] == 0
