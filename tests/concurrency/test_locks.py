"""Every lock ends with its owner; every wait has a limit, and its message says who holds what."""

from __future__ import annotations

import ast
import fcntl
import io
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lading import Store, locks
from lading.errors import Busy
from lading.flows import areas
from lading.materialize.cachelock import cache_lock
from lading.objects import durable
from tests.concurrency.processes import Crew, Failed, Line, stopping_at
from tests.tarmake import END, file

DATA = file(b"f", b"ours") + END
ROOT = Path(__file__).parents[2]


@contextmanager
def epoch_alone(store: Store) -> Any:
    """As a collection does that tries whether an epoch has ended."""
    descriptor = os.open(store.root / "objects" / f"epoch.{store._context.epochs.current()}", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


HOLDS: dict[str, Callable[[Store], AbstractContextManager[Any]]] = {
    "catalog": lambda store: store._context.catalog.write_rows("hold"),
    "layer": lambda store: areas.locked(store._context, ["a"], "hold"),
    "cache, evicting": lambda store: cache_lock(store._context.layout.cache, exclusive=True),
    "cache, building": lambda store: cache_lock(store._context.layout.cache),
    "staging": lambda store: durable._held(store._context.layout.staging, fcntl.LOCK_EX),
    "epoch": epoch_alone,
    "digest": lambda store: store.digest_lock("sha256:1"),
}


def hold(store: Store, line: Line, kind: str) -> None:
    with HOLDS[kind](store):
        line.pause("held")


def need(store: Store, line: Line, kind: str) -> None:
    """Do something that needs the lock; say so before it is begun."""
    locks.WAIT_S = store._context.settings.wait_s
    line.tell("begun")
    match kind:
        case "catalog":
            store.set_metadata("a", "changed")
        case "layer":
            store.layers.delete("a")
        case "cache, evicting":
            store.mount("a")
        case "cache, building":
            store.cache.evict()
        case "staging" | "epoch":
            store.layers.import_(io.BytesIO(DATA), id="new")
        case "digest":
            with store.digest_lock("sha256:1"):
                pass


def state(store: Store) -> object:
    """All that an operation could leave half done."""
    return (
        store.multi_list(layers=True, images=True, containers=True),
        store.mounts(),
        sorted(path.name for path in (store.root / "objects/staging").iterdir()),
        sorted(path.name for path in (store.root / "objects/packs").rglob("*.pack")),
        list(store.query("SELECT count(*), max(seq) FROM event")[1]),
    )


@pytest.mark.privileged
@pytest.mark.parametrize("kind", list(HOLDS))
class TestEachLock:
    """Held by a process, needed by another."""

    def test_a_killed_holder_lets_others_go_on(self, crew: Crew, kind: str) -> None:
        with Store.open(crew.root, run=crew.run) as store:
            store.layers.import_(io.BytesIO(DATA), id="a")
        holder, waiter = crew.hire(), crew.hire()
        assert holder.start(hold, kind).heard() == "held"
        assert waiter.start(need, kind).heard() == "begun"
        holder.kill()
        assert waiter.outcome() == "done"

    def test_a_stopped_holder_is_named_nothing_is_half_done_and_it_goes_on(self, crew: Crew, kind: str) -> None:
        with Store.open(crew.root, run=crew.run) as store:
            store.layers.import_(io.BytesIO(DATA), id="a")
            before = state(store)
            holder, waiter = crew.hire(), crew.hire(wait_s=0.1)
            assert holder.start(hold, kind).heard() == "held"
            holder.freeze()
            with pytest.raises(Failed) as failed:
                waiter.run(need, kind)
            assert failed.value.kind == "Busy"
            assert re.search(rf"is busy: held by process {holder.pid} \(.+\)", failed.value.words)
            assert "\n" not in failed.value.words
            if kind not in ("staging", "epoch"):  # a folder, and what a collection opens for reading: no notes
                assert re.search(r", since 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", failed.value.words)
            assert state(store) == before
            holder.thaw()
            holder.go_on()
            holder.result()
            assert waiter.run(need, kind) is None


@pytest.mark.privileged
def test_whoever_waits_for_a_view_builds_it_when_its_builder_is_killed(crew: Crew) -> None:
    with Store.open(crew.root, run=crew.run) as store:
        for id in ("a", "b"):
            store.layers.import_(io.BytesIO(DATA), id=id)
    builder, waiter = crew.hire(), crew.hire()
    assert builder.start(mount_building, "a").heard() == "building"
    assert waiter.start(mount_saying, "b").heard() == "begun"
    builder.kill()
    assert (Path(waiter.result()) / "f").read_bytes() == b"ours"


def mount_building(store: Store, line: Line, ref: str) -> None:
    with stopping_at(line, "lading.materialize.imagebuild:_build", words="building"):
        store.mount(ref)


def mount_saying(store: Store, line: Line, ref: str) -> str:
    line.tell("begun")
    return str(store.mount(ref))


def test_several_holders_are_all_named(tmp_path: Path) -> None:
    """Each has a place of its own in the file; notes of those who have let go do not count."""
    path = tmp_path / "lock"
    with locks.file_lock(path, "it", "first", wait_s=0, shared=True):
        pass
    crew = Crew(tmp_path / "root", tmp_path / "run")
    workers = [crew.hire(), crew.hire()]
    for worker in workers:
        assert worker.start(hold_shared, path).heard() == "held"
    with pytest.raises(Busy) as failed, locks.file_lock(path, "it", "alone", wait_s=0, shared=False):
        raise AssertionError
    for worker in workers:
        assert f"process {worker.pid} (read), since" in str(failed.value)
    assert f"process {os.getpid()} " not in str(failed.value)
    for worker in workers:
        worker.go_on()
        worker.result()
    with locks.file_lock(path, "it", "alone", wait_s=0, shared=False):
        pass
    crew.close()


def hold_shared(store: Store, line: Line, path: Path) -> None:
    with locks.file_lock(path, "it", "read", wait_s=0, shared=True):
        line.pause("held")


@pytest.mark.parametrize(
    "left",
    [
        b"",
        b"\0" * 128,
        b"{",
        b'{"pid": 1, "since": 1e400, "verb": "x"}',
        b'{"pid": 4194304, "since": 0, "verb": "\\u001b[31m"}',
    ],
)
def test_what_an_earlier_holder_left_in_the_file_is_never_believed(tmp_path: Path, left: bytes) -> None:
    """Nor is a pid that is another process's by now, nor a time from a clock that jumped."""
    path = tmp_path / "lock"
    path.write_bytes(left)
    with locks.file_lock(path, "it", "x", wait_s=0):
        path.write_bytes(left)
        with (
            pytest.raises(Busy, match=rf"held by process {os.getpid()} \(") as failed,
            locks.file_lock(path, "it", "y", wait_s=0),
        ):
            raise AssertionError
    assert "\x1b" not in str(failed.value)
    with locks.file_lock(path, "it", "z", wait_s=0):
        pass


def test_clocks_that_jump_break_no_lock(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of day a century ahead: the holder still holds."""
    holder = crew.hire()
    assert holder.start(hold, "catalog").heard() == "held"
    monkeypatch.setattr("time.time", lambda: 4e9)
    with Store.open(crew.root, run=crew.run) as store:
        store._context.catalog._wait_s = 0
        with pytest.raises(Busy, match=f"process {holder.pid}"):
            store.layers.create(id="x")
    holder.go_on()
    holder.result()


def test_readers_wait_for_no_writer(crew: Crew) -> None:
    """In the middle of a transaction, with its rows written and the journal about to be: all readers answer."""
    with Store.open(crew.root, run=crew.run) as store:
        store.layers.import_(io.BytesIO(DATA), id="a")
        store.images.create("a", id="i", big_data={"k": b"v"})
        writer = crew.hire()
        assert writer.start(create_stopping, "new").heard() == "there"
        assert [layer.id for layer in store.layers.all()] == ["a"]
        assert store.layers.changes("a")
        with store.layers.diff("a", compression=0) as chunks:
            assert b"".join(chunks) == DATA
        assert b"".join(store.images.data("i", "k")) == b"v"
        assert not store.exists("new")
        assert store.check().findings == ()
        assert store.gc(dry_run=True).objects == 0
        assert writer.silent  # all that while it wrote
        writer.go_on()
        writer.result()
        assert store.exists("new")


def create_stopping(store: Store, line: Line, id: str) -> None:
    with stopping_at(line, "lading.catalog.records:changes"):
        store.layers.create(id=id)


def test_all_waiting_is_done_in_one_place() -> None:
    """Everywhere else a lock is only tried, so that nothing waits without a limit and without saying for whom."""
    wrong: list[str] = []
    for folder in ("lading", "catalog", "objects", "materialize", "cli"):
        for path in set((ROOT / folder).rglob("*.py")) - {ROOT / "lading/locks.py"}:
            wrong += [f"{path}:{line}" for line in waits_in(path.read_text())]
    assert wrong == []
    assert waits_in("fcntl.flock(1, fcntl.LOCK_EX)")


def waits_in(code: str) -> list[int]:
    """Lines that take a lock however long it lasts."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("flock", "lockf")
        and "LOCK_NB" not in ast.unparse(node.args[1])
    ]
