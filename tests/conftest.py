"""What all tests share: stores, and the rule that in CI nothing privileged is skipped."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from lading import Store
from lading.materialize.beneath import remove_tree

IN_CI = os.environ.get("CI") == "true"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ordinary users cannot mount: their privileged tests are skipped, with the reason."""
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("privileged"):
                item.add_marker(pytest.mark.skip(reason="needs root: mounts, owners, devices"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure in CI, where everything that a test needs is there."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped in CI: {report.longrepr}"
    return report


def pytest_sessionstart() -> None:
    """In CI the peer must be there: comparisons that cannot run would pass unseen.

    Shells ignore interrupts for what runs in the background, and commands that begin so go on ignoring them.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if IN_CI and shutil.which("containers-storage") is None:
        raise pytest.UsageError("CI needs Debian's containers-storage")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder of the test's own, removed by our own means: trees of any depth, no recursion."""
    path = Path(tempfile.mkdtemp(prefix="lading-test-")).resolve()
    yield path
    remove_tree(path)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: for tests of which step follows which, and not of what is synced."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="lading-test-", dir=parent)).resolve()
    yield path
    remove_tree(path)


@pytest.fixture
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty store with the default driver; whatever it has mounted is unmounted at the end."""
    with Store.open(tmp_path / "root", run=tmp_path / "run") as opened:
        yield opened
        for mount in opened.mounts():
            opened.unmount(mount.layer, force=True)
    raise_no_false_alarm(request, tmp_path / "root", tmp_path / "run")


@pytest.fixture
def vfs_store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty store that shows layers as plain trees, as for ordinary users."""
    with Store.open(tmp_path / "vfs-root", run=tmp_path / "vfs-run", driver="vfs") as opened:
        yield opened
    raise_no_false_alarm(request, tmp_path / "vfs-root", tmp_path / "vfs-run")


#: Where the number of stores that were checked after their tests is kept, in the worker's and the whole run's settings.
CHECKED = pytest.StashKey[int]()


def raise_no_false_alarm(request: pytest.FixtureRequest, root: Path, run: Path) -> None:
    """Check a store that a test is done with, every byte: no test but those marked ``damages`` leaves damage.

    Records that miss others are a test's own business: only what is said of packs, objects and the catalog counts.
    """
    if request.node.get_closest_marker("damages") or not any(root.glob("*.json")):
        return
    with Store.open(root, run=run) as opened:
        report = opened.check(content=True, modifications=False)
    assert report.ids("store") == []
    assert (report.damaged, report.incomplete) == (0, False)
    request.config.stash[CHECKED] = request.config.stash.get(CHECKED, 0) + 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of several tells how many stores it has checked."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["stores"] = session.config.stash.get(CHECKED, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add up what the workers tell."""
    told = getattr(node, "workeroutput", {}).get("stores", 0)
    node.config.stash[CHECKED] = node.config.stash.get(CHECKED, 0) + told


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how many stores were checked."""
    count = config.stash.get(CHECKED, 0)
    if count:
        terminalreporter.write_line(f"{count} stores checked after their tests, every byte: no false alarm")
