//! The pair as text, for a debugger's user.

use core::fmt;

use super::chip::{Chip, Role};
use super::{InitStep, Pic8259State, PicState};

/// The IRQs of a set of inputs.
struct Irqs {
    first: u8,
    inputs: u8,
}

impl fmt::Display for Irqs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.inputs == 0 {
            return f.write_str(" none");
        }
        (0..8)
            .filter(|input| self.inputs >> input & 1 != 0)
            .try_for_each(|input| write!(f, " {}", self.first + input))
    }
}

fn chip(f: &mut fmt::Formatter<'_>, role: Role, state: Pic8259State) -> fmt::Result {
    let (name, first) = match role {
        Role::Master => ("master", 0),
        Role::Slave => ("slave", 8),
    };
    let irqs = |inputs| Irqs { first, inputs };
    // A state may come from anywhere; a level has three bits.
    let lowest = state.lowest & 7;
    let chip = Chip::from_state(role, Pic8259State { lowest, ..state });
    let Pic8259State {
        imr,
        isr,
        elcr,
        vector_base,
        init,
        auto_eoi,
        special_fully_nested,
        special_mask,
        ..
    } = state;
    let int = if chip.int() { "up" } else { "down" };
    writeln!(
        f,
        "8259A {name}: IRQ {first} to {}, vectors from {vector_base:#04x}, INT is {int}",
        first + 7
    )?;
    writeln!(
        f,
        "  requested (IRR {:#04x}):{}",
        chip.irr(),
        irqs(chip.irr())
    )?;
    writeln!(f, "  masked (IMR {imr:#04x}):{}", irqs(imr))?;
    writeln!(f, "  in service (ISR {isr:#04x}):{}", irqs(isr))?;
    writeln!(f, "  level-triggered (ELCR {elcr:#04x}):{}", irqs(elcr))?;
    let highest = (lowest + 1) & 7;
    write!(f, "  highest priority: {}", first + highest)?;
    for (set, text) in [
        (auto_eoi, "automatic EOI"),
        (special_fully_nested, "special fully nested mode"),
        (special_mask, "special mask mode"),
        (
            init != InitStep::Ready,
            "in the middle of its initialisation",
        ),
    ] {
        if set {
            write!(f, "; {text}")?;
        }
    }
    writeln!(f)
}

impl fmt::Display for PicState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        chip(f, Role::Master, self.master)?;
        chip(f, Role::Slave, self.slave)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;
    use crate::pic::Pic;

    #[test]
    fn requests_masks_and_service_are_named_by_irq() {
        let mut state = Pic::new().save();
        state.master = Pic8259State {
            latched: 0x01,
            imr: 0xfa,
            isr: 0x04,
            vector_base: 0x30,
            auto_eoi: true,
            ..state.master
        };
        state.slave.isr = 0x02;
        state.slave.lowest = 0xff;
        let text = state.to_string();
        for line in [
            "8259A master: IRQ 0 to 7, vectors from 0x30, INT is up",
            "  requested (IRR 0x01): 0",
            "  masked (IMR 0xfa): 1 3 4 5 6 7",
            "  in service (ISR 0x04): 2",
            "  level-triggered (ELCR 0x00): none",
            "  highest priority: 0; automatic EOI",
            "  in service (ISR 0x02): 9",
            "  highest priority: 8",
        ] {
            assert!(text.lines().any(|has| has == line), "{line}\n---\n{text}");
        }
    }
}
