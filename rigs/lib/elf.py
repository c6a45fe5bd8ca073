"""ELF files: whether a program runs where there is no C library, and symbols for a debugger."""

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


#: Sections of a file with symbols alone: name, type, flags (System V ABI, "Sections").
SHT_SYMTAB, SHT_STRTAB, SHT_NOBITS = 2, 3, 8
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
ET_EXEC = 2
STT_NOTYPE, STT_OBJECT, STT_FUNC = 0, 1, 2
SHN_ABS = 0xFFF1


def write_symbols(path, symbols, places):
    """Writes an executable without contents that gives a debugger the names of addresses.

    `symbols` are (address, letter of `nm`, name); `places` are (range of addresses, whether there
    is code). A symbol in none of them is absolute."""
    names, entries = bytearray(1), [bytes(24)]
    # Local symbols come before global ones.
    ordered = sorted(symbols, key=lambda symbol: symbol[1].isupper())
    local = sum(not kind.isupper() for _, kind, _ in ordered)
    for address, kind, name in ordered:
        where = next((index for index, (place, _) in enumerate(places, 1) if address in place), SHN_ABS)
        sort = STT_NOTYPE
        if where != SHN_ABS:
            sort = STT_FUNC if places[where - 1][1] else STT_OBJECT
        binding = 1 if kind.isupper() else 0
        # st_name, st_info, st_other, st_shndx, st_value, st_size
        entries.append(struct.pack("<IBBHQQ", len(names), binding << 4 | sort, 0, where, address, 0))
        names += name.encode() + b"\0"
    table = b"".join(entries)
    section_names = b"\0.text\0.data\0.symtab\0.strtab\0"
    tables_at = 64
    headers = [bytes(64)]

    def section(name, sort, flags, address, size, offset, link=0, info=0, item=0):
        named = section_names.index(name)
        headers.append(struct.pack("<IIQQQQIIQQ", named, sort, flags, address, offset, size, link, info, 1, item))

    for place, code in places:
        flags = SHF_ALLOC | (SHF_EXECINSTR if code else SHF_WRITE)
        section(b".text" if code else b".data", SHT_NOBITS, flags, place.start, len(place), tables_at)
    strings_at = tables_at + len(table)
    section(b".symtab", SHT_SYMTAB, 0, 0, len(table), tables_at, len(headers) + 1, local + 1, 24)
    section(b".strtab", SHT_STRTAB, 0, 0, len(names), strings_at)
    section(b".strtab", SHT_STRTAB, 0, 0, len(section_names), strings_at + len(names))
    headers_at = strings_at + len(names) + len(section_names)
    # e_type, e_machine, e_version, e_entry, e_phoff, e_shoff, e_flags, e_ehsize,
    # e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
    fields = [ET_EXEC, EM_X86_64, 1, 0, 0, headers_at, 0, 64, 0, 0, 64, len(headers), len(headers) - 1]
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", *fields)
    path.write_bytes(header + table + bytes(names) + section_names + b"".join(headers))
