"""Reading every byte: in turn, again and again, beside everything else."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lading import Settings, Store
from lading.flows import scrub
from lading.objects import verify
from lading.values import FRAME_SIZE, Location
from tests import damage
from tests.flows.test_gc import layer_of
from tests.flows.test_layers import taken_out
from tests.tarmake import tree


class Stopped(BaseException):
    """As from the keyboard."""


def verified(store: Store) -> dict[str, int]:
    """When each pack's objects were last found sound, in nanoseconds; 0 for never."""
    query = "SELECT p.name, min(coalesce(o.verified_at, 0)) FROM object o JOIN pack p ON p.id = o.pack_id GROUP BY 1"
    return dict(damage.rows(store, query))


def reading(monkeypatch: pytest.MonkeyPatch, *, fail_after: int = 1 << 30) -> list[list[str]]:
    """Note which packs are read together; stop like a user does after some of them."""
    seen: list[list[str]] = []
    real = verify.verify_objects

    def noted(backend: object, locations: Iterable[Location], **options: object) -> Iterator[verify.Finding]:
        found = list(locations)
        if len(seen) >= fail_after:
            raise Stopped
        seen.append(list(dict.fromkeys(item.pack for item in found)))
        yield from real(backend, found, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(verify, "verify_objects", noted)
    monkeypatch.setattr(scrub, "GROUP_SIZE", 1)  # each pack by itself
    return seen


@pytest.fixture
def packs(store: Store) -> list[str]:
    """Packs of a store, in the order they were made."""
    for seed in range(1, 6):
        store.layers.import_(io.BytesIO(layer_of(seed, shared=0)))
    return [row[0] for row in damage.rows(store, "SELECT name FROM pack ORDER BY id")]


def test_what_was_not_looked_at_for_longest_comes_first(
    store: Store, packs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """New packs before all others, then by age."""
    for age, name in enumerate(reversed(packs), 10):
        with store._context.catalog.write_rows() as conn:
            conn.execute(
                "UPDATE object SET verified_at = ? WHERE pack_id = (SELECT id FROM pack WHERE name = ?)", (age, name)
            )
    new = store.layers.import_(io.BytesIO(layer_of(9, shared=0)))
    seen = reading(monkeypatch)

    assert store.check(content=True).findings == ()

    assert [name for group in seen for name in group][1:] == list(reversed(packs))
    assert len(seen) == len(packs) + 1
    assert new.id


def test_a_pass_that_was_stopped_goes_on_where_it_stopped(
    store: Store, packs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the keyboard, or by its time; the next begins anew only when all was read."""
    with monkeypatch.context() as patched:
        first = reading(patched, fail_after=2)
        with pytest.raises(Stopped):
            store.check(content=True)
    (row,) = store.query("SELECT ended, objects_left > 0, objects FROM v_scrub")[1]
    assert row[:2] == (None, 1)

    with monkeypatch.context() as patched:
        second = reading(patched)
        report = store.check(content=True)

    assert sorted(name for group in first + second for name in group) == sorted(packs)
    assert f"{row[2]} objects were verified earlier in this pass" in report.depths[-1][2]
    assert list(store.query("SELECT ended IS NULL, objects_left, damaged FROM v_scrub")[1]) == [(0, 0, 0)]
    with monkeypatch.context() as patched:
        third = reading(patched)
        store.check(content=True)
    assert sorted(name for group in third for name in group) == sorted(packs)


def test_a_time_limit_ends_the_run_and_says_what_is_left(store: Store, packs: list[str]) -> None:
    """Nothing is begun after it."""
    report = store.check(content=True, seconds=1e-9)

    assert "every byte of 0 objects, 0 bytes; not read yet: 105 objects" in report.depths[-1][2]
    assert report.findings == ()
    assert store.check(content=True).depths[-1][2].startswith("every byte of 105 objects")


def test_the_rate_bounds_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that passed unused gives no burst."""
    now = [100.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("lading.flows.scrub.time.monotonic", lambda: now[0])
    monkeypatch.setattr("lading.flows.scrub.time.sleep", sleep)
    budget = scrub.Budget(rate=1000)

    for _ in range(10):
        budget.pace(500)
    assert sum(slept) == pytest.approx(4.5)
    now[0] += 3600
    slept.clear()
    for _ in range(10):
        budget.pace(500)
    assert sum(slept) == pytest.approx(3.5)


@pytest.mark.damages
def test_damage_found_earlier_in_a_pass_is_told_by_each_run(
    store: Store, packs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although it is not read in the ordinary turn again."""
    digest = damage.object_at(store, "own/1/3")
    damage.spoil(store, digest)
    with monkeypatch.context() as patched:
        reading(patched, fail_after=len(packs) - 1)
        with pytest.raises(Stopped):
            store.check(content=True)

    for content in (True, False):
        assert [f.kind for f in store.check(content=content).findings] == ["store", "layer"]


def test_a_pack_that_a_collection_replaced_meanwhile_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its objects are read where they are now."""
    with Store.open(tmp_path / "root", run=tmp_path / "run", settings=Settings(repack_share=0.2)) as store:
        store.layers.import_(io.BytesIO(layer_of(1, files=50, shared=30)), id="goes")
        store.layers.import_(io.BytesIO(layer_of(2, files=1, shared=30)), id="stays")
        real = verify.verify_objects
        collected: list[int] = []

        def late(backend: object, locations: Iterable[Location], **options: object) -> Iterator[verify.Finding]:
            if not collected:
                store.layers.delete("goes")
                collected.append(store.gc().packs_rewritten)
            return real(backend, locations, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(verify, "verify_objects", late)
        report = store.check(content=True)

        assert collected == [1]
        assert report.findings == ()
        assert list(store.query("SELECT objects_left FROM v_scrub")[1]) == [(0,)]
        assert min(verified(store).values()) > 0


def test_nothing_is_held_while_bytes_are_read(store: Store, packs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Records change, layers come, and a collection takes all it may."""
    done: list[int] = []
    real = verify.verify_objects

    def busy(backend: object, locations: Iterable[Location], **options: object) -> Iterator[verify.Finding]:
        if not done:
            layer = store.layers.import_(io.BytesIO(layer_of(77, shared=0)))
            store.layers.delete(layer.id)
            done.append(store.gc().freed_bytes)
        return real(backend, locations, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(verify, "verify_objects", busy)

    assert store.check(content=True).findings == ()
    assert done[0] > 20 * 3000


def test_the_clock_set_back_repeats_nothing_and_forgets_nothing(
    store: Store, packs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass begins after all that was noted before it."""
    store.check(content=True)
    monkeypatch.setattr("lading.catalog.damage.time.time_ns", lambda: 1)
    seen = reading(monkeypatch)

    store.check(content=True)

    assert sorted(name for group in seen for name in group) == sorted(packs)
    assert list(store.query("SELECT objects_left FROM v_scrub")[1]) == [(0,)]


def test_large_and_small_objects_are_read_as_a_reader_does(store: Store) -> None:
    """Every frame of every object; a byte of any of them is noticed."""
    rng = random.Random(1)
    parts = {f"small/{number}": rng.randbytes(rng.randrange(1, 9000)) for number in range(300)}
    parts |= {
        "text": b"words " * 100000,
        "large": rng.randbytes(3 * FRAME_SIZE + 5),
        "frame": rng.randbytes(FRAME_SIZE),
    }
    layer = store.layers.import_(io.BytesIO(tree(parts)))
    assert store.check(content=True).findings == ()
    assert taken_out(store, layer.id)
    for path in ("small/7", "text", "large", "frame"):
        digest = damage.object_at(store, path)
        damage.spoil(store, digest)
        found = [f.message for f in store.check(content=True).findings if f.kind == "layer"]
        assert found == [f'layer {layer.id}: file integrity checksum failed for "{path}"']
        damage.spoil(store, digest)


@pytest.mark.damages
def test_a_store_that_is_only_read_is_read_without_a_note(store: Store, packs: list[str], tmp_path: Path) -> None:
    """As an additional store; its damage counts all the same."""
    digest = damage.object_at(store, "own/2/3")
    damage.spoil(store, digest)
    settings = Settings(additional_stores=(str(store.root),))
    with Store.open(tmp_path / "top", run=tmp_path / "top-run", settings=settings) as top:
        report = top.check(content=True)

    assert len(report.ids("read-only layer")) == 1
    assert set(verified(store).values()) == {0}
    assert damage.rows(store, "SELECT count(*) FROM object WHERE damaged_at IS NOT NULL") == [(0,)]


def test_many_packs_cost_few_commits(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones are read and noted together."""
    for number in range(30):
        store.images.create(big_data={"k": os.urandom(200 + number)})
    catalog = store._context.catalog
    verbs: list[str] = []
    real = catalog.write_rows

    def counted(verb: str = "", **options: bool) -> object:
        verbs.append(verb)
        return real(verb, **options)

    monkeypatch.setattr(catalog, "write_rows", counted)

    store.check(content=True)

    assert len(verbs) <= 4


def test_a_slow_run_gets_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It notes what it has read every few seconds, whatever a pack's size, and has begun from the first moment on."""
    with Store.open(tmp_path / "root", run=tmp_path / "run") as store:
        store.images.create(big_data={f"k{number}": os.urandom(30_000) for number in range(10)})
        waited = []

        def stop(budget: Any, size: int) -> None:
            waited.append(size)
            if len(waited) == 4:
                raise KeyboardInterrupt

        monkeypatch.setattr("lading.flows.scrub.Budget.pace", stop)
        monkeypatch.setattr("lading.flows.scrub._NOTED_S", 1.0)
        with pytest.raises(KeyboardInterrupt):
            store.check(content=True, rate=40_000)
        ((objects, left),) = store.query("SELECT objects, objects_left FROM v_scrub")[1]

    assert (objects, left) == (3, 7)


def test_damage_that_cannot_be_noted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repair that follows would see nothing to do."""
    monkeypatch.setattr("lading.flows.damage.record", lambda *_: False)
    with Store.open(tmp_path / "root", run=tmp_path / "run") as store:
        image = store.images.create(big_data={"k": os.urandom(30_000)})
        damage.spoil(store, image.big_data[0].object)
        report = store.check(content=True)

    assert report.incomplete
    assert any("could not be noted" in finding.message for finding in report.findings)
