"""Every case by every door, shown from EROFS images under overlay."""

from __future__ import annotations

import pytest

from tests.hostile.cases import Case
from tests.hostile.suite import Record, Stage, chosen, fixture_of
from tests.hostile.table import CASES

pytestmark = pytest.mark.privileged

played = fixture_of("erofs")


@pytest.mark.parametrize(
    ("case", "door"), [pytest.param(case, door, id=f"{case.id}-{door}") for case, door in chosen(CASES, "erofs")]
)
def test_the_result_is_exact(played: Stage, case: Case, door: str, record_property: Record) -> None:
    """Refused with one line and the store as before, or stored byte for byte and shown as it must be."""
    record_property("hostile", played.strategy)
    try:
        played.play(door, case)
    finally:
        record_property("outside", len(played.outside.touched()))
