"""The two emulators: how they are started, and what they are good for.

Both have three serial ports: the kernel's console in a file, the rig's conversation
(../init) and the debugger's line as pseudo-terminals, whose other ends are ours.
"""

import os
import pty
import tty

from . import image, packages, process

COMMAND_LINE = "console=ttyS0 quiet panic=-1"


class Line:
    """A pseudo-terminal: `fd` is our end, `name` what an emulator opens."""

    def __init__(self):
        # The far end is kept open, so reading never fails before the emulator has opened it.
        self.fd, self.far = pty.openpty()
        tty.setraw(self.far)
        self.name = os.ttyname(self.far)

    def close(self):
        os.close(self.fd)
        os.close(self.far)


class Machine:
    """One booted emulator."""

    #: Seconds until `ready` must have come, on a machine that has other things to do.
    boot_limit: int
    kvm_module: str
    #: Of the rounds that a test makes: the tests themselves look at this variable.
    test_percent: int
    #: Its processor may sleep forever in HLT, or run a guest forever (../README.md, "Limits of the emulators").
    oversleeps = False

    def __init__(self, root, work, cpus, memory):
        self.root, self.work, self.cpus, self.memory = root, work, cpus, memory
        self.console = work / "console"
        self.emulator_log = work / "emulator"
        self.initrd = work / "initrd"
        self.kernel = packages.only(root, "boot/vmlinuz-*")
        self.conversation = Line()
        self.debugger = Line()
        #: For an emulator that insists on a terminal. What it shows is read and forgotten.
        self.screen = Line()
        self.child = None

    def start(self):
        with open(self.emulator_log, "wb") as log:
            self.child = self._start(log)

    def close(self):
        if self.child:
            process.end(self.child)
        for line in (self.conversation, self.debugger, self.screen):
            line.close()

    def _start(self, log):
        raise NotImplementedError


class Svm(Machine):
    """QEMU's TCG emulates AMD-V: kvm_amd."""

    boot_limit = 180
    kvm_module = "kvm-amd"
    most_cpus = 8
    #: A step of gdb's takes 20 ms.
    test_percent = 25
    #: Huge pages in the nested tables and two processors are more than QEMU 10 can do (../README.md, "Limits of
    #: the emulators").
    command_line = f"{COMMAND_LINE} transparent_hugepage=never"
    oversleeps = True

    def _start(self, log):
        arguments = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        for folder in ["usr/share/qemu", "usr/share/seabios"]:
            arguments += ["-L", self.root / folder]
        arguments += ["-machine", "accel=tcg", "-cpu", "EPYC,+svm"]
        arguments += ["-m", self.memory, "-smp", self.cpus]
        arguments += ["-kernel", self.kernel, "-initrd", self.initrd, "-append", self.command_line]
        arguments += ["-serial", f"file:{self.console}"]
        for line in (self.conversation, self.debugger):
            arguments += ["-serial", line.name]
        command = packages.program(self.root, "usr/bin/qemu-system-x86_64", *arguments)
        return process.start(command, stdin=-3, stdout=log, stderr=log)


class Vmx(Machine):
    """Bochs emulates VT-x with EPT: kvm_intel."""

    boot_limit = 420
    kvm_module = "kvm-intel"
    #: Debian's Bochs is built for one processor at a time.
    most_cpus = 1
    #: And ten times as long.
    test_percent = 10
    oversleeps = True

    def _start(self, log):
        disc = self.work / "disc.iso"
        line = f"{COMMAND_LINE} mitigations=off tsc=unstable"
        image.iso(self.root, disc, self.kernel, self.initrd, line, self.work)
        bochs, vga = self.root / "usr/share/bochs", self.root / "usr/share/vgabios"
        settings = [
            "config_interface: textconfig",
            "display_library: term",
            f"romimage: file={bochs}/BIOS-bochs-latest",
            f"vgaromimage: file={vga}/vgabios.bin",
            f"megs: {self.memory}",
            # ignore_bad_msrs: the kernel probes for what Bochs does not have.
            "cpu: model=corei7_skylake_x, count=1, ips=100000000, reset_on_triple_fault=0, ignore_bad_msrs=1",
            "clock: sync=none",
            f"ata0-master: type=cdrom, path={disc.name}, status=inserted",
            "boot: cdrom",
            f"com1: enabled=1, mode=file, dev={self.console.name}",
            f"com2: enabled=1, mode=term, dev={self.conversation.name}",
            f"com3: enabled=1, mode=term, dev={self.debugger.name}",
            # ALSA overflows a buffer of its own where it finds no configuration.
            "sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy",
            "log: bochs.log",
            "panic: action=fatal",
            "error: action=ignore",
            "info: action=ignore",
        ]
        bochsrc, commands = self.work / "bochsrc", self.work / "commands"
        bochsrc.write_text("\n".join(settings) + "\n", encoding="utf-8")
        # Debian's Bochs starts in its debugger: c is continue.
        commands.write_text("c\n", encoding="ascii")
        arguments = ["-q", "-f", bochsrc.name, "-rc", commands.name]
        plugins = self.root / "usr/lib/x86_64-linux-gnu/bochs/plugins"
        environment = {**os.environ, "LTDL_LIBRARY_PATH": str(plugins), "TERM": "vt100"}
        command = packages.program(self.root, "usr/bin/bochs-bin", *arguments)
        # Bochs keeps paths in buffers of fixed size, so they are relative. The terminal is not opened
        # again here: it would become that of our session, which would end with it.
        screen = self.screen.far
        return process.start(
            command, cwd=self.work, stdin=screen, stdout=screen, stderr=log, env=environment
        )


MACHINES = {"svm": Svm, "vmx": Vmx}
