"""The main job, end to end, on two real trees of this machine.

Run by ``make demo``: stores the Python library and this environment's packages as layers, makes an image and
a container, runs a program from the mounted (as root) or checked-out tree, asks the catalog, deletes,
collects, and tells what came back. Needs nothing but the project's own environment; works as an ordinary
user, too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lading import Store
from lading.errors import LadingError

#: What the program inside the tree is asked to do: use the library that was stored, and say where it lies.
PROGRAM = "import json, sys; print(json.__file__); print('the answer is', json.loads('{\"answer\": 42}')['answer'])"


def say(text: str = "") -> None:
    """Print a line at once."""
    print(text, flush=True)


def size(count: int) -> str:
    """Bytes for people and to the byte."""
    return f"{count / 1e6:,.1f} MB ({count:,} bytes)"


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Tell how long a step took."""
    started = time.monotonic()
    yield
    say(f"   {what}: {time.monotonic() - started:.2f} s")


def pack(tree: Path, prefix: str, target: Path, wanted: Callable[[tarfile.TarInfo], bool]) -> int:
    """Write a tree as a layer tar.

    Returns:
        The tar's size in bytes.
    """

    def keep(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return member if wanted(member) else None

    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(tree, arcname=prefix, filter=keep)
    return target.stat().st_size


def no_packages(member: tarfile.TarInfo) -> bool:
    """The library without installed packages and test suites."""
    return not {"site-packages", "dist-packages", "test", "tests"} & set(member.name.split("/"))


def everything(member: tarfile.TarInfo) -> bool:
    """All of a tree."""
    del member
    return True


def run_from(tree: Path) -> None:
    """Run a Python program with the stored library, from the tree alone."""
    environment = {"PYTHONHOME": str(tree / "usr"), "PYTHONNOUSERSITE": "1", "PATH": os.defpath}
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = tree / "usr/lib" / version
    code = f"import sys; sys.path[:] = [{str(library)!r}, {str(library / 'lib-dynload')!r}]; {PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    for line in done.stdout.splitlines():
        say(f"   | {line}")
    if str(tree) not in done.stdout:
        raise SystemExit("the program did not run from the stored tree")


def demo(scratch: Path) -> None:
    """Show the main job below a scratch folder."""
    library = Path(sysconfig.get_path("stdlib"))
    packages = Path(sysconfig.get_path("purelib"))
    version = library.name

    say("1. Two real trees of this machine become layer tars")
    first, second = scratch / "library.tar", scratch / "packages.tar"
    raw = pack(library, f"usr/lib/{version}", first, no_packages)
    say(f"   {library}: {size(raw)}")
    extra = pack(packages, f"usr/lib/{version}/site-packages", second, everything)
    say(f"   {packages}: {size(extra)}")

    with Store.open(scratch / "store", run=scratch / "run") as store:
        say("2. They are stored as layers: deduplicated, compressed, exact")
        empty = store.balance().total
        with timed("applied"), first.open("rb") as one, second.open("rb") as two:
            base = store.layers.import_(one, names=["library"])
            top = store.layers.import_(two, base.id, names=["packages"])
        stored = store.balance().total
        say(f"   {size(raw + extra)} of tar are now {size(stored - empty)} at rest")
        with store.layers.diff(top.id, compression=0) as chunks:
            same = b"".join(chunks) == second.read_bytes()
        say(f"   the diff comes out byte for byte: {'yes' if same else 'NO'}")
        if not same:
            raise SystemExit("the diff is not what was stored")

        say("3. The same bytes once more, under another parent")
        with second.open("rb") as again:
            store.layers.import_(again, names=["packages-again"])
        say(f"   added {size(store.balance().total - stored)}: the catalog's record and journal, no content")

        say("4. An image, a container, and a program run from its tree")
        image = store.images.create(top.id, names=["demo:latest"])
        container = store.containers.create(image.id, names=["demo"])
        show(store, container.id, scratch)

        say("5. Questions to the catalog")
        question = "SELECT path, size FROM v_file WHERE image = ? AND visible ORDER BY size DESC LIMIT 3"
        for path, count in store.query(question, [image.id])[1]:
            say(f"   {count:>12,}  {path}")

        say("6. Delete and collect")
        store.containers.delete("demo")
        store.layers.delete("packages-again")
        store.images.delete("demo:latest")
        before = store.balance().total
        plan = store.gc(dry_run=True)
        report = store.gc()
        say(f"   planned {size(plan.freed_bytes)}, freed {size(report.freed_bytes)}")
        say(f"   the store went from {size(before)} to {size(store.balance().total)}")
        damage = store.check(content=True).findings
        say(f"   check of every byte: {damage or 'clean'}")
        if damage or report.freed_bytes != plan.freed_bytes:
            raise SystemExit("the collection was not what was planned")


def show(store: Store, container: str, scratch: Path) -> None:
    """Run a program from the container's tree: mounted where that is allowed, else checked out."""
    if os.geteuid() == 0 and store.driver == "overlay":
        with timed("mounted"):
            tree = store.mount(container)
        try:
            run_from(tree)
            (tree / "written-by-the-container").write_text("hello\n")
            changes = store.layers.changes(store.containers.get(container).layer)
            say(f"   changes: {', '.join(os.fsdecode(change.path) for change in changes)}")
        finally:
            store.unmount(container)
    with timed("checked out"):
        report = store.checkout(container, scratch / "tree")
    say(f"   {report.files:,} files in {report.path}")
    run_from(report.path)
    shutil.rmtree(report.path)


def main() -> int:
    """Run the demo in a folder that is removed afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix="lading-demo-"))
    try:
        demo(scratch)
    except LadingError as error:
        say(f"failed: {error}")
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    say("Done. Nothing was left behind.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
