//! Runner: named cases, one after the other, reported as `cargo test` does.

use std::{
    io::{self, Write},
    process::ExitCode,
    thread,
};

use remora::clock;

/// A name, which is the promise, and the function that panics when it is broken.
pub(crate) type Case = (&'static str, fn());

/// What was asked for on the command line.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Names are wanted, not results.
    pub(crate) list: bool,
    exact: bool,
    only_ignored: bool,
    filters: Vec<String>,
    skip: Vec<String>,
}

impl Options {
    /// Understands as much of libtest's options as cargo and nextest use.
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        while let Some(it) = arguments.next() {
            match it.as_str() {
                "--list" => options.list = true,
                "--exact" => options.exact = true,
                "--ignored" => options.only_ignored = true,
                "--skip" => options.skip.extend(arguments.next()),
                "--format" | "--color" | "--test-threads" | "--logfile" => drop(arguments.next()),
                "--nocapture"
                | "--no-capture"
                | "--include-ignored"
                | "--show-output"
                | "-q"
                | "--quiet"
                | "--inside-namespaces" => (),
                it if it.starts_with("--format=")
                    || it.starts_with("--color=")
                    || it.starts_with("--test-threads=") => {}
                it if it.starts_with('-') => return Err(format!("unknown option `{it}`")),
                _ => options.filters.push(it),
            }
        }
        Ok(options)
    }

    /// The cases that were asked for.
    pub(crate) fn select(&self, mut cases: Vec<Case>) -> Vec<Case> {
        let matches = |name: &str, it: &String| {
            if self.exact { name == it } else { name.contains(it.as_str()) }
        };
        // No case is ever ignored.
        cases.retain(|(name, _)| {
            let wanted = self.filters.is_empty() || self.filters.iter().any(|it| matches(name, it));
            wanted && !self.only_ignored && !self.skip.iter().any(|it| matches(name, it))
        });
        cases
    }
}

/// Says why nothing was tested; that is a failure.
pub(crate) fn refuse(message: &str) -> ExitCode {
    say(&format!("error: {message}\n"));
    ExitCode::FAILURE
}

/// Writes the names.
pub(crate) fn list(cases: &[Case]) -> ExitCode {
    for (name, _) in cases {
        say(&format!("{name}: test\n"));
    }
    ExitCode::SUCCESS
}

/// Runs `cases`, of which `filtered_out` more exist.
pub(crate) fn run(cases: &[Case], filtered_out: usize) -> ExitCode {
    let began = clock::now();
    let mut failed = Vec::new();
    say(&format!("\nrunning {} tests\n", cases.len()));
    for (name, case) in cases {
        say(&format!("test {name} ... "));
        // On a thread of its own: its name is in the panic message, and it may change
        // namespaces as it likes.
        let outcome = thread::Builder::new().name((*name).to_owned()).spawn(*case);
        let passed = outcome.is_ok_and(|it| it.join().is_ok());
        say(if passed { "ok\n" } else { "FAILED\n" });
        if !passed {
            failed.push(*name);
        }
    }
    if !failed.is_empty() {
        say(&format!("\nfailures:\n    {}\n", failed.join("\n    ")));
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    say(&format!(
        "\ntest result: {verdict}. {} passed; {} failed; 0 ignored; 0 measured; \
         {filtered_out} filtered out; finished in {:.2}s\n\n",
        cases.len() - failed.len(),
        failed.len(),
        (clock::now() - began).as_secs_f64(),
    ));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Writes at once, so that a case that hangs is seen by its name.
pub(crate) fn say(text: &str) {
    let mut out = io::stdout().lock();
    // Nobody is left to tell when the output is gone.
    let _told = out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok();
}
