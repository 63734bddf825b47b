//! The control binary.

use std::{env, io, process::ExitCode};

fn main() -> ExitCode {
    remora_control::cli::run(env::args_os(), &mut io::stdout(), &mut io::stderr())
}
