//! Check: what the sidecar would say to some policy documents, said before they get there.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use crate::config::{self, Context};

/// What to check.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folders and files of policy documents; taken together, as one folder.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,

    /// The namespace of documents that do not say.
    #[arg(
        long,
        env = "REMORA_NAMESPACE",
        value_name = "NAME",
        default_value = "default",
        hide_env_values = true
    )]
    namespace: String,
}

/// Writes every error, or every warning and how much was read.
pub(super) fn run(args: &Args, out: &mut dyn Write) -> io::Result<ExitCode> {
    let context = Context { namespace: args.namespace.clone(), service_account: None, zone: None };
    match config::load_all(&args.paths, &context) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                writeln!(out, "warning: {warning}")?;
            }
            let (documents, files) = (loaded.documents, loaded.files);
            let (documents, files) = (counted(documents, "document"), counted(files, "file"));
            writeln!(out, "ok: {documents} in {files}")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(errors) => {
            let mut files: Vec<_> = errors.problems().iter().map(|it| &it.place.file).collect();
            files.dedup();
            let count = counted(errors.problems().len(), "error");
            writeln!(out, "{errors}\n{count} in {}", counted(files.len(), "file"))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}
