//! One line of a CPUID table.

/// The result of CPUID for one leaf and subleaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct CpuidEntry {
    /// EAX before CPUID.
    pub leaf: u32,
    /// ECX before CPUID.
    pub subleaf: u32,
    /// `true` if the subleaf matters (`KVM_CPUID_FLAG_SIGNIFCANT_INDEX`).
    pub indexed: bool,
    /// EAX after CPUID.
    pub eax: u32,
    /// EBX after CPUID.
    pub ebx: u32,
    /// ECX after CPUID.
    pub ecx: u32,
    /// EDX after CPUID.
    pub edx: u32,
}

impl CpuidEntry {
    /// Returns `true` if this is leaf 0 of an AMD or Hygon CPU: EBX holds the vendor's first four
    /// letters.
    pub(super) fn is_amd_vendor(&self) -> bool {
        let first = self.ebx.to_le_bytes();
        self.leaf == 0 && (first == *b"Auth" || first == *b"Hygo")
    }
}

/// Replaces the bits of `register` from `low`, `width` of them, by `value`. A value that is too
/// large becomes the largest that fits: CPUID fields of counts saturate.
pub(super) fn set_field(register: &mut u32, low: u32, width: u32, value: u32) {
    let largest = u32::MAX.checked_shr(32 - width).unwrap_or(0);
    *register = (*register & !(largest << low)) | (value.min(largest) << low);
}

/// Sets or clears one bit of `register`.
pub(super) fn set_bit(register: &mut u32, bit: u32, on: bool) {
    set_field(register, bit, 1, u32::from(on));
}
