//! Guest addresses. The types keep physical and virtual ones apart.

use core::fmt;

macro_rules! address {
    ($(#[doc = $doc:literal])+ $name:ident) => {
        $(#[doc = $doc])+
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The address `offset` bytes on, unless that is past the end of the address space.
            #[must_use]
            pub fn checked_add(self, offset: u64) -> Option<Self> {
                self.0.checked_add(offset).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A guest-physical address, in bytes.
    GuestPhysAddr
}
address! {
    /// A guest-virtual address: what GDB's packets carry. On x86 it is the linear address.
    GuestVirtAddr
}
