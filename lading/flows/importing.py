"""Images from elsewhere: OCI layouts and docker archives, every document kept byte for byte.

What a document says is checked before it is believed: sizes and digests of all blobs, diff ids of all
layers. All layers are stored first, the image record last: a failure leaves layers that nothing names,
which are deleted again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

from blake3 import blake3

from lading.errors import DuplicateID, InUse, InvalidInput, NotFound
from lading.flows import damage, images, ingest, layers, records, stores
from lading.flows.context import Context, Progress
from lading.values import Image, Layer, Readable, printable

#: Documents (index, manifest, config) are read into memory; real ones are a few KiB.
DOCUMENT_SIZE_MAX: Final = 4 << 20

#: Indexes may point to indexes; real ones do so once.
INDEX_DEPTH_MAX: Final = 4

MANIFEST_TYPES: Final = frozenset(
    {"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"}
)
INDEX_TYPES: Final = frozenset(
    {"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"}
)
REF_NAME: Final = "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True)
class _Blob:
    """Something to read: a file, or a range of one."""

    path: Path
    offset: int
    size: int

    @contextmanager
    def open(self) -> Iterator[Readable]:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            yield _Range(file, self.size)

    def read(self, what: str) -> bytes:
        if self.size > DOCUMENT_SIZE_MAX:
            raise InvalidInput(f"{what} has {self.size} bytes; at most {DOCUMENT_SIZE_MAX} are read")
        with self.open() as file:
            data = file.read(self.size)
        if len(data) != self.size:
            raise InvalidInput(f"{what}: unexpected EOF")
        return data


class _Range:
    """The next ``size`` bytes of a file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data


@dataclass(frozen=True, slots=True)
class _Source:
    """An image as some outside format describes it."""

    manifest: bytes
    config: bytes
    config_key: str
    layers: tuple[tuple[_Blob, str], ...]  #: blob, and the digest it must have as presented ("" = not said)
    diff_ids: tuple[str, ...]
    names: tuple[str, ...]
    created: str

    @property
    def image_id(self) -> str:
        """32 hex digits drawn from the config's digest: the same image imported twice has one id."""
        return hashlib.sha256(self.config).hexdigest()[:32]


def import_image(context: Context, source: str, *, names: Sequence[str], progress: Progress | None) -> list[Image]:
    """Import images from ``oci:DIR[:TAG]`` or ``docker-archive:FILE``."""
    context.need_writable()
    wanted = records.check_names(names)
    found = sources(source)
    if wanted and len(found) > 1:
        raise InvalidInput(f"{printable(source)} holds {len(found)} images: name one of them by its tag")
    return [_store(context, image, wanted, progress) for image in found]


def sources(source: str) -> list[_Source]:
    """Describe the images of ``oci:DIR[:TAG]`` or ``docker-archive:FILE``; layers are not read."""
    transport, colon, rest = source.partition(":")
    if not colon or not rest:
        raise InvalidInput(f'"{printable(source)}" is no source: give oci:DIR[:TAG] or docker-archive:FILE')
    match transport:
        case "oci":
            return _oci_layout(rest)
        case "docker-archive":
            return _docker_archive(Path(rest))
        case _:
            raise InvalidInput(f'unknown transport "{printable(transport)}": use oci: or docker-archive:')


def _store(context: Context, source: _Source, names: Sequence[str], progress: Progress | None) -> Image:
    """Store an image's layers, then its record with all its documents."""
    made: list[str] = []
    try:
        top = _store_layers(context, source, made, progress)
        return _store_record(context, source, top, (*names, *source.names))
    except BaseException:
        _undo(context, made)
        raise


def _undo(context: Context, made: Sequence[str]) -> None:
    """Delete the layers of a failed import, but for those that somebody built on meanwhile."""
    for layer_id in reversed(made):
        try:
            layers.delete(context, layer_id)
        except (InUse, NotFound):
            return


def _store_layers(context: Context, source: _Source, made: list[str], progress: Progress | None) -> str:
    """Store the layers that are not there, named by their chain so that images share them."""
    top, chain = "", ""
    done = 0
    for (blob, digest), diff_id in zip(source.layers, source.diff_ids, strict=True):
        chain = diff_id if not chain else f"sha256:{hashlib.sha256(f'{chain} {diff_id}'.encode()).hexdigest()}"
        layer_id = blake3(chain.encode()).hexdigest(16)
        present = layers.find(context, layer_id)
        if present is None or present.id != layer_id or present.diff_digest != diff_id or present.parent != top:
            present = _store_layer(context, blob, digest, diff_id, top, layer_id, _shifted(progress, done))
            made.append(present.id)
        elif damage.any_noted(stores.home(context, present)):
            _store_again(stores.home(context, present), blob, digest or diff_id)
        top = present.id
        done += blob.size
    return top


def _store_again(home: Context, blob: _Blob, digest: str) -> None:
    """Store the diff of a layer that is there: what of it is damaged heals."""
    if home.writable:
        with blob.open() as stream, ingest.ingesting(home, stream, expected=digest):
            pass


def _store_layer(
    context: Context, blob: _Blob, digest: str, diff_id: str, parent: str, layer_id: str, progress: Progress | None
) -> Layer:
    taken = layers.find(context, layer_id) is not None
    wanted = layers.NewLayer(parent=parent, id="" if taken else layer_id, read_only=True)
    with blob.open() as stream:
        layer = layers.import_layer(context, stream, wanted, expected=digest or diff_id, progress=progress)
    if layer.diff_digest != diff_id:
        layers.delete_unchecked(context, layer.id)
        raise InvalidInput(f"layer {layer.diff_digest} is not the one the config lists: {diff_id}")
    return layer


def _shifted(progress: Progress | None, done: int) -> Progress | None:
    if progress is None:
        return None
    return lambda now, total: progress(done + now, total)


def _store_record(context: Context, source: _Source, top: str, names: Sequence[str]) -> Image:
    """Make the image's record, or give the record that is there the names."""
    chosen = records.check_names(names)
    present = images.find(context, source.image_id)
    if present is not None and present.id == source.image_id:
        if present.layer == top:
            records.add_names(context, present.id, chosen)
            return images.get(context, present.id)
        raise DuplicateID(f'an image with ID "{present.id}" already exists')
    manifest_digest = f"sha256:{hashlib.sha256(source.manifest).hexdigest()}"
    data = {
        "manifest": source.manifest,
        f"manifest-{manifest_digest}": source.manifest,
        source.config_key: source.config,
    }
    image_id = source.image_id
    images.create(
        context,
        images.NewImage(top, id=image_id, digest=manifest_digest, big_data=data, created_ns=_created(source.created)),
    )
    if chosen:
        records.add_names(context, image_id, chosen)
    return images.get(context, image_id)


def _created(text: str) -> int | None:
    """Turn an RFC 3339 time into nanoseconds; None when it is none."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", text)
    if match is None:
        return None
    try:
        seconds = datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
    fraction = int((match[2] or ".0")[1:].ljust(9, "0"))
    return int(seconds) * 1_000_000_000 + fraction


def _document(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{what} is no JSON document") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} is no JSON object")
    return value


def _list(value: Mapping[str, Any], key: str, what: str) -> list[Any]:
    found = value.get(key)
    if not isinstance(found, list):
        raise InvalidInput(f"{what} has no list of {key}")
    return found


def _oci_layout(text: str) -> list[_Source]:
    """Read the manifests of an OCI layout, all or those of a tag."""
    folder, tag = _split_tag(text)
    if not (folder / "oci-layout").is_file() or not (folder / "index.json").is_file():
        raise InvalidInput(f"{printable(str(folder))} is no OCI layout: oci-layout or index.json is missing")
    index_file = folder / "index.json"
    index = _document(_Blob(index_file, 0, index_file.stat().st_size).read("index.json"), "index.json")
    found = [
        source
        for descriptor in _list(index, "manifests", "index.json")
        if tag is None or _annotation(descriptor, REF_NAME) == tag
        for source in _manifests(folder, descriptor, _annotation(descriptor, REF_NAME), 0)
    ]
    if not found:
        raise NotFound(f"{printable(str(folder))} has no image" + (f' tagged "{printable(tag)}"' if tag else ""))
    return found


def _split_tag(text: str) -> tuple[Path, str | None]:
    """Split ``DIR[:TAG]``; a folder whose own name holds a colon wins."""
    if os.path.isdir(text) or ":" not in text:
        return Path(text), None
    folder, _, tag = text.rpartition(":")
    return Path(folder), tag


def _annotation(descriptor: object, key: str) -> str:
    annotations = descriptor.get("annotations") if isinstance(descriptor, dict) else None
    value = annotations.get(key) if isinstance(annotations, dict) else None
    return value if isinstance(value, str) else ""


def _manifests(folder: Path, descriptor: Any, name: str, depth: int) -> Iterator[_Source]:
    """Follow a descriptor to the manifests of this machine's architecture."""
    blob, data = _described(folder, descriptor)
    media_type = descriptor.get("mediaType")
    document = _document(data, f"blob {blob}")
    if media_type in INDEX_TYPES or (media_type not in MANIFEST_TYPES and "manifests" in document):
        if depth >= INDEX_DEPTH_MAX:
            raise InvalidInput(f"indexes are nested more than {INDEX_DEPTH_MAX} deep")
        for inner in _for_this_machine(_list(document, "manifests", f"index {blob}")):
            yield from _manifests(folder, inner, name, depth + 1)
        return
    yield _oci_image(folder, data, document, name)


def _for_this_machine(descriptors: list[Any]) -> list[Any]:
    """Pick the manifest of this machine's platform; all when none says its platform."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    platforms = [(item, item.get("platform")) for item in descriptors if isinstance(item, dict)]
    if not any(isinstance(platform, dict) for _, platform in platforms):
        return descriptors
    chosen = [
        item
        for item, platform in platforms
        if isinstance(platform, dict) and platform.get("os") == "linux" and platform.get("architecture") == machine
    ]
    if not chosen:
        raise NotFound(f"the index has no image for linux/{machine}")
    return chosen[:1]


def _described(folder: Path, descriptor: Any) -> tuple[str, bytes]:
    """Read a document that a descriptor names, checking size and digest."""
    blob, digest = _blob(folder, descriptor)
    data = blob.read(f"blob {digest}")
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        raise InvalidInput(f"blob {digest} does not have its digest")
    return digest, data


def _blob(folder: Path, descriptor: Any) -> tuple[_Blob, str]:
    if not isinstance(descriptor, dict) or not isinstance(descriptor.get("digest"), str):
        raise InvalidInput("a descriptor has no digest")
    digest: str = descriptor["digest"]
    ingest.check_digest(digest)
    if not digest.startswith("sha256:"):
        raise InvalidInput(f"blob {digest}: only sha256 is supported")
    path = folder / "blobs" / "sha256" / digest.removeprefix("sha256:")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InvalidInput(f"blob {digest}: {error.strerror}") from error
    said = descriptor.get("size")
    if said != size:
        raise InvalidInput(f"blob {digest} has {size} bytes, not {printable(str(said))}")
    return _Blob(path, 0, size), digest


def _oci_image(folder: Path, manifest: bytes, document: dict[str, Any], name: str) -> _Source:
    config_digest, config = _described(folder, document.get("config"))
    parsed = _document(config, f"config {config_digest}")
    blobs = tuple(_blob(folder, item) for item in _list(document, "layers", "the manifest"))
    diff_ids = _diff_ids(parsed, len(blobs))
    return _Source(
        manifest, config, config_digest, blobs, diff_ids, (name,) if name else (), str(parsed.get("created", ""))
    )


def _diff_ids(config: dict[str, Any], count: int) -> tuple[str, ...]:
    rootfs = config.get("rootfs")
    if not isinstance(rootfs, dict):
        raise InvalidInput("the config has no rootfs")
    diff_ids = _list(rootfs, "diff_ids", "the config's rootfs")
    if len(diff_ids) != count:
        raise InvalidInput(f"the config lists {len(diff_ids)} layers, the manifest {count}")
    for diff_id in diff_ids:
        if not isinstance(diff_id, str) or not diff_id.startswith("sha256:"):
            raise InvalidInput("the config has a diff id that is no sha256 digest")
        ingest.check_digest(diff_id)
    return tuple(diff_ids)


def _docker_archive(path: Path) -> list[_Source]:
    """Read the images of a docker archive; it must be an uncompressed tar."""
    members = _members(path)
    manifest_blob = members.get("manifest.json")
    if manifest_blob is None:
        raise InvalidInput(f"{printable(str(path))} is no docker archive: manifest.json is missing")
    try:
        listed = json.loads(manifest_blob.read("manifest.json"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput("manifest.json is no JSON document") from error
    if not isinstance(listed, list) or not listed or not all(isinstance(item, dict) for item in listed):
        raise InvalidInput("manifest.json lists no images")
    manifest = manifest_blob.read("manifest.json")
    return [_docker_image(members, item, manifest) for item in listed]


def _members(path: Path) -> dict[str, _Blob]:
    """Index the regular files of a tar by name; links of a docker archive are resolved within it."""
    found: dict[str, _Blob] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            links: dict[str, str] = {}
            for member in archive:
                name = os.path.normpath(member.name)
                if member.isreg():
                    found[name] = _Blob(path, member.offset_data, member.size)
                elif member.issym():
                    links[name] = os.path.normpath(os.path.join(os.path.dirname(name), member.linkname))
                elif member.islnk():
                    links[name] = os.path.normpath(member.linkname)
    except OSError as error:
        raise InvalidInput(f"open {printable(str(path))}: {(error.strerror or 'cannot be read').lower()}") from error
    except tarfile.TarError as error:
        raise InvalidInput(f"{printable(str(path))} is no docker archive: {printable(str(error))}") from error
    for name, target in links.items():
        if target in found:
            found[name] = found[target]
    return found


def _docker_image(members: Mapping[str, _Blob], item: dict[str, Any], manifest: bytes) -> _Source:
    config = _member(members, item.get("Config")).read("config")
    parsed = _document(config, "config")
    blobs = tuple((_member(members, name), "") for name in _list(item, "Layers", "manifest.json"))
    diff_ids = _diff_ids(parsed, len(blobs))
    tags = item.get("RepoTags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise InvalidInput("manifest.json has tags that are no text")
    key = f"sha256:{hashlib.sha256(config).hexdigest()}"
    return _Source(manifest, config, key, blobs, diff_ids, tuple(tags), str(parsed.get("created", "")))


def _member(members: Mapping[str, _Blob], name: object) -> _Blob:
    found = members.get(os.path.normpath(name)) if isinstance(name, str) else None
    if found is None:
        raise InvalidInput(f'the archive has no "{printable(str(name))}"')
    return found
