use std::os::unix::fs::PermissionsExt as _;

use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType};
use tempfile::TempDir;

use super::*;
use crate::{csr, folder, pem, svid::Svid, x509::id_of};

const NOW: Duration = Duration::from_secs(1_770_000_007);
const HOUR: Duration = Duration::from_hours(1);
const PLAN: Plan<'static> = Plan {
    trust_domain: "cluster.local",
    root_life: Duration::from_hours(48),
    issuer_life: Duration::from_hours(24),
};

#[test]
fn an_issued_leaf_is_an_svid_that_its_root_vouches_for() {
    let (_dir, authority) = authority();
    let issued = authority.issue(&leaf(&orders(), HOUR), NOW).unwrap();
    let svid = Svid::from_pem(issued.chain.as_bytes(), issued.key.as_bytes()).unwrap();
    assert_eq!((svid.id(), svid.chain().len()), (&orders(), 2));
    assert_eq!((svid.not_after(), issued.not_after), (NOW + HOUR, NOW + HOUR));
    assert_eq!(verified(&issued), Ok(()));
}

#[test]
fn a_leaf_carries_the_names_asked_for_and_no_more() {
    let (_dir, authority) = authority();
    let id = orders();
    let (dns_names, addresses) = (["orders.shop".to_owned()], [[127, 0, 0, 1].into()]);
    let leaf = Leaf { dns_names: &dns_names, addresses: &addresses, ..leaf(&id, HOUR) };
    let facts = facts(&authority.issue(&leaf, NOW).unwrap().chain);
    let uri = format!("URI:{id}");
    assert_eq!(facts.names, [uri.as_str(), "DNS:orders.shop", "IP:127.0.0.1"]);
    assert_eq!((facts.subject.as_str(), facts.is_ca), ("", false));
}

#[test]
fn certificates_begin_five_minutes_early_for_clocks_that_are_behind() {
    let (_dir, authority) = authority();
    let facts = facts(&authority.issue(&leaf(&orders(), HOUR), NOW).unwrap().chain);
    assert_eq!(facts.not_before + Duration::from_mins(5), NOW);
}

#[test]
fn serial_numbers_are_positive_and_differ() {
    let (_dir, authority) = authority();
    let serial = || {
        let issued = authority.issue(&leaf(&orders(), HOUR), NOW).unwrap();
        facts(&issued.chain).serial
    };
    let (first, second) = (serial(), serial());
    assert_ne!(first, second);
    // Sixteen octets, the first of them below 0x80.
    assert_eq!(first.split(':').count(), 16);
    assert!(u8::from_str_radix(first.split(':').next().unwrap(), 16).unwrap() < 0x80);
}

#[test]
fn the_issuer_signs_workloads_and_no_further_authority() {
    let (dir, _authority) = authority();
    let read = |name| facts(&fs::read_to_string(dir.path().join(name)).unwrap());
    let (root, issuer) = (read(ROOT_CERTIFICATE), read(ISSUER_CERTIFICATE));
    assert_eq!((root.is_ca, root.path_len), (true, Some(1)));
    assert_eq!((issuer.is_ca, issuer.path_len), (true, Some(0)));
    assert_eq!(issuer.names, ["URI:spiffe://cluster.local"]);
    assert_eq!((&root.issuer, &issuer.issuer), (&root.subject, &root.subject));
    assert_ne!(root.subject, issuer.subject);
}

#[test]
fn keys_are_for_their_owner_only() {
    let (dir, _authority) = authority();
    for name in [ROOT_KEY, ISSUER_KEY] {
        let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn an_authority_is_never_overwritten() {
    let (dir, _authority) = authority();
    let before = fs::read(dir.path().join(ROOT_KEY)).unwrap();
    for left in [ISSUER_CERTIFICATE, ISSUER_KEY, ROOT_CERTIFICATE] {
        let error = create(dir.path(), &PLAN, NOW).unwrap_err();
        assert!(matches!(error, Error::Write(folder::Error::Exists(_))), "{error}");
        fs::remove_file(dir.path().join(left)).unwrap();
    }
    assert!(create(dir.path(), &PLAN, NOW).is_err());
    assert_eq!(fs::read(dir.path().join(ROOT_KEY)).unwrap(), before);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn what_the_authority_may_not_sign_is_refused() {
    let (_dir, authority) = authority();
    let refused = |id: &str, life, now| {
        authority.issue(&leaf(&id.parse().unwrap(), life), now).unwrap_err().to_string()
    };
    let own = orders();
    let own = own.as_str();
    for (error, message) in [
        (
            refused("spiffe://other/ns/shop/sa/orders", HOUR, NOW),
            "`spiffe://other/ns/shop/sa/orders` is not in the trust domain `cluster.local` of this authority",
        ),
        (
            refused("spiffe://cluster.local", HOUR, NOW),
            "`spiffe://cluster.local` names a trust domain, not a workload in it",
        ),
        (
            refused(own, HOUR, NOW + 23 * HOUR + Duration::from_mins(59)),
            "a life of 3600 seconds is longer than the 60 the signing certificate has left",
        ),
        (refused(own, HOUR, NOW + 25 * HOUR), "the issuer's certificate has ended"),
        (refused(own, Duration::ZERO, NOW), "a certificate cannot live 0 seconds"),
    ] {
        assert_eq!(error, message);
    }
    let id = orders();
    let dns_names = ["ä".to_owned()];
    let error = authority.issue(&Leaf { dns_names: &dns_names, ..leaf(&id, HOUR) }, NOW);
    assert_eq!(error.unwrap_err().to_string(), "`ä` is not a host name");
}

#[test]
fn what_cannot_be_an_authority_is_refused_and_nothing_written() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |plan| create(dir.path(), &plan, NOW).unwrap_err().to_string();
    let life = Duration::from_secs(u64::MAX);
    assert_eq!(
        refused(Plan { trust_domain: "Cluster.local", ..PLAN }),
        "`Cluster.local` is not a trust domain: `C` at byte 9 is not allowed in a trust domain (a-z, 0-9, `.`, `-`, `_`)"
    );
    assert!(refused(Plan { root_life: HOUR, ..PLAN }).starts_with("a life of 86400 seconds"));
    assert!(refused(Plan { root_life: life, ..PLAN }).starts_with("a certificate cannot live"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn damaged_files_are_refused_by_name() {
    for (damaged, content) in [
        (ROOT_CERTIFICATE, Some("")),
        (ISSUER_CERTIFICATE, Some("garbage")),
        (ISSUER_KEY, Some("garbage")),
        (ISSUER_KEY, None),
    ] {
        let (dir, _authority) = authority();
        let path = dir.path().join(damaged);
        match content {
            Some(content) => fs::write(&path, content).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let error = Authority::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
    let (dir, _authority) = authority();
    fs::copy(dir.path().join(ROOT_KEY), dir.path().join(ISSUER_KEY)).unwrap();
    assert!(matches!(Authority::open(dir.path()), Err(Error::Key(_))));
}

#[test]
fn debug_never_prints_a_key() {
    let (_dir, authority) = authority();
    let issued = authority.issue(&leaf(&orders(), HOUR), NOW).unwrap();
    let inside = issued.key.lines().nth(1).unwrap().to_owned();
    assert!(!format!("{issued:?}{authority:?}").contains(&inside));
}

#[test]
fn keys_are_of_the_kind_asked_for_down_to_the_leaf() {
    let dir = tempfile::tempdir().unwrap();
    let authority = setup(dir.path(), &Setup { key: Key::P384, ..SETUP }, NOW).unwrap();
    let read = |name| facts(&fs::read_to_string(dir.path().join(name)).unwrap()).key;
    assert_eq!([read(ROOT_CERTIFICATE), read(ISSUER_CERTIFICATE)], ["ECDSA, 384 bits"; 2]);
    let issued = authority.issue(&leaf(&orders(), HOUR), NOW).unwrap();
    assert_eq!(facts(&issued.chain).key, "ECDSA, 384 bits");
    assert_eq!(verified(&issued), Ok(()));
}

#[test]
fn a_root_that_exists_vouches_for_a_new_issuer_and_its_key_is_not_kept() {
    let (old, first) = authority();
    let dir = tempfile::tempdir().unwrap();
    let paths = [ROOT_CERTIFICATE, ROOT_KEY].map(|it| old.path().join(it));
    let source = Source::Root { certificate: &paths[0], key: &paths[1] };
    // The trust domain is the root's.
    let given = Setup { source, trust_domain: None, ..SETUP };
    let second = setup(dir.path(), &given, NOW).unwrap();
    assert_eq!(second.trust_domain(), "cluster.local");
    assert_eq!(second.root_pem, first.root_pem);
    assert_ne!(second.issuer_pem, first.issuer_pem);
    assert_eq!(verified(&second.issue(&leaf(&orders(), HOUR), NOW).unwrap()), Ok(()));
    assert!(!dir.path().join(ROOT_KEY).exists());
    Authority::open(dir.path()).unwrap();
    // In place: only when told so.
    let error = setup(old.path(), &given, NOW).unwrap_err();
    assert!(matches!(error, Error::Write(folder::Error::Exists(_))), "{error}");
    setup(old.path(), &Setup { force: true, ..given }, NOW).unwrap();
    let third = Authority::open(old.path()).unwrap();
    assert_eq!(third.root_pem, first.root_pem);
    assert_ne!(third.issuer_pem, first.issuer_pem);
}

#[test]
fn an_issuer_made_elsewhere_is_taken_over_with_its_chain() {
    let elsewhere = Elsewhere::of(|_| ());
    for (root, chain) in [
        (Some(elsewhere.root.as_str()), elsewhere.issuer.clone()),
        (None, format!("# by another\n{}{}", elsewhere.issuer, elsewhere.root)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let authority = elsewhere.take_over(dir.path(), &chain, root, Some("td")).unwrap();
        assert_eq!(authority.trust_domain(), "td");
        assert_eq!(authority.issuer_pem.trim_end(), elsewhere.issuer.trim_end());
        let again = Authority::open(&dir.path().join("ca")).unwrap();
        assert_eq!(again.trust_domain(), "td");
        let id = "spiffe://td/ns/shop/sa/orders".parse().unwrap();
        assert_eq!(verified(&again.issue(&leaf(&id, HOUR), NOW).unwrap()), Ok(()));
        let mode = fs::metadata(dir.path().join("ca").join(ISSUER_KEY)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }
}

#[test]
fn an_issuer_that_does_not_do_is_refused_and_nothing_written() {
    let ca = |change: fn(&mut CertificateParams)| Elsewhere::of(change);
    let (good, other) = (ca(|_| ()), ca(|_| ()));
    let refused = |it: &Elsewhere, root: Option<&str>, name: Option<&str>| {
        let dir = tempfile::tempdir().unwrap();
        let error = it.take_over(dir.path(), &it.issuer, root, name).unwrap_err();
        assert!(!dir.path().join("ca").exists());
        let Error::Given { reason, .. } = error else { panic!("{error}") };
        reason
    };
    let issuer = || "CN=elsewhere issuer".to_owned();
    let with = |change| {
        let it = ca(change);
        refused(&it, Some(&it.root), Some("td"))
    };
    assert_eq!(with(|it| it.is_ca = IsCa::ExplicitNoCa), Unfit::NotCa(issuer()));
    assert_eq!(
        with(|it| it.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
        Unfit::NoCertSign(issuer())
    );
    let ended = with(|it| it.not_after = OffsetDateTime::UNIX_EPOCH + NOW - HOUR);
    assert_eq!(ended, Unfit::Ended { subject: issuer(), ago: HOUR });
    let early = with(|it| it.not_before = OffsetDateTime::UNIX_EPOCH + NOW + HOUR);
    assert_eq!(early, Unfit::NotYet { subject: issuer(), left: HOUR });
    assert_eq!(
        with(|it| it.custom_extensions.push(uri_constraint())),
        Unfit::UriConstraint(issuer())
    );
    let named = |it: &mut CertificateParams| {
        it.subject_alt_names = vec![SanType::URI("spiffe://other".try_into().unwrap())];
    };
    let (subject, asked) = (issuer(), "td".to_owned());
    assert_eq!(with(named), Unfit::OtherTrustDomain { subject, named: "other".to_owned(), asked });
    assert_eq!(refused(&good, Some(&good.root), None), Unfit::NoTrustDomain(issuer()));
    assert_eq!(refused(&good, None, Some("td")), Unfit::NoRoot(issuer()));
    // One that some rule of X.509 forbids, and a root that is another's.
    let emails = |it: &mut CertificateParams| {
        it.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
    };
    assert!(matches!(with(emails), Unfit::Unvouched { .. }));
    assert!(matches!(refused(&good, Some(&other.root), Some("td")), Unfit::Unvouched { .. }));
    let mixed = Elsewhere { issuer_key: other.issuer_key, ..good };
    assert_eq!(refused(&mixed, Some(&mixed.root), Some("td")), Unfit::OtherKey(issuer()));
    let none = Elsewhere { issuer_key: Zeroizing::new(String::new()), ..mixed };
    assert_eq!(refused(&none, Some(&none.root), Some("td")), Unfit::UnusableKey);
    let swapped = Elsewhere { issuer: none.root.clone(), ..none };
    assert_eq!(refused(&swapped, None, Some("td")), Unfit::IsRoot("CN=elsewhere root".to_owned()));
}

#[test]
fn a_key_in_the_form_of_openssl_and_cert_manager_is_read() {
    // Parameters before it, and the key itself (SEC 1) rather than wrapped (PKCS 8).
    let pair = KeyPair::generate().unwrap();
    let file = sec1(&pair);
    let key = Secret::from_pem(&file).unwrap();
    assert_eq!(key.subject_public_key_info(), pair.subject_public_key_info());
    // Two of them leave open which is meant.
    assert!(Secret::from_pem(&file.repeat(2)).is_none());
}

#[test]
fn a_root_that_does_not_do_is_refused() {
    let (dir, _authority) = authority();
    let elsewhere = Elsewhere::of(|_| ());
    let path = |name: &str| dir.path().join(name);
    let refused = |certificate: &Path, key: &Path| {
        let source = Source::Root { certificate, key };
        let error = setup(&path("new"), &Setup { source, ..SETUP }, NOW).unwrap_err();
        assert!(!path("new").exists());
        error
    };
    let reason = |certificate: &str, key: &str| {
        let error = refused(&path(certificate), &path(key));
        let Error::Given { reason, .. } = error else { panic!("{error}") };
        reason
    };
    assert!(matches!(reason(ISSUER_CERTIFICATE, ISSUER_KEY), Unfit::NotRoot(_)));
    assert!(matches!(reason(ROOT_CERTIFICATE, ISSUER_KEY), Unfit::OtherKey(_)));
    fs::write(path("flat"), &elsewhere.flat_root).unwrap();
    assert!(matches!(reason("flat", ROOT_KEY), Unfit::PathLength(_)));
    fs::write(path("two"), elsewhere.root.repeat(2)).unwrap();
    assert_eq!(reason("two", ROOT_KEY), Unfit::Many(2));
    fs::write(path("none"), "").unwrap();
    assert_eq!(reason("none", ROOT_KEY), Unfit::Empty);
    // Nor one that would be outlived.
    let source = Source::Root { certificate: &path(ROOT_CERTIFICATE), key: &path(ROOT_KEY) };
    let given = Setup { source, issuer_life: 49 * HOUR, ..SETUP };
    let error = setup(&path("new"), &given, NOW).unwrap_err();
    assert!(matches!(error, Error::LongerThanSigner { .. }), "{error}");
}

#[test]
fn verifiers_still_refuse_what_is_below_a_constraint_on_uris() {
    // The day this fails, issuers here should get such a constraint.
    let elsewhere = Elsewhere::of(|it| it.custom_extensions.push(uri_constraint()));
    let key = Secret::from_pem(&elsewhere.issuer_key).unwrap();
    let path = Path::new("x");
    let authority = Authority::of(Parts {
        issuer_pem: elsewhere.issuer,
        root_pem: elsewhere.root,
        key,
        paths: [path; 3],
        trust_domain: Some("td".to_owned()),
    });
    let id = "spiffe://td/ns/shop/sa/orders".parse().unwrap();
    let issued = authority.unwrap().issue(&leaf(&id, HOUR), NOW).unwrap();
    assert!(verified(&issued).is_err());
}

#[test]
fn a_request_is_signed_for_whom_was_proved_and_for_its_key() {
    let (_dir, authority) = authority();
    let request = csr::Request::new(&orders(), Key::P256).unwrap();
    let asked = csr::read(request.pem()).unwrap();
    let signed = authority.sign(&asked, &orders(), HOUR, NOW).unwrap();
    let svid = Svid::from_pem(signed.chain.as_bytes(), request.key_pem().as_bytes()).unwrap();
    assert_eq!(
        (svid.id(), svid.not_after(), signed.not_after),
        (&orders(), NOW + HOUR, NOW + HOUR)
    );
    assert_eq!(facts(&signed.chain).serial, signed.serial);
    assert_eq!(bundle(&authority).vouch(svid.chain(), NOW), Ok(()));
    // As the leaf of a key made here, but for key and serial.
    let made = facts(&authority.issue(&leaf(&orders(), HOUR), NOW).unwrap().chain);
    let asked_for = facts(&signed.chain);
    assert_eq!((&made.names, made.is_ca), (&asked_for.names, asked_for.is_ca));
    // Of an issuer on another curve, too.
    let request = csr::Request::new(&orders(), Key::P384).unwrap();
    let signed = authority.sign(&csr::read(request.pem()).unwrap(), &orders(), HOUR, NOW).unwrap();
    Svid::from_pem(signed.chain.as_bytes(), request.key_pem().as_bytes()).unwrap();
}

#[test]
fn a_request_for_the_name_of_another_is_never_signed() {
    let (_dir, authority) = authority();
    let carts = SpiffeId::workload("cluster.local", "shop", "carts").unwrap();
    let asked = csr::read(csr::Request::new(&carts, Key::P256).unwrap().pem()).unwrap();
    let error = authority.sign(&asked, &orders(), HOUR, NOW).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the request is for `{carts}`, and the caller is `{}`", orders())
    );
    let other = SpiffeId::workload("other", "shop", "carts").unwrap();
    let asked = csr::read(csr::Request::new(&other, Key::P256).unwrap().pem()).unwrap();
    let error = authority.sign(&asked, &other, HOUR, NOW).unwrap_err();
    assert!(matches!(error, Error::OtherTrustDomain { .. }), "{error}");
}

#[test]
fn an_authority_comes_back_from_text_as_it_was() {
    let (_dir, authority) = authority();
    let text = serde_json::to_string(&authority.to_pem()).unwrap();
    let again = Authority::from_pem(&serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(again.issuer_fingerprint(), authority.issuer_fingerprint());
    assert_eq!((again.not_after(), again.trust_domain()), (authority.not_after(), "cluster.local"));
    assert_eq!(verified(&again.issue(&leaf(&orders(), HOUR), NOW).unwrap()), Ok(()));
    // The root's key is not in it, nor is the issuer's shown.
    assert_eq!(text.matches("PRIVATE KEY").count(), 2);
    assert!(!format!("{:?}", again.to_pem()).contains("PRIVATE"));
    for change in [
        (|it| it.key = Zeroizing::new(String::new())) as fn(&mut Pem),
        |it| it.issuer = "garbage".to_owned(),
        |it| it.root = String::new(),
        |it| it.issuer.clone_from(&it.root),
    ] {
        let mut pem = authority.to_pem();
        change(&mut pem);
        assert!(Authority::from_pem(&pem).is_err());
    }
}

#[test]
fn a_key_of_openssls_form_comes_back_from_text() {
    let elsewhere = Elsewhere::of(|_| ());
    let pair = KeyPair::from_pem(&elsewhere.issuer_key).unwrap();
    let pem = Pem {
        root: elsewhere.root.clone(),
        issuer: elsewhere.issuer.clone(),
        key: Zeroizing::new(sec1(&pair)),
        trust_domain: "td".to_owned(),
    };
    let authority = Authority::from_pem(&pem).unwrap();
    let again = Authority::from_pem(&authority.to_pem()).unwrap();
    let id = "spiffe://td/ns/shop/sa/orders".parse().unwrap();
    assert_eq!(verified(&again.issue(&leaf(&id, HOUR), NOW).unwrap()), Ok(()));
}

#[test]
fn leaf_and_authority_agree_on_the_issuers_fingerprint() {
    let (_dir, authority) = authority();
    let issued = authority.issue(&leaf(&orders(), HOUR), NOW).unwrap();
    let own = authority.issuer_fingerprint();
    assert!(own.len() == 64 && own.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f')));
    assert_eq!(x509::chain_issuer_fingerprint(issued.chain.as_bytes()).as_deref(), Some(own));
    let svid = Svid::from_pem(issued.chain.as_bytes(), issued.key.as_bytes()).unwrap();
    assert_eq!(svid.issuer_fingerprint().as_deref(), Some(own));
    assert_eq!(facts(&authority.to_pem().issuer).fingerprint.replace(':', "").to_lowercase(), own);
    // A leaf alone does not say.
    let alone = pem::blocks(issued.chain.as_bytes()).unwrap()[0].to_pem();
    assert_eq!(x509::chain_issuer_fingerprint(alone.as_bytes()), None);
    assert_eq!(x509::chain_issuer_fingerprint(b"garbage"), None);
}

#[test]
fn of_several_roots_the_one_above_the_issuer_sets_its_end() {
    let (_dir, authority) = authority();
    let lives = Lives { root: 480 * HOUR, issuer: HOUR };
    let other = next(&authority, None, lives, Key::P256, NOW).unwrap().authority;
    let pem = authority.to_pem();
    let roots = format!("{}{}", other.root_pem(), pem.root);
    let both = Authority::from_pem(&Pem { root: roots.clone(), ..pem }).unwrap();
    assert_eq!(both.not_after(), authority.not_after());
    assert_eq!(both.root_pem(), roots);
    let issued = both.issue(&leaf(&orders(), HOUR), NOW).unwrap();
    assert_eq!((issued.roots.as_str(), verified(&issued)), (roots.as_str(), Ok(())));
}

#[test]
fn the_next_authority_is_made_without_a_file() {
    let (dir, current) = authority();
    let before = fs::read_dir(dir.path()).unwrap().count();
    // With a new root.
    let lives = Lives { root: 72 * HOUR, issuer: 30 * HOUR };
    let fresh = next(&current, None, lives, Key::P384, NOW).unwrap();
    let Next { authority, root_key } = &fresh;
    assert_ne!(authority.root_pem(), current.root_pem());
    assert_eq!(authority.trust_domain(), current.trust_domain());
    assert_eq!(authority.not_after(), NOW + 30 * HOUR);
    let issued = authority.issue(&leaf(&orders(), HOUR), NOW).unwrap();
    assert_eq!(verified(&issued), Ok(()));
    assert!(
        bundle(&current)
            .vouch(
                Svid::from_pem(issued.chain.as_bytes(), issued.key.as_bytes()).unwrap().chain(),
                NOW
            )
            .is_err()
    );
    // The new root's key makes the one after it.
    let path = dir.path().join("next.key");
    fs::write(&path, root_key.as_ref().unwrap().as_bytes()).unwrap();
    let lives = Lives { issuer: 20 * HOUR, ..lives };
    let second = next(authority, Some(&path), lives, Key::P256, NOW).unwrap();
    assert!(second.root_key.is_none());
    assert_eq!(second.authority.root_pem(), authority.root_pem());
    assert_ne!(second.authority.issuer_fingerprint(), authority.issuer_fingerprint());
    let issued = second.authority.issue(&leaf(&orders(), HOUR), NOW).unwrap();
    assert_eq!(verified(&issued), Ok(()));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before + 1);
}

#[test]
fn a_next_authority_that_does_not_do_is_refused() {
    let (dir, current) = authority();
    let refused = |key: Option<&str>, root, issuer| {
        let path = key.map(|it| dir.path().join(it));
        let lives = Lives { root, issuer };
        next(&current, path.as_deref(), lives, Key::P256, NOW).unwrap_err()
    };
    let reason = |error| {
        let Error::Given { reason, .. } = error else { panic!("{error}") };
        reason
    };
    let day = 24 * HOUR;
    assert!(matches!(refused(None, HOUR, day), Error::LongerThanSigner { .. }));
    assert!(matches!(refused(Some(ROOT_KEY), day, 49 * HOUR), Error::LongerThanSigner { .. }));
    assert!(matches!(reason(refused(Some(ISSUER_KEY), day, HOUR)), Unfit::OtherKey(_)));
    assert!(matches!(reason(refused(Some(ROOT_CERTIFICATE), day, HOUR)), Unfit::UnusableKey));
    assert!(matches!(refused(Some("none"), day, HOUR), Error::Read { .. }));
    // Below several roots it is open which is meant.
    let pem = current.to_pem();
    let two = Authority::from_pem(&Pem { root: pem.root.repeat(2), ..pem }).unwrap();
    let (path, lives) = (dir.path().join(ROOT_KEY), Lives { root: day, issuer: HOUR });
    let error = next(&two, Some(&path), lives, Key::P256, NOW).unwrap_err();
    assert_eq!(reason(error), Unfit::Many(2));
}

const SETUP: Setup<'static> = Setup {
    source: Source::New,
    trust_domain: Some("cluster.local"),
    root_life: PLAN.root_life,
    issuer_life: PLAN.issuer_life,
    key: Key::P256,
    force: false,
};

/// Certificates as another system makes them: without a SPIFFE id.
struct Elsewhere {
    root: String,
    /// The same, but that its path length allows no issuer; its key is lost.
    flat_root: String,
    issuer: String,
    issuer_key: Zeroizing<String>,
}

impl Elsewhere {
    fn of(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let ca = |name: &str| {
            let mut params = params(24 * HOUR, NOW).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, format!("elsewhere {name}"));
            params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params
        };
        let mut flat = ca("root");
        flat.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        let (root, key) = (ca("root"), KeyPair::generate().unwrap());
        let (root_pem, flat) =
            (root.self_signed(&key).unwrap().pem(), flat.self_signed(&key).unwrap());
        let (mut issuer, issuer_key) = (ca("issuer"), KeyPair::generate().unwrap());
        change(&mut issuer);
        let issuer = issuer.signed_by(&issuer_key, &Issuer::new(root, key)).unwrap().pem();
        let issuer_key = Zeroizing::new(issuer_key.serialize_pem());
        Self { root: root_pem, flat_root: flat.pem(), issuer, issuer_key }
    }

    /// Takes it over into `ca` of `dir`.
    fn take_over(
        &self,
        dir: &Path,
        chain: &str,
        root: Option<&str>,
        trust_domain: Option<&str>,
    ) -> Result<Authority, Error> {
        let paths = ["tls.crt", "tls.key", "ca.crt"].map(|it| dir.join(it));
        let contents = [chain, &self.issuer_key, root.unwrap_or_default()];
        paths.iter().zip(contents).for_each(|(path, it)| fs::write(path, it).unwrap());
        let root = root.map(|_| &*paths[2]);
        let source = Source::Issuer { certificate: &paths[0], key: &paths[1], root };
        setup(&dir.join("ca"), &Setup { source, trust_domain, ..SETUP }, NOW)
    }
}

/// A key as openssl writes it: parameters, then the key itself.
fn sec1(pair: &KeyPair) -> String {
    let der = pair.serialize_der();
    let inner = &der[29..][..usize::from(der[28])];
    let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, inner);
    let block = |label: &str, body: &str| {
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
    };
    block("EC PARAMETERS", "BggqhkjOPQMBBw==") + &block("EC PRIVATE KEY", &body)
}

fn bundle(authority: &Authority) -> Bundle {
    Bundle::from_pem(authority.root_pem().as_bytes()).unwrap()
}

/// `permitted;URI:td`.
fn uri_constraint() -> rcgen::CustomExtension {
    let content = b"\x30\x08\xa0\x06\x30\x04\x86\x02td".to_vec();
    rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 30], content)
}

/// Whether a verifier of the kind sidecars have accepts it.
fn verified(issued: &Issued) -> Result<(), rustls::Error> {
    let svid = Svid::from_pem(issued.chain.as_bytes(), issued.key.as_bytes()).unwrap();
    let bundle = Bundle::from_pem(issued.roots.as_bytes()).unwrap();
    bundle.vouch(svid.chain(), NOW)
}

fn authority() -> (TempDir, Authority) {
    let dir = tempfile::tempdir().unwrap();
    let authority = create(dir.path(), &PLAN, NOW).unwrap();
    (dir, authority)
}

fn orders() -> SpiffeId {
    SpiffeId::workload("cluster.local", "shop", "orders").unwrap()
}

fn leaf(id: &SpiffeId, life: Duration) -> Leaf<'_> {
    Leaf { id, life, dns_names: &[], addresses: &[] }
}

/// Of the first certificate.
fn facts(file: &str) -> Facts {
    let der = pem(file);
    assert!(id_of(&der).is_ok() || Facts::of(&der).unwrap().is_ca);
    Facts::of(&der).unwrap()
}

fn pem(file: &str) -> Vec<u8> {
    pem::blocks(file.as_bytes()).unwrap()[0].certificate().unwrap().to_vec()
}

#[test]
fn a_name_is_an_address_or_else_a_host() {
    let mut names = Names::default();
    names.extend(["10.0.0.7", "control.example", "::1", "10.0.0.7"].map(str::to_owned));
    assert_eq!(names.dns, ["localhost", "control.example"]);
    let addresses =
        ["127.0.0.1", "::1", "10.0.0.7"].map(|it| it.parse::<std::net::IpAddr>().unwrap());
    assert_eq!(names.addresses, addresses);
}
