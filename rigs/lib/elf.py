"""Is this a program that runs where there is no C library?"""

import struct

from .errors import RigError

PT_INTERP = 3
EM_X86_64 = 62
HOW = 'build it with RUSTFLAGS="-C target-feature=+crt-static" and --target x86_64-unknown-linux-gnu'


def check_static(path):
    """Raises unless the file is a static x86-64 ELF program."""
    data = path.read_bytes()
    if len(data) < 64 or not data.startswith(b"\x7fELF\x02\x01"):
        raise RigError(f"{path} is no 64-bit ELF program")
    (machine,) = struct.unpack_from("<H", data, 18)
    if machine != EM_X86_64:
        raise RigError(f"{path} is for machine {machine}, not x86-64 ({EM_X86_64})")
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for index in range(count):
        at = offset + index * size
        if at + 4 > len(data):
            raise RigError(f"{path} is cut short")
        if struct.unpack_from("<I", data, at)[0] == PT_INTERP:
            raise RigError(f"{path} is linked dynamically, and a rig has no libraries: {HOW}")
