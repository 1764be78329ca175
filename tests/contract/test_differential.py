"""Our store beside that of ``containers-storage``: the same commands, and whether the answers are the same.

``LADING_DIFFERENTIAL_EXAMPLES`` is the number of random sequences for each driver, ``LADING_DIFFERENTIAL_STEPS`` their
length, ``LADING_DIFFERENTIAL_SEED`` makes them other ones, ``LADING_DIFFERENTIAL_REPORT`` names a file for statistics.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.contract.diff_machine import Commands, OverlayCommands
from tests.contract.differential import REFERENCE, Statistics

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(shutil.which(REFERENCE) is None, reason=f"needs {REFERENCE}"),
]

EXAMPLES = int(os.environ.get("LADING_DIFFERENTIAL_EXAMPLES", "20"))
STEPS = int(os.environ.get("LADING_DIFFERENTIAL_STEPS", "30"))
SEED = os.environ.get("LADING_DIFFERENTIAL_SEED")


@pytest.fixture(autouse=True, scope="module")
def _statistics() -> Iterator[None]:
    yield
    report = Statistics.report()
    print(report)
    path = os.environ.get("LADING_DIFFERENTIAL_REPORT")
    if path:
        Path(path).write_text(report)


@pytest.mark.parametrize("machine", [Commands, OverlayCommands], ids=["vfs", "overlay"])
def test_random_commands(machine: type[Commands]) -> None:
    """Answers, records and trees are the same, but for what is documented."""
    if SEED is not None:
        machine = seed(int(SEED))(machine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, derandomize=SEED is None, database=None,
            suppress_health_check=list(HealthCheck), print_blob=False, phases=[Phase.generate],
        ),
    )  # fmt: skip
