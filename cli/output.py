"""What a terminal or a script gets to see: text lines, JSON, quoting, streams of bytes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, BinaryIO

from lading.errors import InvalidInput
from lading.values import Change, Container, IDMap, Image, Layer, Record, printable, tamed

_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def line(text: str, *, err: bool = False) -> None:
    """Print one line, whatever is in it: what a terminal would act on is escaped, tabs excepted."""
    stream = sys.stderr if err else sys.stdout
    stream.write(tamed(text) + "\n")


def data(text: str) -> None:
    """Print text that is the caller's own: as it is for scripts, line by line and escaped for terminals."""
    sys.stdout.write((tamed(text, keep="\t\n") if sys.stdout.isatty() else text) + "\n")


class Stream:
    """Standard output for a writer of whole rows: as it is for scripts, escaped for terminals."""

    def write(self, text: str) -> None:
        """Write a row and its end."""
        sys.stdout.write(tamed(text, keep="\t\n") if sys.stdout.isatty() else text)


def shown(text: str) -> str:
    """Make a name fit for one line of a terminal; ordinary names are as they are."""
    return text if text.isprintable() else printable(text)


def emit_json(value: Any) -> None:
    """Print a JSON document on one line, keys in the order given."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for char, escape in _ESCAPES.items():
        text = text.replace(char, escape)
    if not text.isprintable():
        text = _UNPRINTABLE.sub(_json_escape, text)
    line(text)


#: Beyond what ``json`` escapes: controls of C1, marks that turn the direction of writing, halves of pairs.
_UNPRINTABLE = re.compile("[^\x20-\x7e\xa1-\xac\xae-\u05ff]")


def _json_escape(found: re.Match[str]) -> str:
    char = found[0]
    return char if char.isprintable() or tamed(char) == char else json.dumps(char)[1:-1]


def sorted_map(values: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its keys in order."""
    return dict(sorted(values.items()))


def timestamp(nanoseconds: int) -> str:
    """RFC 3339 in UTC, with as many of nine fractional digits as are not zero."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    if not nanoseconds:
        return "0001-01-01T00:00:00Z"
    digits = f".{fraction:09d}".rstrip("0").rstrip(".")
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + digits + "Z"


def _filled(pairs: Iterable[tuple[str, Any]], always: frozenset[str]) -> dict[str, Any]:
    """Leave out what is empty, zero or false."""
    return {key: value for key, value in pairs if value or key in always}


def _maps(values: Iterable[IDMap]) -> list[dict[str, int]]:
    return [{"container_id": m.container_id, "host_id": m.host_id, "size": m.size} for m in values]


def layer_json(layer: Layer) -> dict[str, Any]:
    """A layer as scripts know it."""
    pairs = [
        ("id", layer.id), ("names", list(layer.names)), ("parent", layer.parent), ("metadata", layer.metadata),
        ("mountlabel", layer.mount_label), ("created", timestamp(layer.created_ns)),
        ("compressed-diff-digest", layer.compressed_digest), ("compressed-size", layer.compressed_size),
        ("diff-digest", layer.diff_digest), ("toc-digest", layer.toc_digest), ("diff-size", layer.diff_size),
        ("compression", layer.compression), ("uidset", list(layer.uids)), ("gidset", list(layer.gids)),
        ("flags", sorted_map(layer.flags)), ("uidmap", _maps(layer.uidmap)), ("gidmap", _maps(layer.gidmap)),
        ("big-data-names", list(layer.big_data_names)),
    ]  # fmt: skip
    return _filled(pairs, frozenset({"id", "created"}))


def image_json(image: Image) -> dict[str, Any]:
    """An image as scripts know it."""
    pairs = [
        ("id", image.id), ("digest", image.digest), ("names", list(image.names)),
        ("names-history", list(image.names_history)), ("layer", image.layer), ("mapped-layers", list(image.mapped_layers)),
        ("metadata", image.metadata), *_data_json(image), ("created", timestamp(image.created_ns)),
        ("flags", sorted_map(image.flags)),
    ]  # fmt: skip
    return _filled(pairs, frozenset({"id", "created"}))


def container_json(container: Container) -> dict[str, Any]:
    """A container as scripts know it."""
    pairs = [
        ("id", container.id), ("names", list(container.names)), ("image", container.image), ("layer", container.layer),
        ("metadata", container.metadata), *_data_json(container), ("created", timestamp(container.created_ns)),
        ("uidmap", _maps(container.uidmap)), ("gidmap", _maps(container.gidmap)), ("flags", sorted_map(container.flags)),
    ]  # fmt: skip
    return _filled(pairs, frozenset({"id", "image", "layer", "created"}))


def _data_json(record: Image | Container) -> list[tuple[str, Any]]:
    return [
        ("big-data-names", [item.key for item in record.big_data]),
        ("big-data-sizes", sorted_map({item.key: item.size for item in record.big_data})),
        ("big-data-digests", sorted_map({item.key: item.digest for item in record.big_data})),
    ]


def created_text(record: Record, as_json: Mapping[str, Any] | None) -> None:
    """Print a record that was just made: its id and names, or the whole record."""
    if as_json is not None:
        emit_json(as_json)
        return
    line(record.id)
    for name in record.names:
        line(f"\t{shown(name)}")


def change_line(change: Change) -> str:
    """``Modify "/path"``, with the path quoted for a terminal."""
    return f'{("Modify", "Add", "Delete")[change.kind]} "{printable(change.path)}"'


@contextmanager
def opened(path: str | None) -> Iterator[BinaryIO]:
    """Open an input file; without a path the standard input."""
    if path is None:
        yield sys.stdin.buffer
        return
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; only the opening is translated
    except OSError as error:
        raise file_error(path, error) from error
    with file:
        yield file


@contextmanager
def created(path: str | None) -> Iterator[BinaryIO]:
    """Create an output file; without a path the standard output."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        file = open(path, "wb")  # noqa: SIM115 - as above
    except OSError as error:
        raise file_error(path, error) from error
    with file:
        yield file


def file_error(path: str, error: OSError) -> InvalidInput:
    """Word an operating system's refusal as scripts know it."""
    return InvalidInput(f"open {printable(path)}: {(error.strerror or str(error)).lower()}")


def human_size(size: int) -> str:
    """A size for people, with the exact bytes left to the caller."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def table(columns: list[str], rows: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    """Lay rows out in columns: numbers to the right, text to the left."""
    texts = [[_cell(value) for value in row] for row in rows]
    heads = [shown(column) for column in columns]
    widths = [max(len(head), *(len(row[i]) for row in texts)) if texts else len(head) for i, head in enumerate(heads)]
    right = [bool(texts) and all(_is_number(row[i]) for row in texts) for i in range(len(heads))]
    yield "  ".join(
        head.rjust(w) if r else head.ljust(w) for head, w, r in zip(heads, widths, right, strict=True)
    ).rstrip()
    yield "  ".join("-" * width for width in widths)
    for row in texts:
        cells = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)]
        yield "  ".join(cells).rstrip()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return f"{value:g}"
    return shown(str(value))


def _is_number(text: str) -> bool:
    return not text or text.lstrip("-").replace(".", "", 1).isdigit()
