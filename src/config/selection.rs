//! Selection: which documents of many namespaces a workload needs, as files for its folder.
//!
//! A workload gets what is in its own namespace, what concerns the services it calls, and
//! what concerns the services that those documents send it to. Whatever is looked up for a
//! service is there whole, so that a sidecar makes the same of its part as of the folder.
//!
//! What is left out is never missed: documents demand nothing of each other, they only
//! contradict.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt::Write as _,
};

use super::catalogue::Document;
use crate::policy::ServiceName;

/// What a sidecar takes for its namespace that was told none, and whose identity names none.
pub const NAMESPACE: &str = "default";

/// Characters of a name, without the extension; a folder of policy takes a few more.
const NAME_MAX: usize = 200;

/// Documents to choose from.
#[derive(Debug)]
pub struct Selection {
    /// By file and position.
    documents: Vec<Document>,
    by_namespace: HashMap<String, Vec<usize>>,
    by_target: HashMap<ServiceName, Vec<usize>>,
}

impl Selection {
    /// A choice among `documents`, which are good together.
    pub fn new(documents: Vec<Document>) -> Self {
        let mut by_namespace: HashMap<String, Vec<usize>> = HashMap::new();
        let mut by_target: HashMap<ServiceName, Vec<usize>> = HashMap::new();
        for (index, it) in documents.iter().enumerate() {
            by_namespace.entry(it.namespace.clone()).or_default().push(index);
            for target in &it.targets {
                by_target.entry(target.clone()).or_default().push(index);
            }
        }
        Self { documents, by_namespace, by_target }
    }

    /// Those that the workload of `account` in `namespace` needs, which calls `services`.
    pub fn select(
        &self,
        namespace: Option<&str>,
        account: Option<&str>,
        services: &BTreeSet<String>,
    ) -> BTreeMap<String, String> {
        let namespace = namespace.unwrap_or(NAMESPACE);
        let guards = |it: &Document| match &it.accounts {
            Some(accounts) => accounts.iter().any(|it| Some(it.as_str()) == account),
            None => true,
        };
        let mut wanted: BTreeSet<usize> = BTreeSet::new();
        let mut called: Vec<_> =
            services.iter().map(|it| ServiceName::from_host(it, namespace)).collect();
        for &index in self.by_namespace.get(namespace).into_iter().flatten() {
            let document = &self.documents[index];
            if guards(document) {
                wanted.insert(index);
                called.extend(document.targets.iter().chain(&document.backends).cloned());
            }
        }
        let mut seen = HashSet::new();
        while let Some(service) = called.pop() {
            for &index in self.by_target.get(&service).into_iter().flatten() {
                let document = &self.documents[index];
                // A route of another namespace than the service's is for callers there.
                if ["", &document.namespace].contains(&&*service.namespace) {
                    wanted.insert(index);
                    called
                        .extend(document.backends.iter().filter(|it| !seen.contains(*it)).cloned());
                }
            }
            seen.insert(service);
        }
        written(wanted.iter().map(|it| &self.documents[*it]))
    }
}

/// Documents as files, each below a comment that says where it comes from.
pub(super) fn written<'a>(
    documents: impl IntoIterator<Item = &'a Document>,
) -> BTreeMap<String, String> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for Document { file, line, text, .. } in documents {
        let into = files.entry(plain(file)).or_default();
        let separator = if into.is_empty() { "" } else { "---\n" };
        let end = if text.ends_with('\n') { "" } else { "\n" };
        let text = text.trim_start_matches('\u{feff}');
        // A name cannot write lines of its own. Into a `String`, which takes everything.
        let _ok = write!(into, "{separator}# {}:{line}\n{text}{end}", file.escape_debug()).is_ok();
    }
    files
}

/// The name that a file has in a sidecar's folder, where some names are not taken. Files that
/// have one name there are one file.
fn plain(file: &str) -> String {
    let stem = file.strip_suffix(".yaml").unwrap_or(file).chars().take(NAME_MAX);
    let is_known = |it: char| it.is_ascii_alphanumeric() || "-_.".contains(it);
    let stem: String = stem.map(|it| if is_known(it) { it } else { '_' }).collect();
    let before = if stem.is_empty() || stem.starts_with('.') { "_" } else { "" };
    format!("{before}{stem}.yaml")
}

#[cfg(test)]
mod tests;
