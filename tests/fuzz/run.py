"""Deep fuzzing with atheris: ``python -m tests.fuzz.run --seconds 480 [--only tar,tree] [--record FILE]``.

Each target runs in a process of its own, with limits of memory and of time per input; its corpus is what was kept
before, the seeds, and what the run adds. Afterwards the corpus is reduced to the inputs that reach something, and
what broke a target is put into ``regressions/`` for somebody to give it a name.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.fuzz.corpora import REGRESSIONS, read_corpus, write_corpus

#: Of one input: seconds, and MiB of the whole process.
INPUT_SECONDS = 25
MEMORY_MIB = 3072

#: Processes that one target may break.
RESTARTS_MAX = 30

#: Variable that holds the name by which a fuzzing process was started.
PROGRAM = "LADING_FUZZ_PROGRAM"

#: Bytes that a target's corpus may have in the repository, uncompressed; the smallest inputs are kept.
KEPT_MAX = 400_000


def child(name: str, arguments: list[str]) -> None:
    """Fuzz one target in this process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["lading"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    repair = target.repair

    def mutate(data: bytes, size_max: int, seed: int) -> bytes:
        found: bytes = atheris.Mutate(data, size_max)
        return found if repair is None or seed % 16 == 0 else repair(found)[:size_max]

    options = {} if repair is None else {"custom_mutator": mutate}
    # Reducing a corpus, libFuzzer starts itself again by this name.
    atheris.Setup([os.environ[PROGRAM], *arguments], target.run, **options)
    atheris.Fuzz()


def fuzz(name: str, seconds: int) -> dict[str, Any]:
    """Fuzz a target and keep what is worth it.

    Returns:
        The record: seconds, inputs run, code reached, what broke.
    """
    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="lading-fuzz-") as scratch:
        folder, broken = Path(scratch, "corpus"), Path(scratch, "broken")
        for path in (folder, broken):
            path.mkdir()
        for number, data in enumerate([*read_corpus(name), *target.seeds()]):
            (folder / f"{number:06d}").write_bytes(data)
        words = Path(scratch, "words")
        # Without any words the file must not be empty.
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words or (b"\xff",)))
        program = Path(scratch, "program")
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.fuzz.run --child {name} "$@"\n')
        program.chmod(0o700)
        before, inputs, figures = time.monotonic(), 0, {}
        # What breaks a target ends its process: it is put aside, and the rest of the time is for another one.
        for _ in range(RESTARTS_MAX):
            left = seconds - int(time.monotonic() - before)
            if left < 1:
                break
            said = _run(
                program, f"-max_total_time={left}", f"-dict={words}", f"-artifact_prefix={broken}/", *_limits(target.size_max),
                str(folder),
            )  # fmt: skip
            figures = _figures(said)
            inputs += figures["inputs"]
        record: dict[str, Any] = {
            "target": name,
            "seconds": round(time.monotonic() - before),
            **figures,
            "inputs": inputs,
        }
        record["broken"] = _keep_broken(name, broken)
        merged = Path(scratch, "merged")
        merged.mkdir()
        _run(program, "-merge=1", *_limits(target.size_max), str(merged), str(folder))
        record["corpus"] = write_corpus(name, _smallest(merged))
    return record


def _limits(size_max: int) -> tuple[str, ...]:
    return (f"-max_len={size_max}", f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}", "-print_final_stats=1")


def _run(program: Path, *arguments: str) -> str:
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, errors="replace", check=False,
        env={**os.environ, PROGRAM: str(program)},
    )  # fmt: skip
    if done.returncode:
        sys.stderr.write(done.stdout[-6000:] + done.stderr[-3000:])
    return done.stderr


def _figures(said: str) -> dict[str, int]:
    """Inputs run, edges and features reached, as libFuzzer tells them."""
    found = {}
    executed = re.findall(r"number_of_executed_units: (\d+)|^#(\d+)\s", said, re.MULTILINE)
    found["inputs"] = max((int(total or step) for total, step in executed), default=0)
    for key, word in (("edges", "cov"), ("features", "ft")):
        numbers = re.findall(rf"\b{word}: (\d+)", said)
        found[key] = int(numbers[-1]) if numbers else 0
    return found


def _keep_broken(name: str, broken: Path) -> list[str]:
    kept = []
    for path in sorted(broken.iterdir()):
        target = REGRESSIONS / name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        kept.append(path.name)
    return kept


def _smallest(folder: Path) -> list[bytes]:
    inputs = sorted((path.read_bytes() for path in folder.iterdir()), key=len)
    kept, size = [], 0
    for data in inputs:
        size += len(data)
        if size > KEPT_MAX:
            break
        kept.append(data)
    return kept


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def main() -> None:
    """Fuzz targets one after the other."""
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="of each target")
    parser.add_argument("--only", default="", help="targets, by commas")
    parser.add_argument("--record", default="", help="file that gets a line of JSON a target")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(TARGETS)
    broken = 0
    for name in names:
        record = fuzz(name, options.seconds)
        print(json.dumps(record), flush=True)
        if options.record:
            with open(options.record, "a") as file:
                file.write(json.dumps(record) + "\n")
        broken += len(record["broken"])
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
    else:
        main()
