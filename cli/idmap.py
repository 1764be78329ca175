"""The options that say how a new record's owners are mapped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from lading.errors import InvalidInput
from lading.idmaps import MapRequest, Maps, parse_triples, sub_id_maps

idmap_options = (
    click.option("--hostuidmap", "host_uids", is_flag=True, help="Map no owners, whatever the parent does."),
    click.option("--hostgidmap", "host_gids", is_flag=True, help="Map no groups, whatever the parent does."),
    click.option("--uidmap", "uid_map", default="", metavar="C:H:N", help="Owner ranges: container ID, host ID, size."),
    click.option("--gidmap", "gid_map", default="", metavar="C:H:N", help="Group ranges, in the same form."),
    click.option("--subuidmap", "sub_uids", default="", metavar="USER", help="Map owners to a user's sub-IDs."),
    click.option("--subgidmap", "sub_gids", default="", metavar="GROUP", help="Map groups to a group's sub-IDs."),
)


def map_request(values: Mapping[str, Any]) -> MapRequest:
    """What the options say.

    Raises:
        InvalidInput: they contradict each other, or cannot be read.
    """
    users, groups = values["sub_uids"], values["sub_gids"]
    ranges = sub_id_maps(users or groups, groups or users) if users or groups else Maps()
    maps = Maps(
        ranges.uid + parse_triples(values["uid_map"], "uid"), ranges.gid + parse_triples(values["gid_map"], "gid")
    )
    if maps.uid and values["host_uids"]:
        raise InvalidInput("host uid map specified along with UID mapping")
    if maps.gid and values["host_gids"]:
        raise InvalidInput("host gid map specified along with GID mapping")
    return MapRequest(maps, host_uids=values["host_uids"], host_gids=values["host_gids"])
