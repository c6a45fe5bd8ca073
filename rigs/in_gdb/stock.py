"""The checks of rigs/stock_gdb, from inside gdb: `STOCK_GDB` says where the stub is."""

import json
import os
import pathlib
import re
import struct
import sys

import gdb

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from linux import Log, Tasks, caller, jiffies, memory, name_at, pt_regs, register, rflags, string, symbol
from session import Checks, ctrl_c_after, expect, refused, run

SETTINGS = json.loads(os.environ["STOCK_GDB"])
#: What the stub says of a breakpoint that is none in memory.
IN_SLOT = "takes one of the four debug registers"
RFLAGS_TF, RFLAGS_IF = 1 << 8, 1 << 9
USER_CS = 0x33
SYSCALL, SYSRETQ, IRETQ, HLT = b"\x0f\x05", b"\x48\x0f\x07", b"\x48\xcf", b"\xf4"
#: The init script waits until it reads this in /proc/sys/kernel/panic.
GO_ON = 4242


class Stock:
    """The stock kernel, stopped before its first instruction."""

    def __init__(self):
        self.caps = {}
        self.tasks = None

    def connect(self):
        run(f"target remote {SETTINGS['address']}")
        for line in run("monitor caps").splitlines():
            if found := re.match(r"(\w+) +(\w+|-) +(verified|refuted|absent|claimed) ", line):
                self.caps[found[1]] = found[3]
        expect({"bpt_exit", "watchpoint", "mask_hwintr"} <= set(self.caps), f"monitor caps says {self.caps}")
        expect(self.caps["mask_hwintr"] == "verified", "the mask is not verified")
        expect(register("rip") < symbol("_text"), f"RIP is {register('rip'):#x}")
        threads = run("info threads")
        expect(threads.count("CPU#") == SETTINGS["cpus"], threads)
        return f"software breakpoints {self.caps['bpt_exit']}, watchpoints {self.caps['watchpoint']}"

    def continue_to_stop(self):
        """Continues, and returns gdb's event."""
        stops = []
        gdb.events.stop.connect(stops.append)
        try:
            run("continue")
        finally:
            gdb.events.stop.disconnect(stops.append)
        return stops[-1]

    def has(self, ability):
        return self.caps[ability] == "verified"

    def go_to(self, place, condition=lambda: True, most=200, sort=gdb.BP_BREAKPOINT):
        """Continues to a breakpoint there, until the condition holds. Returns what was said."""
        breakpoint = gdb.Breakpoint(f"*{place}", sort)
        try:
            said = ""
            for _ in range(most):
                said += run("continue")
                expect(register("rip") == int(gdb.parse_and_eval(f"(unsigned long) {place}")), f"stopped at {where()}: {said}")
                if condition():
                    return said
            expect(False, f"{place} was hit {most} times, and never as meant")
        finally:
            breakpoint.delete()

    def go_to_tick(self, begun, thread=None, most=200):
        """Continues to a tick that finds jiffies past `begun`, and is that of the vCPU, if one is named.

        Each processor has a tick, and one of them counts jiffies in it: of several vCPUs another's
        may come first, and jiffies are where they were. Of one vCPU it is the first tick."""

        def counted():
            return jiffies() > begun and thread in (None, gdb.selected_thread().num)

        self.go_to("&update_process_times", counted, 1 if SETTINGS["cpus"] == 1 else most)

    def before_paging(self):
        """A breakpoint at an address that nothing maps yet, in code that is not unpacked yet."""
        said = self.go_to("&start_kernel")
        why = "nothing is mapped there yet" if self.has("bpt_exit") else "does not hand breakpoint instructions"
        expect(IN_SLOT in said and why in said, f"the stub said {said!r}")
        expect(string(symbol("linux_banner")).startswith("Linux version"), "no banner")
        return f"start_kernel, called by {caller()}"

    def system_call(self):
        # As the kernel boots, ftrace compares the beginning of every function with what it expects
        # there: no INT3 before that is done.
        self.go_to("&run_init_process", sort=gdb.BP_HARDWARE_BREAKPOINT)
        said = self.go_to("&__x64_sys_umask")
        # It is in memory, or the stub has said before why it cannot be.
        expect(IN_SLOT not in said, f"the stub said {said!r}")
        regs = pt_regs(register("rdi"))
        expect(regs["cs"] == USER_CS and regs["orig_rax"] == 95, f"not umask from user space: {regs}")
        expect(regs["rdi"] in (0, 0o22), f"umask({regs['rdi']:o})")
        place = "in memory" if self.has("bpt_exit") else "in a debug register, as the stub says"
        return f"{place}; umask called at user {regs['rip']:#x}"

    def backtrace(self):
        said = run("bt 3")
        names = re.findall(r"in (\w+) \(\)", said)
        expect(names[:3] == ["__x64_sys_umask", "do_syscall_64", "entry_SYSCALL_64_after_hwframe"], said)
        stack, top = register("rsp"), register("rdi") + 8 * 21
        expect(top % 0x1000 == 0 and 0 < top - stack < 16 << 10, f"RSP {stack:#x}, the stack's top {top:#x}")
        expect(register("gs_base") >> 47 == 0x1FFFF, f"GS base {register('gs_base'):#x}")
        expect(register("cs") == 0x10 and not rflags() & RFLAGS_TF, "CS or RFLAGS")
        return " <- ".join(names)

    def current_task(self):
        self.tasks = Tasks()
        comm = self.tasks.comm()
        expect(comm == "init", f"current is {comm!r}")
        idle = self.tasks.comm(symbol("init_task"))
        expect(idle.startswith("swapper"), f"init_task is {idle!r}")
        return f"current is {comm!r} at {self.tasks.current():#x}"

    def many_breakpoints(self):
        """More than there are debug registers."""
        places = ["umask", "openat", "read", "write", "close", "chdir"]
        points = [gdb.Breakpoint(f"*&__x64_sys_{place}") for place in places]
        try:
            if not self.has("bpt_exit"):
                said = refused("continue")
                expect("Command aborted" in said or "Cannot insert" in said, said)
                told = run("monitor mask status")
                expect("needs 1 of the 0 free debug registers" in told, told)
                return "refused by name: there are four debug registers"
            before = [memory(symbol(f"__x64_sys_{place}"), 1) for place in places]
            hits = set()
            for _ in range(40):
                run("continue")
                hits.add(name_at(register("rip")).removeprefix("__x64_sys_"))
            expect({"umask", "openat", "read", "write"} <= hits <= set(places), f"hits {hits}")
            expect([memory(symbol(f"__x64_sys_{place}"), 1) for place in places] == before, "the INT3s are seen")
            return f"hit {', '.join(sorted(hits))}; none is seen in memory"
        finally:
            for point in points:
                point.delete()

    def tick(self):
        self.go_to("&update_process_times")
        first, who = jiffies(), caller()
        expect(who.startswith("tick_"), f"called by {who}")
        self.go_to_tick(first, most=10)
        return f"called by {who}; jiffies {first} -> {jiffies()}"

    def watchpoint(self):
        address = symbol("jiffies_64")
        run(f"watch *(unsigned long *) {address:#x}")
        try:
            if not self.has("watchpoint"):
                return refused("continue")
            before = jiffies()
            stop = self.continue_to_stop()
            expect(isinstance(stop, gdb.BreakpointEvent) and stop.breakpoint.type == gdb.BP_HARDWARE_WATCHPOINT, f"{stop}")
            now, writer = jiffies(), name_at(register("rip"))
            expect(now > before, f"{before} -> {now}")
            expect(re.match("tick_|do_timer", writer), f"written by {writer}")
            return f"{before} -> {now} by {writer}"
        finally:
            run("delete")

    def log_buffer(self):
        records = Log().records()
        texts = [text for _, _, text in records]
        banner = string(symbol("linux_banner"), 1024).strip()
        expect(texts[0] == banner, f"the log begins {texts[:2]}")
        expect(any("Run /init" in text for text in texts), "no start of init in the log")
        expect(any(text.startswith("Command line: ") for text in texts), "no command line in the log")
        # Not those that only this log has (KERN_DEBUG).
        shown = "".join(f"{text}\n" for _, level, text in records if level < 7)
        pathlib.Path(SETTINGS["log"]).write_text(shown, encoding="utf-8")
        return f"{len(records)} records; {texts[0][:60]}..."

    def steps(self):
        count = SETTINGS["steps"]
        self.go_to("&do_sys_openat2", lambda: opens("/proc/uptime"))
        handlers = range(symbol("__irqentry_text_start"), symbol("__irqentry_text_end"))
        text = range(symbol("_text"), symbol("_etext"))
        task, begun, top = self.tasks.current(), jiffies(), register("rsp")
        functions = {}
        # In a slow rig the guest would see seconds without a tick pass in them, and complain.
        run("monitor time step none")
        run("set scheduler-locking on")
        try:
            for step in range(count):
                run("stepi")
                pc = register("rip")
                at = f"step {step} at {where()}"
                expect(pc in text and pc not in handlers, f"{at}: no code of the system call")
                name = name_at(pc)
                expect(not re.search("sysvec_|common_interrupt|exc_|_nmi|tick_", name), at)
                expect(0 <= top - register("rsp") < 16 << 10, f"{at}: RSP {register('rsp'):#x} has left the system call's stack")
                expect(not rflags() & RFLAGS_TF, f"{at}: TF is seen")
                functions[name] = functions.get(name, 0) + 1
            expect(self.tasks.current() == task, "another task runs")
            if SETTINGS["cpus"] == 1:
                expect(jiffies() == begun, f"jiffies have moved: {begun} -> {jiffies()}")
            status = run("monitor mask status")
            expect(": masked" in status, status)
            waiting = re.search(r"pending:.*", status)[0]
        finally:
            run("set scheduler-locking off")
            run("monitor time step real")
        self.go_to("&update_process_times")
        expect(jiffies() >= begun, "time goes back")
        run("tbreak *&__x64_sys_umask")
        run("continue")
        expect(jiffies() > begun, f"jiffies stay at {begun}")
        return f"{count} steps in {len(functions)} functions, 0 in handlers; {waiting}; then the tick, jiffies {begun} -> {jiffies()}"

    def unmasked_steps(self):
        """The same without the mask: ticks run inside steps, which is what the mask is for."""
        expect('received: "OK"' in run("maintenance packet Qqemu.sstep=0x1"), "Qqemu.sstep=1")
        try:
            self.go_to("&do_sys_openat2", lambda: opens("/proc/uptime"))
            begun = jiffies()
            for step in range(200):
                run("stepi")
                if jiffies() != begun:
                    return f"jiffies {begun} -> {jiffies()} in step {step}, now {where()}"
            expect(False, "no tick in 200 steps: the check above could not have failed")
        finally:
            expect('received: "OK"' in run("maintenance packet Qqemu.sstep=0x3"), "Qqemu.sstep=3")

    def step_to(self, address, what):
        run("stepi")
        expect(register("rip") == address, f"{what} led to {where()}, not {address:#x}")
        expect(not rflags() & RFLAGS_TF, f"after {what} TF is seen")

    def into_system_call(self):
        """SYSCALL, of which IA32_FMASK takes TF, then SWAPGS and the switch of page tables."""
        self.go_to("&__x64_sys_umask")
        after = pt_regs(register("rdi"))["rip"]
        self.go_to(f"{after - 2:#x}")
        expect(memory(after - 2, 2) == SYSCALL and register("cs") == USER_CS, f"no SYSCALL at {where()}")
        self.step_to(symbol("entry_SYSCALL_64"), "SYSCALL")
        expect(register("rcx") == after and not register("r11") & RFLAGS_TF, "RCX or R11")
        steps = 0
        while name_at(register("rip")) != "do_syscall_64":
            run("stepi")
            steps += 1
            expect(steps < 200, f"not in do_syscall_64 but {where()}")
        saved = pt_regs(register("rdi"))
        expect(saved["rip"] == after and not saved["eflags"] & RFLAGS_TF, f"saved: {saved}")
        return f"from user {after - 2:#x} through entry_SYSCALL_64 to do_syscall_64 in {steps + 1} steps"

    def out_of_system_call(self):
        """SYSRET, which takes TF from R11."""
        code = symbol("syscall_return_via_sysret")
        sysret = code + memory(code, 0x100).index(SYSRETQ)
        self.go_to(f"{sysret:#x}")
        target, flags = register("rcx"), register("r11")
        self.step_to(target, "SYSRET")
        expect(register("cs") == USER_CS and register("r11") == flags, f"CS or R11 {register('r11'):#x}, not {flags:#x}")
        for _ in range(3):
            run("stepi")
            expect(register("cs") == USER_CS and register("rip") >> 47 == 0, f"no user code: {where()}")
        return f"to user {target:#x}, and on to {register('rip'):#x}"

    def interrupt_return(self):
        iretq = symbol("native_irq_return_iret")
        expect(memory(iretq, 2) == IRETQ, "no IRETQ")
        self.go_to(f"{iretq:#x}")
        target, selector, flags = struct.unpack("<3Q", memory(register("rsp"), 24))
        self.step_to(target, "IRETQ")
        expect(register("cs") == selector and (rflags() ^ flags) & RFLAGS_IF == 0, "CS or IF")
        return f"to {where()}"

    def page_fault(self):
        """The step of a load that faults ends at the handler, whose frame is as without a debugger."""
        load = SETTINGS["load"]
        self.go_to(f"{load:#x}", sort=gdb.BP_HARDWARE_BREAKPOINT)
        expect(register("cs") == USER_CS, f"no user code: {where()}")
        self.step_to(symbol("asm_exc_page_fault"), "the load")
        _, saved, selector, flags = struct.unpack("<4Q", memory(register("rsp"), 32))
        expect((saved, selector) == (load, USER_CS), f"the frame is of {selector:#x}:{saved:#x}")
        expect(not flags & RFLAGS_TF, f"TF is in the frame: {flags:#x}")
        functions = set()
        for _ in range(min(SETTINGS["steps"], 500)):
            run("stepi")
            expect(not rflags() & RFLAGS_TF, f"TF is seen at {where()}")
            functions.add(name_at(register("rip")))
        expect("exc_page_fault" in functions or SETTINGS["steps"] < 200, f"{functions}")
        return f"from {load:#x} to asm_exc_page_fault, and on through {len(functions)} functions"

    def interrupts_off(self):
        """PUSHF, POP, CLI: what local_irq_save keeps has no TF."""
        self.go_to("&_raw_spin_lock_irqsave")
        function = symbol("_raw_spin_lock_irqsave")
        stack = register("rsp")
        (caller_at,) = struct.unpack("<Q", memory(stack, 8))
        steps = 0
        while register("rip") != caller_at:
            run("stepi")
            steps += 1
            expect(steps < 500, f"{function:#x} does not return: {where()}")
        kept = register("rax")
        expect(kept & 2 and not kept & RFLAGS_TF, f"RFLAGS {kept:#x} was kept")
        return f"RFLAGS {kept:#x} kept, in {steps} steps"

    def context_switch(self):
        """To another task, by steps."""
        self.go_to("&__switch_to_asm")
        before, after, steps = register("rdi"), register("rsi"), 0
        expect(self.tasks.current() == before, f"current is {self.tasks.current():#x}, not {before:#x}")
        # A task that has just begun does not return into __schedule.
        # In between the kernel may have the user's GS base, and no current task.
        while not re.match("__schedule$|finish_task_switch|ret_from_fork", where_name()) or self.tasks.current() != after:
            run("stepi")
            steps += 1
            expect(not rflags() & RFLAGS_TF, f"TF is seen at {where()}")
            expect(steps < 1000, f"no switch: {where()}")
        return f"from {self.tasks.comm(before)!r} to {self.tasks.comm(after)!r} in {steps} steps"

    def idle(self):
        """STI; HLT: the wake-up is not lost between them, and a masked HLT ends with Ctrl-C."""
        self.go_to("&native_safe_halt")
        for _ in range(8):
            if memory(register("rip"), 1) == HLT:
                break
            run("stepi")
        expect(memory(register("rip"), 1) == HLT and rflags() & RFLAGS_IF, f"no HLT at {where()}")
        halted = register("rip") + 1
        self.step_to(halted, "HLT")
        begun, threads, sleeper = jiffies(), run("info threads"), gdb.selected_thread().num
        typed = ctrl_c_after(2)
        try:
            run("stepi")
        finally:
            typed.cancel()
        waited = where()
        # Its own tick: another vCPU's would come, too, if this one slept forever.
        self.go_to_tick(begun, sleeper)
        state = "halted" if "halted" in threads else "not halted"
        return f"{state} at {halted:#x}; the next step ends at {waited}; then the tick comes"

    def interrupt(self):
        typed = ctrl_c_after(2)
        try:
            stop = self.continue_to_stop()
        finally:
            typed.cancel()
        expect(isinstance(stop, gdb.SignalEvent) and stop.stop_signal == "SIGINT", f"{stop}")
        return f"at {where()}"

    def all_stop_at_one_breakpoint(self):
        """A breakpoint that every vCPU hits."""
        seen = {}
        point = gdb.Breakpoint("*&__schedule")
        try:
            for _ in range(200):
                run("continue")
                expect(register("rip") == symbol("__schedule"), f"stopped at {where()}")
                seen.setdefault(gdb.selected_thread().num, self.tasks.comm())
                if len(seen) == SETTINGS["cpus"]:
                    return ", ".join(f"vCPU {number} in {comm!r}" for number, comm in sorted(seen.items()))
        finally:
            point.delete()
        expect(False, f"only vCPUs {seen} have hit it in 200 stops")

    def step_one_freeze_others(self):
        """With scheduler-locking the others do not move; without it they run during the steps."""
        self.go_to("&__x64_sys_umask")
        stepped = gdb.selected_thread()
        others = [thread for thread in gdb.selected_inferior().threads() if thread.num != stepped.num]

        def states():
            found = []
            for thread in others:
                thread.switch()
                found.append(run("info registers"))
            stepped.switch()
            return found

        handlers = range(symbol("__irqentry_text_start"), symbol("__irqentry_text_end"))

        def steps(count):
            for _ in range(count):
                run("stepi")
                expect(gdb.selected_thread().num == stepped.num, f"thread {gdb.selected_thread().num} has stopped")
                expect(register("rip") not in handlers, f"in a handler: {where()}")

        before, at, begun = states(), register("rip"), jiffies()
        run("set scheduler-locking on")
        try:
            steps(20)
        finally:
            run("set scheduler-locking off")
        expect(states() == before, "a frozen vCPU has moved")
        expect(jiffies() == begun, f"jiffies {begun} -> {jiffies()} with all vCPUs frozen or masked")
        expect(register("rip") != at, "nothing was stepped")
        # A step may be over before the rig's one processor has let another vCPU begin.
        count = 0
        while states() == before:
            expect(count < 1000, f"no other vCPU has run during {count} steps")
            steps(1)
            count += 1
        return f"frozen through 20 steps; another one has moved in step {count}"

    def farewell(self):
        """Lets the guest go, and tells its init script so."""
        run("delete")
        # Not in user space: with page-table isolation the kernel's data are not mapped there.
        self.go_to("&update_process_times")
        timeout = symbol("panic_timeout")
        before = struct.unpack("<i", memory(timeout, 4))[0]
        run(f"set variable *(int *) {timeout:#x} = {GO_ON}")
        now = struct.unpack("<i", memory(timeout, 4))[0]
        expect(before == -1 and now == GO_ON, f"panic_timeout {before} -> {now}")
        said = run("detach")
        expect("detached" in said, said)


def opens(path):
    """At do_sys_openat2: whether it is for this path."""
    try:
        return string(register("rsi")) == path
    except gdb.MemoryError:
        # A constant of a program that has just begun: the kernel has yet to fault its page in.
        return False


def where():
    pc = register("rip")
    try:
        return f"{pc:#x} ({name_at(pc)})"
    except gdb.error:
        return f"{pc:#x}"


def where_name():
    return name_at(register("rip"))


def main():
    for setting in ["confirm off", "pagination off", "suppress-cli-notifications on", "width 0", "remotetimeout 600"]:
        run(f"set {setting}")
    stock, checks = Stock(), Checks(SETTINGS["limit"])
    alone = SETTINGS["cpus"] == 1
    plan = [
        ("connect", stock.connect),
        ("breakpoint before paging", stock.before_paging),
        ("breakpoint in a system call", stock.system_call),
        ("backtrace", stock.backtrace),
        ("current task", stock.current_task),
        ("six breakpoints", stock.many_breakpoints),
        ("breakpoint in the tick", stock.tick),
        ("watchpoint on jiffies_64", stock.watchpoint),
        ("kernel log", stock.log_buffer),
        ("steps through a system call", stock.steps),
        ("steps without the mask", stock.unmasked_steps if alone else None),
        ("a breakpoint all vCPUs hit", None if alone else stock.all_stop_at_one_breakpoint),
        ("step one vCPU, freeze the others", None if alone else stock.step_one_freeze_others),
        ("steps into a system call", stock.into_system_call),
        ("step over SYSRET", stock.out_of_system_call),
        ("step over IRETQ", stock.interrupt_return),
        ("step over a load that faults", stock.page_fault),
        ("steps through local_irq_save", stock.interrupts_off),
        ("steps through a context switch", stock.context_switch),
        ("steps to sleep", stock.idle),
        ("Ctrl-C", stock.interrupt),
        ("detach", stock.farewell),
    ]
    for index, (name, act) in enumerate(plan):
        if act and not checks.check(name, act) and index == 0:
            break
    gdb.execute(f"quit {1 if checks.failed else 0}")


main()
