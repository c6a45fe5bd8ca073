"""A stock distribution kernel as a guest: Debian's cloud kernel, the one that rigs boot themselves.

An initramfs around a script of one's own takes the place of a distribution.
"""

import gzip
import os
import pathlib
import re

from . import packages
from .errors import RigError
from .image import Initramfs
from .paths import CACHE, locked
from .rig import Part, Rig

#: Where the kernel is linked, and where it runs with `nokaslr` (Linux, __START_KERNEL).
LINKED_AT = 0xFFFF_FFFF_8100_0000

#: Before every script: the folders, and the kernel's console as standard input and output.
PROLOGUE = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
exec 0</dev/console 1>/dev/console 2>&1
"""
FOLDERS = ["/proc", "/sys", "/dev", "/tmp", "/root"]


def kernel():
    """The bzImage."""
    return packages.only(packages.sysroot(), "boot/vmlinuz-*")


def release():
    """What `uname -r` says in it."""
    return kernel().name.removeprefix("vmlinuz-")


def initrd(path, script, files=None):
    """Writes an initramfs to `path`. Its /init runs `script`, a POSIX shell's, with busybox.

    `files` maps paths in it to their bytes; they can be executed. When the script ends, so does
    the kernel, in a panic: end it with `poweroff -f` or `reboot -f`."""
    image = Initramfs()
    image.file("/bin/busybox", packages.only(packages.sysroot(), "bin/busybox").read_bytes())
    image.file("/init", (PROLOGUE + script).encode())
    for folder in FOLDERS:
        image.folder(folder)
    for inside, data in (files or {}).items():
        image.file(inside, data)
    image.write(path)
    return pathlib.Path(path)


def system_map():
    """The addresses of the kernel's symbols without KASLR, as `nm` prints them.

    Debian's package has a stub in its place. So the kernel itself is asked, once, in the svm rig."""
    path = CACHE / f"System.map-{release()}"
    if not path.exists():
        with locked("system-map"):
            # Another process may have been first.
            if not path.exists():
                part = path.with_suffix(".part")
                part.write_text(_unshifted(_kallsyms()), encoding="ascii")
                os.replace(part, path)
    return path


def _kallsyms():
    said = bytearray()
    busybox = packages.only(packages.sysroot(), "bin/busybox")
    part = Part("kallsyms", busybox, ["sh", "-c", "gzip -c /proc/kallsyms"], 60)
    with Rig("svm", [part]) as rig:
        (result,) = rig.run(150, said.extend)
    if result.status:
        raise RigError(f"/proc/kallsyms could not be read in the svm rig: status {result.status}")
    return gzip.decompress(said).decode("ascii")


def _unshifted(kallsyms):
    """The kernel's own symbols, moved back to where they were linked."""
    found = re.findall(r"^([0-9a-f]{16}) (\S) (\S+)$", kallsyms, re.M)
    text = next((int(address, 16) for address, _, name in found if name == "_text"), 0)
    if not text:
        raise RigError("/proc/kallsyms has no address of _text")
    shift = text - LINKED_AT
    lines = []
    for address, kind, name in found:
        value = int(address, 16)
        # Offsets into the per-CPU area are below, and do not move.
        if value >= text:
            value -= shift
        lines.append(f"{value:016x} {kind} {name}")
    return "\n".join(sorted(lines)) + "\n"
