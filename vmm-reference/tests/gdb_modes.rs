//! gdb and the modes of the processor: a 32-bit kernel's own ELF file, real mode, and one connection through all.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

mod common;

use common::gdb::Transcript;
use common::raw::frame;
use common::{Setup, Vmm};
use vmm_reference::guests::{MODES, TIMER};

/// Where the guest runs its 16-bit code, and where its real-mode stack begins.
const REAL_BASE: u64 = 0x7000;
const REAL_STACK: u64 = 0x9000;
/// Where the guest has its memory a second time, in 64-bit mode.
const HIGH: u64 = 0xffff_ffff_8000_0000;

fn paused(arguments: &[&str]) -> Vmm {
    Setup::new(&MODES).with(arguments).paused().start()
}

/// The linear address of a label of the 16-bit code, where it runs.
fn real(vmm: &Vmm, name: &str) -> u64 {
    vmm.symbol(name) - vmm.symbol("protected16") + REAL_BASE
}

/// What gdb says if it cannot use a description.
#[track_caller]
fn assert_accepted(gdb: &Transcript) {
    for complaint in [
        "rejected",
        "badly formatted",
        "too long",
        "Truncated register",
        "not compatible",
        "warning:",
        "error",
    ] {
        gdb.expect_not(complaint);
    }
}

#[test]
fn a_32_bit_kernels_own_elf_connects_steps_and_has_a_call_stack() {
    let vmm = paused(&[]);
    let gdb = vmm.gdb(
        r#"
show architecture
printf "entry=%#lx\n", $pc
x/i $pc
stepi
printf "second=%#lx\n", $pc
info registers eip esp eflags cs cr0 k_gs_base
break doubled
continue
backtrace
printf "eax=%ld\n", $eax
finish
printf "returned=%ld\n", $eax
set var $ecx = 0x70000001
printf "ecx=%#lx\n", $ecx
print $xmm0.uint128
print $st0
monitor mode
detach
"#,
    );
    assert_accepted(&gdb);
    gdb.expect(&[
        "currently \"i386\"",
        "<_start>:\tmov    $0x",
        ",%esp",
        "Breakpoint 1, ",
        "#0  double ()",
        "in _start ()",
        "thread 1: protected mode, 32-bit code",
        "target description i386, which is that of the mode",
    ]);
    assert_eq!(gdb.value("entry"), vmm.symbol("_start"));
    assert_eq!(gdb.value("second"), vmm.symbol("_start") + 5);
    assert_eq!(gdb.value("eax"), 42);
    assert_eq!(gdb.value("returned"), 42);
    assert_eq!(gdb.value("ecx"), 0x7000_0001);
}

/// 16-bit protected mode and real mode, both where CS has a base.
#[test]
fn breakpoints_disassembly_and_stack_are_right_where_cs_has_a_base() {
    let vmm = paused(&[]);
    let (protected16, pushed) = (real(&vmm, "protected16"), real(&vmm, "real_pushed"));
    let gdb = vmm.gdb(&format!(
        r#"
hbreak *{protected16:#x}
continue
printf "pc16=%#lx\n", $pc
monitor mode
hbreak *{pushed:#x}
continue
printf "pc=%#lx\n", $pc
printf "cs=%#lx\n", $cs
printf "sp=%#lx\n", $sp
printf "pushed=%#lx\n", *(unsigned short *) $sp
unset tdesc filename
monitor mode
set architecture i8086
x/2i $pc
stepi
printf "next=%#lx\n", $pc
stepi
printf "popped=%#lx\n", $sp
set var $pc = {pushed:#x}
printf "moved=%#lx\n", $pc
set var $sp = $sp - 2
stepi
stepi
stepi
x/i $pc
disconnect
"#
    ));
    gdb.expect(&[
        "Breakpoint 1, ",
        "thread 1: protected mode, 16-bit code",
        "Breakpoint 2, ",
        "thread 1: real mode (16-bit code)",
        "target description i8086, which is that of the mode",
        "inc    %ax",
        "pop    %ax",
        "lgdtl  ",
    ]);
    gdb.expect_not("SIGTRAP");
    assert_eq!(gdb.value("pc16"), protected16);
    assert_eq!(gdb.value("pc"), pushed);
    assert_eq!(gdb.value("cs"), REAL_BASE >> 4);
    assert_eq!(gdb.value("sp"), REAL_STACK + 0xffe - 4);
    assert_eq!(gdb.value("pushed"), 0x1234);
    assert_eq!(gdb.value("next"), pushed + 1);
    assert_eq!(gdb.value("popped"), REAL_STACK + 0xffe - 2);
    assert_eq!(gdb.value("moved"), pushed);
}

/// gdb without a program: the description alone says how to disassemble.
#[test]
fn a_client_that_connects_in_real_mode_has_its_description() {
    let vmm = paused(&[]);
    let pushed = real(&vmm, "real_pushed");
    let mut first = vmm.client();
    assert_eq!(first.request(&format!("Z1,{pushed:x},1")).unwrap(), "OK");
    assert!(first.request("vCont;c").unwrap().starts_with("T05"));
    // The guest was stopped when the client came, and stays stopped.
    drop(first);
    let script = format!(
        r#"
disconnect
file
target remote {}
show architecture
x/2i $pc
printf "pc=%#lx\n", $pc
disconnect
"#,
        vmm.socket.display()
    );
    let gdb = vmm.gdb(&script);
    gdb.expect(&["currently \"i8086\"", "inc    %ax", "pop    %ax"]);
    assert_eq!(gdb.value("pc"), pushed);
}

#[test]
fn one_connection_goes_through_all_modes() {
    let vmm = paused(&[]);
    let (real16, high) = (real(&vmm, "real16"), HIGH + vmm.symbol("high_loop"));
    let gdb = vmm.gdb(&format!(
        r#"
show architecture
hbreak *{real16:#x}
continue
printf "real=%#lx\n", $pc
delete
hbreak *back32
continue
printf "back=%#lx\n", $pc
x/i $pc
delete
hbreak *start64
continue
printf "start=%#lx\n", $pc
stepi
info registers eax
monitor mode
unset tdesc filename
show architecture
printf "rax=%#lx\n", $rax
x/i $pc
delete
hbreak *{high:#x}
continue
printf "high=%#lx\n", $pc
x/2i $pc
set var $rdx = 0x123456789abcdef0
stepi
printf "rdx=%#lx\n", $rdx
monitor mode
detach
"#
    ));
    gdb.expect(&[
        "currently \"i386\"",
        "mov    $0x10,%eax",
        "thread 1: long mode, 64-bit code: the registers of this client's target description, i386, are too narrow",
        "<unavailable>",
        "target description i386; that of the mode is i386:x86-64",
        "currently \"i386:x86-64\"",
        "movabs $0xffffffff80000000,%rbx",
        "inc    %rdx",
        "i386:x86-64, which is that of the mode",
    ]);
    assert_accepted(&gdb);
    assert_eq!(gdb.value("real"), real16);
    assert_eq!(gdb.value("back"), vmm.symbol("back32"));
    assert_eq!(gdb.value("start"), vmm.symbol("start64"));
    assert_eq!(gdb.value("rax"), 0x1122_3344_5566_7788);
    assert_eq!(gdb.value("high"), high);
    assert_eq!(gdb.value("rdx"), 0x1234_5678_9abc_def1);
}

/// Its user has the symbols of 64-bit code: breakpoints above 4 GiB must work from the start.
#[test]
fn a_64_bit_kernel_has_its_description_from_the_start_and_that_of_32_bit_code_when_asked() {
    let vmm = Setup::new(&TIMER).paused().start();
    let gdb = vmm.gdb(
        r#"
show architecture
printf "entry=%#lx\n", $pc
unset tdesc filename
show architecture
x/2i $pc
printf "esp=%#lx\n", $esp
unset tdesc filename
hbreak main64
continue
unset tdesc filename
show architecture
printf "main=%#lx\n", $pc
printf "rsp=%#lx\n", $rsp
detach
"#,
    );
    assert_accepted(&gdb);
    gdb.expect(&[
        "currently \"i386:x86-64\"",
        "currently \"i386\"",
        "mov    $0x",
        ",%esi",
        "Breakpoint 1, ",
        "currently \"i386:x86-64\"",
    ]);
    assert_eq!(gdb.value("entry"), vmm.symbol("_start"));
    assert_eq!(gdb.value("main"), vmm.symbol("main64"));
    vmm.assert_rises("ticks");
}

#[test]
fn the_description_may_be_fixed() {
    let vmm = paused(&["--gdb-arch", "x86-64"]);
    let gdb = vmm.gdb(
        r#"
show architecture
printf "rip=%#lx\n", $rip
unset tdesc filename
show architecture
monitor mode
detach
"#,
    );
    assert_accepted(&gdb);
    gdb.expect(&[
        "currently \"i386:x86-64\"",
        "currently \"i386:x86-64\"",
        "that of the mode is i386. The VMM gives every client this one",
    ]);
    assert_eq!(gdb.value("rip"), vmm.symbol("_start"));
}

#[test]
fn wrong_sizes_and_unknown_registers_are_refused_in_32_bit_mode() {
    let vmm = paused(&[]);
    let mut client = vmm.client();
    let description = client
        .request("qXfer:features:read:target.xml:0,ffff")
        .unwrap();
    assert!(description.contains("<architecture>i386</architecture>"));
    let all = client.request("g").unwrap();
    let entry = u32::try_from(vmm.symbol("_start")).unwrap();
    let entry: String = entry
        .to_le_bytes()
        .map(|byte| format!("{byte:02x}"))
        .concat();
    for (request, reply) in [
        ("p8", entry.as_str()),
        ("p54", "E0e"),
        ("pffffffff", "E0e"),
        ("P8=0000100000000000", "E16"),
        ("P8=0000", "E16"),
        ("P54=00000000", "E0e"),
        ("P8=xxxxxxxx", "E16"),
    ] {
        assert_eq!(client.request(request).unwrap(), reply, "{request}");
    }
    for data in [&all[2..], &format!("{all}00"), &"00".repeat(608), ""] {
        assert_eq!(client.request(&format!("G{data}")).unwrap(), "E16");
    }
    assert_eq!(client.request("g").unwrap(), all, "nothing is written");
    assert_eq!(client.request(&format!("G{all}")).unwrap(), "OK");
    // A packet that is cut, and the next one.
    drop(client);
    let mut raw = vmm.connect();
    raw.send(b"$P8=0000");
    raw.send(frame("p54"));
    raw.until("#");
}

/// gdb goes on above 4 GiB with a program counter of 32 bits, and does not lose the connection.
#[test]
fn a_client_that_does_not_change_its_description_goes_on_in_64_bit_mode() {
    let vmm = paused(&["--gdb-arch", "i386"]);
    let gdb = vmm.gdb(
        r#"
hbreak *to_high
continue
stepi
printf "high=%#lx\n", (unsigned) $pc
info registers eax ecx edx
stepi
stepi
stepi
backtrace 1
printf "low=%#lx\n", (unsigned) $pc
printf "edx=%ld\n", $edx
monitor mode
monitor info registers
python
try:
    gdb.execute("set var $ecx = 1")
except gdb.error as error:
    print("refused:", error)
end
detach
"#,
    );
    let low = (HIGH + vmm.symbol("high_loop")) & 0xffff_ffff;
    gdb.expect(&[
        "are too narrow for it",
        "The VMM gives every client this one",
        "ecx            <unavailable>",
        "that of the mode is i386:x86-64. The VMM gives every client this one",
        "RCX=ffffffff80",
        "refused: Could not write register",
    ]);
    assert_eq!((gdb.value("high"), gdb.value("low")), (low, low));
    assert_eq!(gdb.value("edx"), 1);
}

#[test]
fn system_registers_are_there_and_the_guests_debug_registers_are_its_own() {
    let vmm = Setup::new(&TIMER).start();
    let gdb = vmm.gdb(
        r#"
hbreak *loop_start
continue
monitor dr
info registers gdtr_base gdtr_limit idtr_limit tr_rights cs_rights cs_limit
printf "gdtr=%#lx\n", $gdtr_base
printf "limit=%ld\n", $gdtr_limit
printf "cs_base=%#lx\n", $cs_base
printf "dr0=%#lx\n", $dr0
printf "dr7=%#lx\n", (unsigned long) $dr7
set var $dr1 = 0x123456
printf "dr1=%#lx\n", $dr1
stepi
printf "still=%#lx\n", $dr1
set var $idtr_limit = $idtr_limit
monitor info registers
python
for name, value in [("tr_limit", 1), ("gdtr_base", 1 << 62), ("gdtr_limit", 0x10000), ("cs_rights", 0)]:
    try:
        gdb.execute(f"set var ${name} = {value}")
        print("taken:", name)
    except gdb.error as error:
        print("refused:", name)
end
monitor help
monitor msr ia32_efer
monitor msr 0xc0000082
monitor msr LSTAR 0xffffffff80001000
monitor msr lstar
monitor msr lstar 0x0000900000000000
monitor msr efer 0
monitor msr 0x12345
monitor msr nonsense
monitor msr
detach
"#,
    );
    gdb.expect(&[
        "Breakpoint 1, ",
        "the guest's own, on vcpu0:",
        "DR0=0x0: off",
        "the debugger's, on all vCPUs while they ran last: 1 of 4",
        "execute at 0x",
        "gdtr_limit     0x1f",
        "TYPE=11 ",
        "DR0=0000000000000000 DR1=0000000000123456",
        "refused: tr_limit",
        "refused: gdtr_base",
        "refused: gdtr_limit",
        "refused: cs_rights",
        "gdtr_base cannot hold",
        "IA32_EFER (0xc0000080) = 0x500",
        "IA32_LSTAR (0xc0000082) = 0",
        "IA32_LSTAR (0xc0000082) = 0xffffffff80001000",
        "IA32_LSTAR (0xc0000082) = 0xffffffff80001000",
        "refused: ",
        "canonical",
        "refused: ",
        "write $efer",
        "refused",
        "no MSR is called \"nonsense\"",
        "IA32_PAT (0x277) = ",
    ]);
    assert_eq!(gdb.value("gdtr"), vmm.symbol("gdt"));
    assert_eq!(gdb.value("limit"), 0x1f);
    assert_eq!((gdb.value("cs_base"), gdb.value("dr0")), (0, 0));
    assert_eq!(
        gdb.value("dr7"),
        0x400,
        "the debugger's breakpoint is not there"
    );
    assert_eq!(
        (gdb.value("dr1"), gdb.value("still")),
        (0x12_3456, 0x12_3456)
    );
}

/// `$ymm0` is there if the guest has enabled AVX, and not otherwise.
#[test]
fn the_description_has_avx_once_the_guest_has_it() {
    let vmm = paused(&["--gdb-arch", "x86-64"]);
    let has_avx = vmm.symbol("has_avx");
    let gdb = vmm.gdb(&format!(
        r#"
output $ymm0
hbreak *to_high
continue
printf "\nhas=%ld\n", *(int *) {has_avx:#x}
unset tdesc filename
output $ymm0
set var $xmm0.uint128 = 1
python
try:
    gdb.execute("set var $ymm0.v4_int64[2] = 0x123456789")
    gdb.execute("stepi")
    gdb.execute('printf "\\nymm=%#lx\\n", $ymm0.v4_int64[2]')
    gdb.execute('printf "xmm=%#lx\\n", $ymm0.v4_int64[0]')
except gdb.error as error:
    print("no AVX:", error)
end
detach
"#
    ));
    gdb.expect(&["void", "has="]);
    if gdb.value("has") == 1 {
        assert_eq!((gdb.value("ymm"), gdb.value("xmm")), (0x1_2345_6789, 1));
    } else {
        gdb.expect(&["void", "void", "no AVX"]);
    }
}
