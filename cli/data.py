"""Commands about big data; one set for each kind of record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lading.cli import output
from lading.cli.parse import ContractCommand, file_option, json_option
from lading.cli.session import Session, command


def _collection(session: Session, kind: str) -> Any:
    store = session.store
    return {"layer": store.layers, "image": store.images, "container": store.containers}[kind]


def _list_command(kind: str) -> ContractCommand:
    def run(session: Session, arguments: Sequence[str], as_json: bool) -> None:
        records = _collection(session, kind)
        keys = list(records.data_names(records.get(arguments[0]).id))
        if as_json:
            output.emit_json(keys or None)
            return
        for key in keys:
            output.line(output.shown(key))

    run.__doc__ = f"List the keys of {_a(kind)}'s big data."
    return command(f"list-{kind}-data", count=(1, 1), usage=kind.upper(), params=(json_option,))(run)


def _get_command(kind: str) -> ContractCommand:
    def run(session: Session, arguments: Sequence[str], file: str | None) -> None:
        store = _collection(session, kind)
        with output.created(file) as target:
            for chunk in store.data(store.get(arguments[0]).id, arguments[1]):
                target.write(chunk)

    run.__doc__ = f"Write an item of {_a(kind)}'s big data."
    return command(f"get-{kind}-data", count=(2, 2), usage=f"{kind.upper()} KEY", params=(file_option,))(run)


def _set_command(kind: str) -> ContractCommand:
    def run(session: Session, arguments: Sequence[str], file: str | None) -> None:
        with output.opened(file) as stream:
            records = _collection(session, kind)
            records.set_data(records.get(arguments[0]).id, arguments[1], stream)

    run.__doc__ = f"Store an item of {_a(kind)}'s big data."
    return command(f"set-{kind}-data", count=(2, 2), usage=f"{kind.upper()} KEY", params=(file_option,))(run)


def _size_command(kind: str) -> ContractCommand:
    def run(session: Session, arguments: Sequence[str]) -> None:
        output.line(str(_collection(session, kind).data_size(arguments[0], arguments[1])))

    run.__doc__ = f"Print the bytes of an item of {_a(kind)}'s big data."
    return command(f"get-{kind}-data-size", count=(2, 2), usage=f"{kind.upper()} KEY")(run)


def _digest_command(kind: str) -> ContractCommand:
    def run(session: Session, arguments: Sequence[str]) -> None:
        output.line(_collection(session, kind).data_digest(arguments[0], arguments[1]))

    run.__doc__ = f"Print the digest of an item of {_a(kind)}'s big data."
    return command(f"get-{kind}-data-digest", count=(2, 2), usage=f"{kind.upper()} KEY")(run)


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "image" else f"a {kind}"


list_layer_data = _list_command("layer")
get_layer_data = _get_command("layer")
set_layer_data = _set_command("layer")
list_image_data = _list_command("image")
get_image_data = _get_command("image")
set_image_data = _set_command("image")
get_image_data_size = _size_command("image")
get_image_data_digest = _digest_command("image")
list_container_data = _list_command("container")
get_container_data = _get_command("container")
set_container_data = _set_command("container")
get_container_data_size = _size_command("container")
get_container_data_digest = _digest_command("container")
