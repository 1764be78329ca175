"""Damaging stores on purpose, and telling what a repair may not have touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lading import Store
from lading.values import Location


def location(store: Store, digest: bytes) -> Location:
    """Where an object lies."""
    return store._context.locate([digest])[digest]


def pack_of(store: Store, digest: bytes) -> Path:
    """The file of an object's pack."""
    return store._context.layout.pack(location(store, digest).pack)


def spoil(store: Store, digest: bytes) -> None:
    """Change a byte in the middle of an object."""
    place = location(store, digest)
    _overwrite(store, pack_of(store, digest), place.offset + place.stored_size // 2)


def spoil_index(store: Store, digest: bytes) -> None:
    """Change a byte of the index of an object's pack."""
    path = pack_of(store, digest)
    _overwrite(store, path, path.stat().st_size - 80)


def cut(store: Store, digest: bytes) -> None:
    """Cut an object's pack in the object's middle."""
    place = location(store, digest)
    path = pack_of(store, digest)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.truncate(place.offset + place.stored_size // 2)


def lose(store: Store, digest: bytes) -> None:
    """Remove an object's pack."""
    pack_of(store, digest).unlink()
    store._context.backend.close()  # a pack that is open is served on


def _overwrite(store: Store, path: Path, position: int) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0xFF]))
    store._context.backend.close()


def rows(store: Store, statement: str, *values: object) -> list[Any]:
    """Ask the catalog's tables."""
    with store._context.catalog.read() as conn:
        return list(conn.execute(statement, values).fetchall())


def object_at(store: Store, path: str) -> bytes:
    """Digest of a file's content."""
    query = (
        "SELECT o.digest FROM entry e JOIN path p ON p.id = e.path_id JOIN inode i ON i.id = e.inode_id "
        "JOIN object o ON o.id = i.object_id WHERE p.path = ?"
    )
    return bytes(rows(store, query, path)[0][0])


def recipe_of(store: Store, key: str) -> bytes:
    """Digest of a content's recipe or listing."""
    query = "SELECT o.digest FROM content c JOIN object o ON o.id = c.recipe_id WHERE c.key = ?"
    return bytes(rows(store, query, key)[0][0])


def places(store: Store) -> dict[bytes, Location]:
    """Where every object lies."""
    return store._context.locate([bytes(row[0]) for row in rows(store, "SELECT digest FROM object")])  # type: ignore[return-value]


def records(store: Store) -> list[Any]:
    """Everything that is recorded but where objects lie."""
    tables = (
        "layer", "image", "container", "layer_name", "image_name", "container_name", "layer_data", "image_data",
        "container_data", "content", "layer_content", "entry", "inode", "path", "event", "content_object",
    )  # fmt: skip
    return [rows(store, f"SELECT * FROM {table}") for table in tables]


def broken(store: Store) -> list[str]:
    """What a check that reads everything finds of records and of the store itself."""
    return [f"{finding.kind} {finding.message}" for finding in store.check(content=True).findings]
