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
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

from blake3 import blake3

from lading.errors import DuplicateID, InUse, InvalidInput, LayerUnknown, NotFound
from lading.flows import damage, dockerarchive, images, ingest, layers, records, stores
from lading.flows.context import Context, Progress
from lading.flows.tidying import tidying
from lading.values import Image, Layer, Readable, printable

#: Documents (index, manifest, config) are read into memory; real ones are a few KiB.
DOCUMENT_SIZE_MAX: Final = 4 << 20

#: Indexes may point to indexes; real ones do so once.
INDEX_DEPTH_MAX: Final = 4

#: Images that one layout may list.
IMAGES_MAX: Final = 10_000

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
        # A pipe in place of a file would keep us waiting for its other end.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
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

    def named(self, name: str) -> _Source:
        """The same image under a name, if it has one."""
        return replace(self, names=(name,)) if name else self

    @property
    def image_id(self) -> str:
        """32 hex digits drawn from the config's digest: the same image imported twice has one id."""
        return hashlib.sha256(self.config).hexdigest()[:32]


#: How often an import begins again because layers that it found are deleted under its hands.
_TRIES: Final = 10


def import_image(context: Context, source: str, *, names: Sequence[str], progress: Progress | None) -> list[Image]:
    """Import images from ``oci:DIR[:TAG]`` or ``docker-archive:FILE``."""
    context.need_writable()
    wanted = records.check_names(names)
    found = sources(source)
    if wanted and len(found) > 1:
        raise InvalidInput(f"{printable(source)} holds {len(found)} images: name one of them by its tag")
    for image in found:
        records.check_names(image.names)
    made: list[str] = []
    recorded: list[str] = []
    tries = _TRIES
    while True:
        try:
            tops = [_store_layers(context, image, made, progress) for image in found]
            return [
                _store_record(context, image, top, (*wanted, *image.names), recorded)
                for image, top in zip(found, tops, strict=True)
            ]
        except BaseException as error:
            tries -= 1  # a layer that was found, and deleted by somebody before it was built on, is stored after all
            if not isinstance(error, LayerUnknown) or not tries:
                _undo(context, recorded, made)
                raise


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


def _undo(context: Context, recorded: Sequence[str], made: Sequence[str]) -> None:
    """Delete the images and layers of a failed import, but for layers that somebody built on meanwhile."""
    for image_id in reversed(recorded):
        with suppress(InUse, NotFound):
            images.delete_record(context, image_id)
    for layer_id in reversed(made):
        with (
            tidying(f"layer {layer_id} of a failed import", later="delete it when it is not wanted"),
            suppress(InUse, NotFound),
        ):
            layers.delete(context, layer_id)


def _store_layers(context: Context, source: _Source, made: list[str], progress: Progress | None) -> str:
    """Store the layers that are not there, named by their chain so that images share them."""
    top, chain = "", ""
    done = 0
    for (blob, digest), diff_id in zip(source.layers, source.diff_ids, strict=True):
        chain = diff_id if not chain else f"sha256:{hashlib.sha256(f'{chain} {diff_id}'.encode()).hexdigest()}"
        layer_id = blake3(chain.encode()).hexdigest(16)
        present = layers.find(context, layer_id)
        if present is None or present.id != layer_id or present.diff_digest != diff_id or present.parent != top:
            try:
                present = _store_layer(context, blob, digest, diff_id, top, layer_id, _shifted(progress, done))
                made.append(present.id)
            except DuplicateID:  # another import of the same was quicker, and did the same
                present = layers.get(context, layer_id)
                if present.diff_digest != diff_id or present.parent != top:
                    raise
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
        return layers.import_layer(context, stream, wanted, expected=digest, diff_id=diff_id, progress=progress)


def _shifted(progress: Progress | None, done: int) -> Progress | None:
    if progress is None:
        return None
    return lambda now, total: progress(done + now, total)


def _store_record(context: Context, source: _Source, top: str, names: Sequence[str], recorded: list[str]) -> Image:
    """Make the image's record, which is noted, or give the record that is there the names."""
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
    new = images.NewImage(
        top, id=image_id, digest=manifest_digest, big_data=data, created_ns=_created(source.created), moved_names=chosen
    )
    try:
        images.create(context, new)
        recorded.append(image_id)
    except DuplicateID:  # another import of the same was quicker
        if images.get(context, image_id).layer != top:
            raise
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
    moment = int(seconds) * 1_000_000_000 + fraction
    return moment if abs(moment) < 1 << 63 else None  # years that 64 bits of nanoseconds do not reach


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
    known: dict[str, list[_Source]] = {}
    found: list[_Source] = []
    for descriptor in _list(index, "manifests", "index.json"):
        name = _annotation(descriptor, REF_NAME)
        if tag is None or name == tag:
            found += [source.named(name) for source in _manifests(folder, descriptor, known, 0)]
            _check_count(found)
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


def _manifests(folder: Path, descriptor: Any, known: dict[str, list[_Source]], depth: int) -> list[_Source]:
    """Follow a descriptor to the manifests of this machine's architecture; each document is read once."""
    blob, digest = _blob(folder, descriptor)
    if digest in known:
        return known[digest]
    data = _described(blob, digest)
    document = _document(data, f"blob {digest}")
    media_type = descriptor.get("mediaType")
    if media_type in INDEX_TYPES or (media_type not in MANIFEST_TYPES and "manifests" in document):
        if depth >= INDEX_DEPTH_MAX:
            raise InvalidInput(f"indexes are nested more than {INDEX_DEPTH_MAX} deep")
        found: list[_Source] = []
        for inner in _for_this_machine(_list(document, "manifests", f"index {digest}")):
            found += _manifests(folder, inner, known, depth + 1)
            _check_count(found)
    else:
        found = [_oci_image(folder, data, document)]
    known[digest] = found
    return found


def _check_count(found: Sequence[_Source]) -> None:
    """Refuse indexes that name each other's images over and over."""
    if len(found) > IMAGES_MAX:
        raise InvalidInput(f"the layout lists more than {IMAGES_MAX} images")


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


def _described(blob: _Blob, digest: str) -> bytes:
    """Read a document, checking its digest."""
    data = blob.read(f"blob {digest}")
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        raise InvalidInput(f"blob {digest} does not have its digest")
    return data


def _blob(folder: Path, descriptor: Any) -> tuple[_Blob, str]:
    if not isinstance(descriptor, dict) or not isinstance(descriptor.get("digest"), str):
        raise InvalidInput("a descriptor has no digest")
    digest: str = descriptor["digest"]
    ingest.check_digest(digest)
    if not digest.startswith("sha256:"):
        raise InvalidInput(f"blob {digest}: only sha256 is supported")
    path = folder / "blobs" / "sha256" / digest.removeprefix("sha256:")
    try:
        status = path.stat()
    except OSError as error:
        raise InvalidInput(f"blob {digest}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise InvalidInput(f"blob {digest} is no file")
    size, said = status.st_size, descriptor.get("size")
    if said != size:
        raise InvalidInput(f"blob {digest} has {size} bytes, not {printable(str(said))}")
    return _Blob(path, 0, size), digest


def _oci_image(folder: Path, manifest: bytes, document: dict[str, Any]) -> _Source:
    config_blob, config_digest = _blob(folder, document.get("config"))
    config = _described(config_blob, config_digest)
    parsed = _document(config, f"config {config_digest}")
    blobs = tuple(_blob(folder, item) for item in _list(document, "layers", "the manifest"))
    diff_ids = _diff_ids(parsed, len(blobs))
    created = str(parsed.get("created", ""))
    return _Source(manifest, config, config_digest, blobs, diff_ids, (), created)


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
    members = {name: _Blob(path, offset, size) for name, (offset, size) in dockerarchive.members(path).items()}
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
