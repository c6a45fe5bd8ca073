//! A small VMM made of this crate's parts: the embedded timer guest, waiting for GDB.
//!
//! `cargo run -p vmm-reference --example debug_embedded_guest`, then, in another terminal, the
//! command that it prints. Ends with Ctrl-C.

use std::error::Error;

use debug_stub::server::{ListenAddress, Listener};
use vmm_reference::cli::GdbArch;
use vmm_reference::guests::TIMER;
use vmm_reference::run::{Vmm, Wanted, plan};
use vmm_reference::{Machine, MachineConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let config = MachineConfig::new(TIMER.image());
    let machine = Machine::new(&config)?;
    // Verifies what this host can do for a debugger; an error says what it lacks.
    let wanted = Wanted {
        debugger: true,
        ..Wanted::default()
    };
    let (plan, _) = plan(&machine.kvm, wanted)?;
    println!("{plan}");

    let directory = tempfile::tempdir()?;
    let symbols = TIMER.write_to(directory.path())?;
    let socket = directory.path().join("gdb");
    let mut vmm = Vmm::new(machine, plan)?;
    vmm.listen(Listener::bind(&ListenAddress::Unix(socket.clone()), false)?);
    vmm.describe(GdbArch::Auto.description(&config.kernel));
    vmm.start();
    println!(
        "gdb {} -ex 'target remote {}'",
        symbols.display(),
        socket.display()
    );
    println!("{}", vmm.run()?);
    Ok(())
}
