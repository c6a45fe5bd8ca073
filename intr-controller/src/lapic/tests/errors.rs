//! SDM 3A, "Error Handling", "Valid Interrupt Vectors".

use super::*;

const SEND_ILLEGAL: u32 = 1 << 5;
const RECEIVE_ILLEGAL: u32 = 1 << 6;
const ILLEGAL_REGISTER: u32 = 1 << 7;

fn esr(lapic: &mut Lapic) -> u32 {
    let _ = write(lapic, ESR, 0);
    read(lapic, ESR)
}

#[test]
fn esr_shows_errors_only_after_a_write() {
    let mut lapic = xapic();
    let _ = lapic.accept(&edge(0x0f));
    assert_eq!(read(&mut lapic, ESR), 0);
    let _ = write(&mut lapic, ESR, 0);
    assert_eq!(read(&mut lapic, ESR), RECEIVE_ILLEGAL);
    assert_eq!(read(&mut lapic, ESR), RECEIVE_ILLEGAL, "reading keeps it");
    let _ = write(&mut lapic, ESR, 0);
    assert_eq!(read(&mut lapic, ESR), 0, "the next write clears it");
}

#[test]
fn the_value_written_to_esr_does_not_matter_in_xapic_mode() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, ESR, u32::MAX);
    assert_eq!(read(&mut lapic, ESR), 0);
}

#[test]
fn vectors_below_16_are_received_as_errors_and_not_delivered() {
    for number in 0..16 {
        let mut lapic = xapic();
        assert_eq!(
            lapic.accept(&edge(number)),
            Acceptance::Refused(Refusal::IllegalVector)
        );
        assert_eq!(take(&mut lapic), None);
        assert_eq!(esr(&mut lapic), RECEIVE_ILLEGAL);
    }
}

#[test]
fn an_ipi_with_an_illegal_vector_is_not_sent() {
    for number in 0..16 {
        let mut lapic = xapic();
        assert_eq!(write(&mut lapic, ICR, 0x4000 | number), Effect::None);
        assert_eq!(esr(&mut lapic), SEND_ILLEGAL);
        assert_eq!(read(&mut lapic, ICR), 0x4000 | number, "ICR keeps it");
    }
}

#[test]
fn the_vector_of_nmi_init_and_sipi_is_not_checked() {
    for mode in [0x400, 0x500, 0x600] {
        let mut lapic = xapic();
        assert!(matches!(
            write(&mut lapic, ICR, 0x4000 | mode),
            Effect::Ipi(_)
        ));
        assert_eq!(esr(&mut lapic), 0);
    }
}

#[test]
fn reserved_registers_are_errors_in_xapic_mode() {
    for offset in [
        0x00, 0x10, 0x40, 0x70, 0x290, 0x2e0, LVT_CMCI, 0x3a0, 0x3d0, 0x3f0, 0x400, 0xff0,
    ] {
        let mut lapic = xapic();
        assert_eq!(read(&mut lapic, offset), 0);
        assert_eq!(esr(&mut lapic), ILLEGAL_REGISTER, "read {offset:#x}");
        let _ = write(&mut lapic, offset, 1);
        assert_eq!(esr(&mut lapic), ILLEGAL_REGISTER, "write {offset:#x}");
    }
}

#[test]
fn errors_gather_until_the_write() {
    let mut lapic = xapic();
    let _ = lapic.accept(&edge(1));
    let _ = read(&mut lapic, 0x00);
    let _ = write(&mut lapic, ICR, 0x4001);
    assert_eq!(
        esr(&mut lapic),
        SEND_ILLEGAL | RECEIVE_ILLEGAL | ILLEGAL_REGISTER
    );
}

#[test]
fn the_error_interrupt_is_raised_once_per_write_of_esr() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, LVT_ERROR, 0xfe);
    let _ = read(&mut lapic, 0x00);
    assert_eq!(take_vector(&mut lapic), Some(0xfe));
    let _ = write(&mut lapic, EOI, 0);
    let _ = read(&mut lapic, 0x00);
    let _ = lapic.accept(&edge(1));
    assert_eq!(take(&mut lapic), None, "not armed again");
    let _ = write(&mut lapic, ESR, 0);
    let _ = read(&mut lapic, 0x00);
    assert_eq!(take_vector(&mut lapic), Some(0xfe));
}

#[test]
fn a_masked_error_entry_raises_nothing() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, LVT_ERROR, MASKED | 0xfe);
    let _ = read(&mut lapic, 0x00);
    assert_eq!(take(&mut lapic), None);
    assert_eq!(esr(&mut lapic), ILLEGAL_REGISTER);
}

#[test]
fn an_error_entry_with_an_illegal_vector_does_not_recurse() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, LVT_ERROR, 0x05);
    let _ = read(&mut lapic, 0x00);
    assert_eq!(take(&mut lapic), None);
    assert_eq!(esr(&mut lapic), ILLEGAL_REGISTER | RECEIVE_ILLEGAL);
}

#[test]
fn a_timer_entry_with_an_illegal_vector_is_an_error() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, LVT_TIMER, 0x0e);
    let _ = write(&mut lapic, TMICT, 10);
    lapic.advance(at(1000));
    assert_eq!(take(&mut lapic), None);
    assert_eq!(esr(&mut lapic), RECEIVE_ILLEGAL);
}

#[test]
fn the_spurious_vector_may_be_illegal() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, SVR, 0x10f);
    assert_eq!(lapic.acknowledge(), Acknowledge::Spurious(0x0f));
    assert_eq!(esr(&mut lapic), 0);
}
