//! Hits that the VMM evaluates: the guest as a [`Program`](crate::agent::Program) sees it.

use vcpu_caps::VcpuId;

use super::{Guest, log_refused, tid};
use crate::address::GuestPhysAddr;
use crate::agent::{Limits, Machine};
use crate::arch::Arch;
use crate::breakpoints::{Breakpoints, HitProgram};
use crate::host::Host;
use crate::memory::Space;
use crate::state::RegisterCache;

/// What becomes of a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hit {
    /// The client sees it.
    Reported,
    /// The client does not see it: a condition is false, or there are commands to run.
    Passed,
}

/// A stopped vCPU.
struct StoppedVcpu<'a, H: Host> {
    host: &'a mut H,
    registers: &'a mut RegisterCache<H::Arch>,
    vcpu: VcpuId,
    /// The registers' numbers are those of the client's description.
    view: <H::Arch as Arch>::View,
    space: Space<H::Arch>,
    value: Vec<u8>,
}

impl<H: Host> Machine for StoppedVcpu<'_, H> {
    fn register(&mut self, number: u16) -> Option<u64> {
        let register = H::Arch::register(self.view, number.into())?;
        let groups = H::Arch::groups(register);
        let registers = self
            .registers
            .read(self.host, self.vcpu, groups)
            .map_err(|error| log_refused(self.vcpu, &error))
            .ok()?;
        self.value.clear();
        let fits = H::Arch::read_register(register, registers, &mut self.value);
        if !fits {
            return None;
        }
        number_of::<H::Arch>(&self.value)
    }

    fn load(&mut self, address: u64, size: usize) -> Option<u64> {
        let mut bytes = [0; 8];
        let bytes = bytes.get_mut(..size)?;
        let read = self.space.read(self.host, address, bytes);
        (read == size).then(|| number_of::<H::Arch>(bytes))?
    }
}

/// `None` if there are more than 64 bits.
fn number_of<A: Arch>(bytes: &[u8]) -> Option<u64> {
    let push = |value: u64, byte: &u8| (value << 8) | u64::from(*byte);
    (bytes.len() <= 8).then(|| match A::IS_BIG_ENDIAN {
        true => bytes.iter().fold(0, push),
        false => bytes.iter().rev().fold(0, push),
    })
}

impl<H: Host> Guest<H> {
    /// Returns what becomes of a vCPU's stop at a breakpoint. A condition that cannot be evaluated counts as
    /// true, as in gdbserver: the client evaluates it again, and tells its user.
    pub(crate) fn judge(&mut self, vcpu: VcpuId) -> Hit {
        let Some((pc, gpa, mut machine, breakpoints)) = self.at_breakpoint(vcpu) else {
            return Hit::Reported;
        };
        let mut limits = Limits::HIT;
        let mut failures = Vec::new();
        let mut reported = false;
        let mut known = false;
        for (address, program) in breakpoints.programs_at(pc, gpa) {
            known = true;
            let met = is_met(program, &mut machine, &mut limits, |error| {
                failures.push(format!(
                    "thread {}: the condition of the breakpoint at {address:#x}: {error}",
                    tid(vcpu)
                ));
            });
            reported |= met && program.commands.is_empty();
        }
        for failure in failures {
            self.notices.push(&failure);
        }
        if reported || !known {
            Hit::Reported
        } else {
            Hit::Passed
        }
    }

    /// Runs the commands of the breakpoints that a vCPU is at and whose conditions are true. Returns what they
    /// print, and where the vCPU is.
    pub(crate) fn run_commands(&mut self, vcpu: VcpuId) -> Option<(u64, Vec<u8>)> {
        let (pc, gpa, mut machine, breakpoints) = self.at_breakpoint(vcpu)?;
        let mut limits = Limits::HIT;
        let mut output = Vec::new();
        for (address, program) in breakpoints.programs_at(pc, gpa) {
            if program.commands.is_empty() || !is_met(program, &mut machine, &mut limits, |_| {}) {
                continue;
            }
            for command in &program.commands {
                if let Err(error) = command.run(&mut machine, &mut limits, &mut output) {
                    output.extend_from_slice(
                        format!("(the command of the breakpoint at {address:#x}: {error})\n")
                            .as_bytes(),
                    );
                }
            }
        }
        Some((pc, output))
    }

    /// Returns where a vCPU is, and what its programs read. `None` if it has gone or its registers cannot be
    /// read.
    #[expect(clippy::type_complexity, reason = "the parts are borrowed apart")]
    fn at_breakpoint(
        &mut self,
        vcpu: VcpuId,
    ) -> Option<(
        u64,
        Option<GuestPhysAddr>,
        StoppedVcpu<'_, H>,
        &Breakpoints<H::Arch>,
    )> {
        if !self.exists(vcpu) {
            return None;
        }
        let view = self.view();
        let groups = H::Arch::STOP_GROUPS | H::Arch::SPACE_GROUPS;
        let registers = self
            .registers
            .read(&mut self.host, vcpu, groups)
            .map_err(|error| log_refused(vcpu, &error))
            .ok()?;
        let pc = H::Arch::pc(registers).0;
        let space = Space::Virtual(H::Arch::address_space(registers));
        let gpa = space.translate(&self.host, pc).map(|mapped| mapped.gpa);
        let machine = StoppedVcpu {
            host: &mut self.host,
            registers: &mut self.registers,
            vcpu,
            view,
            space,
            value: Vec::new(),
        };
        Some((pc, gpa, machine, &self.breakpoints))
    }
}

/// Returns `true` if a breakpoint has no condition, or one of them is true or cannot be evaluated.
fn is_met(
    program: &HitProgram,
    machine: &mut impl Machine,
    limits: &mut Limits,
    mut failed: impl FnMut(String),
) -> bool {
    if program.conditions.is_empty() {
        return true;
    }
    // A condition prints nothing.
    let mut output = Vec::new();
    program.conditions.iter().any(
        |condition| match condition.run(machine, limits, &mut output) {
            Ok(Some(value)) => value != 0,
            Ok(None) => {
                failed("it has no value".into());
                true
            }
            Err(error) => {
                failed(error.to_string());
                true
            }
        },
    )
}
