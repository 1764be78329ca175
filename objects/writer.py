"""Filling packs: hash on the caller's thread, compress in a pool, append in order, publish at the end.

Small objects travel in batches, one look-up and one task each. A large one is compressed while it is
hashed, into a staged pack of its own, which is dropped when its content turns out to be known.

Memory: at most ``(2 * workers + 2)`` batches of ``BATCH_SIZE`` and as many frames are in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final

from blake3 import blake3

from lading.objects.backend import PackBackend
from lading.objects.durable import Staging
from lading.objects.frame import DEFAULT_LEVEL, compress, compress_frame
from lading.objects.layout import PACK_SUFFIX
from lading.objects.pack import PackWriter, new_pack_name
from lading.values import CODEC_ZSTD, FRAME_SIZE, KIND_DATA, PackContents

__all__ = ["DEFAULT_LEVEL", "ObjectStream", "ObjectWriter"]

#: A batch is handed to the pool at this many plain bytes or objects: large enough that a task costs little
#: beside its work, small enough that both cores are busy soon.
BATCH_SIZE: Final = 2 << 20
BATCH_OBJECTS: Final = 512

#: Bound of an ordinary pack.
PACK_SIZE: Final = 64 << 20

#: Stored bytes after which the disk is set to work while more are compressed.
SYNC_SIZE: Final = 8 << 20

#: A stream longer than this is compressed while it is hashed.
STREAM_THRESHOLD: Final = 8 << 20

Known = Callable[[Sequence[bytes]], Collection[bytes]]
_Plain = tuple[bytes, int, bytes]  # digest, kind, plain bytes
_Stored = tuple[bytes, int, int, int, bytes]  # digest, kind, codec, plain size, stored bytes


class ObjectWriter:
    """Stores objects; nothing is visible before :meth:`finish`. Leaving the block without it aborts.

    Concurrency: one thread calls; a pool compresses.
    """

    def __init__(
        self,
        backend: PackBackend,
        staging: Staging,
        *,
        known: Known,
        level: int = DEFAULT_LEVEL,
        workers: int = 2,
        pack_size: int = PACK_SIZE,
        stream_threshold: int = STREAM_THRESHOLD,
        room: Callable[[int], object] | None = None,
    ) -> None:
        """Start with no pack.

        Args:
            backend: where finished packs go.
            staging: the caller's own staging folder, on the backend's filesystem.
            known: tells which digests need not be stored; called under the epoch lock of the caller.
            level: zstd level.
            workers: threads of the pool.
            pack_size: bound of a pack in bytes.
            stream_threshold: see ``STREAM_THRESHOLD``.
            room: asked before so many bytes are written to disk; raises to refuse.
        """
        self._backend = backend
        self._staging = staging
        self._known = known
        self._level = level
        self._pack_size = pack_size
        self._threshold = stream_threshold
        self._room = room or _room_for_all
        self._pool = ThreadPoolExecutor(workers, "lading-compress")
        self._syncer = ThreadPoolExecutor(1, "lading-sync")  # waits for the disk, so that no compressor has to
        self._in_flight = 2 * workers + 2
        self._seen: set[bytes] = set()
        self._batch: list[_Plain] = []
        self._batch_size = 0
        self._tasks: deque[Future[list[_Stored]]] = deque()
        self._pack: PackWriter | None = None
        self._begun: list[PackWriter] = []  # all of them, so that an end closes those of unfinished streams, too
        self._unsynced = 0
        self._syncs: list[Future[None]] = []
        self._finished: list[tuple[PackWriter, Future[PackContents]]] = []

    def put(self, data: bytes, kind: int = KIND_DATA) -> bytes:
        """Store an object that is in memory.

        Args:
            data: its plain bytes, not empty.
            kind: one of the KIND_ numbers.

        Returns:
            Its digest.
        """
        if len(data) > FRAME_SIZE:
            return self._put_frames(kind, data)
        digest = blake3(data).digest()
        self._take(digest, kind, data)
        return digest

    def _take(self, digest: bytes, kind: int, data: bytes) -> None:
        if digest in self._seen:
            return
        self._seen.add(digest)
        self._batch.append((digest, kind, data))
        self._batch_size += len(data)
        if self._batch_size >= BATCH_SIZE or len(self._batch) >= BATCH_OBJECTS:
            self._dispatch()

    def _dispatch(self) -> None:
        """Hand the batch's unknown objects to the pool; take what it has done."""
        batch, self._batch, self._batch_size = self._batch, [], 0
        known = self._known([item[0] for item in batch])
        unknown = [item for item in batch if item[0] not in known] if known else batch
        if unknown:
            self._tasks.append(self._pool.submit(_compress_batch, unknown, self._level))
        while self._tasks and (self._tasks[0].done() or len(self._tasks) > self._in_flight):
            self._append(self._tasks.popleft().result())

    def _append(self, frames: list[_Stored]) -> None:
        size = sum(len(frame[4]) for frame in frames)
        self._room(size)
        pack = self._pack_for(size)
        pack.add_many(frames)
        self._unsynced += size
        if self._unsynced >= SYNC_SIZE:
            self._unsynced = 0
            self._syncs.append(self._syncer.submit(pack.sync))

    def _pack_for(self, size: int) -> PackWriter:
        """The pack that has room for so many bytes."""
        if self._pack is not None and self._pack.size + size > self._pack_size:
            self._close_pack()
        if self._pack is None:
            self._pack = self._new_pack()
        return self._pack

    def _new_pack(self) -> PackWriter:
        name = new_pack_name()
        path, descriptor = self._staging.new_file(PACK_SUFFIX)
        pack = PackWriter(path, descriptor, name)
        self._begun.append(pack)
        return pack

    def _close_pack(self) -> None:
        if self._pack is not None:
            self._finish_in_pool(self._pack)
            self._pack = None

    def _finish_in_pool(self, pack: PackWriter) -> None:
        """Sync a full pack while the caller goes on."""
        self._finished.append((pack, self._syncer.submit(pack.finish)))

    def _put_frames(self, kind: int, data: bytes) -> bytes:
        """Store an object of a few frames that is in memory."""
        digest = blake3(data).digest()
        if digest in self._seen or self._known([digest]):
            return digest
        self._seen.add(digest)
        view = memoryview(data)
        plain = [view[start : start + FRAME_SIZE] for start in range(0, len(view), FRAME_SIZE)]
        frames = list(self._pool.map(lambda part: compress_frame(part, self._level), plain))
        size = sum(len(frame) for frame in frames)
        self._room(size)
        self._pack_for(size).add(digest, kind, CODEC_ZSTD, len(data), frames)
        return digest

    def stream(self, kind: int = KIND_DATA) -> ObjectStream:
        """Store an object of any size, chunk by chunk."""
        return ObjectStream(self, kind)

    def finish(self) -> list[PackContents]:
        """Compress what is left, sync and publish all packs.

        Returns:
            The packs, all durable; empty when nothing was new.

        Raises:
            Full, ReadOnly, OSError: nothing counts as stored.
        """
        if self._batch:
            self._dispatch()
        while self._tasks:
            self._append(self._tasks.popleft().result())
        self._close_pack()
        for sync in self._syncs:
            sync.result()
        contents = [(pack, task.result()) for pack, task in self._finished]
        self._finished = []
        for pack, _ in contents:
            self._backend.publish(pack.path, pack.name)
        self._pool.shutdown()
        self._syncer.shutdown()
        return [found for _, found in contents]

    def abort(self) -> None:
        """Stop and forget everything; the staging folder removes the files."""
        for task in self._tasks:
            task.cancel()
        self._pool.shutdown(cancel_futures=True)
        self._syncer.shutdown(cancel_futures=True)
        for pack in self._begun:
            pack.abort()
        self._tasks.clear()
        self._begun = []
        self._finished = []

    def __enter__(self) -> ObjectWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


class ObjectStream:
    """One object on its way in."""

    def __init__(self, writer: ObjectWriter, kind: int) -> None:
        self._writer = writer
        self._kind = kind
        self._state = blake3()
        self._pending = bytearray()
        self._size = 0
        self._pack: PackWriter | None = None
        self._tasks: deque[Future[bytes]] = deque()
        self._frame_sizes: list[int] = []

    def write(self, chunk: bytes | memoryview) -> None:
        """Take the next plain bytes."""
        self._pending += chunk
        self._size += len(chunk)
        if self._pack is None and self._size <= self._writer._threshold:
            return
        while len(self._pending) >= FRAME_SIZE:
            self._send(bytes(memoryview(self._pending)[:FRAME_SIZE]))
            del self._pending[:FRAME_SIZE]

    def _send(self, plain: bytes) -> None:
        """Hash a frame and hand it to the pool; write what it has done."""
        if self._pack is None:
            self._pack = self._writer._new_pack()
        self._tasks.append(self._writer._pool.submit(compress_frame, plain, self._writer._level))
        self._state.update(plain)
        while len(self._tasks) > self._writer._in_flight // 2:
            self._collect()

    def _collect(self) -> None:
        assert self._pack is not None
        frame = self._tasks.popleft().result()
        self._writer._room(len(frame))
        self._pack.append(frame)
        self._frame_sizes.append(len(frame))

    def close(self) -> bytes:
        """End the object.

        Returns:
            Its digest. An object without bytes is not stored; its digest is that of nothing.
        """
        writer = self._writer
        if self._pack is None and self._size <= FRAME_SIZE:
            data = bytes(self._pending)
            self._state.update(data)
            digest = self._state.digest()
            if data:
                writer._take(digest, self._kind, data)
            return digest
        if self._pack is None:
            return writer._put_frames(self._kind, bytes(self._pending))
        if self._pending:
            self._send(bytes(self._pending))
        while self._tasks:
            self._collect()
        digest = self._state.digest()
        if digest in writer._seen or writer._known([digest]):
            self._pack.abort()
            self._pack.path.unlink()
            return digest
        writer._seen.add(digest)
        self._pack.note(digest, self._kind, CODEC_ZSTD, self._size, self._frame_sizes)
        writer._finish_in_pool(self._pack)
        return digest


def _room_for_all(size: int) -> None:
    """Refuse nothing."""


def _compress_batch(batch: list[_Plain], level: int) -> list[_Stored]:
    """Compress objects of one frame each."""
    result = []
    for digest, kind, data in batch:
        codec, stored = compress(data, level)
        result.append((digest, kind, codec, len(data), stored))
    return result
