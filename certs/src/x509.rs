//! X.509: the facts of one certificate that SPIFFE cares about.
//!
//! The bytes come from a peer that nothing has vouched for yet: whatever they are, the
//! answer is an id or a refusal, never a guess. A certificate with two URIs is refused
//! rather than read by its first, since two programs would read it as two identities.
//!
//! # Sources
//!
//! - X509-SVID, sections 2, 4 and 5.2:
//!   <https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md>

use std::{net::IpAddr, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use x509_parser::{
    asn1_rs::Tag,
    certificate::X509Certificate,
    extensions::{BasicConstraints, GeneralName, GeneralSubtree, KeyUsage, X509Extension},
    prelude::FromDer,
    public_key::PublicKey,
    time::ASN1Time,
};

use crate::{
    pem,
    spiffe_id::{self, ParseError, SpiffeId},
};

/// The tag of a URI among the subject's alternative names.
const URI: Tag = Tag(6);

/// Why a certificate is not a workload's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The bytes are not one X.509 certificate.
    #[error("not a readable X.509 certificate")]
    Unreadable,
    /// It may sign certificates, so it is no workload's.
    #[error("the certificate is a signing certificate, not a workload's")]
    Signing,
    /// No URI among its names.
    #[error("the certificate names no SPIFFE id")]
    NoUri,
    /// More than one.
    #[error("the certificate names {0} URIs, and must name one")]
    ManyUris(usize),
    /// The URI is not a SPIFFE id.
    #[error("the certificate's URI is not a SPIFFE id: {0}")]
    Malformed(ParseError),
    /// It names a trust domain, not a workload in it.
    #[error("`{0}` names a trust domain, not a workload in it")]
    NoPath(SpiffeId),
}

/// What a certificate says, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whom it is about; often empty in a workload's.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// The serial number in hexadecimal.
    pub serial: String,
    /// Since the Unix epoch.
    pub not_before: Duration,
    /// Since the Unix epoch.
    pub not_after: Duration,
    /// Its names of all kinds, as `URI:…`, `DNS:…`, `IP:…`.
    pub names: Vec<String>,
    /// Whether it may sign certificates.
    pub is_ca: bool,
    /// How many signing certificates may stand between it and a leaf.
    pub path_len: Option<u32>,
    /// What the names of certificates below it must or must not be, as `only DNS:…`,
    /// `not URI:…`.
    pub constraints: Vec<String>,
    /// Whether its key may sign certificates: so it says, or nothing is said about its key.
    pub cert_sign: bool,
    /// Whether its key may sign handshakes.
    pub digital_signature: bool,
    /// The key's kind and size.
    pub key: String,
    /// The public key: DER of `SubjectPublicKeyInfo`.
    pub public_key: Vec<u8>,
    /// SHA-256 of the whole certificate, as `openssl x509 -fingerprint -sha256` has it.
    pub fingerprint: String,
}

/// The numbers a public key is made of, big-endian.
pub(crate) enum PublicParts {
    /// A point of a curve, each half as long as the curve's field.
    Ec { x: Vec<u8>, y: Vec<u8> },
    /// Modulus and exponent.
    Rsa { n: Vec<u8>, e: Vec<u8> },
}

//= https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md#52-leaf-validation
//# the validator MUST ensure that the `CA` field in the basic constraints extension is set
//# to `false`, and that `keyCertSign` and `cRLSign` are not set in the key usage extension
/// The SPIFFE id of a workload's certificate in DER.
///
/// It says nothing about who signed it: verify the chain first.
///
/// # Errors
///
/// When the certificate is unreadable, a signing one, or without exactly one URI that is
/// the SPIFFE id of a workload.
pub fn id_of(der: &[u8]) -> Result<SpiffeId, IdError> {
    let certificate = parse(der)?;
    let uris = uris(&certificate)?;
    let usage = key_usage(&certificate)?;
    let is_ca = constraints(&certificate)?.is_some_and(|it| it.ca);
    if is_ca || usage.is_some_and(|it| it.key_cert_sign() || it.crl_sign()) {
        return Err(IdError::Signing);
    }
    let uri = match uris[..] {
        [] => return Err(IdError::NoUri),
        [uri] => uri,
        _ => return Err(IdError::ManyUris(uris.len())),
    };
    let id = spiffe_id::parse(uri).map_err(IdError::Malformed)?;
    if id.path().is_empty() { Err(IdError::NoPath(id)) } else { Ok(id) }
}

/// Whether a certificate claims a SPIFFE id at all, well or badly.
///
/// What claims none is some other system's certificate, not a wrong one of ours.
pub fn claims_spiffe(der: &[u8]) -> bool {
    let claims =
        |uri: &[u8]| uri.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"spiffe:"));
    parse(der).and_then(|it| uris(&it).map(|uris| uris.into_iter().any(claims))).unwrap_or(false)
}

/// The numbers of a certificate's key; `None` when it is of another kind.
pub(crate) fn public_parts(der: &[u8]) -> Option<PublicParts> {
    let certificate = parse(der).ok()?;
    let key = certificate.public_key().parsed().ok()?;
    if let PublicKey::EC(point) = key {
        let [4, halves @ ..] = point.data() else { return None };
        let (x, y) = halves.split_at_checked(halves.len() / 2)?;
        return Some(PublicParts::Ec { x: x.to_vec(), y: y.to_vec() });
    }
    let PublicKey::RSA(key) = key else { return None };
    let number = |bytes: &[u8]| bytes.strip_prefix(&[0]).unwrap_or(bytes).to_vec();
    Some(PublicParts::Rsa { n: number(key.modulus), e: number(key.exponent) })
}

/// Splits certificates in DER that stand one after the other.
///
/// # Errors
///
/// [`IdError::Unreadable`] when anything between or after them is no certificate.
pub fn split(mut der: &[u8]) -> Result<Vec<&[u8]>, IdError> {
    let mut certificates = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der).map_err(|_| IdError::Unreadable)?;
        let (certificate, rest) = der.split_at(der.len() - rest.len());
        certificates.push(certificate);
        der = rest;
    }
    Ok(certificates)
}

/// SHA-256 of these bytes, of a whole certificate say, in lower-case hexadecimal.
///
/// Digits as [`Facts::fingerprint`] has them, in the form that programs compare.
pub fn fingerprint(der: &[u8]) -> String {
    hex(der, |it| format!("{it:02x}")).concat()
}

/// The [`fingerprint`] of the issuer in a chain of PEM that begins with a leaf.
///
/// It says which issuer a leaf was sent with, and nothing about who signed it.
/// `None` when the issuer is not in the chain, or it is damaged.
pub fn chain_issuer_fingerprint(chain: &[u8]) -> Option<String> {
    let blocks = pem::blocks(chain).ok()?;
    let issuer = blocks.iter().filter(|it| it.is_certificate()).nth(1)?;
    Some(fingerprint(&issuer.certificate().ok()?))
}

impl Facts {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    ///
    /// [`IdError::Unreadable`] when the bytes are not one X.509 certificate.
    pub fn of(der: &[u8]) -> Result<Self, IdError> {
        let it = parse(der)?;
        let constraints = constraints(&it)?;
        Ok(Self {
            subject: it.subject().to_string(),
            issuer: it.issuer().to_string(),
            serial: it.raw_serial_as_string(),
            not_before: since_epoch(it.validity().not_before),
            not_after: since_epoch(it.validity().not_after),
            names: names(&it)?.iter().map(described).collect(),
            is_ca: constraints.is_some_and(|it| it.ca),
            path_len: constraints.and_then(|it| it.path_len_constraint),
            constraints: name_constraints(&it)?,
            cert_sign: key_usage(&it)?.is_none_or(KeyUsage::key_cert_sign),
            digital_signature: key_usage(&it)?.is_some_and(KeyUsage::digital_signature),
            key: key(&it),
            public_key: it.public_key().raw.to_vec(),
            fingerprint: colons(der),
        })
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, IdError> {
    match X509Certificate::from_der(der) {
        Ok((rest, certificate))
            if rest.is_empty() && certificate.iter_extensions().all(is_read) =>
        {
            Ok(certificate)
        }
        Ok(_) | Err(_) => Err(IdError::Unreadable),
    }
}

/// An extension that could not be read must not count as one that is absent.
fn is_read(extension: &X509Extension<'_>) -> bool {
    extension.parsed_extension().error().is_none()
}

fn constraints<'b>(
    certificate: &'b X509Certificate<'_>,
) -> Result<Option<&'b BasicConstraints>, IdError> {
    Ok(certificate.basic_constraints().map_err(|_| IdError::Unreadable)?.map(|it| it.value))
}

fn name_constraints(certificate: &X509Certificate<'_>) -> Result<Vec<String>, IdError> {
    let found = certificate.name_constraints().map_err(|_| IdError::Unreadable)?;
    let Some(it) = found.map(|it| it.value) else { return Ok(Vec::new()) };
    let said = |word: &'static str, trees: &Option<Vec<GeneralSubtree<'_>>>| {
        let said = |it: &GeneralSubtree<'_>| format!("{word} {}", constrained(&it.base));
        trees.iter().flatten().map(said).collect::<Vec<_>>()
    };
    Ok([said("only", &it.permitted_subtrees), said("not", &it.excluded_subtrees)].concat())
}

/// A name in a constraint: that of an address is one and its mask.
fn constrained(name: &GeneralName<'_>) -> String {
    let GeneralName::IPAddress(bytes) = name else { return described(name) };
    let half = |bytes: &[u8]| match (<[u8; 4]>::try_from(bytes), <[u8; 16]>::try_from(bytes)) {
        (Ok(v4), _) => IpAddr::from(v4).to_string(),
        (_, Ok(v6)) => IpAddr::from(v6).to_string(),
        (Err(_), Err(_)) => "(damaged)".to_owned(),
    };
    let (address, mask) = bytes.split_at(bytes.len() / 2);
    format!("IP:{}/{}", half(address), half(mask))
}

fn colons(der: &[u8]) -> String {
    hex(der, |it| format!("{it:02X}")).join(":")
}

fn hex(der: &[u8], digits: impl Fn(&u8) -> String) -> Vec<String> {
    digest(&SHA256, der).as_ref().iter().map(digits).collect()
}

fn names<'a, 'b>(certificate: &'b X509Certificate<'a>) -> Result<&'b [GeneralName<'a>], IdError> {
    let names = certificate.subject_alternative_name().map_err(|_| IdError::Unreadable)?;
    Ok(names.map_or(&[], |it| &it.value.general_names))
}

/// The URIs, those that are no text included.
fn uris<'a>(certificate: &X509Certificate<'a>) -> Result<Vec<&'a [u8]>, IdError> {
    let uri = |name: &GeneralName<'a>| {
        if let GeneralName::URI(uri) = name {
            Some(uri.as_bytes())
        } else if let GeneralName::Invalid(URI, bytes) = name {
            Some(*bytes)
        } else {
            None
        }
    };
    Ok(names(certificate)?.iter().filter_map(uri).collect())
}

fn key_usage<'b>(certificate: &'b X509Certificate<'_>) -> Result<Option<&'b KeyUsage>, IdError> {
    Ok(certificate.key_usage().map_err(|_| IdError::Unreadable)?.map(|it| it.value))
}

fn since_epoch(time: ASN1Time) -> Duration {
    Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or_default())
}

pub(crate) fn described(name: &GeneralName<'_>) -> String {
    if let GeneralName::URI(uri) = name {
        return format!("URI:{}", uri.escape_debug());
    }
    if let GeneralName::DNSName(host) = name {
        return format!("DNS:{}", host.escape_debug());
    }
    if let GeneralName::IPAddress(bytes) = name {
        let (v4, v6) = (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes));
        let address = v4.map(IpAddr::from).or_else(|_| v6.map(IpAddr::from));
        return address.map_or_else(|_| "IP:(damaged)".to_owned(), |it| format!("IP:{it}"));
    }
    name.to_string().escape_debug().to_string()
}

fn key(certificate: &X509Certificate<'_>) -> String {
    match certificate.public_key().parsed() {
        Ok(PublicKey::EC(point)) => format!("ECDSA, {} bits", point.key_size()),
        Ok(PublicKey::RSA(key)) => format!("RSA, {} bits", key.key_size()),
        Ok(_) | Err(_) => "of another kind".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, CustomExtension, IsCa, KeyPair, KeyUsagePurpose, SanType};

    use super::*;

    const ORDERS: &str = "spiffe://td/ns/shop/sa/orders";

    #[test]
    fn one_uri_that_is_a_workloads_id_is_the_id() {
        assert_eq!(id_of(&certificate(&[ORDERS], |_| ())).unwrap().as_str(), ORDERS);
        // Names of other kinds do not count.
        let der = certificate(&[ORDERS], |it| {
            it.subject_alt_names.push(SanType::DnsName("orders".try_into().unwrap()));
        });
        assert_eq!(id_of(&der).unwrap().as_str(), ORDERS);
    }

    #[test]
    fn every_other_certificate_is_refused_with_its_reason() {
        let malformed = IdError::Malformed(ParseError::EmptySegment { at: 12 });
        for (uris, error) in [
            (&[][..], IdError::NoUri),
            (&[ORDERS, ORDERS], IdError::ManyUris(2)),
            (&[ORDERS, "https://example.com"], IdError::ManyUris(2)),
            (&["https://example.com"], IdError::Malformed(ParseError::Scheme)),
            (&["spiffe://td//x"], malformed),
            (&["spiffe://td"], IdError::NoPath("spiffe://td".parse().unwrap())),
        ] {
            assert_eq!(id_of(&certificate(uris, |_| ())), Err(error), "{uris:?}");
        }
    }

    #[test]
    fn a_signing_certificate_is_nobodys_identity() {
        let ca = |it: &mut CertificateParams| {
            it.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        };
        assert_eq!(id_of(&certificate(&[ORDERS], ca)), Err(IdError::Signing));
        for usage in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
            let der = certificate(&[ORDERS], |it| it.key_usages.push(usage));
            assert_eq!(id_of(&der), Err(IdError::Signing));
        }
    }

    #[test]
    fn names_that_cannot_be_read_are_not_overlooked() {
        // A second extension of names could hide a second id.
        let names = b"\x30\x05\x86\x03a:b".to_vec();
        let twice = CustomExtension::from_oid_content(&[2, 5, 29, 17], names);
        let der = certificate(&[ORDERS], |it| it.custom_extensions.push(twice));
        assert_eq!(id_of(&der), Err(IdError::Unreadable));
        // Nor could a damaged one hide that this is a signing certificate.
        let damaged = CustomExtension::from_oid_content(&[2, 5, 29, 19], b"\x30\x05".to_vec());
        let der = certificate(&[ORDERS], |it| it.custom_extensions.push(damaged));
        assert_eq!(id_of(&der), Err(IdError::Unreadable));
        // A URI that is not text is a URI.
        let names = b"\x30\x05\x86\x03\xff\xfe\xfd".to_vec();
        let odd = CustomExtension::from_oid_content(&[2, 5, 29, 17], names);
        let der = certificate(&[], |it| it.custom_extensions.push(odd));
        assert_eq!(id_of(&der), Err(IdError::Malformed(ParseError::Scheme)));
    }

    #[test]
    fn bytes_after_the_certificate_are_refused() {
        let mut der = certificate(&[ORDERS], |_| ());
        der.push(0);
        assert_eq!(id_of(&der), Err(IdError::Unreadable));
    }

    #[test]
    fn claiming_spiffe_is_independent_of_doing_it_well() {
        for (uris, claims) in [
            (&[ORDERS][..], true),
            (&["spiffe://td//x"], true),
            (&["SPIFFE://td/x"], true),
            (&["https://example.com", ORDERS], true),
            (&["https://example.com"], false),
            (&[], false),
        ] {
            assert_eq!(claims_spiffe(&certificate(uris, |_| ())), claims, "{uris:?}");
        }
        assert!(!claims_spiffe(b"garbage"));
    }

    #[test]
    fn facts_are_what_the_certificate_says() {
        let facts = Facts::of(&certificate(&[ORDERS], |_| ())).unwrap();
        assert_eq!(facts.names, [format!("URI:{ORDERS}")]);
        assert_eq!((facts.is_ca, facts.digital_signature), (false, true));
        assert_eq!(facts.key, "ECDSA, 256 bits");
        assert_eq!(facts.not_before.as_secs(), 157_766_400);
    }

    #[test]
    fn constraints_on_names_are_facts() {
        let tree = |text: &str| [b"\x30\x09\x86\x07".as_slice(), text.as_bytes()].concat();
        let trees = [tree("td.test"), b"\x30\x0a\x87\x08\x0a\0\0\0\xff\0\0\0".to_vec()];
        let content = [&b"\x30\x1b\xa0\x0b"[..], &trees[0], b"\xa1\x0c".as_slice(), &trees[1]];
        let extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], content.concat());
        let der = certificate(&[ORDERS], |it| it.custom_extensions.push(extension));
        let facts = Facts::of(&der).unwrap();
        assert_eq!(facts.constraints, ["only URI:td.test", "not IP:10.0.0.0/255.0.0.0"]);
        assert!(!facts.cert_sign);
    }

    #[test]
    fn a_fingerprint_is_sha_256_of_the_whole_certificate() {
        let der = certificate(&[ORDERS], |_| ());
        let (one, two) = (Facts::of(&der).unwrap(), Facts::of(&certificate(&[], |_| ())).unwrap());
        assert_ne!(one.fingerprint, two.fingerprint);
        assert_eq!(
            colons(b""),
            "E3:B0:C4:42:98:FC:1C:14:9A:FB:F4:C8:99:6F:B9:24:27:AE:41:E4:64:9B:93:4C:A4:95:99:1B:78:52:B8:55"
        );
    }

    #[test]
    fn certificates_one_after_the_other_are_told_apart() {
        let (one, two) = (certificate(&[ORDERS], |_| ()), certificate(&[], |_| ()));
        let both = [one.clone(), two.clone()].concat();
        assert_eq!(split(&both).unwrap(), [one.as_slice(), &two]);
        assert!(split(b"").unwrap().is_empty());
        assert_eq!(split(&both[..both.len() - 1]), Err(IdError::Unreadable));
        assert_eq!(split(&[&both[..], b"\0"].concat()), Err(IdError::Unreadable));
    }

    proptest! {
        #[test]
        fn a_damaged_certificate_never_panics(at in 0_usize..400, byte in any::<u8>()) {
            let mut der = certificate(&[ORDERS], |_| ());
            let at = at % der.len();
            der[at] = byte;
            prop_assert!(id_of(&der).map_or(true, |id| id.as_str().starts_with("spiffe://")));
            prop_assert!(Facts::of(&der).map_or(true, |facts| facts.names.len() < 9));
        }
    }

    fn certificate(uris: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            uris.iter().map(|it| SanType::URI((*it).try_into().unwrap())).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }
}
