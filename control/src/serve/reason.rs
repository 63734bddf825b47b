//! Reason: why a call was refused, in a closed set with one table.

use std::time::Duration;

use hyper::StatusCode;

use crate::store;

/// Makes the enum of its rows: name and what it is told; the answer's status; its word on the
/// wire, in logs and metrics; what is said, in a sentence; what to do about it.
macro_rules! reasons {
    ($(
        $name:ident $(($($told:ty),+))?, $status:ident, $word:literal, $text:literal,
            $hint:literal;
    )+) => {
        /// Why a call was refused, in a sentence.
        #[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
        pub(crate) enum Reason {
            $(#[error($text)] $name $(($($told),+))?,)+
        }

        impl Reason {
            /// The answer's status, the word, and what to do about it.
            pub(crate) fn row(&self) -> (StatusCode, &'static str, &'static str) {
                match self {
                    $(Self::$name { .. } => (StatusCode::$status, $word, $hint),)+
                }
            }
        }
    };
}

reasons! {
    Unproved, UNAUTHORIZED, "unproved", "nothing proves who the caller is",
        "send `Authorization: Bearer TOKEN`, or have a client certificate";
    Certificate(String), UNAUTHORIZED, "bad_certificate", "cannot take the client certificate: {0}",
        "connect anew, with a certificate that is valid now";
    TokenUnknown, UNAUTHORIZED, "token_unknown", "the token is not known",
        "make one with `remora-control token create`";
    TokenExpired, UNAUTHORIZED, "token_expired", "the token has expired",
        "make another with `remora-control token create`";
    TokenUsed, UNAUTHORIZED, "token_used", "the token was used with another key",
        "if it was not you who used it, somebody has stolen it: audit.jsonl";
    TokenKind, UNAUTHORIZED, "token_kind", "service-account tokens are not taken here",
        "this control does not run on Kubernetes: use a join token";
    TokenRefused(String), UNAUTHORIZED, "token_refused",
        "the service-account token is refused: {0}",
        "mount a projected serviceAccountToken whose `audience` is control's `--audience`";
    ReviewFailed(String), SERVICE_UNAVAILABLE, "review_failed", "the token cannot be reviewed: {0}",
        "try again; control must reach the API server and may create TokenReviews";
    OtherPod(String), FORBIDDEN, "other_pod", "the token is that of pod `{0}`",
        "give the pod's own name as `instance`, which is its host name";
    OtherId(String, String), FORBIDDEN, "other_id", "the CSR asks for `{0}`, the caller is `{1}`",
        "leave the URI out of the CSR, or name the caller's own id";
    ReservedId(String), FORBIDDEN, "reserved_id", "`{0}` is reserved",
        "`control` and `operator` of namespace `remora` are no workloads";
    ForeignId(String), FORBIDDEN, "foreign_id", "`{0}` is no workload of this trust domain",
        "the form is spiffe://TRUST-DOMAIN/ns/NS/sa/SERVICE-ACCOUNT";
    Csr(String), BAD_REQUEST, "bad_csr", "cannot use the CSR: {0}",
        "send PKCS #10 in PEM, signed by an ECDSA key on P-256 or P-384";
    Body(String), BAD_REQUEST, "bad_body", "cannot read the body: {0}",
        "send JSON as src/sync/wire.rs has it";
    TooLarge(usize), PAYLOAD_TOO_LARGE, "too_large", "the body has more than {0} bytes",
        "send less";
    Instance, BAD_REQUEST, "bad_instance", "cannot use the name of the instance",
        "give the pod's name: 1 to 253 letters, digits, `-`, `.` and `_`";
    NotOperator(String), FORBIDDEN, "not_operator", "`{0}` is no operator",
        "use the commands, where the authority is, or `--identity`";
    RateLimited(Duration), TOO_MANY_REQUESTS, "rate_limited", "too many requests",
        "wait as `Retry-After` says";
    NoSuchCall, NOT_FOUND, "no_such_call", "no such call",
        "calls begin with `/v1/`";
    Method(&'static str), METHOD_NOT_ALLOWED, "bad_method", "the call takes another method",
        "see `Allow`";
    FleetFull, SERVICE_UNAVAILABLE, "fleet_full", "there are as many sidecars as can be remembered",
        "give instances names that stay, or wait until certificates end";
    StoreFailed(String), SERVICE_UNAVAILABLE, "store_failed", "the store did not take it: {0}",
        "try again; on control's side, check the space left";
    SigningFailed(String), SERVICE_UNAVAILABLE, "signing_failed", "cannot sign: {0}",
        "`remora-control check` shows lives; `rotate` makes an issuer";
    Policy(String), CONFLICT, "bad_change", "{0}",
        "`remora-control status` shows the generations";
    Timeout, SERVICE_UNAVAILABLE, "timeout", "the call took too long",
        "send it faster, or try again";
    Busy, CONFLICT, "busy", "the connection has a watch",
        "end the other, or make another connection";
}

impl From<store::Error> for Reason {
    fn from(error: store::Error) -> Self {
        Self::StoreFailed(error.to_string())
    }
}
