"""Reading storage.conf: which file, which values, what the environment changes, what is refused."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lading import storageconf
from lading.errors import InvalidInput
from lading.storageconf import StorageConf

USER = 4242


def write(folder: Path, text: str) -> dict[str, str]:
    """An environment in which this text is the file that counts."""
    path = folder / "storage.conf"
    path.write_text(text)
    return {"CONTAINERS_STORAGE_CONF": str(path), "HOME": str(folder)}


def refusal(environ: dict[str, str]) -> str:
    """The words in which a configuration is refused."""
    with pytest.raises(InvalidInput) as caught:
        storageconf.load(environ, 0)
    return str(caught.value)


def options(folder: Path, text: str, **environ: str) -> tuple[str, ...]:
    """The driver options that come out."""
    return storageconf.load({**write(folder, text), **environ}, 0).driver_options


def test_others_than_root_have_a_file_below_home(tmp_path: Path) -> None:
    """Root has none there, unless XDG_CONFIG_HOME says so."""
    own = tmp_path / ".config/containers/storage.conf"
    own.parent.mkdir(parents=True)
    own.write_text("")
    environ = {"HOME": str(tmp_path)}
    assert storageconf.find(environ, USER, system=()) == own
    assert storageconf.find(environ, 0, system=()) is None
    assert storageconf.find({"XDG_CONFIG_HOME": str(tmp_path / ".config")}, 0, system=()) == own


def test_a_named_file_is_the_only_one(tmp_path: Path) -> None:
    """It wins over all others, and when it is missing none of them takes its place."""
    (tmp_path / "system").write_text("")
    system = (tmp_path / "system",)
    environ = write(tmp_path, "")
    assert storageconf.find(environ, 0, system=system) == tmp_path / "storage.conf"
    (tmp_path / "storage.conf").unlink()
    assert refusal(environ) == f"stat {tmp_path}/storage.conf: no such file or directory"


@pytest.mark.parametrize(
    ("name", "words"),
    [("", ": no such file or directory"), ("{}/own/below", "{}/own/below: not a directory"), ("\0", "\\x00: invalid argument")],
)  # fmt: skip
def test_a_name_that_is_no_file(tmp_path: Path, name: str, words: str) -> None:
    """Says what the system says; set but empty is not the same as unset."""
    (tmp_path / "own").write_text("")
    assert refusal({"CONTAINERS_STORAGE_CONF": name.format(tmp_path)}) == f"stat {words.format(tmp_path)}"


def test_the_run_root_of_others_without_a_runtime_folder(tmp_path: Path) -> None:
    """It lies below the folder for temporary files, named by the user."""
    environ = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    conf = storageconf.load(environ, USER, system=())
    assert conf.run_root == f"{tmp_path}/storage-run-{USER}/containers"
    assert conf.graph_root == f"{tmp_path}/.local/share/containers/storage"
    data = storageconf.load({**environ, "XDG_DATA_HOME": str(tmp_path / "data")}, USER, system=())
    assert data.graph_root == f"{tmp_path}/data/containers/storage"


def test_a_users_own_graph_root_wins_over_the_rootless_path(tmp_path: Path) -> None:
    """The rootless path is for users whose file names no root; root does not look at it."""
    text = '[storage]\nrootless_storage_path = "$HOME/of-$UID"\n'
    environ = {**write(tmp_path, text), "XDG_RUNTIME_DIR": str(tmp_path)}
    conf = storageconf.load(environ, USER)
    assert (conf.graph_root, conf.rootless_storage_path) == (f"{tmp_path}/of-{USER}", f"{tmp_path}/of-{USER}")
    assert storageconf.load(environ, 0).graph_root == os.path.realpath("/var/lib/containers/storage")
    write(tmp_path, f"{text}graphroot = '{tmp_path}/own'\n")
    assert storageconf.load(environ, USER).graph_root == f"{tmp_path}/own"


SYSTEMS = """
[storage]
driver = "overlay"
graphroot = "/of/root"
runroot = "/of/root"
imagestore = "/of/root/too"
transient_store = true
[storage.options]
ignore_chown_errors = "true"
[storage.options.overlay]
mountopt = "nodev"
"""


def test_the_systems_file_does_not_send_users_to_roots_store(tmp_path: Path) -> None:
    """Roots and what belongs to them are root's; a file that is named counts in full."""
    system = (tmp_path / "system.conf",)
    system[0].write_text(SYSTEMS)
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    conf = storageconf.load(environ, USER, system=system)
    assert conf.graph_root == f"{tmp_path}/.local/share/containers/storage"
    assert (conf.run_root, conf.image_store, conf.transient_store) == (f"{tmp_path}/containers", "", False)
    assert (conf.driver, conf.driver_options) == ("overlay", ("overlay.ignore_chown_errors=true",))
    named = storageconf.load({**environ, "CONTAINERS_STORAGE_CONF": str(system[0])}, USER, system=system)
    assert (named.graph_root, named.image_store, named.transient_store) == ("/of/root", "/of/root/too", True)
    assert "overlay.mountopt=nodev" in named.driver_options


@pytest.mark.parametrize("key", ["graphroot", "runroot", "imagestore", "rootless_storage_path"])
def test_a_variable_that_is_not_set_makes_no_store_here(tmp_path: Path, key: str) -> None:
    """An empty path would mean the current folder."""
    assert refusal(write(tmp_path, f'[storage]\n{key} = "$NOT_SET"\n')) == f"{key} must be set"
    assert refusal(write(tmp_path, f'[storage]\n{key} = "a\\u0000b"\n')).startswith(f"{key} a\\x00b: embedded null")


def test_an_image_store_in_the_graph_root_is_refused(tmp_path: Path) -> None:
    """Also when a link or a variable hides that they are one."""
    (tmp_path / "g").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "g")
    environ = write(tmp_path, f'[storage]\ngraphroot = "{tmp_path}/link"\nimagestore = "$HOME/g"\n')
    words = "must either be not set or be a different than graphroot"
    assert refusal(environ) == f"imagestore {tmp_path}/g {words}"


def test_the_drivers_table_follows_the_general_options(tmp_path: Path) -> None:
    """So that it wins, in the order that ``status`` shows, what it leaves open repeated from above."""
    text = """
        [storage]
        driver = "overlay"
        [storage.options]
        mountopt = "nodev"
        force_mask = 0o700
        size = "1g"
        additionallayerstores = ["/layers:ref"]
        additionalimagestores = ["/one", "/two"]
        [storage.options.overlay]
        use_composefs = "false"
        inodes = "5"
        size = "2g"
        [storage.options.vfs]
        ignore_chown_errors = "true"
    """
    assert [option.removeprefix("overlay.") for option in options(tmp_path, text)] == [
        "imagestore=/one", "imagestore=/two", "additionallayerstore=/layers:ref",
        "size=1g", "force_mask=700", "mountopt=nodev",
        "mountopt=nodev", "size=2g", "inodes=5", "force_mask=700", "use_composefs=false",
    ]  # fmt: skip


def test_the_driver_of_the_environment_decides_which_table_counts(tmp_path: Path) -> None:
    """Else the options of one driver would be refused by the other."""
    text = '[storage]\ndriver = "overlay"\n[storage.options.overlay]\nmountopt = "nodev"\n[storage.options.vfs]\nignore_chown_errors = "true"\n'
    assert options(tmp_path, text) == ("overlay.mountopt=nodev",)
    assert options(tmp_path, text, STORAGE_DRIVER="vfs") == ("vfs.ignore_chown_errors=true",)
    assert options(tmp_path, text, STORAGE_DRIVER="") == ("overlay.mountopt=nodev",)


def test_without_a_driver_no_table_counts(tmp_path: Path) -> None:
    """General options are handed to whichever driver will be picked."""
    text = '[storage.options]\nmountopt = "nodev"\n[storage.options.overlay]\nmountopt = "nosuid"\n'
    assert options(tmp_path, text) == (".mountopt=nodev",)


def test_a_general_option_is_not_kept_from_a_driver_that_refuses_it(tmp_path: Path) -> None:
    """A bound that nobody keeps must not pass in silence."""
    assert options(tmp_path, '[storage]\ndriver = "vfs"\n[storage.options]\nsize = "1g"\n') == ("vfs.size=1g",)


def test_overlay2_is_overlay(tmp_path: Path) -> None:
    """Said in a warning; general options keep the name that was written."""
    text = '[storage]\ndriver = "overlay2"\n[storage.options]\nsize = "1g"\n[storage.options.overlay]\nsize = "2g"\n'
    conf = storageconf.load(write(tmp_path, text), 0)
    assert (conf.driver, conf.driver_options) == ("overlay", ("overlay2.size=1g", "overlay.size=2g"))
    assert conf.warnings == ("Switching default driver from overlay2 to the equivalent overlay driver",)


def test_options_of_the_environment_replace_those_of_the_file(tmp_path: Path) -> None:
    """As they are; an empty word is left to be refused, an empty text means none."""
    text = '[storage]\ndriver = "vfs"\n[storage.options]\nignore_chown_errors = "true"\n'
    assert options(tmp_path, text, STORAGE_OPTS="vfs.a=1,,b") == ("vfs.a=1", "", "b")
    assert options(tmp_path, text, STORAGE_OPTS="") == ()


@pytest.mark.parametrize(("written", "option"), [("true", "true"), ("false", "false"), ("0o10", "8"), ('""', None)])
def test_booleans_and_numbers_may_stand_without_quotes(tmp_path: Path, written: str, option: str | None) -> None:
    """Empty means not set."""
    text = f'[storage]\ndriver = "vfs"\n[storage.options.vfs]\nignore_chown_errors = {written}\n'
    assert options(tmp_path, text) == (() if option is None else (f"vfs.ignore_chown_errors={option}",))


@pytest.mark.parametrize(("written", "mask"), [("0", None), ("0o755", "755"), ("448", "700"), ('"shared"', "shared")])
def test_masks_are_octal_whatever_the_file_counts_in(tmp_path: Path, written: str, mask: str | None) -> None:
    """Zero means not set."""
    found = options(tmp_path, f"[storage.options]\nforce_mask = {written}\n")
    assert found == (() if mask is None else (f".force_mask={mask}",))


def test_known_keys_may_be_written_in_any_case(tmp_path: Path) -> None:
    """A root that is passed over for its spelling would put everything elsewhere; the exact spelling wins."""
    text = f'[Storage]\nDriver = "vfs"\nGraphRoot = "{tmp_path}/g"\n[Storage.Options.VFS]\nIgnore_Chown_Errors = "1"\n'
    conf = storageconf.load(write(tmp_path, text), 0)
    assert (conf.driver, conf.graph_root, conf.warnings) == ("vfs", f"{tmp_path}/g", ())
    assert conf.driver_options == ("vfs.ignore_chown_errors=1",)
    for first, second in (("Driver", "driver"), ("driver", "Driver")):
        both = f'[storage]\n{first} = "{first}"\n{second} = "{second}"\n'
        assert storageconf.load(write(tmp_path, both), 0).driver == "driver"


def test_an_unknown_table_is_listed_with_all_it_holds(tmp_path: Path) -> None:
    """Settings that have no effect here are among them; terminal control is not passed on."""
    text = """
        bogus = {inner = {deep = 1}}
        [storage.options]
        remap-uids = "0:1:2"
        "\\u001b[2J" = 1
        [storage.options.vfs]
        mountopt = ""
        [storage.options.zfs]
        anything = 1
    """
    (warning,) = storageconf.load(write(tmp_path, text), 0).warnings
    keys = [
        "bogus", "bogus.inner", "bogus.inner.deep", "storage.options.remap-uids", r"storage.options.\x1b[2J",
        "storage.options.vfs.mountopt",
    ]  # fmt: skip
    listed = " ".join(f'"{key}"' for key in keys)
    assert warning == f'Failed to decode the keys [{listed}] from "{tmp_path}/storage.conf"'


@pytest.mark.parametrize("driver", ["btrfs", "zfs", "aufs", "thinpool"])
def test_tables_of_drivers_that_nobody_has_here_pass_in_silence(tmp_path: Path, driver: str) -> None:
    """Files are shared with programs that have them."""
    conf = storageconf.load(write(tmp_path, f'[storage.options.{driver}]\nsize = "1"\n'), 0)
    assert (conf.warnings, conf.driver_options) == ((), ())


def test_nothing_nests_too_deep(tmp_path: Path) -> None:
    """Neither brackets nor dots end in a Python error."""
    conf = storageconf.load(write(tmp_path, ".".join("a" * 3000) + " = 1\n"), 0)
    assert len(conf.warnings) == 1
    assert refusal(write(tmp_path, "a = " + "[" * 100_000)) == "reload: toml: line 1: nested too deep"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"= 1", 1), (b"[storage]\n\n= 1\n", 3), (b'[storage]\ndriver = "vfs', 2), (b"[storage]\n# \xff\n", 2),
        (b"[storage]\ndriver = 'a'\ndriver = 'b'\n", 3), (b"a = " + b"9" * 5000, 1),
    ],
)  # fmt: skip
def test_broken_files_are_named_by_line(tmp_path: Path, content: bytes, line: int) -> None:
    """In one printable line."""
    path = tmp_path / "storage.conf"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=rf"^reload: toml: line {line}: [ -~]+$") as caught:
        storageconf.load({}, 0, path=path, raw=True)
    assert "(at " not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    """Each with the reason."""
    assert refusal({"CONTAINERS_STORAGE_CONF": str(tmp_path)}) == f"reload: open {tmp_path}: is a directory"
    with pytest.raises(InvalidInput, match=rf"^reload: stat {tmp_path}/no: no such file or directory$"):
        storageconf.load({}, 0, path=tmp_path / "no", raw=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("storage = 1", "storage must be a table"),
        ("[storage]\noptions = []", "options must be a table"),
        ("[storage.options]\noverlay = 1", "overlay must be a table"),
        ("[storage.options]\npull_options = 1", "pull_options must be a table"),
        ("[storage]\ngraphroot = true", "graphroot must be a string"),
        ("[storage]\ndriver_priority = 'vfs'", "driver_priority must be a list of strings"),
        ("[storage.options]\nadditionalimagestores = [1]", "additionalimagestores must be a list of strings"),
        ("[storage.options]\nauto-userns-min-size = -1", "auto-userns-min-size must be a number that is not negative"),
        ("[storage.options]\nauto-userns-max-size = true", "auto-userns-max-size must be a number that is not negative"),
        ("[storage.options]\ndisable-volatile = 'true'", "disable-volatile must be true or false"),
        ("[storage.options]\nmountopt = ['nodev']", "mountopt must be a string"),
        ("[storage.options.overlay]\nsize = 1979-05-27", "size must be a string"),
        ("[storage.options]\nsize = 0x" + "f" * 5000, "size must be a string"),
    ],
)  # fmt: skip
def test_values_of_a_wrong_type(tmp_path: Path, text: str, words: str) -> None:
    """Refused even where the chosen driver would not look at them."""
    assert refusal(write(tmp_path, text)) == f"reload: toml: {tmp_path}/storage.conf: {words}"


def test_a_file_is_shown_raw(tmp_path: Path) -> None:
    """No roots that it does not name, nothing expanded, nothing from the environment."""
    path = tmp_path / "shown.conf"
    path.write_text('[storage]\ndriver = "overlay"\ngraphroot = "$HOME/$UID"\n[storage.options]\nmountopt = "nodev"\n')
    environ = {"STORAGE_DRIVER": "vfs", "STORAGE_OPTS": "", "HOME": "/h", "CONTAINERS_STORAGE_CONF": "/nowhere"}
    conf = storageconf.load(environ, USER, path=path, raw=True)
    assert (conf.run_root, conf.graph_root, conf.driver) == ("", "$HOME/$UID", "overlay")
    assert set(conf.driver_options) == {"overlay.mountopt=nodev"}


def test_the_documented_example() -> None:
    """Byte for byte, roots and what is always there included."""
    conf = StorageConf(
        run_root="/run/containers/storage", graph_root="/var/lib/containers/storage", driver="overlay",
        driver_options=("overlay.mountopt=nodev",),
        pull_options={"enable_partial_images": "false", "use_hard_links": "false", "ostree_repos": ""},
    )  # fmt: skip
    assert json.dumps(storageconf.as_json(conf), separators=(",", ":")) == (
        '{"runroot":"/run/containers/storage","root":"/var/lib/containers/storage","RootlessStoragePath":"",'
        '"driver":"overlay","driver-options":["overlay.mountopt=nodev"],'
        '"PullOptions":{"enable_partial_images":"false","ostree_repos":"","use_hard_links":"false"}}'
    )


def test_every_field_has_its_place(tmp_path: Path) -> None:
    """In the order of the contract; empty ones are left out, but for two."""
    assert storageconf.as_json(StorageConf()) == {"RootlessStoragePath": "", "PullOptions": None}
    text = f"""
        [storage]
        driver_priority = ["vfs", "overlay"]
        driver = "vfs"
        transient_store = true
        imagestore = "{tmp_path}/i"
        rootless_storage_path = "{tmp_path}/q"
        [storage.options]
        disable-volatile = true
        root-auto-userns-user = "someone"
        auto-userns-min-size = 5
        auto-userns-max-size = 6
        ignore_chown_errors = "true"
        pull_options = {{convert_images = "true"}}
    """
    found = storageconf.as_json(storageconf.load(write(tmp_path, text), 0))
    assert list(found) == [
        "runroot", "root", "imagestore", "RootlessStoragePath", "driver", "driver-priority", "driver-options",
        "root_auto_ns_user", "auto_userns_min_size", "auto_userns_max_size", "PullOptions", "disable-volatile",
        "transient_store",
    ]  # fmt: skip
    assert found["driver-priority"] == ["vfs", "overlay"]
    assert (found["auto_userns_min_size"], found["auto_userns_max_size"]) == (5, 6)
    assert (found["imagestore"], found["RootlessStoragePath"]) == (f"{tmp_path}/i", f"{tmp_path}/q")
    # What is known to default to "false" is shown beside what was given.
    assert found["PullOptions"] == {
        "convert_images": "true", "enable_partial_images": "false", "ostree_repos": "", "use_hard_links": "false",
    }  # fmt: skip


_TEXT = st.lists(
    st.sampled_from(["[storage]\n", "[storage.options]\n", "[storage.options.overlay]\n", "[[storage]]\n"])
    | st.builds(
        "{} = {}\n".format,
        st.sampled_from(["driver", "graphroot", "size", "mountopt", "pull_options", "Driver", "storage", "a.b"]),
        st.sampled_from(["1", "-1", "0.5", "true", "[]", "{a = 1}", "'x'", "'$HOME'", "['x']", "nan", "1979-05-27"]),
    )
    | st.text(max_size=20),
    max_size=8,
).map("".join)


@given(_TEXT)
@example('"\\uD800" = 1')
@example("a = 1\r\nb = \r\n")
@example("\ufeff[storage]\n")
def test_no_file_ends_in_a_traceback(text: str) -> None:
    """It is read, or refused in one line; what is shown can be shown as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "storage.conf")
        path.write_bytes(text.encode())
        environ = {"CONTAINERS_STORAGE_CONF": str(path), "HOME": folder}
        try:
            conf = storageconf.load(environ, 0)
        except InvalidInput as error:
            words = [str(error)]
        else:
            json.dumps(storageconf.as_json(conf))
            words = list(conf.warnings)
    assert all(word.isprintable() for word in words)


def test_the_runtime_folder_must_be_the_users_own(tmp_path: Path) -> None:
    """Sockets and mounts in a folder of somebody else's would be theirs to replace."""
    user = os.geteuid()
    tmp_path.chmod(0o700)
    assert storageconf._is_private(str(tmp_path), user)
    assert not storageconf._is_private(str(tmp_path), user + 1)
    assert not storageconf._is_private(str(tmp_path / "no"), user)
    tmp_path.chmod(0o755)
    assert not storageconf._is_private(str(tmp_path), user)
