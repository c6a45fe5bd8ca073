//! The command.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use vmm_reference::cli::{Cli, Command};
use vmm_reference::error::with_causes;
use vmm_reference::logging::Log;
use vmm_reference::{Error, ExitReason, ExitStatus, caps, demo, packaging, run};

/// How long the process waits for a reader of standard error that reads nothing.
const LAST_LINES: Duration = Duration::from_secs(2);
/// The same after a signal, and however slowly the reader reads.
const LAST_LINES_AFTER_SIGNAL: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    // clap ends the process itself for --help, and with status 2 for a wrong usage.
    let cli = Cli::parse();
    let log = match Log::start() {
        Ok(log) => log,
        Err(error) => {
            eprintln!("vmm-reference: error: standard error cannot be written: {error}");
            return ExitStatus::HostCannot.into();
        }
    };
    let status = match execute(cli.command, &log) {
        Ok(status) => status,
        Err(error) => {
            report_line(&log, &with_causes(&error));
            if let Some(advice) = error.advice() {
                log.line(&format!("vmm-reference: {advice}"));
            }
            error.status()
        }
    };
    match status {
        ExitStatus::Signal(_) => log.finish(LAST_LINES_AFTER_SIGNAL, false),
        _ => log.finish(LAST_LINES, true),
    };
    status.into()
}

fn execute(command: Command, log: &Log) -> Result<ExitStatus, Error> {
    match command {
        Command::Run(args) => {
            let reason = run::run(&args, log)?;
            match reason {
                ExitReason::GuestFailed(_) => {
                    report_line(log, &format!("the guest failed: {reason}"));
                }
                ExitReason::VmmFailed(_) => {
                    report_line(log, &format!("the VMM failed: {reason}"));
                }
                _ => tracing::info!(%reason, "end"),
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
        Command::Completions(args) => {
            packaging::completions(args.shell, &mut io::stdout().lock())?;
            Ok(ExitStatus::Success)
        }
        Command::Man => {
            packaging::man(&mut io::stdout().lock())?;
            Ok(ExitStatus::Success)
        }
    }
}

fn report_line(log: &Log, line: &str) {
    log.line(&format!("vmm-reference: error: {line}"));
}
