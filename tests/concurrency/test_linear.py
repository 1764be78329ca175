"""What several processes see of the records is what they would see if all operations happened one after the other.

``LADING_LINEAR=N`` runs N histories instead of a few, ``LADING_LINEAR_SEED`` begins with another seed, and
``LADING_LINEAR_REPORT=FILE`` keeps histories that have no order.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.concurrency.linear_model import Call, order_of
from tests.concurrency.linear_run import PROCESSES, described, history, keep, program
from tests.concurrency.processes import Crew

HISTORIES = int(os.environ.get("LADING_LINEAR", "50"))
FIRST_SEED = int(os.environ.get("LADING_LINEAR_SEED", "0"))
REPORT = os.environ.get("LADING_LINEAR_REPORT", "")

#: Histories of one store: listings read all records.
OF_ONE_STORE = 100

#: Seeds whose programs once had a history without an order. Each is run several times: it depends on the timing.
FAILED_ONCE = (79, 593, 1563, 5028, 5031)  # a record deleted twice at once; images that share a layer, deleted at once


def check(seeds: list[int], tmp_path: Path) -> tuple[int, list[str]]:
    """Run programs and look for an order of each; return how many calls overlapped another, and what has none."""
    overlapping, wrong = 0, []
    for start in range(0, len(seeds), OF_ONE_STORE):
        crew = Crew(tmp_path / f"root{start}", tmp_path / f"run{start}")
        try:
            workers = [crew.hire() for _ in range(PROCESSES)]
            for number, seed in enumerate(seeds[start : start + OF_ONE_STORE]):
                calls = history(workers, program(seed), f"h{number}-", seed)
                overlapping += sum(
                    any(one is not other and one.begun < other.ended and other.begun < one.ended for other in calls)
                    for one in calls
                )
                if order_of(calls) is None:
                    wrong.append(f"seed {seed}:\n{described(calls)}")
                    if REPORT:
                        keep(Path(REPORT), seed, calls)
        finally:
            crew.close()
    return overlapping, wrong


def test_random_histories_have_an_order(tmp_path: Path) -> None:
    seeds = list(range(FIRST_SEED, FIRST_SEED + HISTORIES))
    overlapping, wrong = check(seeds, tmp_path)
    if REPORT:
        with Path(REPORT).open("a") as file:
            file.write(
                f"{time.strftime('%FT%TZ', time.gmtime())} {HISTORIES} histories, {overlapping} overlapping calls, {len(wrong)} wrong\n"
            )
    assert wrong == []
    assert overlapping > HISTORIES  # else nothing was tried


@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_programs_that_failed_once(seed: int, tmp_path: Path) -> None:
    _, wrong = check([seed] * 8, tmp_path)
    assert wrong == []


def call(verb: str, *args: object, begun: int, ended: int, outcome: tuple[str, object] = ("ok", None)) -> Call:
    return Call(verb, args, begun, ended, outcome)


def test_the_search_finds_an_order_of_what_overlaps() -> None:
    """The look-up that began first saw what ended last."""
    calls = [
        call("lookup", "a", begun=0, ended=9, outcome=("ok", ("layer", "a", (), "new"))),
        call("create_layer", "a", "", (), begun=1, ended=3),
        call("set_metadata", "a", "new", begun=4, ended=12),
    ]
    found = order_of(calls)
    assert found is not None
    assert [one.verb for one in found] == ["create_layer", "set_metadata", "lookup"]


def test_the_search_refuses_a_change_that_lands_on_the_record_a_name_left() -> None:
    """The metadata of a name's old record changes after everybody can know that the name has moved."""
    calls = [
        call("create_layer", "a", "", ("n",), begun=0, ended=1),
        call("create_layer", "b", "", (), begun=2, ended=3),
        call("set_metadata", "n", "late", begun=4, ended=20),
        call("set_names", "b", ("n",), begun=5, ended=6, outcome=("ok", ("n",))),
        call("metadata", "a", begun=7, ended=8, outcome=("ok", "")),
        call("metadata", "a", begun=21, ended=22, outcome=("ok", "late")),
    ]
    assert order_of(calls) is None
    assert order_of([*calls[:5], call("metadata", "b", begun=21, ended=22, outcome=("ok", "late"))]) is not None


def test_the_search_refuses_a_lost_update() -> None:
    calls = [
        call("create_image", "i", "", (), begun=0, ended=1),
        call("add_names", "i", ("n",), begun=2, ended=4, outcome=("ok", ("n",))),
        call("add_names", "i", ("m",), begun=3, ended=5, outcome=("ok", ("m",))),
    ]
    assert order_of(calls) is None
