"""What surrounds the code: packaging, the import contract, make, the virtual machine, start-up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import lading

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]

#: Modules that cost tens of milliseconds each: no command may pay for them before it knows that it needs them.
HEAVY = {"peewee", "sqlite3", "pysqlite3", "pyzstd", "backports.zstd", "rich", "hypothesis", "concurrent.futures"}


def test_every_folder_with_code_is_a_package_of_the_distribution() -> None:
    """A folder that was forgotten works from this checkout and is missing from the wheel."""
    folders = {
        ".".join(Path(place).relative_to(ROOT).parts)
        for place, _, files in os.walk(ROOT / "lading", followlinks=True)
        if "__init__.py" in files
    }

    assert folders == set(SETUPTOOLS["packages"])


def test_links_and_package_folders_agree() -> None:
    """Type checkers follow the links, the wheel follows the table: both must lead to the same place."""
    links = {
        f"lading.{link.name}": (ROOT / "lading" / os.readlink(link)).resolve()
        for link in (ROOT / "lading").iterdir()
        if link.is_symlink()
    }

    assert links == {package: ROOT / folder for package, folder in SETUPTOOLS["package-dir"].items()}


def test_version_is_told_once() -> None:
    """The distribution and the package tell the same version."""
    assert PROJECT["project"]["version"] == lading.__version__


def test_import_contract_holds() -> None:
    """The rooms import only what lies below them, and every module stands in the contract."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert PROJECT["tool"]["importlinter"]["contracts"][0]["exhaustive"] is True


def loaded_by(code: str) -> set[str]:
    """Tell the modules that a fresh interpreter holds after running some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules, file=sys.stderr)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stderr.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    """`import lading` costs about nothing: its parts are loaded on first use."""
    loaded = loaded_by("import lading")

    assert loaded & HEAVY == set()
    assert {name for name in loaded if name.startswith("lading.")} == set()


def test_the_command_takes_signals_before_it_loads_anything() -> None:
    """Where it begins imports what is at hand, so that no signal finds it halfway through something large."""
    bare = loaded_by("import __future__, gc, os, signal")

    assert loaded_by("import lading.cli.entry") - bare == {"lading", "lading.cli", "lading.cli.entry"}


def test_the_command_starts_without_the_rooms() -> None:
    """A command pays for the catalog and the objects only when it opens a store."""
    loaded = loaded_by("import lading.cli.main")

    assert loaded & HEAVY == set()
    assert not any(name.startswith(("lading.catalog", "lading.objects", "lading.materialize")) for name in loaded)


def targets() -> dict[str, str]:
    """The words `make` lists, and what it says about each."""
    done = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = re.findall(r"^  make ([a-z-]+) +(\S.*)$", done.stdout, re.MULTILINE)
    assert len(listed) == len(done.stdout.splitlines()), done.stdout
    return dict(listed)


def test_bare_make_lists_every_target_in_a_line() -> None:
    """All words but the hidden `venv` are told."""
    declared = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert declared is not None
    assert set(targets()) == set(declared[1].split()) - {"venv"}


def test_every_make_command_of_the_documents_exists() -> None:
    """Readers copy what the pages show; a page must not outlive a target."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "Vagrantfile"]
    shown = {
        (page.name, target)
        for page in pages
        for target in re.findall(r"(?:`|\$ )(?:sudo )?make ([a-z][a-z-]*)", page.read_text())
    }

    assert {("README.md", "demo"), ("README.md", "test")} <= shown
    assert {target for _, target in shown} - set(targets()) == set()


def test_the_virtual_machine_keeps_links_and_runs_the_provisioning_script() -> None:
    """The shared folder's rsync must not copy what links point to; both providers are known, libvirt first."""
    text = (ROOT / "Vagrantfile").read_text()
    arguments = re.search(r"rsync__args: \[(.*)\]", text)

    assert arguments is not None
    assert '"--links"' in arguments[1]
    assert "copy-links" not in arguments[1]
    assert 'ENV.fetch("VAGRANT_PROVIDER", "libvirt")' in text
    assert text.index('"libvirt", "virtualbox"') > 0
    script = re.search(r'config\.vm\.provision "shell", path: "(.*)"', text)
    assert script is not None
    assert os.access(ROOT / script[1], os.X_OK)


def test_ci_prepares_the_machine_with_the_same_script_and_runs_the_same_check() -> None:
    """What a new machine needs is written down in one place."""
    lines = (ROOT / ".ci/run").read_text().splitlines()

    assert "tools/provision.sh ci" in lines
    assert "make check" in lines
    assert "set -euo pipefail" in lines


def test_shell_scripts_are_executable_and_parse() -> None:
    """A script that only runs in CI or in the virtual machine must not fail there for a typing error."""
    scripts = [ROOT / ".ci/run", *(ROOT / "tools").glob("*.sh"), *(ROOT / "bench").glob("*.sh")]
    for script in scripts:
        done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        # A file without this line is read by others, not run.
        assert os.access(script, os.X_OK) or not script.read_text().startswith("#!")
