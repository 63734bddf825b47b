//! Content: the documents of a generation, and which of them a workload needs.
//!
//! A workload gets what is in its own namespace, what concerns the services it calls, and
//! what concerns the services that those documents send it to. Whatever is looked up for a
//! service is there whole, so that a sidecar makes the same of its part as of the folder.
//!
//! What is left out is never missed: documents of a sidecar's loader demand nothing of each
//! other, they only contradict.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt::Write as _,
};

use remora::{
    config::{
        Errors,
        catalogue::{Catalogue, Document, Files},
    },
    policy::ServiceName,
};
use remora_certs::{spiffe_id::SpiffeId, x509::fingerprint};

/// The most all documents may hold. An envelope is JSON in JSON: each byte has at most four
/// there, and [`remora::sync::wire::BYTES_MAX`] are allowed.
const BYTES_MAX: usize = 3 << 19;

/// What a sidecar reads of one file; the comments that are added count, too.
const FILE_BYTES_MAX: usize = 1 << 20;

/// Characters of a name, without the extension; a sidecar takes a few more.
const NAME_MAX: usize = 200;

/// Problems that are told; the others show when these are corrected.
const PROBLEMS_MAX: usize = 20;

/// What a sidecar takes for its namespace whose id names none.
const NAMESPACE: &str = "default";

/// Documents that are good together.
#[derive(Debug)]
pub(super) struct Content {
    /// SHA-256 of `files`, in hexadecimal.
    pub(super) digest: String,
    /// The files as they were read.
    pub(super) files: BTreeMap<String, String>,
    /// By file and position.
    documents: Vec<Document>,
    by_namespace: HashMap<String, Vec<usize>>,
    by_target: HashMap<ServiceName, Vec<usize>>,
}

impl Content {
    /// Reads the documents of `files`, or says what is wrong with them.
    pub(super) fn read(files: &Files) -> Result<Self, String> {
        let Catalogue { documents, .. } = Catalogue::new(files).map_err(|it| told(&it))?;
        let files = files.texts();
        let size: usize = files.iter().map(|(name, text)| name.len() + text.len()).sum();
        if BYTES_MAX < size {
            return Err(format!(
                "the documents have {size} bytes, at most {BYTES_MAX} are handed out\n\
                 hint: remove comments and what nobody uses, or run a control for a part of them"
            ));
        }
        if let Some((name, _)) = written(&documents).iter().find(|it| FILE_BYTES_MAX < it.1.len()) {
            return Err(format!(
                "{name}: the file is too large\nhint: split it into several files"
            ));
        }
        let mut by_namespace: HashMap<String, Vec<usize>> = HashMap::new();
        let mut by_target: HashMap<ServiceName, Vec<usize>> = HashMap::new();
        for (index, it) in documents.iter().enumerate() {
            by_namespace.entry(it.namespace.clone()).or_default().push(index);
            for target in &it.targets {
                by_target.entry(target.clone()).or_default().push(index);
            }
        }
        let digest = fingerprint(serde_json::to_string(&files).unwrap_or_default().as_bytes());
        Ok(Self { digest, files, documents, by_namespace, by_target })
    }

    /// The files that the workload `id` needs, which calls `services`.
    pub(super) fn select(&self, id: &SpiffeId, services: &[String]) -> BTreeMap<String, String> {
        let namespace = id.namespace().unwrap_or(NAMESPACE);
        let account = id.service_account();
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
fn written<'a>(documents: impl IntoIterator<Item = &'a Document>) -> BTreeMap<String, String> {
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

fn told(errors: &Errors) -> String {
    let problems = errors.problems();
    let mut lines: Vec<_> = problems.iter().take(PROBLEMS_MAX).map(ToString::to_string).collect();
    if let Some(more) = problems.len().checked_sub(PROBLEMS_MAX).filter(|it| 0 < *it) {
        lines.push(format!("and {more} more"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests;
