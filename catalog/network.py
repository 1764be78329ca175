"""Where a catalog may not lie: on filesystems that other machines write to as well, by the kernel's number of their kind."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

from lading.errors import Unsupported

#: Kinds by what ``statfs`` tells. Those that machines share by a common disk (ocfs2, gfs2) keep memory and locks together,
#: and are none; nor is virtiofs, which may well be a guest's own root, as 9p may, which is looked at below.
_NETWORK: Final = {
    0x6969: "nfs",
    0x517B: "smbfs", 0xFF534D42: "cifs", 0xFE534D42: "smb3",
    0x01021997: "9p", 0x786F4256: "vboxsf", 0xBACBACBC: "vmhgfs", 0x7C7C6673: "prl_fs",
    0x5346414F: "afs", 0x6B414653: "afs", 0x73757245: "coda", 0x564C: "ncpfs",
    0x00C36400: "ceph", 0x0BD00BD0: "lustre", 0x47504653: "gpfs", 0x19830326: "beegfs", 0x20030528: "orangefs", 0xAAD7AAEA: "panfs",
}  # fmt: skip

_FUSE: Final = 0x65735546

#: Programs behind FUSE that reach over the network; most others show what lies on a disk.
_NETWORK_FUSE: Final = frozenset(
    f"fuse.{program}"
    for program in (
        "sshfs", "glusterfs", "ceph", "ceph-fuse", "s3fs", "rclone", "gcsfuse", "goofys", "geesefs", "mountpoint-s3", "davfs", "davfs2",
        "curlftpfs", "smbnetfs", "juicefs", "mfs", "moosefs", "lizardfs", "seaweedfs", "quobyte", "blobfuse", "blobfuse2",
        "alluxio-fuse", "dfuse", "vmhgfs-fuse", "grpcfuse", "google-drive-ocamlfuse",
    )
)  # fmt: skip

#: Bytes of ``struct statfs``, and more. Its first member is the number.
_STATFS_SIZE: Final = 256
_MEMBER: Final = ctypes.c_uint if os.uname().machine.startswith("s390") else ctypes.c_ulong

_libc: Final = ctypes.CDLL(None, use_errno=True)


def refuse_network(path: Path) -> None:
    """Refuse a network filesystem: the shared memory beside a WAL database reaches one machine only.

    Args:
        path: the database.

    Raises:
        Unsupported: with the filesystem's type.
    """
    number = _number(path.parent)
    kind = _NETWORK.get(number, "")
    if kind == "9p" and _is_root(path.parent):
        kind = ""  # a guest's own
    if number == _FUSE:
        found = _mounted_type(path.parent)
        kind = found if found in _NETWORK_FUSE else ""
    if kind:
        raise Unsupported(
            f"{path.parent} is on a network filesystem ({kind}): a catalog that is written to needs a local one; "
            "what is there can only be read, as one of another store's `additional_stores`"
        )


def _is_root(folder: Path) -> bool:
    """Tell whether a folder is on the root filesystem."""
    return folder.stat().st_dev == os.stat("/").st_dev


def _number(folder: Path) -> int:
    """The kind of a filesystem; 0 when it cannot be asked for."""
    found = ctypes.create_string_buffer(_STATFS_SIZE)
    if _libc.statfs(os.fsencode(folder), found) != 0:
        return 0
    return _MEMBER.from_buffer(found).value & 0xFFFFFFFF


def _mounted_type(folder: Path) -> str:
    """The type by which the filesystem of a folder was mounted; empty when that is not shown here."""
    status = folder.stat()
    device = b"%d:%d" % (os.major(status.st_dev), os.minor(status.st_dev))
    try:
        table = Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return ""
    for line in table.split(b"\n"):  # paths may hold any other byte
        fields, _, rest = line.partition(b" - ")
        if fields.split(b" ", 3)[2:3] == [device]:
            return rest.partition(b" ")[0].decode("ascii", "replace")
    return ""
