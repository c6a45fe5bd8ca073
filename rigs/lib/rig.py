"""Runs parts in a rig, or here, and hands over their output as it comes."""

import dataclasses
import os
import pathlib
import secrets
import select
import shlex
import shutil
import subprocess
import tempfile
import time

from . import debugger, elf, image, packages, process
from .conversation import Conversation
from .errors import RigError, TimedOut
from .machine import MACHINES
from .paths import CACHE

#: Where a debugger's connection ends in the rig.
GDB_PORT = 1234
#: What a part finds beside its own variables.
ENVIRONMENT = {"RUST_BACKTRACE": "1", "HOME": "/root", "PATH": "/bin"}
#: Lines of a log that are shown.
TAIL = 100
#: Seconds of silence after which a machine that may oversleep is woken.
NUDGE = 10


@dataclasses.dataclass
class Part:
    """A program to run."""

    name: str
    binary: pathlib.Path
    arguments: list[str]
    #: In seconds: the rig's own inside, ours outside.
    limit: float
    #: Starts gdb, which a rig has not otherwise.
    gdb: bool = False
    #: Variables beside those of all parts.
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    def line(self):
        """As in the init's script."""
        environment = [f"{key}={value}" for key, value in (ENVIRONMENT | self.environment).items()]
        words = ["env", *environment, str(self.binary), *self.arguments]
        return f"part {shlex.quote(self.name)} {max(1, round(self.limit))} {shlex.join(words)}"


@dataclasses.dataclass
class Result:
    """How a part ended. `seconds` is by the clock on the wall, `inside` by the rig's."""

    name: str
    status: int
    seconds: float
    inside: float
    timed_out: bool = False


def run_here(part, output):
    """Runs the part on this machine's own KVM."""
    begun = time.monotonic()
    child = process.start(
        [part.binary, *part.arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "RUST_BACKTRACE": "1", **part.environment},
    )
    try:
        timed_out = False
        pipe = child.stdout.fileno()
        ended = os.pidfd_open(child.pid)
        while True:
            left = begun + part.limit - time.monotonic()
            if left <= 0:
                timed_out = True
                break
            ready = select.select([pipe, ended], [], [], left)[0]
            if pipe in ready:
                if data := os.read(pipe, 65536):
                    output(data)
                    continue
            # Ended, and all is read: what it left behind does not keep us, though it has the pipe.
            if ended in ready:
                break
            if pipe in ready:
                select.select([ended], [], [], max(0, left))
        os.close(ended)
    finally:
        process.end(child)
        child.stdout.close()
    status = child.returncode if child.returncode >= 0 else 128 - child.returncode
    seconds = time.monotonic() - begun
    return Result(part.name, status, seconds, seconds, timed_out)


class Rig:
    """A booted rig and what it is told to run. Use it as a context."""

    def __init__(self, kind, parts, files=None, cpus=1, memory=None, gdb=None):
        self.kind, self.parts = kind, parts
        model = MACHINES[kind]
        if not 1 <= cpus <= model.most_cpus:
            raise RigError(f"{kind} has 1 to {model.most_cpus} processors, not {cpus}")
        self._files = {}
        for part in parts:
            elf.check_static(part.binary)
            self._files[str(part.binary)] = part.binary
        for path in files or []:
            self._files[str(path)] = path
        root = packages.sysroot()
        if any(part.gdb for part in parts):
            self._files |= debugger.files(root)
        (CACHE / "runs").mkdir(parents=True, exist_ok=True)
        # A folder of its own: two runs side by side share nothing.
        self._work = pathlib.Path(tempfile.mkdtemp(dir=CACHE / "runs", prefix=f"{kind}-{os.getpid()}-"))
        self._mark = f"@rig-{secrets.token_hex(8)}"
        self._gdb = gdb
        self._part_begun = None
        #: Seconds from the start to a usable /dev/kvm.
        self.ready_after = None
        try:
            self.machine = model(root, self._work, cpus, memory or 512)
            settings = {
                "MARK": self._mark,
                "KVM_MODULE": model.kvm_module,
                "GDB_PORT": GDB_PORT if gdb else "",
                # What is about two processors at once is rare: it is repeated in full.
                "TEST_PERCENT": 100 if cpus > 1 else model.test_percent,
            }
            image.initramfs(root, self.machine.initrd, settings, parts, self._files)
        except BaseException:
            shutil.rmtree(self._work, ignore_errors=True)
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.machine.close()
        shutil.rmtree(self._work, ignore_errors=True)

    def run(self, limit, output, part_ended=lambda _: None):
        """Boots, runs all parts and returns their results.

        `output(bytes)` gets what they print, `part_ended(Result)` each result at once."""
        conversation = Conversation(self._mark)
        try:
            return self._converse(conversation, limit, output, part_ended)
        finally:
            if self._part_begun:
                output(conversation.rest())

    def _converse(self, conversation, limit, output, part_ended):
        results = []
        begun = time.monotonic()
        end = begun + limit
        boot_end = begun + min(limit, self.machine.boot_limit)
        heard = begun
        self.machine.start()
        fd = self.machine.conversation.fd
        while True:
            deadline = end if self.ready_after is not None else boot_end
            left = deadline - time.monotonic()
            if left <= 0:
                if self.ready_after is None:
                    raise RigError(f"{self.kind} did not boot in {boot_end - begun:.0f} s{self.tail()}")
                where = f" in {self._part_begun[0]}" if self._part_begun else ""
                raise TimedOut(f"{limit:.0f} s have passed{where}{self.tail()}")
            screen = self.machine.screen.fd
            ready = select.select([fd, screen, *self._watched()], [], [], min(left, 1))[0]
            self._relay(ready)
            if screen in ready:
                os.read(screen, 65536)
            if fd not in ready:
                ended = self.machine.child.poll() is not None
                if self.machine.console.exists() and b"Kernel panic" in self.machine.console.read_bytes():
                    raise RigError(f"the kernel of {self.kind} panicked{self.tail()}")
                if ended:
                    raise RigError(f"{self.kind} ended by itself{self.tail()}")
                if self.machine.oversleeps and self.ready_after is not None and time.monotonic() - heard > NUDGE:
                    # To `init` this is a command that there is not.
                    os.write(fd, b"\n")
                    heard = time.monotonic()
                continue
            heard = time.monotonic()
            for item in conversation.feed(os.read(fd, 65536)):
                match item:
                    case bytes() if self._part_begun:
                        output(item)
                    case bytes():
                        self._note(item)
                    case ["ready", _]:
                        self.ready_after = time.monotonic() - begun
                    case ["begin", name, at]:
                        self._part_begun = (name, time.monotonic(), float(at))
                    case ["end", name, status, at] if self._part_begun:
                        inside = float(at) - self._part_begun[2]
                        result = Result(name, int(status), time.monotonic() - self._part_begun[1], inside)
                        asked = next(part for part in self.parts if part.name == name)
                        # 137 is SIGKILL's.
                        result.timed_out = result.status == 137 and inside >= asked.limit
                        results.append(result)
                        part_ended(result)
                        self._part_begun = None
                    case ["done", _]:
                        return results
                    case ["broken", *why]:
                        raise RigError(f"{' '.join(why)}{self.tail()}")
                    case ["disconnected"] | ["free"] if self._gdb:
                        self._gdb.rig_says(item[0])
                    case _:
                        raise RigError(f"{self.kind} said {item!r}, which makes no sense{self.tail()}")

    def _watched(self):
        # Before that no VMM is there to accept a debugger.
        return self._gdb.watched(self.machine) if self._gdb and self.ready_after is not None else []

    def _relay(self, ready):
        if self._gdb and self.ready_after is not None:
            self._gdb.relay(self.machine, ready)

    def _note(self, data):
        with open(self._work / "notes", "ab") as file:
            file.write(data)

    def tail(self):
        """The last lines of everything that a rig writes."""
        text = ""
        for title, name in [
            ("the kernel's console", "console"),
            ("what was said before the first part", "notes"),
            ("the emulator's messages", "emulator"),
            ("the emulator's log", "bochs.log"),
        ]:
            try:
                data = (self._work / name).read_bytes()[-16384:]
            except OSError:
                continue
            lines = [line.rstrip() for line in data.decode(errors="replace").splitlines()]
            lines = [line for line in lines if line][-TAIL:]
            if lines:
                text += f"\n--- {title}, the last {len(lines)} lines:\n" + "\n".join(lines)
        return text or "\n--- nothing was logged"
