//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use debug_stub::Description;
use debug_stub::server::ListenAddress;
use debug_stub::x86_64::View;
use intr_controller::IrqchipMode;
use thiserror::Error;

use crate::boot::MAX_CPUS;
use crate::devices::SerialOutput;
use crate::loader::{ImageFile, LoadError, Module};
use crate::memory::MemoryLayout;

/// A reference VMM whose guests can be debugged with GDB without landing in their interrupts.
#[derive(Clone, Debug, Parser)]
#[command(name = "vmm-reference", version, after_help = EXIT_STATUSES)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_STATUSES: &str = "\
Exit status:
  0         the guest powered off or reset as asked
  2         wrong usage, or an unusable kernel or initrd
  3         this host cannot: no /dev/kvm, no permission, an ability missing
  4         the guest failed: triple fault, emulation failure
  2n+1      the guest wrote n to the debug-exit port (--testdev)
  128+n     ended by signal n";

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Boot a kernel.
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Show what this host's KVM can do for a debugger, and how each ability is provided.
    Caps(CapsArgs),
    /// Step an embedded guest that has a timer, with and without the mask, and compare.
    Demo(DemoArgs),
    /// Print the completions of this command line for a shell.
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(CompletionsArgs),
    /// Print the manual pages of this command and of its subcommands, in roff.
    #[command(after_help = MAN_EXAMPLES)]
    Man,
}

const RUN_EXAMPLES: &str = "\
Examples:
  Linux on this terminal; Ctrl-A x ends it:
    vmm-reference run --kernel bzImage --initrd initrd.img --cmdline console=ttyS0 --memory 512M
  Stopped before the first instruction, for gdb:
    vmm-reference run --kernel vmlinux --gdb unix:gdb.sock --gdb-pause
    gdb vmlinux -ex 'target remote gdb.sock'
  All interrupt chips emulated, two processors, the serial port in a file, statistics at the end:
    vmm-reference run --kernel vmlinux --irqchip user --cpus 2 --serial file:serial.txt --stats
  An image of kvm-unit-tests:
    vmm-reference run --kernel x86/ioapic.flat --testdev --cpus 4";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  In this bash:
    source <(vmm-reference completions bash)
  In every fish:
    vmm-reference completions fish > ~/.config/fish/completions/vmm-reference.fish";

const MAN_EXAMPLES: &str = "\
Example:
  vmm-reference man | man -l -";

/// `run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// A bzImage, a vmlinux, a PVH ELF file or a multiboot kernel (1 or 2). It may be compressed with gzip, xz,
    /// lz4 or zstd.
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// An initrd, or a module of a multiboot or PVH kernel, which takes several and their arguments. A comma in
    /// a file's name is written twice.
    #[arg(long, value_name = "FILE[,ARGS]", value_parser = parse_module)]
    pub initrd: Vec<ModuleArg>,
    /// The kernel's command line.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    pub cmdline: String,
    /// Number of vCPUs.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_CPUS)),
    )]
    pub cpus: u16,
    /// Memory: bytes, or with K, M, G or T.
    #[arg(long, value_name = "SIZE", default_value = "128M", value_parser = parse_memory)]
    pub memory: u64,
    /// Which interrupt chips are KVM's and which are emulated. The default is `kernel`; with --gdb on
    /// a host that cannot mask interrupts it is `user`, which can.
    #[arg(long, value_enum)]
    pub irqchip: Option<Irqchip>,
    /// Keep the guest's memory in core dumps of this process. By default it is left out.
    #[arg(long)]
    pub dump_guest_memory: bool,
    /// Whether guest time passes while the debugger has stopped the guest. `monitor time` shows it.
    #[arg(long, value_enum, default_value = "freeze")]
    pub debug_time: DebugTime,
    /// What becomes of ticks of the PIT (8254) that the guest could not be given in time.
    #[arg(long, value_enum, default_value = "reinject")]
    pub lost_ticks: LostTicks,
    /// What becomes of the machine when the guest resets it. Without a debugger attached, a triple fault is a
    /// reset too, but with `exit` it is a failure.
    #[arg(long, value_enum, default_value = "exit", requires_if("stop", "gdb"))]
    pub on_reset: OnReset,
    /// Do not use the host's own mask for interrupts, as on a host that has none.
    #[arg(long, requires = "gdb")]
    pub no_host_mask: bool,
    /// Where the first serial port goes: stdio, none or file:PATH. On a terminal Ctrl-A x ends the
    /// machine, and Ctrl-A Ctrl-A sends a Ctrl-A.
    #[arg(long, value_name = "WHERE", default_value = "stdio", value_parser = parse_serial)]
    pub serial: SerialOutput,
    /// Add the debug console of Bochs at port 0xE9, and write its output to stdio or file:PATH. It never makes the
    /// guest wait: what finds its buffer of 1 MiB full is dropped.
    #[arg(long, value_name = "WHERE", value_parser = parse_debugcon, conflicts_with = "testdev")]
    pub debugcon: Option<SerialOutput>,
    /// Listen for GDB on unix:PATH or tcp:127.0.0.1:PORT. A Unix socket is for this user alone. A TCP port has
    /// no password: every user and every program of this machine that connects controls the guest and reads
    /// its memory.
    #[arg(long, value_name = "ADDRESS")]
    pub gdb: Option<ListenAddress>,
    /// Wait for the debugger before the first instruction.
    #[arg(long, requires = "gdb")]
    pub gdb_pause: bool,
    /// What becomes of the guest when a debugger's connection ends without `detach` or `kill`.
    #[arg(long, value_enum, requires = "gdb", default_value = "as-before")]
    pub gdb_on_disconnect: GdbOnDisconnect,
    /// Which target description GDB gets: the registers that it knows, and the architecture by which it
    /// disassembles.
    #[arg(long, value_enum, requires = "gdb", default_value = "auto")]
    pub gdb_arch: GdbArch,
    /// Let --gdb listen on addresses other than loopback: every client that can connect controls the
    /// guest.
    #[arg(long, requires = "gdb")]
    pub gdb_allow_remote: bool,
    /// How long to look for GDB's next packet before sleeping, at most 10000, while packets follow one
    /// another within this time. It saves a wake-up for each packet of a quick client, and uses a
    /// processor for that time. 0 sleeps at once.
    #[arg(
        long,
        value_name = "MICROSECONDS",
        requires = "gdb",
        default_value_t = 200,
        value_parser = clap::value_parser!(u64).range(..=10_000),
    )]
    pub gdb_busy_poll: u64,
    /// Add the devices of test images: debug exit, QEMU's pc-testdev, firmware configuration, and
    /// firmware with which a processor comes back from a reset.
    #[arg(long)]
    pub testdev: bool,
    /// Hide x2APIC mode from the guest: it has xAPIC mode only.
    #[arg(long)]
    pub no_x2apic: bool,
    /// When the machine ends, and at each reset, print to standard error what each vCPU has done: entries, and
    /// exits by reason. `monitor stats` shows it at any stop.
    #[arg(long)]
    pub stats: bool,
}

/// `caps`.
#[derive(Args, Clone, Copy, Debug)]
pub struct CapsArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Show what the host claims, and do not run the micro-guests that verify it.
    #[arg(long)]
    pub no_verify: bool,
    /// Plan for these interrupt chips.
    #[arg(long, value_enum, default_value = "kernel")]
    pub irqchip: Irqchip,
}

/// `demo`.
#[derive(Args, Clone, Copy, Debug)]
pub struct DemoArgs {
    /// Number of steps with the mask on. With the mask off it is at most 2000: those steps only show
    /// the difference.
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: u32,
    /// Which interrupt chips are KVM's and which are emulated, as for `run`.
    #[arg(long, value_enum)]
    pub irqchip: Option<Irqchip>,
    /// Do not use the host's own mask for interrupts, as on a host that has none.
    #[arg(long)]
    pub no_host_mask: bool,
}

/// `completions`.
#[derive(Args, Clone, Copy, Debug)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Which interrupt chips are KVM's and which are emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Irqchip {
    /// All are KVM's.
    Kernel,
    /// The local APICs are KVM's, the others are emulated.
    Split,
    /// All are emulated.
    User,
}

impl From<Irqchip> for IrqchipMode {
    fn from(irqchip: Irqchip) -> Self {
        match irqchip {
            Irqchip::Kernel => Self::Kernel,
            Irqchip::Split => Self::Split,
            Irqchip::User => Self::User,
        }
    }
}

/// What becomes of the machine when the guest resets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnReset {
    /// The VMM ends.
    Exit,
    /// The machine starts again in place. The debugger's breakpoints stay set.
    Restart,
    /// The machine starts again, and stops before its first instruction, for the debugger.
    Stop,
}

impl From<OnReset> for crate::exit::OnReset {
    fn from(policy: OnReset) -> Self {
        match policy {
            OnReset::Exit => Self::Exit,
            OnReset::Restart => Self::Restart,
            OnReset::Stop => Self::Stop,
        }
    }
}

/// What becomes of the guest when a debugger's connection ends without `detach`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GdbOnDisconnect {
    /// As it was before the debugger came: a guest that ran, runs. A guest that was stopped stays stopped,
    /// unless the debugger has continued it and it runs at that time.
    AsBefore,
    /// It runs.
    Run,
    /// It is stopped, or stays stopped.
    Stop,
}

impl From<GdbOnDisconnect> for debug_stub::OnDisconnect {
    fn from(policy: GdbOnDisconnect) -> Self {
        match policy {
            GdbOnDisconnect::AsBefore => Self::AsBefore,
            GdbOnDisconnect::Run => Self::Run,
            GdbOnDisconnect::Stop => Self::Stop,
        }
    }
}

/// Which target description GDB gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GdbArch {
    /// That of the mode that the vCPUs are in when GDB connects. That of x86-64 for a 64-bit kernel, whatever
    /// mode it starts in. When GDB reads it again (`unset tdesc filename`), that of the mode.
    Auto,
    /// Always that of 16-bit code.
    I8086,
    /// Always that of 32-bit code.
    I386,
    /// Always that of 64-bit code, as qemu-system-x86_64.
    #[value(name = "x86-64")]
    X86_64,
}

impl GdbArch {
    /// The description for a guest that starts with this kernel.
    #[must_use]
    pub fn description(self, kernel: &ImageFile) -> Description {
        match self {
            Self::Auto if kernel.is_64_bit() => Description::FirstThis(View::X86_64.name()),
            Self::Auto => Description::ByMode,
            Self::I8086 => Description::Always(View::I8086.name()),
            Self::I386 => Description::Always(View::I386.name()),
            Self::X86_64 => Description::Always(View::X86_64.name()),
        }
    }
}

/// Whether guest time passes while the guest is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DebugTime {
    /// All clocks and timers stand still, where this KVM can set them back (caps: tsc_offset).
    Freeze,
    /// Time passes. Guests that use kvmclock are told of each stop, for their watchdogs.
    Run,
}

impl From<DebugTime> for intr_controller::DebugTime {
    fn from(time: DebugTime) -> Self {
        match time {
            DebugTime::Freeze => Self::Freeze,
            DebugTime::Run => Self::Run,
        }
    }
}

/// What becomes of ticks that come late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LostTicks {
    /// They are delivered later, so that a guest which counts ticks keeps its time: at twice their rate
    /// at most. KVM's own PIT (--irqchip kernel) delivers them as fast as the guest takes them, except
    /// for those of a stop.
    Reinject,
    /// All that are lost in a row are delivered later as one. KVM's own PIT: as with `discard`.
    Coalesce,
    /// They are merged with the next one, as on a real chip.
    Discard,
}

impl From<LostTicks> for intr_controller::pit::LostTicks {
    fn from(policy: LostTicks) -> Self {
        match policy {
            LostTicks::Reinject => Self::Reinject,
            LostTicks::Coalesce => Self::Coalesce,
            LostTicks::Discard => Self::Discard,
        }
    }
}

/// Why a size cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
enum SizeError {
    #[error("expected a number, with K, M, G or T for powers of 1024; for instance 512M")]
    Form,
    #[error("that is more than any machine has; choose 2M to 1T")]
    TooLarge,
}

fn parse_size(text: &str) -> Result<u64, SizeError> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((end, suffix)) if !suffix.is_ascii_digit() => {
            let shift = match suffix.to_ascii_uppercase() {
                'K' => 10,
                'M' => 20,
                'G' => 30,
                'T' => 40,
                _ => return Err(SizeError::Form),
            };
            (text.get(..end).unwrap_or_default(), shift)
        }
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SizeError::Form);
    }
    let number: u64 = digits.parse().map_err(|_| SizeError::TooLarge)?;
    number.checked_mul(1 << shift).ok_or(SizeError::TooLarge)
}

fn parse_memory(text: &str) -> Result<u64, String> {
    let size = parse_size(text).map_err(|error| error.to_string())?;
    MemoryLayout::new(size)
        .map(MemoryLayout::size)
        .map_err(|error| error.to_string())
}

/// A file, and what the kernel gets with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleArg {
    /// The file.
    pub file: PathBuf,
    /// The text behind the comma.
    pub arguments: Option<String>,
}

impl ModuleArg {
    /// Reads the file.
    ///
    /// # Errors
    /// [`LoadError::Read`] with the path and the system's error.
    pub fn read(&self) -> Result<Module, LoadError> {
        Ok(Module {
            file: ImageFile::read(&self.file)?,
            arguments: self.arguments.clone(),
        })
    }
}

/// `FILE[,ARGS]`, with `,,` for a comma in FILE.
fn parse_module(text: &str) -> Result<ModuleArg, String> {
    let mut file = String::new();
    let mut characters = text.chars();
    let mut arguments = None;
    while let Some(character) = characters.next() {
        if character != ',' {
            file.push(character);
            continue;
        }
        let mut rest = characters.clone();
        if rest.next() == Some(',') {
            file.push(',');
            characters = rest;
        } else {
            arguments = Some(characters.as_str().to_owned());
            break;
        }
    }
    if file.is_empty() {
        return Err("expected FILE or FILE,ARGS".to_owned());
    }
    if arguments.as_ref().is_some_and(|text| text.contains('\0')) {
        return Err("arguments cannot have a zero byte".to_owned());
    }
    Ok(ModuleArg {
        file: file.into(),
        arguments,
    })
}

fn parse_serial(text: &str) -> Result<SerialOutput, String> {
    match (text, text.strip_prefix("file:")) {
        ("stdio", _) => Ok(SerialOutput::Stdio),
        ("none", _) => Ok(SerialOutput::None),
        (_, Some(path)) if !path.is_empty() => Ok(SerialOutput::File(path.into())),
        _ => Err("expected stdio, none or file:PATH".to_owned()),
    }
}

fn parse_debugcon(text: &str) -> Result<SerialOutput, String> {
    match parse_serial(text) {
        Ok(SerialOutput::None) | Err(_) => Err("expected stdio or file:PATH".to_owned()),
        Ok(output) => Ok(output),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<RunArgs, clap::Error> {
        let all = ["vmm-reference", "run", "--kernel", "k"]
            .iter()
            .chain(arguments);
        match Cli::try_parse_from(all)?.command {
            Command::Run(run) => Ok(run),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_one_cpu_128_mib_stdio_and_the_kernels_chips() {
        let run = run(&[]).unwrap();
        assert_eq!((run.cpus, run.memory), (1, 128 << 20));
        assert_eq!(run.serial, SerialOutput::Stdio);
        assert_eq!(run.irqchip, None);
        assert!(run.gdb.is_none() && !run.gdb_pause && !run.testdev && !run.no_x2apic);
    }

    #[test]
    fn sizes_have_binary_suffixes() {
        for (text, size) in [
            ("4194304", 4 << 20),
            ("4096K", 4 << 20),
            ("4m", 4 << 20),
            ("3G", 3 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse_memory(text), Ok(size), "{text}");
        }
    }

    #[test]
    fn absurd_sizes_and_counts_are_usage_errors() {
        for memory in [
            "",
            "M",
            "-1",
            "+4M",
            "0",
            "1",
            "1M",
            "4097K",
            "2T",
            "0x1000",
            "4MB",
            "4 M",
            "4µ",
            "99999999999999999999",
            "18446744073709551615",
            "17592186044416M",
        ] {
            let error = run(&["--memory", memory]).expect_err(memory);
            assert_eq!(error.exit_code(), 2, "{memory}");
        }
        for cpus in ["0", "255", "65536", "-1", "x", ""] {
            let error = run(&["--cpus", cpus]).expect_err(cpus);
            assert_eq!(error.exit_code(), 2, "{cpus}");
        }
        assert_eq!(run(&["--cpus", "254"]).unwrap().cpus, 254);
    }

    #[test]
    fn serial_outputs() {
        let serial = |text| run(&["--serial", text]).map(|run| run.serial);
        assert_eq!(serial("none").unwrap(), SerialOutput::None);
        assert_eq!(
            serial("file:/tmp/x").unwrap(),
            SerialOutput::File("/tmp/x".into())
        );
        for wrong in ["", "file:", "pty", "/tmp/x"] {
            assert!(serial(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_debug_console_goes_to_stdio_or_a_file_and_takes_a_port_of_the_test_devices() {
        let console = |text| run(&["--debugcon", text]).map(|run| run.debugcon.unwrap());
        assert_eq!(console("stdio").unwrap(), SerialOutput::Stdio);
        assert_eq!(console("file:x").unwrap(), SerialOutput::File("x".into()));
        for wrong in ["none", "", "file:", "x"] {
            assert_eq!(console(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
        assert!(run(&["--debugcon", "stdio", "--testdev"]).is_err());
    }

    #[test]
    fn modules_are_files_with_arguments_in_their_order() {
        let module = |file: &str, arguments: Option<&str>| ModuleArg {
            file: file.into(),
            arguments: arguments.map(str::to_owned),
        };
        let all = run(&[
            "--initrd",
            "a",
            "--initrd",
            "b,x=1,y z",
            "--initrd",
            "c,,d,",
        ])
        .unwrap();
        assert_eq!(
            all.initrd,
            [
                module("a", None),
                module("b", Some("x=1,y z")),
                module("c,d", Some("")),
            ]
        );
        for wrong in ["", ",", ",x"] {
            assert_eq!(run(&["--initrd", wrong]).unwrap_err().exit_code(), 2);
        }
    }

    #[test]
    fn debugger_addresses() {
        let gdb = |text| run(&["--gdb", text]).map(|run| run.gdb.unwrap());
        assert_eq!(
            gdb("tcp:127.0.0.1:1234").unwrap(),
            ListenAddress::Tcp(([127, 0, 0, 1], 1234).into())
        );
        assert_eq!(
            gdb("unix:/run/x").unwrap(),
            ListenAddress::Unix("/run/x".into())
        );
        for wrong in ["", "1234", ":1234", "tcp:1234", "tcp:host:1", "unix:"] {
            assert_eq!(gdb(wrong).expect_err(wrong).exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn time_stands_still_and_ticks_are_reinjected_by_default() {
        let time = |arguments: &[&str]| run(arguments).map(|run| (run.debug_time, run.lost_ticks));
        assert_eq!(time(&[]).unwrap(), (DebugTime::Freeze, LostTicks::Reinject));
        assert_eq!(
            time(&["--debug-time", "run", "--lost-ticks", "discard"]).unwrap(),
            (DebugTime::Run, LostTicks::Discard)
        );
        assert_eq!(time(&["--lost-ticks", "delay"]).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn the_demo_makes_2000_steps_or_as_many_as_asked() {
        let steps = |arguments: &[&str]| {
            let all = ["vmm-reference", "demo"].iter().chain(arguments);
            Cli::try_parse_from(all).map(|cli| match cli.command {
                Command::Demo(demo) => demo.steps,
                other => panic!("{other:?}"),
            })
        };
        assert_eq!(steps(&[]).unwrap(), 2000);
        assert_eq!(steps(&["--steps", "20000"]).unwrap(), 20000);
        for wrong in ["0", "-1", "x", "4294967296"] {
            assert_eq!(steps(&["--steps", wrong]).expect_err(wrong).exit_code(), 2);
        }
    }

    #[test]
    fn the_help_says_what_a_tcp_port_risks() {
        use clap::CommandFactory;
        let mut command = Cli::command();
        let run = command.find_subcommand_mut("run").unwrap();
        let help = run.render_long_help().to_string();
        let words: Vec<&str> = help.split_whitespace().collect();
        let text = words.join(" ");
        assert!(text.contains("A TCP port has no password"), "{text}");
    }

    #[test]
    fn debugger_options_need_a_debugger() {
        assert!(run(&["--gdb-pause"]).is_err());
        assert!(run(&["--gdb-allow-remote"]).is_err());
        assert!(run(&["--gdb-on-disconnect", "run"]).is_err());
        let policy = |name| run(&["--gdb", "unix:x", "--gdb-on-disconnect", name]);
        assert_eq!(
            policy("stop").unwrap().gdb_on_disconnect,
            GdbOnDisconnect::Stop
        );
        assert!(policy("pause").is_err());
        assert!(run(&["--gdb-arch", "i386"]).is_err());
        let arch = |name| run(&["--gdb", "unix:x", "--gdb-arch", name]);
        for (name, arch_of_name) in [
            ("auto", GdbArch::Auto),
            ("i8086", GdbArch::I8086),
            ("i386", GdbArch::I386),
            ("x86-64", GdbArch::X86_64),
        ] {
            assert_eq!(arch(name).unwrap().gdb_arch, arch_of_name);
        }
        assert!(arch("pdp11").is_err());
        assert_eq!(run(&["--gdb", "unix:x"]).unwrap().gdb_arch, GdbArch::Auto);
        assert!(run(&["--gdb-busy-poll", "50"]).is_err());
        let busy = |time| run(&["--gdb", "unix:x", "--gdb-busy-poll", time]);
        assert_eq!(busy("50").unwrap().gdb_busy_poll, 50);
        assert!(busy("10001").is_err());
        assert_eq!(run(&["--gdb", "unix:x"]).unwrap().gdb_busy_poll, 200);
        assert!(run(&["--gdb", "unix:x", "--gdb-pause", "--gdb-allow-remote"]).is_ok());
    }
}
