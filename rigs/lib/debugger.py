"""gdb in a rig, for tests that drive one: Debian's smallest, and what it is linked with."""

import os
import pathlib
import re
import subprocess
import tempfile

from . import packages
from .errors import RigError
from .paths import CACHE, locked

LIBRARIES = "lib/x86_64-linux-gnu"
LOADER = "lib64/ld-linux-x86-64.so.2"
PROGRAM = "usr/bin/gdb"
CONVERSIONS = ["UTF-32.so", "gconv-modules.cache"]

#: gdb can fetch debug information over HTTPS, which is 25 of the 40 libraries it loads, most of
#: the bytes, and of no use here. This library, with nothing in it, takes the place of that client,
#: as elfutils' own dummy does; gdb does not call it unless told to.
NO_DEBUGINFOD = """\
void debuginfod_begin(void) {}
void debuginfod_end(void) {}
void debuginfod_find_debuginfo(void) {}
void debuginfod_find_executable(void) {}
void debuginfod_find_source(void) {}
void debuginfod_set_progressfn(void) {}
void debuginfod_get_user_data(void) {}
void debuginfod_set_user_data(void) {}
"""
VERSIONS = """\
ELFUTILS_0.178 { debuginfod_*; };
ELFUTILS_0.179 { debuginfod_get_user_data; debuginfod_set_user_data; };
"""


def files(root):
    """Paths in the rig to files outside: `gdb` on the path, and its libraries where it looks."""
    dummy = _no_debuginfod()
    command = packages.program(root, PROGRAM)
    # The loader lists what it would load, in the order of the folders that it is given.
    command[2:3] = [f"{dummy.parent}:{command[2]}", "--list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RigError(f"the libraries of gdb cannot be listed: {done.stderr.strip()}")
    found = {"/bin/gdb": root / PROGRAM, f"/{LOADER}": root / LOADER}
    for name, path in re.findall(r"^\t(\S+) => (/\S+) ", done.stdout, re.M):
        # The loader itself is among them.
        if "ld-linux" not in name:
            found[f"/{LIBRARIES}/{name}"] = pathlib.Path(path)
    # gdb's own character set, without which it warns.
    for name in CONVERSIONS:
        found[f"/usr/{LIBRARIES}/gconv/{name}"] = root / "usr" / LIBRARIES / "gconv" / name
    return found


def _no_debuginfod():
    path = CACHE / "no-debuginfod" / "libdebuginfod.so.1"
    with locked("no-debuginfod"):
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                source, versions, library = (pathlib.Path(folder) / name for name in ("a.c", "a.map", "a.so"))
                source.write_text(NO_DEBUGINFOD, encoding="ascii")
                versions.write_text(VERSIONS, encoding="ascii")
                command = ["cc", "-shared", "-fPIC", "-nostdlib", f"-Wl,-soname,{path.name}"]
                command += [f"-Wl,--version-script={versions}", "-o", library, source]
                try:
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                except FileNotFoundError as error:
                    raise RigError("cc is missing: install a C compiler (Debian: gcc)") from error
                if done.returncode:
                    raise RigError(f"cc failed:\n{done.stderr}")
                os.replace(library, path)
    return path
