//! Tree: the project's files as text, and how code is told from comments and tests.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Dot-folders that are the project's; others belong to tools.
const DOT_FOLDERS: &[&str] = &[".cargo", ".ci", ".config", ".github"];

/// One file of text.
#[derive(Debug)]
pub(super) struct File {
    /// From the project's root, with `/`.
    pub(super) path: String,
    /// All of it.
    pub(super) text: String,
}

impl File {
    /// Whether the file's name ends so, without the dot.
    pub(super) fn has_extension(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|it| it == extension)
    }

    /// The text up to its tests; nothing of a module that is all tests.
    pub(super) fn code(&self) -> &str {
        let is_tests = self.path.ends_with("/tests.rs") || self.path.contains("/tests/");
        let code = self.text.split("#[cfg(test)]").next().filter(|_| !is_tests);
        code.unwrap_or_default()
    }
}

/// Where the project stands.
pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of text of the project, in order of its path.
pub(super) fn project() -> Vec<File> {
    let mut files = Vec::new();
    collect(root(), &mut files);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

fn collect(folder: &Path, files: &mut Vec<File>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if is_project_folder(name) {
                collect(&path, files);
            }
        } else if let Ok(text) = fs::read_to_string(&path) {
            files.push(File { path: relative(&path), text });
        }
    }
}

fn is_project_folder(name: &str) -> bool {
    name != "target" && (!name.starts_with('.') || DOT_FOLDERS.contains(&name))
}

fn relative(path: &Path) -> String {
    let path: PathBuf = path.strip_prefix(root()).unwrap().to_owned();
    path.to_str().unwrap().replace('\\', "/")
}

/// Whether the line is a comment from its beginning.
pub(super) fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

/// The identifiers and words of a text.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|it| !it.is_empty())
}

#[test]
fn tests_are_no_code() {
    let file = |path: &str, text: &str| File { path: path.to_owned(), text: text.to_owned() };
    assert_eq!(file("src/drain.rs", "a\n#[cfg(test)]\nmod tests").code(), "a\n");
    assert_eq!(file("src/drain/tests.rs", "a").code(), "");
    assert_eq!(file("tests/tidy.rs", "a").code(), "a");
}

#[test]
fn the_tree_is_read_without_tools_folders() {
    let paths: Vec<_> = project().into_iter().map(|it| it.path).collect();
    assert!(paths.contains(&"Cargo.toml".to_owned()));
    assert!(paths.contains(&"tests/tidy/tree.rs".to_owned()));
    assert!(!paths.iter().any(|it| it.starts_with("target/") || it.starts_with(".git/")));
}
