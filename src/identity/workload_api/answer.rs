//! Answer: what an agent sends, as the three files of an identity, or refused.

use std::time::Duration;

use prost::Message as _;
use remora_certs::{
    folder::Content,
    pem::{CERTIFICATE, PRIVATE_KEY, encode},
    spiffe_id::SpiffeId,
    x509,
};

use super::Error;
use crate::identity::{Material, source};

/// `X509SVIDResponse`; revocation lists and foreign roots are left out, and so not read.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Response {
    #[prost(message, repeated, tag = "1")]
    pub(super) svids: Vec<X509Svid>,
}

/// `X509SVID`.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct X509Svid {
    #[prost(string, tag = "1")]
    pub(super) spiffe_id: String,
    /// The leaf, then issuers, in DER.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) chain: Vec<u8>,
    /// PKCS #8 in DER.
    #[prost(bytes = "vec", tag = "3")]
    pub(super) key: Vec<u8>,
    /// The roots, in DER.
    #[prost(bytes = "vec", tag = "4")]
    pub(super) bundle: Vec<u8>,
}

impl std::fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("X509Svid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

/// An SVID that is good now.
pub(super) struct Files {
    /// `tls.crt`, `tls.key`, `ca.crt`.
    pub(super) contents: [Content; 3],
    pub(super) id: SpiffeId,
    pub(super) not_after: Duration,
    /// Tells SVIDs apart.
    pub(super) fingerprint: u64,
}

impl Files {
    //= https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_API.md#45-mandatory-fields
    //# Clients receiving a message in which a mandatory field has a default value SHOULD
    //# report an error and discard the message.
    /// Reads an answer; the first SVID in it counts.
    pub(super) fn of(message: &[u8], now: Duration) -> Result<Self, Error> {
        let answer = Response::decode(message).map_err(Error::Message)?;
        // Keys of all that were sent are wiped, also of those that do not count.
        let mut keys: Vec<Content> = Vec::with_capacity(answer.svids.len());
        let mut svids = answer.svids;
        keys.extend(svids.iter_mut().map(|it| Content::new(std::mem::take(&mut it.key))));
        let (Some(svid), Some(key)) = (svids.first(), keys.first()) else {
            return Err(Error::NoSvid);
        };
        for (field, content) in
            [("x509_svid", &svid.chain), ("x509_svid_key", key), ("bundle", &svid.bundle)]
        {
            if content.is_empty() {
                return Err(Error::Missing(field));
            }
        }
        let contents = [
            certificates("x509_svid", &svid.chain)?,
            text(&encode(PRIVATE_KEY, key)),
            certificates("bundle", &svid.bundle)?,
        ];
        let fingerprint = source::fingerprint_of(&contents);
        let found = source::examine(Ok(contents.clone()), now).map(Material::from);
        let found = found.map_err(Error::Unusable)?.svid;
        if found.id().as_str() != svid.spiffe_id {
            let (said, is) = (svid.spiffe_id.chars().take(2048).collect(), found.id().clone());
            return Err(Error::OtherId { said, is });
        }
        let (id, not_after) = (found.id().clone(), found.not_after());
        Ok(Self { contents, id, not_after, fingerprint })
    }
}

/// Certificates in DER, one after the other, as PEM.
fn certificates(field: &'static str, der: &[u8]) -> Result<Content, Error> {
    let certificates = x509::split(der).map_err(|_| Error::Certificates(field))?;
    let pem = certificates.into_iter().map(|it| encode(CERTIFICATE, it).to_string());
    Ok(Content::new(pem.collect::<String>().into_bytes()))
}

fn text(pem: &str) -> Content {
    Content::new(pem.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in any::<Vec<u8>>()) {
            prop_assert!(Files::of(&bytes, Duration::ZERO).is_err());
        }

        #[test]
        fn any_fields_are_read_or_refused(
            spiffe_id in any::<String>(),
            [chain, key, bundle] in any::<[Vec<u8>; 3]>(),
        ) {
            let svid = X509Svid { spiffe_id, chain, key, bundle };
            let message = Response { svids: vec![svid] }.encode_to_vec();
            prop_assert!(Files::of(&message, Duration::ZERO).is_err());
        }
    }
}
