//! Tidy: the shape of the code is what `src/README.md` and the house rules say.
//!
//! What is checked here is not argued in review. Run it alone with
//! `cargo test --test tidy`. Each message names the file and what to do; where the rule
//! itself is wrong, change its table here in the same commit and say why.
//!
//! It reads the working tree and needs no git: whatever lies in a folder of the project
//! is looked at, except `target` and dot-folders that are not the project's.
#![expect(
    clippy::unwrap_used,
    clippy::string_slice,
    clippy::case_sensitive_file_extension_comparisons,
    reason = "all of it is a test: a surprise in the tree should stop it where it stands"
)]

#[path = "tidy/manifests.rs"]
mod manifests;
#[path = "tidy/modules.rs"]
mod modules;
#[path = "tidy/pages.rs"]
mod pages;
#[path = "tidy/tree.rs"]
mod tree;

use tree::{File, project, words};

/// Lines of a file before its tests: what one sitting can read.
const LINES_MAX: usize = 400;

/// Lines of a file of tests: cases are looked up rather than read through.
const TEST_LINES_MAX: usize = 600;

/// Lines of code of `control/`, without blank ones, comments and tests: so many can be read in an
/// hour.
const CONTROL_LINES_MAX: usize = 3_000;

/// All there is at the top; prose lives in the README of the folder it is about.
const TOP_LEVEL: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "certs",
    "control",
    "examples",
    "k8s",
    "src",
    "target",
    "tests",
];

/// Words that mark work as unfinished, in two halves so that this file has none.
const UNFINISHED: &[(&str, &str)] = &[("FIX", "ME"), ("TO", "DO"), ("XX", "X")];

#[test]
fn the_top_level_is_fixed() {
    let entries = std::fs::read_dir(tree::root()).unwrap();
    let names = entries.map(|it| it.unwrap().file_name().into_string().unwrap());
    report(names.filter(|it| !is_top_level(it)).map(|it| {
        format!("{it}: not part of the top level; put it into the folder it is about, or remove it")
    }));
}

#[test]
fn files_stay_readable() {
    report(sources().filter_map(|it| too_long(&it)));
}

#[test]
fn control_does_not_grow() {
    let files = sources().filter(|it| it.path.starts_with("control/src/"));
    let lines: usize = files.map(|it| lines_of_code(&it)).sum();
    assert!(
        lines < CONTROL_LINES_MAX,
        "control/src has {lines} lines of code, at most {CONTROL_LINES_MAX}; leave something out"
    );
}

#[test]
fn nothing_unfinished_and_no_key_is_kept() {
    report(project().iter().flat_map(leftovers));
}

#[test]
fn only_metrics_name_metrics() {
    let others = sources().filter(|it| !it.path.starts_with("src/telemetry/metrics"));
    report(others.filter(|it| it.path.starts_with("src/")).flat_map(|it| metric_names(&it)));
}

#[test]
fn test_code_stands_in_test_modules() {
    report(sources().flat_map(|it| conditional_code(&it)));
}

#[test]
fn no_module_is_called_mod() {
    let named_mod = sources().filter(|it| it.path.ends_with("/mod.rs"));
    report(named_mod.map(|it| format!("{}: name it after its folder, beside the folder", it.path)));
}

/// Every Rust file of the four packages and their tests.
fn sources() -> impl Iterator<Item = File> {
    const PLACES: [&str; 6] = ["src/", "control/", "certs/", "k8s/", "tests/", "examples/"];
    let rust = project().into_iter().filter(|it| it.has_extension("rs"));
    rust.filter(|it| PLACES.iter().any(|place| it.path.starts_with(place)))
}

/// Fails with all the messages at once.
fn report(wrong: impl Iterator<Item = String>) {
    let wrong: Vec<_> = wrong.collect();
    assert!(wrong.is_empty(), "\n\n{}\n", wrong.join("\n"));
}

fn is_top_level(name: &str) -> bool {
    name.starts_with('.') || TOP_LEVEL.contains(&name)
}

fn too_long(file: &File) -> Option<String> {
    let lines = file.code().lines().count();
    let most = if file.path.starts_with("tests/") { TEST_LINES_MAX } else { LINES_MAX };
    (most < lines)
        .then(|| format!("{}: {lines} lines before its tests, at most {most}; split it", file.path))
}

/// Lines that are neither blank, nor a comment, nor part of a module of tests.
fn lines_of_code(file: &File) -> usize {
    if file.code().is_empty() {
        return 0;
    }
    let lines: Vec<_> = file.text.lines().map(str::trim).collect();
    let inline = |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].ends_with('{');
    let end = lines.windows(2).position(inline).unwrap_or(lines.len());
    lines[..end].iter().filter(|it| !it.is_empty() && !tree::is_comment(it)).count()
}

fn leftovers(file: &File) -> Vec<String> {
    let mut wrong = Vec::new();
    for (number, line) in (1..).zip(file.text.lines()) {
        let mut add = |what: &str| wrong.push(format!("{}:{number}: {what}", file.path));
        let key = line.find("BEGIN ").is_some_and(|at| line[at..].contains("PRIVATE KEY"));
        if key && line.contains("-----") {
            add("a private key; treat it as stolen, and make keys at run time (a test that \
                 needs the words only puts the label in by `format!`)");
        }
        if file.has_extension("rs") && line.contains(concat!("dbg", "!(")) {
            add("a debugging line; remove it, or make it a `tracing` event");
        }
        for (first, second) in UNFINISHED {
            let word = format!("{first}{second}");
            if words(line).any(|it| it == word) {
                add(&format!("`{word}`: do it now, or file an issue and remove the word"));
            }
        }
    }
    wrong
}

fn metric_names(file: &File) -> Vec<String> {
    let lines = (1..).zip(file.code().lines());
    let naming = lines.filter(|(_, it)| !tree::is_comment(it) && it.contains("\"remora_"));
    naming
        .map(|(number, _)| {
            format!("{}:{number}: a metric's name; take it from telemetry/metrics", file.path)
        })
        .collect()
}

/// What is compiled for tests only is a module, so that a reader can skip all of it.
fn conditional_code(file: &File) -> Vec<String> {
    let mut lines = (1..).zip(file.text.lines().map(str::trim)).peekable();
    let mut wrong = Vec::new();
    while let Some((number, line)) = lines.next() {
        if line != "#[cfg(test)]" {
            continue;
        }
        while lines.peek().is_some_and(|(_, it)| it.starts_with('#')) {
            lines.next();
        }
        if !lines.peek().is_some_and(|(_, it)| it.contains("mod ")) {
            wrong.push(format!(
                "{}:{number}: test code beside other code; move it into `mod tests`",
                file.path
            ));
        }
    }
    wrong
}

mod checks {
    use super::*;

    fn rust(text: &str) -> File {
        File { path: "src/proxy/forward.rs".to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_stray_file_at_the_top_is_seen() {
        assert!(is_top_level("Cargo.toml") && is_top_level(".github"));
        assert!(!is_top_level("notes.md"));
    }

    #[test]
    fn length_counts_up_to_the_tests() {
        let code = "fn f() {}\n".repeat(LINES_MAX);
        let tests = "#[cfg(test)]\nmod tests {\n".to_owned() + &"// more\n".repeat(500);
        assert_eq!(too_long(&rust(&format!("{code}{tests}"))), None);
        assert!(too_long(&rust(&format!("{code}fn g() {{}}\n{tests}"))).is_some());
    }

    #[test]
    fn code_is_counted_without_comments_and_tests() {
        let text = "//! Doc\n\n#[cfg(test)]\nmod tests;\nfn f() {\n    // why\n    g();\n}\n";
        assert_eq!(lines_of_code(&rust(text)), 5);
        let tests = "#[cfg(test)]\nmod tests {\n    fn t() {}\n}\n";
        assert_eq!(lines_of_code(&rust(&format!("{text}{tests}"))), 5);
    }

    #[test]
    fn a_key_is_seen_and_the_word_for_it_is_not() {
        let key = concat!("-----BEGIN", " EC PRIVATE KEY-----");
        assert_eq!(leftovers(&rust(key)).len(), 1);
        assert!(leftovers(&rust("let label = \"PRIVATE KEY\";")).is_empty());
    }

    #[test]
    fn unfinished_work_is_seen_as_a_word_of_its_own() {
        for (first, second) in UNFINISHED {
            assert_eq!(leftovers(&rust(&format!("// {first}{second}: later"))).len(), 1);
            assert!(leftovers(&rust(&format!("let {first}{second}Y = 1;"))).is_empty());
        }
        assert_eq!(leftovers(&rust(concat!("dbg", "!(x)"))).len(), 1);
    }

    #[test]
    fn a_metric_is_seen_in_code_and_not_in_comments_or_tests() {
        assert_eq!(metric_names(&rust("register(\"remora_x_total\");")).len(), 1);
        assert!(metric_names(&rust("//! counted by \"remora_x_total\"")).is_empty());
        assert!(metric_names(&rust("#[cfg(test)]\nmod t { \"remora_x\" }")).is_empty());
    }

    #[test]
    fn only_modules_are_compiled_for_tests() {
        assert!(conditional_code(&rust("#[cfg(test)]\nmod tests;")).is_empty());
        assert!(conditional_code(&rust("#[cfg(test)]\n#[path = \"t.rs\"]\nmod tests;")).is_empty());
        assert_eq!(conditional_code(&rust("#[cfg(test)]\nfn fake() {}")).len(), 1);
    }
}
