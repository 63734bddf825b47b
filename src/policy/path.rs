//! Path: as an application may read it, however it was written.
//!
//! `/v1/%65xport`, `/v1//export`, `/v1/a/../export` and `/v1;a=b/export` are other paths than
//! `/v1/export` to whoever compares bytes, and the same one to many applications. What limits
//! a path by what was written is got round by writing it another way; so it asks for the
//! [`plain`] form as well. Where applications differ, the form is the one that more of them
//! take for a path that is limited: a request too many that is counted does less harm than
//! one that never is.
//!
//! # Sources
//!
//! - RFC 3986, sections 2.1 (percent-encoding), 3.3 (parameters of a segment), 5.2.4 (dots).
//! - Orange Tsai: *Breaking Parser Logic* (2018): what applications make of paths.

/// The path without escapes, parameters, empty segments and dots; `None` where that is `path`
/// itself.
pub fn plain(path: &str) -> Option<String> {
    let is_plain = !path.bytes().any(|it| matches!(it, b'%' | b';' | b'\\'))
        && !path.contains("//")
        && !path.contains("/.");
    if is_plain {
        return None;
    }
    let decoded = decoded(path.as_bytes());
    let decoded = String::from_utf8_lossy(&decoded);
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split(['/', '\\']) {
        match segment.split_once(';').map_or(segment, |(name, _)| name) {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            name => segments.push(name),
        }
    }
    Some(format!("/{}", segments.join("/")))
}

/// Escapes undone, once; what is no escape stays.
fn decoded(path: &[u8]) -> Vec<u8> {
    let digit = |it: Option<&u8>| it.and_then(|it| char::from(*it).to_digit(16));
    let (mut decoded, mut at) = (Vec::with_capacity(path.len()), 0);
    while let Some(byte) = path.get(at) {
        let escaped = match (digit(path.get(at + 1)), digit(path.get(at + 2))) {
            (Some(high), Some(low)) if *byte == b'%' => u8::try_from(high * 16 + low).ok(),
            _ => None,
        };
        decoded.push(escaped.unwrap_or(*byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    decoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_has_one_plain_form_however_it_is_written() {
        for written in [
            "/v1/%65xport",
            "/v1/expor%74",
            "//v1///export",
            "/./v1/./export",
            "/v1/a/../export",
            "/../v1/export",
            "/v1/a/%2e%2E/export",
            "/v1%2Fexport",
            "/v1;a=b/export;c",
            "/v1\\export",
        ] {
            assert_eq!(plain(written).as_deref(), Some("/v1/export"), "{written}");
        }
    }

    #[test]
    fn what_is_no_escape_stays() {
        assert_eq!(plain("/100%").as_deref(), Some("/100%"));
        assert_eq!(plain("/%zz%4").as_deref(), Some("/%zz%4"));
        // Undone once, as an application does it.
        assert_eq!(plain("/%2541").as_deref(), Some("/%41"));
    }

    #[test]
    fn a_plain_path_is_itself() {
        for path in ["/", "/v1/export", "/v1/export/", "/a.b/c..d"] {
            assert_eq!(plain(path), None, "{path}");
        }
    }

    proptest! {
        /// Whatever is written, the plain form has none of what two readers differ about.
        #[test]
        fn a_plain_form_leaves_nothing_to_differ_about(path in "/[a-c/.;%25eEfF2\\\\]{0,30}") {
            if let Some(plain) = plain(&path) {
                prop_assert!(plain.starts_with('/') && !plain.contains("//"), "{}", plain);
                prop_assert!(!plain.split('/').any(|it| matches!(it, "." | "..")), "{}", plain);
            }
        }
    }
}
