//! Serves a simulated machine, to try a GDB on:
//!
//! ```text
//! cargo run --example simulated -- unix:/tmp/gdb.sock
//! gdb -ex 'set architecture i386:x86-64' -ex 'target remote /tmp/gdb.sock'
//! ```
//!
//! Its program counts in RAX and stores the low byte at 0x9000, forever.

#[path = "../tests/common/mod.rs"]
mod common;

use std::process::ExitCode;

use common::simulated::Simulated;
use common::{machine, plan};
use debug_stub::SessionConfig;
use debug_stub::server::{GdbServer, ListenAddress, Listener};
use debug_stub::x86_64::simulated::code;
use event_manager::{EventManager, SubscriberOps};

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let Some(address) = std::env::args().nth(1) else {
        eprintln!("usage: simulated tcp:127.0.0.1:PORT | unix:PATH");
        return ExitCode::from(2);
    };
    match serve(&address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(address: &str) -> Result<(), Box<dyn std::error::Error>> {
    let address: ListenAddress = address.parse()?;
    let listener = Listener::bind(&address, false)?;
    // inc %rax; mov %al,(%rdi); jmp back by 7.
    let machine = machine(2, &[code::INC_RAX, code::STORE, &[0xeb, 0xf9]])
        .with_registers(|file| file.core.rdi = 0x9000);
    let server = GdbServer::new(
        listener,
        Simulated::new(machine),
        SessionConfig::new(plan(&[])),
    );
    println!("waiting for a debugger at {}", server.address());
    let mut events = EventManager::new().map_err(|error| format!("{error:?}"))?;
    events.add_subscriber(server);
    loop {
        events.run().map_err(|error| format!("{error:?}"))?;
    }
}
