//! Command line: what was typed leads to one function, and its answer to an exit code.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | it was done |
//! | 1 | it was tried and failed, or `check` found errors |
//! | 2 | there is no such command or flag |
//! | 78 | settings are missing or wrong (`EX_CONFIG` of sysexits.h) |

mod check;
mod defaults;
mod intercept;
mod simulate;

use std::{ffi::OsString, fmt::Display, io::Write, process::ExitCode};

use clap::{Parser, Subcommand, error::ErrorKind};

use crate::config::settings::{Flags, Settings};

/// Settings are missing or wrong: `EX_CONFIG`.
const EX_CONFIG: u8 = 78;

/// The sidecar that gives any pod mutual TLS, discovery, balancing and honest failures.
///
/// Without a command it runs the sidecar. Exit codes: 0 done, 1 failed, 2 no such command
/// or flag, 78 settings are missing or wrong (all of them are said at once).
#[derive(Debug, Parser)]
#[command(
    name = "remora",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_help_heading = "Commands",
    max_term_width = 100
)]
struct Line {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check policy documents as the sidecar would: all errors, each with its place.
    Check(check::Args),
    /// Print what is in force without any document, each with its reason.
    Defaults,
    /// Install, print, verify or remove the packet rules that lead a pod's traffic here.
    Intercept(intercept::Args),
    /// Simulate services under load and faults, with our rules and those of others.
    Simulate(simulate::Args),
}

/// Runs what `args` ask for; the first of them is the program's name.
pub fn run<I>(args: I, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode
where
    I: IntoIterator<Item = OsString>,
{
    let line = match Line::try_parse_from(args) {
        Ok(line) => line,
        Err(error) => return explain(&error, out, err),
    };
    let done = match line.command {
        Some(Command::Check(args)) => check::run(&args, out),
        Some(Command::Defaults) => defaults::run(out),
        Some(Command::Intercept(args)) => intercept::run(&args, out, err),
        Some(Command::Simulate(args)) => simulate::run(&args, out, err),
        None => match Settings::new(&line.flags) {
            Ok(settings) => Ok(crate::app::run(&settings, err)),
            Err(errors) => {
                let hint = "`remora --help` explains every setting";
                writeln!(err, "{errors}\n{hint}").map(|()| ExitCode::from(EX_CONFIG))
            }
        },
    };
    // A reader that has gone (`| head`) is not our failure to report to it.
    done.unwrap_or(ExitCode::FAILURE)
}

/// Help that was asked for, or what is wrong with the command line.
fn explain(error: &clap::Error, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
    let is_asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let text: &dyn Display = &error.render();
    let written = if is_asked { write!(out, "{text}") } else { write!(err, "{text}") };
    match written {
        Ok(()) => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1)),
        Err(_) => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Line::command().debug_assert();
    }

    #[test]
    fn every_setting_has_its_variable_and_a_reason() {
        for arg in Line::command().get_arguments().filter(|it| it.get_long().is_some()) {
            let flag = arg.get_long().unwrap();
            let variable = format!("REMORA_{}", flag.to_uppercase().replace('-', "_"));
            assert_eq!(arg.get_env().and_then(|it| it.to_str()), Some(&*variable), "{flag}");
            let help = arg.get_help().unwrap().to_string();
            let default = arg.get_default_values().iter().any(|it| it != "false");
            let says = ["Default: ", "No default", "without a default", "Without it"];
            assert!(default || says.iter().any(|it| help.contains(it)), "{flag}: {help}");
        }
    }
}
