"""Running a command in a user namespace of its own, with the caller as its root.

Source: unshare(2), user_namespaces(7), newuidmap(1).
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lading.errors import Unsupported
from lading.idmaps import SUBGID, SUBUID, subordinate

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000

#: The child could not be started at all; chosen so that a shell's own 126 and 127 stay distinct.
_NOT_STARTED: Final = 125


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    status: int  #: exit status; negative: the signal that killed it
    not_found: bool = False
    warnings: tuple[str, ...] = ()

    def words(self, program: str) -> str:
        """What went wrong, in the words scripts know; empty for success."""
        if self.not_found:
            return f'exec: "{program}": executable file not found in $PATH'
        if self.status < 0:
            return f"signal: {_signal_words(-self.status)}"
        return f"exit status {self.status}" if self.status else ""


def _signal_words(number: int) -> str:
    try:
        return (signal.strsignal(number) or str(number)).lower()
    except ValueError:
        return str(number)


def run(command: Sequence[str], environ: Mapping[str, str]) -> Ended:
    """Run a command in a new user and mount namespace, and wait for it.

    Root keeps all the IDs it has; an ordinary user becomes root and gets the sub-IDs of its own.

    Args:
        command: program and arguments; standard input and outputs are inherited.
        environ: its environment.

    Raises:
        Unsupported: this kernel, or this user, may make no user namespaces.
    """
    if shutil.which(command[0], path=environ.get("PATH")) is None:
        return Ended(1, not_found=True)
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready_read)
        os.close(go_write)
        _become(command, environ, ready_write, go_read)
    os.close(ready_write)
    os.close(go_read)
    try:
        answer = os.read(ready_read, 1)
        if answer != b"+":
            os.waitpid(child, 0)
            raise Unsupported("this user may make no user namespace here")
        warnings = _map_ids(child)
        os.write(go_write, b"+")
    finally:
        os.close(ready_read)
        os.close(go_write)
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), warnings=tuple(warnings))


def _become(command: Sequence[str], environ: Mapping[str, str], ready: int, go: int) -> None:
    """In the child: leave the parent's namespaces, wait until the IDs are mapped, become root, start the command."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS) != 0:
            os.write(ready, b"-")
            os._exit(_NOT_STARTED)
        os.write(ready, b"+")
        if os.read(go, 1) != b"+":
            os._exit(_NOT_STARTED)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.execvpe(command[0], list(command), dict(environ))  # noqa: S606 - running a command is what is asked for
    except OSError:
        os._exit(126)


def _map_ids(child: int) -> list[str]:
    """Map the child's IDs.

    Returns:
        Warnings about what an ordinary user lacks.
    """
    if os.geteuid() == 0:
        for kind in ("uid_map", "gid_map"):
            _write(Path(f"/proc/{child}/{kind}"), _identity(Path(f"/proc/self/{kind}")))
        return []
    warnings = []
    own = pwd.getpwuid(os.geteuid()).pw_name
    for kind, number, path, helper in (
        ("uid_map", os.geteuid(), SUBUID, "newuidmap"),
        ("gid_map", os.getegid(), SUBGID, "newgidmap"),
    ):
        ranges = subordinate(own, os.geteuid(), path)
        program = shutil.which(helper)
        if ranges and program is not None:
            words = ["0", str(number), "1"]
            start = 1
            for first, count in ranges:
                words += [str(start), str(first), str(count)]
                start += count
            if subprocess.run([program, str(child), *words], capture_output=True, check=False).returncode == 0:
                continue
        warnings.append(f"no {helper} ranges for user {own}: only one ID is mapped")
        if kind == "gid_map":
            _write(Path(f"/proc/{child}/setgroups"), "deny")
        _write(Path(f"/proc/{child}/{kind}"), f"0 {number} 1\n")
    return warnings


def _identity(path: Path) -> str:
    """The IDs of this namespace, each mapped to itself."""
    found = []
    for line in path.read_text().splitlines():
        inside, _, count = line.split()
        found.append(f"{inside} {inside} {count}\n")
    return "".join(found)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise Unsupported(f"{path}: {(error.strerror or '').lower()}") from error
