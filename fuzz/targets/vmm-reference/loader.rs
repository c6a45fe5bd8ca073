//! Any bytes as a kernel file: they parse to a kernel that can be loaded, or are refused with a reason. A kernel
//! is loaded whole, or not at all.
#![no_main]

use std::borrow::Cow;
use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_reference::boot::Entry;
use vmm_reference::loader::{
    Compression, ImageFile, Kernel, LoadError, Loaded, MultibootImage, Segment, load,
};
use vmm_reference::memory::{GuestRam, MIN_MEMORY, MemoryLayout};

const SIZE: usize = 2 << 20;
static ZEROES: [u8; SIZE] = [0; SIZE];

/// The guarantees about segments: they are sorted and do not overlap, each is no longer in the file than in
/// memory, and their bytes are the file's.
fn check_segments(image: &[u8], segments: &[Segment<'_>]) {
    assert!(!segments.is_empty());
    let file = image.as_ptr_range();
    let mut end = 0;
    for segment in segments {
        let Range { start, end: next } = segment.range();
        assert_eq!(next - start, segment.memory_size, "it does not wrap");
        assert!(start >= end, "segments overlap, or are not sorted");
        end = next;
        assert!(segment.data.len() as u64 <= segment.memory_size);
        let data = segment.data.as_ptr_range();
        assert!(segment.data.is_empty() || (file.start <= data.start && data.end <= file.end));
    }
}

fn check_parsed(image: &[u8], kernel: &Kernel<'_>) {
    match kernel {
        Kernel::BzImage(header) => {
            let entry = if header.is_64_bit { 0x200 } else { 0 };
            assert_eq!(header.entry(), header.load_address.saturating_add(entry));
            assert!(header.code_size > entry, "the entry is in the kernel");
            assert!(header.init_size >= header.code_size);
        }
        Kernel::Pvh { elf, .. } | Kernel::LinuxElf(elf) => check_segments(image, &elf.segments),
        Kernel::Multiboot2(kernel) => {
            check_multiboot(image, &kernel.image);
            if let Some(sections) = kernel.sections {
                let bytes = sections.bytes.len() as u64;
                assert_eq!(bytes, u64::from(sections.count) * u64::from(sections.size));
            }
        }
        Kernel::Multiboot(kernel) => check_multiboot(image, kernel),
    }
}

fn check_multiboot(image: &[u8], kernel: &MultibootImage<'_>) {
    check_segments(image, &kernel.segments);
    let entry = u64::from(kernel.entry);
    assert!(kernel.segments.iter().any(|s| s.range().contains(&entry)));
}

fuzz_target!(|image: &[u8]| {
    // They have a target of their own.
    if Compression::of(image).is_some() {
        return;
    }
    let parsed = Kernel::parse(image);
    assert_eq!(parsed, Kernel::parse(image), "a pure function");
    let kernel = match parsed {
        Ok(kernel) => kernel,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    check_parsed(image, &kernel);

    let layout = MemoryLayout::new(MIN_MEMORY).expect("the least is legal");
    let memory: GuestRam =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE)]).expect("2 MiB can be mapped");
    let file = ImageFile {
        name: "fuzz".into(),
        bytes: Cow::Owned(image.to_vec()),
    };
    let loaded = load(&memory, layout, &file, &[], "quiet");
    match &loaded {
        // linux-loader writes the segments before it looks at the notes, and may refuse those.
        Err(LoadError::Loader { .. }) => {}
        Err(error) => {
            assert!(!error.to_string().is_empty());
            let mut bytes = vec![0xa5; SIZE];
            memory
                .read_slice(&mut bytes, GuestAddress(0))
                .expect("it is RAM");
            // As one comparison: a loop over each byte of it would be most of the work.
            assert!(bytes == ZEROES, "written before it was checked: {error}");
        }
        Ok(Loaded { entry, data }) => {
            let start = match *entry {
                Entry::Protected { rip, .. } | Entry::Linux32 { rip, .. } => u64::from(rip),
                Entry::Long { rip, .. } => rip,
            };
            assert!(
                layout.is_ram(&(start..start + 1)),
                "the entry {start:#x} is not in RAM"
            );
            assert!(layout.is_ram(&data.range()));
            let segments = match &kernel {
                Kernel::Pvh { elf, .. } | Kernel::LinuxElf(elf) => &elf.segments[..],
                Kernel::Multiboot(kernel) => &kernel.segments,
                Kernel::Multiboot2(kernel) => &kernel.image.segments,
                Kernel::BzImage(_) => &[],
            };
            for segment in segments {
                let mut there = vec![0; segment.data.len()];
                memory
                    .read_slice(&mut there, GuestAddress(segment.physical))
                    .expect("a loaded segment is in RAM");
                assert_eq!(there, segment.data, "the boot data is not over it");
            }
        }
    }
});
