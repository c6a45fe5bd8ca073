//! An XSAVE area in the standard format: x87 and SSE state as FXSAVE lays it out in 64-bit mode (SDM 1 10.5.1, table
//! 10-2), and AVX, AVX-512 and PKRU behind it (SDM 1 13.4, 13.5).
//!
//! The area comes from KVM, which may have it from a saved state: nothing in it is taken for a size or an offset.

use std::sync::OnceLock;

use crate::x86_64::{Avx512State, FpuState, StateComponents};

/// `struct kvm_xsave.region`: little-endian words.
type Region = [u32; 1024];

/// Bytes of a [`Region`].
const SIZE: usize = size_of::<Region>();

// Offsets in bytes.
const FCW: usize = 0;
const FSW: usize = 2;
const FTW: usize = 4;
const FOP: usize = 6;
const FIP: usize = 8;
const FDP: usize = 16;
const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;
/// XSTATE_BV, the XSAVE header's first word (SDM 1 13.4.2).
const XSTATE_BV: usize = 512;
/// Upper halves of YMM0-YMM15: CPUID(0xd, 2).EBX, which is this on every CPU (SDM 1 13.5.3).
const YMM_HIGH: usize = 576;
/// The end of AVX state.
const AVX_END: usize = 832;
/// Each of ST0-ST7 and XMM0-XMM15 has 16 bytes.
const STRIDE: usize = 16;
/// The parts of a ZMM register: an XMM register, the upper half of a YMM register, and its own upper half.
const ZMM_YMM_HIGH: usize = 16;
const ZMM_HIGH: usize = 32;
/// The ZMM registers of which ZMM_Hi256 holds the upper halves.
const LOW_ZMM: usize = 16;
/// Each of ZMM16-ZMM31 has 64 bytes.
const ZMM_STRIDE: usize = 64;

/// The number of a state component: its bit in XCR0 and in XSTATE_BV, and its sub-leaf of CPUID leaf 0xd (SDM 1 13.1).
#[derive(Clone, Copy)]
struct Component(u32);

impl Component {
    const X87: Self = Self(0);
    const SSE: Self = Self(1);
    const AVX: Self = Self(2);
    /// K0-K7.
    const OPMASK: Self = Self(5);
    /// Bits 511:256 of ZMM0-ZMM15.
    const ZMM_HI256: Self = Self(6);
    /// ZMM16-ZMM31.
    const HI16_ZMM: Self = Self(7);
    const PKRU: Self = Self(9);

    const fn bit(self) -> u64 {
        1 << self.0
    }
}

const X87_AND_SSE: u64 = Component::X87.bit() | Component::SSE.bit();
const AVX: u64 = Component::SSE.bit() | Component::AVX.bit();
const AVX512_ALONE: u64 =
    Component::OPMASK.bit() | Component::ZMM_HI256.bit() | Component::HI16_ZMM.bit();
const AVX512: u64 = AVX | AVX512_ALONE;

/// The components that a guest with this XCR0 has enabled.
pub(super) fn components(xcr0: u64) -> StateComponents {
    let has = |bits| xcr0 & bits == bits;
    let mut enabled = StateComponents::empty();
    enabled.set(StateComponents::AVX, has(AVX));
    enabled.set(StateComponents::AVX512, has(AVX512));
    enabled.set(StateComponents::PKRU, has(Component::PKRU.bit()));
    enabled
}

/// The components that are behind AVX in an area.
const BEHIND_AVX: StateComponents = StateComponents::AVX512.union(StateComponents::PKRU);

/// Where the components behind AVX are, in bytes: Intel and AMD differ. `None` for what the host lacks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Offsets {
    avx512: Option<Avx512Offsets>,
    pkru: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Avx512Offsets {
    opmask: usize,
    zmm_hi256: usize,
    hi16_zmm: usize,
}

impl Offsets {
    /// The host's: `KVM_GET_XSAVE` lays out the area by them, whatever the guest's CPUID says.
    pub(super) fn of_host() -> Self {
        static HOST: OnceLock<Offsets> = OnceLock::new();
        *HOST.get_or_init(|| Self::new(host_leaf))
    }

    /// From EAX and EBX of a sub-leaf of CPUID leaf 0xd: size and offset (SDM 1 13.2).
    fn new(sub_leaf: impl Fn(u32) -> [u32; 2]) -> Self {
        let at = |component: Component, size: usize| {
            let [has, offset] = sub_leaf(component.0).map(|n| usize::try_from(n).unwrap_or(SIZE));
            let fits = offset >= YMM_HIGH && offset.saturating_add(has) <= SIZE;
            (has >= size && fits).then_some(offset)
        };
        let avx512 = || {
            Some(Avx512Offsets {
                opmask: at(Component::OPMASK, 64)?,
                zmm_hi256: at(Component::ZMM_HI256, 512)?,
                hi16_zmm: at(Component::HI16_ZMM, 1024)?,
            })
        };
        Self {
            avx512: avx512(),
            pkru: at(Component::PKRU, 4),
        }
    }
}

/// EAX and EBX of a sub-leaf of the host's CPUID leaf 0xd, or zeros.
fn host_leaf(sub_leaf: u32) -> [u32; 2] {
    const LEAF: u32 = 0xd;
    #[expect(unsafe_code, reason = "CPUID is an intrinsic")]
    #[allow(unused_unsafe, reason = "later versions of Rust have safe ones")]
    // SAFETY: every x86-64 CPU has CPUID.
    let found = unsafe {
        if std::arch::x86_64::__cpuid(0).eax < LEAF {
            return [0; 2];
        }
        std::arch::x86_64::__cpuid_count(LEAF, sub_leaf)
    };
    [found.eax, found.ebx]
}

/// The first `LENGTH` bytes of an area. Most guests have no component behind AVX, and need [`AVX_END`] of them.
struct Bytes<const LENGTH: usize>([u8; LENGTH]);

impl<const LENGTH: usize> Bytes<LENGTH> {
    fn of(region: &Region) -> Self {
        let mut bytes = [0; LENGTH];
        for (to, word) in bytes.chunks_exact_mut(4).zip(region) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        Self(bytes)
    }

    fn store(&self, region: &mut Region) {
        for (word, from) in region.iter_mut().zip(self.0.chunks_exact(4)) {
            *word = from
                .iter()
                .rev()
                .fold(0, |word, byte| (word << 8) | u32::from(*byte));
        }
    }

    /// `N` bytes at `offset`, which lies inside: it is one of the constants above, or was checked in [`Offsets`].
    fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut value = [0; N];
        for (to, from) in value.iter_mut().zip(self.0.iter().skip(offset)) {
            *to = *from;
        }
        value
    }

    fn put(&mut self, offset: usize, value: &[u8]) {
        for (to, from) in self.0.iter_mut().skip(offset).zip(value) {
            *to = *from;
        }
    }

    /// Registers at equal distances.
    fn get_each<const N: usize>(&self, offset: usize, stride: usize, registers: &mut [[u8; N]]) {
        for (index, register) in registers.iter_mut().enumerate() {
            *register = self.get(offset + index * stride);
        }
    }

    fn put_each<const N: usize>(&mut self, offset: usize, stride: usize, registers: &[[u8; N]]) {
        for (index, register) in registers.iter().enumerate() {
            self.put(offset + index * stride, register);
        }
    }
}

/// x87 and SSE state from an XSAVE area that KVM filled, and the state of the components that the guest has `enabled`.
pub(super) fn decode(region: &Region, enabled: StateComponents, offsets: Offsets) -> FpuState {
    if enabled.intersects(BEHIND_AVX) {
        Bytes::<SIZE>::of(region).decode(enabled, offsets)
    } else {
        Bytes::<AVX_END>::of(region).decode(enabled, offsets)
    }
}

/// Puts x87 and SSE state into an XSAVE area, and that of the components that `state` has. Leaves the rest of it
/// alone.
pub(super) fn encode(state: &FpuState, region: &mut Region, offsets: Offsets) {
    if state.components().intersects(BEHIND_AVX) {
        let mut bytes = Bytes::<SIZE>::of(region);
        bytes.encode(state, offsets);
        bytes.store(region);
    } else {
        let mut bytes = Bytes::<AVX_END>::of(region);
        bytes.encode(state, offsets);
        bytes.store(region);
    }
}

impl<const LENGTH: usize> Bytes<LENGTH> {
    fn decode(&self, enabled: StateComponents, offsets: Offsets) -> FpuState {
        let mut state = FpuState {
            st: Default::default(),
            fcw: u16::from_le_bytes(self.get(FCW)),
            fsw: u16::from_le_bytes(self.get(FSW)),
            ftw_abridged: u8::from_le_bytes(self.get(FTW)),
            fop: u16::from_le_bytes(self.get(FOP)),
            fip: u64::from_le_bytes(self.get(FIP)),
            fdp: u64::from_le_bytes(self.get(FDP)),
            xmm: Default::default(),
            mxcsr: u32::from_le_bytes(self.get(MXCSR)),
            ymm_high: enabled
                .contains(StateComponents::AVX)
                .then_some([[0; 16]; 16]),
            avx512: None,
            pkru: None,
        };
        self.get_each(ST, STRIDE, &mut state.st);
        self.get_each(XMM, STRIDE, &mut state.xmm);
        // Without its bit a component has its initial state: zeros.
        let in_use = u64::from_le_bytes(self.get(XSTATE_BV));
        if let (Some(high), true) = (&mut state.ymm_high, in_use & Component::AVX.bit() != 0) {
            self.get_each(YMM_HIGH, STRIDE, high);
        }
        if let (Some(at), true) = (offsets.avx512, enabled.contains(StateComponents::AVX512)) {
            state.avx512 = Some(Box::new(self.decode_avx512(in_use, at)));
        }
        if let (Some(at), true) = (offsets.pkru, enabled.contains(StateComponents::PKRU)) {
            // Whatever its bit says: KVM keeps PKRU elsewhere and puts it here, on some kernels without the bit
            // (fpu/xstate.c, `__copy_xstate_to_uabi_buf`).
            state.pkru = Some(u32::from_le_bytes(self.get(at)));
        }
        state
    }

    fn decode_avx512(&self, in_use: u64, at: Avx512Offsets) -> Avx512State {
        let mut state = Avx512State::default();
        if in_use & Component::OPMASK.bit() != 0 {
            for (register, offset) in state.opmask.iter_mut().zip((at.opmask..).step_by(8)) {
                *register = u64::from_le_bytes(self.get(offset));
            }
        }
        let (low, high) = state.zmm_high.split_at_mut(LOW_ZMM);
        if in_use & Component::ZMM_HI256.bit() != 0 {
            self.get_each(at.zmm_hi256, 32, low);
        }
        if in_use & Component::HI16_ZMM.bit() != 0 {
            self.get_each(at.hi16_zmm, ZMM_STRIDE, &mut state.xmm);
            let ymm_high = at.hi16_zmm + ZMM_YMM_HIGH;
            self.get_each(ymm_high, ZMM_STRIDE, &mut state.ymm_high);
            self.get_each(at.hi16_zmm + ZMM_HIGH, ZMM_STRIDE, high);
        }
        state
    }

    fn encode(&mut self, state: &FpuState, offsets: Offsets) {
        let FpuState {
            st,
            fcw,
            fsw,
            ftw_abridged,
            fop,
            fip,
            fdp,
            xmm,
            mxcsr,
            ymm_high,
            avx512,
            pkru,
        } = state;
        self.put(FCW, &fcw.to_le_bytes());
        self.put(FSW, &fsw.to_le_bytes());
        self.put(FTW, &ftw_abridged.to_le_bytes());
        self.put(FOP, &fop.to_le_bytes());
        self.put(FIP, &fip.to_le_bytes());
        self.put(FDP, &fdp.to_le_bytes());
        self.put(MXCSR, &mxcsr.to_le_bytes());
        self.put_each(ST, STRIDE, st);
        self.put_each(XMM, STRIDE, xmm);
        // Without its bit KVM loads a component's initial state instead.
        let mut in_use = u64::from_le_bytes(self.get(XSTATE_BV)) | X87_AND_SSE;
        if let Some(registers) = ymm_high {
            in_use |= Component::AVX.bit();
            self.put_each(YMM_HIGH, STRIDE, registers);
        }
        if let (Some(state), Some(at)) = (avx512, offsets.avx512) {
            in_use |= AVX512_ALONE;
            self.encode_avx512(state, at);
        }
        if let (Some(pkru), Some(at)) = (pkru, offsets.pkru) {
            let value = pkru.to_le_bytes();
            // Without its bit KVM leaves PKRU as it is (fpu/core.c, `fpu_copy_uabi_to_guest_fpstate`). So the write of
            // another register sets no PKRU that KVM did not show.
            if self.get(at) != value {
                in_use |= Component::PKRU.bit();
                self.put(at, &value);
            }
        }
        self.put(XSTATE_BV, &in_use.to_le_bytes());
    }

    fn encode_avx512(&mut self, state: &Avx512State, at: Avx512Offsets) {
        let Avx512State {
            opmask,
            zmm_high,
            xmm,
            ymm_high,
        } = state;
        self.put_each(at.opmask, 8, &opmask.map(u64::to_le_bytes));
        let (low, high) = zmm_high.split_at(LOW_ZMM);
        self.put_each(at.zmm_hi256, 32, low);
        self.put_each(at.hi16_zmm, ZMM_STRIDE, xmm);
        self.put_each(at.hi16_zmm + ZMM_YMM_HIGH, ZMM_STRIDE, ymm_high);
        self.put_each(at.hi16_zmm + ZMM_HIGH, ZMM_STRIDE, high);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_register_has_its_place_and_nothing_else_is_touched() {
        let mut state = FpuState {
            fcw: 0x037f,
            fsw: 0x1122,
            ftw_abridged: 0xa5,
            fop: 0x0701,
            fip: 0x8877_6655_4433_2211,
            fdp: 0x1020_3040_5060_7080,
            mxcsr: 0x1fbf,
            ..FpuState::default()
        };
        for (n, register) in (1..).zip(&mut state.st) {
            *register = [n; 10];
        }
        for (n, register) in (0x11..).zip(&mut state.xmm) {
            *register = [n; 16];
        }
        let before = [0xdddd_dddd; 1024];
        let mut region = before;
        encode(&state, &mut region, Offsets::default());
        let decoded = decode(&region, StateComponents::empty(), Offsets::default());
        assert_eq!(decoded, state);
        // Independent of the constants above: word offsets of the FXSAVE image.
        assert_eq!(region[0], 0x1122_037f);
        assert_eq!(
            region[1], 0x0701_dda5,
            "the byte behind the tag word is reserved"
        );
        assert_eq!((region[2], region[3]), (0x4433_2211, 0x8877_6655));
        assert_eq!((region[4], region[5]), (0x5060_7080, 0x1020_3040));
        assert_eq!(region[6], 0x1fbf);
        assert_eq!(region[7], 0xdddd_dddd, "MXCSR_MASK stays");
        assert_eq!(region[8], 0x0101_0101);
        assert_eq!(region[10], 0xdddd_0101, "the padding behind ST0 stays");
        assert_eq!(region[40], 0x1111_1111);
        assert_eq!(region[103], 0x2020_2020);
        assert_eq!(region[104..128], before[104..128]);
        assert_eq!(region[128], 0xdddd_dddf);
        assert_eq!(region[129..], before[129..]);
    }

    /// Sizes and offsets as Intel's CPUs have them, independent of the constants above.
    fn intel(sub_leaf: u32) -> [u32; 2] {
        match sub_leaf {
            2 => [256, 576],
            5 => [64, 1088],
            6 => [512, 1152],
            7 => [1024, 1664],
            9 => [8, 2688],
            _ => [0, 0],
        }
    }

    /// A state with all components, whose bytes are `first` and those that follow.
    fn full(first: u8) -> FpuState {
        let mut next = first;
        let mut byte = || {
            next = next.wrapping_mul(5).wrapping_add(3);
            next
        };
        let mut avx512 = Avx512State::default();
        for register in &mut avx512.opmask {
            *register = u64::from_le_bytes([(); 8].map(|()| byte()));
        }
        for register in &mut avx512.zmm_high {
            *register = [(); 32].map(|()| byte());
        }
        for register in avx512.xmm.iter_mut().chain(&mut avx512.ymm_high) {
            *register = [(); 16].map(|()| byte());
        }
        FpuState {
            ymm_high: Some([[byte(); 16]; 16]),
            avx512: Some(Box::new(avx512)),
            pkru: Some(0x5555_5554),
            ..FpuState::default()
        }
    }

    #[test]
    fn xcr0_enables_components_and_avx512_needs_all_of_its_bits() {
        let (avx, avx512, pkru) = (
            StateComponents::AVX,
            StateComponents::AVX512,
            StateComponents::PKRU,
        );
        for (xcr0, enabled) in [
            (0, StateComponents::empty()),
            (0x3, StateComponents::empty()),
            (0x5, StateComponents::empty()),
            (0x7, avx),
            (0xe3, StateComponents::empty()),
            (0x67, avx),
            (0xa7, avx),
            (0xc7, avx),
            (0xe7, avx | avx512),
            (0x203, pkru),
            (0x2e7, avx | avx512 | pkru),
        ] {
            assert_eq!(components(xcr0), enabled, "{xcr0:#x}");
        }
    }

    #[test]
    fn avx_state_is_behind_the_header_and_zero_without_its_bit() {
        let mut state = FpuState {
            ymm_high: Some([[0; 16]; 16]),
            ..FpuState::default()
        };
        for (n, register) in (0x41..).zip(state.ymm_high.iter_mut().flatten()) {
            *register = [n; 16];
        }
        let offsets = Offsets::default();
        let before = [0; 1024];
        let mut region = before;
        encode(&state, &mut region, offsets);
        assert_eq!(region[128], 0b111);
        assert_eq!((region[144], region[207]), (0x4141_4141, 0x5050_5050));
        assert_eq!(region[208..], before[208..]);
        assert_eq!(decode(&region, StateComponents::AVX, offsets), state);
        let none = decode(&region, StateComponents::empty(), offsets);
        assert_eq!(none.ymm_high, None);
        region[128] = 0b011;
        let initial = decode(&region, StateComponents::AVX, offsets);
        assert_eq!(initial.ymm_high, Some([[0; 16]; 16]));
        // A guest that has not enabled AVX: its part of the area stays.
        let mut region = [0xdddd_dddd; 1024];
        encode(&FpuState::default(), &mut region, offsets);
        assert_eq!(region[144..], [0xdddd_dddd; 1024 - 144]);
    }

    #[test]
    fn avx512_state_is_where_cpuid_says() {
        let mut state = FpuState {
            ymm_high: Some([[0; 16]; 16]),
            avx512: Some(Box::default()),
            pkru: Some(0x1234_5678),
            ..FpuState::default()
        };
        let avx512 = state.avx512.as_mut().unwrap();
        avx512.opmask[0] = 0x0807_0605_0403_0201;
        avx512.opmask[7] = 0x1817_1615_1413_1211;
        avx512.zmm_high[0] = [0x20; 32];
        avx512.zmm_high[15] = [0x2f; 32];
        avx512.zmm_high[16] = [0x30; 32];
        avx512.zmm_high[31] = [0x3f; 32];
        avx512.xmm[0] = [0x40; 16];
        avx512.xmm[15] = [0x4f; 16];
        avx512.ymm_high[0] = [0x50; 16];
        avx512.ymm_high[15] = [0x5f; 16];
        let mut region = [0; 1024];
        encode(&state, &mut region, Offsets::new(intel));
        assert_eq!(region[128], 0b10_1110_0111);
        // Word offsets: those in bytes by 4.
        assert_eq!((region[272], region[287]), (0x0403_0201, 0x1817_1615));
        assert_eq!((region[288], region[295]), (0x2020_2020, 0x2020_2020));
        assert_eq!((region[408], region[415]), (0x2f2f_2f2f, 0x2f2f_2f2f));
        for (at, value) in [
            (416, 0x4040_4040),
            (419, 0x4040_4040),
            (420, 0x5050_5050),
            (423, 0x5050_5050),
            (424, 0x3030_3030),
            (431, 0x3030_3030),
            (656, 0x4f4f_4f4f),
            (660, 0x5f5f_5f5f),
            (664, 0x3f3f_3f3f),
            (671, 0x3f3f_3f3f),
            (672, 0x1234_5678),
        ] {
            assert_eq!(region[at], value, "word {at}");
        }
        assert_eq!(region[673..], [0; 1024 - 673]);
    }

    /// AMD's CPUs have PKRU elsewhere.
    #[test]
    fn pkru_follows_its_offset() {
        let amd = |sub_leaf| match sub_leaf {
            9 => [8, 2432],
            other => intel(other),
        };
        let mut state = FpuState {
            pkru: Some(0x5555_5554),
            ..FpuState::default()
        };
        let mut region = [0; 1024];
        encode(&state, &mut region, Offsets::new(amd));
        assert_eq!((region[608], region[128]), (0x5555_5554, 0b10_0000_0011));
        let decoded =
            |region: &Region| decode(region, StateComponents::PKRU, Offsets::new(amd)).pkru;
        assert_eq!(decoded(&region), Some(0x5555_5554));
        // KVM's value without the bit, which a write of the same value leaves clear.
        region[128] = 0b11;
        assert_eq!(decoded(&region), Some(0x5555_5554));
        encode(&state, &mut region, Offsets::new(amd));
        assert_eq!(region[128], 0b11);
        state.pkru = Some(0);
        encode(&state, &mut region, Offsets::new(amd));
        assert_eq!((region[608], region[128]), (0, 0b10_0000_0011));
    }

    #[test]
    fn each_part_of_avx512_is_zero_without_its_bit() {
        let offsets = Offsets::new(intel);
        let state = full(7);
        let was = state.avx512.as_ref().unwrap();
        let mut region = [0; 1024];
        encode(&state, &mut region, offsets);
        assert_eq!(decode(&region, StateComponents::all(), offsets), state);
        for bit in [5, 6, 7] {
            let mut region = region;
            region[128] &= !(1 << bit);
            let decoded = decode(&region, StateComponents::all(), offsets);
            let is = decoded.avx512.unwrap();
            let zero = Avx512State::default();
            let mut expected = was.clone();
            match bit {
                5 => expected.opmask = zero.opmask,
                6 => expected.zmm_high[..16].copy_from_slice(&zero.zmm_high[..16]),
                _ => {
                    expected.zmm_high[16..].copy_from_slice(&zero.zmm_high[16..]);
                    (expected.xmm, expected.ymm_high) = (zero.xmm, zero.ymm_high);
                }
            }
            assert_eq!(is, expected, "bit {bit}");
        }
    }

    /// A guest that has not enabled them: their part of the area stays.
    #[test]
    fn components_that_are_not_enabled_are_not_touched() {
        let offsets = Offsets::new(intel);
        let before = [0xdddd_dddd; 1024];
        let state = decode(&before, StateComponents::empty(), offsets);
        assert_eq!(state.components(), StateComponents::empty());
        let mut region = before;
        encode(&state, &mut region, offsets);
        assert_eq!(region[129..], before[129..]);
    }

    #[test]
    fn a_component_that_the_host_lacks_or_puts_outside_is_not_there() {
        let none = Offsets::new(|_| [0, 0]);
        let outside = Offsets::new(|sub_leaf| {
            let [size, _] = intel(sub_leaf);
            [size, 4096 - size + 1]
        });
        let far = Offsets::new(|_| [u32::MAX, u32::MAX]);
        let over_the_header = Offsets::new(|_| [u32::MAX, 512]);
        let small = Offsets::new(|sub_leaf| {
            let [size, offset] = intel(sub_leaf);
            [size / 2 - 1, offset]
        });
        for offsets in [none, outside, far, over_the_header, small] {
            let state = decode(&[0xff; 1024], StateComponents::all(), offsets);
            assert_eq!(state.avx512, None, "{offsets:?}");
            assert_eq!(state.pkru, None, "{offsets:?}");
        }
    }

    proptest! {
        /// A saved state may say anything.
        #[test]
        fn what_was_decoded_encodes_to_the_same_state(
            region in proptest::collection::vec(any::<u32>(), 1024),
            components in 0u8..8,
        ) {
            let region = Region::try_from(region).unwrap();
            let components = StateComponents::from_bits_truncate(components);
            let offsets = Offsets::new(intel);
            let state = decode(&region, components, offsets);
            prop_assert_eq!(state.components(), components);
            let mut back = region;
            encode(&state, &mut back, offsets);
            prop_assert_eq!(decode(&back, components, offsets), state);
            // The XSAVE header but XSTATE_BV, and what is behind PKRU, or behind AVX without it.
            prop_assert_eq!(&back[130..144], &region[130..144]);
            prop_assert_eq!(&back[673..], &region[673..]);
            if !components.intersects(StateComponents::AVX512 | StateComponents::PKRU) {
                prop_assert_eq!(&back[208..], &region[208..]);
            }
        }
    }
}
