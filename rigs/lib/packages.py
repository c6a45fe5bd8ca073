"""Debian packages in a folder of their own.

The emulators and the kernel come from two suites, whatever the machine itself runs: apt resolves
them against our empty package database, dpkg-deb unpacks them, and the programs run with
the unpacked C library. Nothing is installed, no root is needed, and the QEMU of the machine stays
what it is.
"""

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

from .errors import RigError
from .paths import CACHE, locked

SUITE = "bookworm"
#: QEMU from here: in Debian 12's 7.2 the breakpoints of a nested guest do not fire.
BACKPORTS = "bookworm-backports"
FROM_BACKPORTS = "src:qemu src:seabios"
PROGRAMS = [
    "qemu-system-x86",
    "seabios",
    "bochs",
    "bochs-term",
    "bochsbios",
    "vgabios",
    "isolinux",
    "syslinux-common",
    "genisoimage",
    "busybox-static",
    # For tests in a rig that drive one: the smallest.
    "gdb-minimal",
]
#: Depends on the current kernel, which is unpacked without what it depends on in turn.
KERNEL = "linux-image-cloud-amd64"
#: What of the kernel a rig needs: the rest is thousands of modules.
KERNEL_FILES = [
    "./boot/vmlinuz-*",
    "./lib/modules/*/kernel/arch/x86/kvm",
    "./lib/modules/*/kernel/virt/lib",
]
#: Changes with the way of unpacking.
FORMAT = 1

KEYRING = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def sysroot():
    """The folder with the unpacked packages; fetches them the first time."""
    key = hashlib.sha256(repr((FORMAT, SUITE, BACKPORTS, PROGRAMS, KERNEL)).encode()).hexdigest()
    root = CACHE / f"packages-{key[:12]}"
    if root.is_dir():
        return root
    with locked("packages"):
        # Another process may have been first.
        if not root.is_dir():
            _fetch(root)
    return root


def program(root, path, *arguments):
    """The command line that runs an unpacked program with the unpacked C library."""
    libraries = [root / "lib/x86_64-linux-gnu", root / "usr/lib/x86_64-linux-gnu"]
    return [
        str(root / "lib64/ld-linux-x86-64.so.2"),
        "--library-path",
        ":".join(map(str, libraries)),
        str(root / path),
        *map(str, arguments),
    ]


def only(root, pattern):
    """The one file that the pattern means."""
    found = sorted(root.glob(pattern))
    if len(found) != 1:
        raise RigError(f"{root} has {len(found)} files {pattern}, not 1; remove it to fetch it again")
    return found[0]


def mirror():
    """Where this machine has its Debian packages from."""
    if chosen := os.environ.get("RIGS_DEBIAN_MIRROR"):
        return chosen
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for line in listed.splitlines():
        origin, _, uri = line.rpartition(" ")
        # The origin is known only after an update.
        if origin in ("Debian", "") and re.search(r"/debian/?$", uri):
            return uri
    raise RigError(
        "this machine's apt knows no Debian mirror: set RIGS_DEBIAN_MIRROR to the URL of one"
    )


def _fetch(root):
    for tool, package in [("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("tar", "tar")]:
        if not shutil.which(tool):
            raise RigError(f"{tool} is missing (Debian package {package}); rigs run on Debian and its kin")
    if not KEYRING.exists():
        raise RigError(f"{KEYRING} is missing: install the package debian-archive-keyring")
    print(f"rigs: fetching packages into {root}", flush=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="fetch-") as work:
        work = pathlib.Path(work)
        apt = _apt(work)
        apt("update", "-qq")
        kernel = apt("depends", KERNEL, tool="apt-cache")
        image = re.search(r"Depends: (linux-image-\S+)", kernel)
        if not image:
            raise RigError(f"{KERNEL} of {SUITE} depends on no kernel image:\n{kernel}")
        archives = work / "cache/archives"
        apt("install", "--download-only", "-y", "-qq", *PROGRAMS)
        apt("download", "-qq", image[1], cwd=archives)
        unpacked = work / "root"
        unpacked.mkdir()
        for archive in sorted(archives.glob("*.deb")):
            name = archive.name.split("_")[0]
            tar = ["tar", "-x", "-C", unpacked]
            if name == image[1]:
                tar += ["--wildcards", *KERNEL_FILES]
            with subprocess.Popen(
                ["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE
            ) as files:
                done = subprocess.run([*tar, "-f", "-"], stdin=files.stdout, check=False)
                files.stdout.read()
            if done.returncode or files.returncode:
                raise RigError(f"{archive.name} cannot be unpacked")
        versions = sorted(archive.name for archive in archives.glob("*.deb"))
        (unpacked / "PACKAGES").write_text("\n".join(versions) + "\n", encoding="ascii")
        unpacked.rename(root)


def _apt(work):
    """Runs apt with lists, cache, sources and package database of its own."""
    for folder in ["lists/partial", "cache/archives/partial"]:
        (work / folder).mkdir(parents=True)
    uri = mirror()
    (work / "sources.list").write_text(
        "".join(f"deb [arch=amd64 signed-by={KEYRING}] {uri} {suite} main\n" for suite in (SUITE, BACKPORTS)),
        encoding="ascii",
    )
    (work / "preferences").write_text(
        f"Package: {FROM_BACKPORTS}\nPin: release n={BACKPORTS}\nPin-Priority: 990\n", encoding="ascii"
    )
    (work / "status").touch()
    settings = {
        "Dir::Etc::SourceList": work / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": work / "preferences",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State": work,
        "Dir::State::Lists": work / "lists",
        "Dir::State::Status": work / "status",
        "Dir::Cache": work / "cache",
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        "APT::Install-Recommends": "false",
        # Without root there is no user to become.
        "APT::Sandbox::User": "",
        "Acquire::Retries": "2",
    }
    config = work / "apt.conf"
    config.write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()), encoding="ascii")

    def apt(*arguments, tool="apt-get", cwd=None):
        done = subprocess.run(
            [tool, *arguments],
            env={**os.environ, "APT_CONFIG": str(config), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=cwd,
            check=False,
        )
        # An update that reaches no server only warns.
        problems = [line for line in done.stderr.splitlines() if line[:2] in ("E:", "W:")]
        if done.returncode or (arguments[0] == "update" and problems):
            raise RigError(
                f"{tool} {' '.join(arguments)} failed (mirror {uri}, suites {SUITE} and {BACKPORTS}):\n"
                + ("\n".join(problems) or done.stdout)
            )
        return done.stdout

    return apt
