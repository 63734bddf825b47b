//! Policy: a generation is written only when it is control's, for us, newer, and good.
//!
//! | refused | because |
//! |---|---|
//! | signer is not control, or its chain is not vouched for | policy decides who may call whom |
//! | audience is another workload | an envelope must not be of use to anybody else |
//! | number is smaller than that of the last one accepted | an old policy is played again |
//! | a name that is not that of a plain `*.yaml` file | it would be written elsewhere |
//! | the loader finds a mistake | a restart would begin with nothing in force |
//!
//! The same number with other files is taken: a generation has more files for a workload
//! that calls more services.

use std::{collections::BTreeMap, fs, io, path::Path, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use remora_certs::{
    bundle::Bundle,
    folder::{self, File},
    pem, signed,
    spiffe_id::SpiffeId,
    svid::Svid,
};

use super::wire::{Envelope, Generation};
use crate::identity::control::Named;

/// The most files of a generation: what the loader reads.
const FILES_MAX: usize = 1_000;

/// The most the name of a file may have.
const NAME_MAX: usize = 253;

/// Why an envelope is not what it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the signature of the policy cannot be read: {0}")]
    Encoding(base64::DecodeError),
    #[error("the policy is not signed by control: {0}")]
    Signature(signed::Error),
    #[error("the policy is signed by `{0}`, which is not control")]
    Signer(SpiffeId),
    #[error("the policy cannot be read: {0}")]
    Payload(serde_json::Error),
    #[error("the policy is for `{0}`")]
    Audience(String),
    #[error("the policy is of generation {number}, and {last} is in force")]
    Older { number: u64, last: u64 },
    #[error("the policy has {0} files, and may have {FILES_MAX}")]
    Files(usize),
    #[error("the policy has a file `{0}`, which is not a plain name that ends in `.yaml`")]
    Name(String),
}

/// What an envelope is held against.
#[derive(Debug)]
pub(super) struct Measure<'a> {
    /// Who vouches for its signer.
    pub(super) roots: &'a Bundle,
    /// Who its signer is to be.
    pub(super) control: &'a Named,
    /// Who we are.
    pub(super) own: &'a SpiffeId,
    /// The number of the newest generation that was accepted.
    pub(super) last: u64,
    /// Since the Unix epoch.
    pub(super) now: Duration,
}

impl Measure<'_> {
    /// The generation in an envelope.
    ///
    /// # Errors
    ///
    /// Why it is not one for us.
    pub(super) fn open(&self, envelope: &Envelope) -> Result<Generation, Refused> {
        let signature = STANDARD.decode(&envelope.signature).map_err(Refused::Encoding)?;
        let payload = envelope.payload.as_bytes();
        let signer = signed::verify(payload, &signature, &envelope.chain, self.roots, self.now)
            .map_err(Refused::Signature)?;
        if !self.control.is(&signer, self.roots, Some(self.own.trust_domain())) {
            return Err(Refused::Signer(signer));
        }
        let generation: Generation = serde_json::from_slice(payload).map_err(Refused::Payload)?;
        if generation.audience != self.own.as_str() {
            return Err(Refused::Audience(generation.audience));
        }
        let (number, last) = (generation.number, self.last);
        if number < last {
            return Err(Refused::Older { number, last });
        }
        if FILES_MAX < generation.files.len() {
            return Err(Refused::Files(generation.files.len()));
        }
        match generation.files.keys().find(|it| !is_plain(it)) {
            Some(name) => Err(Refused::Name(name.chars().take(NAME_MAX).collect())),
            None => Ok(generation),
        }
    }
}

impl Envelope {
    /// A generation as control hands it out, signed by `signer`: what a sidecar opens.
    ///
    /// # Errors
    ///
    /// When the signer's key is not one that signs policy.
    pub fn seal(generation: &Generation, signer: &Svid) -> Result<Self, signed::Error> {
        let payload = serde_json::to_string(generation).unwrap_or_default();
        let signature = STANDARD.encode(signed::sign(payload.as_bytes(), signer)?);
        let chain = signer.chain().iter().map(|it| pem::encode(pem::CERTIFICATE, it).to_string());
        Ok(Self { payload, signature, chain: chain.collect() })
    }
}

/// Whether a name is one of a file in a folder, and not a hidden one or elsewhere.
fn is_plain(name: &str) -> bool {
    let is_known = |it: u8| it.is_ascii_alphanumeric() || b"-_.".contains(&it);
    let stem = name.strip_suffix(".yaml").filter(|it| !it.is_empty() && !it.starts_with('.'));
    name.len() <= NAME_MAX && stem.is_some_and(|it| it.bytes().all(is_known))
}

/// Puts `files` in place of those in `folder`, by one swap.
///
/// # Errors
///
/// When they cannot be written; the old ones are then still there.
pub(super) fn write(
    folder: &Path,
    files: &BTreeMap<String, String>,
    now: Duration,
) -> Result<(), folder::Error> {
    let files: Vec<_> = files.iter().map(|(name, text)| File::public(name, text)).collect();
    folder::replace(folder, &files, now)?;
    // A name that is left of the old set would be a mistake to the loader.
    folder::clear(folder).map_err(|source| folder::Error::Io { path: folder.to_owned(), source })
}

/// The files that are in `folder`, which nobody but us writes to.
///
/// # Errors
///
/// When they cannot be read.
pub(super) fn read(folder: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().into_string().map_err(|_| io::ErrorKind::InvalidFilename)?;
        if !name.starts_with('.') {
            files.insert(name, fs::read_to_string(entry.path())?);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn a_name_is_that_of_a_plain_file() {
        for name in ["a.yaml", "shop-orders_1.v2.yaml"] {
            assert!(is_plain(name), "{name}");
        }
        for name in [
            "",
            ".yaml",
            "..yaml",
            ".a.yaml",
            "a.yml",
            "a",
            "../a.yaml",
            "/a.yaml",
            "a/b.yaml",
            "a b.yaml",
            "ä.yaml",
            "a\0.yaml",
        ] {
            assert!(!is_plain(name), "{name}");
        }
        assert!(!is_plain(&format!("{}.yaml", "a".repeat(NAME_MAX))));
    }

    #[test]
    fn a_set_takes_the_place_of_another() {
        let folder = tempfile::tempdir().unwrap();
        let now = Duration::from_hours(500_000);
        let names = |wanted: &[&str]| {
            let files = wanted.iter().map(|it| ((*it).to_owned(), (*it).to_owned())).collect();
            write(folder.path(), &files, now).unwrap();
            assert_eq!(read(folder.path()).unwrap(), files);
            let names = fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name());
            let names = names.map(|it| it.into_string().unwrap());
            let mut names: Vec<_> = names.filter(|it| !it.starts_with('.')).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(names(&["a.yaml", "b.yaml"]), ["a.yaml", "b.yaml"]);
        assert_eq!(names(&["b.yaml", "c.yaml"]), ["b.yaml", "c.yaml"]);
        assert_eq!(names(&[]), Vec::<String>::new());
    }
}
