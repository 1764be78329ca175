"""Every input that fuzzing kept runs again, and every one that once broke something."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.corpora import read_corpus, regressions
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_what_fuzzing_kept_still_holds(name: str) -> None:
    """Seeds and corpus: no target says anything but what it may."""
    target = TARGETS[name]
    inputs = [*target.seeds(), *read_corpus(name)]
    assert inputs
    for data in inputs:
        target.run(data)


@pytest.mark.parametrize(
    ("name", "path"),
    [pytest.param(name, path, id=f"{name}-{path.name}") for name in TARGETS for path in regressions(name)],
)
def test_what_once_broke_does_not_break(name: str, path: Path) -> None:
    """Each of these was a crash, a wrong answer or a wait."""
    TARGETS[name].run(path.read_bytes())
