"""A machine that runs any commands, in any order, on records that exist, existed, or never did."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pyzstd
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from lading.cli.main import ALIASES
from tests.contract import diff_samples, diff_trees
from tests.contract.diff_documented import DOCUMENTED, OPEN
from tests.contract.differential import KINDS, Difference, Pair, Parted, Said

NAMES = ["n1", "n2", "n3", "a b", "\u00e9", "l1", "i2"]
KEYS = ["k", "K2", "manifest", "manifest-x", "z/", "a b", ""]

name = st.sampled_from(NAMES)
names = st.lists(name, max_size=3).flatmap(
    lambda found: st.sampled_from(["-n", "--name", "="]).map(
        lambda how: [word for item in found for word in ([f"--name={item}"] if how == "=" else [how, item])]
    )
)
as_json = st.sampled_from([[], [], [], ["-j"], ["--json"], ["--json=true"], ["-j=false"], ["--json=false"]])
data_key = st.sampled_from(KEYS)
kinds = st.sampled_from(KINDS)
yes = st.booleans()

_SPELLINGS: dict[str, list[str]] = {}
for _alias, _command in ALIASES.items():
    _SPELLINGS.setdefault(_command, [_command, _command]).append(_alias)


def rarely(draw: Callable[..., Any], times: int = 8) -> bool:
    """Once in so many times."""
    return bool(draw(st.integers(0, times)) == times)


def sorted_lines(text: str) -> str:
    """Put lines in order, or the elements and keys of a JSON document, where nothing is said about one."""
    with contextlib.suppress(ValueError):
        found = json.loads(text)
        if isinstance(found, list):
            found.sort(key=lambda item: json.dumps(item, sort_keys=True))
        return json.dumps(found, sort_keys=True)
    return "\n".join(sorted(text.split("\n")))


def sorted_digests(text: str) -> str:
    """Put the digests of each image in order."""
    lines: list[str] = []
    held: list[str] = []
    for line in [*text.split("\n"), ""]:
        if line.strip().lower().startswith("digest:"):
            held.append(line)
        else:
            lines += [*sorted(held), line]
            held = []
    return "\n".join(lines)


def status_keys(text: str) -> str:
    """What a status tells about: values are each program's own."""
    if text.startswith("["):
        return "\n".join(pair[0] for pair in json.loads(text))
    return "\n".join(line.partition(":")[0] for line in text.split("\n") if line)


def uncompressed(data: bytes) -> bytes:
    """A diff without its compression: how well a program compresses is its own."""
    if data.startswith(b"\x1f\x8b\x08"):
        return b"gzip " + gzip.decompress(data)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        return b"zstd " + pyzstd.decompress(data)
    return data


def entries(data: bytes) -> bytes:
    """A generated diff entry by entry: how a header is packed is each program's own, and whiteouts bear the time of day."""
    plain = uncompressed(data)
    compression, plain = (plain[:4], plain[5:]) if plain[:5] in (b"gzip ", b"zstd ") else (b"none", plain)
    lines = [f"{compression.decode()}, {len(plain) % 512} bytes behind the last block"]
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as archive:
        for member in archive:
            held = archive.extractfile(member) if member.isreg() else None
            whiteout = "/.wh." in f"/{member.name}"
            xattrs = {key: value for key, value in member.pax_headers.items() if key.startswith("SCHILY.xattr.")}
            lines.append(
                f"{member.name} {member.type!r} {member.mode & 0o7777:o} {member.uid}:{member.gid} "
                f"{0 if whiteout else member.mtime} {member.linkname} {member.devmajor}:{member.devminor} {xattrs or ''} "
                f"{zlib.crc32(held.read()) if held else ''}"
            )
    return "\n".join(lines).encode()


def entries_or_nothing(data: bytes) -> bytes:
    """As :func:`entries`; what is no whole diff stays as it is."""
    try:
        return entries(data)
    except (tarfile.TarError, EOFError, OSError):
        return data


class Commands(RuleBasedStateMachine):
    """The rules; a subclass says which driver."""

    driver: ClassVar[str] = "vfs"

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(self.driver, (*DOCUMENTED, *OPEN))
        self.over = False
        self.given = 0
        self.gone: list[str] = []
        self.linked: set[str] = set()  #: layers whose own diffs have hard links
        self.mounts: Counter[str] = Counter()  #: layers that are mounted, and how often

    def teardown(self) -> None:
        """Leave nothing mounted and nothing on disk."""
        self.pair.close()

    # -- helpers ---------------------------------------------------------------------------------------------------

    def say(self, *words: str, **how: Any) -> Said | None:
        """Compare a command; after a documented parting there is nothing more to compare."""
        if self.over:
            return None
        try:
            return self.pair.compare(*words, **how)
        except Parted:
            self.over = True
            return None

    def spelled(self, draw: Callable[..., Any], command: str) -> str:
        """A command by any of its names."""
        return str(draw(st.sampled_from(_SPELLINGS.get(command, [command]))))

    def ids(self, *wanted: str) -> list[str]:
        """Ids of the records of some kinds."""
        return [record["id"] for kind in wanted or KINDS for record in self.pair.state[kind]]

    def ref(self, draw: Callable[..., Any], *wanted: str, exact: bool = False) -> str:
        """A reference; most often to a record of one of the kinds."""
        pool = [*self.ids(*wanted)]
        if exact:
            return str(draw(st.sampled_from(pool or ["nosuch"])))
        pool *= 5
        for kind in wanted or KINDS:
            for record in self.pair.state[kind]:
                pool += record.get("names") or []
                if record["id"].startswith("<"):
                    pool.append(record["id"].replace(">", ":8>"))
                if kind == "container":
                    pool.append(record["layer"])
        if not pool or rarely(draw):
            pool = [*self.ids(), *NAMES, *self.gone[-5:], "nosuch", ""]
        return str(draw(st.sampled_from(pool)))

    def layer_of(self, ref: str) -> str:
        """The layer that a reference to a layer or container shows when it is mounted."""
        for container in self.pair.state["container"]:
            if ref in (container["id"], *(container.get("names") or ())):
                return str(container["layer"])
        for layer in self.pair.state["layer"]:
            if ref in (layer["id"], *(layer.get("names") or ())):
                return str(layer["id"])
        return ref

    def changeable(self, draw: Callable[..., Any], *wanted: str, mounted: bool = True) -> str:
        """A layer or container whose contents may be changed.

        What is below a mounted layer may not: the kernel says nothing about what is seen then. With vfs nothing may be
        changed that has children: they have copies with the reference, and follow with us.
        """
        parents = {layer["id"]: layer.get("parent") for layer in self.pair.state["layer"]}
        # Hard links of a layer's own diff end when one of their names is written to: with us they lie below.
        taken = set(parents.values()) if self.driver == "vfs" else set(self.linked)
        for layer in self.mounts:
            above = layer if not mounted else parents.get(layer)
            while above and above not in taken:
                taken.add(above)
                above = parents.get(above)
        pool = [found for found in self.ids(*wanted) if self.layer_of(found) not in taken]
        return str(draw(st.sampled_from(pool or ["nosuch"])))

    def new_id(self, draw: Callable[..., Any], letter: str) -> list[str]:
        """An id to be used, or none."""
        if draw(yes):
            return []
        if rarely(draw, 10):
            return ["--id", self.ref(draw, exact=True)]
        self.given += 1
        found = f"{letter}{self.given}"  # letters that are no hexadecimal digits: no prefix of a drawn id
        how = draw(st.integers(0, 3))
        return [["--id", found], ["-i", found], [f"--id={found}"], [f"-i='{found}'"]][how]

    def file(self, data: bytes) -> str:
        """A file that both sides read."""
        path = self.pair.folder / f"file-{zlib.crc32(data):08x}-{len(data)}"
        path.write_bytes(data)
        return str(path)

    def fed(self, draw: Callable[..., Any], data: bytes) -> tuple[list[str], bytes]:
        """Options and standard input by which a command reads something."""
        how = draw(st.integers(0, 2))
        if how == 0:
            return [], data
        return ([["-f", self.file(data)], [f"--file={self.file(data)}"]][how - 1]), b""

    def diff_bytes(self, draw: Callable[..., Any], *, whiteouts: bool = True) -> bytes:
        """A diff, compressed or not, now and then an odd one."""
        if rarely(draw, 6):
            return diff_samples.ODD[draw(st.sampled_from(sorted(diff_samples.ODD)))]
        plain = draw(diff_samples.plain_tar(whiteouts=whiteouts))
        return diff_samples.COMPRESSIONS[draw(diff_samples.compression)](plain)

    @initialize(data=st.data(), begun=st.sampled_from([2, 0, 1, 2, 3, 3]))
    def begin(self, data: Any, begun: int) -> None:
        """Most sequences start with something to work on: a few layers, an image, a container."""
        for number in range(begun):
            plain = data.draw(diff_samples.plain_tar())
            parent = [f"base{number - 1}"] if number else []
            words = ["import-layer", "-i", f"base{number}", "-n", f"name{number}", *parent]
            self.say(*words, stdin=plain, hint=diff_samples.told(plain))
            if "=" in diff_samples.told(plain):
                self.linked.add(f"base{number}")
        if begun > 1:
            self.say("create-image", "-i", "image", "-n", "name1", f"base{begun - 1}")
            self.say("create-container", "-n", "name1", "image")

    # -- creation --------------------------------------------------------------------------------------------------

    @rule(data=st.data(), names=names, json_=as_json)
    def create_layer(self, data: Any, names: list[str], json_: list[str]) -> None:
        """On a parent or on nothing."""
        draw = data.draw
        parent = [self.ref(draw, "layer")] if draw(yes) else []
        more = draw(st.sampled_from([[], [], [], ["--readonly"], ["-r"], ["-l", "label"]]))
        self.say(self.spelled(draw, "create-layer"), *self.new_id(draw, "l"), *names, *more, *json_, *parent)

    @rule(data=st.data(), names=names, json_=as_json)
    def import_layer(self, data: Any, names: list[str], json_: list[str]) -> None:
        """On a parent or on nothing, with all kinds of diffs."""
        draw = data.draw
        parent = [self.ref(draw, "layer")] if draw(yes) else []
        tar = self.diff_bytes(draw)
        options, stdin = self.fed(draw, tar)
        words = [*self.new_id(draw, "l"), *names, *json_, *options, *parent]
        told = diff_samples.told(tar)
        said = self.say(self.spelled(draw, "import-layer"), *words, stdin=stdin, hint=told)
        if said is not None and not said.status and "=" in told:
            self.linked.add(self.ids("layer")[-1])

    @rule(data=st.data())
    def applydiff(self, data: Any) -> None:
        """On top of whatever a layer holds."""
        draw = data.draw
        tar = self.diff_bytes(draw, whiteouts=False)
        options, stdin = self.fed(draw, tar)
        layer = self.changeable(draw, "layer", mounted=False)
        words = [self.spelled(draw, "applydiff"), *options, layer]
        said = self.say(*words, stdin=stdin, hint=diff_samples.told(tar))
        if "=" in diff_samples.told(tar):
            self.linked.add(layer)
        if said is not None and said.status and layer in self.ids():
            self.over = True  # how much of a damaged diff is there afterwards is not said anywhere

    @rule(data=st.data(), names=names, json_=as_json)
    def create_image(self, data: Any, names: list[str], json_: list[str]) -> None:
        """With a layer or without."""
        draw = data.draw
        digests = [
            "bogus",
            "sha256:" + "0" * 64,
            "sha256:" + "1" * 64,
            "sha256:12",
            "md5:" + "0" * 32,
            "sha512:" + "a" * 128,
        ]
        digest = ["-d", draw(st.sampled_from(digests))] if rarely(draw, 3) else []
        metadata = draw(st.sampled_from([[], ["-m", "text"], ["--metadata=more\n"], ["-m", "<&>"]]))
        top = [self.ref(draw, "layer")] if draw(st.integers(0, 4)) else draw(st.sampled_from([[], [""]]))
        words = [*self.new_id(draw, "i"), *names, *digest, *metadata, *json_, *top]
        self.say(self.spelled(draw, "create-image"), *words)

    @rule(data=st.data(), names=names, json_=as_json)
    def create_container(self, data: Any, names: list[str], json_: list[str]) -> None:
        """Of an image or of nothing."""
        draw = data.draw
        image = self.ref(draw, "image") if draw(st.integers(0, 5)) else ""
        more = draw(st.sampled_from([[], [], ["--volatile"], ["-m", "text"], ["--volatile=false"]]))
        self.say(self.spelled(draw, "create-container"), *self.new_id(draw, "k"), *names, *more, *json_, image)

    # -- looking ---------------------------------------------------------------------------------------------------

    @rule(kind=kinds, options=st.lists(st.sampled_from(["-q", "-j", "-t", "--tree", "--quiet", "-qj"]), max_size=2))
    def lists(self, kind: str, options: list[str]) -> None:
        """All records of a kind."""
        if kind != "layer":
            options = [option for option in options if option not in ("-t", "--tree")]
        if kind == "container":
            options = [option for option in options if "q" not in option]
        tree = "-t" in options or "--tree" in options
        order = sorted_lines if tree else sorted_digests if kind == "image" else None
        self.say(f"{kind}s", *options, order=order)

    @rule(data=st.data(), kind=kinds, json_=as_json)
    def shows(self, data: Any, kind: str, json_: list[str]) -> None:
        """Records by reference."""
        refs = [self.ref(data.draw, kind) for _ in range(data.draw(st.integers(1, 2)))]
        self.say(kind, *json_, *refs, order=sorted_digests)

    @rule(data=st.data(), json_=as_json, quiet=st.sampled_from([[], ["-q"]]))
    def metadata(self, data: Any, json_: list[str], quiet: list[str]) -> None:
        """Of any kind, known or not."""
        order = sorted_lines if json_ and "false" not in json_[0] else None  # keys are ids, whose order is chance
        self.say("metadata", *json_, *quiet, self.ref(data.draw), self.ref(data.draw), order=order)

    @rule(data=st.data(), options=st.lists(st.sampled_from(["-l", "-i", "-c", "-q", "-j", "-lq"]), max_size=3))
    def exists(self, data: Any, options: list[str]) -> None:
        """As anything, or as a kind."""
        refs = [self.ref(data.draw) for _ in range(data.draw(st.integers(1, 3)))]
        self.say("exists", *options, *refs, order=sorted_lines)

    @rule(data=st.data(), json_=as_json, quiet=st.sampled_from([[], ["-q"]]))
    def images_by_digest(self, data: Any, json_: list[str], quiet: list[str]) -> None:
        """Known, unknown, malformed."""
        pool = ["bogus", "sha256:12", "sha256:" + "0" * 64, "sha256:" + "1" * 64]
        for image in self.pair.state["image"]:
            pool += [image["digest"]] if "digest" in image else []
            pool += (image.get("big-data-digests") or {}).values()
        digest = data.draw(st.sampled_from(pool))
        self.say(self.spelled(data.draw, "images-by-digest"), *json_, *quiet, digest, order=sorted_digests)

    @rule(data=st.data(), run=st.sampled_from(["", "-run"]))
    def directories(self, data: Any, run: str) -> None:
        """They are made when asked for."""
        self.say(self.spelled(data.draw, f"get-container{run}-dir"), self.ref(data.draw, "container"))

    # -- names, metadata, data -------------------------------------------------------------------------------------

    @rule(data=st.data(), json_=as_json)
    def get_names(self, data: Any, json_: list[str]) -> None:
        """Of any kind."""
        self.say(self.spelled(data.draw, "get-names"), *json_, self.ref(data.draw))

    @rule(data=st.data(), names=names, json_=as_json, verb=st.sampled_from(["add-names", *["set-names"] * 6]))
    def change_names(self, data: Any, names: list[str], json_: list[str], verb: str) -> None:
        """Names come, go and move."""
        self.say(self.spelled(data.draw, verb), *names, *json_, self.ref(data.draw))

    @rule(data=st.data(), text=st.sampled_from([["-m", "x"], ["-m", ""], ["-m", "line\n\n"], [], ["-f"]]))
    def set_metadata(self, data: Any, text: list[str]) -> None:
        """With text, with a file, or with nothing."""
        if text == ["-f"]:
            text = ["-f", data.draw(st.sampled_from([self.file(b"of a file\n"), self.file(b""), "/nowhere"]))]
        self.say(self.spelled(data.draw, "set-metadata"), *text, self.ref(data.draw))

    @rule(data=st.data(), kind=kinds, key=data_key, item=st.sampled_from([b"", b"some data\n", b"\x00\xff", b"{}"]))
    def set_data(self, data: Any, kind: str, key: str, item: bytes) -> None:
        """Items come and are replaced."""
        options, stdin = self.fed(data.draw, item)
        self.say(
            self.spelled(data.draw, f"set-{kind}-data"), *options, self.ref(data.draw, kind), key, stdin=stdin
        )  # fmt: skip

    @rule(data=st.data(), kind=kinds, key=data_key, ask=st.sampled_from(["", "", "-size", "-digest"]))
    def get_data(self, data: Any, kind: str, key: str, ask: str) -> None:
        """Items, their sizes and digests."""
        ask = "" if kind == "layer" else ask
        binary = (lambda found: found) if not ask else None
        self.say(self.spelled(data.draw, f"get-{kind}-data{ask}"), self.ref(data.draw, kind), key, binary=binary)

    @rule(data=st.data(), kind=kinds, json_=as_json)
    def list_data(self, data: Any, kind: str, json_: list[str]) -> None:
        """Keys in order."""
        self.say(self.spelled(data.draw, f"list-{kind}-data"), *json_, self.ref(data.draw, kind))

    # -- deletion --------------------------------------------------------------------------------------------------

    @rule(data=st.data(), kind=st.sampled_from(["", "-layer", "-image", "-image", "-container"]), json_=as_json)
    def delete(self, data: Any, kind: str, json_: list[str]) -> None:
        """With and without safety checks."""
        draw = data.draw
        wanted = [kind[1:]] if kind else []
        # By another reference than an id the reference checks nothing before it deletes a layer.
        exact = kind == "-layer" and not rarely(draw, 20)
        refs = [self.ref(draw, *wanted, exact=exact) for _ in range(draw(st.sampled_from([1, 1, 1, 2])))]
        test = draw(st.sampled_from([[], ["-t"], ["--test"]])) if kind == "-image" else []
        before = self.ids()
        # Errors come in the order of a hash map.
        self.say(self.spelled(draw, f"delete{kind}"), *test, *json_, *refs, order=sorted_lines)
        self.gone += [found for found in before if found not in self.ids()]
        self.mounts = Counter({layer: times for layer, times in self.mounts.items() if layer in self.ids("layer")})

    # -- diffs -----------------------------------------------------------------------------------------------------

    @rule(data=st.data(), how=st.sampled_from(["-u", "-u", "-u", "-c", "", "-b", "-x", "-cu"]))
    def diff(self, data: Any, how: str) -> None:
        """Byte for byte, but for the compression."""
        draw = data.draw
        refs = [self.ref(draw, "layer"), *([self.ref(draw, "layer")] if rarely(draw, 6) else [])]
        with_diff = {layer["id"]: layer["diff-digest"] for layer in self.pair.state["layer"] if "diff-digest" in layer}
        replayed = len(refs) == 1 and refs[0] in with_diff
        said = self.say("diff", *([how] if how else []), *refs, binary=uncompressed if replayed else entries_or_nothing)
        if replayed and said is not None and not said.status:
            assert isinstance(said.stdout, bytes)
            plain = re.sub(rb"^(gzip|zstd) ", b"", said.stdout)
            assert with_diff[refs[0]] == f"sha256:{hashlib.sha256(plain).hexdigest()}"

    @rule(data=st.data(), json_=as_json)
    def changes(self, data: Any, json_: list[str]) -> None:
        """Against the parent, or another layer."""
        draw = data.draw
        refs = [self.ref(draw, "layer"), *([self.ref(draw, "layer")] if rarely(draw, 4) else [])]
        self.say("changes", *json_, *refs, order=sorted_lines)

    @rule(data=st.data())
    def diffsize(self, data: Any) -> None:
        """Against the parent, or another layer."""
        draw = data.draw
        refs = [self.ref(draw, "layer"), *([self.ref(draw, "layer")] if rarely(draw, 4) else [])]
        self.say(self.spelled(draw, "diffsize"), *refs)

    # -- mounts ----------------------------------------------------------------------------------------------------

    @rule(data=st.data(), json_=as_json)
    def mount(self, data: Any, json_: list[str]) -> None:
        """Layers by their ids alone: by another reference the reference mounts what is not there."""
        draw = data.draw
        exact = not rarely(draw, 20)
        wanted = draw(st.sampled_from([["layer"], ["container"], ["layer", "container"]]))
        ref = self.ref(draw, *wanted, exact=exact)
        said = self.say("mount", *json_, ref)
        if said is not None and not said.status:
            self.mounts[self.layer_of(ref)] += 1

    @rule(data=st.data(), json_=as_json, force=st.sampled_from([[], [], ["-f"], ["--force"]]))
    def unmount(self, data: Any, json_: list[str], force: list[str]) -> None:
        """As often as one likes."""
        draw = data.draw
        ref = self.ref(draw, "layer", "container", exact=not rarely(draw, 20))
        self.say(self.spelled(draw, "unmount"), *force, *json_, ref)
        layer = self.layer_of(ref)
        self.mounts[layer] -= self.mounts[layer] if force else 1
        self.mounts = +self.mounts

    @rule(data=st.data(), json_=as_json)
    def mounted(self, data: Any, json_: list[str]) -> None:
        """Whatever is mounted or not."""
        refs = [self.ref(data.draw, "layer", "container", exact=True) for _ in range(2)]
        self.say("mounted", *json_, *refs)

    @precondition(lambda self: self.ids("layer", "container"))
    @rule(data=st.data(), todo=diff_trees.operations)
    def write(self, data: Any, todo: list[diff_trees.Operation]) -> None:
        """Change files through a mount point, and look what is to be seen there before and after."""
        if self.over:
            return
        ref = self.changeable(data.draw, "layer", "container")
        self.look(ref)
        ended: list[list[str]] = []

        def act(root: Path) -> None:
            ended.append(diff_trees.act(root, todo))

        if self.at(ref, " ".join(map(repr, todo)), act):
            if ended[0] != ended[1]:
                self.differ([f"only with the reference: {ended[0]}", f"only with us: {ended[1]}"])
            self.look(ref)
            self.say("changes", ref, order=sorted_lines)

    @precondition(lambda self: self.ids("layer", "container"))
    @rule(data=st.data())
    def trees(self, data: Any) -> None:
        """Everything that is to be seen in a layer or container."""
        self.look(self.ref(data.draw, "layer", "container", exact=True))

    def look(self, ref: str) -> None:
        """Compare whole trees."""
        found: list[tuple[list[str], set[tuple[str, str]]]] = []
        if not self.at(ref, "ls -R", lambda root: found.append(diff_trees.listing(root))):
            return
        (theirs, links), (mine, own_links) = found
        if theirs != mine:
            only = sorted(set(theirs) - set(mine)), sorted(set(mine) - set(theirs))
            self.differ(["only with the reference:", *only[0], "only with us:", *only[1]])
        # Where trees are farms of hard links, files that are alike share an inode; those linked must in any case.
        if not links <= own_links:
            self.differ([f"only with the reference: hard links {sorted(links - own_links)}"])

    def differ(self, lines: list[str]) -> None:
        """Tell of a difference that no command's answer shows."""
        raise Difference("\n".join([f"{self.driver}: after", *self.pair.history, *lines]))

    def at(self, ref: str, told: str, act: Callable[[Path], None]) -> bool:
        """Do something at the place where a layer is mounted, if it can be."""
        if self.over:
            return False
        said = self.say("mount", ref)
        if said is None or said.status:
            return False
        self.pair.do(told, ref, act)
        self.say("unmount", ref)
        return not self.over

    # -- the rest --------------------------------------------------------------------------------------------------

    @rule(words=st.sampled_from([
        ["layers", "--bogus"], ["layers", "-x"], ["layer"], ["layers", "--json=maybe"], ["create-layer", "-i"], ["nonsense"],
        ["create-layer", "a", "--id", "zz"], ["layer", "--", "-j"], ["create-image", "a", "b"], ["diff"], ["applydiff"], ["mount"],
        ["create-container"], ["create-layer", "--uidmap", "bogus"], ["create-layer", "--uidmap", "0:1"], ["metadata"], ["", "x"],
        ["listlayerdata", "nosuch"], ["create-layer", "--hostuidmap", "--uidmap", "0:0:1"], ["mount", "--option", "nosuid", "x"],
        ["create-layer", "--subuidmap", "no-such-user"], ["layers", "a"], ["layers", "--json", "true"], ["layers", "-json"],
        ["get-names", "a", "b"], ["images-by-digest"], ["set-metadata", "-m"], ["layers", "-qjt"], ["layers", "-"], ["images", "--", "x"],
        ["create-image", "-d"], ["exists"], ["delete-image", "-tq", "x"], ["unmount", "--json=2", "x"], ["wipe", "x"], ["diff", "a", "b", "c"],
        ["get-layer-data", "nosuch"], ["set-image-data", "a", "b", "c"], ["status", "x"], ["changes", "-j"], ["exists", "-jlic", "nosuch"],
    ]))  # fmt: skip
    def wrong_words(self, words: list[str]) -> None:
        """What goes wrong before a store is looked at, or soon after."""
        self.say(*words)

    @rule(json_=as_json)
    def status(self, json_: list[str]) -> None:
        """Which things it tells about; some of what it tells is each program's own."""
        self.say("status", *json_, order=status_keys)

    @rule(data=st.data(), json_=as_json)
    def wipe(self, data: Any, json_: list[str]) -> None:
        """Now and then."""
        if rarely(data.draw, 6):
            self.say("wipe", *json_)
            self.mounts.clear()


class OverlayCommands(Commands):
    """The same with the other driver."""

    driver = "overlay"
