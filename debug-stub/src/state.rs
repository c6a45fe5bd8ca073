//! The registers of the stopped vCPUs, read from the host once per stop.

use std::collections::BTreeMap;
use std::fmt;

use vcpu_caps::VcpuId;

use crate::arch::Arch;
use crate::host::Host;

struct Entry<A: Arch> {
    valid: A::Groups,
    registers: A::Registers,
}

/// What is known of each vCPU's registers since it stopped.
pub(crate) struct RegisterCache<A: Arch> {
    entries: BTreeMap<VcpuId, Entry<A>>,
}

impl<A: Arch> Default for RegisterCache<A> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
        }
    }
}

impl<A: Arch> fmt::Debug for RegisterCache<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let valid = self
            .entries
            .iter()
            .map(|(vcpu, entry)| (vcpu, &entry.valid));
        f.debug_map().entries(valid).finish()
    }
}

impl<A: Arch> RegisterCache<A> {
    /// Forgets all values: the vCPUs are about to run. The buffers stay.
    pub(crate) fn forget(&mut self) {
        for entry in self.entries.values_mut() {
            entry.valid = A::Groups::default();
        }
    }

    /// Returns the registers of a vCPU, of which at least `groups` are filled.
    pub(crate) fn read<H: Host<Arch = A>>(
        &mut self,
        host: &mut H,
        vcpu: VcpuId,
        groups: A::Groups,
    ) -> Result<&A::Registers, H::Error> {
        let entry = self.entries.entry(vcpu).or_insert_with(|| Entry {
            valid: A::Groups::default(),
            registers: A::Registers::default(),
        });
        let missing = groups - entry.valid;
        if missing != A::Groups::default() {
            host.read_registers(vcpu, missing, &mut entry.registers)?;
            entry.valid = entry.valid | missing;
        }
        Ok(&entry.registers)
    }

    /// Writes `groups` of a vCPU through to the host. The next read asks the host again: it may
    /// have changed a value.
    pub(crate) fn write<H: Host<Arch = A>>(
        &mut self,
        host: &mut H,
        vcpu: VcpuId,
        groups: A::Groups,
        registers: &A::Registers,
    ) -> Result<(), H::Error> {
        // All groups, and also after an error: the host may have written a part, and one group
        // may show in another (on x86, CR0 in how segments decode).
        if let Some(entry) = self.entries.get_mut(&vcpu) {
            entry.valid = A::Groups::default();
        }
        host.write_registers(vcpu, groups, registers)
    }
}
