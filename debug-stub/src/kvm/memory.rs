//! Guest memory held by `vm-memory`, as a session and the step planner read it.

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend};

use crate::address::GuestPhysAddr;
use crate::host::GuestMemory;

/// Any `vm-memory` guest memory as [`GuestMemory`].
#[derive(Clone, Debug)]
pub struct VmMemory<M>(pub M);

impl<M: GuestMemoryBackend> GuestMemory for VmMemory<M> {
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
        // An empty slice succeeds anywhere in `Bytes`, and an address outside fails: 0 bytes.
        self.0.read(data, GuestAddress(address.0)).unwrap_or(0)
    }

    fn write_memory(&self, address: GuestPhysAddr, data: &[u8]) -> usize {
        self.0.write(data, GuestAddress(address.0)).unwrap_or(0)
    }
}

/// Any `vm-memory` address space as [`GuestMemory`]: `GuestMemoryAtomic`, for instance, of a VMM that
/// adds memory while the guest runs.
#[derive(Clone, Debug)]
pub struct VmAddressSpace<A>(pub A);

impl<A> GuestMemory for VmAddressSpace<A>
where
    A: GuestAddressSpace,
    A::M: GuestMemoryBackend,
{
    fn read_memory(&self, address: GuestPhysAddr, data: &mut [u8]) -> usize {
        let memory = self.0.memory();
        memory.read(data, GuestAddress(address.0)).unwrap_or(0)
    }

    fn write_memory(&self, address: GuestPhysAddr, data: &[u8]) -> usize {
        let memory = self.0.memory();
        memory.write(data, GuestAddress(address.0)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryMmap;

    #[test]
    fn a_read_past_the_end_of_memory_answers_what_there_is() {
        let memory = VmMemory(
            GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0x1000), 0x1000)]).unwrap(),
        );
        assert_eq!(memory.write_memory(GuestPhysAddr(0x1ffe), &[1, 2, 3, 4]), 2);
        let mut data = [0; 4];
        assert_eq!(memory.read_memory(GuestPhysAddr(0x1ffe), &mut data), 2);
        assert_eq!(data, [1, 2, 0, 0]);
        assert_eq!(memory.read_memory(GuestPhysAddr(0x0), &mut data), 0);
        assert_eq!(memory.read_memory(GuestPhysAddr(u64::MAX), &mut data), 0);
        let space = VmAddressSpace(std::sync::Arc::new(memory.0));
        assert_eq!(space.write_memory(GuestPhysAddr(0x1ffe), &[5, 6, 7]), 2);
        assert_eq!(space.read_memory(GuestPhysAddr(0x1ffe), &mut data), 2);
        assert_eq!(data, [5, 6, 0, 0]);
    }
}
