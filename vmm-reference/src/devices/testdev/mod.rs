//! What public x86 test images (kvm-unit-tests) expect of their machine, with `--testdev` only:
//! QEMU's `isa-debug-exit`, `pc-testdev` and firmware configuration.

mod boot_again;
mod debug_exit;
mod fw_cfg;
mod irq_lines;
mod memory;
mod registers;

use std::fmt;
use std::sync::Arc;

use super::lines::InterruptLines;
use super::{DeviceError, Devices, Rtc};
use crate::boot::Entry;
use crate::exit::ExitEvent;
use crate::memory::GuestRam;

/// The debug-exit port, where QEMU's users put it.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;
/// pc-testdev: four bytes that keep what is written, for any width of access.
const REGISTER_PORT: u16 = 0xe0;
/// pc-testdev: the page of an address written here is removed from KVM's page tables.
const FLUSH_PORT: u16 = 0xe4;
/// pc-testdev: the same four bytes as at [`REGISTER_PORT`].
const REGISTER_PORT_ALIAS: u16 = 0xe8;
/// pc-testdev: one port for each interrupt line.
const IRQ_LINE_PORT: u16 = 0x2000;
/// pc-testdev: 64 KiB that keep what is written, with an exit for each access.
const IO_MEMORY: u64 = 0xff00_0000;
/// The firmware's own.
const BOOT_PORT: u16 = 0xf00;
/// Firmware configuration: a word selects the item; its bytes are at the next port.
const FW_CFG_PORT: u16 = 0x510;

/// What the test devices need from the machine.
pub struct TestMachine {
    /// The interrupt lines, for the image to set.
    pub lines: Arc<dyn InterruptLines>,
    /// The memory, for the image to flush pages of.
    pub memory: GuestRam,
    /// The number of vCPUs, for the image to read.
    pub cpus: u16,
    /// The clock chip, whose shutdown status the firmware reads.
    pub rtc: Rtc,
    /// What the firmware does.
    pub firmware: Option<Firmware>,
}

/// What a machine with firmware does when its processors are reset.
pub struct Firmware {
    /// Sends INIT to all processors.
    pub send_init: Box<dyn Fn() + Send + Sync>,
    /// Loads the kernel into memory again. Returns its entry, or why it cannot be loaded.
    pub load: Box<dyn Fn() -> Result<Entry, String> + Send + Sync>,
}

impl fmt::Debug for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Firmware").finish_non_exhaustive()
    }
}

impl fmt::Debug for TestMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestMachine")
            .field("memory", &self.memory)
            .field("cpus", &self.cpus)
            .field("rtc", &self.rtc)
            .field("firmware", &self.firmware)
            .finish_non_exhaustive()
    }
}

impl Devices {
    /// Adds the devices of test images.
    ///
    /// # Errors
    /// If another device has their place.
    pub fn add_test_devices(
        &mut self,
        machine: TestMachine,
        exit: &ExitEvent,
    ) -> Result<(), DeviceError> {
        let TestMachine {
            lines,
            memory,
            cpus,
            rtc,
            firmware,
        } = machine;
        let debug_exit = debug_exit::DebugExit::new(exit.clone());
        self.add(DEBUG_EXIT_PORT, 4, Arc::new(debug_exit))?;
        let registers = Arc::new(registers::Registers::default());
        self.add(REGISTER_PORT, 4, Arc::clone(&registers) as _)?;
        self.add(REGISTER_PORT_ALIAS, 4, registers)?;
        let fw_cfg = fw_cfg::FwCfg::new(cpus, &memory);
        self.add(FW_CFG_PORT, 2, Arc::new(fw_cfg))?;
        self.add(FLUSH_PORT, 4, Arc::new(memory::FlushPage::new(memory)))?;
        let irq_lines = irq_lines::IrqLines::new(lines);
        self.add(IRQ_LINE_PORT, irq_lines::COUNT, Arc::new(irq_lines))?;
        let io_memory = Arc::new(memory::IoMemory::default());
        self.add_mmio(IO_MEMORY, memory::IO_MEMORY_LENGTH, io_memory)?;
        if let Some(Firmware { send_init, load }) = firmware {
            let boot_again = boot_again::BootAgain::new(load, exit.clone());
            self.add(BOOT_PORT, 4, Arc::new(boot_again))?;
            self.resets.survive_init(Box::new(move || {
                let resumes = rtc.wants_to_resume();
                if resumes {
                    send_init();
                }
                resumes
            }));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
