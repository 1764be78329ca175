"""Counts what was played: with ``LADING_HOSTILE_REPORT=FILE`` the figures go there, whatever number of processes ran."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter

import pytest

_PLAYED: Counter[str] = Counter()


class _Counting:
    """Sees the reports of the process that runs the tests, not those passed on to another one."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a case that was played."""
        found = dict(report.user_properties)
        if report.when == "call" and "hostile" in found:
            strategy = found["hostile"]
            _PLAYED[f"{strategy}: played"] += 1
            _PLAYED[f"{strategy}: as specified"] += report.passed
            _PLAYED["writes outside"] += int(str(found.get("outside", 1)))


def pytest_configure(config: pytest.Config) -> None:
    """Count where tests run."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.register(_Counting())


def pytest_sessionfinish() -> None:
    """Add this process's figures to the report's."""
    path = os.environ.get("LADING_HOSTILE_REPORT")
    if not path or not _PLAYED:
        return
    with open(path, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        found = json.loads(file.read() or "{}")
        file.truncate(0)
        json.dump({key: found.get(key, 0) + _PLAYED[key] for key in sorted({*found, *_PLAYED})}, file, indent=1)
