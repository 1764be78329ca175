"""Raw tar bytes for tests: members as one likes them, valid or not."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence

END = bytes(1024)


def checksummed(block: bytes) -> bytes:
    """Give a header block its checksum."""
    plain = block[:148] + b"        " + block[156:]
    return plain[:148] + b"%06o\0 " % sum(plain) + plain[156:]


def header(
    name: bytes = b"f",
    kind: bytes = b"0",
    *,
    size: int | bytes = 0,
    mode: bytes = b"0000644",
    uid: bytes = b"0000000",
    gid: bytes = b"0000000",
    mtime: bytes = b"00000000000",
    target: bytes = b"",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """A header block with a right checksum."""
    size_field = size if isinstance(size, bytes) else b"%011o\0" % size
    block = b"".join(
        (
            name.ljust(100, b"\0"), mode.ljust(8, b"\0"), uid.ljust(8, b"\0"), gid.ljust(8, b"\0"), size_field.ljust(12, b"\0"),
            mtime.ljust(12, b"\0"), bytes(8), kind, target.ljust(100, b"\0"), magic, bytes(64), b"%07o\0" % device[0],
            b"%07o\0" % device[1], prefix.ljust(155, b"\0"), bytes(12),
        )
    )  # fmt: skip
    assert len(block) == 512
    return checksummed(block)


def file(name: bytes, data: bytes = b"", **fields: object) -> bytes:
    """A regular file."""
    return header(name, size=len(data), **fields) + padded(data)  # type: ignore[arg-type]


def directory(name: bytes, **fields: object) -> bytes:
    """A directory."""
    return header(name, b"5", mode=b"0000755", **fields)  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes) -> bytes:
    """A symlink."""
    return header(name, b"2", target=target, mode=b"0000777")


def link(name: bytes, target: bytes) -> bytes:
    """A hard link."""
    return header(name, b"1", target=target)


def padded(data: bytes) -> bytes:
    """Bytes up to a whole block."""
    return data + bytes(-len(data) % 512)


def pax(records: Mapping[bytes, bytes] | Sequence[tuple[bytes, bytes]], kind: bytes = b"x") -> bytes:
    """A PAX header."""
    pairs = records.items() if isinstance(records, Mapping) else records
    body = b"".join(record(key, value) for key, value in pairs)
    return header(b"PaxHeaders/x", kind, size=len(body)) + padded(body)


def record(key: bytes, value: bytes) -> bytes:
    """One PAX record."""
    size = len(key) + len(value) + 3
    size += len(str(size + len(str(size))))
    return b"%d %s=%s\n" % (size, key, value)


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    """A GNU long name."""
    return header(b"././@LongLink", kind, size=len(name) + 1) + padded(name + b"\0")


def tree(files: Mapping[str, bytes | None]) -> bytes:
    """An ordinary layer tar: None makes a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.mtime = 1_700_000_000
            if data is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(member)
            else:
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
