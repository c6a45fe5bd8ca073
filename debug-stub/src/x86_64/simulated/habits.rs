//! What a hypervisor does to a step.

/// What a hypervisor and the processor under it do to a single step, as measured on three KVMs.
///
/// The constants are whole hypervisors; a test may change one habit of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a habit of its own, and a hypervisor is a row of them"
)]
pub struct Habits {
    /// Name, for messages.
    pub name: &'static str,
    /// INT3 leaves the guest under `KVM_GUESTDBG_USE_SW_BP`. Otherwise it reaches the guest.
    pub int3_exits: bool,
    /// CPL0 code is emulated: PUSHF and frames of INT n hide TF, a step ends at a handler's first
    /// instruction, MOV SS blocks no trap, and TF is dropped by each instruction.
    pub emulates: bool,
    /// User code in 64-bit mode runs natively, whatever `emulates` says: the trap of a step goes to the
    /// guest's own vector 1, breakpoints do not fire, and a return to user code does not trap.
    pub user_traps_reach_the_guest: bool,
    /// RIP has moved when a port write leaves the guest, and its completion does not trap.
    pub out_moves_rip: bool,
    /// REP MOVSB takes one trap for each iteration. Otherwise all iterations come first, then a
    /// trap with RIP unchanged, then another.
    pub rep_traps_each: bool,
    /// The first instruction that touches a page traps once before it is executed.
    pub spurious_trap: bool,
    /// An exit saves the trap of the instruction that it interrupts, and the next entry brings it: for an
    /// access that has been completed meanwhile, once more.
    pub holds_traps: bool,
    /// What STI and MOV SS block ends as a single step is entered.
    pub step_ends_shadow: bool,
    /// Where HLT ended in the guest, an execute breakpoint behind it comes before the interrupt that ended it.
    pub breakpoint_before_wake_up: bool,
    /// INT1 comes back as a debug exception, with RIP at it.
    pub int1_exits: bool,
    /// While the debugger's DR7 is in force, DR7.GD of the guest's own is not looked at.
    pub debugger_hides_dr7: bool,
    /// Once a masked step has lowered the TPR below a pending interrupt, no entry succeeds before a call that
    /// makes the hypervisor look at what is pending.
    pub keeps_tpr_threshold: bool,
    /// DR6.B0-B3 are set beside BS for debug registers whose address is the next instruction's,
    /// enabled or not.
    pub reports_disabled_breakpoints: bool,
    /// IRET behind which an NMI waits is stepped by the hypervisor itself. The trap leaves the guest if
    /// breakpoints are armed.
    pub steps_to_nmi_window: bool,
    /// Hardware watchpoints fire.
    pub watchpoints: bool,
    /// Registers come and go with `KVM_RUN` (`KVM_CAP_SYNC_REGS`).
    pub sync_regs: bool,
}

impl Habits {
    /// kvm_amd on AMD-V.
    pub const AMD: Self = Self {
        name: "kvm_amd",
        int3_exits: true,
        emulates: false,
        user_traps_reach_the_guest: false,
        out_moves_rip: false,
        rep_traps_each: true,
        spurious_trap: false,
        holds_traps: false,
        step_ends_shadow: false,
        breakpoint_before_wake_up: false,
        int1_exits: false,
        debugger_hides_dr7: false,
        keeps_tpr_threshold: false,
        reports_disabled_breakpoints: true,
        steps_to_nmi_window: true,
        watchpoints: true,
        sync_regs: true,
    };

    /// kvm_intel on VT-x.
    pub const INTEL: Self = Self {
        name: "kvm_intel",
        spurious_trap: true,
        holds_traps: true,
        step_ends_shadow: true,
        breakpoint_before_wake_up: true,
        int1_exits: true,
        debugger_hides_dr7: true,
        keeps_tpr_threshold: true,
        reports_disabled_breakpoints: false,
        steps_to_nmi_window: false,
        ..Self::AMD
    };

    /// kvm_pvm, which emulates CPL0 code.
    pub const PVM: Self = Self {
        name: "kvm_pvm",
        int3_exits: false,
        emulates: true,
        user_traps_reach_the_guest: true,
        out_moves_rip: true,
        rep_traps_each: false,
        spurious_trap: false,
        holds_traps: false,
        step_ends_shadow: false,
        breakpoint_before_wake_up: false,
        int1_exits: false,
        debugger_hides_dr7: false,
        keeps_tpr_threshold: false,
        reports_disabled_breakpoints: false,
        steps_to_nmi_window: false,
        watchpoints: false,
        sync_regs: true,
    };

    /// All of them.
    pub const ALL: [Self; 3] = [Self::AMD, Self::INTEL, Self::PVM];
}
