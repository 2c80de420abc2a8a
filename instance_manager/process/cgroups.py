"""Whether engines may have their own control groups: only below a group that is delegated to us.

Version 2 only, which can kill a whole group. A shim creates the leaf; this only finds its parent.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_OWN = Path("/proc/self/cgroup")
_MOUNTS = Path("/proc/self/mountinfo")
_DELEGATED = ("user.delegate", "trusted.delegate")  # what systemd marks a unit's group with (Delegate=yes)


def delegated_cgroup(own: Path = _OWN, mounts: Path = _MOUNTS) -> str | None:
    """The directory of our own group if we may create leaves below it, else None. Reads two small files.

    A user other than root can write there only if it was delegated; for root, write access proves nothing.
    """
    try:
        directory = _directory(own.read_text(), mounts.read_text())
    except OSError:
        return None
    if directory is None or not os.access(directory, os.W_OK):
        return None
    if not os.access(directory / "cgroup.procs", os.W_OK):
        return None
    if os.geteuid() == 0 and not any(_is_marked(group) for group in (directory, *directory.parents)):
        return None
    return str(directory)


def _directory(own: str, mounts: str) -> Path | None:
    """The directory of the group in /proc/self/cgroup, by the mounts in /proc/self/mountinfo."""
    paths = [line.removeprefix("0::") for line in own.splitlines() if line.startswith("0::")]
    for line in mounts.splitlines():
        fields, _, kind = line.partition(" - ")
        if paths and kind.startswith("cgroup2 "):
            root, mount_point = fields.split()[3:5]
            with contextlib.suppress(ValueError):  # the group is outside this mount
                return Path(mount_point) / Path(paths[0]).relative_to(root)
    return None


def _is_marked(group: Path) -> bool:
    for name in _DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False
