//! For any guest: no panic, and nothing but bit 8 changes.

use proptest::prelude::*;

use super::*;

fn any_registers() -> impl Strategy<Value = RegisterFile> {
    (
        any::<[u16; 4]>(),
        any::<[u64; 8]>(),
        0u8..4,
        any::<[bool; 6]>(),
        proptest::collection::vec(any::<u8>(), 24),
    )
        .prop_map(|(selectors, values, mode, flags, _)| {
            let memory = ram();
            let mut file = match mode {
                0 => real(&memory, &[]),
                1 => protected(&memory, &[]),
                2 => long(&memory, &[]),
                _ => user(&memory, &[]),
            };
            let wild = flags[0];
            let take = |value: u64| if wild { value } else { value & 0x1_ffff };
            file.core.rip = if flags[1] { CODE } else { take(values[0]) };
            file.core.rsp = take(values[1]);
            file.core.rax = take(values[2]);
            file.core.rcx = take(values[3]);
            file.core.r11 = values[4];
            file.core.rflags = values[5] & 0x3f_7fd7 | 2;
            if flags[2] {
                file.special.ss.selector = selectors[0];
                file.special.ss.base = take(values[6]);
                file.special.cs.base = take(values[7]);
                file.special.tr.base = take(values[6]);
                file.special.gdtr.base = take(values[7]);
                file.special.gdtr.limit = selectors[1];
            }
            if flags[3] {
                file.special.cs.default_big = flags[4];
                file.special.ss.default_big = flags[5];
                file.special.cr3 = take(values[6]);
            }
            file
        })
}

/// Bytes that are often interesting.
fn any_code() -> impl Strategy<Value = Vec<u8>> {
    let interesting = prop_oneof![
        Just(vec![0x9c]),
        Just(vec![0x9d]),
        Just(vec![0xcf]),
        Just(vec![0xcd, 0x80]),
        Just(vec![0x0f, 0x05]),
        Just(vec![0x8e, 0xd0, 0x9c]),
        Just(vec![0x17, 0xcf]),
        Just(vec![0xf4]),
        Just(vec![0xf3, 0xa4]),
        Just(vec![0xff, 0x18]),
        Just(vec![0xcb]),
        Just(vec![0xeb, 0xfe]),
    ];
    (
        proptest::option::of(interesting),
        proptest::collection::vec(any::<u8>(), 15),
    )
        .prop_map(|(first, rest)| first.into_iter().flatten().chain(rest).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_step_of_any_guest_is_settled_and_only_bit_8_is_mended(
        before in any_registers(),
        after in any_registers(),
        code in any_code(),
        noise in proptest::collection::vec((0u64..0x1_fff8, any::<u64>()), 0..32),
        how in 0u8..4,
        shift in -16i64..17,
    ) {
        let memory = ram();
        // The page tables of the long mode guests.
        long(&memory, &[]);
        memory.put(CODE, &code);
        for (at, value) in noise {
            memory.put_u64(at, value);
        }
        let plan = StepPlan::new(&before, &memory);
        prop_assert!(plan.code().len() <= 15);
        let next = plan.next_rip();
        let after = match how {
            0 => after,
            1 => moved(&before, next),
            2 => {
                let mut after = moved(&before, next);
                after.core.rsp = after.core.rsp.wrapping_add_signed(shift);
                after
            }
            _ => before.clone(),
        };
        prop_assert_eq!(memory.writes(), 0);
        let untouched = memory.snapshot();
        let settlement = plan.settle(&after, &memory);
        prop_assert_eq!(&memory.snapshot(), &untouched);
        if let Some(r11) = settlement.r11 {
            prop_assert_eq!(r11 ^ after.core.r11, TF);
        }
        for mend in &settlement.mends {
            let old = memory.get(mend.address.0, 1)[0];
            prop_assert_eq!(old ^ mend.value, 1);
        }
        prop_assert!(settlement.mend(&memory));
        let changed = memory.snapshot().iter().zip(&untouched).filter(|(new, old)| new != old).count();
        prop_assert_eq!(changed, settlement.mends.len());
        if settlement.progress == Progress::NotStarted {
            prop_assert_eq!(settlement.guest_tf, before.core.rflags & TF != 0);
            prop_assert!(settlement.mends.is_empty() && !plan.may_stay());
        }
    }
}
