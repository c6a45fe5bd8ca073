//! A local APIC's registers as text, in any mode of the chips.

use core::fmt;

use kvm_ioctls::VcpuFd;

use super::{
    CURRENT_COUNT, DFR, DIVIDE, ESR, ICR, ICR_HIGH, ID, INITIAL_COUNT, IRR, ISR, KvmLapic, LDR,
    LVT, PPR, Page, SPURIOUS, TMR, TPR, VERSION, X2ApicFormat,
};
use crate::kvm::calls::{CallError, failed, read_msr};
use crate::lapic::kvm_parts;
use crate::lapic::text::{BaseText, CommandText, LvtText, SpuriousText};
use crate::x86;
use crate::{GuestTime, Lapic, LvtEntry, ProcessorPriority, VectorSet};

/// IA32_TSC_DEADLINE.
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// What a local APIC's registers read at one time, for a debugger's user: `Display` has a line for each group.
/// Unlike [`KvmLapic`] it does not ask for what lies beside the registers, which has side effects in KVM.
pub struct LapicRegisters {
    page: Page,
    apic_base: u64,
    tsc_deadline: Option<u64>,
}

impl LapicRegisters {
    /// Those of KVM's local APIC of a vCPU that does not run. Changes nothing that the guest can see: KVM only
    /// moves posted interrupts into IRR, as the next entry does.
    ///
    /// # Errors
    /// If the local APIC is not in the kernel, or KVM refuses.
    pub fn of_kvm(vcpu: &VcpuFd) -> Result<Self, CallError> {
        let page = vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
        let sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        Ok(Self {
            page: Page::of(&page),
            apic_base: sregs.apic_base,
            // A CPU without this mode of the timer lacks the MSR.
            tsc_deadline: read_msr(vcpu, MSR_TSC_DEADLINE).ok(),
        })
    }

    /// Those of an emulated local APIC at this time. Changes nothing.
    #[must_use]
    pub fn of(lapic: &Lapic, now: GuestTime) -> Self {
        let KvmLapic {
            page,
            apic_base,
            tsc_deadline,
            ..
        } = KvmLapic::new(lapic, X2ApicFormat::Legacy, now);
        let mut page = Page::of(&page);
        // KVM's page leaves it out for a timer that stands at zero.
        page.set(INITIAL_COUNT, lapic.save().timer_initial);
        Self {
            page,
            apic_base,
            tsc_deadline: Some(tsc_deadline),
        }
    }
}

impl LapicRegisters {
    /// What a load of 32 bits from this guest-physical address reads: 0 where a register has no bits. `None` if
    /// the address is not in the registers' page, or the local APIC has none (x2APIC mode, disabled).
    #[must_use]
    pub fn load(&self, address: u64) -> Option<u32> {
        let page = kvm_parts::page_address(self.apic_base)?;
        let offset = address.checked_sub(page)?;
        let offset = (offset < x86::LOCAL_APIC_WINDOW).then_some(offset)?;
        Some(match usize::try_from(offset).ok()? {
            PPR => self.ppr().get().into(),
            // Each register is the first of four words (SDM 3A 11.4.1).
            offset if offset & 0xf == 0 => self.page.get(offset),
            _ => 0,
        })
    }

    /// KVM brings its own up to date only when it needs it (lapic.c, `apic_update_ppr`).
    fn ppr(&self) -> ProcessorPriority {
        let [tpr, ..] = self.page.get(TPR).to_le_bytes();
        let in_service = VectorSet::from_words_truncate(self.page.vectors(ISR));
        ProcessorPriority::new(tpr, in_service.highest())
    }
}

impl fmt::Debug for LapicRegisters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LapicRegisters").finish_non_exhaustive()
    }
}

/// The vectors of a 256-bit register.
struct Vectors([u64; 4]);

impl fmt::Display for Vectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = VectorSet::from_words_truncate(self.0);
        if set == VectorSet::EMPTY {
            return f.write_str(" none");
        }
        set.iter()
            .try_for_each(|vector| write!(f, " {:#04x}", vector.get()))
    }
}

impl fmt::Display for LapicRegisters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let page = &self.page;
        let x2apic = kvm_parts::is_x2apic(self.apic_base);
        writeln!(f, "APIC base {}", BaseText(self.apic_base))?;
        writeln!(
            f,
            "ID {:#x}, logical ID {:#x}, DFR {:#010x}, version {:#x}",
            // Legacy form: the upper eight bits in both modes.
            page.get(ID) >> 24,
            if x2apic {
                page.get(LDR)
            } else {
                page.get(LDR) >> 24
            },
            page.get(DFR),
            page.get(VERSION),
        )?;
        let [tpr, ..] = page.get(TPR).to_le_bytes();
        let ppr = self.ppr().get();
        writeln!(f, "TPR {tpr:#04x}, PPR {ppr:#04x}")?;
        writeln!(f, "spurious {}", SpuriousText(page.get(SPURIOUS)))?;
        for (entry, offset) in LvtEntry::ALL.into_iter().zip(LVT) {
            let bits = page.get(offset);
            // There is no such entry where the page reads 0.
            if entry != LvtEntry::Cmci || bits != 0 {
                writeln!(f, "LVT {entry:<11} {}", LvtText(entry, bits))?;
            }
        }
        write!(
            f,
            "timer: initial count {:#x}, current count {:#x}, divided by {}",
            page.get(INITIAL_COUNT),
            page.get(CURRENT_COUNT),
            1u32 << kvm_parts::timer_shift(page.get(DIVIDE)),
        )?;
        match self.tsc_deadline {
            Some(deadline) => writeln!(f, ", TSC deadline {deadline:#x}")?,
            None => writeln!(f)?,
        }
        let command = CommandText {
            low: page.get(ICR),
            high: page.get(ICR_HIGH),
            x2apic,
        };
        writeln!(f, "last IPI {command}")?;
        writeln!(f, "ESR {:#x}", page.get(ESR))?;
        writeln!(f, "in service (ISR):{}", Vectors(page.vectors(ISR)))?;
        writeln!(f, "pending (IRR):{}", Vectors(page.vectors(IRR)))?;
        writeln!(f, "level-triggered (TMR):{}", Vectors(page.vectors(TMR)))
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;
    use crate::{InterruptMessage, LapicConfig};

    #[test]
    fn an_emulated_local_apics_registers_are_read_without_a_change() {
        let mut lapic = Lapic::new(LapicConfig::new(3, true, core::num::NonZeroU64::MIN));
        let now = GuestTime::ZERO;
        // Enabled by software, and a timer at vector 0x41.
        for (offset, value) in [
            (0xf0, 0x1ff_u32),
            (0x320, 0x2_0041),
            (0x3e0, 0xb),
            (0x380, 0x1234),
        ] {
            let _ = lapic.mmio_write(offset, &value.to_le_bytes(), now);
        }
        let _ = lapic.accept(&InterruptMessage {
            vector: 0x62,
            destination: 3,
            level: true,
            ..InterruptMessage::default()
        });
        let before = lapic.save();
        let registers = LapicRegisters::of(&lapic, now);
        for (at, value) in [
            (0xfee0_0020, Some(3 << 24)),
            (0xfee0_0021, Some(0)),
            (0xfee0_00f0, Some(0x1ff)),
            (0xfee0_0230, Some(1 << 2)),
            (0xfee0_0390, Some(0x1234)),
            (0xfee0_0ffc, Some(0)),
            (0xfee0_1000, None),
            (0xfedf_fff0, None),
        ] {
            assert_eq!(registers.load(at), value, "{at:#x}");
        }
        let text = LapicRegisters::of(&lapic, now).to_string();
        assert_eq!(lapic.save(), before);
        for line in [
            "APIC base 0xfee00900: xAPIC mode, bootstrap processor",
            "spurious 0x000001ff: enabled by software, vector 0xff",
            "LVT timer       0x00020041: vector 0x41, periodic",
            "timer: initial count 0x1234, current count 0x1234, divided by 1, TSC deadline 0x0",
            "in service (ISR): none",
            "pending (IRR): 0x62",
        ] {
            assert!(text.lines().any(|has| has == line), "{line}\n---\n{text}");
        }
        assert!(text.contains("ID 0x3, "), "{text}");
    }
}
