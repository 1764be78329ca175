"""The whole table of cases."""

from __future__ import annotations

from tests.hostile import kinds, links, names, streams
from tests.hostile.cases import CASES

__all__ = ["CASES"]

for add in (
    names.add_climbing, names.add_names, links.add_links, links.add_removals, kinds.add_kinds, kinds.add_numbers,
    streams.add_sparse, streams.add_streams, streams.add_compressed,
):  # fmt: skip
    add()
