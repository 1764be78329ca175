"""Every session of ``transcripts/`` plays as it is written down, with both drivers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lading.materialize import mounts
from tests.contract.transcript import Section, environment, play, sections

pytestmark = pytest.mark.privileged

CASES = [
    pytest.param(section, driver, id=f"{section.name}-{driver}") for section in sections() for driver in section.drivers
]


@pytest.mark.parametrize(("section", "driver"), CASES)
def test_session(section: Section, driver: str, tmp_path: Path) -> None:
    """What is printed, where, and the exit status."""
    try:
        play(section, driver, environment(tmp_path))
    finally:
        for mount in reversed(mounts.mountinfo()):
            if mount.path.is_relative_to(tmp_path):
                subprocess.run(["umount", "-l", str(mount.path)], check=False, capture_output=True)


def test_there_are_sessions() -> None:
    """None is lost by a slip in a heading."""
    assert len(CASES) > 100
    assert len({(case.id) for case in CASES}) == len(CASES)
