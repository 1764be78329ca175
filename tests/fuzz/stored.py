"""Targets about what the store itself wrote: packs, recipes, listings, the journal. A bad disk writes, too."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyzstd
from blake3 import blake3

from lading.catalog.chain import read_chain
from lading.catalog.journal import read_segment
from lading.errors import Corrupt, LadingError
from lading.materialize.listing import listing, read_listing
from lading.objects.frame import compress
from lading.objects.memory import MemoryBackend
from lading.objects.pack import FOOTER, FOOTER_MAGIC, HEAD_BYTES, RECORD, frames_of, read_index, tail
from lading.objects.reader import ObjectReader
from lading.objects.recipe import LITERAL_SIZE_MAX, MAGIC, Literal, Reference, read_recipe, read_references, varint
from lading.objects.verify import check_presence, verify_objects
from lading.values import FRAME_SIZE, Location
from tests.fuzz.draw import Draw, check_message

NAME = "0" * 32


def sample_pack() -> bytes:
    """A sound pack of five objects."""
    body, objects = [HEAD_BYTES], []
    offset = len(HEAD_BYTES)
    for number in range(5):
        data = bytes([number]) * (number * 700)
        codec, stored = compress(data, 3)
        objects.append(Location(blake3(data).digest(), number, NAME, offset, len(stored), len(data), codec))
        body.append(stored)
        offset += len(stored)
    return b"".join(body) + tail(objects, offset)


SAMPLE = sample_pack()


def run_pack(data: bytes) -> None:
    """Any file, a sound pack with wrong bytes, or a pack whose index says whatever it likes."""
    draw = Draw(data)
    match draw.below(3):
        case 0:
            pack = draw.rest()
        case 1:
            changed = bytearray(SAMPLE)
            while draw.more:
                changed[draw.number(2) % len(changed)] ^= draw.byte()
            pack = bytes(changed)
        case _:
            pack = _lying_pack(draw)
    read_pack(pack)


def _lying_pack(draw: Draw) -> bytes:
    """Index and footer with right checksums around what makes no sense."""
    records, body = [], HEAD_BYTES
    for _ in range(draw.below(6)):
        content = draw.some(40)
        codec, stored = compress(content, 3)
        stored_size, size = len(stored), len(content)
        frames, table = 1, b""
        if draw.chance(4):
            codec = draw.byte()
        if draw.chance(4):
            size = draw.number(draw.pick((1, 4, 8)))
        if draw.chance(4):
            stored_size = draw.number(draw.pick((1, 4, 8)))
        if draw.chance(4):
            frames = draw.number(draw.pick((1, 4)))
            table = struct.pack("<I", draw.number(4)) * min(frames, 9)
        if draw.chance(4):
            frames = max(1, -(-size // FRAME_SIZE)) & 0xFFFFFFFF
            table = (
                (struct.pack("<I", stored_size & 0xFFFFFFFF) + bytes(4 * min(frames, 2000)))[: 4 * frames]
                if frames > 1
                else b""
            )
        records.append(RECORD.pack(blake3(content).digest(), draw.below(7), codec, frames, stored_size, size) + table)
        body += stored
    plain = b"".join(records)
    count, offset, plain_size = len(records), len(body), len(plain)
    if draw.chance(4):
        count = draw.number(draw.pick((1, 4)))
    if draw.chance(4):
        offset = draw.number(draw.pick((1, 8)))
    if draw.chance(4):
        plain_size = draw.number(draw.pick((2, 8)))
    stored = draw.some(200) if draw.chance(8) else pyzstd.compress(plain)
    footer = FOOTER.pack(FOOTER_MAGIC, 1, count, offset, len(stored), plain_size, bytes(32))
    return body + stored + footer[:-32] + blake3(stored + footer).digest()


def read_pack(pack: bytes) -> None:
    """Read an index and all that it lists: what is wrong is said by ``Corrupt`` alone."""
    backend = MemoryBackend()
    backend._packs[NAME] = pack
    for finding in check_presence(backend, {NAME: len(pack)}):
        assert finding.message.isprintable()
    try:
        contents = read_index(backend, NAME)
    except Corrupt as error:
        check_message(error)
        return
    for item in contents.objects:
        assert len(HEAD_BYTES) <= item.offset
        assert item.offset + item.stored_size <= len(pack)
        assert sum(frame[1] for frame in frames_of(item)) == item.stored_size
        assert sum(frame[2] for frame in frames_of(item)) == item.size
    damaged = {finding.digest for finding in verify_objects(backend, contents.objects, workers=1)}
    table = {item.digest: item for item in contents.objects}
    reader = ObjectReader(backend, lambda digests: {digest: table[digest] for digest in digests}, workers=1)
    try:
        for item in table.values():
            if item.size > 64 << 20:
                continue
            try:
                found = reader.read(item.digest)
            except Corrupt as error:
                check_message(error)
                assert item.digest in damaged
                continue
            assert blake3(found).digest() == item.digest
    finally:
        reader.close()


def run_recipe(data: bytes) -> None:
    """Any bytes, in pieces of any size, with the right beginning or without; parts that add up or do not."""
    draw = Draw(data)
    step = 1 + draw.byte()
    match draw.below(3):
        case 0:
            recipe = draw.rest()
        case 1:
            recipe = MAGIC + draw.rest()
        case _:
            recipe = _lying_recipe(draw)
    total = 0
    named: list[Reference | str] = []
    fine = True
    try:
        for part in read_recipe(recipe[at : at + step] for at in range(0, len(recipe), step)):
            total += len(part.data) if isinstance(part, Literal) else part.size
            assert not isinstance(part, Literal) or len(part.data) <= LITERAL_SIZE_MAX
            if isinstance(part, Reference):
                named.append(part)
    except Corrupt as error:
        check_message(error)
        named.append(str(error))
        fine = False
    assert list(_references_as_far(recipe, step)) == named
    assert not fine or varint(total) in recipe


def _references_as_far(recipe: bytes, step: int) -> Iterator[Reference | str]:
    """References, then what is said of the recipe when it is no good."""
    try:
        yield from read_references(recipe[at : at + step] for at in range(0, len(recipe), step))
    except Corrupt as error:
        yield str(error)


def _lying_recipe(draw: Draw) -> bytes:
    parts, total = [MAGIC], 0
    while draw.more and len(parts) < 100:
        if draw.chance(2):
            literal = draw.some(200)
            total += len(literal)
            parts.append(b"\x01" + varint(len(literal)) + literal)
        else:
            size = draw.number(draw.pick((1, 2, 8)))
            total += size
            parts.append(b"\x02" + varint(size) + draw.take(32))
    if draw.chance(4):
        total += draw.byte()
    return b"".join(parts) + b"\x00" + varint(total) + bytes(32) + (b"x" if draw.chance(8) else b"")


def run_listing(data: bytes) -> None:
    """Any bytes: a listing that can be written again, or ``Corrupt``."""
    draw = Draw(data)
    raw = draw.rest() if draw.chance(4) else b"LADLIST\x01" + draw.rest()
    try:
        entries = list(read_listing([raw]))
    except Corrupt as error:
        check_message(error)
        return
    assert list(read_listing(listing(entries))) == entries


def run_journal(data: bytes) -> None:
    """Lines with right checksums that say anything, and torn ones between them: whole ones are read, no other."""
    draw = Draw(data)
    out: list[bytes] = []
    whole = 0
    digest = ""
    while draw.more and len(out) < 40:
        text = draw.some(200).replace(b"\n", b" ")
        if draw.chance(2):
            text = json.dumps({"seq": len(out), "prev": digest, "verb": text.decode("latin-1")}).encode()
            whole += 1
        line = text + b" " + blake3(text).hexdigest(16).encode() + b"\n"
        digest = blake3(text).hexdigest(16)
        if draw.chance(6):
            line = line[: draw.below(len(line) + 1)]
            whole = -1000
        out.append(line)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "00000001.log"
        path.write_bytes(b"".join(out) if out else draw.rest())
        try:
            lines = list(read_segment(path, 1))
            assert len(lines) >= whole
            assert all(line.end <= path.stat().st_size for line in lines)
            chain = read_chain(Path(folder))
        except LadingError as error:
            check_message(error)
            return
        assert len(chain) <= len(lines)
        assert not lines or chain[-1] == lines[-1]
