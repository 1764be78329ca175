"""One store in one process: threads, forks, and what is left open."""

from __future__ import annotations

import io
import os
import random
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from lading import Store
from tests.tarmake import END, file


def in_threads(count: int, act: Callable[[int], None]) -> list[BaseException]:
    """Run something in several threads that begin together; return what they raised."""
    wrong: list[BaseException] = []
    ready = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            ready.wait()
            act(number)
        except BaseException as error:
            traceback.print_exception(error)  # where it was, for whoever reads the report
            wrong.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


@pytest.mark.privileged
def test_eight_threads_work_on_one_store(store: Store) -> None:
    """Ingests, reads, mounts, names and a collection now and then; nothing is lost or mixed up."""
    store.images.create(id="shared")

    def act(number: int) -> None:
        for turn in range(4):
            id = f"t{number}-{turn}"
            content = random.Random(id).randbytes(20_000)
            data = file(b"own", content) + file(b"both", b"x" * 5000) + END
            store.layers.import_(io.BytesIO(data), id=id)
            with store.layers.diff(id, compression=0) as chunks:
                assert b"".join(chunks) == data
            path = store.mount(id)
            assert (path / "own").read_bytes() == content
            (path / "written").write_text(id)
            assert store.unmount(id)
            store.add_names("shared", [id])
            if turn % 2:
                store.layers.delete(id)
                store.gc()

    assert in_threads(8, act) == []
    assert sorted(store.names("shared")) == sorted(f"t{n}-{turn}" for n in range(8) for turn in range(4))
    assert {layer.id for layer in store.layers.all()} == {f"t{n}-{turn}" for n in range(8) for turn in (0, 2)}
    store.gc()
    found = [f.message for f in store.check(content=True).findings if not f.message.endswith("layer content modified")]
    assert found == []


def test_threads_that_end_leave_no_connections_behind_for_long(store: Store) -> None:
    """A thread's connection goes with it."""
    store.layers.create(id="a")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        thread = threading.Thread(target=store.layers.all)
        thread.start()
        thread.join()
    assert len(os.listdir("/proc/self/fd")) <= before + 10


def test_a_store_does_not_survive_a_fork(store: Store) -> None:
    """The child is told so, in words, before it can touch the parent's connection; the parent goes on."""
    store.layers.create(id="a")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            store.layers.all()
            words = "nothing was raised"
        except BaseException as error:
            words = f"{type(error).__name__}: {error}"
        os.write(write, words.encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        assert pipe.read().decode() == "RuntimeError: a catalog does not survive a fork: open the store again"
    os.waitpid(child, 0)
    assert [layer.id for layer in store.layers.all()] == ["a"]
    store.layers.create(id="b")


@pytest.mark.parametrize(
    "act", [lambda store: None, lambda store: store.layers.get("a"), lambda store: store.set_metadata("a", "m")]
)
def test_a_thousand_openings_leave_nothing_open(tmp_path: Path, act: Callable[[Store], object]) -> None:
    root, run = tmp_path / "root", tmp_path / "run"
    with Store.open(root, run=run) as store:
        store.layers.import_(io.BytesIO(file(b"f", b"1") + END), id="a")
    with Store.open(root, run=run) as store:
        act(store)
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(334):
        with Store.open(root, run=run) as store:
            act(store)
    assert sorted(os.listdir("/proc/self/fd")) == before
