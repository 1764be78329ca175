"""A check beside writers: whatever they do, what it compares is of one moment."""

from __future__ import annotations

import io
import time
from contextlib import suppress

import pytest

from lading import Store
from lading.catalog import chain
from lading.catalog.journal import Journal
from lading.errors import LadingError
from tests.concurrency.processes import Crew, Line

#: How long checks and writers go on, in seconds.
SPAN_S = 4.0


def keeps_writing(store: Store, line: Line, mark: str) -> int:
    """Make, change and delete records, and close the journal's segment again and again, until told to stop."""
    Journal.needs_snapshot = lambda self, conn: True  # type: ignore[method-assign]
    until = time.monotonic() + SPAN_S
    round = 0
    while time.monotonic() < until:
        name = f"{mark}{round}"
        with suppress(LadingError):  # a name that the other one has just taken
            store.layers.create(id=name, names=["shared"])
        with suppress(LadingError):
            store.images.create(name, id=name)
            store.images.set_data(name, "k", io.BytesIO(name.encode()))
            store.set_metadata(name, mark)
            store.set_names(name, ["moving"])
        with suppress(RuntimeError), store._context.catalog.write("fail") as tx:
            tx.touch("image", name)
            raise RuntimeError
        with suppress(LadingError):
            store.delete(name)
        if round % 7 == 0:
            store.gc()
        round += 1
    return round


@pytest.mark.parametrize("settings", [{}, {"sync": "relaxed"}])
def test_writers_raise_no_false_alarm_in_a_check(crew: Crew, settings: dict[str, str]) -> None:
    """Also when segments of the journal are replaced by snapshots under it, and a writer is killed."""
    writers = [crew.hire(**settings) for _ in range(2)]
    doomed = crew.hire(**settings)
    for number, worker in enumerate((*writers, doomed)):
        worker.start(keeps_writing, "abc"[number])
    checks = 0
    until = time.monotonic() + SPAN_S
    with Store.open(crew.root, run=crew.run) as store:
        while time.monotonic() < until:
            report = store.check(modifications=False)
            assert [finding for finding in report.findings if finding.kind == "store"] == []
            assert not report.incomplete
            checks += 1
            if checks == 5:
                doomed.kill()
        assert min(worker.result() for worker in writers) > 3
        assert checks > 5
        assert store.check(modifications=False).findings == ()
        assert "not compared" not in store.check().depths[0][2]


def test_a_check_that_writers_overtake_still_notices_what_hands_have_changed(crew: Crew) -> None:
    """Every look falls beside a commit, and what was compared is of before it."""
    with Store.open(crew.root, run=crew.run) as store:
        store.layers.create(id="victim")
        store._context.catalog.connection().execute("UPDATE layer SET metadata = 'forged'")
        plain, rounds = chain.scan, 0

        def overtaken(*arguments: object, **options: object) -> object:
            nonlocal rounds
            rounds += 1
            store.layers.create(id=f"other{rounds}")
            return plain(*arguments, **options)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(chain, "scan", overtaken)
            found = store.check().findings
        assert [finding.message.partition(";")[0] for finding in found] == [
            "layer victim: its record differs from the journal (metadata)"
        ]
        assert rounds > 1
        store.set_metadata("victim", "own")
