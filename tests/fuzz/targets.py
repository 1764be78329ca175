"""The table of targets: what runs an input, what it starts from, how its bytes are mutated."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lading.materialize.listing import listing
from tests import tarmake
from tests.fuzz import images, layers, outside, stored
from tests.fuzz.draw import Draw
from tests.materialize.conftest import MemorySource
from tests.objects.test_tar_hostile import REFUSED


@dataclass(frozen=True, slots=True)
class Target:
    """One thing to fuzz."""

    run: Callable[[bytes], None]  #: raises for a violation; anything but what it expects
    seeds: Callable[[], Sequence[bytes]]
    size_max: int = 4096
    words: tuple[bytes, ...] = ()  #: pieces that mean something
    repair: Callable[[bytes], bytes] | None = field(default=None)  #: makes most mutations get past a checksum


def _noise(count: int, size: int) -> list[bytes]:
    """Inputs for targets that read choices: any bytes will do."""
    source = random.Random(5)
    return [b"", *(source.randbytes(source.randrange(1, size)) for _ in range(count))]


def _tars() -> list[bytes]:
    pax = tarmake.pax(
        [(b"path", b"d/long"), (b"mtime", b"-1.5"), (b"size", b"3"), (b"uid", b"70000"), (b"SCHILY.xattr.user.a", b"v"),
         (b"SCHILY.xattr.trusted.overlay.opaque", b"y")]
    )  # fmt: skip
    sparse = [
        tarmake.pax([(b"GNU.sparse.size", b"20"), (b"GNU.sparse.offset", b"4"), (b"GNU.sparse.numbytes", b"2")]) + tarmake.file(b"s", b"ab"),
        tarmake.pax([(b"GNU.sparse.size", b"20"), (b"GNU.sparse.map", b"4,2,10,2")]) + tarmake.file(b"s", b"abcd"),
        tarmake.pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"20")])
        + tarmake.file(b"s", tarmake.padded(b"2\n4\n2\n10\n2\n") + b"abcd"),
    ]  # fmt: skip
    ordinary = b"".join(
        (
            tarmake.directory(b"d/"), tarmake.file(b"d/f", b"1" * 600), tarmake.link(b"d/h", b"d/f"), tarmake.symlink(b"l", b"d"),
            tarmake.file(b"l/through", b"2"), tarmake.file(b"d/.wh..wh..opq"), tarmake.file(b".wh.gone"), pax,
            tarmake.header(b"x", size=0), tarmake.padded(b"abc"), tarmake.long_name(b"n" * 150), tarmake.file(b"x", b"y"),
            tarmake.header(b"c", b"3", device=(1, 3)), tarmake.header(b"p", b"6"), tarmake.END,
        )
    )  # fmt: skip
    refused = [tar for _, tar, _ in REFUSED if len(tar) <= 8192]
    return [ordinary, *(tar + tarmake.END for tar in sparse), *refused]


def _listings() -> list[bytes]:
    found = []
    for seed in _noise(8, 400):
        source = MemorySource()
        found.append(b"\0" + b"".join(listing(images.entries_of(Draw(seed), source)))[8:])
    return found


_JSON = (b'"digest": ', b'"size": ', b'"mediaType": ', b'"manifests": [', b'"layers": [', b'"platform": {', b'"annotations"', b"null", b"1e999", b"[[[[", b"\\ud800", b"@0", b"@1", b"#1", b"$1", outside.SEPARATOR)  # fmt: skip
_TAR = (b"GNU.sparse.major=1\n", b"GNU.sparse.map=", b"SCHILY.xattr.user.", b"path=", b"size=", b"mtime=", b".wh.", b".wh..wh..opq", b"../", b"ustar\0", b"ustar  \0", b"././@LongLink")  # fmt: skip
_CONF = (b"[storage]\n", b"[storage.options]\n", b"[storage.options.overlay]\n", b"driver = ", b"root = ", b"1979-05-27", b"inf", b"0x", b'"""', b"[[", b"true", b"overlay.", b"force_mask=")  # fmt: skip

TARGETS: dict[str, Target] = {
    "tar": Target(layers.run_tar, _tars, 16384, _TAR, layers.repair_checksums),
    "tree": Target(layers.run_tree, lambda: _noise(40, 300), 1024),
    "streams": Target(
        outside.run_streams,
        lambda: _noise(30, 200),
        4096,
        (b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"),
    ),
    "pack": Target(stored.run_pack, lambda: [b"\0" + stored.SAMPLE, *_noise(20, 200)], 4096),
    "recipe": Target(stored.run_recipe, lambda: _noise(20, 200), 2048),
    "listing": Target(stored.run_listing, _listings, 4096),
    "journal": Target(
        stored.run_journal, lambda: _noise(10, 200), 2048, (b'"seq":1', b'"prev":""', b"[]", b"null", b"{}")
    ),
    "erofs": Target(images.run_erofs, lambda: _noise(30, 600), 2048),
    "oci": Target(outside.run_oci, outside.oci_seeds, 4096, _JSON),
    "conf": Target(outside.run_conf, outside.conf_seeds, 4096, _CONF),
}
