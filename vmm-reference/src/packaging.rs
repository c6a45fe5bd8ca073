//! `vmm-reference completions` and `man`: what a package installs beside the command.

use std::io::{self, Write};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::Cli;
use crate::error::Error;

/// Writes the completions for a shell.
///
/// # Errors
/// If `out` cannot be written.
pub fn completions(shell: Shell, out: &mut impl Write) -> Result<(), Error> {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    // `generate` panics where it cannot write: not to memory.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    Error::of_output("cannot write the completions", out.write_all(&script))
}

/// Writes the manual pages of the command and of its subcommands, one behind the other, in roff.
///
/// # Errors
/// If `out` cannot be written.
pub fn man(out: &mut impl Write) -> Result<(), Error> {
    // `help` has no page of its own.
    let mut command = Cli::command().disable_help_subcommand(true);
    // Gives the subcommands their full names.
    command.build();
    let source = command.render_version();
    Error::of_output(
        "cannot write the manual",
        pages(&command, source.trim_end(), out),
    )
}

fn pages(command: &Command, source: &str, out: &mut impl Write) -> io::Result<()> {
    Man::new(command.clone()).source(source).render(out)?;
    for subcommand in command.get_subcommands() {
        pages(subcommand, source, out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    fn options() -> Vec<String> {
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        let long = run.get_arguments().filter_map(|option| option.get_long());
        long.map(str::to_owned).collect()
    }

    #[test]
    fn each_shell_completes_every_option_of_run() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            completions(*shell, &mut script).unwrap();
            let script = String::from_utf8(script).unwrap();
            for option in options() {
                assert!(script.contains(&option), "{shell}: {option}");
            }
        }
    }

    #[test]
    fn each_command_has_a_page_and_each_option_of_run_is_on_it() {
        let mut text = Vec::new();
        man(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        for subcommand in Cli::command().get_subcommands() {
            let title = format!(".TH vmm-reference-{} 1", subcommand.get_name());
            let line = text.lines().find(|line| line.starts_with(&title));
            let version = concat!("\"vmm-reference ", env!("CARGO_PKG_VERSION"));
            assert!(line.expect(&title).contains(version), "{line:?}");
        }
        assert_eq!(text.matches(".TH ").count(), 6);
        for option in options() {
            // In roff a hyphen of an option is escaped.
            let option = option.replace('-', "\\-");
            assert!(text.contains(&option), "{option}");
        }
    }

    #[test]
    fn a_reader_that_closes_the_pipe_early_is_no_failure_and_a_full_disk_is() {
        /// Fails as it says.
        struct Failing(io::ErrorKind);
        impl Write for Failing {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut closed = Failing(io::ErrorKind::BrokenPipe);
        man(&mut closed).unwrap();
        completions(Shell::Bash, &mut closed).unwrap();
        let mut full = Failing(io::ErrorKind::StorageFull);
        assert!(man(&mut full).is_err());
        assert!(completions(Shell::Bash, &mut full).is_err());
    }
}
