//! Content: the documents of a generation, which are good and fit into an envelope.

use std::{collections::BTreeMap, sync::Arc};

use remora::config::{
    catalogue::{Catalogue, Files},
    selection::Selection,
};
use remora_certs::x509::fingerprint;

use crate::store;

/// The most all documents may hold. An envelope is JSON in JSON: each byte has at most four
/// there, and [`remora::sync::wire::BYTES_MAX`] are allowed.
const BYTES_MAX: usize = 3 << 19;

/// Problems that are told; the others show when these are corrected.
const PROBLEMS_MAX: usize = 20;

/// Documents that are good together.
#[derive(Debug)]
pub(super) struct Content {
    /// SHA-256 of `files` as they are kept, in hexadecimal.
    pub(super) digest: String,
    /// The files as they were read.
    pub(super) files: BTreeMap<String, String>,
    /// The same, for workloads.
    pub(super) selection: Selection,
}

/// What there is, or what is wrong with it.
pub(super) type Reading = Result<Arc<Content>, String>;

impl Content {
    /// Reads the documents of `files`, or says what is wrong with them.
    pub(super) fn read(files: &Files) -> Reading {
        let found = Catalogue::new(files).map_err(|it| it.first(PROBLEMS_MAX))?;
        let (files, selection) = (files.texts(), Selection::new(found.documents));
        let size: usize = files.iter().map(|(name, text)| name.len() + text.len()).sum();
        if BYTES_MAX < size {
            return Err(format!(
                "the documents have {size} bytes, at most {BYTES_MAX} are handed out\n\
                 hint: remove comments and what nobody uses, or run a control for a part of them"
            ));
        }
        let digest = fingerprint(&store::json(&files).map_err(|it| it.to_string())?);
        Ok(Arc::new(Self { digest, files, selection }))
    }

    /// Reads what was kept of the documents with `digest`.
    pub(super) fn kept(kept: &[u8], digest: &str) -> Reading {
        let is_whole = fingerprint(kept) == digest;
        let files = serde_json::from_slice(kept).ok().filter(|_| is_whole);
        Self::read(&Files::new(&files.ok_or("it is damaged")?))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn more_than_an_envelope_can_carry_is_refused() {
        let large = |size: usize| format!("# {}\n", "\"".repeat(size));
        let read = |sizes: &[usize]| {
            let files = (1..).zip(sizes).map(|(name, size)| (format!("{name}.yaml"), large(*size)));
            Content::read(&Files::new(&files.collect()))
        };
        assert!(read(&[700_000, 700_000]).is_ok());
        let error = read(&[700_000, 700_000, 700_000]).unwrap_err();
        assert!(
            error.starts_with("the documents have 2100") && error.contains("\nhint: "),
            "{error}"
        );
        // The largest that is taken arrives, however it must be escaped.
        let document = "{apiVersion: remora.dev/v1alpha1, kind: WorkloadPolicy, \
                        metadata: {name: a, namespace: shop}, spec: {}} ";
        let text = large(BYTES_MAX / 2 - 200) + document;
        let files = BTreeMap::from([("a.yaml".to_owned(), text)]);
        let found = Catalogue::new(&Files::new(&files)).unwrap().documents;
        let files = Selection::new([&found[..], &found].concat()).select(
            Some("shop"),
            Some("a"),
            &BTreeSet::new(),
        );
        let payload = serde_json::to_string(&files).unwrap();
        assert!(BYTES_MAX * 2 - 2_000 < payload.len());
        let line = serde_json::to_string(&payload).unwrap();
        assert!(line.len() + (64 << 10) < remora::sync::wire::BYTES_MAX, "{}", line.len());
    }

    #[test]
    fn of_many_problems_the_first_are_told() {
        let text = "{kind: Nothing}\n---\n".repeat(PROBLEMS_MAX + 5);
        let files = BTreeMap::from([("a.yaml".to_owned(), text)]);
        let error = Content::read(&Files::new(&files)).unwrap_err();
        assert_eq!(error.lines().count(), 2 * PROBLEMS_MAX + 1);
        assert!(error.ends_with("\nand 5 more"), "{error}");
    }
}
