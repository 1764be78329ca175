"""Many attempts: which faults, in what order, by how many processes; the table and the report.

``python -m tests.faults.campaign`` runs the deep selection, ``--fast`` the one of the test-suite.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.faults import preload, space
from tests.faults.attempt import Field, Reference, Result, remove
from tests.faults.calls import WRITES
from tests.faults.operations import OPERATIONS, Operation
from tests.faults.watch import MODES, Fault

assert preload.LOADED

#: Most attempts of each kind for one operation. Every kind of call comes first, then as many more, evenly spread.
DEEP: Final = {"kill": 50, "torn": 8, "eio": 26, "enospc": 14, "dead": 6, "short": 4}
FAST: Final = {"kill": 2, "torn": 1, "eio": 1, "enospc": 1, "dead": 1, "short": 0}

#: What no disk makes fail: the mounts of a probe are taken away at once, whoever uses them. One that stayed would only be a
#: loop device that the next boot is rid of.
_NEVER_FAILS: Final = "umount2 /root/cache/.probe-"

#: Fewer attempts than this are drawn: they would be the first and the last whatever the seed.
_SPREAD_MIN: Final = 3


@dataclass
class Tally:
    """What was run for one operation, and what was found."""

    operation: str
    calls: int = 0  #: system calls that change state in an undisturbed run
    runs: dict[str, int] = field(default_factory=dict)  #: by kind of fault; only those that came
    missed: int = 0  #: faults whose call did not come: threads take turns differently
    violations: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def chosen(trace: Sequence[str], mode: str, limit: int, seed: int) -> list[Fault]:
    """Choose the calls to strike at: the first, the last, one of each label, and others evenly spread.

    The same trace and seed give the same choice. When there are more labels than the limit allows, one of each call
    comes first, then labels that the seed draws.
    """
    faults: list[Fault] = []
    counts: Counter[str] = Counter()
    for label in trace:
        faults.append(Fault(mode, label, counts[label]))
        counts[label] += 1
    if mode in ("torn", "short"):
        faults = [fault for fault in faults if fault.label.split(" ")[0] in WRITES and " /proc/" not in fault.label]
    elif mode != "kill":
        faults = [fault for fault in faults if not fault.label.startswith(_NEVER_FAILS)]
    if len(faults) <= limit:
        return faults
    drawn = random.Random(f"{seed} {mode}")
    if limit < _SPREAD_MIN:
        return drawn.sample(faults, limit)
    order = [faults[0], faults[-1], *_first_of(faults, lambda fault: fault.label.split(" ")[0], drawn)]
    order += _first_of(faults, lambda fault: fault.label, drawn)
    step = len(faults) / limit
    order += [faults[int(number * step + drawn.random() * step) % len(faults)] for number in range(limit)]
    picked = list(dict.fromkeys(order))[:limit]
    return [fault for fault in faults if fault in set(picked)]


def _first_of(faults: Sequence[Fault], key: Any, drawn: random.Random) -> list[Fault]:
    """One fault of each group, the groups in an order that is drawn."""
    groups: dict[str, list[Fault]] = {}
    for fault in faults:
        groups.setdefault(key(fault), []).append(fault)
    found = [drawn.choice(group) for group in groups.values()]
    drawn.shuffle(found)
    return found


def campaign(operation: Operation, folder: Path, limits: Mapping[str, int], *, seed: int = 0, jobs: int = 1) -> Tally:
    """Run an operation's attempts."""
    begun = time.monotonic()
    gc.collect()
    gc.freeze()  # so that no collection of a forked process copies every page
    arena = Field(folder, operation)
    arena.prepare()
    reference = arena.reference()
    tally = Tally(operation.name, len(reference.trace))
    faults = [fault for mode in MODES for fault in chosen(reference.trace, mode, limits.get(mode, 0), seed)]
    for fault, result in _attempts(arena, reference, faults, jobs):
        if result.hit:
            tally.runs[fault.mode] = tally.runs.get(fault.mode, 0) + 1
        else:
            tally.missed += 1
        if result.violations:
            tally.violations.append({"fault": str(fault), "words": result.words, "violations": result.violations})
    tally.seconds = round(time.monotonic() - begun, 1)
    return tally


def _attempts(arena: Field, reference: Reference, faults: Sequence[Fault], jobs: int) -> Iterator[tuple[Fault, Result]]:
    """Run attempts, several at a time: each has a mount namespace of its own."""
    waiting = list(reversed(faults))
    running: dict[int, tuple[Fault, int]] = {}
    poll = select.poll()
    while waiting or running:
        while waiting and len(running) < jobs:
            fault = waiting.pop()
            reader, process = _start(arena, fault, reference)
            running[reader] = (fault, process)
            poll.register(reader, select.POLLIN | select.POLLHUP)
        for reader, _ in poll.poll():
            fault, process = running.pop(reader)
            poll.unregister(reader)
            with open(reader) as pipe:
                text = pipe.read()
            os.waitpid(process, 0)
            yield fault, Result(**json.loads(text)) if text else Result(["the attempt ended without an answer"])


def _start(arena: Field, fault: Fault, reference: Reference) -> tuple[int, int]:
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        try:
            os.close(reader)
            with open(writer, "w") as pipe:
                pipe.write(json.dumps(asdict(arena.attempt(fault, reference))))
        finally:
            os._exit(0)
    os.close(writer)
    return reader, process


def table(tallies: Sequence[Tally]) -> str:
    """A line for each operation."""
    rows = [["operation", "calls", *MODES, "missed", "violations", "s"]]
    for tally in tallies:
        counts = [str(tally.runs.get(mode, 0)) for mode in MODES]
        rows.append(
            [
                tally.operation,
                str(tally.calls),
                *counts,
                str(tally.missed),
                str(len(tally.violations)),
                str(tally.seconds),
            ]
        )
    sums = [str(sum(tally.runs.get(mode, 0) for tally in tallies)) for mode in MODES]
    calls, missed = sum(tally.calls for tally in tallies), sum(tally.missed for tally in tallies)
    found = sum(len(tally.violations) for tally in tallies)
    rows.append(
        ["all", str(calls), *sums, str(missed), str(found), str(round(sum(tally.seconds for tally in tallies), 1))]
    )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run what the words ask for; 1 when there were violations."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__)
    parser.add_argument("operations", nargs="*", help="names; none for all")
    parser.add_argument("--fast", action="store_true", help="the selection of the test-suite")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of attempts")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("LADING_FAULTS_SEED", "0")))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default="", help="one fault, as printed: MODE at LABEL #N")
    parser.add_argument("--report", default=os.environ.get("LADING_FAULTS_REPORT", ""), help="a file for JSON")
    given = parser.parse_args(words)
    known = {operation.name: operation for operation in OPERATIONS}
    asked = [known[name] for name in given.operations or known]
    space.leave_namespace()
    folder = Path(tempfile.mkdtemp(prefix="lading-faults-")).resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if given.only:
            return _one(folder, asked[0], given.only)
        limits = {mode: math.ceil(most * given.scale) for mode, most in (FAST if given.fast else DEEP).items()}
        tallies = []
        for operation in asked:
            tallies.append(campaign(operation, folder, limits, seed=given.seed, jobs=given.jobs))
            if len(asked) > 1:
                print(table(tallies[-1:]).splitlines()[1], file=sys.stderr, flush=True)
            for item in tallies[-1].violations:
                print(f"\n{operation.name}: {item['fault']}\n  said: {item['words'].strip()}", file=sys.stderr)
                print("\n".join(f"  {text}" for text in item["violations"]), file=sys.stderr, flush=True)
    finally:
        remove(folder)
    print(table(tallies))
    if given.report:
        described = {
            "seed": given.seed,
            "machine": os.uname().release,
            "operations": [asdict(tally) for tally in tallies],
        }
        Path(given.report).write_text(json.dumps(described, indent=1) + "\n")
    return 1 if any(tally.violations for tally in tallies) else 0


def parse_fault(text: str) -> Fault:
    """Read a fault as it is printed."""
    mode, _, rest = text.partition(" at ")
    label, _, nth = rest.rpartition(" #")
    return Fault(mode, label, int(nth))


def _one(folder: Path, operation: Operation, text: str) -> int:
    """Run one fault and show everything."""
    arena = Field(folder, operation)
    arena.prepare()
    result = arena.attempt(parse_fault(text), arena.reference())
    print(json.dumps(asdict(result), indent=1).replace("\\n", "\n"))
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main())
