"""Where settings come from, and which of them win."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lading import driveroptions, settings, storageconf
from lading.errors import IncompleteOptions, InvalidInput
from tests.contract.command import ours


def conf(folder: Path, text: str) -> dict[str, str]:
    """An environment in which a configuration file counts."""
    path = folder / "storage.conf"
    path.write_text(text)
    return {"CONTAINERS_STORAGE_CONF": str(path), "HOME": str(folder)}


def test_which_settings_win(tmp_path: Path) -> None:
    """Options before the command put the file aside; those after it override single settings."""
    environ = conf(
        tmp_path,
        f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/g"\nrunroot = "{tmp_path}/r"\nimagestore = "{tmp_path}/i"\n'
        '[storage.options]\nignore_chown_errors = "true"\n',
    )
    found = settings.choose_compatible(environ, 0, {}, {})
    assert (found.root, found.run) == (tmp_path / "g", tmp_path / "r")
    assert (found.settings.driver, found.settings.image_store) == ("vfs", f"{tmp_path}/i")
    assert found.settings.ignore_chown_errors

    lost = settings.choose_compatible(environ, 0, {"image_store": "/lost", "transient": True}, {})
    assert (lost.settings.image_store, lost.settings.transient) == (f"{tmp_path}/i", False)
    after = settings.choose_compatible(environ, 0, {}, {"graph": "/x", "image_store": "/kept", "transient": True})
    assert (after.root, after.run) == (Path("/x"), tmp_path / "r")
    assert (after.settings.image_store, after.settings.transient) == ("/kept", True)

    aside = settings.choose_compatible({**environ, "STORAGE_DRIVER": "overlay"}, 0, {"graph": "/y"}, {})
    assert (aside.root, aside.run) == (Path("/y"), tmp_path / "r")
    assert (aside.settings.driver, aside.settings.image_store, aside.settings.driver_options) == ("", "", ())
    with pytest.raises(IncompleteOptions, match="missing necessary StoreOptions"):
        settings.choose_compatible(environ, 0, {"driver": "vfs"}, {})


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    """Driver and driver options; set but empty means none."""
    environ = conf(tmp_path, '[storage]\ndriver = "vfs"\n[storage.options.overlay]\nmountopt = "nodev"\n')
    assert storageconf.load({**environ, "STORAGE_DRIVER": "overlay2"}, 0).driver == "overlay"
    both = {**environ, "STORAGE_OPTS": "overlay.mountopt=nosuid,overlay.ignore_chown_errors=true"}
    assert storageconf.load(both, 0).driver_options == ("overlay.mountopt=nosuid", "overlay.ignore_chown_errors=true")
    assert storageconf.load({**environ, "STORAGE_OPTS": ""}, 0).driver_options == ()


def test_where_the_file_is_looked_for(tmp_path: Path) -> None:
    """The one that is named, the user's, the system's."""
    system = (tmp_path / "etc.conf", tmp_path / "usr.conf")
    assert storageconf.find({}, 0, system=system) is None
    system[1].write_text("")
    assert storageconf.find({}, 0, system=system) == system[1]
    system[0].write_text("")
    assert storageconf.find({}, 0, system=system) == system[0]
    own = tmp_path / "config/containers/storage.conf"
    own.parent.mkdir(parents=True)
    own.write_text("")
    assert storageconf.find({"XDG_CONFIG_HOME": str(tmp_path / "config")}, 0, system=system) == own
    with pytest.raises(InvalidInput, match="no such file"):
        storageconf.find({"CONTAINERS_STORAGE_CONF": "/nowhere"}, 0, system=system)


def test_defaults_of_root_and_of_others(tmp_path: Path) -> None:
    """Below /var/lib and /run for root, below the user's own folders for others."""
    none = (tmp_path / "none",)
    root = storageconf.load({}, 0, system=none)
    assert (root.graph_root, root.run_root) == (
        os.path.realpath("/var/lib/containers/storage"),
        os.path.realpath("/run/containers/storage"),
    )
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    user = storageconf.load(environ, 4242, system=none)
    assert (user.graph_root, user.run_root) == (
        f"{tmp_path}/.local/share/containers/storage",
        f"{tmp_path}/run/containers",
    )


def test_unknown_keys_are_warned_of(tmp_path: Path) -> None:
    """In one line; tables of drivers that nobody has here are silent."""
    environ = conf(
        tmp_path, "[storage]\nbogus = 1\n[storage.options.btrfs]\nsize = '1'\n[storage.options.overlay]\nnew = ''\n"
    )
    (warning,) = storageconf.load(environ, 0).warnings
    assert warning.startswith('Failed to decode the keys ["storage.bogus" "storage.options.overlay.new"] from "')


def test_variables_are_expanded(tmp_path: Path) -> None:
    """And links followed."""
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "link")
    environ = conf(tmp_path, '[storage]\ngraphroot = "$HOME/link/$UID"\nrunroot = "${HOME}/run"\n')
    found = storageconf.load(environ, 7, path=Path(environ["CONTAINERS_STORAGE_CONF"]))
    assert (found.graph_root, found.run_root) == (f"{tmp_path}/real/7", f"{tmp_path}/run")


@pytest.mark.parametrize(
    "text", ["[storage]\ndriver = 5\n", "storage = 1\n", "[storage]\ntransient_store = 'x'\n", "[storage]\n= x\n"]
)
def test_values_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    """One line that names the file or the place."""
    with pytest.raises(InvalidInput, match=r"^reload: toml: ") as caught:
        storageconf.load(conf(tmp_path, text), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"), [("5", 5), ("1k", 1024), ("2KB", 2048), ("10g", 10 << 30), ("1.5m", 3 << 19), ("3GiB", 3 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    """Binary multiples, with or without the rest of the unit's name."""
    assert driveroptions.parse_size(text) == size


def test_options_of_the_drivers(tmp_path: Path) -> None:
    """Prefixes and case do not matter; stores add up."""
    pairs = [
        "OVERLAY.mountopt=nodev,nosuid",
        ".imagestore=" + str(tmp_path),
        "additionalimagestore=" + str(tmp_path),
        "force_mask=shared",
    ]
    found = driveroptions.parse("overlay", pairs, filesystem=lambda: "extfs")
    assert (found.mount_options, found.image_stores, found.force_mask) == (
        ("nodev", "nosuid"),
        (tmp_path, tmp_path),
        0o755,
    )
    with pytest.raises(InvalidInput, match=r"only supported for backingFS XFS\. Found extfs"):
        driveroptions.parse("overlay", ["overlay.size=1g"], filesystem=lambda: "extfs")
    assert driveroptions.parse("overlay", ["overlay.size=1g"], filesystem=lambda: "xfs").size == 1 << 30
    with pytest.raises(InvalidInput, match="unknown additionallayerstore flag"):
        driveroptions.parse("overlay", ["additionallayerstore=/x:what"], filesystem=lambda: "xfs")


def test_both_names_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one reads storage.conf, the other never does."""
    for key, value in conf(
        tmp_path, f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/g"\nrunroot = "{tmp_path}/r"\n'
    ).items():
        monkeypatch.setenv(key, value)
    assert json.loads(ours(["status", "-j"])[1])[0] == ["Root", f"{tmp_path}/g"]
    monkeypatch.setenv("LADING_CONFIG", str(tmp_path / "own.toml"))
    (tmp_path / "own.toml").write_text(
        f'root = "{tmp_path}/own"\nrun = "{tmp_path}/own-run"\nadditional_stores = ["{tmp_path}/g"]\n'
    )
    chosen = settings.choose(os.environ, 0, {}, {})
    assert (chosen.root, chosen.settings.additional_stores) == (tmp_path / "own", (f"{tmp_path}/g",))


def test_a_store_of_the_peers_is_refused(tmp_path: Path) -> None:
    """Under both names, and nothing is written to it."""
    (tmp_path / "root/vfs-layers").mkdir(parents=True)
    (tmp_path / "root/vfs-layers/layers.json").write_text("[]")
    status, stdout, _ = ours(["-g", str(tmp_path / "root"), "-R", str(tmp_path / "run"), "layers"])
    assert status == 1
    assert b"belongs to containers/storage; choose another root and use `lading import`" in stdout
    assert sorted(os.listdir(tmp_path / "root")) == ["vfs-layers"]
