use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Registers 0 to 3, and memory at 0x1000.
struct Toy {
    memory: BTreeMap<u64, u8>,
}

fn toy(text: &[u8]) -> Toy {
    Toy {
        memory: (0x1000..).zip(text.iter().copied()).collect(),
    }
}

impl Machine for Toy {
    fn register(&mut self, number: u16) -> Option<u64> {
        [0x11, 0x2222, 0x3333_3333, u64::MAX]
            .get(usize::from(number))
            .copied()
    }

    fn load(&mut self, address: u64, size: usize) -> Option<u64> {
        let size = u64::try_from(size).unwrap();
        (0..size).rev().try_fold(0, |value, offset| {
            let byte = self.memory.get(&address.checked_add(offset)?)?;
            Some((value << 8) | u64::from(*byte))
        })
    }
}

fn run_on(machine: &mut Toy, code: &[u8]) -> (Result<Option<u64>, RunError>, String) {
    let program = Program::new(code).unwrap();
    let mut output = Vec::new();
    let result = program.run(machine, &mut Limits::HIT.clone(), &mut output);
    (result, String::from_utf8(output).unwrap())
}

fn run(code: &[u8]) -> Result<Option<u64>, RunError> {
    run_on(&mut toy(&[0xf1, 0xf2, 0xf3, 0xf4, 5, 6, 7, 8]), code).0
}

/// `const64 value`, for each, then the rest and `end`.
fn with(values: &[u64], rest: &[u8]) -> Vec<u8> {
    let mut code = Vec::new();
    for value in values {
        code.push(0x25);
        code.extend(value.to_be_bytes());
    }
    code.extend(rest);
    code.push(0x27);
    code
}

fn value(values: &[u64], rest: &[u8]) -> u64 {
    run(&with(values, rest)).unwrap().unwrap()
}

fn signed(value: i64) -> u64 {
    value.cast_unsigned()
}

#[test]
fn arithmetic_is_that_of_64_bits() {
    for (opcode, left, right, expected) in [
        (0x02, u64::MAX, 2, 1),
        (0x03, 1, 3, signed(-2)),
        (0x04, 1 << 63, 3, 1 << 63),
        (0x05, signed(-7), 2, signed(-3)),
        (0x05, 1 << 63, signed(-1), 1 << 63),
        (0x06, signed(-7), 2, 0x7fff_ffff_ffff_fffc),
        (0x07, signed(-7), 2, signed(-1)),
        (0x07, 1 << 63, signed(-1), 0),
        (0x08, 7, 4, 3),
        (0x09, 3, 4, 0x30),
        (0x09, 3, 64, 0),
        (0x0a, signed(-16), 2, signed(-4)),
        (0x0a, signed(-16), 1 << 40, signed(-1)),
        (0x0b, signed(-1), 60, 15),
        (0x0b, signed(-1), 64, 0),
        (0x0f, 0b1100, 0b1010, 0b1000),
        (0x10, 0b1100, 0b1010, 0b1110),
        (0x11, 0b1100, 0b1010, 0b0110),
        (0x13, 5, 5, 1),
        (0x13, 5, 6, 0),
        (0x14, signed(-1), 0, 1),
        (0x14, 0, signed(-1), 0),
        (0x15, signed(-1), 0, 0),
        (0x15, 0, signed(-1), 1),
    ] {
        assert_eq!(value(&[left, right], &[opcode]), expected, "{opcode:#x}");
    }
    assert_eq!(value(&[0], &[0x0e]), 1);
    assert_eq!(value(&[7], &[0x0e]), 0);
    assert_eq!(value(&[7], &[0x12]), !7);
}

#[test]
fn values_are_extended_from_any_width() {
    assert_eq!(value(&[0x1ff], &[0x16, 8]), u64::MAX);
    assert_eq!(value(&[0x17f], &[0x16, 8]), 0x7f);
    assert_eq!(value(&[5], &[0x16, 64]), 5);
    assert_eq!(value(&[5], &[0x16, 200]), 5);
    assert_eq!(value(&[5], &[0x16, 0]), 0);
    assert_eq!(value(&[0x1ff], &[0x2a, 8]), 0xff);
    assert_eq!(value(&[u64::MAX], &[0x2a, 64]), u64::MAX);
    assert_eq!(value(&[u64::MAX], &[0x2a, 0]), 0);
}

#[test]
fn constants_registers_and_memory_are_read() {
    assert_eq!(run(&[0x22, 0xff, 0x27]), Ok(Some(0xff)));
    assert_eq!(run(&[0x23, 0xff, 1, 0x27]), Ok(Some(0xff01)));
    assert_eq!(run(&[0x24, 0xff, 1, 2, 3, 0x27]), Ok(Some(0xff01_0203)));
    assert_eq!(run(&[0x26, 0, 2, 0x27]), Ok(Some(0x3333_3333)));
    assert_eq!(run(&[0x26, 1, 0, 0x27]), Err(RunError::Register(0x100)));
    assert_eq!(value(&[0x1000], &[0x17]), 0xf1);
    assert_eq!(value(&[0x1000], &[0x18]), 0xf2f1);
    assert_eq!(value(&[0x1000], &[0x19]), 0xf4f3_f2f1);
    assert_eq!(value(&[0x1000], &[0x1a]), 0x0807_0605_f4f3_f2f1);
    let beyond = with(&[0x1001], &[0x1a]);
    assert_eq!(run(&beyond), Err(RunError::Memory(0x1001)));
    let wraps = with(&[u64::MAX], &[0x18]);
    assert_eq!(run(&wraps), Err(RunError::Memory(u64::MAX)));
}

#[test]
fn the_stack_is_rearranged_as_the_manual_says() {
    // What is on the stack afterwards, from the top: subtracting shows the order.
    assert_eq!(value(&[1, 2, 3], &[0x28]), 3);
    assert_eq!(value(&[1, 2, 3], &[0x29]), 2);
    assert_eq!(value(&[9, 2], &[0x2b, 0x03]), signed(2 - 9));
    assert_eq!(value(&[1, 2, 3], &[0x32, 2]), 1);
    // a b c => c a b
    assert_eq!(value(&[1, 2, 3], &[0x33]), 2);
    assert_eq!(value(&[1, 2, 3], &[0x33, 0x29]), 1);
    assert_eq!(value(&[1, 2, 3], &[0x33, 0x29, 0x29]), 3);
}

#[test]
fn jumps_are_taken_by_the_value_and_name_bytes() {
    // if (reg) 7 else 9
    let code = |register| [0x26, 0, register, 0x20, 0, 9, 0x22, 9, 0x27, 0x22, 7, 0x27];
    assert_eq!(run(&code(0)), Ok(Some(7)));
    let zero = [0x22, 0, 0x20, 0, 8, 0x22, 9, 0x27, 0x22, 7, 0x27];
    assert_eq!(run(&zero), Ok(Some(9)));
    let skips = [0x21, 0, 5, 0x22, 1, 0x22, 2, 0x27];
    assert_eq!(run(&skips), Ok(Some(2)));
}

#[test]
fn a_program_without_a_value_has_none() {
    assert_eq!(run(&[0x27]), Ok(None));
}

#[test]
fn what_cannot_be_computed_is_an_error() {
    for opcode in [0x05, 0x06, 0x07, 0x08] {
        let code = with(&[1, 0], &[opcode]);
        assert_eq!(run(&code), Err(RunError::DivisionByZero));
    }
    for code in [
        &[0x02][..],
        &[0x22, 1, 0x02],
        &[0x17],
        &[0x29],
        &[0x28],
        &[0x2b],
        &[0x22, 1, 0x33],
        &[0x22, 1, 0x32, 1],
        &[0x20, 0, 0],
        &[0x34, 0, 0, 1, 0],
    ] {
        assert_eq!(run(code), Err(RunError::StackEmpty), "{code:x?}");
    }
    assert_eq!(run(&[]), Err(RunError::NoEnd));
    assert_eq!(run(&[0x22, 1]), Err(RunError::NoEnd));
}

#[test]
fn a_loop_ends_and_so_does_a_stack() {
    assert_eq!(run(&[0x21, 0, 0]), Err(RunError::TooLong));
    assert_eq!(run(&[0x22, 1, 0x21, 0, 0]), Err(RunError::StackFull));
    let full = with(&[7; 100], &[]);
    assert_eq!(run(&full), Ok(Some(7)));
    assert_eq!(run(&with(&[7; 101], &[])), Err(RunError::StackFull));
}

#[test]
fn programs_of_one_hit_share_their_limits() {
    let program = Program::new(&[0x22, 1, 0x27]).unwrap();
    let mut limits = Limits {
        steps: 3,
        output: 0,
    };
    let mut output = Vec::new();
    let mut run = || program.run(&mut toy(&[]), &mut limits, &mut output);
    assert_eq!(run(), Ok(Some(1)));
    assert_eq!(run(), Err(RunError::TooLong));
}

#[test]
fn bytecode_that_is_refused_says_why() {
    let refused = |code: &[u8]| Program::new(code).unwrap_err().to_string();
    for (opcode, name) in [
        (0x0c, "trace"),
        (0x0d, "trace_quick"),
        (0x2c, "getv"),
        (0x2d, "setv"),
        (0x2e, "tracev"),
        (0x2f, "tracenz"),
        (0x30, "trace16"),
        (0x01, "float"),
        (0x1b, "ref_float"),
        (0x1f, "d_to_l"),
    ] {
        let text = refused(&[0x22, 1, opcode, 0, 0]);
        assert!(text.contains(&format!("\"{name}\" at 2")), "{text}");
    }
    for opcode in [0x00, 0x31, 0x35, 0xff] {
        let error = Program::new(&[opcode]).unwrap_err();
        assert_eq!(error, ProgramError::Unknown { opcode, at: 0 });
    }
    for cut in [
        &[0x25, 1, 2][..],
        &[0x26, 0],
        &[0x21],
        &[0x16],
        &[0x34],
        &[0x34, 0, 0],
        &[0x34, 0, 0, 9, 0],
    ] {
        assert_eq!(
            Program::new(cut).unwrap_err(),
            ProgramError::Truncated { at: 0 }
        );
    }
    // Into an operand, behind the end, and at the end.
    for to in [1, 3, 200] {
        assert!(matches!(
            Program::new(&[0x21, 0, to]),
            Err(ProgramError::Jump { at: 0, .. })
        ));
    }
    assert!(Program::new(&[0x27; Program::LONGEST]).is_ok());
    let long = Program::new(&[0x27; Program::LONGEST + 1]);
    assert_eq!(long, Err(ProgramError::TooLong(Program::LONGEST + 1)));
}

/// A `printf` of these arguments, as gdb compiles it: the last argument first, then channel and function.
fn printf(format: &str, arguments: &[u64]) -> Vec<u8> {
    let mut values: Vec<u64> = arguments.iter().rev().copied().collect();
    values.extend([0, 0]);
    let mut print = vec![0x34, u8::try_from(arguments.len()).unwrap()];
    print.extend(u16::try_from(format.len() + 1).unwrap().to_be_bytes());
    print.extend(format.bytes());
    print.push(0);
    with(&values, &print)
}

fn printed(format: &str, arguments: &[u64]) -> String {
    let (result, text) = run_on(&mut toy(b"ab\x1b\ncd\0"), &printf(format, arguments));
    assert_eq!(result, Ok(None), "{format}");
    text
}

#[test]
fn printf_prints_as_in_c() {
    for (format, argument, expected) in [
        ("%d", signed(-5), "-5"),
        ("%i", 0xffff_ffff, "-1"),
        ("%ld", 0xffff_ffff, "4294967295"),
        ("%hd", 0x1ffff, "-1"),
        ("%hhu", 0x1ff, "255"),
        ("%llu", u64::MAX, "18446744073709551615"),
        ("%lld", 1 << 63, "-9223372036854775808"),
        ("%x", 0xfff_ffff_ffff, "ffffffff"),
        ("%#lx", 0xabc, "0xabc"),
        ("%#x", 0, "0"),
        ("%X", 0xabc, "ABC"),
        ("%#o", 8, "010"),
        ("%p", 0x1000, "0x1000"),
        ("%c", 0x1_0041, "A"),
        ("%5d|", 42, "   42|"),
        ("%-5d|", 42, "42   |"),
        ("%05d|", signed(-42), "-0042|"),
        ("%+d", 42, "+42"),
        ("% d", 42, " 42"),
        ("%.4x", 0xab, "00ab"),
        ("%08.4x|", 0xab, "    00ab|"),
        ("%zu%%", 7, "7%"),
        ("%s", 0x1000, "ab.\ncd"),
        ("%.1s", 0x1000, "a"),
        ("%4.1s", 0x1000, "   a"),
        ("\\t\\101\\\\\\n%d", 1, "\tA\\\n1"),
    ] {
        assert_eq!(printed(format, &[argument]), expected, "{format}");
    }
    assert_eq!(printed("%d then %d\\n", &[1, 2]), "1 then 2\n");
    assert_eq!(printed("plain", &[]), "plain");
}

#[test]
fn formats_that_cannot_be_printed_are_refused() {
    let refused = |format: &str, arguments: &[u64]| match Program::new(&printf(format, arguments)) {
        Err(ProgramError::Format { source, .. }) => source,
        other => panic!("{other:?}"),
    };
    for format in ["%f", "%g", "%ls", "%lc", "%n", "%", "%*d", "%q"] {
        assert_eq!(refused(format, &[1]), FormatError::Conversion, "{format}");
    }
    for format in ["\\q", "\\"] {
        assert_eq!(refused(format, &[]), FormatError::Escape);
    }
    let arguments = |wanted, given| FormatError::Arguments { wanted, given };
    assert_eq!(refused("%d", &[]), arguments(1, 0));
    assert_eq!(refused("", &[1]), arguments(0, 1));
    let unterminated = Program::new(&[0x34, 0, 0, 1, b'a']);
    assert!(matches!(
        unterminated,
        Err(ProgramError::Format {
            source: FormatError::Unterminated,
            ..
        })
    ));
}

#[test]
fn what_is_printed_is_bounded() {
    let wide = printf("%999999999999999999999d", &[1]);
    let (result, text) = run_on(&mut toy(&[]), &wide);
    assert_eq!(result, Ok(None));
    assert_eq!(text.len(), 4096);
    let twice = printf("%4000d%4000d", &[1, 2]);
    let (result, text) = run_on(&mut toy(&[]), &twice);
    assert_eq!(result, Err(RunError::TooMuchOutput));
    assert_eq!(text.len(), 4096);
    // A string without an end is cut, and one that leaves memory is an error.
    let (result, text) = run_on(&mut toy(&[b'a'; 5000]), &printf("%s", &[0x1000]));
    assert_eq!((result, text.len()), (Ok(None), 1024));
    let (result, _) = run_on(&mut toy(b"abc"), &printf("%s", &[0x1000]));
    assert_eq!(result, Err(RunError::Memory(0x1003)));
}

proptest! {
    #[test]
    fn any_bytecode_ends_within_its_limits(
        code in proptest::collection::vec(
            prop_oneof![0x02u8..0x36, Just(0u8), 0u8..9, any::<u8>()], 0..60),
        steps in 0u32..300,
    ) {
        if let Ok(program) = Program::new(&code) {
            let mut limits = Limits { steps, output: 100 };
            let mut output = Vec::new();
            let result = program.run(&mut toy(b"text\0and more"), &mut limits, &mut output);
            prop_assert!(limits.steps <= steps);
            prop_assert_eq!(output.len() + limits.output, 100);
            // The same again.
            let mut again = Limits { steps, output: 100 };
            let second = program.run(&mut toy(b"text\0and more"), &mut again, &mut Vec::new());
            prop_assert_eq!(result, second);
        }
    }

    #[test]
    fn any_format_is_refused_or_printed(
        format in "[%a0-9dxsc.lh#+ \\\\-]{0,24}",
        arguments in proptest::collection::vec(any::<u64>(), 0..4),
    ) {
        if let Ok(program) = Program::new(&printf(&format, &arguments)) {
            let mut output = Vec::new();
            let _ = program.run(&mut toy(b"x\0"), &mut Limits::HIT.clone(), &mut output);
            prop_assert!(output.len() <= Limits::HIT.output);
        }
    }

    #[test]
    fn sums_and_comparisons_agree_with_wide_arithmetic(left: u64, right: u64) {
        let sum = (u128::from(left) + u128::from(right)) & u128::from(u64::MAX);
        prop_assert_eq!(u128::from(value(&[left, right], &[0x02])), sum);
        let less = left.cast_signed() < right.cast_signed();
        prop_assert_eq!(value(&[left, right], &[0x14]), u64::from(less));
        // The low half, as a number with a sign.
        let half = i64::try_from(i128::from(left) << 96 >> 96).unwrap();
        prop_assert_eq!(value(&[left], &[0x16, 32]), half.cast_unsigned());
    }
}
