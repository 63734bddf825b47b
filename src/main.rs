//! The sidecar's binary.

use std::process::ExitCode;

/// Gives memory back within half a second (`.cargo/config.toml`), which keeps an idle
/// sidecar small; under glibc's malloc its resident size never shrank.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    remora::cli::run(std::env::args_os(), &mut std::io::stdout(), &mut std::io::stderr())
}
