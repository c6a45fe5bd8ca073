//! PVH direct boot (Xen docs/misc/pvh.pandoc; `hvm_start_info` in public/arch-x86/hvm/start_info.h).

use std::ops::Range;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};

use super::elf::{ElfImage, Segment};
use super::error::LoadError;
use super::{Request, linux, placement};
use crate::boot::Entry;
use crate::layout;

/// `XEN_HVM_START_MAGIC_VALUE`: "xEn3" with the 0x80 bit of the "E" set.
const START_MAGIC: u32 = 0x336e_c578;
/// Version 1 has the memory map.
const START_VERSION: u32 = 1;

/// Loads the kernel, the initrd as its only module, and the start information.
pub(super) fn load(
    request: &Request<'_>,
    elf: &ElfImage<'_>,
    entry: u32,
) -> Result<Entry, LoadError> {
    let in_kernel = |error| request.kernel_error(error);
    elf.check_entry(u64::from(entry)).map_err(in_kernel)?;
    let ranges: Vec<Range<u64>> = elf.segments.iter().map(Segment::range).collect();
    placement::check_segments(request.layout, &ranges).map_err(in_kernel)?;
    let cmdline = placement::cmdline(request.cmdline, layout::CMDLINE_ROOM - 1)?;
    let kernel_end = placement::end_of(&ranges);
    let initrd = placement::below(request, kernel_end, layout::MMIO_HOLE_START)?;

    linux::write_elf(request, elf)?;
    placement::write_cmdline(request, &cmdline)?;
    placement::write_initrd(request, initrd.as_ref())?;

    let map: Vec<hvm_memmap_table_entry> = request
        .layout
        .map()
        .into_iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.range.start,
            size: entry.range.end - entry.range.start,
            type_: entry.kind.e820_type(),
            reserved: 0,
        })
        .collect();
    let modules: Vec<hvm_modlist_entry> = initrd
        .into_iter()
        .map(|range| hvm_modlist_entry {
            paddr: range.start,
            size: range.end - range.start,
            ..Default::default()
        })
        .collect();
    let info = hvm_start_info {
        magic: START_MAGIC,
        version: START_VERSION,
        nr_modules: u32::from(!modules.is_empty()),
        modlist_paddr: if modules.is_empty() {
            0
        } else {
            layout::MODULES.0
        },
        cmdline_paddr: layout::CMDLINE.0,
        rsdp_paddr: layout::RSDP.0,
        memmap_paddr: layout::MEMORY_MAP.0,
        memmap_entries: u32::try_from(map.len()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    let mut params = BootParams::new(&info, layout::START_INFO);
    params.set_sections(&map, layout::MEMORY_MAP);
    if !modules.is_empty() {
        params.set_modules(&modules, layout::MODULES);
    }
    PvhBootConfigurator::write_bootparams(&params, request.memory)
        .map_err(LoadError::Configurator)?;
    Ok(Entry::Protected {
        rip: entry,
        eax: 0,
        ebx: u32::try_from(layout::START_INFO.0).unwrap_or(u32::MAX),
    })
}
