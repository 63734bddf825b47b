//! The control binary.

use std::{
    io::{stderr, stdout},
    process::ExitCode,
};

fn main() -> ExitCode {
    remora_control::cli::run(std::env::args_os(), &mut stdout(), &mut stderr())
}
