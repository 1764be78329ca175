"""What a store's records do when one operation runs after the other, and whether a history can be put in such an order.

A state is plain and hashable. ``step`` tells all outcomes that an operation may have in a state: where several things
are wrong at once, any of them may be what is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lading.values import unique

#: What an operation told: "ok" and a value, or the kind of error.
Outcome = tuple[str, Any]


class Record(NamedTuple):
    """A record of any kind; ``base`` is a layer's parent, an image's top layer, a container's image."""

    kind: str
    id: str
    base: str = ""
    own: str = ""  #: a container's layer
    names: tuple[str, ...] = ()
    metadata: str = ""
    data: tuple[tuple[str, bytes], ...] = ()


#: All records; their order means nothing.
State = frozenset[Record]
EMPTY: State = frozenset()


@dataclass(frozen=True, slots=True)
class Call:
    """One operation of a history."""

    verb: str
    args: tuple[Any, ...]
    begun: int = 0  #: nanoseconds of a clock that all processes share
    ended: int = 0
    outcome: Outcome = ("ok", None)


def _find(state: State, kind: str, ref: str) -> Record | None:
    of_kind = [record for record in state if record.kind == kind]
    for matches in (
        lambda record: record.id == ref,
        lambda record: ref in record.names,
        lambda record: kind == "container" and record.own == ref,
    ):
        for record in of_kind:
            if matches(record):
                return record
    return None


def _find_any(state: State, ref: str, kinds: Sequence[str] = ("layer", "image", "container")) -> Record | None:
    return next((found for kind in kinds if (found := _find(state, kind, ref)) is not None), None)


def _of(state: State, kind: str, **fields: str) -> list[Record]:
    return [r for r in state if r.kind == kind and all(getattr(r, name) == value for name, value in fields.items())]


def step(state: State, call: Call) -> Iterable[tuple[Outcome, State]]:
    """All outcomes of an operation, with the state after each."""
    return _VERBS[call.verb](state, *call.args)


def _refused(state: State, errors: Iterable[str]) -> list[tuple[Outcome, State]]:
    return [((error, None), state) for error in dict.fromkeys(errors)]


def _taken(state: State, kind: str, id: str, names: Sequence[str]) -> list[str]:
    errors = ["DuplicateID"] if any(r.id == id for r in _of(state, kind)) else []
    used = {name for record in _of(state, kind) for name in record.names}
    return errors + (["DuplicateName"] if used & set(names) else [])


def _create_layer(state: State, id: str, parent: str, names: tuple[str, ...]) -> list[tuple[Outcome, State]]:
    errors = _taken(state, "layer", id, names)
    if parent:
        if not _of(state, "layer", id=parent):
            errors.append("LayerUnknown")
        if _of(state, "container", own=parent):
            errors.append("ParentIsContainer")
    return _refused(state, errors) or [(("ok", None), state | {Record("layer", id, parent, names=names)})]


def _create_image(state: State, id: str, layer: str, names: tuple[str, ...]) -> list[tuple[Outcome, State]]:
    errors = _taken(state, "image", id, names)
    if layer and not _of(state, "layer", id=layer):
        errors.append("LayerUnknown")
    return _refused(state, errors) or [(("ok", None), state | {Record("image", id, layer, names=names)})]


def _create_container(
    state: State, id: str, image: str, layer: str, names: tuple[str, ...]
) -> list[tuple[Outcome, State]]:
    errors = _taken(state, "container", id, names) + _taken(state, "layer", layer, ())
    parent = ""
    if image:
        found = _of(state, "image", id=image)
        if not found:
            errors.append("ImageUnknown")
        else:
            parent = found[0].base
            step_id, seen = parent, set()
            while step_id and step_id not in seen:
                seen.add(step_id)
                above = _of(state, "layer", id=step_id)
                if not above:
                    errors.append("LayerUnknown")
                    break
                step_id = above[0].base
    made = {Record("layer", layer, parent), Record("container", id, image, layer, names)}
    # Ancestors are looked at before the transaction: one that is deleted unchecked just then may be seen or not.
    if set(errors) == {"LayerUnknown"} and _of(state, "layer", id=parent):
        return [*_refused(state, errors), (("ok", None), state | made)]
    return _refused(state, errors) or [(("ok", None), state | made)]


def _delete_layer(state: State, ref: str) -> list[tuple[Outcome, State]]:
    layer = _find(state, "layer", ref)
    if layer is None:
        return _refused(state, ["NotALayer"])
    errors = ["LayerHasChildren"] if _of(state, "layer", base=layer.id) else []
    errors += ["LayerUsedByImage"] if _of(state, "image", base=layer.id) else []
    errors += ["LayerUsedByContainer"] if _of(state, "container", own=layer.id) else []
    return _refused(state, errors) or [(("ok", None), state - {layer})]


def _delete_image(state: State, ref: str) -> list[tuple[Outcome, State]]:
    image = _find(state, "image", ref)
    if image is None:
        return _refused(state, ["NotAnImage"])
    if _of(state, "container", base=image.id):
        return _refused(state, ["ImageUsedByContainer"])
    doomed: list[Record] = []
    step_id = image.base
    while step_id and (found := _of(state, "layer", id=step_id)):
        (layer,) = found
        ids = {gone.id for gone in doomed}
        if (
            _of(state, "container", own=layer.id)
            or any(other.id != image.id for other in _of(state, "image", base=layer.id))
            or any(child.id not in ids for child in _of(state, "layer", base=layer.id))
        ):
            break
        doomed.append(layer)
        step_id = layer.base
    return [(("ok", tuple(layer.id for layer in doomed)), state - {image, *doomed})]


def _delete_container(state: State, ref: str) -> list[tuple[Outcome, State]]:
    container = _find(state, "container", ref)
    if container is None:
        return _refused(state, ["NotAContainer"])
    return [(("ok", None), state - {container, *_of(state, "layer", id=container.own)})]


def _delete(state: State, ref: str) -> list[tuple[Outcome, State]]:
    found = _find_any(state, ref, ("container", "image", "layer"))
    if found is None:
        return _refused(state, ["LayerUnknown"])
    gone = {found}
    if found.kind == "container":
        layers = _of(state, "layer", id=found.own)
        if not layers:
            return _refused(state, ["NotALayer"])
        gone.update(layers)
    return [(("ok", None), state - gone)]


def _rename(state: State, ref: str, change: Callable[[Record], Sequence[str]]) -> list[tuple[Outcome, State]]:
    found = _find_any(state, ref)
    if found is None:
        return _refused(state, ["LayerUnknown"])
    names = unique(change(found))
    after = {found._replace(names=names)}
    for record in state - {found}:
        if record.kind == found.kind:
            record = record._replace(names=tuple(name for name in record.names if name not in names))
        after.add(record)
    return [(("ok", names), frozenset(after))]


def _set_names(state: State, ref: str, names: tuple[str, ...]) -> list[tuple[Outcome, State]]:
    return _rename(state, ref, lambda _: names)


def _add_names(state: State, ref: str, names: tuple[str, ...]) -> list[tuple[Outcome, State]]:
    return _rename(state, ref, lambda found: (*names, *found.names))


def _remove_names(state: State, ref: str, names: tuple[str, ...]) -> list[tuple[Outcome, State]]:
    return _rename(state, ref, lambda found: [name for name in found.names if name not in names])


def _set_metadata(state: State, ref: str, text: str) -> list[tuple[Outcome, State]]:
    found = _find_any(state, ref)
    if found is None:
        return _refused(state, ["NotAnID"])
    return [(("ok", None), (state - {found}) | {found._replace(metadata=text)})]


def _metadata(state: State, ref: str) -> list[tuple[Outcome, State]]:
    found = _find_any(state, ref)
    return _refused(state, ["NotAnID"]) if found is None else [(("ok", found.metadata), state)]


def _set_data(state: State, ref: str, key: str, data: bytes) -> list[tuple[Outcome, State]]:
    found = _find(state, "image", ref)
    if found is None:
        return _refused(state, ["ImageUnknown"])
    kept = dict(found.data) | {key: data}
    return [(("ok", None), (state - {found}) | {found._replace(data=tuple(kept.items()))})]


def _data(state: State, ref: str, key: str) -> list[tuple[Outcome, State]]:
    found = _find(state, "image", ref)
    if found is None:
        return _refused(state, ["ImageUnknown"])
    kept = dict(found.data)
    return [(("ok", kept[key]), state)] if key in kept else _refused(state, ["DataUnknown"])


def _data_names(state: State, ref: str) -> list[tuple[Outcome, State]]:
    found = _find(state, "image", ref)
    if found is None:
        return _refused(state, ["ImageUnknown"])
    return [(("ok", tuple(key for key, _ in found.data)), state)]


def _lookup(state: State, ref: str) -> list[tuple[Outcome, State]]:
    found = _find_any(state, ref)
    if found is None:
        return _refused(state, ["LayerUnknown"])
    return [(("ok", (found.kind, found.id, found.names, found.metadata)), state)]


def _list(state: State) -> list[tuple[Outcome, State]]:
    seen = sorted((record.kind, record.id, record.base, record.names) for record in state)
    return [(("ok", tuple(seen)), state)]


_VERBS: dict[str, Callable[..., list[tuple[Outcome, State]]]] = {
    "create_layer": _create_layer, "create_image": _create_image, "create_container": _create_container,
    "delete_layer": _delete_layer, "delete_image": _delete_image, "delete_container": _delete_container,
    "delete": _delete, "set_names": _set_names, "add_names": _add_names, "remove_names": _remove_names,
    "set_metadata": _set_metadata, "metadata": _metadata, "set_data": _set_data, "data": _data,
    "data_names": _data_names, "lookup": _lookup, "list": _list,
}  # fmt: skip


def order_of(history: Sequence[Call], state: State = EMPTY) -> list[Call] | None:
    """Put a history in an order that explains all outcomes and keeps what ended before what began later.

    Wing and Gong's search; what was tried once, of the same calls and the same state, is not tried again.

    Returns:
        The order; None when there is none.
    """
    tried: set[tuple[int, State]] = set()
    everything = (1 << len(history)) - 1

    def search(done: int, state: State) -> list[Call] | None:
        if done == everything:
            return []
        if (done, state) in tried:
            return None
        tried.add((done, state))
        left = [number for number in range(len(history)) if not done >> number & 1]
        first_end = min(history[number].ended for number in left)
        for number in left:
            call = history[number]
            if call.begun > first_end:
                continue
            for outcome, after in step(state, call):
                if outcome == call.outcome:
                    rest = search(done | 1 << number, after)
                    if rest is not None:
                        return [call, *rest]
        return None

    return search(0, state)


def told(call: Call, begun: int, ended: int, outcome: Outcome) -> Call:
    """A call with what became of it."""
    return replace(call, begun=begun, ended=ended, outcome=outcome)
