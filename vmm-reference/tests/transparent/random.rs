//! Random sequences of instructions, run free and stepped. A sequence that differs is made shorter.
//!
//! RANDOM_CASES is the number of sequences, RANDOM_SEED the seed of another run. A sequence is a list of
//! [`Op`]s, each in a slot of 32 bytes; a handler that skips an instruction goes on with the next slot.

use std::fmt::Write as _;

use iced_x86::{
    Code, Encoder, Formatter, GasFormatter, IcedError, Instruction, MemoryOperand, Register,
};
use intr_controller::IrqchipMode;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::device::End;
use crate::image::{Guest, guests};
use crate::machine::flavour;
use crate::report;
use crate::ways::{self, Way};

/// `RANDOM_CODE` in guests/transparent/random.S.
const CODE: u64 = 0x2_0000;
const SLOT: usize = 32;
const MOST_OPS: usize = 24;
const CASES: u32 = 40;
const DONE: u32 = 0xe0;
const PRINT: u32 = 0xe2;
const NEXT: u32 = 0xe3;
const DATA: i64 = 0x3_2000;
/// A page that is not present at first, one that is read-only, one of devices.
const PAGES: [i64; 4] = [DATA, 0x18_0000, 0x18_2000, 0x30_0000];
const TF: i32 = 0x100;
/// CF, PF, AF, ZF, SF, DF, OF, NT, AC and ID.
const FLAGS: i32 = 0x0024_4cd5;

/// What an instruction is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It computes, or stores and loads RFLAGS.
    Plain,
    /// It may fault.
    Fault,
    /// INT3 or INT n.
    Interrupt,
    /// It sets the guest's own TF.
    OwnTf,
    /// IRET to the next instruction.
    Iret,
    /// A device is read or written.
    Device,
}

/// The kinds that this KVM is known to give away, with the number of the leak in the README's list.
fn leaks() -> &'static [(Kind, u8)] {
    match flavour() {
        "kvm_pvm" | "kvm_amd" | "kvm_intel" => &[],
        _ => &[(Kind::Fault, 1), (Kind::Interrupt, 1), (Kind::OwnTf, 5)],
    }
}

/// The kinds that this KVM does not run at all: free, the guest does not come to its end.
fn absent() -> &'static [Kind] {
    match flavour() {
        "kvm_pvm" => &[Kind::Interrupt],
        _ => &[],
    }
}

/// The instructions of one slot.
#[derive(Clone, Debug)]
enum Op {
    Alu(Code, Register, Register),
    AluImmediate(Code, Register, i32),
    Load(Register, i64, i64),
    Store(Register, i64, i64),
    LockedAdd(Register, i64, i64),
    Push(Register),
    Pop(Register),
    Pushf,
    PushfPopf,
    PushfPop(Register),
    Popf(i32),
    OneByte(Code),
    Divide(Register),
    Undefined,
    Int3,
    IntN,
    MovSs,
    MovSsPushf,
    IretNext(i32),
    CallNext,
    Copy(u8, i64, i64),
    Print(Register),
    Next,
    Cpuid,
}

const REGISTERS: [Register; 6] = [
    Register::RAX,
    Register::RBX,
    Register::RDX,
    Register::R8,
    Register::R9,
    Register::R10,
];

impl Op {
    fn kind(&self) -> Kind {
        let at = |page: i64| match page {
            DATA => Kind::Plain,
            0x30_0000 => Kind::Device,
            _ => Kind::Fault,
        };
        match self {
            Self::Load(_, page, _) | Self::Store(_, page, _) | Self::LockedAdd(_, page, _) => {
                at(*page)
            }
            Self::Copy(_, from, to) if *from == DATA => at(*to),
            Self::Copy(_, from, _) => at(*from),
            Self::Divide(_) | Self::Undefined => Kind::Fault,
            Self::Int3 | Self::IntN => Kind::Interrupt,
            Self::Popf(flags) | Self::IretNext(flags) if flags & TF != 0 => Kind::OwnTf,
            Self::IretNext(_) => Kind::Iret,
            Self::Print(_) | Self::Next => Kind::Device,
            _ => Kind::Plain,
        }
    }

    fn instructions(&self, user: bool, next: u64) -> Result<Vec<Instruction>, IcedError> {
        let memory = |page: i64, offset: i64| {
            MemoryOperand::with_displ(u64::try_from(page + offset).unwrap(), 4)
        };
        let (code, data) = if user { (0x2b, 0x23) } else { (0x08, 0x10) };
        let move_to = |register, value: i64| {
            Instruction::with2(
                Code::Mov_rm64_imm32,
                register,
                i32::try_from(value).unwrap(),
            )
        };
        let push = |value: i32| Instruction::with1(Code::Pushq_imm32, value);
        let pushf = Instruction::with(Code::Pushfq);
        Ok(match *self {
            Self::Alu(code, to, from) => vec![Instruction::with2(code, to, from)?],
            Self::AluImmediate(code, to, value) => vec![Instruction::with2(code, to, value)?],
            Self::Load(to, page, offset) => {
                vec![Instruction::with2(
                    Code::Mov_r64_rm64,
                    to,
                    memory(page, offset),
                )?]
            }
            Self::Store(from, page, offset) => {
                vec![Instruction::with2(
                    Code::Mov_rm64_r64,
                    memory(page, offset),
                    from,
                )?]
            }
            Self::LockedAdd(from, page, offset) => {
                let mut add = Instruction::with2(Code::Add_rm64_r64, memory(page, offset), from)?;
                add.set_has_lock_prefix(true);
                vec![add]
            }
            Self::Push(from) => vec![Instruction::with1(Code::Push_r64, from)?],
            Self::Pop(to) => vec![Instruction::with1(Code::Pop_r64, to)?],
            Self::Pushf => vec![pushf],
            Self::PushfPopf => vec![pushf, Instruction::with(Code::Popfq)],
            Self::PushfPop(to) => vec![pushf, Instruction::with1(Code::Pop_r64, to)?],
            Self::Popf(flags) => vec![push(flags | 2)?, Instruction::with(Code::Popfq)],
            Self::OneByte(code) => vec![Instruction::with(code)],
            Self::Divide(by) => vec![Instruction::with1(Code::Div_rm64, by)?],
            Self::Undefined => vec![Instruction::with(Code::Ud2)],
            Self::Int3 => vec![Instruction::with(Code::Int3)],
            Self::IntN => vec![Instruction::with1(Code::Int_imm8, 0x50)?],
            Self::MovSs => vec![
                move_to(Register::R11, data)?,
                Instruction::with2(Code::Mov_Sreg_r32m16, Register::SS, Register::R11D)?,
            ],
            Self::MovSsPushf => vec![
                move_to(Register::R11, data)?,
                Instruction::with2(Code::Mov_Sreg_r32m16, Register::SS, Register::R11D)?,
                pushf,
                Instruction::with1(Code::Pop_r64, Register::R11)?,
            ],
            Self::IretNext(flags) => vec![
                Instruction::with2(Code::Mov_r64_rm64, Register::R11, Register::RSP)?,
                push(i32::try_from(data).unwrap())?,
                Instruction::with1(Code::Push_r64, Register::R11)?,
                push(flags | 2)?,
                push(code)?,
                push(i32::try_from(next).unwrap())?,
                Instruction::with(Code::Iretq),
            ],
            Self::CallNext => vec![Instruction::with_branch(Code::Call_rel32_64, next)?],
            Self::Copy(count, from, to) => vec![
                Instruction::with2(Code::Mov_r32_imm32, Register::ECX, i32::from(count))?,
                Instruction::with2(
                    Code::Mov_r32_imm32,
                    Register::ESI,
                    i32::try_from(from + 0xff8).unwrap(),
                )?,
                Instruction::with2(
                    Code::Mov_r32_imm32,
                    Register::EDI,
                    i32::try_from(to + 0x100).unwrap(),
                )?,
                Instruction::with_rep_movsb(64)?,
            ],
            Self::Print(from) => vec![
                Instruction::with2(Code::Mov_r64_rm64, Register::RAX, from)?,
                Instruction::with2(Code::Out_imm8_EAX, PRINT, Register::EAX)?,
            ],
            Self::Next => vec![Instruction::with2(Code::In_AL_imm8, Register::AL, NEXT)?],
            Self::Cpuid => vec![
                Instruction::with2(Code::Xor_r32_rm32, Register::EAX, Register::EAX)?,
                Instruction::with(Code::Cpuid),
            ],
        })
    }
}

/// The code of a sequence, and its end.
fn assemble(ops: &[Op], user: bool) -> Vec<u8> {
    let mut code = Vec::new();
    for op in ops {
        let start = CODE + u64::try_from(code.len()).unwrap();
        let next = start + u64::try_from(SLOT).unwrap();
        let mut encoder = Encoder::new(64);
        let mut at = start;
        for instruction in op.instructions(user, next).unwrap() {
            at += u64::try_from(encoder.encode(&instruction, at).unwrap()).unwrap();
        }
        let mut slot = encoder.take_buffer();
        assert!(slot.len() <= SLOT, "{op:?} has {} bytes", slot.len());
        slot.resize(SLOT, 0x90);
        code.extend(slot);
    }
    // out %al, $DONE; hlt
    code.extend([0xe6, DONE.to_le_bytes()[0], 0xf4]);
    code
}

fn register() -> impl Strategy<Value = Register> {
    select(&REGISTERS[..])
}

fn page() -> impl Strategy<Value = i64> {
    prop_oneof![4 => Just(DATA), 3 => select(&PAGES[..])]
}

/// Near the end of a page, an access reaches into the next one.
fn offset() -> impl Strategy<Value = i64> {
    prop_oneof![3 => 0x200..0x300i64, 1 => 0xff8..0x1000i64]
}

fn flags() -> impl Strategy<Value = i32> {
    prop_oneof![
        3 => any::<i32>().prop_map(|bits| bits & FLAGS),
        1 => any::<i32>().prop_map(|bits| bits & FLAGS | TF),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    use Code::{
        Adc_rm64_r64, Add_rm64_imm32, Add_rm64_r64, And_rm64_r64, Bsf_r64_rm64, Clc, Cld, Cmc,
        Cmp_rm64_r64, Imul_r64_rm64, Lahf, Nopd, Sahf, Sbb_rm64_r64, Stc, Std, Sub_rm64_imm32,
        Sub_rm64_r64, Test_rm64_r64, Xchg_rm64_r64, Xor_rm64_imm32, Xor_rm64_r64,
    };
    let alu = select(vec![
        Add_rm64_r64,
        Sub_rm64_r64,
        And_rm64_r64,
        Xor_rm64_r64,
        Adc_rm64_r64,
        Sbb_rm64_r64,
        Cmp_rm64_r64,
        Test_rm64_r64,
        Xchg_rm64_r64,
        Imul_r64_rm64,
        Bsf_r64_rm64,
    ]);
    let immediate = select(vec![Add_rm64_imm32, Sub_rm64_imm32, Xor_rm64_imm32]);
    let one_byte = select(vec![Stc, Clc, Cmc, Std, Cld, Lahf, Sahf, Nopd]);
    prop_oneof![
        4 => (alu, register(), register()).prop_map(|(code, to, from)| Op::Alu(code, to, from)),
        2 => (immediate, register(), any::<i32>()).prop_map(|(code, to, by)| Op::AluImmediate(code, to, by)),
        2 => (register(), page(), offset()).prop_map(|(to, page, at)| Op::Load(to, page, at)),
        2 => (register(), page(), offset()).prop_map(|(from, page, at)| Op::Store(from, page, at)),
        1 => (register(), page(), offset()).prop_map(|(from, page, at)| Op::LockedAdd(from, page, at)),
        1 => register().prop_map(Op::Push),
        1 => register().prop_map(Op::Pop),
        1 => Just(Op::Pushf),
        2 => Just(Op::PushfPopf),
        2 => register().prop_map(Op::PushfPop),
        2 => flags().prop_map(Op::Popf),
        2 => one_byte.prop_map(Op::OneByte),
        1 => register().prop_map(Op::Divide),
        1 => Just(Op::Undefined),
        1 => Just(Op::Int3),
        1 => Just(Op::IntN),
        1 => Just(Op::MovSs),
        1 => Just(Op::MovSsPushf),
        1 => flags().prop_map(Op::IretNext),
        1 => Just(Op::CallNext),
        1 => (1..6u8, page(), page()).prop_map(|(count, from, to)| Op::Copy(count, from, to)),
        1 => register().prop_map(Op::Print),
        1 => Just(Op::Next),
        1 => Just(Op::Cpuid),
    ]
}

/// A guest with this sequence, in the kernel or in user code.
fn guest(ops: &[Op], user: bool) -> Guest {
    let name = if user { "random/user" } else { "random/kernel" };
    let mut guest = guests()
        .into_iter()
        .find(|guest| guest.name == name)
        .unwrap();
    guest.code = Some((CODE, assemble(ops, user)));
    guest
}

/// What differs when a sequence is stepped to its end, or left in the middle.
///
/// `Err` if its free run does not come to its end on this KVM.
fn difference(ops: &[Op], user: bool) -> Result<Option<String>, String> {
    let guest = guest(ops, user);
    let chips = IrqchipMode::Kernel;
    let free = ways::free(&guest, chips);
    if free.end != End::Done {
        return Err(free.end.to_string());
    }
    let (stepped, steps) = ways::stepped(&guest, chips, Way::Masked, |_, _| {});
    if let Some(text) = report::difference(&free, &stepped) {
        let culprit = report::culprit(&guest, chips, &free, &stepped).unwrap_or_default();
        return Ok(Some(format!("{text}, stored at {culprit}")));
    }
    let detached = ways::detached(&guest, chips, steps / 2);
    Ok(report::difference(&free, &detached)
        .map(|text| format!("detached after {} steps: {text}", steps / 2)))
}

/// A number from the environment.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name} is {text}"))
    })
}

fn runner(cases: u32, seed: u64) -> TestRunner {
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 300,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

fn listing(ops: &[Op], user: bool) -> String {
    let mut text = String::new();
    for (place, op) in (0u64..).zip(ops) {
        let start = CODE + 32 * place;
        let _ = write!(text, "\n  {start:#x}: {:?}:", op.kind());
        for instruction in op.instructions(user, start + 32).unwrap() {
            text.push_str("  ");
            GasFormatter::new().format(&instruction, &mut text);
        }
    }
    text
}

/// Runs sequences of the operations that `may` lets through. Returns the shortest one that differs, and how many
/// had a free run that came to its end.
fn search(
    cases: u32,
    seed: u64,
    user: bool,
    may: impl Fn(&Op) -> bool + 'static,
) -> (Option<String>, u32) {
    let ops = proptest::collection::vec(op().prop_filter("a known leak", may), 1..MOST_OPS);
    let ran = std::cell::Cell::new(0);
    let found = runner(cases, seed).run(&ops, |ops| match difference(&ops, user) {
        Err(_) => Ok(()),
        Ok(None) => {
            ran.set(ran.get() + 1);
            Ok(())
        }
        Ok(Some(text)) => Err(TestCaseError::fail(text)),
    });
    let text = match found {
        Ok(()) => None,
        Err(TestError::Fail(why, ops)) => Some(format!("{why}{}", listing(&ops, user))),
        Err(error) => panic!("{error}"),
    };
    (text, ran.get())
}

fn sequences(user: bool) {
    let seed = number("RANDOM_SEED", 1);
    let cases = u32::try_from(number("RANDOM_CASES", CASES.into())).unwrap();
    let may = |op: &Op| {
        let kind = op.kind();
        !absent().contains(&kind) && leaks().iter().all(|(leak, _)| *leak != kind)
    };
    let (found, ran) = search(cases, seed, user, may);
    println!("RANDOM_SEED={seed} RANDOM_CASES={cases}: {ran} sequences ended by themselves");
    assert_eq!(found, None, "RANDOM_SEED={seed}: a sequence differs");
    assert!(
        ran * 10 > cases * 9,
        "most sequences do not end: {ran} of {cases}"
    );
}

#[test]
fn random_sequences_of_the_kernel_are_identical() {
    sequences(false);
}

#[test]
fn random_sequences_of_user_code_are_identical() {
    if flavour() == "kvm_pvm" {
        // Leak 10: every step of user code ends in a trap of the guest. It must still be there.
        assert!(
            search(CASES, 1, true, |op| op.kind() == Kind::Plain)
                .0
                .is_some()
        );
        return;
    }
    sequences(true);
}

#[test]
fn the_kinds_that_are_absent_do_not_end() {
    for kind in absent() {
        let (_, ran) = search(CASES, 1, false, move |op| op.kind() == *kind);
        assert_eq!(ran, 0, "{kind:?} ends: take it out of `absent`");
    }
}

/// A kind that no longer differs belongs into the sequences.
#[test]
fn the_kinds_that_are_left_out_differ() {
    for (kind, leak) in leaks() {
        let (found, _) = search(CASES, 1, false, move |op| {
            op.kind() == *kind || op.kind() == Kind::Plain
        });
        println!(
            "leak {leak}: {kind:?}: {}",
            found.as_deref().unwrap_or("no difference")
        );
        assert!(
            found.is_some(),
            "{kind:?} no longer differs: take it out of `leaks`"
        );
    }
}
