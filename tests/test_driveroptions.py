"""What driver options mean, and the words in which they are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lading import driveroptions
from lading.driveroptions import DriverOptions, parse_size
from lading.errors import InvalidInput


def not_asked() -> str:
    """Stands for a filesystem that nobody should ask for."""
    raise AssertionError("asked for the filesystem")


def parse(driver: str, *pairs: str) -> DriverOptions:
    """Options that say nothing of quotas."""
    return driveroptions.parse(driver, pairs, filesystem=not_asked)


def refusal(driver: str, *pairs: str, filesystem: str = "") -> str:
    """The words in which options are refused."""
    with pytest.raises(InvalidInput) as caught:
        driveroptions.parse(driver, pairs, filesystem=(lambda: filesystem) if filesystem else not_asked)
    return str(caught.value)


def test_nothing_is_the_default() -> None:
    """For both drivers."""
    assert parse("overlay") == parse("vfs") == DriverOptions()


@pytest.mark.parametrize("prefix", ["overlay.", "overlay2.", ".", "", "OVERLAY.", " overlay."])
def test_every_option_of_overlay(tmp_path: Path, prefix: str) -> None:
    """With any prefix, in any case, with space around key and value."""
    folder = str(tmp_path)
    pairs = (
        "imagestore=" + folder, "AdditionalImageStore = " + folder + "/.", f"additionallayerstore={folder}:ref,{folder}",
        "mountopt=nodev,,metacopy=on", "mount_program=" + folder, "size=1.5m", "inodes=7", "ignore_chown_errors=1",
        "force_mask=0711", "skip_mount_home=T", "use_composefs=TRUE", "override_kernel_check=whatever",
    )  # fmt: skip
    found = driveroptions.parse("overlay", [prefix + pair for pair in pairs], filesystem=lambda: "xfs")
    assert found == DriverOptions(
        image_stores=(tmp_path, tmp_path), layer_stores=(f"{folder}:ref", folder),
        mount_options=("nodev", "metacopy=on"), mount_program=folder, size=3 << 19, inodes=7,
        ignore_chown_errors=True, force_mask=0o711, skip_mount_home=True, use_composefs=True,
    )  # fmt: skip


def test_later_options_win() -> None:
    """All of the value, not a part of it; also to take something back."""
    found = parse("overlay", "mountopt=nodev,nosuid", "mountopt=noexec", ".skip_mount_home=true", ".skip_mount_home=0")
    assert (found.mount_options, found.skip_mount_home) == (("noexec",), False)
    assert parse("overlay", "mountopt=nodev", "mountopt=").mount_options == ()
    assert parse("overlay", "imagestore=", "additionallayerstore=", "mount_program=") == DriverOptions()


@pytest.mark.parametrize("pair", ["foo", "", "overlay.mountopt"])
@pytest.mark.parametrize("driver", ["overlay", "vfs"])
def test_an_option_is_a_key_and_a_value(driver: str, pair: str) -> None:
    """Also when nothing stands where one should."""
    assert refusal(driver, pair) == f"unable to parse key/value option: {pair}"


def test_the_options_of_vfs(tmp_path: Path) -> None:
    """Two, with a prefix. Whether the folders exist is found out when they are opened."""
    found = parse("vfs", f"vfs.imagestore={tmp_path},/no/where", ".IGNORE_CHOWN_ERRORS=true", ".imagestore=/x")
    assert found == DriverOptions(image_stores=(tmp_path, Path("/no/where"), Path("/x")), ignore_chown_errors=True)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("vfs.mountopt=nodev", "vfs driver does not support mount options"),
        ("VFS.mountopt=", "vfs driver does not support mount options"),
        ("vfs.Size=1g", "vfs driver does not support size options"),
        ("imagestore=/x", "vfs driver does not support imagestore options"),
        ("overlay.mountopt=nodev", "vfs driver does not support overlay.mountopt options"),
        ("vfs.ignore_chown_errors=yes", 'strconv.ParseBool: parsing "yes": invalid syntax'),
    ],
)
def test_what_vfs_refuses(pair: str, words: str) -> None:
    """In the words that scripts know."""
    assert refusal("vfs", pair) == words


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("overlay.bogus=1", "overlay: unknown option overlay.bogus"),
        ("Overlay.Bogus=1", "overlay: unknown option Overlay.Bogus"),
        ("vfs.imagestore=/", "overlay: unknown option vfs.imagestore"),
        ("a\x1b=1", r"overlay: unknown option a\x1b"),
        ("imagestore=rel", 'overlay: image path "rel" is not absolute.  Can not be relative'),
        ("imagestore=/no/where", "overlay: can't stat imageStore dir /no/where: stat /no/where: no such file or directory"),
        ("imagestore=/dev/null/x", "overlay: can't stat imageStore dir /dev/null/x: stat /dev/null/x: not a directory"),
        ("imagestore=/dev/null", 'overlay: image path "/dev/null" must be a directory'),
        ("imagestore=/a\0", r"overlay: can't stat imageStore dir /a\x00: stat /a\x00: invalid argument"),
        ("additionallayerstore=rel:ref", 'overlay: additionallayerstore path "rel" is not absolute.  Can not be relative'),
        ("additionallayerstore=/:refs", "overlay: unknown additionallayerstore flag refs"),
        ("additionallayerstore=/:ref:ref", "overlay: unknown additionallayerstore flag ref:ref"),
        ("additionallayerstore=/no/where", "overlay: can't stat additionallayerstore dir: stat /no/where: no such file or directory"),
        ("additionallayerstore=/dev/null", 'overlay: additionallayerstore path "/dev/null" must be a directory'),
        ("mount_program=/no/p", 'overlay: can\'t stat program "/no/p": stat /no/p: no such file or directory'),
        ("skip_mount_home=", 'strconv.ParseBool: parsing "": invalid syntax'),
        ("use_composefs=tRUE", 'strconv.ParseBool: parsing "tRUE": invalid syntax'),
        ("inodes=x", 'strconv.ParseUint: parsing "x": invalid syntax'),
        ("inodes=-1", 'strconv.ParseUint: parsing "-1": invalid syntax'),
        ("inodes=1_0", 'strconv.ParseUint: parsing "1_0": invalid syntax'),
        ("inodes=\u0661", 'strconv.ParseUint: parsing "\u0661": invalid syntax'),
        ("inodes=18446744073709551616", 'strconv.ParseUint: parsing "18446744073709551616": value out of range'),
        ("force_mask=9", 'strconv.ParseInt: parsing "9": invalid syntax'),
        ("force_mask=0o700", 'strconv.ParseInt: parsing "0o700": invalid syntax'),
        ("force_mask=Shared", 'strconv.ParseInt: parsing "Shared": invalid syntax'),
        ("force_mask=20000000000", 'strconv.ParseInt: parsing "20000000000": value out of range'),
        ("size=1x", "invalid suffix: 'x'"),
    ],
)  # fmt: skip
def test_what_overlay_refuses(pair: str, words: str) -> None:
    """In the words that scripts know; nothing that a terminal acts on gets through."""
    assert refusal("overlay", pair) == words


def test_numbers_of_thousands_of_digits() -> None:
    """Python would refuse to convert them; leading zeros do not count."""
    nines = "9" * 5000
    assert refusal("overlay", f"inodes={nines}") == f'strconv.ParseUint: parsing "{nines}": value out of range'
    assert refusal("overlay", f"size={nines}") == f"invalid size: '{nines}'"
    found = driveroptions.parse("overlay", ["inodes=" + "0" * 5000 + "18446744073709551615"], filesystem=lambda: "xfs")
    assert found.inodes == (1 << 64) - 1


@pytest.mark.parametrize(("value", "mask"), [("shared", 0o755), ("private", 0o700), ("0", 0), ("0751", 0o751)])
def test_masks(value: str, mask: int) -> None:
    """Two by name, all others octal; zero is a mask too."""
    assert parse("overlay", f"force_mask={value}").force_mask == mask


@pytest.mark.parametrize("pair", ["overlay.size=1g", ".inodes=1"])
@pytest.mark.parametrize("filesystem", ["extfs", "tmpfs"])
def test_quotas_need_xfs(pair: str, filesystem: str) -> None:
    """The filesystem is named; a quota of nothing is none, whatever lies below."""
    words = "storage option overlay.size and overlay.inodes only supported for backingFS XFS. Found "
    assert refusal("overlay", pair, filesystem=filesystem) == words + filesystem
    assert parse("overlay", pair.partition("=")[0] + "=0") == DriverOptions()


def test_wrong_options_are_refused_before_the_filesystem_is_asked() -> None:
    """Wherever in the list they stand."""
    assert refusal("overlay", "size=1g", "bogus=1") == "overlay: unknown option bogus"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("007", 7), ("5b", 5), ("5 B", 5), ("1k", 1 << 10), ("1 Kb", 1 << 10), ("1KiB", 1 << 10),
        ("2m", 2 << 20), ("10g", 10 << 30), ("10G", 10 << 30), ("3t", 3 << 40), ("1p", 1 << 50), ("1.9", 1),
        ("0.5k", 512), ("8191.5p", 8191 * (1 << 50) + (1 << 49)), ("9223372036854775807", (1 << 63) - 1),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    """Binary multiples; what is left of a byte is dropped, and nothing is rounded."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1x", "invalid suffix: 'x'"), ("1X", "invalid suffix: 'x'"), ("1ib", "invalid suffix: 'ib'"),
        ("1bb", "invalid suffix: 'bb'"), ("1kk", "invalid suffix: 'kk'"), ("1kibi", "invalid suffix: 'kibi'"),
        ("1e", "invalid suffix: 'e'"), ("1\n", "invalid suffix: '\\n'"), ("1k-", "invalid suffix: 'k-'"),
        ("", "invalid size: ''"), ("g", "invalid size: 'g'"), ("-1g", "invalid size: '-1g'"),
        ("1.2.3g", "invalid size: '1.2.3g'"), ("1  g", "invalid size: '1  g'"), (".5g", "invalid size: '.5g'"),
        ("8192p", "invalid size: '8192p'"), ("9223372036854775808", "invalid size: '9223372036854775808'"),
    ],
)  # fmt: skip
def test_sizes_that_are_none(text: str, words: str) -> None:
    """Either the number or the unit is named."""
    with pytest.raises(InvalidInput) as caught:
        parse_size(text)
    assert str(caught.value) == words


@given(
    st.integers(0, (1 << 63) - 1),
    st.sampled_from(["", "b", "k", "KB", "mib", "g", "Tb", "P"]),
    st.sampled_from(["", " "]),
)
def test_whole_sizes_are_exact(number: int, unit: str, space: str) -> None:
    """Up to the largest; beyond it they are refused, not wrapped."""
    power = "bkmgtp".index((unit or "b")[0].lower())
    text = f"{number}{space}{unit}"
    if number << 10 * power < 1 << 63:
        assert parse_size(text) == number << 10 * power
    else:
        with pytest.raises(InvalidInput, match=r"^invalid size: "):
            parse_size(text)


_KEYS = (
    "mountopt",
    "size",
    "inodes",
    "imagestore",
    "additionallayerstore",
    "mount_program",
    "force_mask",
    "use_composefs",
)


@given(
    st.sampled_from(["overlay", "vfs"]),
    st.lists(st.text(max_size=8) | st.builds("{}={}".format, st.sampled_from(_KEYS), st.text(max_size=8)), max_size=4),
)
@example("overlay", ["size=\u0661"])
@example("overlay", ["mount_program=\udcff"])
@example("overlay", ["imagestore=/" + "x" * 5000])
@example("vfs", ["vfs.imagestore=\0"])
def test_no_option_ends_in_a_traceback(driver: str, pairs: list[str]) -> None:
    """It means something, or is refused in one printable line."""
    words = ""
    try:
        driveroptions.parse(driver, pairs, filesystem=lambda: "xfs")
    except InvalidInput as error:
        words = str(error)
    assert words.isprintable()
