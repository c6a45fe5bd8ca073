"""What a stock kernel must say of the machine that it was booted on, and whether it did."""

import dataclasses
import re

#: Lines of a guest's console that are ../stock-init's begin with this.
MARK = "@stock"

#: What must not be in a kernel's log.
BAD = (
    # Not every WARNING: the mitigations of processors call theirs so, too.
    "BUG:|Oops|WARNING: (CPU|possible|suspicious|stack)|Call Trace|[Ss]tall|unexpected|not responding|[Ff]irmware bug|lockup|"
    "ACPI Error|ACPI Warning|ACPI BIOS|ACPI Exception|AE_[A-Z]|MP-BIOS|APIC error|"
    "timer doesn.t work|TSC_DEADLINE|spurious|nobody cared|General protection|double fault"
)

@dataclasses.dataclass(frozen=True)
class End:
    """A way in which the guest ends itself."""

    cmdline: str
    #: What the VMM must say, and its exit status.
    reason: str
    status: int


ENDS = {
    # ACPI: SLP_EN with what \\_S5 says.
    "poweroff": End("", "the guest powered off", 0),
    # ACPI: the FADT's reset register.
    "reset": End("reboot=a", "the guest reset the machine", 0),
    # The keyboard controller.
    "keyboard": End("reboot=k", "the guest reset the machine", 0),
    # A triple fault is no way to reset this machine.
    "triple": End("reboot=t", "triple fault", 4),
}


@dataclasses.dataclass(frozen=True)
class Boot:
    """One boot: what the machine has, and how its guest is to end."""

    cpus: int
    end: str
    irqchip: str = "kernel"
    memory: int = 256 << 20

    @property
    def name(self):
        """For tables and logs."""
        return f"{self.end}/{self.cpus}/{self.irqchip}"

    def arguments(self, kernel, initrd):
        """Those of vmm-reference."""
        # Only what is wrong goes to the console by itself; the rest is in the log.
        words = ["console=ttyS0", "quiet", "panic=-1", f"stock.end={self.end}", ENDS[self.end].cmdline]
        arguments = ["run", "--kernel", kernel, "--initrd", initrd, "--cpus", self.cpus, "--memory", self.memory]
        arguments += ["--irqchip", self.irqchip]
        return [*map(str, arguments), "--cmdline", " ".join(filter(None, words))]

    def map(self):
        """The e820 entries as Linux prints them: all of it is below the hole at 3 GiB."""
        return [
            "[mem 0x0000000000000000-0x000000000009fbff] usable",
            "[mem 0x000000000009fc00-0x000000000009ffff] reserved",
            "[mem 0x00000000000e0000-0x00000000000fffff] reserved",
            f"[mem 0x0000000000100000-0x{self.memory - 1:016x}] usable",
        ]


def facts(text):
    """What the script said: kind to lines."""
    found = {}
    for kind, rest in re.findall(rf"^{MARK} (\w+) ?(.*?)\r*$", text, re.M):
        found.setdefault(kind, []).append(rest)
    return found


def judge(boot, release, text, status):
    """What is wrong with a boot: complaints, none if all is well."""
    said = facts(text)
    wrong = []

    def expect(what, seen, wanted):
        if seen != wanted:
            wrong.append(f"{what}: {seen!r} instead of {wanted!r}")

    if "userspace" not in said:
        wrong.append("userspace was not reached")
    elif "done" not in said:
        wrong.append("the script did not reach its end")
    else:
        expect("release", said["userspace"], [release])
        expect("processors online", said.get("online"), ["0" if boot.cpus == 1 else f"0-{boot.cpus - 1}"])
        expect("clocksource", said.get("clocksource"), ["kvm-clock"])
        expect("topology", said.get("cpu"), [line for number in range(boot.cpus) for line in _topology(number, boot.cpus)])
        # An invariant TSC is not promised to a guest that may be stopped.
        expect("features", said.get("flag"), ["hypervisor", "tsc_deadline_timer", "x2apic"])
        expect("e820", said.get("e820"), boot.map())
        wrong += _ticks(boot, said.get("ticks", []))
        wrong += _interrupts(boot, said.get("irq", []))
        plural = "CPU" if boot.cpus == 1 else "CPUs"
        for line in ["Hypervisor detected: KVM", f"smp: Brought up 1 node, {boot.cpus} {plural}"]:
            if line not in said.get("log", []):
                wrong.append(f"the kernel's log has no {line!r}")
    wrong += [f"in the kernel's log: {line}" for line in said.get("bad", [])]
    console = re.sub(rf"^{MARK} .*$", "", text, flags=re.M)
    wrong += [f"on the console: {line.strip()}" for line in console.splitlines() if re.search(BAD, line)]
    end = ENDS[boot.end]
    expect("exit status", status, end.status)
    if end.reason not in console:
        wrong.append(f"the VMM did not say {end.reason!r}")
    return wrong


def _topology(number, cpus):
    """One package of single-threaded cores."""
    return [
        f"processor={number}",
        "physical id=0",
        f"siblings={cpus}",
        f"core id={number}",
        f"cpu cores={cpus}",
        f"apicid={number}",
        f"initial apicid={number}",
    ]


def _ticks(boot, lines):
    """Of each processor's local APIC, before and after it was busy."""
    counts = [[int(word) for word in line.split()] for line in lines]
    if [len(line) for line in counts] != [boot.cpus] * 2:
        return [f"local timer interrupts of {boot.cpus} processors, twice: {lines!r}"]
    return [
        f"processor {number}: {before} local timer interrupts, and {after} after it was busy"
        for number, (before, after) in enumerate(zip(*counts))
        if not 0 < after > before
    ]


def _interrupts(boot, lines):
    """Number to its counts and its name, of /proc/interrupts."""
    found = {}
    for line in lines:
        number, *words = line.split()
        found[number] = (sum(map(int, words[: boot.cpus])), " ".join(words[boot.cpus :]))
    wrong = []
    count, name = found.get("4", (0, "absent"))
    if name != "IO-APIC 4-edge ttyS0" or not count:
        wrong.append(f"COM1's interrupt: {name}, {count} times")
    # A level-triggered interrupt that no device raises.
    if found.get("9") != (0, "IO-APIC 9-fasteoi acpi"):
        wrong.append(f"ACPI's interrupt: {found.get('9')}")
    return wrong
