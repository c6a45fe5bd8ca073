//! `vmm-reference run`: a machine, its console and its debugger, until the end.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use debug_stub::server::{GdbServer, GuestControl, ListenAddress, Listener};
use debug_stub::{Description, OnDisconnect, SessionConfig};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use intr_controller::IrqchipMode;
use intr_controller::kvm::TscControl;
use kvm_ioctls::Kvm;
use vcpu_caps::kvm::{probe, verify, verify_some};
use vcpu_caps::{Capability, Finding, Mechanism, Plan, Profile, negotiate};

use crate::background::{self, Loss};
use crate::cli::{ModuleArg, RunArgs};
use crate::console::Console;
use crate::debug::MachineHost;
use crate::devices::SerialOutput;
use crate::error::Error;
use crate::event_loop::EventLoop;
use crate::exit::{ExitReason, OnReset};
use crate::irqchip::{self, TimeConfig};
use crate::left_behind;
use crate::loader::ImageFile;
use crate::logging::Log;
use crate::machine::{Machine, MachineConfig};
use crate::open_files;
use crate::signals::{self, Signals};
use crate::terminal::RawTerminal;

/// How long the VMM serves a debugger after the machine's end: the end is still to be reported to it, and
/// it may close its connection.
const FAREWELL: Duration = Duration::from_millis(200);

/// How long the VMM waits for a reader of the serial output that reads nothing, after the guest has ended by
/// itself. A signal ends the wait.
const LAST_OUTPUT: Duration = Duration::from_secs(2);
/// The same after a signal, and however slowly the reader reads.
const LAST_OUTPUT_AFTER_SIGNAL: Duration = Duration::from_millis(200);

/// Runs a machine to its end. Returns why it ended. `log` gets the statistics of `--stats`.
///
/// The caller must not have started any thread yet: that thread would take the signals.
///
/// # Errors
/// If the command line, the kernel or the host cannot be used; [`Error::status`] says which.
pub fn run(args: &RunArgs, log: &Log) -> Result<ExitReason, Error> {
    left_behind::on_every_signal().map_err(system("cannot handle signals"))?;
    open_files::raise_limit();
    let mut config = MachineConfig {
        kernel: ImageFile::read(&args.kernel)?,
        modules: args
            .initrd
            .iter()
            .map(ModuleArg::read)
            .collect::<Result<_, _>>()?,
        cmdline: args.cmdline.clone(),
        cpus: args.cpus,
        memory: args.memory,
        dump_guest_memory: args.dump_guest_memory,
        serial: args.serial.clone(),
        debugcon: args.debugcon.clone(),
        irqchip: IrqchipMode::Kernel,
        tsc_deadline: false,
        testdev: args.testdev,
        x2apic: !args.no_x2apic,
        on_reset: args.on_reset.into(),
        time: TimeConfig {
            debug_time: args.debug_time.into(),
            tsc: TscControl::None,
            lost_ticks: args.lost_ticks.into(),
        },
    };
    // Before the machine, to report early that an address is in use.
    let listener = args
        .gdb
        .as_ref()
        .map(|address| listen(address, args.gdb_allow_remote))
        .transpose()?;
    let wanted = Wanted {
        debugger: listener.is_some(),
        irqchip: args.irqchip.map(IrqchipMode::from),
        no_host_mask: args.no_host_mask,
    };
    let (plan, irqchip) = plan(&vcpu_caps::kvm::open()?, wanted)?;
    config.irqchip = irqchip;
    config.tsc_deadline = plan.has(Capability::UserTscDeadline);
    config.time.tsc = tsc_control(&plan);
    let machine = Machine::new(&config)?;
    // Restored when this function returns, after the vCPUs have stopped.
    let mut console = None;
    let _terminal = match config.serial {
        SerialOutput::Stdio => {
            let (terminal, input) = open_console(&machine)?;
            console = Some(input);
            terminal
        }
        SerialOutput::None | SerialOutput::File(_) => None,
    };
    let devices = Arc::clone(&machine.devices);
    let mut vmm = Vmm::new(machine, plan)?;
    if args.stats {
        vmm.host.log_stats(log.clone());
    }
    if let Some(console) = console {
        vmm.events.add(Box::new(console));
    }
    if let Some(listener) = listener {
        vmm.listen(listener);
        vmm.on_disconnect(args.gdb_on_disconnect.into());
        vmm.describe(args.gdb_arch.description(&config.kernel));
        vmm.events
            .set_busy_poll(Duration::from_micros(args.gdb_busy_poll));
    }
    if !args.gdb_pause {
        vmm.start();
    }
    let reason = vmm.run()?;
    let begun = Instant::now();
    // One deadline for both after a signal.
    let wait = || match reason {
        ExitReason::Signal(_) => {
            let left = LAST_OUTPUT_AFTER_SIGNAL.saturating_sub(begun.elapsed());
            (left, false)
        }
        _ => (LAST_OUTPUT, true),
    };
    let (limit, while_it_moves) = wait();
    report_loss("serial", devices.serial().finish(limit, while_it_moves));
    if let Some(console) = devices.debug_console() {
        let (limit, while_it_moves) = wait();
        report_loss("debug console", console.finish(limit, while_it_moves));
    }
    Ok(reason)
}

/// Binds the debugger's address. A signal that ends the process finds the socket's file registered, or not there.
fn listen(address: &ListenAddress, allow_remote: bool) -> Result<Listener, Error> {
    background::without_signals(|| {
        let listener = Listener::bind(address, allow_remote)?;
        if let ListenAddress::Unix(path) = listener.address() {
            if let Err(error) = left_behind::socket(path) {
                tracing::warn!(%error, "the socket's file may stay behind");
            }
        }
        Ok(listener)
    })
    .map_err(system("cannot block signals"))?
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { what, source }
}

fn report_loss(device: &str, loss: Loss) {
    if loss != Loss::default() {
        tracing::warn!(
            dropped = loss.dropped,
            refused = loss.refused,
            unwritten = loss.unwritten,
            "bytes of {device} output are lost"
        );
    }
}

/// A machine with its vCPU threads and its event loop.
#[derive(Debug)]
pub struct Vmm {
    events: EventLoop,
    host: MachineHost,
    plan: Plan,
    listener: Option<Listener>,
    on_disconnect: OnDisconnect,
    on_reset: OnReset,
    description: Description,
}

impl Vmm {
    /// Starts the machine's threads; its vCPUs stay stopped.
    ///
    /// The caller must not have started any thread yet: it would take the signals.
    ///
    /// # Errors
    /// If the host lacks a descriptor, a signal or a thread.
    pub fn new(machine: Machine, plan: Plan) -> Result<Self, Error> {
        let exit = machine.exit.clone();
        let mut events = EventLoop::new(exit.clone())?;
        let signals =
            Signals::take_over(exit.clone()).map_err(system("cannot take over the signals"))?;
        events.add(Box::new(signals));
        let on_reset = machine.blueprint.on_reset();
        let host = MachineHost::start(machine, plan.clone())?;
        Ok(Self {
            events,
            host,
            plan,
            listener: None,
            on_disconnect: OnDisconnect::default(),
            on_reset,
            description: Description::default(),
        })
    }

    /// Lets a debugger connect, once the machine is served. Over a Unix socket, whose mode is 0600, it may have a core
    /// file written: who can connect can write files in any case. To a TCP port every program of the host can connect.
    pub fn listen(&mut self, listener: Listener) {
        self.host.allow_files(!listener.address().is_tcp());
        self.listener = Some(listener);
    }

    /// Sets what becomes of the guest when a debugger's connection ends without `detach`.
    pub fn on_disconnect(&mut self, policy: OnDisconnect) {
        self.on_disconnect = policy;
    }

    /// Sets which target description a debugger gets.
    pub fn describe(&mut self, description: Description) {
        self.description = description;
    }

    /// Lets the vCPUs run.
    pub fn start(&self) {
        self.host.group().resume_all();
    }

    /// Serves the machine until its end. Returns why it ended.
    ///
    /// # Errors
    /// If waiting fails.
    pub fn run(mut self) -> Result<ExitReason, Error> {
        let Some(listener) = self.listener else {
            let unattended = Rc::new(RefCell::new(Unattended(self.host)));
            self.events.add(Box::new(Rc::clone(&unattended)));
            let reason = self.events.run()?;
            signals::end_at_once();
            unattended.borrow_mut().0.end();
            return Ok(reason);
        };
        tracing::info!(address = %listener.address(), "waiting for a debugger");
        let mut config = SessionConfig::new(self.plan);
        config.on_disconnect = self.on_disconnect;
        config.on_reset = match self.on_reset {
            OnReset::Restart => debug_stub::OnReset::Continue,
            OnReset::Stop | OnReset::Exit => debug_stub::OnReset::Stop,
        };
        config.description = self.description;
        let server = Rc::new(RefCell::new(GdbServer::new(listener, self.host, config)));
        self.events.add(Box::new(Rc::clone(&server)));
        let reason = self.events.run()?;
        signals::end_at_once();
        // One deadline for all of it: a client that goes on sending must not keep the VMM.
        let deadline = Instant::now() + FAREWELL;
        while server.borrow().has_client() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::info!("the debugger has not closed its connection: the VMM ends");
                break;
            }
            // Rounded up: 0 would not wait.
            let milliseconds = u16::try_from(left.as_millis().saturating_add(1));
            self.events.serve_once(milliseconds.ok())?;
        }
        server.borrow_mut().host_mut().end();
        Ok(reason)
    }
}

/// What a run requires of the host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// A debugger may connect: the abilities that it needs are verified first. Without one the host's
    /// claims are enough, and cost no time.
    pub debugger: bool,
    /// Which interrupt chips are KVM's and which are emulated. `None`: all are KVM's, unless a debugger's
    /// mask needs emulated ones.
    pub irqchip: Option<IrqchipMode>,
    /// The host's own mask is not to be used.
    pub no_host_mask: bool,
}

/// What the host can do for this run, and which interrupt chips are emulated.
///
/// # Errors
/// If the host lacks a required ability, which the error names, or cannot be verified.
pub fn plan(kvm: &Kvm, wanted: Wanted) -> Result<(Plan, IrqchipMode), Error> {
    let mut report = probe(kvm);
    let profile = if wanted.debugger {
        verify(kvm, &mut report)?;
        Profile::debugger()
    } else {
        Profile::run()
    };
    if wanted.no_host_mask {
        let finding = Finding::refuted("not to be used (--no-host-mask)");
        report.record(Capability::MaskHwintr, finding);
    }
    let mode = wanted.irqchip.unwrap_or_default();
    if mode == IrqchipMode::User && !wanted.debugger {
        // The one ability that is always verified.
        verify_some(kvm, &mut report, &[Capability::UserTscDeadline])?;
    }
    let negotiate_for = |mode| -> Result<Plan, Error> {
        let profile = profile
            .clone()
            .with_irqchip(irqchip::capability_mode(mode))?;
        negotiate(&report, &profile).map_err(Error::Refused)
    };
    let plan = negotiate_for(mode)?;
    if wanted.irqchip.is_none() && wanted.debugger && !plan.has(Capability::MaskHwintr) {
        match negotiate_for(IrqchipMode::User) {
            Ok(other) if other.has(Capability::MaskHwintr) => {
                if wanted.no_host_mask {
                    tracing::info!("the emulated chips of --irqchip user mask interrupts");
                } else {
                    tracing::warn!(
                        reason = %report.finding(Capability::MaskHwintr).detail,
                        "this host was not verified to mask interrupts: --irqchip user is used, whose \
                         emulated chips can; --irqchip kernel or split keeps the host's chips"
                    );
                }
                return Ok((other, IrqchipMode::User));
            }
            _ => {}
        }
    }
    Ok((plan, mode))
}

/// The means by which the plan sets a guest's TSC.
#[must_use]
pub fn tsc_control(plan: &Plan) -> TscControl {
    match plan.mechanism(Capability::TscOffset) {
        Some(mechanism) if *mechanism == Mechanism::HOST => TscControl::Offset,
        Some(mechanism) if *mechanism == Mechanism::TSC_WRITE => TscControl::Msr,
        _ => TscControl::None,
    }
}

/// Standard input for the serial port; a terminal is put into raw mode.
fn open_console(machine: &Machine) -> Result<(Option<RawTerminal>, Console), Error> {
    let terminal = RawTerminal::enter().map_err(system("cannot set the terminal's mode"))?;
    let console = Console::stdin(
        Arc::clone(machine.devices.serial()),
        machine.exit.clone(),
        terminal.is_some(),
    )
    .map_err(system("cannot read standard input"))?;
    Ok((terminal, console))
}

/// A machine without a debugger: it ends when its vCPUs stop.
struct Unattended(MachineHost);

impl MutEventSubscriber for Unattended {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new_raw(self.0.stopped_fd(), EventSet::IN)) {
            tracing::error!(%error, "the guest's end will not be noticed");
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        if let Some(stops) = self.0.take_stops() {
            self.0.unattended(stops);
        }
    }
}
