"""Commands about views and snapshots, as a script sees them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli.test_command import Run, lading, layer_file, ok  # noqa: F401 - fixtures

pytestmark = pytest.mark.privileged


@pytest.fixture
def container(lading: Run, layer_file: str) -> str:  # noqa: F811 - fixtures
    """A container on an image."""
    layer = ok(lading("import-layer", "--file", layer_file)).split()[0]
    ok(lading("create-image", "--name", "image", layer))
    return ok(lading("create-container", "--name", "box", "image")).split()[0]


def test_cache(lading: Run, container: str) -> None:  # noqa: F811 - fixtures
    """Fill, list, measure, check, trim."""
    del container
    assert ": 1 views, " in ok(lading("cache", "prefetch", "image"))
    (view,) = json.loads(ok(lading("cache", "--json", "list")))
    assert (view["kind"], view["mounted"]) == ("image", False)
    sizes = json.loads(ok(lading("cache", "--json", "size")))
    assert sizes["image"] == view["bytes"]
    assert sizes["total"] == sum(value for key, value in sizes.items() if key != "total")
    assert ok(lading("cache", "check")) == "1 images looked at, 0 damaged\n"
    assert ok(lading("cache", "--dry-run", "evict")).startswith(f"would free {view['bytes']} bytes: 1 images")
    assert ok(lading("cache", "evict")).startswith(f"freed {view['bytes']} bytes: 1 images")
    assert view["name"] not in ok(lading("cache", "list"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("cache", "wipe\x1b"), 'cache: unknown verb "wipe\\x1b"; known: list, size, evict, prefetch, check'),
        (("cache", "prefetch"), "cache prefetch needs an image"),
        (("cache", "size", "image"), "cache size takes no further argument"),
        (("cache", "--budget", "many", "evict"), "invalid size: 'many'"),
        (("cache", "prefetch", "nothing"), "not known"),
        (("commit", "nothing"), "container not known"),
        (("clone", "nothing"), "container not known"),
    ],
)
def test_what_is_wrong_is_named(lading: Run, words: tuple[str, ...], message: str) -> None:  # noqa: F811 - fixtures
    """One line, non-zero."""
    done = lading(*words)
    assert done.returncode
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_commit_and_clone(lading: Run, container: str) -> None:  # noqa: F811 - fixtures
    """What was written is in both."""
    path = Path(ok(lading("mount", "box")).strip())
    (path / "new").write_text("n")
    ok(lading("commit", "--name", "made", container))
    assert json.loads(ok(lading("clone", "--name", "other", "--json", container)))["names"] == ["other"]
    ok(lading("unmount", "box"))
    shown = Path(ok(lading("mount", "--read-only", "--flatten", "made")).strip())
    assert sorted(os.listdir(shown)) == ["bin", "etc", "new"]
    ok(lading("unmount", "made"))
    assert (Path(ok(lading("mount", "other")).strip()) / "new").read_text() == "n"
    ok(lading("unmount", "other"))


def test_checkouts(lading: Run, container: str, tmp_path: Path) -> None:  # noqa: F811 - fixtures
    """A copy is the caller's; hard links are a read-only mount; reflinks need a filesystem that has them."""
    del container
    assert ok(lading("checkout", "--copy", "image", str(tmp_path / "copy"))) == f"{tmp_path}/copy\n"
    (tmp_path / "copy/etc/hosts").write_text("mine")
    ok(lading("checkout", "--hardlink", "image", str(tmp_path / "linked")))
    try:
        assert (tmp_path / "linked/etc/hosts").read_bytes() == b"127.0.0.1\n"
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "linked/etc/hosts").write_text("w")
    finally:
        ok(lading("cache", "evict"))
        assert (tmp_path / "linked/bin/x").read_bytes() == b"x" * 3000
        os.system(f"umount {tmp_path}/linked")
