//! Pages: what the READMEs name is there, and `src/README.md` leaves no file out.

use std::path::Path;

use super::{
    report,
    tree::{File, project, root},
};

const ARCHITECTURE: &str = "src/README.md";

#[test]
fn links_lead_somewhere() {
    let pages = project().into_iter().filter(|it| it.has_extension("md"));
    report(pages.flat_map(|it| {
        let dead = links(&it.text).into_iter().filter(|link| !exists_beside(&it.path, link));
        let describe = |link| format!("{}: the link `{link}` leads nowhere; mend it", it.path);
        dead.map(describe).collect::<Vec<_>>()
    }));
}

#[test]
fn the_architecture_page_names_every_module() {
    let files = project();
    let page = page(&files);
    let modules = files.iter().filter_map(|it| module_file(&it.path));
    report(modules.filter(|it| !names_module(page, it)).map(|it| {
        format!("{ARCHITECTURE}: does not name `{it}`; say in its code map what it is for")
    }));
}

#[test]
fn the_architecture_page_names_nothing_else() {
    let files = project();
    let gone = spans(page(&files)).into_iter().filter(|it| is_path(it) && !is_there(it, &files));
    report(gone.map(|it| {
        format!("{ARCHITECTURE}: names `{it}`, which does not exist; mend or remove the line")
    }));
}

fn page(files: &[File]) -> &str {
    &files.iter().find(|it| it.path == ARCHITECTURE).unwrap().text
}

/// The path below `src` of a file that is a module and not its tests.
fn module_file(path: &str) -> Option<&str> {
    let below = path.strip_prefix("src/")?;
    let is_tests = below.ends_with("/tests.rs") || below.contains("/tests/");
    (below.ends_with(".rs") && !is_tests).then_some(below)
}

/// `proxy/forward.rs` is named by its path, with or without `.rs`, and a file at the top
/// by its name with `.rs`.
fn names_module(page: &str, module: &str) -> bool {
    let stem = module.trim_end_matches(".rs");
    let name = if stem.contains('/') { stem } else { module };
    page.match_indices(name).any(|(at, _)| {
        let before = page[..at].chars().next_back();
        let after = page[at + name.len()..].chars().next();
        let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !is_part(before) && !is_part(after)
    })
}

/// A code span that claims to be a file or folder of the project.
fn is_path(span: &str) -> bool {
    let plain = span.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    let first = span.split('/').next().unwrap_or_default();
    let known = ["src", "control", "certs", "tests", "examples", "k8s"].contains(&first)
        || root().join("src").join(format!("{first}.rs")).exists();
    plain && (span.ends_with(".rs") || (span.contains('/') && known))
}

fn is_there(span: &str, files: &[File]) -> bool {
    let span = span.trim_end_matches('/');
    let candidates = [span.to_owned(), format!("src/{span}"), format!("src/{span}.rs")];
    candidates.iter().any(|it| root().join(it).exists())
        // A bare file name may be any module's.
        || (!span.contains('/') && files.iter().any(|it| it.path.ends_with(&format!("/{span}"))))
}

/// What stands between single backticks, code blocks left out.
fn spans(page: &str) -> Vec<String> {
    let text = without_blocks(page);
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The targets of `[text](target)` that are files.
fn links(page: &str) -> Vec<String> {
    let text = without_blocks(page);
    let targets = text.split("](").skip(1).filter_map(|it| it.split([')', '#']).next());
    let is_file = |it: &&str| !it.is_empty() && !it.contains(':');
    targets.filter(is_file).map(str::to_owned).collect()
}

fn without_blocks(page: &str) -> String {
    let mut inside = false;
    let mut kept = String::new();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

fn exists_beside(page: &str, link: &str) -> bool {
    root().join(page).parent().unwrap_or(Path::new("")).join(link).exists()
}

mod checks {
    use super::*;

    #[test]
    fn a_module_is_named_by_its_path_alone() {
        assert!(names_module("see `proxy/forward.rs`", "proxy/forward.rs"));
        assert!(names_module("see `proxy/forward`", "proxy/forward.rs"));
        assert!(!names_module("see `proxy/forward_all`", "proxy/forward.rs"));
        assert!(names_module("`drain.rs`", "drain.rs"));
        assert!(!names_module("drains", "drain.rs"));
    }

    #[test]
    fn paths_are_told_from_other_code() {
        assert!(is_path("drain.rs") && is_path("policy/route.rs") && is_path("policy/route"));
        assert!(!is_path("/health/live") && !is_path("application/json") && !is_path("a::b"));
        assert!(is_there("policy/route", &[]) && is_there("tests/tidy.rs", &[]));
        assert!(!is_there("policy/gone.rs", &[]));
    }

    #[test]
    fn links_are_found_outside_code_blocks() {
        let page = "[a](b.md#c) [d](https://e) [f](#g)\n```\n[h](i.md)\n```\n[j](crate::k)";
        assert_eq!(links(page), ["b.md"]);
        assert!(exists_beside("src/README.md", "../Cargo.toml"));
        assert!(!exists_beside("src/README.md", "Cargo.toml"));
    }
}
