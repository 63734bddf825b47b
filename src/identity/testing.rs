//! Fixture: an authority, the identities it issues, and certificates with mistakes.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use remora_certs::authority::{self, Authority, Leaf, Plan};
use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use tempfile::TempDir;
use time::OffsetDateTime;

use super::{Identity, SpiffeId};
use crate::clock;

pub(super) const DAY: Duration = Duration::from_hours(24);

/// One trust domain in a temporary folder.
pub(super) struct Mesh {
    dir: TempDir,
    authority: Authority,
}

impl Mesh {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan { trust_domain: "td", root_life: 20 * DAY, issuer_life: 10 * DAY };
        let authority = authority::create(dir.path(), &plan, clock::wall()).unwrap();
        Self { dir, authority }
    }

    /// The folder that the identity of `account` is watched in.
    pub(super) fn folder(&self, account: &str) -> PathBuf {
        self.dir.path().join("identities").join(account)
    }

    /// Issues a new certificate for `account` of the namespace `shop` into its folder.
    pub(super) fn issue(&self, account: &str) -> PathBuf {
        let id = SpiffeId::workload("td", "shop", account).unwrap();
        let leaf = Leaf { id: &id, life: DAY, dns_names: &[], addresses: &[] };
        let folder = self.folder(account);
        let now = clock::wall();
        self.authority.issue(&leaf, now).unwrap().write(&folder, now).unwrap();
        folder
    }

    pub(super) fn identity(&self, account: &str) -> Identity {
        Identity::from_folder(&self.issue(account)).unwrap()
    }

    /// A leaf below this mesh's issuer, for `uris`, with `mistake` in it.
    pub(super) fn leaf(
        &self,
        uris: &[&str],
        mistake: impl FnOnce(&mut CertificateParams),
    ) -> Arc<CertifiedKey> {
        let read = |name| fs::read_to_string(self.dir.path().join(name)).unwrap();
        let key = KeyPair::from_pem(&read(authority::ISSUER_KEY)).unwrap();
        let issuer_pem = read(authority::ISSUER_CERTIFICATE);
        let issuer = Issuer::from_ca_cert_pem(&issuer_pem, key).unwrap();
        let (mut params, key) = (params(uris), KeyPair::generate().unwrap());
        mistake(&mut params);
        let leaf = params.signed_by(&key, &issuer).unwrap().der().clone();
        let issuer = CertificateDer::from_pem_slice(issuer_pem.as_bytes()).unwrap();
        certified(vec![leaf, issuer], &key)
    }
}

/// A certificate that nobody but itself vouches for.
pub(super) fn self_signed(uris: &[&str]) -> Arc<CertifiedKey> {
    let key = KeyPair::generate().unwrap();
    certified(vec![params(uris).self_signed(&key).unwrap().der().clone()], &key)
}

/// Whole days from now, or before it.
pub(super) fn in_days(days: i64) -> OffsetDateTime {
    let now = OffsetDateTime::UNIX_EPOCH + clock::wall();
    now + time::Duration::days(days)
}

fn params(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names =
        uris.iter().map(|it| SanType::URI((*it).try_into().unwrap())).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn certified(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<CertifiedKey> {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    Arc::new(CertifiedKey::new(chain, any_supported_type(&key).unwrap()))
}
