"""What is waited for while what is held: no circle, and nothing but rows and the journal under the writer lock."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lading import Store, locks
from lading.catalog.database import Catalog
from lading.config import Settings
from tests.tarmake import END, file

#: Locks by what their path ends with, in the order in which they may be taken.
ORDER = ("userns", "layer", "cache", "view", "epoch", "attach", "pool", "staging", "catalog")


def _class_of(path: str) -> str:
    parts = Path(path).parts
    match parts[-2:]:
        case (_, "catalog.lock"):
            return "catalog"
        case ("objects", "staging"):
            return "staging"
        case ("cache", ".lock"):
            return "cache"
        case ("locks", _):
            return "layer"
        case (_, "userns.lock"):
            return "userns"
        case (_, ".images.lock"):
            return "attach"
        case ("erofs" | "trees", name) if name.endswith(".lock"):
            return "view"
        case ("objects", name) if name.startswith("epoch."):
            return "epoch"
        case _:
            return "pool" if "pool" in path else path


class Recorder:
    """What this process holds, by asking the kernel, at each wait for a lock."""

    def __init__(self) -> None:
        self.waits: set[tuple[str, bool, str, bool]] = set()  #: held, alone; wanted, alone
        self.unsorted: list[tuple[str, str]] = []

    def take(self, real: Callable[..., None]) -> Callable[..., None]:
        """A ``locks.take`` that notes what is held."""

        def noting(descriptor: int, operation: int, *args: Any, **kwargs: Any) -> None:
            wanted = os.readlink(f"/proc/self/fd/{descriptor}")
            held = list(self._held())
            if wanted in (path for path, _ in held):
                held = []  # taken once more by who has it: the cache's, shared
            for path, alone in held:
                self.waits.add((_class_of(path), alone, _class_of(wanted), operation == fcntl.LOCK_EX))
                if _class_of(path) == _class_of(wanted) == "layer" and path > wanted:
                    self.unsorted.append((path, wanted))
            real(descriptor, operation, *args, **kwargs)

        return noting

    def _held(self) -> Iterator[tuple[str, bool]]:
        """Paths of the files that this process has locked, and whether alone."""
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/self/fdinfo/{name}").read_text().splitlines():
                    fields = line.split()
                    if fields[:1] == ["lock:"] and fields[2] == "FLOCK":
                        yield os.readlink(f"/proc/self/fd/{name}"), fields[4] == "WRITE"


def circles(waits: set[tuple[str, bool, str, bool]]) -> list[list[tuple[str, bool, str, bool]]]:
    """Chains of waits in which the last wants what the first holds; two that only share wait for nothing."""
    found = []

    def follow(chain: list[tuple[str, bool, str, bool]]) -> None:
        _, _, wanted, alone = chain[-1]
        for wait in waits:
            if wait[0] == wanted and (wait[1] or alone):
                if wait == chain[0]:
                    found.append(chain)
                elif wait not in chain:
                    follow([*chain, wait])

    for wait in waits:
        follow([wait])
    return found


def all_flows(store: Store, folder: Path) -> None:
    """Everything that takes locks, in one process."""
    data = file(b"f", b"1") + file(b"deep/g", b"2") + END
    store.layers.import_(io.BytesIO(data), id="base", big_data={"k": b"v"})
    store.layers.create("base", id="open")
    store.layers.apply("open", io.BytesIO(data))
    (store.mount("open") / "written").write_bytes(b"3")
    store.layers.create("open", id="child")
    store.mount("child")
    store.layers.apply("child", io.BytesIO(file(b"h", b"4") + END))
    store.unmount("child")
    store.unmount("open")
    store.layers.seal("child")
    image = store.images.create("base", id="i", names=["n"], big_data={"manifest": b"{}"})
    store.images.set_data("i", "k", io.BytesIO(b"v"))
    container = store.containers.create(image.id, id="c")
    (store.mount("c") / "x").write_bytes(b"5")
    committed = store.commit("c")
    store.clone("c", id="twin")
    store.unmount("c")
    store.mount("c", flatten=True)
    store.checkout("base", folder / "out")
    store.cache.prefetch("i")
    with store.layers.diff("child") as chunks:
        assert b"".join(chunks)
    store.layers.changes("child")
    store.add_names("i", ["m"])
    store.set_metadata("i", "text")
    store.images.mount("i")
    store.images.unmount("i")
    store.unmount("c")
    for ref in (container.id, "twin"):
        store.containers.delete(ref)
    store.images.delete(committed.id)
    store.gc()
    store.cache.evict()
    store.delete("child")
    store.layers.delete("open")
    store.check(content=True)
    store.gc()
    with store.digest_lock("sha256:0"):
        store.layers.create(id="under-a-digest")


@pytest.mark.privileged
@pytest.mark.parametrize("strategy", ["", "farm"])
def test_no_flow_waits_against_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    """All that was waited for while something was held, over all flows, makes no circle."""
    recorder = Recorder()
    monkeypatch.setattr(locks, "take", recorder.take(locks.take))
    settings = Settings(strategy=strategy, cache_budget=1, repack_share=0.0)
    with Store.open(tmp_path / "root", run=tmp_path / "run", settings=settings) as store:
        all_flows(store, tmp_path)
        for mount in store.mounts():
            store.unmount(mount.layer, force=True)
    assert ("layer", True, "catalog", True) in recorder.waits  # it records at all
    assert ("layer", True, "cache", False) in recorder.waits
    assert circles(recorder.waits) == []
    assert recorder.unsorted == []
    against = [
        wait
        for wait in recorder.waits
        if "epoch" not in (wait[0], wait[2]) and not wait[0].startswith("/")
        and ORDER.index(wait[0]) > ORDER.index(wait[2])
    ]  # fmt: skip
    assert against == []
    assert not any(held == "catalog" for held, *_ in recorder.waits)


def test_circles_are_found() -> None:
    ab, ba = ("a", True, "b", False), ("b", True, "a", True)
    assert circles({ab, ba})
    assert not circles({("a", False, "b", False), ("b", False, "a", False)})
    assert not circles({ab, ("b", True, "c", True)})


#: What takes long, or waits for something: never to be done under the writer lock.
SLOW = (
    "lading.objects.frame:compress", "lading.objects.durable:publish", "lading.objects.durable:fsync_dir",
    "lading.objects.durable:Staging.new_file", "hashlib:sha256",
    "lading.objects.digest:blake3_digest", "lading.materialize.beneath:remove_tree",
)  # fmt: skip


class Guard:
    """Knows which threads hold the writer lock, for how long, and what slow things they do meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.longest = (0.0, 0.0, "")  #: seconds by the clock and of the processor, and what for
        self.wrong: list[str] = []
        self.held = 0
        self._local = threading.local()
        real = Catalog._locked

        @contextlib.contextmanager
        def locked(catalog: Catalog, verb: str) -> Iterator[Any]:
            with real(catalog, verb) as lock:
                self._local.verb, begun, used = verb, time.perf_counter(), time.thread_time()
                self.held += 1
                try:
                    yield lock
                finally:
                    took = (time.perf_counter() - begun, time.thread_time() - used, verb)
                    self._local.verb = ""
                    self.longest = max(self.longest, took)

        monkeypatch.setattr(Catalog, "_locked", locked)
        write = os.write

        def writing(descriptor: int, data: Any) -> int:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
            if getattr(self._local, "verb", "") and "/journal/" not in target:
                self.wrong.append(f"{self._local.verb}: write to {target}")
            return write(descriptor, data)

        monkeypatch.setattr(os, "write", writing)
        for target in SLOW:
            module, _, path = target.partition(":")
            self._forbid(monkeypatch, module, path)

    def _forbid(self, monkeypatch: pytest.MonkeyPatch, module: str, path: str) -> None:
        import importlib

        owner: Any = importlib.import_module(module)
        *steps, name = path.split(".")
        for step in steps:
            owner = getattr(owner, step)
        real = getattr(owner, name, None)
        if real is None:
            raise AssertionError(f"{module}:{path} is not there any more")

        def noting(*args: Any, **kwargs: Any) -> Any:
            verb = getattr(self._local, "verb", "")
            # The next epoch's file is made under the lock on purpose: what is condemned knows which one it was.
            if verb and not (name == "fsync_dir" and (verb == "gc: next epoch" or "journal" in str(args[0]))):
                self.wrong.append(f"{verb}: {name}")
            return real(*args, **kwargs)

        if steps:
            monkeypatch.setattr(owner, name, noting)
        for user in [owner, *sys.modules.values()]:  # wherever it was imported to
            if getattr(user, "__name__", "").startswith(("lading", module)) and getattr(user, name, None) is real:
                monkeypatch.setattr(user, name, noting)


def test_nothing_slow_is_done_under_the_writer_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No compressing, hashing of content, pack or staging under it; ``LADING_HOLD_TAR`` names a real layer to measure."""
    guard = Guard(monkeypatch)
    named = os.environ.get("LADING_HOLD_TAR", "")
    many = b"".join(file(b"d%d/f%d" % (n % 50, n), random.Random(n).randbytes(40)) for n in range(12_000)) + END
    with Store.open(tmp_path / "root", run=tmp_path / "run") as store:
        with Path(named).open("rb") if named else io.BytesIO(many) as stream:
            store.layers.import_(stream, id="a")
        store.images.create("a", id="i", big_data={"k": b"v" * 5000})
        store.images.set_data("i", "j", io.BytesIO(b"w" * 5000))
        store.images.delete("i")
        store.gc()
    assert guard.held > 5
    assert guard.wrong == []
    if named:
        wall, processor, verb = guard.longest
        print(f"{guard.held} holds; longest {wall * 1000:.1f} ms, {processor * 1000:.1f} ms of the processor ({verb})")
