//! The 8259A pair's state from and to `struct kvm_pic_state`.
//!
//! Differences that a conversion bridges: KVM has one register for edges and levels, pulses the
//! master's input 2 whenever the slave wants something, and has neither LTIM nor SNGL nor requests
//! that fell. A request that fell on the master is lost with the move, as KVM would have lost it;
//! one on the slave stays a spurious interrupt.

use kvm_bindings::kvm_pic_state;

use super::{FromKvmError, Part, ToKvmError};
use crate::pic::{InitStep, Pic8259State, PicState};

/// The master's input from the slave.
const CASCADE: u8 = 1 << 2;

impl PicState {
    /// From what `KVM_GET_IRQCHIP` gives for `KVM_IRQCHIP_PIC_MASTER` and `_SLAVE`.
    ///
    /// # Errors
    /// If a field has a value that a chip cannot have, with its name.
    pub fn from_kvm(master: &kvm_pic_state, slave: &kvm_pic_state) -> Result<Self, FromKvmError> {
        let master = chip_from_kvm(Part("master."), master, 0xf8)?;
        let slave = chip_from_kvm(Part("slave."), slave, 0xde)?;
        let int = slave.slave_int();
        let wired = Pic8259State {
            lines: if int {
                master.lines | CASCADE
            } else {
                master.lines & !CASCADE
            },
            // KVM pulses it again at its next update (i8259.c, `pic_update_irq`).
            latched: if int {
                master.latched | CASCADE
            } else {
                master.latched
            },
            ..master
        };
        Ok(Self {
            version: Self::VERSION,
            master: wired,
            slave,
        })
    }

    /// For `KVM_SET_IRQCHIP`: master, slave.
    ///
    /// # Errors
    /// If the chips are in a mode that KVM's do not have.
    pub fn to_kvm(&self) -> Result<[kvm_pic_state; 2], ToKvmError> {
        let mut master = chip_to_kvm(&self.master, 0xf8)?;
        let slave = chip_to_kvm(&self.slave, 0xde)?;
        master.last_irr &= !CASCADE;
        Ok([master, slave])
    }
}

fn chip_from_kvm(
    part: Part,
    state: &kvm_pic_state,
    elcr_mask: u8,
) -> Result<Pic8259State, FromKvmError> {
    let kvm_pic_state {
        last_irr,
        irr,
        imr,
        isr,
        priority_add,
        irq_base,
        read_reg_select,
        poll,
        special_mask,
        init_state,
        auto_eoi,
        rotate_on_auto_eoi,
        special_fully_nested_mode,
        init4,
        elcr,
        elcr_mask: found_mask,
    } = *state;
    part.require(priority_add <= 7, "priority_add", priority_add, "0 to 7")?;
    part.require(
        irq_base & 7 == 0,
        "irq_base",
        irq_base,
        "a multiple of 8 (ICW2)",
    )?;
    part.require(
        found_mask == elcr_mask,
        "elcr_mask",
        found_mask,
        "0xf8 on the master and 0xde on the slave",
    )?;
    part.require(
        elcr & !elcr_mask == 0,
        "elcr",
        elcr,
        "this input cannot be level-triggered",
    )?;
    let init = match init_state {
        0 => InitStep::Ready,
        1 => InitStep::Icw2,
        2 => InitStep::Icw3,
        3 => InitStep::Icw4,
        _ => return Err(part.refuse("init_state", init_state, "0 to 3")),
    };
    Ok(Pic8259State {
        // Of a level KVM keeps IRR up to date, of an edge the line.
        lines: irr & elcr | last_irr & !elcr,
        latched: irr & !elcr,
        fallen: 0,
        imr,
        isr,
        elcr,
        vector_base: irq_base,
        lowest: (priority_add + 7) % 8,
        init,
        single: false,
        needs_icw4: part.flag("init4", init4)?,
        level_triggered: false,
        auto_eoi: part.flag("auto_eoi", auto_eoi)?,
        rotate_in_auto_eoi: part.flag("rotate_on_auto_eoi", rotate_on_auto_eoi)?,
        special_fully_nested: part.flag("special_fully_nested_mode", special_fully_nested_mode)?,
        special_mask: part.flag("special_mask", special_mask)?,
        read_isr: part.flag("read_reg_select", read_reg_select)?,
        poll: part.flag("poll", poll)?,
    })
}

fn chip_to_kvm(state: &Pic8259State, elcr_mask: u8) -> Result<kvm_pic_state, ToKvmError> {
    let Pic8259State {
        lines,
        latched,
        fallen: _,
        imr,
        isr,
        elcr,
        vector_base,
        lowest,
        init,
        single,
        needs_icw4,
        level_triggered,
        auto_eoi,
        rotate_in_auto_eoi,
        special_fully_nested,
        special_mask,
        read_isr,
        poll,
    } = *state;
    if level_triggered {
        return Err(ToKvmError {
            field: "level_triggered",
            rule: "KVM's 8259A has no LTIM",
        });
    }
    if single && init == InitStep::Icw2 {
        return Err(ToKvmError {
            field: "single",
            rule: "KVM's 8259A always expects ICW3",
        });
    }
    Ok(kvm_pic_state {
        last_irr: lines,
        irr: latched & !elcr | lines & elcr,
        imr,
        isr,
        priority_add: (lowest + 1) % 8,
        irq_base: vector_base,
        read_reg_select: read_isr.into(),
        poll: poll.into(),
        special_mask: special_mask.into(),
        init_state: match init {
            InitStep::Ready => 0,
            InitStep::Icw2 => 1,
            InitStep::Icw3 => 2,
            InitStep::Icw4 => 3,
        },
        auto_eoi: auto_eoi.into(),
        rotate_on_auto_eoi: rotate_in_auto_eoi.into(),
        special_fully_nested_mode: special_fully_nested.into(),
        init4: needs_icw4.into(),
        elcr,
        elcr_mask,
    })
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;
    use crate::pic::{Pic, PicPin};

    fn kvm(elcr_mask: u8) -> kvm_pic_state {
        kvm_pic_state {
            elcr_mask,
            ..Default::default()
        }
    }

    fn pair(master: &kvm_pic_state, slave: &kvm_pic_state) -> Pic {
        let mut pic = Pic::new();
        let state = PicState::from_kvm(master, slave).unwrap();
        pic.restore(&state).unwrap();
        pic
    }

    #[test]
    fn kvms_chip_at_power_on_is_ours() {
        let pic = pair(&kvm(0xf8), &kvm(0xde));
        assert_eq!(pic, Pic::new());
        assert_eq!(pic.save().to_kvm(), Ok([kvm(0xf8), kvm(0xde)]));
    }

    #[test]
    fn every_field_goes_over_and_comes_back() {
        let master = kvm_pic_state {
            last_irr: 0x22,
            irr: 0x21,
            imr: 0x80,
            isr: 0x02,
            priority_add: 3,
            irq_base: 0x38,
            read_reg_select: 1,
            poll: 1,
            special_mask: 1,
            init_state: 3,
            auto_eoi: 1,
            rotate_on_auto_eoi: 1,
            special_fully_nested_mode: 1,
            init4: 1,
            elcr: 0x20,
            elcr_mask: 0xf8,
        };
        let slave = kvm_pic_state {
            imr: 0x41,
            irq_base: 0x70,
            ..kvm(0xde)
        };
        let state = PicState::from_kvm(&master, &slave).unwrap();
        assert_eq!(Pic::new().restore(&state), Ok(()));
        assert_eq!(state.master.lowest, 2);
        assert_eq!(state.master.lines, 0x22);
        assert_eq!(state.master.latched, 0x01);
        assert_eq!(state.to_kvm(), Ok([master, slave]));
    }

    #[test]
    fn a_request_of_the_slave_reaches_the_master() {
        let slave = kvm_pic_state {
            irr: 0x10,
            irq_base: 0x70,
            ..kvm(0xde)
        };
        // KVM has it in the master's IRR already; a state without it is completed.
        for irr in [0x00, 0x04] {
            let mut pic = pair(&kvm_pic_state { irr, ..kvm(0xf8) }, &slave);
            assert!(pic.intr());
            let [master, _] = pic.save().to_kvm().unwrap();
            assert_eq!((master.irr, master.last_irr), (0x04, 0x00));
            assert_eq!(pic.acknowledge().vector, 0x74);
        }
    }

    #[test]
    fn the_masters_request_of_a_slave_that_wants_nothing_is_spurious_as_in_kvm() {
        let master = kvm_pic_state {
            irr: 0x04,
            ..kvm(0xf8)
        };
        let slave = kvm_pic_state {
            irq_base: 0x70,
            ..kvm(0xde)
        };
        let acknowledge = pair(&master, &slave).acknowledge();
        assert_eq!((acknowledge.vector, acknowledge.pin), (0x77, None));
    }

    #[test]
    fn a_glitch_on_the_slave_stays_a_spurious_interrupt_in_kvm() {
        let mut pic = Pic::new();
        let pin = PicPin::new(9).unwrap();
        pic.set_line(pin, true);
        pic.set_line(pin, false);
        let [master, slave] = pic.save().to_kvm().unwrap();
        assert_eq!((master.irr, slave.irr), (0x04, 0x00));
    }

    #[test]
    fn hostile_values_are_refused_by_name() {
        type Break = fn(&mut kvm_pic_state);
        let cases: [(&str, Break); 13] = [
            ("priority_add", |state| state.priority_add = 8),
            ("irq_base", |state| state.irq_base = 0x0c),
            ("elcr_mask", |state| state.elcr_mask = 0xff),
            ("elcr", |state| state.elcr = 0x01),
            ("init_state", |state| state.init_state = 4),
            ("init4", |state| state.init4 = 2),
            ("auto_eoi", |state| state.auto_eoi = 2),
            ("rotate_on_auto_eoi", |state| state.rotate_on_auto_eoi = 9),
            ("special_fully_nested_mode", |state| {
                state.special_fully_nested_mode = 255;
            }),
            ("special_mask", |state| state.special_mask = 2),
            ("read_reg_select", |state| state.read_reg_select = 3),
            ("poll", |state| state.poll = 2),
            ("poll", |state| state.poll = 0xff),
        ];
        for (field, spoil) in cases {
            let mut bad = kvm(0xf8);
            spoil(&mut bad);
            let error = PicState::from_kvm(&bad, &kvm(0xde)).unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with(&alloc::format!("master.{field}: ")),
                "{error}"
            );
            let mut bad = kvm(0xde);
            spoil(&mut bad);
            let error = PicState::from_kvm(&kvm(0xf8), &bad).unwrap_err();
            assert_eq!((error.place, error.field), ("slave.", field));
        }
    }

    #[test]
    fn modes_that_kvm_lacks_are_refused() {
        let mut state = Pic::new().save();
        state.master.level_triggered = true;
        assert_eq!(state.to_kvm().unwrap_err().field, "level_triggered");
        let mut state = Pic::new().save();
        state.slave.single = true;
        state.slave.init = InitStep::Icw2;
        assert_eq!(state.to_kvm().unwrap_err().field, "single");
    }
}
