//! Reading KVM's 8259A: does it assert INTR?

use kvm_bindings::kvm_pic_state;

/// The master's input to which the slave is wired.
const CASCADE: u8 = 1 << 2;

/// Whether the master 8259A asserts INTR. The slave's request is in its IRR already, as bit 2.
pub(super) fn asserts_intr(master: &kvm_pic_state) -> bool {
    // 8259A data sheet, "Interrupt mask register".
    let requests = master.irr & !master.imr;
    let mut in_service = master.isr;
    if master.special_mask != 0 {
        // "Special mask mode": a masked level no longer inhibits the others.
        in_service &= !master.imr;
    }
    if master.special_fully_nested_mode != 0 {
        // "Special fully nested mode": the slave may interrupt its own service.
        in_service &= !CASCADE;
    }
    rank(requests, master.priority_add) < rank(in_service, master.priority_add)
}

/// The rank of the most urgent level, 0 to 7, or 8 for none. `priority_add` is the level that has
/// rank 0 ("Automatic rotation").
fn rank(levels: u8, priority_add: u8) -> u32 {
    levels
        .rotate_right(u32::from(priority_add & 7))
        .trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pic(irr: u8, imr: u8, isr: u8) -> kvm_pic_state {
        kvm_pic_state {
            irr,
            imr,
            isr,
            ..Default::default()
        }
    }

    #[test]
    fn an_unmasked_request_asserts_and_a_masked_one_does_not() {
        assert!(!asserts_intr(&pic(0, 0, 0)));
        assert!(asserts_intr(&pic(0x80, 0x7f, 0)));
        assert!(!asserts_intr(&pic(0x80, 0x80, 0)));
    }

    #[test]
    fn only_a_more_urgent_request_interrupts_service() {
        assert!(asserts_intr(&pic(0b0000_0001, 0, 0b0000_0010)));
        assert!(!asserts_intr(&pic(0b0000_0010, 0, 0b0000_0010)));
        assert!(!asserts_intr(&pic(0b0000_0100, 0, 0b0000_0010)));
    }

    #[test]
    fn rotation_moves_the_top_of_the_order() {
        // IRQ 3 has rank 0, so IRQ 2 has rank 7.
        let mut state = pic(0b0000_0100, 0, 0b0000_1000);
        state.priority_add = 3;
        assert!(!asserts_intr(&state));
        state = pic(0b0000_1000, 0, 0b0000_0100);
        state.priority_add = 3;
        assert!(asserts_intr(&state));
    }

    #[test]
    fn special_modes_lift_the_inhibition() {
        let mut state = pic(0b0000_0010, 0b0000_0001, 0b0000_0001);
        assert!(!asserts_intr(&state));
        state.special_mask = 1;
        assert!(asserts_intr(&state));

        let mut state = pic(0b0000_0100, 0, 0b0000_0100);
        assert!(!asserts_intr(&state));
        state.special_fully_nested_mode = 1;
        assert!(asserts_intr(&state));
    }
}
