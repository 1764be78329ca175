"""The catalog's tables, as peewee models bound to no database.

The models describe; queries name the database they run on. Tables are private: what users ask are the
views of ``views.py``. The same models serve SQLite and PostgreSQL.
"""

from __future__ import annotations

from typing import Final

from peewee import (
    SQL,
    BigIntegerField,
    BlobField,
    Check,
    CompositeKey,
    ForeignKeyField,
    IntegerField,
    Model,
    TextField,
)


class Table(Model):
    """Base of all tables."""


def _trigger(name: str, event: str, act: str) -> SQL:
    """A statement that the database adds to every change of a kind; peewee makes it with the indexes."""
    return SQL(f"CREATE TRIGGER {name} AFTER {event} BEGIN {act} END")


def _account(sign: str, row: str) -> str:
    """Enter an object into, or take it from, the account of its pack."""
    return (
        f"UPDATE pack SET live = live {sign} {row}.stored_size, objects = objects {sign} 1 "
        f"WHERE id = {row}.pack_id AND settled;"
    )


def _suspect(content: str) -> str:
    """Note a content."""
    return f"INSERT INTO content_suspect (content_id) VALUES ({content}) ON CONFLICT DO NOTHING;"


class Meta(Table):
    """Facts about the store itself: its id, its format, the head of the journal."""

    key = TextField(primary_key=True)
    value = TextField()

    class Meta:
        table_name = "meta"
        without_rowid = True


class Pack(Table):
    """A published pack file.

    ``epoch`` is the one its writer held. Until a collection has looked at the pack after that epoch ended
    (``settled``), some of its objects may have been written for nothing. ``payload`` is the stored size of
    all objects it was written with; the rest of ``size`` is head, index and footer. ``live`` and ``objects``
    are the stored bytes and the number of those that are left; they mean something once the pack is settled,
    and are exact from then on.
    """

    name = TextField(unique=True)
    size = BigIntegerField()
    payload = BigIntegerField()
    epoch = BigIntegerField(default=0)
    settled = IntegerField(default=0)
    live = BigIntegerField(constraints=[SQL("DEFAULT 0")])
    objects = IntegerField(constraints=[SQL("DEFAULT 0")])

    class Meta:
        table_name = "pack"
        indexes = (
            SQL("CREATE INDEX pack_unsettled ON pack (epoch) WHERE NOT settled"),
            SQL("CREATE INDEX pack_worn ON pack (id) WHERE settled AND (live < payload OR objects = 0)"),
            SQL("CREATE INDEX pack_small ON pack (name) WHERE settled AND size < 1048576"),
        )


class Object(Table):
    """A byte string, named by the BLAKE3 of its plain bytes, and where it lies.

    ``condemned`` is the epoch in which gc called it garbage; look-ups treat such a row as absent, and
    storing the same content again takes the row over. ``damaged_at`` is when its bytes were found to be wrong,
    in nanoseconds since 1970: look-ups before storing treat such a row as absent, too, so that the same content
    heals it when it comes in again. Reading still tries.
    """

    digest = BlobField(unique=True)
    kind = IntegerField()
    pack = ForeignKeyField(Pack, on_delete="RESTRICT", index=True)
    offset = BigIntegerField()
    stored_size = BigIntegerField()
    size = BigIntegerField()
    codec = IntegerField()
    frames = BlobField(null=True)
    condemned = BigIntegerField(null=True)
    verified_at = BigIntegerField(null=True)
    damaged_at = BigIntegerField(null=True)

    class Meta:
        table_name = "object"
        indexes = (
            SQL("CREATE INDEX object_condemned ON object (condemned) WHERE condemned IS NOT NULL"),
            SQL("CREATE INDEX object_damaged ON object (damaged_at) WHERE damaged_at IS NOT NULL"),
            _trigger("object_added", "INSERT ON object", _account("+", "NEW")),
            _trigger(
                "object_moved",
                "UPDATE OF pack_id, stored_size ON object",
                f"{_account('-', 'OLD')} {_account('+', 'NEW')}",
            ),
            _trigger("object_gone", "DELETE ON object", _account("-", "OLD")),
        )


class Path(Table):
    """A path of any content, once. ``path`` is text in the encoding of ``paths.py``; "" is the root."""

    parent = ForeignKeyField("self", null=True, on_delete="RESTRICT", index=True)
    path = TextField(unique=True)

    class Meta:
        table_name = "path"


class Inode(Table):
    """Distinct file metadata and content, once. ``key`` is ``values.inode_key``."""

    key = BlobField(unique=True)
    type = TextField()
    mode = IntegerField()
    uid = BigIntegerField()
    gid = BigIntegerField()
    mtime_ns = BigIntegerField()
    size = BigIntegerField()
    object = ForeignKeyField(Object, null=True, on_delete="RESTRICT", index=True)
    link_target = BlobField(null=True)
    rdev = BigIntegerField(null=True)
    xattrs = BlobField(null=True)
    sparse = BlobField(null=True)

    class Meta:
        table_name = "inode"


class Content(Table):
    """A sealed set of changes, shared by every layer that has it.

    ``key`` is the diff's ``sha256:…`` for a content that came as a tar, ``native:…`` (BLAKE3 of the
    canonical listing) for one made from a write area; it is set when the content becomes ready.
    ``recipe`` is the object that gives the stream back: the tar's recipe, or the listing.
    """

    key = TextField(null=True, unique=True)
    diff_id = TextField(null=True, unique=True)
    size = BigIntegerField(default=0)
    recipe = ForeignKeyField(Object, null=True, on_delete="RESTRICT", index=True)
    state = TextField(constraints=[Check("state IN ('building', 'ready', 'condemned')")])
    epoch = BigIntegerField(default=0)
    entries = IntegerField(default=0)
    diff_bytes = BigIntegerField(default=0)
    uids = TextField(default="[]")
    gids = TextField(default="[]")

    class Meta:
        table_name = "content"
        indexes = (
            SQL("CREATE INDEX content_hidden ON content (state, epoch) WHERE state <> 'ready'"),
            _trigger("content_added", "INSERT ON content WHEN NEW.state = 'ready'", _suspect("NEW.id")),
            _trigger("content_ready", "UPDATE OF state ON content WHEN NEW.state = 'ready'", _suspect("NEW.id")),
        )


class ContentObject(Table):
    """An object that a content's recipe names and none of its entries has: of a file that a later one replaced."""

    content = ForeignKeyField(Content, on_delete="RESTRICT", index=False)
    object = ForeignKeyField(Object, on_delete="RESTRICT", index=True)

    class Meta:
        table_name = "content_object"
        primary_key = CompositeKey("content", "object")
        without_rowid = True


class Entry(Table):
    """The effective tree of a content, a row per path. ``kind``: 0 present, 1 implied, 2 whiteout.

    ``link_path_id`` is a path of the same content (whose own row keeps it alive), so it carries no
    constraint: one would need an index of its own to keep deletes cheap.
    """

    content = ForeignKeyField(Content, on_delete="RESTRICT", index=False)
    path = ForeignKeyField(Path, on_delete="RESTRICT", index=True)
    seq = IntegerField()
    kind = IntegerField()
    opaque = IntegerField(default=0)
    inode = ForeignKeyField(Inode, null=True, on_delete="RESTRICT", index=True)
    link_path_id = IntegerField(null=True)

    class Meta:
        table_name = "entry"
        primary_key = CompositeKey("content", "path")
        without_rowid = True


class Layer(Table):
    """A layer. ``seq`` is creation order. Links to other records are plain ids, without constraint."""

    seq = IntegerField(primary_key=True)
    id = TextField(unique=True)
    parent = TextField(default="", index=True)
    metadata = TextField(default="")
    mount_label = TextField(default="")
    created_ns = BigIntegerField()
    compressed_digest = TextField(default="", index=True)
    compressed_size = BigIntegerField(default=0)
    diff_digest = TextField(default="", index=True)
    diff_size = BigIntegerField(default=0)
    toc_digest = TextField(default="", index=True)
    compression = IntegerField(default=0)
    uids = TextField(default="[]")
    gids = TextField(default="[]")
    flags = TextField(default="{}")
    uidmap = TextField(default="[]")
    gidmap = TextField(default="[]")
    replay_content = ForeignKeyField(Content, null=True, on_delete="RESTRICT", index=True)
    write_area = IntegerField(default=0)
    write_kind = TextField(default="")
    root_mode = IntegerField(default=0o555)
    root_uid = BigIntegerField(default=0)
    root_gid = BigIntegerField(default=0)

    class Meta:
        table_name = "layer"
        indexes = (
            _trigger(
                "layer_replay_changed",
                "UPDATE OF replay_content_id ON layer WHEN OLD.replay_content_id IS NOT NULL "
                "AND OLD.replay_content_id IS NOT NEW.replay_content_id",
                _suspect("OLD.replay_content_id"),
            ),
            _trigger(
                "layer_replay_gone",
                "DELETE ON layer WHEN OLD.replay_content_id IS NOT NULL",
                _suspect("OLD.replay_content_id"),
            ),
        )


class LayerContent(Table):
    """The sealed contents of a layer, lowest first."""

    layer = ForeignKeyField(Layer, on_delete="CASCADE", index=False)
    position = IntegerField()
    content = ForeignKeyField(Content, on_delete="RESTRICT", index=True)

    class Meta:
        table_name = "layer_content"
        primary_key = CompositeKey("layer", "position")
        without_rowid = True
        indexes = (_trigger("layer_content_gone", "DELETE ON layer_content", _suspect("OLD.content_id")),)


class Image(Table):
    """An image. ``layer`` is the top layer's id, or empty."""

    seq = IntegerField(primary_key=True)
    id = TextField(unique=True)
    digest = TextField(default="", index=True)
    layer = TextField(default="", index=True)
    mapped_layers = TextField(default="[]")
    names_history = TextField(default="[]")
    metadata = TextField(default="")
    created_ns = BigIntegerField()
    flags = TextField(default="{}")

    class Meta:
        table_name = "image"
        indexes = (SQL("CREATE INDEX image_mapped ON image (seq) WHERE mapped_layers <> '[]'"),)


class Container(Table):
    """A container: a record that owns one writable layer."""

    seq = IntegerField(primary_key=True)
    id = TextField(unique=True)
    image = TextField(default="", index=True)
    layer = TextField(default="", index=True)
    metadata = TextField(default="")
    created_ns = BigIntegerField()
    uidmap = TextField(default="[]")
    gidmap = TextField(default="[]")
    flags = TextField(default="{}")

    class Meta:
        table_name = "container"


class LayerName(Table):
    """A layer's name; ``position`` orders the names of one layer."""

    name = TextField(primary_key=True)
    owner = ForeignKeyField(Layer, on_delete="CASCADE", index=True)
    position = IntegerField()

    class Meta:
        table_name = "layer_name"
        without_rowid = True


class ImageName(Table):
    """An image's name."""

    name = TextField(primary_key=True)
    owner = ForeignKeyField(Image, on_delete="CASCADE", index=True)
    position = IntegerField()

    class Meta:
        table_name = "image_name"
        without_rowid = True


class ContainerName(Table):
    """A container's name."""

    name = TextField(primary_key=True)
    owner = ForeignKeyField(Container, on_delete="CASCADE", index=True)
    position = IntegerField()

    class Meta:
        table_name = "container_name"
        without_rowid = True


class LayerData(Table):
    """A big data item of a layer; its bytes are an object."""

    owner = ForeignKeyField(Layer, on_delete="CASCADE", index=False)
    key = TextField()
    position = IntegerField()
    object = ForeignKeyField(Object, null=True, on_delete="RESTRICT", index=True)
    size = BigIntegerField()
    digest = TextField(default="")

    class Meta:
        table_name = "layer_data"
        primary_key = CompositeKey("owner", "key")
        without_rowid = True


class ImageData(Table):
    """A big data item of an image."""

    owner = ForeignKeyField(Image, on_delete="CASCADE", index=False)
    key = TextField()
    position = IntegerField()
    object = ForeignKeyField(Object, null=True, on_delete="RESTRICT", index=True)
    size = BigIntegerField()
    digest = TextField(default="", index=True)

    class Meta:
        table_name = "image_data"
        primary_key = CompositeKey("owner", "key")
        without_rowid = True


class ContainerData(Table):
    """A big data item of a container."""

    owner = ForeignKeyField(Container, on_delete="CASCADE", index=False)
    key = TextField()
    position = IntegerField()
    object = ForeignKeyField(Object, null=True, on_delete="RESTRICT", index=True)
    size = BigIntegerField()
    digest = TextField(default="")

    class Meta:
        table_name = "container_data"
        primary_key = CompositeKey("owner", "key")
        without_rowid = True


class Transient(Table):
    """A container, or its layer, that ends with the run root it was made under."""

    kind = TextField()
    record_id = TextField()

    class Meta:
        table_name = "transient"
        primary_key = CompositeKey("kind", "record_id")
        without_rowid = True


class ContentSuspect(Table):
    """A content that a layer may have lost, or that has just become ready: the next collection looks who has it.

    Only triggers write here, so that no change of a layer can forget to.
    """

    content_id = IntegerField(primary_key=True)

    class Meta:
        table_name = "content_suspect"


class StaleView(Table):
    """The key of a content that was condemned: the next collection drops its views from the cache."""

    key = TextField(primary_key=True)

    class Meta:
        table_name = "stale_view"
        without_rowid = True


class Suspect(Table):
    """An object that lost a reference: the next collection looks whether it was the last."""

    object_id = IntegerField(primary_key=True)

    class Meta:
        table_name = "suspect"


class Event(Table):
    """The audit log: one row per change of a record. States are JSON, without argument values."""

    seq = IntegerField(primary_key=True)
    at_ns = BigIntegerField()
    verb = TextField()
    kind = TextField()
    record_id = TextField()
    before = TextField(null=True)
    after = TextField(null=True)

    class Meta:
        table_name = "event"
        indexes = ((("kind", "record_id"), False),)


class CacheEntry(Table):
    """What derived views take on disk, by class. Rows follow the disk; the disk is the truth."""

    kind = TextField()
    key = TextField()
    size = BigIntegerField()

    class Meta:
        table_name = "cache_entry"
        primary_key = CompositeKey("kind", "key")
        without_rowid = True


TABLES: Final[tuple[type[Table], ...]] = (
    Meta, Pack, Object, Path, Inode, Content, ContentObject, Entry, Layer, LayerContent, Image, Container,
    LayerName, ImageName, ContainerName, LayerData, ImageData, ContainerData, Transient, Suspect, ContentSuspect,
    StaleView, Event, CacheEntry,
)  # fmt: skip
