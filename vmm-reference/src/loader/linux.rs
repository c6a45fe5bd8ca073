//! Linux's boot protocol (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"; "32-bit Boot Protocol" for
//! kernels without a 64-bit entry).

use std::io::Cursor;
use std::ops::Range;

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage as BzImageLoader, Elf as ElfLoader, KernelLoader};
use vm_memory::{ByteValued, GuestAddress};

use super::bzimage::{self, BzImage};
use super::elf::{ElfClass, ElfImage, Segment};
use super::error::{ImageError, LoadError};
use super::placement::Plan;
use super::{Loaded, Module, Request, placement};
use crate::boot::{BootData, Entry};
use crate::layout;

/// `HdrS`.
const HEADER_MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// Where the header begins in the file, and where its jump ends.
const HEADER_START: u64 = 0x1f1;
const JUMP_END: u64 = 0x202;
/// "Undefined" boot loader: none of the assigned numbers.
const LOADER_UNDEFINED: u8 = 0xff;
/// Linux's COMMAND_LINE_SIZE on x86, with the terminating zero. An ELF file does not contain it.
const COMMAND_LINE_SIZE: u32 = 2048;
/// `kernel_alignment` for an ELF file, which is loaded where it was linked: 16 MiB is the default.
const KERNEL_ALIGNMENT: u32 = 0x0100_0000;

/// Loads a bzImage at the address that it prefers: it need not move itself.
pub(super) fn load_bzimage(request: &Request<'_>, image: &BzImage) -> Result<Loaded, LoadError> {
    let in_kernel = |error| request.kernel_error(error);
    let ranges = image.ranges().map_err(in_kernel)?;
    let plan = Plan::new(request.layout, &ranges).map_err(in_kernel)?;
    let at_entry = if image.is_64_bit {
        AtEntry::Long(image.entry())
    } else {
        let entry = image.entry();
        let rip =
            u32::try_from(entry).map_err(|_| in_kernel(ImageError::EntryOutside { entry }))?;
        AtEntry::Protected(rip)
    };
    let cmdline = placement::cmdline(request.cmdline, image.cmdline_size)?;
    let limit = image.initrd_max.saturating_add(1);
    let initrd = initrd(request, &plan, limit)?;

    let loaded = BzImageLoader::load(
        request.memory,
        Some(GuestAddress(image.load_address)),
        &mut Cursor::new(&request.kernel.bytes),
        None,
    )
    .map_err(|source| loader_error(request, source))?;
    let header = own_fields(loaded.setup_header.unwrap_or_default());
    finish(
        request,
        plan.data,
        header,
        &cmdline,
        initrd.as_ref(),
        at_entry,
    )
}

/// The initrd's place. Linux takes one, without arguments.
fn initrd(request: &Request<'_>, plan: &Plan, limit: u64) -> Result<Option<Range<u64>>, LoadError> {
    match request.modules {
        []
        | [
            Module {
                arguments: None, ..
            },
        ] => {}
        [Module { file, .. }] => {
            return Err(LoadError::InitrdArguments {
                file: file.name.clone(),
            });
        }
        several => return Err(LoadError::SeveralInitrds(several.len())),
    }
    Ok(plan.below(request, limit)?.pop())
}

/// The entry, in its mode.
#[derive(Clone, Copy)]
enum AtEntry {
    Protected(u32),
    Long(u64),
}

/// The header, zero beyond its end in the file, where code begins: older kernels have fewer fields
/// ("Details of Header Fields", `jump`: the offset of a two-byte jump over the rest).
fn own_fields(mut header: setup_header) -> setup_header {
    let [_, jump] = header.jump.to_le_bytes();
    let end = (JUMP_END + u64::from(jump)).max(bzimage::HEADER_END);
    for (at, byte) in (HEADER_START..).zip(header.as_mut_slice()) {
        if at >= end {
            *byte = 0;
        }
    }
    header
}

/// Loads an ELF `vmlinux` at the physical addresses in its headers.
pub(super) fn load_elf(request: &Request<'_>, elf: &ElfImage<'_>) -> Result<Loaded, LoadError> {
    let in_kernel = |error| request.kernel_error(error);
    let entry = elf.physical_entry().map_err(in_kernel)?;
    let ranges: Vec<Range<u64>> = elf.segments.iter().map(Segment::range).collect();
    let plan = Plan::new(request.layout, &ranges).map_err(in_kernel)?;
    let cmdline = placement::cmdline(request.cmdline, u64::from(COMMAND_LINE_SIZE - 1))?;
    let initrd = initrd(request, &plan, layout::MMIO_HOLE_START)?;

    write_elf(request, elf)?;
    let header = setup_header {
        header: HEADER_MAGIC,
        boot_flag: BOOT_FLAG,
        kernel_alignment: KERNEL_ALIGNMENT,
        cmdline_size: COMMAND_LINE_SIZE - 1,
        ..Default::default()
    };
    let at_entry = AtEntry::Long(entry);
    finish(
        request,
        plan.data,
        header,
        &cmdline,
        initrd.as_ref(),
        at_entry,
    )
}

/// Writes an ELF kernel's segments: 64-bit files through linux-loader, which supports no others.
pub(super) fn write_elf(request: &Request<'_>, elf: &ElfImage<'_>) -> Result<(), LoadError> {
    match elf.class {
        ElfClass::Elf32 => placement::write_segments(request, &elf.segments),
        ElfClass::Elf64 => ElfLoader::load(
            request.memory,
            None,
            &mut Cursor::new(&request.kernel.bytes),
            None,
        )
        .map(|_| ())
        .map_err(|source| loader_error(request, source)),
    }
}

fn loader_error(request: &Request<'_>, source: linux_loader::loader::Error) -> LoadError {
    LoadError::Loader {
        file: request.kernel.name.clone(),
        source,
    }
}

/// Writes the command line, the initrd and the zero page.
fn finish(
    request: &Request<'_>,
    data: BootData,
    header: setup_header,
    cmdline: &[u8],
    initrd: Option<&Range<u64>>,
    entry: AtEntry,
) -> Result<Loaded, LoadError> {
    placement::write(request, "the command line", data.cmdline(), cmdline)?;
    placement::write_modules(
        request,
        initrd.map(std::slice::from_ref).unwrap_or_default(),
    )?;

    let low = |address: u64| u32::try_from(address).unwrap_or(u32::MAX);
    let mut params = boot_params {
        hdr: header,
        ..Default::default()
    };
    params.acpi_rsdp_addr = layout::RSDP.0;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = low(data.cmdline().0);
    if let Some(range) = initrd {
        params.hdr.ramdisk_image = low(range.start);
        params.hdr.ramdisk_size = low(range.end - range.start);
    }
    let map = request.layout.map();
    params.e820_entries = u8::try_from(map.len()).unwrap_or(u8::MAX);
    for (slot, entry) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: entry.range.start,
            size: entry.range.end - entry.range.start,
            r#type: entry.kind.e820_type(),
        };
    }
    LinuxBootConfigurator::write_bootparams(
        &BootParams::new(&params, data.zero_page()),
        request.memory,
    )
    .map_err(LoadError::Configurator)?;
    let entry = match entry {
        AtEntry::Protected(rip) => Entry::Linux32 {
            rip,
            esi: low(data.zero_page().0),
        },
        AtEntry::Long(rip) => Entry::Long {
            rip,
            rsi: data.zero_page().0,
        },
    };
    Ok(Loaded { entry, data })
}
