"""One attempt: an operation on a fresh copy of its store, with one fault, and everything that must hold afterwards."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from lading import Store
from lading.materialize.beneath import remove_tree
from tests.faults import space
from tests.faults.operations import Operation, Place
from tests.faults.state import State, diff_digest, differences, measure, named, observe, tree
from tests.faults.watch import Fault, Outcome, forked, watched
from tests.tarmake import END, file

#: Longest time that a loop device of another attempt is seen.
_LOOP_S: Final = 10

#: Lines that tell what was done and seen on the way, before the one that tells what failed.
_TOLD: Final = re.compile(r" level=warning |objects are still damaged$|^healed \d+ objects")

#: Longest time for one attempt.
ATTEMPT_S: Final = 300


@dataclass
class Reference:
    """What an undisturbed run gives."""

    before: State
    after: State
    fixed: list[str]  #: keys of records whose ids are the same in every run
    cleared: State  #: files, bytes and rows that are left once everything is deleted and collected
    trace: list[str]
    mounts: list[str] = field(default_factory=list)


@dataclass
class Result:
    """What an attempt showed."""

    violations: list[str] = field(default_factory=list)
    hit: bool = False
    status: int = 0
    words: str = ""


def in_own_process(act: Callable[[], Any]) -> Any:
    """Run something in a forked process and hand back what it returns, as JSON.

    Raises:
        RuntimeError: with its traceback.
    """
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        status = 1
        try:
            os.close(reader)
            signal.alarm(ATTEMPT_S)
            try:
                text = json.dumps({"value": act()})
            except BaseException:
                text = json.dumps({"error": traceback.format_exc()})
            with open(writer, "w") as pipe:
                pipe.write(text)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader) as pipe:
        text = pipe.read()
    os.waitpid(process, 0)
    if not text:
        raise RuntimeError("the process ended without an answer")
    answer = json.loads(text)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer["value"]


class Field:
    """Where the attempts of one operation take place: below a folder, always at the same path."""

    def __init__(self, folder: Path, operation: Operation) -> None:
        """Use a folder of the caller's own; the caller has a mount namespace of its own, too."""
        self.operation = operation
        self.place = Place(folder / "at")
        self.place.base.mkdir(exist_ok=True)
        self._folder = folder
        self._prepared = folder / f"prepared-{operation.name}"
        os.environ["LADING_CONFIG"] = str(self.place.base / "config.toml")
        os.environ["LC_ALL"] = "C"

    def prepare(self) -> None:
        """Make the store that every attempt begins with."""

        def work() -> None:
            with self._at(fill=False):
                self.operation.configure(self.place)
                self.operation.tweak()
                self.operation.prepare(self.place)
                self._prepared.mkdir()
                space.copy_tree(self.place.base, self._prepared)

        in_own_process(work)

    def _at(self, *, fill: bool = True) -> _At:
        return _At(self, self._folder / f"disk-{os.getpid()}" if self.operation.disk else None, fill=fill)

    def reference(self) -> Reference:
        """Run the operation undisturbed, twice: what differs was drawn."""
        first, second = (in_own_process(self._undisturbed) for _ in range(2))
        fixed = sorted(
            (first["after"].keys() | first["before"].keys()) & (second["after"].keys() | second["before"].keys())
        )
        kept = frozenset(fixed)
        return Reference(
            named(first["before"], kept), named(first["after"], kept), fixed, first["cleared"], first["trace"]
        )

    def _undisturbed(self) -> dict[str, Any]:
        with self._at():
            self._begin()
            before = {} if self.operation.mends else in_own_process(self._observed)
            outcome = watched(lambda: self.operation.run(self.place), str(self.place.base), None)
            if outcome.status:
                raise RuntimeError(f"{self.operation.name} fails undisturbed: {outcome.out}{outcome.err}")
            after = in_own_process(self._observed)
            in_own_process(self._sound)
            in_own_process(self._stored_again)
            return {
                "before": before, "after": after, "trace": outcome.trace, "cleared": in_own_process(self._cleared),
            }  # fmt: skip

    def attempt(self, fault: Fault, reference: Reference) -> Result:
        """Run the operation with a fault, in a process of its own."""
        try:
            return Result(**in_own_process(lambda: asdict(self._attempt(fault, reference))))
        except RuntimeError as error:
            return Result([f"the attempt broke off: {error}"])

    def _attempt(self, fault: Fault, reference: Reference) -> Result:
        result = Result()
        with self._at():
            self._begin()
            outcome = watched(lambda: self.operation.run(self.place), str(self.place.base), fault)
            result.hit, result.status, result.words = outcome.hit, outcome.status, (outcome.err or outcome.out)[-500:]
            checks = _Checks(self, fault, reference, result)
            checks.answer(outcome)
            checks.afterwards(outcome)
        return result

    def _begin(self) -> None:
        if self.operation.before is not None:
            before = self.operation.before
            in_own_process(lambda: before(self.place))

    # What follows runs in processes of its own.

    def _observed(self) -> State:
        with self.operation.open(self.place) as store:
            found = observe(store)
        if self.place.out.exists():
            found["folder out"] = tree(self.place.out)
        return found

    def _next_command(self) -> None:
        """A listing and a record write work, with no repair."""
        with self.operation.open(self.place) as store:
            store.multi_list(layers=True, images=True, containers=True)
            store.layers.create(id="probe")
            store.layers.delete("probe")

    def _sound(self) -> None:
        """Nothing is damaged, every byte considered."""
        with self.operation.open(self.place) as store:
            report = store.check(content=True, modifications=False)
            if report.findings or report.incomplete:
                raise RuntimeError(f"check: {[f'{item.kind} {item.id}: {item.message}' for item in report.findings]}")

    def _collected(self) -> State:
        """A collection takes nothing that is needed."""
        with self.operation.open(self.place) as store:
            warnings = store.gc().warnings
            if warnings:
                raise RuntimeError(f"gc warns: {warnings}")
        return self._observed()

    def _stored_again(self) -> None:
        """New content comes in, and comes out as it was."""
        data = file(b"again", b"again" * 1000) + END
        with self.operation.open(self.place) as store:
            made = store.layers.import_(io.BytesIO(data))
            if diff_digest(store, made.id) != hashlib.sha256(data).hexdigest():
                raise RuntimeError("a new layer's diff differs")

    def _cleared(self) -> State:
        """Everything unmounted, deleted and collected: what is left?"""
        with self.operation.open(self.place) as store:
            _unmount_all(store)
            store.wipe()
            for _ in range(2):
                store.gc()
            store.cache.evict()
        return {**measure(self.place.root), "mounts": space.mounts_below(self.place.run), "loops": self._loops()}

    def _loops(self) -> list[str]:
        """Loop devices that stay. Other attempts have theirs on files of the same names, but not for long."""
        deadline = time.monotonic() + _LOOP_S
        while (found := space.loops_below(self.place.base)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found


def _unmount_all(store: Store) -> None:
    for mount in store.mounts():
        store.unmount(mount.layer, force=True)


class _At:
    """The place of one attempt, filled with a copy of what was prepared; everything goes at the end."""

    def __init__(self, field: Field, disk: Path | None, *, fill: bool) -> None:
        self._field = field
        self._disk = disk
        self._fill = fill

    def __enter__(self) -> None:
        space.leave_namespace()
        base = self._field.place.base
        if self._disk is None:
            space.mount_tmpfs(base)
        else:
            self._disk.mkdir(mode=0o700)
            space.bind(self._disk, base)
        if self._fill:
            space.copy_tree(self._field._prepared, base)

    def __exit__(self, *error: object) -> None:
        for point in space.mounts_below(self._field.place.base):
            space.detach(point)
        if self._disk is not None:
            space.detach(str(self._field.place.base))
            remove_tree(self._disk)


class _Checks:
    """What must hold after a fault."""

    def __init__(self, field: Field, fault: Fault, reference: Reference, result: Result) -> None:
        self._field = field
        self._fault = fault
        self._reference = reference
        self._result = result

    def _violation(self, text: str) -> None:
        self._result.violations.append(text)

    def answer(self, outcome: Outcome) -> None:
        """How the process ended, and what it said."""
        if "Traceback" in outcome.err:
            self._violation(f"a traceback: {outcome.err[-1500:]}")
        for label in outcome.believed:
            if outcome.status > 0 and "/objects/staging/" in label:
                continue  # nothing of it was published
            self._violation(f"synced once more after a sync had failed: {label}")
        if outcome.killed:
            if self._fault.mode not in ("kill", "torn") or not outcome.hit:
                self._violation(f"ended by signal {-outcome.status}")
            return
        if outcome.status == 0:
            return
        if self._fault.mode == "short":
            self._violation(f"a short write made it fail: {outcome.err}")
        said = [line for line in outcome.err.splitlines() if not _TOLD.search(line)]
        if not said:
            said = outcome.out.splitlines()[-1:]
        if not said or not said[-1].strip():
            self._violation("failed without a word")
        elif len(said) > 1 or said[-1].lower() in ("input/output error", "no space left on device"):
            self._violation(f"not one clear line: {said}")

    def afterwards(self, outcome: Outcome) -> None:
        """The store, from the next command to the last byte that a collection gets back."""
        field = self._field
        if field.operation.mends and outcome.status:
            if not self._is_mended():
                self._retry()
            outcome = replace(outcome, status=0)
        found = self._steps(
            {
                "the next command": field._next_command, "observation": field._observed, "check": field._sound,
                "gc": field._collected,
            }
        )  # fmt: skip
        if not isinstance(found["observation"], dict):
            return
        state = self._named(found["observation"])
        complete = self._compare(state, outcome)
        if isinstance(found["gc"], dict) and (collected := self._named(found["gc"])) != state:
            self._violation(f"gc changed what is seen: {differences(collected, state)}")
        if not complete:
            self._retry()
        ended = {"storing again": field._stored_again, "check at the end": field._sound, "clearing": field._cleared}
        cleared = self._steps(ended)["clearing"]
        if isinstance(cleared, dict) and cleared != self._reference.cleared:
            wanted = self._reference.cleared
            left = {key: [wanted.get(key), value] for key, value in cleared.items() if value != wanted.get(key)}
            self._violation(f"space did not come back (undisturbed, now): {left}")

    def _steps(self, acts: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """Do several things in a process of their own, each whatever became of the others; None for what failed."""

        def work() -> dict[str, list[Any]]:
            answers: dict[str, list[Any]] = {}
            for what, act in acts.items():
                try:
                    answers[what] = [act(), ""]
                except Exception:
                    answers[what] = [None, traceback.format_exc()]
            return answers

        try:
            answers = in_own_process(work)
        except RuntimeError as error:
            answers = {what: [None, str(error)] for what in acts}
        for what, (_, problem) in answers.items():
            if problem:
                self._violation(f"{what}: {problem[-1500:]}")
        return {what: answer for what, (answer, _) in answers.items()}

    def _named(self, state: State) -> State:
        kept = named(state, frozenset(self._reference.fixed))
        kept.pop(self._field.operation.stays, None)
        return kept

    def _compare(self, state: State, outcome: Outcome) -> bool:
        """Absent, as before, or complete; complete only if it said so, when it could speak.

        Returns:
            Whether it is complete.
        """
        before, after = self._reference.before, self._reference.after
        if state == after and (state != before or outcome.status == 0):
            if outcome.status > 0 and state != before and not self._may_be_told():
                self._violation("it is done, but was said to have failed")
            return state != before or outcome.status == 0
        if outcome.status == 0:
            self._violation(f"it is not done, but was said to be: {differences(state, after)}")
            return False
        if state == before:
            return False
        partial = self._field.operation.partial
        state, before, after = (
            {key: item for key, item in part.items() if key not in partial} for part in (state, before, after)
        )
        if state in (before, after):
            return False
        if not self._field.operation.by_record:
            self._violation(
                f"neither as before nor complete: {differences(state, before)} / {differences(state, after)}"
            )
            return False
        for key in state.keys() | before.keys() | after.keys():
            if state.get(key) not in (before.get(key), after.get(key)):
                self._violation(f"neither as before nor complete: {key}")
        return False

    def _may_be_told(self) -> bool:
        """After a disk is gone for good nothing can be undone; what is written in sight is there and may not be durable."""
        return self._fault.mode == "dead" or bool(self._field.operation.partial)

    def _is_mended(self) -> bool:
        """Whether it was done all the same."""
        try:
            in_own_process(self._field._sound)
            state = in_own_process(self._field._observed)
        except RuntimeError:
            return False
        return bool(self._named(state) == self._reference.after)

    def _retry(self) -> None:
        """The same command once more, undisturbed."""
        outcome = forked(lambda: self._field.operation.run(self._field.place))
        if outcome.status:
            self._violation(f"the retry failed: {outcome.out[-300:]}{outcome.err[-1500:]}")
            return
        state = self._steps({"observation after the retry": self._field._observed})["observation after the retry"]
        if isinstance(state, dict) and (found := self._named(state)) != self._reference.after:
            self._violation(f"the retry is not complete: {differences(found, self._reference.after)}")


def remove(folder: Path) -> None:
    """Remove the folder of a field."""
    with suppress(FileNotFoundError):
        remove_tree(folder)
