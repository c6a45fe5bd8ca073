//! `monitor` commands about addresses: where one is, and where a kernel is.

use super::{Bounded, number};
use crate::address::GuestVirtAddr;
use crate::arch::Arch;
use crate::guest::Guest;
use crate::host::Host;

pub(super) const USAGE: &str = "translate ADDRESS, pagewalk ADDRESS: a number as in C, 0x1000 or 4096. GDB's eval fills in a \
     symbol: eval \"monitor translate %p\", &jiffies";

/// `translate`, and QEMU's `gva2gpa`.
pub(super) fn translation<H: Host>(guest: &mut Guest<H>, address: &str) -> String {
    at(guest, address, |space, host, address, out| {
        H::Arch::write_translation(space, host, address, out)
    })
}

/// `pagewalk`.
pub(super) fn walk<H: Host>(guest: &mut Guest<H>, address: &str) -> String {
    at(guest, address, |space, host, address, out| {
        H::Arch::write_walk(space, host, address, out)
    })
}

/// `kaslr`.
pub(super) fn kernel<H: Host>(guest: &mut Guest<H>) -> String {
    in_space(guest, |space, host, out| {
        H::Arch::write_kernel(space, host, out)
    })
}

fn at<H: Host>(
    guest: &mut Guest<H>,
    address: &str,
    write: impl FnOnce(
        &<H::Arch as Arch>::AddressSpace,
        &H,
        GuestVirtAddr,
        &mut Bounded,
    ) -> std::fmt::Result,
) -> String {
    let Some(address) = number(address) else {
        return USAGE.into();
    };
    in_space(guest, |space, host, out| {
        write(space, host, GuestVirtAddr(address), out)
    })
}

/// Writes about the address space of the selected vCPU.
fn in_space<H: Host>(
    guest: &mut Guest<H>,
    write: impl FnOnce(&<H::Arch as Arch>::AddressSpace, &H, &mut Bounded) -> std::fmt::Result,
) -> String {
    let space = match guest.virtual_address_space() {
        Ok(space) => space,
        Err(_) => return "the registers cannot be read".into(),
    };
    let mut out = Bounded(String::new());
    if write(&space, &guest.host, &mut out).is_err() {
        out.0.push_str("(there is more)\n");
    }
    out.0
}
