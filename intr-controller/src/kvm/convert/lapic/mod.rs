//! A local APIC's state from and to KVM's, for a guest that moves between `user` mode and the others.
//!
//! `struct kvm_lapic_state` is the register page. IA32_APIC_BASE (`KVM_GET_SREGS`) and
//! IA32_TSC_DEADLINE (`KVM_GET_MSRS`) stand beside it, and so does what KVM keeps with the vCPU:
//! NMIs and SMI (`KVM_GET_VCPU_EVENTS`) and the wait for a start-up IPI (`KVM_GET_MP_STATE`). Read
//! them in that order behind `KVM_GET_MP_STATE`, which takes INIT and SIPI that have arrived, and
//! write IA32_APIC_BASE before the page and the deadline after it.
//!
//! Before a state of `user` mode is saved, [`UserVcpu::prepare`](crate::kvm::UserVcpu::prepare) under the mask
//! takes back what KVM was given and the guest has not taken. An ExtINT that was taken back is in
//! [`UserVcpuState`](crate::kvm::UserVcpuState); KVM gets it by `KVM_INTERRUPT`, or injected
//! (`KVM_SET_VCPU_EVENTS`).
//!
//! KVM has no place for these, and they are lost on the way to it: errors that ESR does not show
//! yet, the levels of LINT0 and LINT1, an ExtINT that came as a message, an INIT or a start-up IPI
//! that is still pending (take them first), sub-count phases of the timer, totals.
//!
//! Two rules of KVM are taken into account:
//! - a one-shot timer that stands at zero is one that KVM fires once more when it is given a page
//!   with an initial count (lapic.c, `set_target_expiration`); so the page says initial count 0
//!   then, unless the entry is masked;
//! - KVM lets a guest set bits that the architecture lacks (delivery status and remote IRR of an
//!   LVT entry, reserved bits of ICR, vectors below 16); they are dropped.

mod registers;

use kvm_bindings::kvm_lapic_state;

pub use registers::LapicRegisters;

use crate::lapic::kvm_parts;
use crate::{
    Counters, GuestTime, Lapic, LapicConfig, LapicRestoreError, LapicState, LvtEntry, Pending,
    PolicyState, VectorSet,
};

/// How the page holds an id in x2APIC mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum X2ApicFormat {
    /// In the upper eight bits; ids above 255 do not fit (api.rst, KVM_GET_LAPIC).
    #[default]
    Legacy,
    /// All 32 bits: `KVM_CAP_X2APIC_API` with `KVM_X2APIC_API_USE_32BIT_IDS` is enabled.
    Full,
}

/// One vCPU's local APIC as KVM hands it out.
#[derive(Clone, Debug)]
pub struct KvmLapic {
    /// `KVM_GET_LAPIC`, `KVM_SET_LAPIC`.
    pub page: kvm_lapic_state,
    /// IA32_APIC_BASE: `kvm_sregs.apic_base`.
    pub apic_base: u64,
    /// IA32_TSC_DEADLINE, MSR 0x6e0.
    pub tsc_deadline: u64,
    /// `kvm_vcpu_events.nmi.pending`.
    pub nmis: u8,
    /// `kvm_vcpu_events.smi.pending`.
    pub smi: bool,
    /// `KVM_MP_STATE_UNINITIALIZED` or `KVM_MP_STATE_INIT_RECEIVED`.
    pub waiting_for_sipi: bool,
}

const ID: usize = 0x020;
const VERSION: usize = 0x030;
const TPR: usize = 0x080;
const PPR: usize = 0x0a0;
const LDR: usize = 0x0d0;
const DFR: usize = 0x0e0;
const SPURIOUS: usize = 0x0f0;
const ISR: usize = 0x100;
const TMR: usize = 0x180;
const IRR: usize = 0x200;
const ESR: usize = 0x280;
const ICR: usize = 0x300;
const ICR_HIGH: usize = 0x310;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
const DIVIDE: usize = 0x3e0;

/// In the order of [`LvtEntry::ALL`].
const LVT: [usize; 7] = [0x320, 0x330, 0x340, 0x350, 0x360, 0x370, 0x2f0];

struct Page([u8; 1024]);

impl Page {
    fn of(kvm: &kvm_lapic_state) -> Self {
        let mut page = Self([0; 1024]);
        for (to, from) in page.0.iter_mut().zip(kvm.regs) {
            *to = u8::from_ne_bytes(from.to_ne_bytes());
        }
        page
    }

    fn get(&self, offset: usize) -> u32 {
        let bytes = self.0.get(offset..).and_then(<[_]>::first_chunk::<4>);
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    fn set(&mut self, offset: usize, value: u32) {
        let bytes = self.0.get_mut(offset..);
        if let Some(bytes) = bytes.and_then(<[_]>::first_chunk_mut::<4>) {
            *bytes = value.to_le_bytes();
        }
    }

    fn vectors(&self, offset: usize) -> [u64; 4] {
        let word = |index: usize| {
            let half = |index| u64::from(self.get(offset + 0x10 * index));
            half(2 * index) | half(2 * index + 1) << 32
        };
        VectorSet::from_words_truncate([word(0), word(1), word(2), word(3)]).words()
    }

    fn set_vectors(&mut self, offset: usize, words: [u64; 4]) {
        let halves = words.into_iter().flat_map(|word| {
            let [b0, b1, b2, b3, b4, b5, b6, b7] = word.to_le_bytes();
            [[b0, b1, b2, b3], [b4, b5, b6, b7]].map(u32::from_le_bytes)
        });
        for (index, half) in halves.enumerate() {
            self.set(offset + 0x10 * index, half);
        }
    }
}

impl KvmLapic {
    /// This APIC at this time, for KVM.
    #[must_use]
    pub fn new(lapic: &Lapic, format: X2ApicFormat, now: GuestTime) -> Self {
        let mut lapic = lapic.clone();
        lapic.advance(now);
        let state = lapic.save();
        let view = kvm_parts::view(&lapic, now);
        let mut page = Page([0; 1024]);
        page.set(
            ID,
            match (view.x2apic, format) {
                (true, X2ApicFormat::Full) => state.apic_id,
                (true, X2ApicFormat::Legacy) => state.apic_id << 24,
                (false, _) => u32::from(state.xapic_id) << 24,
            },
        );
        page.set(VERSION, view.version);
        page.set(TPR, state.tpr.into());
        page.set(PPR, lapic.priority().get().into());
        page.set(LDR, view.logical_destination);
        page.set(DFR, u32::from(state.dfr) << 28 | 0x0fff_ffff);
        page.set(SPURIOUS, state.spurious);
        page.set_vectors(ISR, state.in_service);
        page.set_vectors(TMR, state.level_triggered);
        page.set_vectors(IRR, state.policy.fixed);
        page.set(ESR, state.error_status);
        let [low, high] = halves(state.command);
        page.set(ICR, low);
        page.set(ICR_HIGH, high);
        for (offset, value) in LVT.into_iter().zip(state.lvt) {
            page.set(offset, value);
        }
        if view.idle_one_shot {
            page.set(INITIAL_COUNT, 0);
        } else {
            page.set(INITIAL_COUNT, state.timer_initial);
        }
        page.set(CURRENT_COUNT, view.current_count);
        page.set(DIVIDE, state.timer_divide.into());
        let mut regs = kvm_lapic_state::default();
        for (to, from) in regs.regs.iter_mut().zip(page.0) {
            *to = core::ffi::c_char::from_ne_bytes([from]);
        }
        Self {
            page: regs,
            apic_base: state.apic_base,
            tsc_deadline: state.tsc_deadline,
            nmis: state.policy.nmis,
            smi: state.policy.smi,
            waiting_for_sipi: state.waiting_for_sipi,
        }
    }

    /// KVM's APIC at this time, for a [`Lapic`] with this configuration. Totals begin with what
    /// waits.
    ///
    /// # Errors
    /// If the configuration cannot have this state.
    pub fn state(
        &self,
        config: &LapicConfig,
        now: GuestTime,
    ) -> Result<LapicState, LapicRestoreError> {
        let page = Page::of(&self.page);
        let blank = Lapic::new(*config).save();
        let x2apic = kvm_parts::is_x2apic(self.apic_base);
        let enabled = kvm_parts::is_enabled(self.apic_base);
        let top = |offset| {
            let [.., byte] = page.get(offset).to_le_bytes();
            byte
        };
        let low = |offset| {
            let [byte, ..] = page.get(offset).to_le_bytes();
            byte
        };
        // Refused below where it is more than KVM can have: two.
        let pending = Pending::new(
            VectorSet::from_words_truncate(page.vectors(IRR)),
            self.nmis,
            self.smi,
            false,
        );
        let mut lvt = [0; 7];
        for ((to, entry), offset) in lvt.iter_mut().zip(LvtEntry::ALL).zip(LVT) {
            *to = kvm_parts::writable_lvt(entry, page.get(offset));
        }
        if !config.cmci {
            // KVM has no such entry then, and its page reads 0.
            let [.., cmci] = &mut lvt;
            let [.., reset] = blank.lvt;
            *cmci = reset;
        }
        let mut state = LapicState {
            apic_base: self.apic_base,
            xapic_id: if x2apic || !enabled {
                blank.xapic_id
            } else {
                top(ID)
            },
            tpr: low(TPR),
            spurious: page.get(SPURIOUS),
            ldr: if x2apic { 0 } else { top(LDR) },
            dfr: top(DFR) >> 4,
            command: kvm_parts::writable_command(page.get(ICR), page.get(ICR_HIGH), x2apic),
            lvt,
            error_status: page.get(ESR),
            errors: 0,
            in_service: page.vectors(ISR),
            level_triggered: page.vectors(TMR),
            policy: PolicyState {
                nmis: self.nmis,
                smi: self.smi,
                ext_int: false,
                fixed: pending.fixed().words(),
                counters: Counters {
                    arrived: pending.len(),
                    ..Counters::default()
                },
                ..blank.policy
            },
            timer_initial: page.get(INITIAL_COUNT),
            timer_divide: low(DIVIDE),
            timer_expires_ns: None,
            tsc_deadline: self.tsc_deadline,
            lint: [false; 2],
            ext_int_message: false,
            init_pending: false,
            sipi_pending: None,
            waiting_for_sipi: self.waiting_for_sipi,
            ..blank
        };
        if enabled {
            state.timer_expires_ns =
                kvm_parts::expiry(&state, config, page.get(CURRENT_COUNT), now)
                    .map(GuestTime::as_ns);
        }
        Lapic::new(*config).restore(&state)?;
        Ok(state)
    }
}

fn halves(value: u64) -> [u32; 2] {
    let [b0, b1, b2, b3, b4, b5, b6, b7] = value.to_le_bytes();
    [[b0, b1, b2, b3], [b4, b5, b6, b7]].map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests;
