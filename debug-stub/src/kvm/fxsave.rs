//! An XSAVE area in the standard format: x87 and SSE state as FXSAVE lays it out in 64-bit mode (SDM 1 10.5.1, table
//! 10-2), and AVX state behind it (SDM 1 13.4).
//!
//! The area comes from KVM, which may have it from a saved state: its sizes and offsets are fixed here, and nothing in
//! it is taken for one.

use crate::x86_64::FpuState;

/// `struct kvm_xsave.region`: little-endian words.
type Region = [u32; 1024];

/// Bytes of the legacy region, the XSAVE header and AVX state.
const USED: usize = 832;

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
/// XSTATE_BV's bits for x87 and SSE: without them KVM loads the initial state instead.
const X87_AND_SSE: u8 = 0b11;
/// XSTATE_BV's bit for AVX.
const AVX: u8 = 0b100;
/// Each of ST0-ST7 and XMM0-XMM15 has 16 bytes.
const STRIDE: usize = 16;

/// The part of the area that is used here, as bytes.
struct Bytes([u8; USED]);

impl Bytes {
    fn of(region: &Region) -> Self {
        let mut bytes = [0; USED];
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

    /// `N` bytes at `offset`; the offsets are the constants above, which lie inside.
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
}

/// x87 and SSE state from an XSAVE area that KVM filled, and AVX state if the guest has enabled it.
pub(super) fn decode(region: &Region, avx: bool) -> FpuState {
    let bytes = Bytes::of(region);
    let mut state = FpuState {
        st: Default::default(),
        fcw: u16::from_le_bytes(bytes.get(FCW)),
        fsw: u16::from_le_bytes(bytes.get(FSW)),
        ftw_abridged: u8::from_le_bytes(bytes.get(FTW)),
        fop: u16::from_le_bytes(bytes.get(FOP)),
        fip: u64::from_le_bytes(bytes.get(FIP)),
        fdp: u64::from_le_bytes(bytes.get(FDP)),
        xmm: Default::default(),
        mxcsr: u32::from_le_bytes(bytes.get(MXCSR)),
        ymm_high: avx.then_some([[0; 16]; 16]),
    };
    for (index, register) in state.st.iter_mut().enumerate() {
        *register = bytes.get(ST + index * STRIDE);
    }
    for (index, register) in state.xmm.iter_mut().enumerate() {
        *register = bytes.get(XMM + index * STRIDE);
    }
    let [in_use] = bytes.get(XSTATE_BV);
    // Without its bit the state is the initial one: zeros.
    if in_use & AVX != 0 {
        for (index, register) in state.ymm_high.iter_mut().flatten().enumerate() {
            *register = bytes.get(YMM_HIGH + index * STRIDE);
        }
    }
    state
}

/// Puts x87 and SSE state into an XSAVE area, and AVX state if there is one. Leaves the rest of it alone.
pub(super) fn encode(state: &FpuState, region: &mut Region) {
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
    } = state;
    let mut bytes = Bytes::of(region);
    bytes.put(FCW, &fcw.to_le_bytes());
    bytes.put(FSW, &fsw.to_le_bytes());
    bytes.put(FTW, &ftw_abridged.to_le_bytes());
    bytes.put(FOP, &fop.to_le_bytes());
    bytes.put(FIP, &fip.to_le_bytes());
    bytes.put(FDP, &fdp.to_le_bytes());
    bytes.put(MXCSR, &mxcsr.to_le_bytes());
    for (index, register) in st.iter().enumerate() {
        bytes.put(ST + index * STRIDE, register);
    }
    for (index, register) in xmm.iter().enumerate() {
        bytes.put(XMM + index * STRIDE, register);
    }
    let [mut in_use] = bytes.get(XSTATE_BV);
    in_use |= X87_AND_SSE;
    if let Some(registers) = ymm_high {
        in_use |= AVX;
        for (index, register) in registers.iter().enumerate() {
            bytes.put(YMM_HIGH + index * STRIDE, register);
        }
    }
    bytes.put(XSTATE_BV, &[in_use]);
    bytes.store(region);
}

#[cfg(test)]
mod tests {
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
        encode(&state, &mut region);
        assert_eq!(decode(&region, false), state);
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

    #[test]
    fn avx_state_is_behind_the_header_and_zero_without_its_bit() {
        let mut state = FpuState {
            ymm_high: Some([[0; 16]; 16]),
            ..FpuState::default()
        };
        for (n, register) in (0x41..).zip(state.ymm_high.iter_mut().flatten()) {
            *register = [n; 16];
        }
        let before = [0; 1024];
        let mut region = before;
        encode(&state, &mut region);
        assert_eq!(region[128], 0b111);
        assert_eq!((region[144], region[207]), (0x4141_4141, 0x5050_5050));
        assert_eq!(region[208..], before[208..]);
        assert_eq!(decode(&region, true), state);
        assert_eq!(decode(&region, false).ymm_high, None);
        region[128] = 0b011;
        assert_eq!(decode(&region, true).ymm_high, Some([[0; 16]; 16]));
        // A guest that has not enabled AVX: its part of the area stays.
        let mut region = [0xdddd_dddd; 1024];
        encode(&FpuState::default(), &mut region);
        assert_eq!(region[144..], [0xdddd_dddd; 1024 - 144]);
    }

    /// A saved state may say anything.
    #[test]
    fn no_area_is_read_beyond_its_parts() {
        for fill in [0, 0x0101_0101, u32::MAX] {
            let region = [fill; 1024];
            for avx in [false, true] {
                let state = decode(&region, avx);
                assert_eq!(state.ymm_high.is_some(), avx);
                let mut back = region;
                encode(&state, &mut back);
                assert_eq!(back[208..], region[208..]);
            }
        }
    }
}
