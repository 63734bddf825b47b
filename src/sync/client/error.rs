//! Error: why a call did not do what it was made for, and what that means to who made it.
//!
//! A sidecar asks whether to wait, to connect again or to prove itself otherwise; an operator
//! wants to know what came of it and what to do.

use std::{error::Error as StdError, io, net::SocketAddr, time::Duration};

use http::StatusCode;

use super::wire;
use crate::telemetry;

/// Why control did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What should say where it is does not.
    #[error("its URL is not that of a server")]
    Url,
    /// The resolver failed.
    #[error("its name cannot be resolved")]
    Resolve(#[source] io::Error),
    /// The resolver knows of nothing.
    #[error("its name has no address")]
    NoAddress,
    /// No connection came about.
    #[error("`{address}` cannot be reached")]
    Dial {
        /// Where to.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// It is not control, or not for us.
    #[error("the TLS handshake with `{address}` failed: {reason}")]
    Handshake {
        /// Whose.
        address: SocketAddr,
        /// In words.
        reason: String,
    },
    /// An answer, or another name's address, took too long.
    #[error("it did not answer in time")]
    Late,
    /// A watch had no line for too long.
    #[error("it has been silent for too long")]
    Silent,
    /// The connection ended, or is no HTTP/2.
    #[error("the connection failed")]
    Http(#[from] hyper::Error),
    /// A watch has an end.
    #[error("it ended the watch")]
    Ended,
    /// An answer, or a line of a watch, without an end.
    #[error("it sent more than {} MiB at once", wire::BYTES_MAX >> 20)]
    TooMuch,
    /// An answer of another kind than was asked for.
    #[error("it sent what cannot be read")]
    Malformed(#[source] serde_json::Error),
    /// What is asked for is no request.
    #[error("the request cannot be written")]
    Request(#[source] http::Error),
    /// Its answer is no.
    #[error("it refused: {refusal}")]
    Refused {
        /// Of the answer.
        status: StatusCode,
        /// Why.
        refusal: wire::Refusal,
        /// How long it asked to be left alone.
        retry_after: Option<Duration>,
    },
}

impl Error {
    /// What came of a call to the server at `url`, for an operator.
    pub fn of(&self, url: &str) -> String {
        let server = url.trim_end_matches('/');
        if let Self::Url = self {
            format!("`{url}` is not the URL of a server")
        } else if let Self::Refused { refusal, .. } = self {
            format!("`{server}` says: {}", refusal.error)
        } else if let Self::Malformed(error) = self {
            format!("`{server}` answers with what is not understood: {error}")
        } else {
            format!("no answer from `{server}`: {}", words(self))
        }
    }

    /// What an operator can do about it.
    pub fn hint(&self) -> &str {
        if let Self::Url = self {
            "such as `https://127.0.0.1:15030`"
        } else if let Self::Refused { refusal, .. } = self {
            &refusal.hint
        } else if let Self::Malformed(_) = self {
            "check that `--server` is a control of this version"
        } else {
            "start it with `remora-control serve`, or name another with `--server`"
        }
    }

    /// How long control asked to be left alone.
    pub(in crate::sync) fn retry_after(&self) -> Option<Duration> {
        if let Self::Refused { retry_after, .. } = self { *retry_after } else { None }
    }

    /// Whether the connection may be good for another call.
    pub(in crate::sync) fn is_answer(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Malformed(_) | Self::TooMuch)
    }

    /// Whether it is the certificate we showed that was refused.
    pub(in crate::sync) fn is_about_certificate(&self) -> bool {
        if let Self::Refused { status, .. } = self {
            return [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(status);
        }
        // In TLS 1.3 a certificate is refused after the client's handshake, by an alert. What
        // comes through HTTP/2 of rustls' error is its text.
        matches!(self, Self::Http(error) if words(error).contains("received fatal alert"))
    }
}

/// What an error says, and all that led to it.
pub fn words(error: &dyn StdError) -> String {
    let mut text = telemetry::words(error);
    // rustls says where to read more about an end without a farewell.
    let end = text.find(": https://docs.rs/").unwrap_or(text.len());
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_is_told_what_came_of_a_call_and_what_to_do() {
        let (reason, error, hint) = ("not_kept", "generation `3` is not kept", "name another");
        let [reason, error, hint] = [reason, error, hint].map(str::to_owned);
        let refusal = wire::Refusal { reason, error, hint };
        let refused = Error::Refused { status: StatusCode::CONFLICT, refusal, retry_after: None };
        let malformed = serde_json::from_str::<u64>("x").unwrap_err();
        let malformed_said =
            format!("`https://c` answers with what is not understood: {malformed}");
        let start = "start it with `remora-control serve`, or name another with `--server`";
        for (error, said, hint) in [
            (refused, "`https://c` says: generation `3` is not kept", "name another"),
            (
                Error::Malformed(malformed),
                &*malformed_said,
                "check that `--server` is a control of this version",
            ),
            (Error::Late, "no answer from `https://c`: it did not answer in time", start),
            (
                Error::Url,
                "`https://c/` is not the URL of a server",
                "such as `https://127.0.0.1:15030`",
            ),
        ] {
            assert_eq!((error.of("https://c/").as_str(), error.hint()), (said, hint));
        }
    }
}
