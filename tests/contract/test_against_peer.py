"""The same random commands on our store and on that of ``containers-storage``: what both say is compared.

``LADING_PEER_EXAMPLES`` sets the number of sequences for each driver.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.contract.peer import PEER, Pair, Said
from tests.contract.samples import BASE, UPPER

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(shutil.which(PEER) is None, reason=f"needs {PEER}"),
]

EXAMPLES = int(os.environ.get("LADING_PEER_EXAMPLES", "25"))
STEPS = 30

GOOD = {"base.tar": BASE, "upper.tar": UPPER, "base.tar.gz": gzip.compress(BASE, mtime=0), "empty.tar": b""}
BAD = {"junk": b"junk" * 400, "cut.tar": BASE[:1800]}

NAMES = ["n1", "n2", "n3", "a b", "\u00e9"]
name = st.sampled_from(NAMES)
names = st.lists(name, max_size=3).map(lambda found: [word for item in found for word in ("-n", item)])
as_json = st.sampled_from([[], [], ["-j"], ["--json"], ["--json=true"], ["-j=false"]])
data_key = st.sampled_from(["k", "K2", "manifest", "manifest-x", "z/", ""])
kinds = st.sampled_from(["layer", "image", "container"])

#: What goes wrong before a store is looked at.
WORDS = [
    ["layers", "--bogus"], ["layers", "-x"], ["layer"], ["layers", "--json=maybe"], ["create-layer", "-i"], ["nonsense"],
    ["create-layer", "a", "--id", "zz"], ["layer", "--", "-j"], ["create-image", "a", "b"], ["diff"], ["applydiff"], ["mount"],
    ["create-container"], ["create-layer", "--uidmap", "bogus"], ["create-layer", "--uidmap", "0:1"], ["listlayerdata", "nosuch"],
    ["create-layer", "--hostuidmap", "--uidmap", "0:0:1"], ["create-layer", "--subuidmap", "no-such-user"], ["metadata"],
]  # fmt: skip


def unordered(text: str) -> str:
    """Lines, or the elements of a JSON list of changes, sorted: their order is not said anywhere."""
    if text.strip().startswith("["):
        return json.dumps(sorted(json.loads(text), key=lambda change: str(change["Path"])))
    return "\n".join(sorted(line for line in text.split("\n") if line))


class Commands(RuleBasedStateMachine):
    """Any commands, in any order, on records that exist, existed, or never did."""

    driver = "vfs"

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(self.driver)
        self.files = self.pair.folder
        for path, data in {**GOOD, **BAD, "data": b"some data\n"}.items():
            Path(self.files, path).write_bytes(data)
        self.known: dict[str, list[str]] = {"layer": [], "image": [], "container": []}
        self.numbers = itertools.count()

    def teardown(self) -> None:
        """Leave nothing mounted and nothing on disk."""
        self.pair.close()

    def ref(self, data: st.DataObject, *wanted: str) -> str:
        """A reference: most often to a record of one of the kinds."""
        ids = [found for kind in wanted or self.known for found in self.known[kind]]
        return data.draw(st.sampled_from([*ids, *ids, *NAMES[:3], "nosuch"]))

    def new_id(self, data: st.DataObject, prefix: str) -> list[str]:
        """An id to be used, or none."""
        if data.draw(st.booleans()):
            return []
        if data.draw(st.integers(0, 9)) == 0:
            return ["--id", self.ref(data)]
        return ["-i", f"{prefix}{next(self.numbers)}"]

    def made(self, kind: str, said: Said) -> None:
        """Note what was created."""
        if said.status == 0:
            first = said.stdout.split("\n")[0]
            self.known[kind].append(json.loads(first)["id"] if first.startswith("{") else first)

    def path(self, name: str) -> str:
        """A file that commands read."""
        return str(self.files / name)

    @rule(data=st.data(), names=names, json_=as_json)
    def create_layer(self, data: Any, names: list[str], json_: list[str]) -> None:
        """On a parent or on nothing."""
        parent = [self.ref(data, "layer")] if data.draw(st.booleans()) else []
        self.made("layer", self.pair.compare("create-layer", *self.new_id(data, "l"), *names, *json_, *parent))

    @rule(data=st.data(), names=names, json_=as_json, tar=st.sampled_from([*GOOD, *GOOD, *BAD, "missing"]))
    def import_layer(self, data: Any, names: list[str], json_: list[str], tar: str) -> None:
        """Good diffs and bad ones."""
        parent = [self.ref(data, "layer")] if data.draw(st.booleans()) else []
        words = ["import-layer", *self.new_id(data, "l"), *names, *json_, "-f", self.path(tar), *parent]
        self.made("layer", self.pair.compare(*words))

    @rule(data=st.data(), tar=st.sampled_from(["base.tar", "base.tar.gz", "empty.tar"]))
    def applydiff(self, data: Any, tar: str) -> None:
        """Over whatever the layer holds. Without removals: on a file of the same layer the peer stumbles over one."""
        self.pair.compare("applydiff", "-f", self.path(tar), self.ref(data, "layer"))

    @rule(
        data=st.data(), names=names, json_=as_json,
        digest=st.sampled_from([[], [], [], ["-d", "bogus"], ["-d", "sha256:" + "0" * 64], ["-d", "sha256:12"], ["-d", "md5:" + "0" * 32]]),
        metadata=st.sampled_from([[], ["-m", "text"], ["--metadata=more"]]),
    )  # fmt: skip
    def create_image(
        self, data: Any, names: list[str], json_: list[str], digest: list[str], metadata: list[str]
    ) -> None:
        """With a layer or without."""
        top = [self.ref(data, "layer")] if data.draw(st.integers(0, 4)) else []
        words = ["create-image", *self.new_id(data, "i"), *names, *digest, *metadata, *json_, *top]
        self.made("image", self.pair.compare(*words))

    @rule(data=st.data(), names=names, json_=as_json, volatile=st.sampled_from([[], [], ["--volatile"]]))
    def create_container(self, data: Any, names: list[str], json_: list[str], volatile: list[str]) -> None:
        """Of an image or of nothing, with maps now and then."""
        image = self.ref(data, "image") if data.draw(st.integers(0, 5)) else ""
        maps = data.draw(st.sampled_from([[], [], [], ["--uidmap", "0:1000:100"]]))
        words = ["create-container", *self.new_id(data, "k"), *names, *volatile, *maps, *json_, image]
        self.made("container", self.pair.compare(*words))

    @rule(words=st.sampled_from([["layers"], ["layers", "-j"], ["layers", "-t"], ["images"], ["images", "-q"], ["images", "-j"],
                                 ["containers"], ["containers", "-j"]]))  # fmt: skip
    def lists(self, words: list[str]) -> None:
        """All records of a kind."""
        self.pair.compare(*words, expect=unordered if words == ["layers", "-t"] else None)

    @rule(data=st.data(), kind=kinds, json_=as_json)
    def shows(self, data: Any, kind: str, json_: list[str]) -> None:
        """Records by reference."""
        more = [self.ref(data, kind)] if data.draw(st.booleans()) else []
        self.pair.compare(kind, *json_, self.ref(data, kind), *more)

    @rule(data=st.data(), names=names, json_=as_json, spelling=st.sampled_from(["set-names", "setnames"]))
    def set_names(self, data: Any, names: list[str], json_: list[str], spelling: str) -> None:
        """Names move."""
        self.pair.compare(spelling, *names, *json_, self.ref(data))

    @rule(data=st.data(), json_=as_json, quiet=st.sampled_from([[], ["-q"]]))
    def metadata(self, data: Any, json_: list[str], quiet: list[str]) -> None:
        """Of any kind, known or not."""
        self.pair.compare("metadata", *json_, *quiet, self.ref(data), self.ref(data))

    @rule(data=st.data(), text=st.sampled_from([["-m", "x"], ["-m", ""], ["-m", "line\n"], [], ["-f", "missing"]]))
    def set_metadata(self, data: Any, text: list[str]) -> None:
        """With text or without."""
        words = ["-f", self.path("missing")] if text[:1] == ["-f"] else text
        self.pair.compare("set-metadata", *words, self.ref(data))

    @rule(data=st.data(), options=st.lists(st.sampled_from(["-l", "-i", "-c", "-q", "-j"]), max_size=3))
    def exists(self, data: Any, options: list[str]) -> None:
        """As anything, or as a kind."""
        self.pair.compare("exists", *options, self.ref(data), self.ref(data), expect=unordered)

    @rule(data=st.data(), json_=as_json)
    def get_names(self, data: Any, json_: list[str]) -> None:
        """Of any kind."""
        self.pair.compare("get-names", *json_, self.ref(data))

    @rule(data=st.data(), kind=kinds, key=data_key)
    def set_data(self, data: Any, kind: str, key: str) -> None:
        """Items come and are replaced."""
        self.pair.compare(f"set-{kind}-data", "-f", self.path("data"), self.ref(data, kind), key)

    @rule(data=st.data(), kind=kinds, key=data_key, ask=st.sampled_from(["", "-size", "-digest"]))
    def get_data(self, data: Any, kind: str, key: str, ask: str) -> None:
        """Items, their sizes and digests."""
        if kind == "layer" and ask:
            return
        self.pair.compare(f"get-{kind}-data{ask}", self.ref(data, kind), key)

    @rule(data=st.data(), kind=kinds, json_=as_json)
    def list_data(self, data: Any, kind: str, json_: list[str]) -> None:
        """Keys in order."""
        self.pair.compare(f"list-{kind}-data", *json_, self.ref(data, kind))

    @rule(data=st.data(), kind=st.sampled_from(["", "-layer", "-image", "-container"]), json_=as_json)
    def delete(self, data: Any, kind: str, json_: list[str]) -> None:
        """With and without safety checks. Layers by id alone: by another reference the peer checks nothing."""
        record = self.ref(data, *([kind[1:]] if kind else []))
        if kind == "-layer" and record in (*NAMES, "nosuch"):
            record = "nosuch"
        test = ["-t"] if kind == "-image" and data.draw(st.booleans()) else []
        self.pair.compare(f"delete{kind}", *test, *json_, record)

    @rule(data=st.data())
    def diff(self, data: Any) -> None:
        """Byte for byte, where a diff was applied; what is generated has its own test."""
        ref = self.ref(data, "layer")
        record = self.pair.sides[1].record(ref, "layer")
        if record.get("diff-digest") or not record:
            self.pair.compare("diff", "-u", ref)

    @rule(data=st.data(), json_=as_json)
    def changes(self, data: Any, json_: list[str]) -> None:
        """Against the parent."""
        self.pair.compare("changes", *json_, self.ref(data, "layer"), expect=unordered)

    @rule(data=st.data())
    def diffsize(self, data: Any) -> None:
        """Against the parent."""
        self.pair.compare("diffsize", self.ref(data, "layer"))

    @rule(data=st.data())
    def mounts(self, data: Any) -> None:
        """Mount, write, look, unmount; on both alike."""
        ref = self.ref(data, "layer", "container")
        if ref in (*NAMES, "nosuch"):
            return  # by name the peer mounts under a path that is not there
        if self.pair.compare("mount", ref).status == 0:
            for side in self.pair.sides:
                point = Path(side.run(["mount", ref])[1].decode().strip())
                for change in ("written", "again"):
                    (point / change).write_text(change)
                    os.utime(point / change, (1, 1))
            self.pair.compare("mounted", ref)
            if ref in self.known["layer"]:
                self.pair.compare("changes", ref, expect=unordered)
            self.pair.compare("unmount", ref)
            self.pair.compare("unmount", ref)
            self.pair.compare("unmount", ref)

    @rule(words=st.sampled_from(WORDS))
    def words(self, words: list[str]) -> None:
        """What goes wrong before the store is looked at."""
        self.pair.compare(*words)

    @rule(data=st.data(), run=st.sampled_from(["", "-run"]))
    def directories(self, data: Any, run: str) -> None:
        """They are made when asked for."""
        self.pair.compare(f"get-container{run}-dir", self.ref(data, "container"))

    @rule(digest=st.sampled_from(["bogus", "sha256:" + "0" * 64, "sha256:12"]), json_=as_json)
    def images_by_digest(self, digest: str, json_: list[str]) -> None:
        """Known, unknown, malformed."""
        self.pair.compare("images-by-digest", *json_, digest)


class OverlayCommands(Commands):
    """The same with the overlay driver."""

    driver = "overlay"


@pytest.fixture(autouse=True, scope="module")
def _statistics() -> Iterator[None]:
    yield
    report = os.environ.get("LADING_PEER_REPORT")
    if report:
        lines = [
            f"{Pair.counted.total()} commands compared",
            *(f"{count:6} {word}" for word, count in Pair.counted.most_common()),
        ]
        lines += [
            "documented differences met:",
            *(f"{count:6} {reason}" for reason, count in Pair.excused.most_common()),
        ]
        Path(report).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("machine", [Commands, OverlayCommands], ids=["vfs", "overlay"])
def test_random_commands_say_the_same(machine: type[Commands]) -> None:
    """Outputs and exit codes, but for what is documented."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, derandomize=True,
            suppress_health_check=list(HealthCheck), print_blob=False, phases=[Phase.generate],
        ),
    )  # fmt: skip
