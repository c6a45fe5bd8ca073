"""What of a Linux kernel a debugger finds with the names of its symbols alone.

Runs inside gdb. No type is known, so every offset is looked up in the running kernel, or is
part of an interface that cannot change.
"""

import struct

import gdb

#: Where a register is in what system calls get as `struct pt_regs *` (arch/x86/include/asm/ptrace.h;
#: the order is that of PTRACE_GETREGS, which is ABI).
PT_REGS = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss".split()
#: A kernel stack (x86-64: THREAD_SIZE, without KASAN), aligned to its size.
STACK = 16 << 10
#: Enough of a `struct task_struct`.
TASK = 16 << 10
PAGE = 4 << 10


def symbol(name):
    return int(gdb.parse_and_eval(f"(unsigned long) &{name}"))


def register(name):
    return int(gdb.parse_and_eval(f"(unsigned long) ${name}"))


def rflags():
    # gdb knows them by name only.
    return int(gdb.execute("info registers eflags", to_string=True).split()[1], 16)


def memory(address, size):
    return bytes(gdb.selected_inferior().read_memory(address, size))


def u64(address):
    return struct.unpack("<Q", memory(address, 8))[0]


def string(address, limit=256):
    """A C string: page by page, since nothing may be behind its last one."""
    text = b""
    while b"\0" not in text and len(text) < limit:
        text += memory(address + len(text), min(PAGE - (address + len(text)) % PAGE, limit))
    return text.split(b"\0")[0].decode(errors="replace")


def name_at(address):
    """The symbol that the address belongs to."""
    return gdb.execute(f"info symbol {address:#x}", to_string=True).split()[0]


def jiffies():
    return u64(symbol("jiffies_64"))


def pt_regs(address):
    return dict(zip(PT_REGS, struct.unpack(f"<{len(PT_REGS)}Q", memory(address, 8 * len(PT_REGS)))))


def caller():
    """At a function's first instruction: who has called it."""
    return name_at(u64(register("rsp")))


class Tasks:
    """Who runs: `current` is per CPU, behind GS."""

    def __init__(self):
        # The idle task of CPU 0 is named in its task_struct, wherever that has the name.
        self._comm = memory(symbol("init_task"), TASK).index(b"swapper")

    def current(self):
        """In the kernel."""
        return u64(register("gs_base") + symbol("current_task"))

    def comm(self, task=None):
        return string((task or self.current()) + self._comm, 16)


class Log:
    """The kernel's log buffer (kernel/printk/printk_ringbuffer.h, as in Linux 5.10 to 6.x).

    Descriptors, records' infos and texts are three rings. Their addresses are those pointers in
    `*prb` that follow the sizes in bits: (count_bits, descs, infos, head_id, tail_id, ...),
    (size_bits, data, head_lpos, tail_lpos)."""

    #: State bits of a descriptor: committed, finalised (DESC_SV_BITS - 2).
    FLAGS = 62
    FINALIZED = 2
    INFO = 88

    def __init__(self):
        ring = u64(symbol("prb"))
        words = struct.unpack("<12Q", memory(ring, 96))
        self._descriptors, self._infos, head, tail = words[1:5]
        self._count = 1 << (words[0] & 0xFFFFFFFF)
        text = words.index(u64(symbol("log_buf")))
        self._text = words[text]
        self._size = 1 << (words[text - 1] & 0xFFFFFFFF)
        self._ids = range(tail, head + 1)

    def records(self):
        """(seconds, level, text) of each record that is complete."""
        descriptors, infos = self._read(self._descriptors, 24), self._read(self._infos, self.INFO)
        blocks = []
        for descriptor, info in zip(descriptors, infos):
            state, begin, following = struct.unpack("<3Q", descriptor)
            # Odd positions are of records without a text.
            if state >> self.FLAGS != self.FINALIZED or begin & 1 or following & 1:
                continue
            # A block that the ring's end would cut is at its beginning.
            where = begin % self._size if begin // self._size == following // self._size else 0
            _sequence, nanoseconds, length, _facility, flags = struct.unpack_from("<QQHBB", info)
            # Behind the block's own id.
            blocks.append((nanoseconds / 1e9, flags >> 5, where + 8, length))
        low = min(where for _, _, where, _ in blocks)
        texts = memory(self._text + low, max(where + length for _, _, where, length in blocks) - low)
        return [
            (at, level, texts[where - low :][:length].decode(errors="replace"))
            for at, level, where, length in blocks
        ]

    def _read(self, ring, size):
        """The entries in use, of a ring of descriptors or infos."""
        first, last = self._ids.start % self._count, (self._ids.stop - 1) % self._count
        if first <= last:
            data = memory(ring + size * first, size * (last + 1 - first))
        else:
            data = memory(ring + size * first, size * (self._count - first)) + memory(ring, size * (last + 1))
        return [data[at : at + size] for at in range(0, len(data), size)]
