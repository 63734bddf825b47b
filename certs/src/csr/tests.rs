use proptest::prelude::*;
use rcgen::{
    Attribute, BasicConstraints, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
    SignatureAlgorithm,
};

use super::*;

const ORDERS: &str = "spiffe://td/ns/shop/sa/orders";

#[test]
fn a_request_says_whom_it_is_for_and_is_signed_by_its_key() {
    for key in [Key::P256, Key::P384] {
        let request = Request::new(&orders(), key).unwrap();
        let asked = read(request.pem()).unwrap();
        assert_eq!(asked.id(), Some(&orders()));
        let pair = KeyPair::from_pem(&request.key_pem()).unwrap();
        assert_eq!(asked.public_key().der_bytes(), pair.public_key_raw());
        assert_eq!(asked.key_digest(), fingerprint(&pair.subject_public_key_info()));
    }
}

#[test]
fn every_request_is_for_another_key() {
    let digest = || {
        let request = Request::new(&orders(), Key::P256).unwrap();
        read(request.pem()).unwrap().key_digest()
    };
    assert_ne!(digest(), digest());
}

#[test]
fn debug_never_prints_a_key() {
    let request = Request::new(&orders(), Key::P256).unwrap();
    assert_eq!(format!("{request:?}"), "Request { .. }");
}

#[test]
fn what_tools_put_in_unasked_is_passed_over() {
    let pem = request(|it| {
        it.distinguished_name.push(DnType::CommonName, "orders");
        it.is_ca = IsCa::ExplicitNoCa;
        it.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        it.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    });
    assert_eq!(read(&pem).unwrap().id(), Some(&orders()));
    assert_eq!(read(&request(|it| it.subject_alt_names.clear())).unwrap().id(), None);
}

#[test]
fn whatever_no_leaf_gets_is_refused() {
    let refused = |change: fn(&mut CertificateParams)| read(&request(change)).unwrap_err();
    let names =
        |names: Vec<SanType>| read(&request(|it| it.subject_alt_names = names)).unwrap_err();
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let dns = SanType::DnsName("orders.shop".try_into().unwrap());
    for (error, expected) in [
        (refused(|it| it.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), Error::Signing),
        (refused(|it| it.key_usages = vec![KeyUsagePurpose::KeyCertSign]), Error::Signing),
        (refused(|it| it.key_usages = vec![KeyUsagePurpose::CrlSign]), Error::Signing),
        (
            refused(|it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]),
            Error::Extra("2.5.29.37".to_owned()),
        ),
        (
            refused(|it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]),
            Error::Extra("2.5.29.37".to_owned()),
        ),
        (refused(|it| it.custom_extensions = vec![odd()]), Error::Extra("1.2.3".to_owned())),
        (names(vec![uri(ORDERS), dns]), Error::Name("DNS:orders.shop".to_owned())),
        (
            names(vec![SanType::IpAddress([10, 0, 0, 1].into())]),
            Error::Name("IP:10.0.0.1".to_owned()),
        ),
        (names(vec![uri(ORDERS), uri(ORDERS)]), Error::ManyUris(2)),
        (names(vec![uri("https://td/x")]), Error::Malformed(ParseError::Scheme)),
        (names(vec![uri("spiffe://td")]), Error::NoPath("spiffe://td".parse().unwrap())),
    ] {
        assert_eq!(error, expected);
        assert!(!error.hint().is_empty());
    }
}

#[test]
fn a_name_cannot_hide_behind_another() {
    // A second extension of names.
    let names = b"\x30\x05\x86\x03a:b".to_vec();
    let twice = CustomExtension::from_oid_content(&[2, 5, 29, 17], names);
    let pem = request(|it| it.custom_extensions.push(twice));
    assert_eq!(read(&pem), Err(Error::Extra("2.5.29.17".to_owned())));
    // A second attribute, or another than the one.
    let values = || b"\x31\x02\x30\x00".to_vec();
    for oid in [&[1, 2, 840, 113_549, 1, 9, 14], &[1, 2, 840, 113_549, 1, 9, 2]] {
        let attribute = Attribute { oid, values: values() };
        let (params, key) = (params(), KeyPair::generate().unwrap());
        let made = params.serialize_request_with_attributes(&key, vec![attribute]).unwrap();
        assert!(matches!(read(&made.pem().unwrap()), Err(Error::Extra(_))), "{oid:?}");
    }
    // Names that cannot be read are not overlooked.
    let damaged = CustomExtension::from_oid_content(&[2, 5, 29, 17], b"\x30\x05".to_vec());
    let pem = request(|it| {
        it.subject_alt_names.clear();
        it.custom_extensions.push(damaged);
    });
    assert_eq!(read(&pem), Err(Error::Unreadable));
}

#[test]
fn a_key_of_another_kind_is_refused() {
    assert_eq!(read(&by(&PKCS_ED25519)), Err(Error::Key));
    assert_eq!(read(&by(&rcgen::PKCS_ECDSA_P521_SHA512)), Err(Error::Key));
    assert_eq!(read(&by(&rcgen::PKCS_RSA_SHA256)), Err(Error::Key));
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384] {
        assert!(read(&by(algorithm)).is_ok());
    }
}

#[test]
fn who_does_not_hold_the_key_gets_nothing() {
    // The public key of one in a request that another signed.
    let (mine, stolen) = (der(&request(|_| ())), der(&request(|_| ())));
    let point = |der: &[u8]| {
        let (_, it) = X509CertificationRequest::from_der(der).unwrap();
        it.certification_request_info.subject_pki.subject_public_key.data.to_vec()
    };
    let (mine_point, stolen_point) = (point(&mine), point(&stolen));
    let at = mine.windows(65).position(|it| *it == *mine_point).unwrap();
    let forged = [&mine[..at], &stolen_point, &mine[at + 65..]].concat();
    assert_eq!(read(&pem_of(&forged)), Err(Error::Signature));
    // Nor is a point that is none of the curve a key.
    let nowhere = [&mine[..=at], &[1; 64], &mine[at + 65..]].concat();
    assert_eq!(read(&pem_of(&nowhere)), Err(Error::Signature));
}

#[test]
fn what_is_not_one_request_is_refused() {
    let pem = request(|_| ());
    assert_eq!(read(""), Err(Error::NotARequest));
    assert_eq!(read(&pem.repeat(2)), Err(Error::NotARequest));
    assert_eq!(read(&pem.replace("CERTIFICATE REQUEST", "X")), Err(Error::NotARequest));
    assert_eq!(read(&"x".repeat(BYTES_MAX + 1)), Err(Error::TooLarge(BYTES_MAX + 1)));
    let der = der(&pem);
    assert_eq!(read(&pem_of(&[&der[..], b"\0"].concat())), Err(Error::Unreadable));
    assert_eq!(read(&pem_of(&der[..der.len() - 1])), Err(Error::Unreadable));
    let half: String = pem.lines().take(3).flat_map(|it| [it, "\n"]).collect();
    assert!(matches!(read(&half), Err(Error::Pem(_))));
    assert!(matches!(read(&pem.replace('=', "?")), Err(Error::Pem(_)) | Ok(_)));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in any::<String>()) {
        prop_assert!(read(&text).is_err());
    }

    #[test]
    fn any_bytes_in_a_block_are_read_or_refused(bytes in any::<Vec<u8>>()) {
        prop_assert!(read(&pem_of(&bytes)).is_err());
    }

    /// The sender signs what it likes.
    #[test]
    fn any_signed_extension_is_read_or_refused(
        arc in prop::sample::select(vec![14_u64, 15, 17, 19, 30, 31, 35, 37]),
        content in any::<Vec<u8>>(),
    ) {
        let extension = CustomExtension::from_oid_content(&[2, 5, 29, arc], content);
        let pem = request(|it| {
            it.subject_alt_names.clear();
            it.custom_extensions.push(extension);
        });
        prop_assert!(read(&pem).map_or(true, |it| it.id().is_none()));
    }

    /// All that is read is signed, so no change of a byte goes unnoticed; but those that
    /// say the same in another form.
    #[test]
    fn a_changed_request_is_refused(at in any::<prop::sample::Index>(), change in 1_u8..) {
        let original = request(|_| ());
        let mut der = der(&original);
        let at = at.index(der.len());
        der[at] ^= change;
        let same = read(&original);
        prop_assert!(read(&pem_of(&der)).is_err() || read(&pem_of(&der)) == same, "at {at}");
    }
}

fn orders() -> SpiffeId {
    ORDERS.parse().unwrap()
}

fn odd() -> CustomExtension {
    CustomExtension::from_oid_content(&[1, 2, 3], b"\x05\x00".to_vec())
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(ORDERS.try_into().unwrap())];
    params
}

fn request(change: impl FnOnce(&mut CertificateParams)) -> String {
    let mut params = params();
    change(&mut params);
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

fn by(algorithm: &'static SignatureAlgorithm) -> String {
    let key = KeyPair::generate_for(algorithm).unwrap();
    params().serialize_request(&key).unwrap().pem().unwrap()
}

fn der(pem: &str) -> Vec<u8> {
    pem::blocks(pem.as_bytes()).unwrap()[0].request().unwrap().to_vec()
}

fn pem_of(der: &[u8]) -> String {
    let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
}
