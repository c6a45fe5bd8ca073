//! The views with 32-bit registers, and linear addresses.

use super::*;

const NARROW: View = View::I386;

/// Names and sizes in bits: copied from QEMU's i386-32bit.xml, not from the table under test.
const QEMU_I386: &[(&str, usize)] = &[
    ("eax", 32),
    ("ecx", 32),
    ("edx", 32),
    ("ebx", 32),
    ("esp", 32),
    ("ebp", 32),
    ("esi", 32),
    ("edi", 32),
    ("eip", 32),
    ("eflags", 32),
    ("cs", 32),
    ("ss", 32),
    ("ds", 32),
    ("es", 32),
    ("fs", 32),
    ("gs", 32),
    ("fs_base", 32),
    ("gs_base", 32),
    ("k_gs_base", 32),
    ("cr0", 32),
    ("cr2", 32),
    ("cr3", 32),
    ("cr4", 32),
    ("cr8", 32),
    ("efer", 32),
    ("st0", 80),
    ("st1", 80),
    ("st2", 80),
    ("st3", 80),
    ("st4", 80),
    ("st5", 80),
    ("st6", 80),
    ("st7", 80),
    ("fctrl", 32),
    ("fstat", 32),
    ("ftag", 32),
    ("fiseg", 32),
    ("fioff", 32),
    ("foseg", 32),
    ("fooff", 32),
    ("fop", 32),
    ("xmm0", 128),
    ("xmm1", 128),
    ("xmm2", 128),
    ("xmm3", 128),
    ("xmm4", 128),
    ("xmm5", 128),
    ("xmm6", 128),
    ("xmm7", 128),
    ("mxcsr", 32),
];

fn narrow(name: &str) -> RegisterId {
    NARROW.register_named(name).unwrap()
}

fn get_narrow(file: &RegisterFile, name: &str) -> Option<u128> {
    let mut value = [0; RegisterId::LONGEST];
    narrow(name).read(file, &mut value)?;
    value.first_chunk().map(|low| u128::from_le_bytes(*low))
}

fn set_narrow(file: &mut RegisterFile, name: &str, value: u32) -> Result<(), WriteError> {
    narrow(name).write(file, &Ram::new(0), &value.to_le_bytes())
}

/// Real mode at CS:IP = 7000:0010, SS:SP = 9000:fffe.
fn real_mode() -> RegisterFile {
    let mut file = RegisterFile::default();
    file.special.cr0 = 0x10;
    let segment = |selector: u16| Segment {
        selector,
        base: u64::from(selector) << 4,
        limit: 0xffff,
        ..segment_real()
    };
    file.special.cs = segment(0x7000);
    file.special.ss = segment(0x9000);
    file.core.rip = 0x10;
    file.core.rsp = 0xaaaa_fffe;
    file.core.rflags = 2;
    file
}

#[test]
fn names_order_and_sizes_are_those_of_qemu_for_i386() {
    for view in [View::I8086, View::I386] {
        assert_eq!(view.registers_in_g().count(), QEMU_I386.len());
        for (number, (name, bits)) in QEMU_I386.iter().enumerate() {
            let id = view.register(number).unwrap();
            assert_eq!((id.number(), id.name()), (number, *name));
            assert_eq!(id.size_bytes() * 8, *bits, "{name}");
        }
        assert_eq!(view.register(view.count()), None);
        assert_eq!(view.register(usize::MAX), None);
        assert_eq!(view.register_named("rax"), None);
        let bytes: usize = QEMU_I386.iter().map(|(_, bits)| bits / 8).sum();
        assert_eq!(view.total_bytes(), bytes);
        assert!(view.total_bytes() <= View::LONGEST);
        let expedited: Vec<usize> = view.expedited().map(RegisterId::number).collect();
        assert_eq!(expedited, Vec::from_iter(0..=10));
    }
}

#[test]
fn registers_that_fit_are_shown_and_written() {
    let mut file = protected_mode();
    let core = &mut file.core;
    (core.rax, core.rcx, core.rdx, core.rbx) = (0xa0, 0xc1, 0xd2, 0xb3);
    (core.rsp, core.rbp, core.rsi, core.rdi) = (0x54, 0xb5, 0x56, 0xd7);
    core.rip = 0x1_2345;
    for (name, value) in [
        ("eax", 0xa0),
        ("ecx", 0xc1),
        ("edx", 0xd2),
        ("ebx", 0xb3),
        ("esp", 0x54),
        ("ebp", 0xb5),
        ("esi", 0x56),
        ("edi", 0xd7),
        ("eip", 0x1_2345),
        ("cs", 0x08),
    ] {
        assert_eq!(get_narrow(&file, name), Some(value), "{name}");
        if name != "cs" {
            set_narrow(&mut file, name, 0x8000_0001).unwrap();
            assert_eq!(get_narrow(&file, name), Some(0x8000_0001), "{name}");
        }
    }
    assert_eq!((file.core.rcx, file.core.rdi), (0x8000_0001, 0x8000_0001));
}

#[test]
fn upper_halves_do_not_exist_outside_64_bit_mode_and_are_kept() {
    let mut file = protected_mode();
    file.core.rax = 0xdead_beef_0000_0001;
    assert_eq!(get_narrow(&file, "eax"), Some(1));
    set_narrow(&mut file, "eax", 7).unwrap();
    assert_eq!(file.core.rax, 0xdead_beef_0000_0007);
}

#[test]
fn what_a_narrow_register_cannot_hold_is_unavailable_and_not_written() {
    let mut file = long_mode();
    for name in [
        "eax",
        "esp",
        "edi",
        "cr2",
        "fs_base",
        "gs_base",
        "k_gs_base",
    ] {
        assert_eq!(get_narrow(&file, name), None, "{name}");
        assert_eq!(
            set_narrow(&mut file, name, 5),
            Err(WriteError::TooNarrow { register: name })
        );
    }
    // GDB cannot do without it.
    assert_eq!(get_narrow(&file, "eip"), Some(0x1a10));
    assert!(set_narrow(&mut file, "eip", 5).is_err());
    // What is shown may be written back.
    set_narrow(&mut file, "eip", 0x1a10).unwrap();
    assert!(
        set_narrow(&mut file, "eax", 0xa00).is_err(),
        "half of it is not shown"
    );
    assert_eq!(file, long_mode());
    // The others are as they are.
    assert_eq!(get_narrow(&file, "cr3"), Some(0x12_9000));
    file.core.rax = 0x44;
    assert_eq!(get_narrow(&file, "eax"), Some(0x44));
    set_narrow(&mut file, "eax", 0x4_0000).unwrap();
    assert_eq!(file.core.rax, 0x4_0000);
}

#[test]
fn all_registers_of_a_view_that_is_too_narrow_are_not_written_at_once() {
    let mut file = long_mode();
    let mut data = Vec::new();
    read_all(NARROW, &file, &mut data);
    assert_eq!(data.len(), NARROW.total_bytes());
    assert!(matches!(
        write_all(NARROW, &mut file, &Ram::new(0), &data),
        Err(WriteError::TooNarrow { .. })
    ));
    assert_eq!(file, long_mode());
    // What fits goes back, and changes nothing.
    let mut file = real_mode();
    let mut data = Vec::new();
    read_all(NARROW, &file, &mut data);
    write_all(NARROW, &mut file, &Ram::new(0), &data).unwrap();
    assert_eq!(file, real_mode());
    for length in [0, data.len() - 1, View::X86_64.total_bytes()] {
        assert!(write_all(NARROW, &mut file, &Ram::new(0), &vec![0; length]).is_err());
    }
}

#[test]
fn pc_and_sp_are_linear_where_their_segments_have_a_base() {
    let mut file = real_mode();
    assert_eq!(get_narrow(&file, "eip"), Some(0x7_0010));
    assert_eq!(get_narrow(&file, "esp"), Some(0x9_fffe), "SP has 16 bits");
    assert_eq!(get(&file, "rip"), 0x7_0010);
    assert_eq!(get(&file, "rsp"), 0x9_fffe);

    set_narrow(&mut file, "eip", 0x7_c000).unwrap();
    assert_eq!(file.core.rip, 0xc000);
    set_narrow(&mut file, "esp", 0x9_1000).unwrap();
    assert_eq!(file.core.rsp, 0xaaaa_1000, "the bits beside SP stay");
    file.special.ss.default_big = true;
    assert_eq!(get(&file, "rsp"), 0x9_0000 + 0xaaaa_1000);
    set(&mut file, "rsp", 0x9_2000).unwrap();
    assert_eq!(file.core.rsp, 0x2000);
}

#[test]
fn a_linear_address_outside_the_segment_is_refused() {
    let mut file = real_mode();
    for (name, value) in [
        ("eip", 0x8_0000),
        ("eip", 0x6_ffff),
        ("esp", 0xa_0000),
        ("esp", 0),
    ] {
        let error = set_narrow(&mut file, name, value).unwrap_err();
        assert!(error.to_string().contains("segment"), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    assert!(set(&mut file, "rip", 0x1_0007_0010).is_err());
    assert!(set(&mut file, "rsp", 0x1_0009_0000).is_err());
    assert_eq!(file, real_mode());
}

#[test]
fn linear_addresses_wrap_at_32_bits() {
    // After a reset: CS.base + IP is the reset vector.
    let mut file = real_mode();
    (file.special.cs.base, file.core.rip) = (0xffff_0000, 0xfff0);
    assert_eq!(get(&file, "rip"), 0xffff_fff0);
    file.special.cs.limit = 0xffff_ffff;
    file.core.rip = 0x2_0000;
    assert_eq!(get(&file, "rip"), 0x1_0000);
    set(&mut file, "rip", 0x7c00).unwrap();
    assert_eq!(get(&file, "rip"), 0x7c00);
}

#[test]
fn a_g_packet_with_another_cs_puts_the_pc_where_it_says() {
    for view in View::ALL {
        let mut file = real_mode();
        let mut wanted = file.clone();
        wanted.special.cs.selector = 0x6f00;
        (wanted.special.cs.base, wanted.core.rip) = (0x6_f000, 0x1010);
        let mut data = Vec::new();
        read_all(view, &wanted, &mut data);
        write_all(view, &mut file, &Ram::new(0), &data).unwrap();
        // The linear address is the same, and so the offset is not.
        assert_eq!((file.special.cs.base, file.core.rip), (0x6_f000, 0x1010));
        assert_eq!(file.core.rsp, real_mode().core.rsp);
    }
}

proptest! {
    #[test]
    fn any_narrow_write_is_taken_or_refused_whole(
        number in 0usize..100,
        value in proptest::collection::vec(any::<u8>(), 0..20),
        long in any::<bool>(),
    ) {
        let before = if long { long_mode() } else { real_mode() };
        let mut file = before.clone();
        let Some(id) = NARROW.register(number) else {
            prop_assert!(number >= 84);
            return Ok(());
        };
        match id.write(&mut file, &Ram::new(16), &value) {
            Err(_) => prop_assert_eq!(file, before),
            Ok(()) => {
                let mut shown = [0; RegisterId::LONGEST];
                let length = id.read(&file, &mut shown);
                prop_assert_eq!(length, Some(value.len()), "what was written fits");
                let ignores = ["eflags", "ftag", "cr0", "efer", "dr6", "dr7"].contains(&id.name());
                prop_assert!(ignores || shown[..value.len()] == value[..]);
            }
        }
    }
}
