"""A path recorded, then a loss of power at every barrier of it, and what a store must be like afterwards."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from lading import Settings, Store
from lading.catalog import journal
from lading.flows import collect
from tests.powerloss.paths import PATHS, State, Step, journal_agrees, state_of
from tests.powerloss.recording import WAYS, Interval, Recording, apply, copy_sparse, kept, mounted, recorded, recording


@dataclass
class Played:
    """A path that was carried out on a recording disk."""

    name: str
    recording: Recording
    steps: Sequence[Step]
    history: list[State]  #: before the first step, then after each
    relaxed: bool


@dataclass
class Outcome:
    """How many losses of power were played, and what was wrong after some."""

    points: int = 0
    violations: list[str] = field(default_factory=list)
    ways: Counter[str] = field(default_factory=Counter)
    lost: int = 0  #: acknowledged steps that were gone, as a relaxed store may
    ahead: int = 0  #: points after which the step under way was there


def opened(root: Path, run: Path, sync: str) -> Store:
    """Open the store of a disk: small packs that are soon worn, one thread, and no trying out what the kernel can."""
    settings = Settings(sync=sync, workers=1, level=1, repack_share=0.1, strategy="farm", min_free=0)
    return Store.open(root / "store", run=run, driver="overlay", settings=settings)


@contextmanager
def small(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let everything that waits for much happen after little."""
    with patch.context() as patched:
        patched.setattr(journal, "SEGMENT_SIZE", 6000)
        patched.setattr(journal, "UNSYNCED_SIZE", 4000)
        patched.setattr(collect, "SMALL_PACKS_MIN", 4)
        yield


def play(name: str, folder: Path, filesystem: str, sync: str) -> Played:
    """Carry a path out on a recording disk."""
    steps = list(PATHS[name](folder))
    with recording(folder, filesystem) as recorder:
        with opened(recorder.root, folder / "run", sync) as store:
            history = [state_of(store)]
            recorder.mark()
            for step in steps:
                step.act(store)
                recorder.mark()
                history.append(state_of(store))
    return Played(name, recorded(folder, filesystem), steps, history, sync == "relaxed")


#: How often each way is tried at a barrier: nothing kept is one case, the others are drawn.
_TURNS: Final = {"nothing": 1, "prefix": 2, "some": 3, "pieces": 3}


def crash_everywhere(played: Played, folder: Path, *, points: int, seed: int) -> Outcome:
    """Lose power at the barriers of a path, in every way, and look at what is left.

    Args:
        played: what was recorded.
        folder: where disks can be made.
        points: of all cases, so many are tried.
        seed: for what is drawn.
    """
    outcome = Outcome()
    durable = folder / "durable.img"
    copy_sparse(played.recording.base, durable)
    for name in ("crashed", "runs"):
        (folder / name).mkdir()
    chosen = _chosen(played.recording.intervals, points, seed)
    with durable.open("r+b", buffering=0) as image:
        for number, interval in enumerate(played.recording.intervals):
            for way, turn in chosen[number]:
                disk = folder / f"{outcome.points}.img"  # another name each time: a loop device may linger
                copy_sparse(durable, disk)
                with disk.open("r+b", buffering=0) as left:
                    apply(left.fileno(), kept(interval, way, seed + 31 * number + turn))
                where = f"{played.name}: barrier {number}, kept {way} ({turn}), seed {seed}"
                outcome.points += 1
                outcome.ways[way] += 1
                _look(played, disk, folder, interval.marks, where, outcome)
                disk.unlink()
            apply(image.fileno(), interval.writes)
    return outcome


def _chosen(intervals: Sequence[Interval], points: int, seed: int) -> dict[int, list[tuple[str, int]]]:
    """Draw cases: way and turn, by barrier."""
    cases = [
        (number, way, turn)
        for number, interval in enumerate(intervals)
        for way in WAYS
        if way == "nothing" or interval.writes
        for turn in range(_TURNS[way])
    ]
    chosen = defaultdict(list)
    for number, way, turn in random.Random(seed).sample(cases, min(points, len(cases))):
        chosen[number].append((way, turn))
    return chosen


def _look(played: Played, disk: Path, folder: Path, marks: int, where: str, outcome: Outcome) -> None:
    """Mount what is left, and see whether the store keeps its promises."""
    run = folder / "runs" / str(outcome.points)
    try:
        with (
            mounted(disk, folder / "crashed", played.recording.filesystem) as root,
            opened(root, run, "relaxed" if played.relaxed else "full") as store,
        ):
            for problem in _problems(played, store, max(0, marks - 1), outcome):
                outcome.violations.append(f"{where}: {problem}")
    except Exception as error:
        outcome.violations.append(f"{where}: {type(error).__name__}: {error}")


def _problems(played: Played, store: Store, done: int, outcome: Outcome) -> Iterator[str]:
    """Everything that is not as promised.

    Args:
        played: what was recorded.
        store: opened after the loss of power.
        done: steps that were acknowledged before it.
        outcome: where to count.
    """
    yield from _damage(store, "at first")
    state = state_of(store)
    reached = _reached(played, state, done)
    if reached is None:
        yield f"{done} steps were acknowledged, but the state is that after none it may be after: {_names(state)}"
        return
    outcome.lost += max(0, done - reached)
    outcome.ahead += reached > done
    expected = played.history[reached]
    if reached < len(played.steps):
        played.steps[reached].act(store)
        expected = played.history[reached + 1]
        if state_of(store) != expected:
            yield f"{played.steps[reached].name} does not do again what it did"
    store.gc()
    if state_of(store) != expected:
        yield "a collection took something away"
    yield from _damage(store, "after a collection")
    if not journal_agrees(store):
        yield "the journal says something else than the catalog"
    left = store.balance().classes
    for what in ("staging", "packs: unrecorded"):
        if left[what]:
            yield f"{left[what]} bytes of {what} are left after a collection"
    if again := store.gc(dry_run=True).freed_bytes:
        yield f"a second collection would free {again} bytes more"


def _damage(store: Store, when: str) -> Iterator[str]:
    report = store.check(content=True)
    for finding in report.findings:
        yield f"{when}: {finding}"
    if report.incomplete:
        yield f"{when}: not all could be checked"


def _reached(played: Played, state: State, done: int) -> int | None:
    """After which step the store is as it is; None when there is none that it may be.

    A full store is as after the last acknowledged step, or the one under way. A relaxed one may be as after an earlier
    one, but not as before a durable one.
    """
    first = done
    if played.relaxed:
        first = max((index + 1 for index in range(done) if played.steps[index].durable), default=0)
    for index in range(min(done + 1, len(played.steps)), first - 1, -1):
        if state == played.history[index]:
            return index
    for index in range(min(done, len(played.steps) - 1), first - 1, -1):
        if _is_amid(played.steps[index], state, played.history[index], played.history[index + 1]):
            return index
    return None


def _is_amid(step: Step, state: State, before: State, after: State) -> bool:
    """Tell whether a store may be like this while a step is under way."""
    if step.loose and state.keys() == before.keys():
        return all(value == before[key] for key, value in state.items() if key not in step.loose)
    if step.composite and before.keys() <= state.keys():
        new = {key: value for key, value in state.items() if before.get(key) != value}
        return all(key in after and _is_part(value, after[key]) for key, value in new.items())
    return False


def _is_part(value: Any, whole: Any) -> bool:
    """Tell whether a record is as it will be, or lacks only names: they come by a commit of their own."""
    return bool(value[1:] == whole[1:] and set(value[0]) <= set(whole[0]))


def _names(state: State) -> str:
    return ", ".join(sorted(" ".join(key) for key in state))
