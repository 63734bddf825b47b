//! Targets: what must hold for every input that reaches a parser from the network or from
//! a file. Each takes bytes, and panics when a promise is broken.

use remora::{config, transport::detect, transport::framing::Guard};
use remora_certs::spiffe_id;

/// A SPIFFE id that parses is spelt as it was, and has the parts of a URI.
pub(crate) fn spiffe_id(bytes: &[u8]) {
    let Ok(id) = spiffe_id::parse(bytes) else { return };
    assert_eq!(id.as_str().as_bytes(), bytes, "parsing changed the id");
    assert_eq!(id.as_str(), format!("spiffe://{}{}", id.trust_domain(), id.path()));
    assert!(!id.trust_domain().is_empty(), "an id without a trust domain");
}

/// A policy file is understood or refused with reasons; it never panics, and it is
/// understood the same way again.
pub(crate) fn config(bytes: &[u8]) {
    let context = config::Context { namespace: "shop".to_owned(), service_account: None };
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
