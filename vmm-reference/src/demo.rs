//! `vmm-reference demo`: steps a guest with and without the mask, and compares.
//!
//! The timer guest is stepped twice over the real stub: once with the mask off, as every stub of
//! a Rust VMM steps, and once with it on. A client on a second thread drives the session through
//! a Unix socket, as GDB would.

use std::fmt;
use std::io::{self, Write};
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use debug_stub::server::{ListenAddress, Listener};
use intr_controller::{Counters, IrqchipMode};
use thiserror::Error;
use vcpu_caps::kvm::OpenError;
use vcpu_caps::{Capability, VcpuId};

use crate::cli::{DemoArgs, GdbArch};
use crate::error::Error;
use crate::exit::ExitReason;
use crate::guests::TIMER;
use crate::irqchip::Irqchip;
use crate::machine::{Machine, MachineConfig};
use crate::remote::{RemoteClient, expedited, register};
use crate::run::{Vmm, Wanted, plan, tsc_control};

/// Steps with the mask off, at most.
const UNMASKED_STEPS: u32 = 2000;
/// How long the guest runs before the first step, and after the last.
const FREE_RUN: Duration = Duration::from_millis(100);
/// The period of the guest's timer.
const TICK_NS: u64 = 1_000_000;
/// GDB's number of RIP, in QEMU's order.
const RIP: u8 = 16;
/// GDB's number of RSP.
const RSP: u8 = 7;

/// The demo could not be run, or showed that the mask does not hold.
#[derive(Debug, Error)]
pub enum DemoError {
    /// `/dev/kvm` cannot be used. The demo also runs in a rig.
    #[error(
        "{0}; without KVM, `rigs/run --on svm vmm-reference demo`, in the source tree, runs the \
         demo on an emulated processor"
    )]
    NoKvm(OpenError),
    /// The session failed.
    #[error("the session with the stub failed")]
    Session(#[from] io::Error),
    /// The stub sent an unexpected reply.
    #[error("the stub replied {answer:?} to {packet:?}")]
    Answer {
        /// The request.
        packet: String,
        /// The reply.
        answer: String,
    },
    /// The guest lacks a symbol.
    #[error("the timer guest has no symbol {0}")]
    Symbol(&'static str),
    /// A masked step landed, or an interrupt was lost.
    #[error("the mask did not hold: {0}; `vmm-reference caps` shows what this host can do")]
    NotHeld(String),
}

/// The result of one series of steps.
#[derive(Clone, Copy, Debug, Default)]
struct Series {
    /// Number of steps.
    steps: u32,
    /// Steps that ended in the timer's handler.
    landings: u32,
    /// Runs of the handler during the steps.
    handler_runs: u64,
    /// Microseconds for each step.
    step_us: f64,
    /// How often the timer expired during the steps, by guest time.
    due: u64,
    /// What became of these, where the local APIC counts.
    fate: Option<Counters>,
    /// The timer's interrupt was pending after the last step.
    pending: bool,
    /// After the release the handler was entered before the loop went on.
    delivered_first: bool,
    /// Runs of the handler in [`FREE_RUN`] after the release.
    runs_after: u64,
}

/// Runs the demo and prints its table.
///
/// # Errors
/// If the host cannot, or the mask did not hold.
pub fn demo(args: DemoArgs, out: &mut impl Write) -> Result<(), Error> {
    let kvm = vcpu_caps::kvm::open().map_err(DemoError::NoKvm)?;
    let wanted = Wanted {
        debugger: true,
        irqchip: args.irqchip.map(IrqchipMode::from),
        no_host_mask: args.no_host_mask,
    };
    let (plan, irqchip) = plan(&kvm, wanted)?;
    let mut config = MachineConfig::new(TIMER.image());
    config.irqchip = irqchip;
    config.tsc_deadline = plan.has(Capability::UserTscDeadline);
    config.time.tsc = tsc_control(&plan);
    let machine = Machine::new(&config)?;
    let system = |what| move |source: io::Error| Error::System { what, source };
    let directory =
        tempfile::tempdir().map_err(system("cannot make a directory for the socket"))?;
    let socket = directory.path().join("gdb");
    let exit = machine.exit.clone();
    let irqchip = machine.irqchip.clone();
    let mut vmm = Vmm::new(machine, plan)?;
    vmm.listen(Listener::bind(&ListenAddress::Unix(socket.clone()), false)?);
    vmm.describe(GdbArch::Auto.description(&config.kernel));
    vmm.start();
    let client = thread::spawn(move || {
        let run = AssertUnwindSafe(|| both_series(&socket, &irqchip, args.steps));
        let result = panic::catch_unwind(run);
        // In any case: the event loop on the other thread must end.
        exit.request(ExitReason::DebuggerKill);
        result.unwrap_or_else(|panic| panic::resume_unwind(panic))
    });
    let reason = vmm.run()?;
    let result = match client.join() {
        Ok(result) => result,
        Err(panic) => panic::resume_unwind(panic),
    };
    let (off, on) = match (result, reason) {
        (Ok(both), _) => both,
        // The guest's end explains better why the session failed.
        (Err(_), ExitReason::GuestFailed(text)) => return Err(Error::Guest(text)),
        (Err(error), _) => return Err(error.into()),
    };
    write!(out, "{}", Table { off, on }).map_err(system("cannot write the table"))?;
    judge(&off, &on)?;
    writeln!(
        out,
        "\nWith mask_hwintr held no step left the loop, and no interrupt was lost."
    )
    .map_err(system("cannot write the table"))?;
    Ok(())
}

/// Checks that the mask held and no interrupt was lost.
fn judge(off: &Series, on: &Series) -> Result<(), DemoError> {
    let not_held = |text: String| Err(DemoError::NotHeld(text));
    if on.landings != 0 || on.handler_runs != 0 {
        return not_held(format!(
            "{} of {} masked steps ended in the handler, which ran {} times",
            on.landings, on.steps, on.handler_runs
        ));
    }
    if !on.pending || !on.delivered_first {
        return not_held("the timer's interrupt was lost while it was masked".to_owned());
    }
    if let Some(fate) = on.fate {
        // The first one waits. As in a real local APIC, each further one merges with it.
        let all = fate.merged + 1;
        let lost = fate.withdrawn + fate.dropped + fate.spurious + fate.delivered;
        if fate.arrived.abs_diff(on.due) > 1 || fate.arrived.abs_diff(all) > 1 || lost > 0 {
            return not_held(format!(
                "the timer expired {} times, by guest time, and of its interrupts became {fate:?}",
                on.due
            ));
        }
    }
    if off.landings == 0 && off.handler_runs == 0 {
        return not_held(
            "no interrupt entered without it either: the demo shows nothing".to_owned(),
        );
    }
    Ok(())
}

/// The addresses that the series need.
struct Places {
    handler: Range<u64>,
    ticks: u64,
}

fn both_series(
    socket: &Path,
    irqchip: &Irqchip,
    steps: u32,
) -> Result<(Series, Series), DemoError> {
    let places = Places {
        handler: TIMER
            .function("timer_handler")
            .ok_or(DemoError::Symbol("timer_handler"))?,
        ticks: TIMER.symbol("ticks").ok_or(DemoError::Symbol("ticks"))?,
    };
    // The guest runs already: its timer must tick before it is stopped.
    thread::sleep(FREE_RUN);
    let mut client = RemoteClient::unix(socket)?;
    let off = steps.min(UNMASKED_STEPS);
    let off = series(&mut client, &places, irqchip, off, false)?;
    let on = series(&mut client, &places, irqchip, steps, true)?;
    Ok((off, on))
}

/// The timer of the guest, which has one vCPU and no other interrupt.
struct Ticks {
    due: u64,
    counters: Option<Counters>,
}

impl Ticks {
    fn so_far(irqchip: &Irqchip) -> Self {
        Self {
            due: irqchip.clock().report().now.as_ns() / TICK_NS,
            counters: irqchip.counters(VcpuId(0)),
        }
    }

    fn since(&self, before: &Self) -> Option<Counters> {
        let (after, before) = self.counters.zip(before.counters)?;
        Some(Counters {
            arrived: after.arrived - before.arrived,
            merged: after.merged - before.merged,
            // One that was on its way into the guest at the stop may have been taken back since.
            delivered: after.delivered.saturating_sub(before.delivered),
            withdrawn: after.withdrawn - before.withdrawn,
            dropped: after.dropped - before.dropped,
            spurious: after.spurious - before.spurious,
        })
    }
}

type Client = RemoteClient<std::os::unix::net::UnixStream>;

fn series(
    client: &mut Client,
    places: &Places,
    irqchip: &Irqchip,
    steps: u32,
    mask: bool,
) -> Result<Series, DemoError> {
    // QEMU's SSTEP_ENABLE, and SSTEP_NOIRQ for the mask.
    expect(
        client,
        if mask {
            "Qqemu.sstep=3"
        } else {
            "Qqemu.sstep=1"
        },
        "OK",
    )?;
    let mut series = Series {
        steps,
        ..Series::default()
    };
    // Begin in the loop.
    let mut rip = client.read_rip()?;
    while places.handler.contains(&rip) {
        rip = step(client)?;
    }
    let before = client.read_u64(places.ticks)?;
    let ticks_before = Ticks::so_far(irqchip);
    let start = Instant::now();
    for _ in 0..steps {
        rip = step(client)?;
        series.landings += u32::from(places.handler.contains(&rip));
    }
    series.step_us = start.elapsed().as_secs_f64() * 1e6 / f64::from(steps);
    series.handler_runs = client.read_u64(places.ticks)? - before;
    let ticks_after = Ticks::so_far(irqchip);
    series.due = ticks_after.due - ticks_before.due;
    series.fate = ticks_after.since(&ticks_before);
    series.pending = client.monitor("mask status")?.contains("pending: 0x20");
    let ticks = client.read_u64(places.ticks)?;

    // Release: the handler's first instruction is the first thing that is executed.
    let handler = places.handler.start;
    expect(client, &format!("Z1,{handler:x},1"), "OK")?;
    let stop = client.request("vCont;c")?;
    expect(client, &format!("z1,{handler:x},1"), "OK")?;
    let rsp = match expedited(&stop, RSP) {
        Some(rsp) => rsp,
        None => register(&client.request("p7")?)?,
    };
    // An interrupt's frame has the interrupted RIP on top (SDM 3A 6.14.2).
    let interrupted = client.read_u64(rsp)?;
    series.delivered_first = expedited(&stop, RIP) == Some(handler) && interrupted == rip;

    client.send("vCont;c")?;
    thread::sleep(FREE_RUN);
    client.interrupt()?;
    client.reply()?;
    series.runs_after = client.read_u64(places.ticks)? - ticks;
    Ok(series)
}

fn step(client: &mut Client) -> Result<u64, DemoError> {
    let packet = "vCont;s:1";
    let answer = client.request(packet)?;
    match expedited(&answer, RIP) {
        Some(rip) => Ok(rip),
        None => Err(DemoError::Answer {
            packet: packet.to_owned(),
            answer,
        }),
    }
}

fn expect(client: &mut Client, packet: &str, wanted: &str) -> Result<(), DemoError> {
    let answer = client.request(packet)?;
    if answer == wanted {
        return Ok(());
    }
    Err(DemoError::Answer {
        packet: packet.to_owned(),
        answer,
    })
}

struct Table {
    off: Series,
    on: Series,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "A guest counts in a loop while its timer interrupts it 1000 times a second.\n\
             A debugger steps it, one instruction at a time, over GDB's protocol.\n"
        )?;
        let (off, on) = (&self.off, &self.on);
        let yes = |yes| if yes { "yes" } else { "no" };
        let mut row = |label: &str, off: &dyn fmt::Display, on: &dyn fmt::Display| {
            writeln!(
                f,
                "{label:<52}{:>10}{:>10}",
                off.to_string(),
                on.to_string()
            )
        };
        row("", &"mask off", &"mask on")?;
        row("steps", &off.steps, &on.steps)?;
        row(
            "steps that ended in the timer's handler",
            &off.landings,
            &on.landings,
        )?;
        row(
            "runs of the handler during the steps",
            &off.handler_runs,
            &on.handler_runs,
        )?;
        row(
            "times that the timer expired, by guest time",
            &off.due,
            &on.due,
        )?;
        if let (Some(off), Some(on)) = (&off.fate, &on.fate) {
            row("  interrupts that arrived", &off.arrived, &on.arrived)?;
            row(
                "  of these, merged into a pending one",
                &off.merged,
                &on.merged,
            )?;
            row("  of these, delivered", &off.delivered, &on.delivered)?;
        }
        row(
            "timer interrupt pending after the last step",
            &yes(off.pending),
            &yes(on.pending),
        )?;
        row(
            "on release, delivered before the loop went on",
            &yes(off.delivered_first),
            &yes(on.delivered_first),
        )?;
        let after = format!(
            "runs of the handler in the {} ms after",
            FREE_RUN.as_millis()
        );
        row(&after, &off.runs_after, &on.runs_after)?;
        let us = |us: f64| format!("{us:.1}");
        row("µs per step", &us(off.step_us), &us(on.step_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the demo sees if all is well: 100 expiries under the mask, one of which waits.
    fn good() -> (Series, Series) {
        let off = Series {
            landings: 1,
            ..Series::default()
        };
        let fate = Counters {
            arrived: 100,
            merged: 99,
            ..Counters::default()
        };
        let on = Series {
            pending: true,
            delivered_first: true,
            due: 100,
            fate: Some(fate),
            ..Series::default()
        };
        (off, on)
    }

    /// Seen in Bochs: it was counted as delivered when the guest was stopped, and masked afterwards.
    #[test]
    fn an_interrupt_that_was_taken_back_is_no_loss() {
        let at = |arrived, merged, delivered| Ticks {
            due: arrived,
            counters: Some(Counters {
                arrived,
                merged,
                delivered,
                ..Counters::default()
            }),
        };
        let (off, mut on) = good();
        on.fate = at(110, 104, 5).since(&at(10, 4, 6));
        judge(&off, &on).unwrap();
    }

    #[test]
    fn each_expiry_of_the_timer_has_to_be_accounted_for() {
        let (off, on) = good();
        judge(&off, &on).unwrap();
        let lost: [fn(&mut Counters); 5] = [
            |fate| fate.arrived -= 5,
            |fate| fate.merged -= 5,
            |fate| fate.delivered = 1,
            |fate| fate.dropped = 1,
            |fate| fate.withdrawn = 1,
        ];
        for lose in lost {
            let (off, mut on) = good();
            lose(on.fate.as_mut().unwrap());
            assert!(judge(&off, &on).is_err(), "{on:?}");
        }
    }

    #[test]
    fn a_mask_that_does_not_hold_is_found() {
        let wrong: [fn(&mut Series, &mut Series); 5] = [
            |_, on| on.landings = 1,
            |_, on| on.handler_runs = 1,
            |_, on| on.pending = false,
            |_, on| on.delivered_first = false,
            |off, _| off.landings = 0,
        ];
        for make in wrong {
            let (mut off, mut on) = good();
            make(&mut off, &mut on);
            assert!(judge(&off, &on).is_err(), "{off:?} {on:?}");
        }
    }
}
