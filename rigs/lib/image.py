"""What a rig boots from: an initramfs, and for Bochs an ISO image around it."""

import pathlib
import shlex
import shutil
import stat
import subprocess
import tempfile

from .errors import RigError
from .packages import only, program
from .paths import RIGS

MODULES = {"irqbypass": "virt/lib", "kvm": "arch/x86/kvm", "kvm-amd": "arch/x86/kvm"}
MODULES["kvm-intel"] = MODULES["kvm"]


class Initramfs:
    """A cpio archive in the kernel's own format (Documentation/driver-api/early-userspace)."""

    def __init__(self):
        self._archive = bytearray()
        self._folders = set()
        self._inode = 0

    def folder(self, path):
        path = pathlib.PurePosixPath(path)
        if path in self._folders or path == pathlib.PurePosixPath("/"):
            return
        self.folder(path.parent)
        self._folders.add(path)
        self._entry(path, stat.S_IFDIR | 0o755, b"")

    def file(self, path, data, mode=0o755):
        self.folder(pathlib.PurePosixPath(path).parent)
        self._entry(path, stat.S_IFREG | mode, data)

    def write(self, path):
        self._entry("/TRAILER!!!", 0, b"")
        pathlib.Path(path).write_bytes(self._archive)

    def _entry(self, path, mode, data):
        self._inode += 1
        name = str(path).lstrip("/").encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device, rdev, length of the name, checksum
        fields = [self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0]
        self._archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        self._pad()
        self._archive += data
        self._pad()

    def _pad(self):
        self._archive += bytes(-len(self._archive) % 4)


def initramfs(root, path, settings, parts, files):
    """Writes the initramfs. `files` maps paths in it to files outside."""
    image = Initramfs()
    image.file("/bin/busybox", only(root, "bin/busybox").read_bytes())
    image.file("/init", (RIGS / "init").read_bytes())
    for folder in ["/proc", "/sys", "/dev", "/tmp", "/root", "/run"]:
        image.folder(folder)
    for module in ["irqbypass", "kvm", settings["KVM_MODULE"]]:
        found = only(root, f"lib/modules/*/kernel/{MODULES[module]}/{module}.ko")
        image.file(f"/rig/{module}.ko", found.read_bytes())
    for inside, outside in files.items():
        image.file(inside, stripped(outside), outside.stat().st_mode & 0o777)
    quoted = "".join(f"{key}={shlex.quote(str(value))}\n" for key, value in settings.items())
    image.file("/rig/settings", quoted.encode())
    image.file("/rig/parts", "".join(f"{part.line()}\n" for part in parts).encode())
    image.write(path)


def stripped(path):
    """The file without debug information, which is most of a test and has to be loaded."""
    strip = shutil.which("strip")
    if strip and path.stat().st_mode & 0o111:
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder) / path.name
            # Refused for what is no ELF file: then it stays as it is.
            command = [strip, "--strip-debug", "-o", copy, path]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return copy.read_bytes()
    return path.read_bytes()


def iso(root, path, kernel, initrd, command_line, work):
    """Writes a bootable ISO 9660 image with ISOLINUX."""
    files = work / "iso"
    files.mkdir()
    for source, name in [
        (root / "usr/lib/ISOLINUX/isolinux.bin", "isolinux.bin"),
        (root / "usr/lib/syslinux/modules/bios/ldlinux.c32", "ldlinux.c32"),
        (kernel, "vmlinuz"),
        (initrd, "initrd"),
    ]:
        # genisoimage writes its boot table into isolinux.bin.
        shutil.copy(source, files / name)
    (files / "isolinux.cfg").write_text(
        f"DEFAULT rig\nLABEL rig\nKERNEL vmlinuz\nINITRD initrd\nAPPEND {command_line}\n", encoding="ascii"
    )
    options = ["-quiet", "-input-charset", "utf-8", "-o", path, "-b", "isolinux.bin", "-c", "boot.cat"]
    options += ["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", files]
    done = subprocess.run(
        program(root, "usr/bin/genisoimage", *options), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RigError(f"genisoimage failed:\n{done.stderr}")
    shutil.rmtree(files)
