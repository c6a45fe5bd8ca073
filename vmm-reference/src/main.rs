//! The command.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use vmm_reference::cli::{Cli, Command};
use vmm_reference::error::with_causes;
use vmm_reference::{Error, ExitReason, ExitStatus, caps, demo, run};

fn main() -> ExitCode {
    // clap ends the process itself for --help, and with status 2 for a wrong usage.
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .init();
    match execute(cli.command) {
        Ok(status) => status.into(),
        Err(error) => {
            report_line(&with_causes(&error));
            error.status().into()
        }
    }
}

fn execute(command: Command) -> Result<ExitStatus, Error> {
    match command {
        Command::Run(args) => {
            let reason = run::run(&args)?;
            if let ExitReason::GuestFailed(_) = reason {
                report_line(&format!("the guest failed: {reason}"));
            } else {
                tracing::info!(%reason, "end");
            }
            Ok(reason.status())
        }
        Command::Caps(args) => {
            caps::caps(args, &mut io::stdout().lock())?;
            Ok(ExitStatus::Success)
        }
        Command::Demo(args) => {
            demo::demo(args, &mut io::stdout().lock())?;
            Ok(ExitStatus::Success)
        }
    }
}

fn report_line(line: &str) {
    // Nothing can be done about a closed standard error.
    let _ = writeln!(io::stderr(), "vmm-reference: error: {line}");
}
