"""What the matrix runs, and what is expected of it where a KVM cannot."""

import dataclasses
import json
import re

from .paths import RIGS

GOLDEN = RIGS / "golden"


@dataclasses.dataclass(frozen=True)
class Job:
    """A program of the matrix. `caps` comes first: the others are judged by what it finds."""

    name: str
    binary: str
    arguments: tuple[str, ...]
    #: Seconds, by KVM: on the machine's own clock for `host`, on the rig's own for the others.
    limit: dict[str, int]
    #: Starts gdb.
    gdb: bool = False
    #: Is about vCPUs that run at once: gets as many processors as a rig can have.
    smp: bool = False
    #: Where it does not run, and why: the table says so.
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    #: Variables of its own.
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def _limits(host, svm, vmx):
    return {"host": host, "svm": svm, "vmx": vmx}


#: Processors for a job that is `smp`. Others get one: with two, the TSC of svm is unstable.
SMP = {"host": 1, "svm": 2, "vmx": 1}

#: Lines of what a failed test printed that the table has.
LINES = 60

#: What passed tests print is wanted too: it holds their refusals.
TESTS = ("--show-output",)

#: Guests of each kind in vmm-reference/tests/transparent/README.md, and of each theme. Those that step themselves
#: are left out: Bochs brings one #DB more now and then.
GUESTS = (
    "calls/call_gate_in_64_bit",
    "calls/int_from_user_code_to_ring_1",
    "calls/lcall_to_a_task_and_back",
    "calls/mov_ss_then_syscall",
    "calls/syscall_and_sysret_as_linux",
    "calls/v86_int_and_back",
    "debug/dr6_is_what_the_guest_wrote",
    "debug/general_detect",
    "debug/int1",
    "debug/own_execute_breakpoint_in_a_loop",
    "debug/own_int3_twice",
    "debug/own_watchpoint_of_writes",
    "fault/divide_error/copies",
    "fault/int3/ist_prints",
    "fault/int_n/logs",
    "fault/not_canonical/not_retried_then_popf",
    "fault/undefined_opcode/logs",
    "fault/write_to_a_read_only_page/logs",
    "flags/local_irq_save_and_restore",
    "flags/mov_ss_twice_then_pushf",
    "flags/user_pushf_32",
    "interrupts/held_back_by_cr8",
    "interrupts/idle_loop",
    "interrupts/pending_at_sti_then_hlt",
    "memory/code_changes_the_next_instruction",
    "memory/copy_on_write",
    "memory/device",
    "small/handler_prints",
    "strings/insb_into_a_missing_page",
    "strings/rep_movsb_from_a_device_into_a_missing_page",
    "system/idt_moves",
    "system/xbegin",
    "user/kernel_sets_flags_in_the_frame",
    "user/page_fault_retried_then_popf",
    "user/read_of_a_missing_page/signal",
    "user/undefined_opcode/logs",
)

#: Of tests that run with all chips, those with KVM's.
KERNEL = ("--skip", "split::", "--skip", "user::")


def _with_all_chips(name):
    """A program with gdb that takes too long on vmx with the emulated chips, too."""
    job = Job(
        f"vmm-reference {name}",
        f"vmm-reference:{name}",
        TESTS,
        _limits(300, 600, 900),
        gdb=True,
        left_out={"vmx": f"three times as long in Bochs: {name} kernel runs it with KVM's chips"},
    )
    kernel = dataclasses.replace(
        job,
        name=f"{job.name} kernel",
        arguments=(*TESTS, *KERNEL),
        left_out=dict.fromkeys(("host", "svm"), f"{name} runs it with all chips"),
    )
    return [job, kernel]


#: Tests of gdb_modes that catch an error in a gdb script.
NEED_PYTHON = (
    "--skip",
    "a_client_that_does_not_change_its_description",
    "--skip",
    "system_registers_are_there",
    "--skip",
    "the_description_has_avx_once",
)

JOBS = [
    Job("caps", "vmm-reference", ("caps", "--json"), _limits(30, 60, 60)),
    # 0 landings and 0 runs of the handler, or it fails.
    Job("demo", "vmm-reference", ("demo", "--steps", "20000"), _limits(60, 240, 240)),
    # The same without the host's mask: the emulated chips and their injection policy.
    Job(
        "demo user",
        "vmm-reference",
        ("demo", "--irqchip", "user", "--no-host-mask", "--steps", "20000"),
        _limits(60, 240, 240),
        left_out={"vmx": "20,000 steps take Bochs 4 minutes once more: demo user short makes 2,000"},
    ),
    Job(
        "demo user short",
        "vmm-reference",
        ("demo", "--irqchip", "user", "--no-host-mask", "--steps", "2000"),
        _limits(60, 240, 240),
        left_out=dict.fromkeys(("host", "svm"), "demo user makes 20,000 steps"),
    ),
    Job("vcpu-caps verify", "vcpu-caps:lib", ("kvm::", *TESTS), _limits(60, 120, 120)),
    Job("vcpu-caps kvm", "vcpu-caps:kvm", TESTS, _limits(60, 120, 120)),
    Job("vcpu-caps leaks", "vcpu-caps:leaks", TESTS, _limits(60, 120, 120)),
    Job("intr-controller lib", "intr-controller:lib", ("kvm::", *TESTS), _limits(60, 120, 120)),
    Job("intr-controller kvm_chips", "intr-controller:kvm_chips", TESTS, _limits(60, 120, 120)),
    Job("intr-controller kvm_clocks", "intr-controller:kvm_clocks", TESTS, _limits(60, 120, 120)),
    Job("intr-controller kvm_kernel", "intr-controller:kvm_kernel", TESTS, _limits(60, 120, 120)),
    Job("intr-controller kvm_moves", "intr-controller:kvm_moves", TESTS, _limits(60, 120, 120)),
    Job("intr-controller kvm_user", "intr-controller:kvm_user", TESTS, _limits(60, 120, 120)),
    Job("debug-stub kvm_step", "debug-stub:kvm_step", TESTS, _limits(60, 120, 120)),
    # The ready kick. The rest of the file needs no KVM.
    Job(
        "debug-stub run_control",
        "debug-stub:run_control",
        ("kvm::", *TESTS),
        _limits(60, 240, 0),
        smp=True,
        left_out={"vmx": "its vCPUs spin, which starves the one processor of Bochs"},
    ),
    Job(
        "debug-stub examples",
        "debug-stub:examples",
        TESTS,
        _limits(0, 0, 0),
        left_out=dict.fromkeys(
            ("host", "svm", "vmx"),
            "it has cargo build the examples, and there is no cargo in a rig: cargo test runs it on this machine's KVM",
        ),
    ),
    Job("vmm-reference boot", "vmm-reference:boot", TESTS, _limits(60, 120, 120)),
    # Four at once: the end of a VM waits for the kernel's RCU.
    Job(
        "vmm-reference conformance",
        "vmm-reference:conformance",
        (*TESTS, "--test-threads=4"),
        _limits(600, 900, 0),
        left_out={"vmx": "its hundreds of machines take too long in Bochs; --job conformance runs them on host and svm"},
    ),
    Job(
        "vmm-reference transparent",
        "vmm-reference:transparent",
        (*TESTS, "--test-threads=1", "--skip", "random::random_"),
        _limits(600, 1800, 0),
        left_out={"vmx": "it takes Bochs an hour: transparent short runs guests of each kind"},
    ),
    Job(
        "vmm-reference transparent short",
        "vmm-reference:transparent",
        (*TESTS, "--test-threads=1", "--skip", "random::", "--skip", "simulated::"),
        _limits(0, 0, 900),
        left_out=dict.fromkeys(("host", "svm"), "transparent runs all guests"),
        environment={"GUEST": ",".join(GUESTS)},
    ),
    Job(
        "vmm-reference transparent random",
        "vmm-reference:transparent",
        (*TESTS, "random::random_"),
        _limits(600, 0, 0),
        left_out={
            "svm": "RF in the frame of a fault depends on the pages that nested paging has seen: QEMU's AMD-V loses it when KVM injects again",
            "vmx": "it takes Bochs too long",
        },
    ),
    Job("vmm-reference kernels", "vmm-reference:kernels", TESTS, _limits(60, 120, 120)),
    Job("vmm-reference protocols", "vmm-reference:protocols", TESTS, _limits(60, 200, 300)),
    Job("vmm-reference command", "vmm-reference:command", TESTS, _limits(60, 400, 400)),
    Job("vmm-reference ending", "vmm-reference:ending", TESTS, _limits(300, 900, 900)),
    Job("vmm-reference kvm_missing", "vmm-reference:kvm_missing", TESTS, _limits(60, 120, 120)),
    Job("vmm-reference gdb_mask", "vmm-reference:gdb_mask", TESTS, _limits(300, 600, 900), gdb=True),
    *_with_all_chips("gdb_session"),
    *_with_all_chips("gdb_conditions"),
    *_with_all_chips("gdb_monitor"),
    Job(
        "vmm-reference gdb_smp",
        "vmm-reference:gdb_smp",
        TESTS,
        _limits(300, 600, 900),
        gdb=True,
        smp=True,
        left_out={"svm": "an execute breakpoint where CS has a base ends QEMU itself: gdb_smp without runs the others"},
    ),
    Job(
        "vmm-reference gdb_smp without",
        "vmm-reference:gdb_smp",
        (*TESTS, "--skip", "a_breakpoint_where_cs_has_a_base_stops_gdb"),
        _limits(300, 600, 900),
        gdb=True,
        smp=True,
        left_out=dict.fromkeys(("host", "vmx"), "gdb_smp runs all"),
    ),
    Job(
        "vmm-reference gdb_modes",
        "vmm-reference:gdb_modes",
        TESTS,
        _limits(300, 600, 900),
        gdb=True,
        left_out=dict.fromkeys(("svm", "vmx"), "the rigs' gdb has no Python: gdb_modes without runs the others"),
    ),
    Job(
        "vmm-reference gdb_modes without",
        "vmm-reference:gdb_modes",
        (*TESTS, *NEED_PYTHON),
        _limits(300, 600, 900),
        gdb=True,
        left_out={
            "host": "gdb_modes runs all",
            "svm": "an execute breakpoint where CS has a base ends QEMU itself: gdb_modes flat runs the others",
        },
    ),
    Job(
        "vmm-reference gdb_modes flat",
        "vmm-reference:gdb_modes",
        (
            *TESTS,
            *NEED_PYTHON,
            "--skip",
            "where_cs_has_a_base",
            "--skip",
            "a_client_that_connects_in_real_mode",
            "--skip",
            "one_connection_goes_through_all_modes",
        ),
        _limits(300, 600, 900),
        gdb=True,
        left_out={"host": "gdb_modes runs all", "vmx": "gdb_modes without runs more"},
    ),
    Job("vmm-reference gdb_sleep", "vmm-reference:gdb_sleep", TESTS, _limits(300, 600, 900), smp=True),
    *_with_all_chips("gdb_end"),
    *_with_all_chips("gdb_reset"),
    Job("vmm-reference gdb_abuse", "vmm-reference:gdb_abuse", TESTS, _limits(300, 600, 900)),
    Job(
        "vmm-reference gdb_time",
        "vmm-reference:gdb_time",
        # One after the other: they measure.
        (*TESTS, "--test-threads=1"),
        _limits(300, 600, 900),
        left_out={"vmx": "three times as long in Bochs: gdb_time kernel runs it with KVM's chips"},
    ),
    Job(
        "vmm-reference gdb_time kernel",
        "vmm-reference:gdb_time",
        (*TESTS, *KERNEL, "--test-threads=1"),
        _limits(300, 600, 900),
        left_out=dict.fromkeys(("host", "svm"), "gdb_time runs it with all chips"),
    ),
    Job("vmm-reference gdb_address", "vmm-reference:gdb_address", TESTS, _limits(300, 600, 900), gdb=True),
    Job("vmm-reference soak", "vmm-reference:soak", TESTS, _limits(300, 600, 900), smp=True),
]

#: Tests that never open /dev/kvm. (Of the unit tests of vcpu-caps and intr-controller JOBS has
#: those that do.)
WITHOUT_KVM = {
    "intr-controller:no_allocation",
    "debug-stub:lib",
    "debug-stub:session",
    "debug-stub:gdb",
    "debug-stub:serve",
    "debug-stub:log",
    "debug-stub:system_calls",
    "vmm-reference:lib",
}

#: Tests that use an ability which some KVM has not. Where `caps` refutes it they say
#: `expected refusal: ABILITY: why`, and nowhere else.
USES = {
    "debug-stub kvm_step": {
        "a_watchpoint_stops_behind_the_access_and_tells_its_address": {"watchpoint"},
        "an_int3_of_the_debugger_stops_at_it_and_one_of_the_guest_goes_back_to_it": {"bpt_exit"},
    },
    "vmm-reference transparent": {
        "beside_four_watchpoints_a_step_leaves_no_trace_or_says_so": {"watchpoint", "bpt_exit"},
    },
    "vmm-reference gdb_time": {
        f"{chips}::a_stop_of_two_seconds_is_no_time_for_the_guest": {"tsc_write"}
        for chips in ("kernel", "split", "user")
    },
    "vmm-reference gdb_time kernel": {
        "kernel::a_stop_of_two_seconds_is_no_time_for_the_guest": {"tsc_write"},
    },
}


def unlisted(programs):
    """Tests that the matrix does not know."""
    known = {job.binary for job in JOBS} | WITHOUT_KVM
    return sorted(name for name in programs if name not in known and ":example:" not in name)


def absent(jobs, programs):
    """Jobs whose program does not exist."""
    return sorted(job.binary for job in jobs if job.binary not in programs)


@dataclasses.dataclass
class Row:
    """One test on one KVM."""

    job: str
    test: str
    verdict: str  # passed, refused, left out, FAILED
    why: str = ""


def evidence(caps):
    """Ability to evidence, of the output of `caps --json`."""
    return {ability: finding["evidence"] for ability, finding in caps["report"]["findings"].items()}


def judge_tests(job, text, status, found):
    """The rows of a test program, by its output and by what `caps` found on that KVM."""
    rows = []
    refusals = _refusals(text)
    uses = USES.get(job, {})
    for test, outcome in re.findall(r"^test (\S+)(?: - should panic)? \.\.\. (ok|FAILED|ignored)", text, re.M):
        said = refusals.get(test, {})
        wanted = {ability for ability in uses.get(test, ()) if found.get(ability) == "refuted"}
        if outcome == "ignored":
            continue
        if outcome == "FAILED":
            rows.append(Row(job, test, "FAILED", _reason(text, test)))
        elif unexpected := set(said) - wanted:
            rows.append(Row(job, test, "FAILED", f"unexpected refusal: {', '.join(sorted(unexpected))}"))
        elif missing := wanted - set(said):
            rows.append(Row(job, test, "FAILED", f"unexpected success without {', '.join(sorted(missing))}"))
        elif said:
            why = "; ".join(f"{ability}: {reason}" for ability, reason in sorted(said.items()))
            rows.append(Row(job, test, "refused", why))
        else:
            rows.append(Row(job, test, "passed"))
    announced = sum(map(int, re.findall(r"^running (\d+) tests?$", text, re.M)))
    ignored = len(re.findall(r"^test \S+ \.\.\. ignored", text, re.M))
    if announced != len(rows) + ignored or not announced:
        rows.append(Row(job, "(all)", "FAILED", f"{announced} tests began, {len(rows) + ignored} ended"))
    for test in uses.keys() - {row.test for row in rows}:
        rows.append(Row(job, test, "FAILED", "is in rigs/lib/expect.py and was not run"))
    if status and all(row.verdict != "FAILED" for row in rows):
        rows.append(Row(job, "(all)", "FAILED", f"exit status {status}"))
    return rows


def _refusals(text):
    found = {}
    test = None
    for line in text.splitlines():
        if head := re.fullmatch(r"---- (\S+) stdout ----", line):
            test = head[1]
        elif refusal := re.fullmatch(r"expected refusal: (\w+): (.*)", line):
            found.setdefault(test, {})[refusal[1]] = refusal[2]
    return found


def _reason(text, test):
    """What a failed test printed, without the backtrace."""
    found = re.search(rf"^---- {re.escape(test)} stdout ----\n(.*?)(?=^---- |^failures:$|\Z)", text, re.M | re.S)
    if not found:
        return "see the log"
    said = re.sub(r"^stack backtrace:\n(?:^ +.*\n)*(?:^note: .*\n)?", "", found[1], flags=re.M)
    lines = [line for line in said.splitlines() if line.strip()]
    return "\n    ".join(lines if len(lines) <= LINES else [*lines[: LINES // 2], "[…]", *lines[-LINES // 2 :]])


def normal(caps):
    """`caps --json` without what differs between two machines of one kind."""
    # Time-stamps and addresses in the findings.
    text = re.sub(r"0x[0-9a-f]{7,}", "(number)", json.dumps(caps))
    facts = caps["report"]["facts"]
    # Processors and patch level are the machine's, not the KVM's.
    for volatile in ["kernel", "max_vcpus", "recommended_vcpus", "memory_slots"]:
        facts = {**facts, volatile: f"({volatile})"}
    caps = json.loads(text)
    caps["report"]["facts"] = facts
    return json.dumps(caps, indent=2, sort_keys=True) + "\n"


def judge_caps(kvm, caps, update):
    """Compares with the golden file of this KVM."""
    flavour = caps["report"]["flavour"]
    path = GOLDEN / f"caps-{kvm}-{flavour}.json"
    text = normal(caps)
    if update:
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return Row("caps", flavour, "passed", f"written to {path.relative_to(RIGS.parent)}")
    if not path.exists():
        if kvm == "host":
            # A developer's own machine: there is nothing to compare with.
            return Row("caps", flavour, "passed", f"not compared: there is no {path.name}")
        return Row("caps", flavour, "FAILED", f"there is no {path.name}")
    golden = path.read_text(encoding="utf-8")
    if golden == text:
        return Row("caps", flavour, "passed")
    before, after = evidence(json.loads(golden)), evidence(caps)
    changes = [
        f"{ability}: {before.get(ability, 'absent')} -> {after.get(ability, 'absent')}"
        for ability in sorted(before.keys() | after.keys())
        if before.get(ability) != after.get(ability)
    ]
    why = ", ".join(changes) or "the details differ"
    return Row("caps", flavour, "FAILED", f"differs from {path.name}: {why}")
