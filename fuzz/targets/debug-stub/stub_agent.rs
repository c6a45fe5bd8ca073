//! Any agent bytecode: it is refused, or it ends within its limits, reads what it may and nothing else, and gives
//! the same again.
//!
//! Input: a byte of steps, in hundreds; a byte of output; then the bytecode. Registers below 32 exist, and memory
//! from 0x1000 to 0x1fff.
#![no_main]

use debug_stub::agent::{Limits, Machine, Program, ProgramError};
use fuzz::Choices;
use libfuzzer_sys::fuzz_target;

/// Counts what it is asked for.
struct Guest {
    reads: u32,
}

impl Machine for Guest {
    fn register(&mut self, number: u16) -> Option<u64> {
        self.reads += 1;
        (number < 32).then(|| u64::from(number) << 7)
    }

    fn load(&mut self, address: u64, size: usize) -> Option<u64> {
        assert!(matches!(size, 1 | 2 | 4 | 8), "{size}");
        self.reads += 1;
        let end = address.checked_add(size as u64)?;
        (address >= 0x1000 && end <= 0x2000).then(|| {
            let value = address.wrapping_mul(0x0101_0101_0101_0101);
            value & (u64::MAX >> (64 - 8 * size))
        })
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Choices::new(data);
    let limits = Limits {
        steps: u32::from(input.byte()) * 100,
        output: usize::from(input.byte()) * 16,
    };
    let code = data.get(2..).unwrap_or_default();
    let program = match Program::new(code) {
        Ok(program) => program,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert_eq!(
                matches!(error, ProgramError::TooLong(_)),
                code.len() > Program::LONGEST
            );
            return;
        }
    };
    assert_eq!(program.size(), code.len());
    let run = || {
        let mut guest = Guest { reads: 0 };
        let (mut left, mut output) = (limits, Vec::new());
        let result = program.run(&mut guest, &mut left, &mut output);
        assert!(guest.reads <= limits.steps, "a read costs a step");
        assert_eq!(output.len() + left.output, limits.output);
        (result, output)
    };
    assert_eq!(run(), run());
});
