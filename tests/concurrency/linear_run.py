"""Random programs of record operations, run by several processes at once, with when each began and ended."""

from __future__ import annotations

import contextlib
import io
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lading import Store
from lading.catalog.database import Catalog
from lading.errors import LadingError
from tests.concurrency.linear_model import Call, told
from tests.concurrency.processes import Line, Worker

#: Of one history: processes, and operations of each.
PROCESSES = 4
LENGTH = 6

LAYERS, IMAGES, CONTAINERS = ("la", "lb"), ("ia", "ib"), ("ca",)
NAMES = ("n", "m")
WRITABLE = "w-"  #: begins the ids of containers' layers

_WEIGHTS = {
    "create_layer": 4, "create_image": 4, "create_container": 2, "delete_layer": 3, "delete_image": 3,
    "delete_container": 2, "delete": 1, "set_names": 4, "add_names": 3, "remove_names": 1, "set_metadata": 3,
    "metadata": 3, "set_data": 2, "data": 2, "data_names": 1, "lookup": 4, "list": 2,
}  # fmt: skip


#: Done before each program by one process, so that not all begins with "unknown".
PRELUDE = (
    Call("create_layer", ("la", "", ("n",))),
    Call("create_layer", ("lb", "la", ())),
    Call("create_image", ("ia", "lb", ("m",))),
    Call("create_image", ("ib", "lb", ())),
)


def program(seed: int) -> list[list[Call]]:
    """What each process is to do."""
    draw = random.Random(seed)
    return [[_call(draw, f"{process}{turn}") for turn in range(LENGTH)] for process in range(PROCESSES)]


def _call(draw: random.Random, mark: str) -> Call:
    (verb,) = draw.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
    ref = draw.choice([*LAYERS, *IMAGES, *CONTAINERS, *NAMES, *NAMES, *NAMES])
    names = tuple(draw.sample(NAMES, draw.choice((0, 1, 1, 2))))
    match verb:
        case "create_layer":
            return Call(verb, (draw.choice(LAYERS), draw.choice(("", "", "la", WRITABLE + "ca")), names))
        case "create_image":
            return Call(verb, (draw.choice(IMAGES), draw.choice(("", *LAYERS, *LAYERS)), names))
        case "create_container":
            id = draw.choice(CONTAINERS)
            return Call(verb, (id, draw.choice(("", *IMAGES, *IMAGES)), WRITABLE + id, names))
        case "set_names" | "add_names" | "remove_names":
            return Call(verb, (ref, names or (draw.choice(NAMES),)))
        case "set_metadata":
            return Call(verb, (ref, mark))
        case "set_data":
            return Call(verb, (ref, draw.choice("xy"), mark.encode()))
        case "data":
            return Call(verb, (ref, draw.choice("xy")))
        case "list":
            return Call(verb, ())
        case _:
            return Call(verb, (ref,))


def prepared(store: Store, line: Line, prefix: str) -> list[Call]:
    """Run the prelude."""
    del line
    return [_timed(store, call, prefix) for call in PRELUDE]


def played(store: Store, line: Line, calls: Sequence[Call], prefix: str, seed: int) -> list[Call]:
    """Run one process's part, once told to begin.

    Args:
        store: the worker's.
        line: to the test.
        calls: what to do; ids and names without the prefix.
        prefix: sets this history's records apart from others'.
        seed: of the pauses by which processes get in each other's way.
    """
    line.pause("ready")
    with _dawdling(random.Random(seed)):
        return [_timed(store, call, prefix) for call in calls]


def _timed(store: Store, call: Call, prefix: str) -> Call:
    begun = time.monotonic_ns()
    try:
        outcome = ("ok", _do(store, call, prefix))
    except LadingError as error:
        outcome = (_kind(error), None)
    return told(call, begun, time.monotonic_ns(), outcome)


def _kind(error: LadingError) -> str:
    name = type(error).__name__
    return "DataUnknown" if name == "ContainerDataUnknown" else name


@contextmanager
def _dawdling(draw: random.Random) -> Iterator[None]:
    """Pause now and then before a snapshot or a transaction is begun: that is where others get in between."""
    patch = pytest.MonkeyPatch()

    def slow(real: Callable[..., Any]) -> Callable[..., Any]:
        def slowed(*args: Any, **kwargs: Any) -> Any:
            if draw.random() < 0.2:
                time.sleep(draw.random() * 0.003)
            return real(*args, **kwargs)

        return slowed

    for name in ("read", "write", "write_rows"):
        patch.setattr(Catalog, name, slow(getattr(Catalog, name)))
    try:
        yield
    finally:
        patch.undo()


def _do(store: Store, call: Call, prefix: str) -> Any:
    def full(text: str) -> str:
        return prefix + text if text else ""

    def short(text: str) -> str:
        return text.removeprefix(prefix)

    args: list[Any] = [
        tuple(full(name) for name in arg) if isinstance(arg, tuple) else arg for arg in call.args
    ]  # names are tuples
    match call.verb, args:
        case "create_layer", [id, parent, names]:
            store.layers.create(full(parent), id=full(id), names=names)
        case "create_image", [id, layer, names]:
            store.images.create(full(layer), id=full(id), names=names)
        case "create_container", [id, image, layer, names]:
            store.containers.create(full(image), id=full(id), layer_id=full(layer), names=names)
        case "delete_layer", [ref]:
            store.layers.delete(full(ref))
        case "delete_image", [ref]:
            return tuple(short(layer) for layer in store.images.delete(full(ref)))
        case "delete_container", [ref]:
            store.containers.delete(full(ref))
        case "delete", [ref]:
            store.delete(full(ref))
        case "set_names" | "add_names" | "remove_names", [ref, names]:
            return tuple(short(name) for name in getattr(store, call.verb)(full(ref), names))
        case "set_metadata", [ref, text]:
            store.set_metadata(full(ref), text)
        case "metadata", [ref]:
            return store.metadata(full(ref))
        case "set_data", [ref, key, data]:
            store.images.set_data(full(ref), key, io.BytesIO(data))
        case "data", [ref, key]:
            return b"".join(store.images.data(full(ref), key))
        case "data_names", [ref]:
            return store.images.data_names(full(ref))
        case "lookup", [ref]:
            record = store.lookup(full(ref))
            kind = type(record).__name__.lower()
            return kind, short(record.id), tuple(short(name) for name in record.names), record.metadata
        case "list", []:
            return _listed(store, prefix)
        case _:
            raise AssertionError(call)
    return None


def _listed(store: Store, prefix: str) -> tuple[Any, ...]:
    layers, images, containers = store.multi_list(layers=True, images=True, containers=True)
    seen = [("layer", r.id, r.parent, r.names) for r in layers]
    seen += [("image", r.id, r.layer, r.names) for r in images]
    seen += [("container", r.id, r.image, r.names) for r in containers]
    return tuple(
        sorted(
            (kind, id.removeprefix(prefix), base.removeprefix(prefix), tuple(n.removeprefix(prefix) for n in names))
            for kind, id, base, names in seen
            if id.startswith(prefix)
        )
    )


def history(workers: Sequence[Worker], calls: Sequence[Sequence[Call]], prefix: str, seed: int) -> list[Call]:
    """Have workers run a program at once, after the prelude; return all calls with their outcomes."""
    first: list[Call] = workers[0].run(prepared, prefix)
    for number, (worker, own) in enumerate(zip(workers, calls, strict=True)):
        worker.start(played, own, prefix, seed * 100 + number)
    for worker in workers:
        assert worker.heard() == "ready"
    for worker in workers:
        worker.go_on()
    return first + [call for worker in workers for call in worker.result()]


def described(calls: Sequence[Call]) -> str:
    """A history for people, in the order in which calls began."""
    zero = min(call.begun for call in calls)
    return "\n".join(
        f"{(call.begun - zero) // 1000:7} … {(call.ended - zero) // 1000:7} µs  {call.verb}{call.args} -> {call.outcome}"
        for call in sorted(calls, key=lambda call: call.begun)
    )


def keep(path: Path, seed: int, calls: Sequence[Call]) -> None:
    """Write down a history that has no order."""
    with contextlib.suppress(OSError), path.open("a") as file:
        file.write(f"seed {seed}\n{described(calls)}\n\n")
