//! Material: an SVID and its roots that the loader found good, before they are files.
//!
//! Whoever writes an identity's folder asks here first, so that what is written is what
//! [`Identity`](super::Identity) takes: there is one judge, and it is the loader.

use std::{path::Path, time::Duration};

use remora_certs::{
    bundle::Bundle,
    folder::{self, Content},
    svid::Svid,
    x509::{Facts, fingerprint},
};

use super::{Error, source};

/// An SVID and the roots that vouch for it.
#[derive(Clone, Debug)]
pub struct Material {
    /// Certificate chain and key.
    pub svid: Svid,
    /// Whom to trust.
    pub roots: Bundle,
}

impl Material {
    /// What the folder `dir` holds.
    ///
    /// # Errors
    ///
    /// As [`Identity::from_folder`](super::Identity::from_folder), at the time `now`.
    pub fn load(dir: &Path, now: Duration) -> Result<Self, Error> {
        source::examine(folder::read(dir, source::FILES), now).map(Self::from)
    }

    /// What three files in PEM would be in a folder.
    ///
    /// # Errors
    ///
    /// As [`Material::load`].
    pub fn examine(chain: &str, key: &str, roots: &str, now: Duration) -> Result<Self, Error> {
        for (text, name) in [chain, key, roots].into_iter().zip(source::FILES) {
            let max = folder::FILE_BYTES_MAX;
            if max < text.len() {
                return Err(Error::Files(folder::Error::TooLarge(name.into(), max)));
            }
        }
        let files = [chain, key, roots].map(|it| Content::new(it.as_bytes().to_vec()));
        source::examine(Ok(files), now).map(Self::from)
    }

    /// The leaf's serial number, in hexadecimal.
    pub fn serial(&self) -> String {
        let facts = self.svid.chain().first().and_then(|it| Facts::of(it).ok());
        facts.map(|it| plain(&it.serial)).unwrap_or_default()
    }

    /// SHA-256 of the certificate that signed the leaf, in lower-case hexadecimal.
    pub fn issuer(&self) -> String {
        let root = || self.roots.roots().first().map(|it| fingerprint(it));
        self.svid.issuer_fingerprint().or_else(root).unwrap_or_default()
    }
}

/// SHA-256 of each root, in order: two bundles with the same are one.
pub fn fingerprints(roots: &Bundle) -> Vec<String> {
    let mut all: Vec<_> = roots.roots().iter().map(|it| fingerprint(it)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Hexadecimal without colons, in lower case.
fn plain(text: &str) -> String {
    text.chars().filter(char::is_ascii_hexdigit).map(|it| it.to_ascii_lowercase()).collect()
}
