//! CSR: a request for a certificate, made with a key that stays, and read strictly.
//!
//! A request proves that its sender holds a key, and may name whom the certificate is to be
//! for. It decides nothing else: what a leaf says is the authority's alone. So whatever a
//! request asks for that no leaf will ever have is refused rather than passed over, since
//! its sender would believe to have got it:
//!
//! | asked for | answer |
//! |---|---|
//! | no name, or one URI that is a workload's SPIFFE id | read |
//! | DNS names, addresses, two URIs, names of any other kind | refused |
//! | a right to sign (`CA`, `keyCertSign`, `cRLSign`) | refused |
//! | other key usages; `serverAuth`, `clientAuth`; a subject; a key identifier | passed over |
//! | any other extension, purpose or attribute, or one of them twice | refused |
//!
//! Tools such as openssl put into a request what is passed over, without being asked.
//!
//! # Sources
//!
//! - RFC 2986 (PKCS #10): <https://www.rfc-editor.org/rfc/rfc2986>
//! - RFC 2985, section 5.4.2 (`extensionRequest`): <https://www.rfc-editor.org/rfc/rfc2985>

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, PublicKeyData as _, SanType};
use x509_parser::{
    certification_request::{X509CertificationRequest, X509CertificationRequestInfo},
    cri_attributes::ParsedCriAttribute,
    extensions::{ExtendedKeyUsage, GeneralName, ParsedExtension, X509Extension},
    oid_registry::{OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384},
    prelude::FromDer,
    x509::X509Version,
};
use zeroize::Zeroizing;

use crate::{
    authority::{Key, Secret},
    ecdsa::{Hash, PublicKey},
    pem,
    spiffe_id::{self, ParseError, SpiffeId},
    x509::{described, fingerprint},
};

/// Ten times what a request with one URI of the greatest length needs.
const BYTES_MAX: usize = 32 * 1024;

/// A request and its key, which never leaves this process unless its caller writes it down.
pub struct Request {
    pem: String,
    key: Secret,
}

/// What a request asks for: its sender holds the key, and says to be somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    id: Option<SpiffeId>,
    public_key: PublicKey,
}

/// Why a request is refused, or could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Larger than any request for a workload.
    #[error("a request has at most {BYTES_MAX} bytes, this one {0}")]
    TooLarge(usize),
    /// It is not PEM.
    #[error("{0}")]
    Pem(pem::Error),
    /// Not one block of that label.
    #[error("expected one `CERTIFICATE REQUEST` in PEM, and nothing else")]
    NotARequest,
    /// The bytes are not one request of PKCS #10.
    #[error("not a readable certificate request")]
    Unreadable,
    /// Its key is not on one of the two curves.
    #[error("the key of the request is not ECDSA on P-256 or P-384")]
    Key,
    /// It is not signed by its key.
    #[error("the request is not signed by the key it is for")]
    Signature,
    /// It asks for the right to sign certificates.
    #[error("the request asks for a signing certificate")]
    Signing,
    /// It asks for something that no leaf gets, or for something twice.
    #[error("the request asks for `{0}`, which no workload's certificate gets")]
    Extra(String),
    /// A name that is not a URI.
    #[error("the request asks for the name `{0}`, and may ask for one SPIFFE id only")]
    Name(String),
    /// More than one.
    #[error("the request names {0} URIs, and may name one")]
    ManyUris(usize),
    /// The URI is not a SPIFFE id.
    #[error("the request's URI is not a SPIFFE id: {0}")]
    Malformed(ParseError),
    /// It names a trust domain, not a workload in it.
    #[error("the request is for `{0}`, which names a trust domain, not a workload in it")]
    NoPath(SpiffeId),
    /// It could not be made.
    #[error("cannot make a certificate request: {0}")]
    Make(#[from] rcgen::Error),
}

impl Error {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::TooLarge(_) | Self::Pem(_) | Self::NotARequest | Self::Unreadable => {
                "send one request of PKCS #10 in PEM, as `openssl req -new` writes it"
            }
            Self::Key => "make the key with `openssl ecparam -name prime256v1 -genkey`",
            Self::Signature => "sign the request with the private key of its public key",
            Self::Signing | Self::Extra(_) | Self::Name(_) => {
                "ask for nothing, or for the workload's SPIFFE id as the one URI"
            }
            Self::ManyUris(_) | Self::Malformed(_) | Self::NoPath(_) => {
                "name one URI: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`"
            }
            Self::Make(_) => "this is a bug of Remora: report it",
        }
    }
}

impl Request {
    /// Makes a key, and a request by it to be certified as `id`.
    ///
    /// # Errors
    ///
    /// [`Error::Make`], when no key can be made.
    pub fn new(id: &SpiffeId, key: Key) -> Result<Self, Error> {
        Self::of(vec![SanType::URI(id.as_str().try_into()?)], key)
    }

    /// Makes the same for whoever its sender is found to be, who does not know it yet.
    ///
    /// # Errors
    ///
    /// As [`Request::new`].
    pub fn unnamed(key: Key) -> Result<Self, Error> {
        Self::of(Vec::new(), key)
    }

    fn of(names: Vec<SanType>, key: Key) -> Result<Self, Error> {
        let key = Secret::generate(key)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        let pem = params.serialize_request(&key)?.pem()?;
        Ok(Self { pem, key })
    }

    /// What is sent.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The key in PEM, to be written beside the certificate.
    pub fn key_pem(&self) -> Zeroizing<String> {
        self.key.pem().clone()
    }
}

impl Asked {
    /// Whom the certificate is to be for, when the request says so.
    pub fn id(&self) -> Option<&SpiffeId> {
        self.id.as_ref()
    }

    /// SHA-256 of the public key (`SubjectPublicKeyInfo`), in lower-case hexadecimal.
    ///
    /// Of two requests it tells whether they are for one key.
    pub fn key_digest(&self) -> String {
        fingerprint(&self.public_key.subject_public_key_info())
    }

    pub(crate) fn public_key(&self) -> &PublicKey {
        &self.public_key
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").finish_non_exhaustive()
    }
}

/// Reads a request in PEM, whose sender nothing has been proved of yet.
///
/// That it is signed by its own key has been checked when it returns. Whether the sender
/// may be whom it names is the caller's question; [`crate::authority::Authority::sign`]
/// refuses a name other than the one proved.
///
/// # Errors
///
/// As the table of this module says.
pub fn read(file: &str) -> Result<Asked, Error> {
    if BYTES_MAX < file.len() {
        return Err(Error::TooLarge(file.len()));
    }
    match pem::blocks(file.as_bytes()).map_err(Error::Pem)?[..] {
        [block] if block.is_request() => read_der(&block.request().map_err(Error::Pem)?),
        _ => Err(Error::NotARequest),
    }
}

/// As [`read`], of a request in DER.
///
/// # Errors
///
/// The same.
pub fn read_der(der: &[u8]) -> Result<Asked, Error> {
    if BYTES_MAX < der.len() {
        return Err(Error::TooLarge(der.len()));
    }
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| Error::Unreadable)?;
    let info = &request.certification_request_info;
    if !rest.is_empty() || info.version != X509Version::V1 {
        return Err(Error::Unreadable);
    }
    let public_key = PublicKey::from_der(info.subject_pki.raw).ok_or(Error::Key)?;
    let algorithm = &request.signature_algorithm.algorithm;
    let hash = if *algorithm == OID_SIG_ECDSA_WITH_SHA256 {
        Hash::Sha256
    } else if *algorithm == OID_SIG_ECDSA_WITH_SHA384 {
        Hash::Sha384
    } else {
        return Err(Error::Signature);
    };
    if !public_key.verify(hash, info.raw, &request.signature_value.data) {
        return Err(Error::Signature);
    }
    Ok(Asked { id: id(info)?, public_key })
}

/// The one id asked for, when nothing that is refused is.
fn id(info: &X509CertificationRequestInfo<'_>) -> Result<Option<SpiffeId>, Error> {
    let extensions = match info.attributes() {
        [] => return Ok(None),
        [attribute] => match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(it) => &it.extensions[..],
            ParsedCriAttribute::ChallengePassword(_) | ParsedCriAttribute::UnsupportedAttribute => {
                return Err(Error::Extra(attribute.oid.to_id_string()));
            }
        },
        [_, second, ..] => return Err(Error::Extra(second.oid.to_id_string())),
    };
    let mut id = None;
    for (index, extension) in extensions.iter().enumerate() {
        if extensions[..index].iter().any(|it| it.oid == extension.oid) {
            return Err(Error::Extra(extension.oid.to_id_string()));
        }
        if let Some(named) = granted(extension)? {
            id = Some(named);
        }
    }
    Ok(id)
}

/// Whom one extension names, when it is one that may be there.
fn granted(extension: &X509Extension<'_>) -> Result<Option<SpiffeId>, Error> {
    let extra = || Err(Error::Extra(extension.oid.to_id_string()));
    let parsed = extension.parsed_extension();
    if parsed.error().is_some() {
        return Err(Error::Unreadable);
    }
    if let ParsedExtension::SubjectAlternativeName(names) = parsed {
        return named(&names.general_names);
    }
    let signing = if let ParsedExtension::BasicConstraints(it) = parsed {
        it.ca
    } else if let ParsedExtension::KeyUsage(it) = parsed {
        it.key_cert_sign() || it.crl_sign()
    } else if let ParsedExtension::ExtendedKeyUsage(it) = parsed {
        return if is_for_handshakes(it) { Ok(None) } else { extra() };
    } else if let ParsedExtension::SubjectKeyIdentifier(_) = parsed {
        false
    } else {
        return extra();
    };
    if signing { Err(Error::Signing) } else { Ok(None) }
}

fn is_for_handshakes(usage: &ExtendedKeyUsage<'_>) -> bool {
    let others = [
        usage.any,
        usage.code_signing,
        usage.email_protection,
        usage.time_stamping,
        usage.ocsp_signing,
    ];
    usage.other.is_empty() && !others.contains(&true)
}

fn named(names: &[GeneralName<'_>]) -> Result<Option<SpiffeId>, Error> {
    let uris = names.iter().map(|it| {
        let GeneralName::URI(uri) = it else { return Err(Error::Name(described(it))) };
        Ok(uri.as_bytes())
    });
    let uris: Vec<&[u8]> = uris.collect::<Result<_, _>>()?;
    let uri = match uris[..] {
        [] => return Ok(None),
        [uri] => uri,
        _ => return Err(Error::ManyUris(uris.len())),
    };
    let id = spiffe_id::parse(uri).map_err(Error::Malformed)?;
    if id.path().is_empty() { Err(Error::NoPath(id)) } else { Ok(Some(id)) }
}

#[cfg(test)]
mod tests;
