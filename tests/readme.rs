//! README: what it shows is what happens.
//!
//! Its consoles are run, as far as they are cheap and harmless, and say what it says they
//! do; `…` there stands for what differs from run to run, and a line of only that for any
//! lines. Its documents are accepted, and its tables are whole.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "all of it is a test: a surprise in the page should stop it where it stands"
)]

#[path = "readme/demo.rs"]
mod demo;

use std::{
    collections::BTreeSet, ffi::OsString, fs, path::Path, process::Command, process::Output,
};

use demo::Demo;

const README: &str = include_str!("../README.md");

#[test]
fn commands_say_what_the_readme_says() {
    let mut demo = Demo::new();
    let mut run = 0;
    for (command, expected) in blocks("console").flat_map(|it| commands(&it)) {
        let Some(said) = demo.say(&command) else { continue };
        let (said, expected): (Vec<_>, Vec<_>) =
            (said.lines().collect(), expected.lines().collect());
        assert!(matches(&expected, &said), "`{command}` says:\n{}", said.join("\n"));
        run += 1;
    }
    assert!(run >= 18, "only {run} commands of the README could be tried");
}

#[test]
fn every_document_is_accepted() {
    let documents: Vec<_> = blocks("yaml").collect();
    for document in &documents {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("document.yaml"), document).unwrap();
        let output = remora(["check".into(), folder.path().into()]);
        assert!(output.status.success(), "{}{document}", String::from_utf8_lossy(&output.stdout));
    }
    for kind in ["ServicePolicy", "HTTPRoute", "WorkloadPolicy"] {
        let shown = documents.iter().any(|it| it.contains(&format!("kind: {kind}\n")));
        assert!(shown, "no {kind} is shown");
    }
}

#[test]
fn the_failure_table_is_whole() {
    assert!(
        README.contains(include_str!("../src/proxy/failures.md")),
        "copy src/proxy/failures.md"
    );
}

#[test]
fn every_metric_is_explained_and_no_other() {
    let families = include_str!("metrics.txt").lines().filter_map(|it| {
        it.strip_prefix("# TYPE ")?.split(' ').next().filter(|it| it.starts_with("remora_"))
    });
    let spans = README.split('`').filter(|it| it.starts_with("remora_") && !it.contains(' '));
    assert_eq!(spans.collect::<BTreeSet<_>>(), families.collect());
}

#[test]
fn every_example_has_its_line() {
    let page = include_str!("../examples/README.md");
    for entry in fs::read_dir(root().join("examples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name == "README.md" || page.contains(&format!("({name}")), "{name}");
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The fenced blocks of a language.
fn blocks(language: &str) -> impl Iterator<Item = String> {
    let fence = format!("```{language}\n");
    let rest = README.split(&fence).skip(1).map(|it| it.split("```\n").next().unwrap().to_owned());
    rest.collect::<Vec<_>>().into_iter()
}

/// The commands of a console, each with what it says there.
fn commands(block: &str) -> Vec<(String, String)> {
    let mut commands: Vec<(String, String)> = Vec::new();
    for line in block.replace("\\\n", " ").lines() {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(command), _) => {
                let command = command.split(" #").next().unwrap().trim();
                commands.push((command.to_owned(), String::new()));
            }
            (None, Some((_, said))) => said.extend([line, "\n"]),
            (None, None) => panic!("a console begins with a command, not with `{line}`"),
        }
    }
    commands
}

fn remora(args: [OsString; 2]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_remora")).args(args).output().unwrap()
}

/// Whether these lines are what was expected.
fn matches(expected: &[&str], said: &[&str]) -> bool {
    match (expected, said) {
        ([], []) => true,
        (["…", rest @ ..], _) => (0..=said.len()).any(|it| matches(rest, &said[it..])),
        ([first, rest @ ..], [line, lines @ ..]) => is_like(first, line) && matches(rest, lines),
        _ => false,
    }
}

fn is_like(expected: &str, line: &str) -> bool {
    match expected.split_once('…') {
        None => expected == line,
        Some((before, after)) => line.starts_with(before) && line.ends_with(after),
    }
}

mod checks {
    use super::*;

    #[test]
    fn lines_are_compared() {
        assert!(matches(&["a", "until …"], &["a", "until 2026"]));
        assert!(!matches(&["a"], &["a", "b"]) && !matches(&["a", "b"], &["a"]));
        assert!(matches(&["a", "…", "c"], &["a", "b", "b", "c"]));
        assert!(!matches(&["a …"], &["b 1"]));
    }

    #[test]
    fn a_console_is_commands_and_what_they_say() {
        let parsed = commands("$ a \\\n  b   # why\nc\n$ d\n");
        assert_eq!(
            parsed,
            [("a    b".to_owned(), "c\n".to_owned()), ("d".to_owned(), String::new())]
        );
    }
}
