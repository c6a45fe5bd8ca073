//! A stepped guest ends as one that ran freely, in registers, memory and what its devices saw.

use proptest::prelude::*;

use super::*;

/// Pieces of programs that end, each with its bytes.
#[derive(Clone, Debug)]
enum Piece {
    Nop,
    IncAx,
    IncBx,
    PushPop,
    PushFlags,
    PushPopFlags,
    Sti,
    Cli,
    LoadSs,
    LoadSsPushFlags,
    Out(u8),
    In(u8),
    Interrupt,
    Breakpoint,
    Store,
    Load,
    Divide,
    Move(u8),
    JumpOver,
}

impl Piece {
    fn put(&self, code: &mut Vec<u8>) {
        match self {
            Self::Nop => code.push(0x90),
            Self::IncAx => code.push(0x40),
            Self::IncBx => code.push(0x43),
            // push ax; pop ax
            Self::PushPop => code.extend([0x50, 0x58]),
            // pushf; pop ax
            Self::PushFlags => code.extend([0x9c, 0x58]),
            // pushf; popf
            Self::PushPopFlags => code.extend([0x9c, 0x9d]),
            Self::Sti => code.push(0xfb),
            Self::Cli => code.push(0xfa),
            // mov ss, ax: the stack is where it was, since AX is 0 before.
            Self::LoadSs => code.extend([0x8e, 0xd0, 0x90]),
            Self::LoadSsPushFlags => code.extend([0x8e, 0xd0, 0x9c, 0x58]),
            Self::Out(port) => code.extend([0xe6, *port]),
            Self::In(port) => code.extend([0xe4, *port]),
            Self::Interrupt => code.extend([0xcd, SOFTWARE]),
            Self::Breakpoint => code.push(0xcc),
            // mov [bx], al and back
            Self::Store => code.extend([0x88, 0x07]),
            Self::Load => code.extend([0x8a, 0x07]),
            Self::Divide => code.extend([0xf6, 0xf3]),
            // mov cx in steps of inc; rep movsb
            Self::Move(count) => {
                code.extend(std::iter::repeat_n(0x41, usize::from(*count)));
                code.extend([0xf3, 0xa4]);
            }
            // jmp over an ud2
            Self::JumpOver => code.extend([0xeb, 2, 0x0f, 0x0b]),
        }
    }

    /// Loads SS from AX, which must be 0.
    fn loads_ss(&self) -> bool {
        matches!(self, Self::LoadSs | Self::LoadSsPushFlags)
    }
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        Just(Piece::Nop),
        Just(Piece::IncAx),
        Just(Piece::IncBx),
        Just(Piece::PushPop),
        Just(Piece::PushFlags),
        Just(Piece::PushPopFlags),
        Just(Piece::Sti),
        Just(Piece::Cli),
        Just(Piece::LoadSs),
        Just(Piece::LoadSsPushFlags),
        any::<u8>().prop_map(Piece::Out),
        any::<u8>().prop_map(Piece::In),
        Just(Piece::Interrupt),
        Just(Piece::Breakpoint),
        Just(Piece::Store),
        Just(Piece::Load),
        Just(Piece::Divide),
        (0..4_u8).prop_map(Piece::Move),
        Just(Piece::JumpOver),
    ]
}

/// The program, which ends in `cli; hlt` at the address that is returned.
fn program(pieces: &[Piece]) -> (Vec<u8>, u16) {
    let mut code = Vec::new();
    let mut ax_is_zero = true;
    for piece in pieces {
        if piece.loads_ss() && !ax_is_zero {
            continue;
        }
        piece.put(&mut code);
        ax_is_zero &= matches!(
            piece,
            Piece::Nop | Piece::IncBx | Piece::Sti | Piece::Cli | Piece::LoadSs | Piece::JumpOver
        );
    }
    code.push(0xfa);
    let hlt = CODE + u16::try_from(code.len()).unwrap();
    code.extend([0xf4, 0xeb, 0xfe]);
    (code, hlt)
}

struct End {
    registers: RegisterFile,
    memory: Vec<u8>,
    served: Vec<Exit>,
}

/// With data at BX, SI and DI; BX outside memory if `device`.
fn machine(habits: Habits, code: &[u8], absent: &[Capability], device: bool) -> Machine {
    let mut machine = Machine::with(habits, code, &plan(absent));
    let file = machine.vcpu.registers_mut();
    (file.core.rbx, file.core.rsi, file.core.rdi) = (0x6000, 0x6100, 0x6200);
    if device {
        file.special.ds.base = 0x2_0000;
        // REP MOVSB reads it, too, and is not emulated here: no memory there.
        file.core.rsi = 0;
    }
    machine
}

/// Where it is compared with TF of its own: HLT would be followed by its #DB, and so on.
fn run_freely_to(mut machine: Machine, hlt: u16) -> End {
    for _ in 0..10_000 {
        if machine.vcpu.registers().core.rip == u64::from(hlt) {
            break;
        }
        let exit = machine.vcpu.run(&machine.memory, false, 1);
        machine.serve(exit);
    }
    end(machine)
}

fn run_stepped_to(mut machine: Machine, hlt: u16) -> End {
    let mut steps = 0;
    while machine.registers().core.rip != u64::from(hlt)
        || machine.stepper.control().intent().inject.is_some()
    {
        assert_eq!(machine.run(&step(true)), StopReason::Step);
        steps += 1;
        assert!(steps < 3000, "at {:#x}", machine.registers().core.rip);
    }
    machine.release();
    end(machine)
}

fn run_freely(mut machine: Machine) -> End {
    for _ in 0..1000 {
        let exit = machine.vcpu.run(&machine.memory, false, 10_000);
        if exit == Exit::Sleeps {
            break;
        }
        machine.serve(exit);
    }
    end(machine)
}

fn run_stepped(mut machine: Machine, hlt: u16, ranges: bool) -> End {
    let order = if ranges { range(CODE..hlt) } else { step(true) };
    let mut steps = 0;
    while machine.registers().core.rip <= hlt.into() || machine.registers().core.rip >= 0x2000 {
        assert_eq!(machine.run(&order), StopReason::Step);
        steps += 1;
        assert!(steps < 1000, "at {:#x}", machine.registers().core.rip);
    }
    machine.release();
    end(machine)
}

fn end(machine: Machine) -> End {
    let mut registers = machine.vcpu.registers().clone();
    // KVM's emulator sets RF as it steps a repeated instruction.
    registers.core.rflags &= !(1 << 16);
    End {
        registers,
        memory: machine.memory.snapshot(),
        served: machine.served,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_stepped_guest_ends_as_one_that_ran_freely(
        pieces in proptest::collection::vec(piece(), 1..20),
        hypervisor in 0..3_usize,
        synced in any::<bool>(),
        ranges in any::<bool>(),
        own_tf in any::<bool>(),
    ) {
        let (code, hlt) = program(&pieces);
        let habits = Habits::ALL[hypervisor];
        if habits.emulates && code.contains(&0xcc) {
            // kvm_pvm cannot do INT3 at CPL0.
            return Ok(());
        }
        let absent = if synced { &[][..] } else { &[Capability::SyncRegs] };
        let machine = || {
            let mut machine = machine(habits, &code, absent, false);
            if own_tf {
                machine.vcpu.registers_mut().core.rflags |= TF;
            }
            machine
        };
        let (free, stepped) = if own_tf {
            (run_freely_to(machine(), hlt), run_stepped_to(machine(), hlt))
        } else {
            (run_freely(machine()), run_stepped(machine(), hlt, ranges))
        };
        prop_assert_eq!(&stepped.registers.core, &free.registers.core);
        prop_assert_eq!(&stepped.registers.special, &free.registers.special);
        prop_assert_eq!(&stepped.served, &free.served);
        let differs: Vec<_> = (0..RAM)
            .filter(|at| stepped.memory[*at] != free.memory[*at])
            .collect();
        prop_assert!(differs.is_empty(), "memory differs at {differs:x?}");
    }
}
