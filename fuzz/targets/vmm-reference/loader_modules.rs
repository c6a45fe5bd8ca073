//! Modules of any number and size, with any arguments, for a kernel of each protocol: they lie in RAM, whole, apart
//! from one another and from the rest; or all is refused, and nothing is written.
#![no_main]

use std::borrow::Cow;
use std::ops::Range;

use fuzz::Choices;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_reference::loader::{ImageFile, Kernel, Module, load};
use vmm_reference::memory::{GuestRam, MIN_MEMORY, MemoryLayout};

const SIZE: usize = 2 << 20;
static ZEROES: [u8; SIZE] = [0; SIZE];

const KERNELS: [&[u8]; 6] = [
    include_bytes!("../../seeds/loader/pvh-64"),
    include_bytes!("../../seeds/loader/multiboot-elf32"),
    include_bytes!("../../seeds/loader/multiboot2-elf32"),
    include_bytes!("../../seeds/loader/multiboot2-in-low-memory"),
    include_bytes!("../../seeds/loader/bzimage"),
    include_bytes!("../../seeds/loader/vmlinux-64"),
];

fn file(name: &str, bytes: Vec<u8>) -> ImageFile {
    ImageFile {
        name: name.into(),
        bytes: Cow::Owned(bytes),
    }
}

/// What the kernel is told of the modules: their places.
fn places(memory: &GuestRam, kernel: &Kernel<'_>, info: u64) -> Vec<Range<u64>> {
    let word = |at: u64| u64::from(memory.read_obj::<u32>(GuestAddress(at)).expect("RAM"));
    let long = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).expect("RAM");
    match kernel {
        Kernel::Pvh { .. } => {
            let list = long(info + 16);
            (0..word(info + 12))
                .map(|n| long(list + 32 * n)..long(list + 32 * n) + long(list + 32 * n + 8))
                .collect()
        }
        Kernel::Multiboot(_) => {
            let list = word(info + 24);
            (0..word(info + 20))
                .map(|n| word(list + 16 * n)..word(list + 16 * n + 4))
                .collect()
        }
        Kernel::Multiboot2(_) => {
            let (end, mut at) = (info + word(info), info + 8);
            let mut found = Vec::new();
            while at < end {
                if word(at) == 3 {
                    found.push(word(at + 8)..word(at + 12));
                }
                at = (at + word(at + 4)).next_multiple_of(8);
            }
            assert_eq!(at, end, "the tags end where the size says");
            found
        }
        Kernel::BzImage(_) | Kernel::LinuxElf(_) => {
            let (start, size) = (word(info + 0x218), word(info + 0x21c));
            Vec::from_iter((size != 0).then_some(start..start + size))
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices::new(data);
    let kernel = KERNELS[usize::from(choices.byte()) % KERNELS.len()];
    let mut modules = Vec::new();
    for number in 1..=choices.byte() {
        // Lengths from nothing to more than there is, most of them short.
        let mut length = |shift: u8| {
            let value = usize::from(choices.byte());
            value << (choices.byte() % shift)
        };
        modules.push(Module {
            file: file("module", vec![number; length(14)]),
            arguments: match length(11) {
                0 => None,
                length => Some("x".repeat(length)),
            },
        });
    }
    let layout = MemoryLayout::new(MIN_MEMORY).expect("the least is legal");
    let memory: GuestRam =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE)]).expect("2 MiB can be mapped");
    let parsed = Kernel::parse(kernel).expect("the seeds are kernels");
    let loaded = match load(
        &memory,
        layout,
        &file("fuzz", kernel.to_vec()),
        &modules,
        "",
    ) {
        Ok(loaded) => loaded,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            let mut bytes = vec![0xa5; SIZE];
            memory
                .read_slice(&mut bytes, GuestAddress(0))
                .expect("it is RAM");
            assert!(bytes == ZEROES, "written before it was checked: {error}");
            return;
        }
    };
    let info = match loaded.entry {
        vmm_reference::boot::Entry::Protected { ebx, .. } => u64::from(ebx),
        vmm_reference::boot::Entry::Linux32 { esi, .. } => u64::from(esi),
        vmm_reference::boot::Entry::Long { rsi, .. } => rsi,
    };
    let places = places(&memory, &parsed, info);
    assert_eq!(places.len(), modules.len());
    for (number, (place, module)) in places.iter().zip(&modules).enumerate() {
        assert!(layout.is_ram(place));
        let mut there = vec![0; module.file.bytes.len()];
        assert_eq!(place.end - place.start, there.len() as u64);
        memory
            .read_slice(&mut there, GuestAddress(place.start))
            .expect("it is RAM");
        // Also: nothing else was written over it.
        assert!(there == *module.file.bytes, "module {number}");
        let apart = |other: &Range<u64>| place.end <= other.start || other.end <= place.start;
        assert!(apart(&loaded.data.range()));
        assert!(places[number + 1..].iter().all(apart));
    }
});
