"""Targets about what other programs wrote: compressed streams, OCI layouts, configuration files."""

from __future__ import annotations

import atexit
import bz2
import gzip
import hashlib
import io
import json
import lzma
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pyzstd

from lading import Store, config, driveroptions, storageconf
from lading.errors import InvalidInput, LadingError
from lading.objects import streams
from lading.settings import choose_compatible
from tests.fuzz.draw import Draw, check_message
from tests.tarmake import END, file, tree

#: Plain bytes after which a stream is not read on.
PLAIN_MAX = 8 << 20

_PLAIN = (b"", b"x", b"hello, layer", bytes(5000), bytes(range(256)) * 40, END)


class _Slow:
    """A source that hands out as little as it likes."""

    def __init__(self, data: bytes, step: int) -> None:
        self._file = io.BytesIO(data)
        self._step = step

    def read(self, size: int = -1, /) -> bytes:
        return self._file.read(min(size, self._step))


def run_streams(data: bytes) -> None:
    """Any bytes, or members of one compression in a row with some bytes changed, added or cut off."""
    draw = Draw(data)
    step = draw.pick((1, 7, 61, 4096, 1 << 20))
    if draw.chance(2):
        _decode(draw.rest(), step)
        return
    packed, plain, compression = _members(draw)
    changed = bytearray(packed)
    for _ in range(draw.below(4)):
        if changed:
            changed[draw.number(2) % len(changed)] ^= draw.byte()
    if draw.chance(4):
        del changed[draw.number(2) % (len(changed) + 1) :]
    if draw.chance(6):
        changed += draw.some(40)
    found = _decode(bytes(changed), step)
    if bytes(changed) == packed:
        assert found == plain, "a sound stream is refused or read wrongly"
    elif found is not None and streams.detect(bytes(changed)) == compression and len(changed) == len(packed):
        _compare(bytes(changed), compression, found)


def _members(draw: Draw) -> tuple[bytes, bytes, int]:
    compression = 1 + draw.below(4)
    out, plain = [], []
    for _ in range(1 + draw.below(5)):
        part = draw.pick(_PLAIN) if draw.chance(2) else draw.some(60)
        plain.append(part)
        match compression:
            case streams.GZIP:
                out.append(gzip.compress(part, draw.below(10), mtime=0))
            case streams.BZIP2:
                out.append(bz2.compress(part, 1 + draw.below(9)))
            case streams.XZ:
                out.append(
                    lzma.compress(
                        part, check=draw.pick((lzma.CHECK_CRC32, lzma.CHECK_SHA256, lzma.CHECK_NONE)), preset=0
                    )
                )
                out.append(bytes(4 * draw.below(5)))
            case _:
                options: dict[int, int] = {pyzstd.CParameter.checksumFlag: draw.below(2)}
                out.append(pyzstd.compress(part, options))
                if draw.chance(3):
                    skipped = draw.some(20)
                    out.append(b"\x5a\x2a\x4d\x18" + len(skipped).to_bytes(4, "little") + skipped)
    return b"".join(out), b"".join(plain), compression


def _decode(data: bytes, step: int) -> bytes | None:
    stream = streams.InputStream(_Slow(data, step))
    try:
        parts, size = [], 0
        while part := stream.read(1 << 16):
            assert len(part) <= 1 << 16
            parts.append(part)
            size += len(part)
            if size > PLAIN_MAX:
                return None
        summary = stream.summary()
    except InvalidInput as error:
        check_message(error)
        return None
    finally:
        stream.close()
    plain = b"".join(parts)
    assert summary.diff_size == len(plain)
    assert summary.diff_digest == "sha256:" + hashlib.sha256(plain).hexdigest()
    assert summary.compressed_size == len(data)
    assert summary.compressed_digest == "sha256:" + hashlib.sha256(data).hexdigest()
    return plain


def _compare(data: bytes, compression: int, found: bytes) -> None:
    """What was accepted although bytes were changed, the reference decoders accept, too, with the same answer."""
    match compression:
        case streams.GZIP:
            assert gzip.decompress(data) == found
        case streams.BZIP2:
            assert bz2.decompress(data) == found
        case streams.XZ:
            parts = []
            while data:
                decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ)
                parts.append(decoder.decompress(data))
                assert decoder.eof
                data = decoder.unused_data.lstrip(b"\0")
            assert b"".join(parts) == found
        case _:
            pass  # libzstd takes damage without a checksum for content or not by how it is fed


#: A layer that is sound, one of many members, and one that is none.
_LAYERS = (
    tree({"etc/hosts": b"127.0.0.1\n", "bin": None}), gzip.compress(tree({"new": b"1"}), mtime=0), b"junk" * 300, b"",
    file(b"../climbs") + END,
)  # fmt: skip
SEPARATOR = b"\n---\n"


@cache
def _store() -> Store:
    folder = tempfile.mkdtemp(prefix="lading-fuzz-", dir="/dev/shm")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Store.open(Path(folder, "root"), run=Path(folder, "run"), driver="vfs")


def run_oci(data: bytes) -> None:
    """A layout's documents with right digests, wrong ones where the input says so; refused ones leave nothing."""
    store = _store()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        _write_layout(folder, data)
        try:
            found = store.import_image(f"oci:{folder}")
        except LadingError as error:
            check_message(error)
            assert store.images.all() == []
            assert store.layers.all() == []
            return
    for image_id in {image.id for image in found}:
        assert b"".join(store.images.data(image_id, "manifest"))
        store.images.delete(image_id)
    assert store.layers.all() == []


def _write_layout(folder: Path, data: bytes) -> None:
    """Documents stand one behind the other, the index last: ``@N`` is the descriptor of document N, ``#N`` of layer N."""
    (folder / "blobs/sha256").mkdir(parents=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    layers = [_blob(folder, layer) for layer in _LAYERS]
    documents: list[tuple[str, int]] = []
    *inner, index = data.split(SEPARATOR)
    for document in inner[:8]:
        documents.append(_blob(folder, _filled(document, documents, layers)))
    (folder / "index.json").write_bytes(_filled(index, documents, layers))


def _blob(folder: Path, data: bytes) -> tuple[str, int]:
    name = hashlib.sha256(data).hexdigest()
    (folder / "blobs/sha256" / name).write_bytes(data)
    return f"sha256:{name}", len(data)


def _filled(document: bytes, documents: list[tuple[str, int]], layers: list[tuple[str, int]]) -> bytes:
    def descriptor(match: re.Match[bytes]) -> bytes:
        known = documents if match[1] == b"@" else layers
        number = int(match[2])
        digest, size = known[number] if number < len(known) else ("sha256:" + "0" * 64, 7)
        return f'"digest": "{digest}", "size": {size}'.encode()

    def diff_id(match: re.Match[bytes]) -> bytes:
        number = int(match[1])
        plain = _LAYERS[number] if number < len(_LAYERS) else b""
        if plain.startswith(b"\x1f\x8b"):
            plain = gzip.decompress(plain)
        return b'"sha256:' + hashlib.sha256(plain).hexdigest().encode() + b'"'

    return re.sub(rb"\$(\d)", diff_id, re.sub(rb"([@#])(\d)", descriptor, document))


def oci_seeds() -> list[bytes]:
    """Layouts as they should be, one with two images and one with a nested index."""
    config = json.dumps({"created": "2024-01-02T03:04:05.6Z", "rootfs": {"type": "layers", "diff_ids": []}}).encode()
    config = config.replace(b"[]", b"[$0, $1]")
    manifest = b'{"schemaVersion": 2, "config": {@0}, "layers": [{#0}, {#1}]}'
    kind = b'"mediaType": "application/vnd.oci.image.manifest.v1+json"'
    tag = b'"annotations": {"org.opencontainers.image.ref.name": "v1"}'
    index = b'{"manifests": [{' + kind + b", @1, " + tag + b"}]}"
    two = b'{"manifests": [{' + kind + b", @1, " + tag + b"}, {" + kind + b", @3}]}"
    platform = b'"platform": {"os": "linux", "architecture": "amd64"}'
    nested = b'{"manifests": [{"mediaType": "application/vnd.oci.image.index.v1+json", @2}]}'
    lying = config.replace(b"[$0, $1]", b"[$1, $0]")
    return [
        SEPARATOR.join((config, manifest, index)),
        SEPARATOR.join(
            (
                config,
                manifest,
                config.replace(b"$0, $1", b"$0"),
                manifest.replace(b"@0", b"@2").replace(b", {#1}", b""),
                two,
            )
        ),
        SEPARATOR.join((config, manifest, b'{"manifests": [{@1, ' + platform + b"}]}", nested)),
        SEPARATOR.join((lying, manifest, index)),
        SEPARATOR.join((config.replace(b"$1", b"$2"), manifest.replace(b"#1", b"#2"), index)),
        SEPARATOR.join((config, manifest.replace(b"@0", b'"digest": "sha512:00", "size": 1'), index)),
    ]


@cache
def _conf_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="lading-fuzz-", dir="/dev/shm")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def run_conf(data: bytes) -> None:
    """Configuration files of both kinds, driver options, sizes: a value, or one line."""
    kind, text = data[:1], data[1:]
    path = _conf_folder() / "file.conf"
    match kind:
        case b"s" | b"c":
            path.write_bytes(text)
            environ = {"CONTAINERS_STORAGE_CONF": str(path), "HOME": "/root"}
            _attempt(lambda: storageconf.load(environ, 0))
            _attempt(lambda: storageconf.as_json(storageconf.load(environ, 1000, path=path, raw=True)))
            _attempt(lambda: choose_compatible(environ, 0, {}, {}))
        case b"l":
            path.write_bytes(text)
            _attempt(lambda: config.load({"LADING_CONFIG": str(path)}, 0))
        case b"e":
            options = text.decode("utf-8", "surrogateescape").replace("\0", "")
            _attempt(
                lambda: storageconf.load(
                    {"STORAGE_OPTS": options, "STORAGE_DRIVER": options[:9], "HOME": "/"}, 0, system=()
                )
            )
        case b"z":
            _attempt(lambda: driveroptions.parse_size(text.decode("utf-8", "surrogateescape")))
        case _:
            pairs = text.decode("utf-8", "surrogateescape").split("\n")
            for driver in ("overlay", "vfs"):
                _attempt(lambda driver=driver: driveroptions.parse(driver, pairs, filesystem=lambda: "extfs"))


def _attempt(act: object) -> None:
    try:
        act()  # type: ignore[operator]
    except LadingError as error:
        check_message(error, extra=32 << 10)


def conf_seeds() -> list[bytes]:
    """Files that say everything that can be said."""
    storage = b"""[storage]
driver = "overlay"
graphroot = "/var/lib/$NAME/x${UID}"
runroot = "/run/x"
imagestore = "/var/lib/images"
driver_priority = ["overlay", "vfs"]
transient_store = true
rootless_storage_path = "$HOME/x"
[storage.options]
size = "10g"
additionalimagestores = ["/usr/lib/images"]
additionallayerstores = ["/usr/lib/layers:ref"]
root-auto-userns-user = "containers"
auto-userns-min-size = 1024
auto-userns-max-size = 65536
disable-volatile = true
pull_options = {enable_partial_images = "true", use_hard_links = "false", ostree_repos = ""}
[storage.options.overlay]
mountopt = "nodev,metacopy=on"
ignore_chown_errors = "false"
force_mask = "0700"
[storage.options.vfs]
ignore_chown_errors = "true"
[storage.options.thinpool]
size = "1"
"""
    lading = b"""root = "/var/lib/x"
run = "/run/x"
driver = "overlay"
strategy = "farm"
flatten_depth = 3
level = 5
wait_s = 2.5
workers = 2
additional_stores = ["/a", "/b"]
transient = false
mount_options = ["nodev"]
"""
    options = b"overlay.mountopt=nodev\n.size=10.5kib\noverlay.force_mask=0755\n.ignore_chown_errors=t\ninodes=5\nmount_program=/bin/x"
    return [
        b"s" + storage,
        b"l" + lading,
        b"e.size=1,overlay.mountopt=nodev",
        b"z12.5 GiB",
        b"o" + options,
        b"oimagestore=/tmp,/",
    ]
