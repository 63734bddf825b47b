//! Targets: what must hold for every input that reaches a parser from the network or from
//! a file. Each takes bytes, and panics when a promise is broken.

use std::time::Duration;

use remora::{
    config,
    policy::deadline,
    proxy::traces::TraceId,
    transport::{detect, framing::Guard},
};
use remora_certs::{bundle::Bundle, csr, signed, spiffe_id};

/// A SPIFFE id that parses is spelt as it was, and has the parts of a URI.
pub(crate) fn spiffe_id(bytes: &[u8]) {
    let Ok(id) = spiffe_id::parse(bytes) else { return };
    assert_eq!(id.as_str().as_bytes(), bytes, "parsing changed the id");
    assert_eq!(id.as_str(), format!("spiffe://{}{}", id.trust_domain(), id.path()));
    assert!(!id.trust_domain().is_empty(), "an id without a trust domain");
}

/// A certificate request is refused with a hint, or read, and read as the same again.
pub(crate) fn csr(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for read in [|text: &str, _: &[u8]| csr::read(text), |_: &str, der: &[u8]| csr::read_der(der)] {
        match read(&text, bytes) {
            Ok(asked) => {
                assert!(asked.id().is_none_or(|it| !it.path().is_empty()), "for a trust domain");
                assert_eq!(read(&text, bytes), Ok(asked));
            }
            Err(error) => assert!(!error.hint().is_empty(), "refused without a hint"),
        }
    }
}

/// Of one piece of data nobody but its signer is believed to have signed it, and by the
/// same bytes of no other piece.
pub(crate) fn signed(bytes: &[u8]) {
    if let Some(id) = signer(bytes, br#"{"number":7}"#) {
        assert_eq!(id, "spiffe://td/ns/remora/sa/control");
    }
    assert_eq!(signer(bytes, b"other"), None);
}

/// Who is believed to have signed `payload`: the bytes are the length of a signature, the
/// signature, and a chain. The root and the chain of the corpus were made once, and their
/// keys thrown away.
pub(crate) fn signer(bytes: &[u8], payload: &[u8]) -> Option<String> {
    let now = Duration::from_mins(29_500_060);
    let roots = Bundle::from_pem(include_bytes!("root.crt")).ok()?;
    let (length, rest) = bytes.split_first().unwrap_or((&0, &[]));
    let (signature, chain) = rest.split_at_checked(usize::from(*length)).unwrap_or((&[], rest));
    let chain = String::from_utf8_lossy(chain);
    let id = signed::verify(payload, signature, &chain, &roots, now).ok()?;
    Some(id.as_str().to_owned())
}

/// A policy file is understood or refused with reasons; it never panics, and it is
/// understood the same way again.
pub(crate) fn config(bytes: &[u8]) {
    let context =
        config::Context { namespace: "shop".to_owned(), service_account: None, zone: None };
    let outcome = || match config::load_bytes(bytes, &context) {
        Ok(loaded) => Ok(loaded.documents),
        Err(errors) => {
            assert!(!errors.problems().is_empty(), "refused without a reason");
            Err(errors.to_string())
        }
    };
    assert_eq!(outcome(), outcome());
}

/// What the first bytes decide, more bytes do not change: a protocol must not depend on
/// how the network splits them.
pub(crate) fn detect(bytes: &[u8]) {
    let whole = detect::protocol(bytes);
    for end in 0..bytes.len().min(64) {
        let early = bytes.get(..end).and_then(detect::protocol);
        assert!(early.is_none() || early == whole, "{end} bytes: {early:?}, all: {whole:?}");
    }
}

/// Whether a connection's bytes are refused does not depend on how they are split.
pub(crate) fn framing(bytes: &[u8]) {
    let whole = Guard::default().feed(bytes).map_err(|it| it.in_head);
    for size in [1, 2, 3, 7, 64] {
        let mut guard = Guard::default();
        let parts = bytes.chunks(size).try_for_each(|it| guard.feed(it)).map_err(|it| it.in_head);
        assert_eq!(whole, parts, "in parts of {size}");
    }
}

/// A time that is read is one that can be said, and saying it again never makes it longer.
pub(crate) fn timeout(bytes: &[u8]) {
    if let Some(time) = deadline::from_grpc(bytes) {
        assert!(bytes.len() <= 9, "more than eight digits and a unit");
        let again = deadline::from_grpc(deadline::to_grpc(time).as_bytes());
        assert!(again.is_some_and(|it| it <= time), "{time:?} became {again:?}");
    }
    if let Some(time) = deadline::from_millis(bytes) {
        assert!(time <= deadline::LONGEST);
        let again = Duration::from_millis(deadline::to_millis(time).into());
        assert!(again <= time, "{time:?} became {again:?}");
    }
}

/// A traceparent that is read has the form of one, and its trace is all that matters of it.
pub(crate) fn traceparent(bytes: &[u8]) {
    let Some(id) = TraceId::of(bytes) else { return };
    let text = String::from_utf8_lossy(&bytes[..55]);
    let parts: Vec<&str> = text.split('-').collect();
    assert_eq!(parts.iter().map(|it| it.len()).collect::<Vec<_>>(), [2, 32, 16, 2], "{text}");
    let other = format!("00-{}-00000000000000ff-00", parts[1]);
    assert_eq!(TraceId::of(other.as_bytes()), Some(id));
}
