//! The registers of the stopped vCPUs, read from the host once per stop.

use std::collections::BTreeMap;

use vcpu_caps::VcpuId;

use crate::host::Host;
use crate::x86_64::{RegisterFile, RegisterGroups};

#[derive(Debug, Default)]
struct Entry {
    valid: RegisterGroups,
    registers: RegisterFile,
}

/// What is known of each vCPU's registers since it stopped.
#[derive(Debug, Default)]
pub(crate) struct RegisterCache {
    entries: BTreeMap<VcpuId, Entry>,
}

impl RegisterCache {
    /// The vCPUs are about to run: nothing is known any more. The buffers stay.
    pub(crate) fn forget(&mut self) {
        for entry in self.entries.values_mut() {
            entry.valid = RegisterGroups::empty();
        }
    }

    /// The registers of a vCPU, of which at least `groups` are filled.
    pub(crate) fn read<H: Host>(
        &mut self,
        host: &mut H,
        vcpu: VcpuId,
        groups: RegisterGroups,
    ) -> Result<&RegisterFile, H::Error> {
        let entry = self.entries.entry(vcpu).or_default();
        let missing = groups - entry.valid;
        if !missing.is_empty() {
            host.read_registers(vcpu, missing, &mut entry.registers)?;
            entry.valid |= missing;
        }
        Ok(&entry.registers)
    }

    /// Writes `groups` of a vCPU through to the host. What the host makes of them is read anew.
    pub(crate) fn write<H: Host>(
        &mut self,
        host: &mut H,
        vcpu: VcpuId,
        groups: RegisterGroups,
        registers: &RegisterFile,
    ) -> Result<(), H::Error> {
        // Whatever comes of it, what was known of these groups may no longer hold; and one group
        // may show in another (CR0 in the segments' decoding, MSRs in the bases).
        if let Some(entry) = self.entries.get_mut(&vcpu) {
            entry.valid = RegisterGroups::empty();
        }
        host.write_registers(vcpu, groups, registers)
    }
}
