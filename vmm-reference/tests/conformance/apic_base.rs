//! IA32_APIC_BASE and its transitions (SDM 3A, "x2APIC State Transitions"; "Relocating the Local
//! APIC Registers").

use crate::prelude::*;

use super::MODE;

const DISABLED: u64 = APIC_PAGE | APIC_BASE_BSP;
const XAPIC: u64 = DISABLED | APIC_BASE_EN;
const X2APIC: u64 = XAPIC | APIC_BASE_X2;
const ILLEGAL: u64 = DISABLED | APIC_BASE_X2;

/// Writes these values, starting in xAPIC mode. Returns whether each was accepted.
fn walk(values: &[u64]) -> Vec<bool> {
    let mut p = Program::new(MODE);
    let mut steps = Vec::new();
    for value in values {
        let write = p.wrmsr(APIC_BASE, *value);
        let read = p.rdmsr(APIC_BASE);
        steps.push((*value, write, read));
    }
    let log = p.run();
    let mut current = XAPIC;
    let mut taken = Vec::new();
    for (value, write, read) in steps {
        let ok = !log.faults(write);
        if ok {
            current = value;
        }
        assert_eq!(log[read], current, "what faults changes nothing");
        taken.push(ok);
    }
    taken
}

#[test]
fn xapic_to_x2apic_is_allowed() {
    assert_eq!(walk(&[X2APIC]), [true]);
}

#[test]
fn x2apic_to_xapic_faults() {
    assert_eq!(walk(&[X2APIC, XAPIC]), [true, false]);
}

#[test]
fn x2apic_can_be_disabled() {
    assert_eq!(walk(&[X2APIC, DISABLED, XAPIC]), [true, true, true]);
}

#[test]
fn xapic_can_be_disabled_and_enabled() {
    assert_eq!(walk(&[DISABLED, XAPIC, DISABLED]), [true, true, true]);
}

#[test]
fn disabled_to_x2apic_faults() {
    assert_eq!(walk(&[DISABLED, X2APIC]), [true, false]);
}

#[test]
fn x2apic_without_enable_faults_in_every_mode() {
    assert_eq!(walk(&[ILLEGAL]), [false]);
    assert_eq!(walk(&[X2APIC, ILLEGAL]), [true, false]);
    assert_eq!(walk(&[DISABLED, ILLEGAL]), [true, false]);
}

#[test]
fn the_same_mode_again_is_allowed() {
    assert_eq!(walk(&[XAPIC, X2APIC, X2APIC]), [true, true, true]);
}

#[test]
fn reserved_bits_fault() {
    for reserved in [1, 1 << 7, 1 << 9, 1 << 62] {
        assert_eq!(walk(&[XAPIC | reserved]), [false], "{reserved:#x}");
    }
}

#[test]
fn a_disabled_apic_is_not_in_cpuid() {
    let mut p = Program::new(MODE);
    let before = p.cpuid(1);
    p.wrmsr(APIC_BASE, DISABLED);
    let during = p.cpuid(1);
    p.wrmsr(APIC_BASE, XAPIC);
    let after = p.cpuid(1);
    let log = p.run();
    // EDX[9], in the high half of the second result.
    let has_apic = |leaf| log.second(leaf) >> 41 & 1 == 1;
    assert!(has_apic(before));
    assert!(!has_apic(during));
    assert!(has_apic(after));
}

#[test]
fn mmio_does_not_reach_a_disabled_apic() {
    let mut p = Program::new(MODE);
    p.wrmsr(APIC_BASE, DISABLED);
    let read = p.lapic_read(VERSION);
    p.lapic_write(TPR, 0x20);
    p.wrmsr(APIC_BASE, XAPIC);
    let tpr = p.lapic_read(TPR);
    let log = p.run();
    assert_eq!(log[read], 0xffff_ffff);
    assert_eq!(log[tpr], 0);
}

#[test]
fn the_registers_of_a_disabled_apic_fault() {
    let mut p = Program::new(MODE);
    p.wrmsr(APIC_BASE, DISABLED);
    let read = p.rdmsr(x2(VERSION));
    let write = p.wrmsr(X2_ICR, u64::from(ICR_SELF | ICR_ASSERT | 0x41));
    let log = p.run();
    assert!(log.faults(read) && log.faults(write));
}

#[test]
fn nothing_reaches_a_disabled_apic() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.wrmsr(APIC_BASE, DISABLED);
    let taken = p.msi(APIC_PAGE, 0x41);
    p.rte_edge(20, 0x42);
    p.pulse(20);
    p.wrmsr(APIC_BASE, XAPIC);
    p.enable_lapic();
    p.window();
    let log = p.run();
    assert_eq!(log[taken], 0);
    assert_eq!(log.vectors(), NOTHING);
}

/// SDM 3A, "Enabling or Disabling the Local APIC": they "may be lost". Neither KVM's are (lapic.c,
/// `__kvm_apic_set_base`) nor the emulated one.
#[test]
fn the_registers_survive_a_disabled_apic() {
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.lapic_write(LDR, 0x0100_0000);
    p.lapic_write(LVT_ERROR, 0x45);
    p.wrmsr(APIC_BASE, DISABLED);
    p.wrmsr(APIC_BASE, XAPIC);
    let values = [SVR, LDR, LVT_ERROR].map(|register| p.lapic_read(register));
    let log = p.run();
    assert_eq!(values.map(|value| log[value]), [0x1ff, 0x0100_0000, 0x45]);
}

#[test]
fn the_registers_can_be_moved() {
    const ELSEWHERE: u64 = 0xd000_0000;
    let mut p = Program::new(MODE);
    p.enable_lapic();
    p.lapic_write(TPR, 0x20);
    p.wrmsr(APIC_BASE, ELSEWHERE | APIC_BASE_BSP | APIC_BASE_EN);
    let moved = p.read(Size::Dword, ELSEWHERE + TPR);
    p.write(Size::Dword, ELSEWHERE + TPR, 0x30);
    p.lapic_write(TPR, 0x40);
    p.wrmsr(APIC_BASE, XAPIC);
    let back = p.lapic_read(TPR);
    let log = p.run();
    assert_eq!(log[moved], 0x20);
    assert_eq!(log[back], 0x30);
}

#[test]
fn in_a_disabled_apic_cr8_still_holds_a_value() {
    let mut p = Program::new(MODE);
    p.wrmsr(APIC_BASE, DISABLED);
    p.write_cr8(0x5);
    let cr8 = p.read_cr8();
    let log = p.run();
    assert_eq!(log[cr8], 5);
}
