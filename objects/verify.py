"""Looking for damage: packs that are missing or cut, objects whose bytes are not what they should be."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Final

from blake3 import blake3

from lading.errors import Corrupt
from lading.objects.backend import PackBackend
from lading.objects.frame import decompress
from lading.objects.pack import frames_of, read_index
from lading.values import Location

#: Objects verified as one task.
_TASK: Final = 64


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    pack: str
    message: str
    digest: bytes = b""  #: the object that is damaged; empty when the whole pack is


def check_presence(backend: PackBackend, expected: Mapping[str, int]) -> Iterator[Finding]:
    """Compare packs with what the catalog expects: there, of the right size, with a sound index.

    Args:
        backend: where they rest.
        expected: names and sizes in bytes.
    """
    for name, size in expected.items():
        found = backend.size(name)
        if found is None:
            yield Finding(name, f"pack {name} is missing")
        elif found != size:
            yield Finding(name, f"pack {name} has {found} bytes instead of {size}")
        else:
            try:
                read_index(backend, name)
            except Corrupt as error:
                yield Finding(name, str(error))


def verify_objects(backend: PackBackend, locations: Iterable[Location], *, workers: int = 2) -> Iterator[Finding]:
    """Read and hash every byte of objects.

    Args:
        backend: where their packs rest.
        locations: best sorted by pack and offset.
        workers: threads.
    """
    source = iter(locations)
    tasks: deque[Future[list[Finding]]] = deque()
    with ThreadPoolExecutor(workers, "lading-verify") as pool:
        while batch := list(islice(source, _TASK)):
            tasks.append(pool.submit(_verify, backend, batch))
            if len(tasks) > 2 * workers:
                yield from tasks.popleft().result()
        while tasks:
            yield from tasks.popleft().result()


def _verify(backend: PackBackend, batch: list[Location]) -> list[Finding]:
    found = []
    for location in batch:
        try:
            state = blake3()
            for offset, stored_size, size in frames_of(location):
                state.update(decompress(location.codec, backend.read(location.pack, offset, stored_size), size))
            if state.digest() == location.digest:
                continue
            why = "has other bytes than it should"
        except Corrupt as error:
            why = str(error)
        found.append(
            Finding(location.pack, f"object {location.digest.hex()} in pack {location.pack}: {why}", location.digest)
        )
    return found
