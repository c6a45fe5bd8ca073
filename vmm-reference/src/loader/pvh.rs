//! PVH direct boot (Xen docs/misc/pvh.pandoc; `hvm_start_info` in public/arch-x86/hvm/start_info.h).

use std::ops::Range;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::GuestAddress;

use super::elf::{ElfImage, Segment};
use super::error::LoadError;
use super::{Loaded, Request, linux, placement};
use crate::boot::{BootData, Entry};
use crate::layout;

/// `XEN_HVM_START_MAGIC_VALUE`: "xEn3" with the 0x80 bit of the "E" set.
const START_MAGIC: u32 = 0x336e_c578;
/// Version 1 has the memory map.
const START_VERSION: u32 = 1;

/// Loads the kernel, the modules, and the start information.
pub(super) fn load(
    request: &Request<'_>,
    elf: &ElfImage<'_>,
    entry: u32,
) -> Result<Loaded, LoadError> {
    let in_kernel = |error| request.kernel_error(error);
    elf.check_entry(u64::from(entry)).map_err(in_kernel)?;
    let ranges: Vec<Range<u64>> = elf.segments.iter().map(Segment::range).collect();
    let plan = placement::Plan::new(request.layout, &ranges).map_err(in_kernel)?;
    let data = plan.data;
    let cmdline = placement::cmdline(request.cmdline, BootData::CMDLINE_ROOM - 1)?;
    let places = plan.below(request, layout::MMIO_HOLE_START)?;
    // The list of modules comes first: its address is known then.
    let mut strings = placement::Area::new(data.modules());
    let list = GuestAddress(strings.add(&vec![0; places.len() * size_of::<hvm_modlist_entry>()])?);
    let mut modules = Vec::new();
    for (module, place) in request.modules.iter().zip(&places) {
        modules.push(hvm_modlist_entry {
            paddr: place.start,
            size: place.end - place.start,
            cmdline_paddr: match &module.arguments {
                Some(text) => strings.add_string(text)?,
                None => 0,
            },
            ..Default::default()
        });
    }

    linux::write_elf(request, elf)?;
    placement::write(request, "the command line", data.cmdline(), &cmdline)?;
    placement::write_modules(request, &places)?;
    strings.write(request, "the modules' command lines")?;

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
    let info = hvm_start_info {
        magic: START_MAGIC,
        version: START_VERSION,
        nr_modules: u32::try_from(modules.len()).unwrap_or(u32::MAX),
        modlist_paddr: if modules.is_empty() { 0 } else { list.0 },
        cmdline_paddr: data.cmdline().0,
        rsdp_paddr: layout::RSDP.0,
        memmap_paddr: data.memory_map().0,
        memmap_entries: u32::try_from(map.len()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    let mut params = BootParams::new(&info, data.start_info());
    params.set_sections(&map, data.memory_map());
    if !modules.is_empty() {
        params.set_modules(&modules, list);
    }
    PvhBootConfigurator::write_bootparams(&params, request.memory)
        .map_err(LoadError::Configurator)?;
    Ok(Loaded {
        entry: Entry::Protected {
            rip: entry,
            eax: 0,
            ebx: u32::try_from(data.start_info().0).unwrap_or(u32::MAX),
        },
        data,
    })
}
