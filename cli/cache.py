"""The command about the cache of views."""

from __future__ import annotations

from collections.abc import Sequence

import click

from lading.cli import output
from lading.cli.parse import FAILURE, json_option
from lading.cli.session import Session, command
from lading.errors import InvalidInput
from lading.values import printable

_VERBS = ("list", "size", "evict", "prefetch", "check")


@command(
    "cache",
    count=(1, None),
    usage="list|size|evict|prefetch IMAGE...|check",
    params=(
        click.option("--budget", "-b", default="0", metavar="SIZE", help="evict: what may stay, as 500M or 2GiB."),
        click.option("--dry-run", "-n", "dry_run", is_flag=True, help="evict: only tell what would go."),
        click.option("--flatten", is_flag=True, help="prefetch: make one view of all layers."),
        json_option,
    ),
)
def cache(session: Session, arguments: Sequence[str], budget: str, dry_run: bool, flatten: bool, as_json: bool) -> int:
    """Look at, trim, or fill the cache of views that mounts are made from."""
    verb, *rest = arguments
    if verb not in _VERBS:
        raise InvalidInput(f'cache: unknown verb "{printable(verb)}"; known: {", ".join(_VERBS)}')
    if bool(rest) != (verb == "prefetch"):
        raise InvalidInput(
            "cache prefetch needs an image" if verb == "prefetch" else f"cache {verb} takes no further argument"
        )
    if verb == "prefetch":
        return _prefetch(session, rest, flatten, as_json)
    if verb == "evict":
        return _evict(session, budget, dry_run, as_json)
    if verb == "check":
        return _check(session, as_json)
    return _size(session, as_json) if verb == "size" else _list(session, as_json)


def _list(session: Session, as_json: bool) -> int:
    views = session.store.cache.all()
    if as_json:
        output.emit_json(
            [
                {
                    "name": view.name, "kind": view.kind, "bytes": view.size, "used": output.timestamp(view.used_ns),
                    "mounted": view.mounted, "layers": list(view.layers),
                }
                for view in views
            ]
        )  # fmt: skip
        return 0
    rows = [
        (
            view.name, view.kind, view.size, output.timestamp(view.used_ns), "yes" if view.mounted else "no",
            " ".join(output.shown(layer) for layer in view.layers),
        )
        for view in views
    ]  # fmt: skip
    for text in output.table(["name", "kind", "bytes", "used", "mounted", "layers"], rows):
        output.line(text)
    return 0


def _size(session: Session, as_json: bool) -> int:
    sizes = session.store.cache.sizes()
    total = sum(sizes.values())
    if as_json:
        output.emit_json({**sizes, "total": total})
        return 0
    for text in output.table(["class", "bytes"], [*sizes.items(), ("total", total)]):
        output.line(text)
    return 0


def _evict(session: Session, budget: str, dry_run: bool, as_json: bool) -> int:
    gone = session.store.cache.evict(budget=budget, dry_run=dry_run)
    if as_json:
        output.emit_json(
            {"bytes": gone.bytes, "images": list(gone.images), "trees": list(gone.trees), "files": len(gone.pool)}
        )
        return 0
    word = "would free" if dry_run else "freed"
    output.line(
        f"{word} {gone.bytes} bytes: {len(gone.images)} images, {len(gone.trees)} trees, {len(gone.pool)} files"
    )
    return 0


def _prefetch(session: Session, refs: Sequence[str], flatten: bool, as_json: bool) -> int:
    done = [session.store.cache.prefetch(ref, flatten=flatten) for ref in refs]
    if as_json:
        output.emit_json([{"layer": item.layer, "views": list(item.views), "bytes": item.bytes} for item in done])
        return 0
    for item in done:
        output.line(f"{output.shown(item.layer)}: {len(item.views)} views, {item.bytes} bytes written")
    return 0


def _check(session: Session, as_json: bool) -> int:
    looked, damaged = session.store.cache.check()
    if as_json:
        output.emit_json({"images": looked, "damaged": damaged})
    else:
        for name in damaged:
            output.line(f"image {name} was damaged and is removed; the next mount writes it again")
        output.line(f"{looked} images looked at, {len(damaged)} damaged")
    return FAILURE if damaged else 0
