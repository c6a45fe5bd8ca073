//! All that a vCPU shows of itself, as named values, to be compared.

use std::fmt;

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_segment};
use kvm_ioctls::VcpuFd;

/// Model-specific registers that a guest or a step may change.
const MSRS: [(&str, u32); 13] = [
    ("sysenter_cs", 0x174),
    ("sysenter_esp", 0x175),
    ("sysenter_eip", 0x176),
    ("misc_enable", 0x1a0),
    ("debugctl", 0x1d9),
    ("pat", 0x277),
    ("star", 0xc000_0081),
    ("lstar", 0xc000_0082),
    ("cstar", 0xc000_0083),
    ("fmask", 0xc000_0084),
    ("fs_base", 0xc000_0100),
    ("kernel_gs_base", 0xc000_0102),
    ("tsc_aux", 0xc000_0103),
];
const RF: u64 = 1 << 16;
/// Offsets of the local APIC's registers whose value is a time.
const LAPIC_TIMES: std::ops::Range<usize> = 0x390..0x394;

/// The processor priority follows from the TPR and ISR. KVM computes it when it is asked for; what it has
/// stored depends on the exits since.
const LAPIC_PPR: std::ops::Range<usize> = 0xa0..0xa4;

/// x87 and SSE state of an XSAVE area, with MXCSR (SDM 1 10.5.1). Which parts are in their initial state is
/// the host's business.
const LEGACY_WORDS: usize = 416 / 4;

/// Named values, in a fixed order, and two areas.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    values: Vec<(String, u64)>,
    xsave: Vec<u32>,
    lapic: Vec<u8>,
}

/// The first value in which two runs differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub name: String,
    pub free: u64,
    pub debugged: u64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            free,
            debugged,
        } = self;
        write!(f, "{name} is {debugged:#x} instead of {free:#x}")
    }
}

impl Snapshot {
    /// Of a vCPU that does not run, and on which nothing is armed.
    pub fn of(vcpu: &VcpuFd) -> Self {
        let mut values = Self::default();
        values.general(vcpu);
        values.special(vcpu);
        values.debug_and_events(vcpu);
        for (name, index) in MSRS {
            values.add(name, read_msr(vcpu, index));
        }
        values.xsave = vcpu.get_xsave().unwrap().region[..LEGACY_WORDS].to_vec();
        // Without KVM's local APIC there is neither this nor an MP state.
        if let Ok(lapic) = vcpu.get_lapic() {
            values.lapic = lapic
                .regs
                .iter()
                .map(|byte| byte.to_ne_bytes()[0])
                .collect();
            values.lapic[LAPIC_TIMES].fill(0);
            values.lapic[LAPIC_PPR].fill(0);
        }
        if let Ok(state) = vcpu.get_mp_state() {
            values.add("mp_state", state.mp_state);
        }
        values
    }

    pub fn first_difference(&self, debugged: &Self) -> Option<Difference> {
        assert_eq!(self.values.len(), debugged.values.len());
        let mut values = self.values.iter().zip(&debugged.values);
        let value = values.find_map(|((name, free), (_, debugged))| {
            (free != debugged).then(|| Difference {
                name: name.clone(),
                free: *free,
                debugged: *debugged,
            })
        });
        value
            .or_else(|| in_area("XSAVE area", &self.xsave, &debugged.xsave))
            .or_else(|| in_area("local APIC", &self.lapic, &debugged.lapic))
    }

    fn add(&mut self, name: &str, value: impl Into<u64>) {
        self.values.push((name.to_owned(), value.into()));
    }

    fn general(&mut self, vcpu: &VcpuFd) {
        let regs = vcpu.get_regs().unwrap();
        for (name, value) in [
            // Each instruction clears RF (SDM 3B 19.3.1.1). QEMU's TCG does so only when it looks at it.
            ("rflags", regs.rflags & !RF),
            ("rip", regs.rip),
            ("rsp", regs.rsp),
            ("rax", regs.rax),
            ("rbx", regs.rbx),
            ("rcx", regs.rcx),
            ("rdx", regs.rdx),
            ("rsi", regs.rsi),
            ("rdi", regs.rdi),
            ("rbp", regs.rbp),
            ("r8", regs.r8),
            ("r9", regs.r9),
            ("r10", regs.r10),
            ("r11", regs.r11),
            ("r12", regs.r12),
            ("r13", regs.r13),
            ("r14", regs.r14),
            ("r15", regs.r15),
        ] {
            self.add(name, value);
        }
    }

    fn special(&mut self, vcpu: &VcpuFd) {
        let sregs = vcpu.get_sregs().unwrap();
        for (name, segment) in [
            ("cs", &sregs.cs),
            ("ss", &sregs.ss),
            ("ds", &sregs.ds),
            ("es", &sregs.es),
            ("fs", &sregs.fs),
            ("gs", &sregs.gs),
            ("tr", &sregs.tr),
            ("ldt", &sregs.ldt),
        ] {
            self.segment(name, segment);
        }
        for (name, value) in [
            ("gdtr.base", sregs.gdt.base),
            ("gdtr.limit", sregs.gdt.limit.into()),
            ("idtr.base", sregs.idt.base),
            ("idtr.limit", sregs.idt.limit.into()),
            ("cr0", sregs.cr0),
            ("cr2", sregs.cr2),
            ("cr3", sregs.cr3),
            ("cr4", sregs.cr4),
            ("cr8", sregs.cr8),
            ("efer", sregs.efer),
            ("apic_base", sregs.apic_base),
        ] {
            self.add(name, value);
        }
        for (word, bits) in sregs.interrupt_bitmap.iter().enumerate() {
            self.add(&format!("interrupt_bitmap[{word}]"), *bits);
        }
    }

    fn segment(&mut self, name: &str, segment: &kvm_segment) {
        let attributes = [
            segment.type_,
            segment.present,
            segment.dpl,
            segment.db,
            segment.s,
            segment.l,
            segment.g,
            segment.unusable,
        ];
        self.add(&format!("{name}.selector"), segment.selector);
        self.add(&format!("{name}.base"), segment.base);
        self.add(&format!("{name}.limit"), segment.limit);
        self.add(
            &format!("{name}.attributes"),
            u64::from_be_bytes(attributes),
        );
    }

    fn debug_and_events(&mut self, vcpu: &VcpuFd) {
        let debug = vcpu.get_debug_regs().unwrap();
        for (slot, address) in debug.db.iter().enumerate() {
            self.add(&format!("dr{slot}"), *address);
        }
        self.add("dr6", debug.dr6);
        self.add("dr7", debug.dr7);
        let events = vcpu.get_vcpu_events().unwrap();
        for (name, value) in [
            ("exception.injected", events.exception.injected),
            ("exception.pending", events.exception.pending),
            (
                "exception.vector",
                if events.exception.injected | events.exception.pending == 0 {
                    0
                } else {
                    events.exception.nr
                },
            ),
            ("interrupt.injected", events.interrupt.injected),
            (
                "interrupt.vector",
                if events.interrupt.injected == 0 {
                    0
                } else {
                    events.interrupt.nr
                },
            ),
            ("interrupt.shadow", events.interrupt.shadow),
            ("nmi.injected", events.nmi.injected),
            ("nmi.pending", events.nmi.pending),
            ("nmi.masked", events.nmi.masked),
        ] {
            self.add(name, value);
        }
    }
}

/// All ones if this KVM lacks the register.
fn read_msr(vcpu: &VcpuFd, index: u32) -> u64 {
    let entry = kvm_msr_entry {
        index,
        ..kvm_msr_entry::default()
    };
    let mut msrs = Msrs::from_entries(&[entry]).unwrap();
    match vcpu.get_msrs(&mut msrs) {
        Ok(1) => msrs.as_slice()[0].data,
        _ => u64::MAX,
    }
}

/// The first difference of two areas, by its offset in bytes.
fn in_area<T: Copy + PartialEq + Into<u64>>(
    area: &str,
    free: &[T],
    debugged: &[T],
) -> Option<Difference> {
    let place = free.iter().zip(debugged).position(|(a, b)| a != b)?;
    Some(Difference {
        name: format!("{area}+{:#x}", place * size_of::<T>()),
        free: free[place].into(),
        debugged: debugged[place].into(),
    })
}
