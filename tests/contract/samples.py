"""Small diffs that sessions apply."""

from __future__ import annotations

import bz2
import gzip
import lzma

import pyzstd

from tests.tarmake import END, directory, file, link, symlink

BASE = (
    directory(b"etc/") + file(b"etc/a", b"hello") + file(b"etc/b", b"world") + directory(b"usr/") + directory(b"usr/bin/")
    + file(b"usr/bin/x", b"#!x", mode=b"0000755") + symlink(b"link", b"etc/a") + link(b"hard", b"etc/a") + END
)  # fmt: skip
UPPER = (
    directory(b"etc/") + file(b"etc/a", b"changed!") + file(b"etc/.wh.b") + file(b"new", b"n") + directory(b"usr/")
    + directory(b"usr/bin/") + file(b"usr/bin/.wh..wh..opq") + file(b"usr/bin/y", b"y") + END
)  # fmt: skip

IMPLIED = file(b"deep/er/f", b"x", uid=b"0000011", gid=b"0000011") + END

FILES = {
    "base": BASE,
    "upper": UPPER,
    "gz": gzip.compress(BASE, mtime=0),
    "bz": bz2.compress(BASE),
    "xz": lzma.compress(BASE),
    "zst": pyzstd.compress(BASE),
    "empty": b"",
    "zeros": bytes(1024),
    "junk": b"junk" * 400,
    "junkgz": gzip.compress(b"junk" * 400, mtime=0),
    "cut": BASE[:1800],
    "cutgz": gzip.compress(BASE, mtime=0)[:-20],
    "implied": IMPLIED,
    "junkbz": bz2.compress(b"junk" * 400),
    "junkxz": lzma.compress(b"junk" * 400),
    "junkzst": pyzstd.compress(b"junk" * 400),
    "data": b"some data\n",
    "meta": b"from a file\n",
}
