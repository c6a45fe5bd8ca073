//! What a guest sees of the interrupt controllers, one behaviour per test, in every mode of
//! `--irqchip`.
//!
//! Each test writes a [script](script::Script) of port, memory and register accesses per vCPU, runs
//! it in a machine, and compares what the guest read and which vectors it took, in their order. A
//! test is named after its rule and runs once per mode, as `kernel::lapic_priority::…`. The
//! architecture's result is asserted for all of them, with three exceptions that say so in the test
//! and in its output:
//!
//! - `deviation: kernel: …` ([`mode::Mode::deviates`]): KVM's own chip does something else, which is
//!   asserted for the modes that have that chip, with the function of KVM that does it;
//! - `this KVM: …` ([`mode::this_kvm`]): one KVM does something else, with any chips;
//! - `no deviation here: …`: a deviation of some versions of KVM, which this one lacks.
//!
//! No test passes by waiting for a length of time. The effect of an access is there before the next access, an
//! access of the script moves the line of a device, and vCPUs meet at barriers. Tests wait only for timers, and
//! assert a bound that every machine keeps.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "the registers and operations are listed whole, used or not"
)]
#![allow(
    clippy::duplicate_mod,
    reason = "the files with the tests are modules of every mode"
)]

mod chips;
mod host;
mod log;
mod mode;
mod prelude;
mod program;
mod registers;
mod script;
mod wire;

/// The tests, once for each mode.
macro_rules! in_modes {
    ($($module:ident: $mode:ident),* $(,)?) => {
        $(
            #[path = "."]
            mod $module {
                /// The mode of the tests in this module.
                pub const MODE: crate::mode::Mode = crate::mode::Mode::$mode;

                mod apic_base;
                mod extint;
                mod ioapic;
                mod ioapic_delivery;
                mod ioapic_level;
                mod ioapic_moved;
                mod ioapic_renamed;
                mod ipi;
                mod ipi_logical;
                mod lapic_eoi;
                mod lapic_errors;
                mod lapic_priority;
                mod lapic_registers;
                mod lapic_timer;
                mod msi;
                mod nmi;
                mod pic;
                mod pic_modes;
                mod pit;
                mod rtc;
                mod startup;
                mod x2apic;
                mod x2apic_ipi;
            }
        )*
    };
}

in_modes! {
    kernel: Kernel,
    split: Split,
    user: User,
}
