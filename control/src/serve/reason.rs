//! Reason: why a call was refused, in a closed set with one table.

use std::time::Duration;

use hyper::StatusCode;
use remora::sync::wire::Refusal;

use crate::store;

/// Why a call was refused, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Reason {
    #[error("nothing proves who the caller is")]
    Unproved,
    #[error("cannot take the client certificate: {0}")]
    Certificate(String),
    #[error("the token is not known")]
    TokenUnknown,
    #[error("the token has expired")]
    TokenExpired,
    #[error("the token was used with another key")]
    TokenUsed,
    #[error("service-account tokens are not taken here")]
    TokenKind,
    #[error("the service-account token is refused: {0}")]
    TokenRefused(String),
    #[error("the token cannot be reviewed: {0}")]
    ReviewFailed(String),
    #[error("the token is that of pod `{}`", .0.escape_debug())]
    OtherPod(String),
    #[error("the CSR asks for `{asked}`, the caller is `{proved}`")]
    OtherId { proved: String, asked: String },
    #[error("`{0}` is reserved")]
    ReservedId(String),
    #[error("`{0}` is no workload of this trust domain")]
    ForeignId(String),
    #[error("cannot use the CSR: {0}")]
    Csr(String),
    #[error("cannot read the body: {0}")]
    Body(String),
    #[error("the body has more than {0} bytes")]
    TooLarge(usize),
    #[error("cannot use the name of the instance")]
    Instance,
    #[error("`{0}` is no operator")]
    NotOperator(String),
    /// How long to wait.
    #[error("too many requests")]
    RateLimited(Duration),
    #[error("no such call")]
    NoSuchCall,
    #[error("the call takes another method")]
    Method,
    #[error("there are as many sidecars as can be remembered")]
    FleetFull,
    #[error("the store did not take it: {0}")]
    StoreFailed(String),
    #[error("cannot sign: {0}")]
    SigningFailed(String),
    #[error("{0}")]
    Policy(String),
    #[error("the call took too long")]
    Timeout,
    #[error("the connection has a watch")]
    Busy,
}

impl From<store::Error> for Reason {
    fn from(error: store::Error) -> Self {
        Self::StoreFailed(error.to_string())
    }
}

impl Reason {
    /// Its word, and the answer's status.
    fn row(&self) -> (&'static str, StatusCode) {
        use StatusCode as S;
        match self {
            Self::Unproved => ("unproved", S::UNAUTHORIZED),
            Self::Certificate(_) => ("bad_certificate", S::UNAUTHORIZED),
            Self::TokenUnknown => ("token_unknown", S::UNAUTHORIZED),
            Self::TokenExpired => ("token_expired", S::UNAUTHORIZED),
            Self::TokenUsed => ("token_used", S::UNAUTHORIZED),
            Self::TokenKind => ("token_kind", S::UNAUTHORIZED),
            Self::TokenRefused(_) => ("token_refused", S::UNAUTHORIZED),
            Self::ReviewFailed(_) => ("review_failed", S::SERVICE_UNAVAILABLE),
            Self::OtherPod(_) => ("other_pod", S::FORBIDDEN),
            Self::OtherId { .. } => ("other_id", S::FORBIDDEN),
            Self::ReservedId(_) => ("reserved_id", S::FORBIDDEN),
            Self::ForeignId(_) => ("foreign_id", S::FORBIDDEN),
            Self::Csr(_) => ("bad_csr", S::BAD_REQUEST),
            Self::Body(_) => ("bad_body", S::BAD_REQUEST),
            Self::TooLarge(_) => ("too_large", S::PAYLOAD_TOO_LARGE),
            Self::Instance => ("bad_instance", S::BAD_REQUEST),
            Self::NotOperator(_) => ("not_operator", S::FORBIDDEN),
            Self::RateLimited(_) => ("rate_limited", S::TOO_MANY_REQUESTS),
            Self::NoSuchCall => ("no_such_call", S::NOT_FOUND),
            Self::Method => ("bad_method", S::METHOD_NOT_ALLOWED),
            Self::FleetFull => ("fleet_full", S::SERVICE_UNAVAILABLE),
            Self::StoreFailed(_) => ("store_failed", S::SERVICE_UNAVAILABLE),
            Self::SigningFailed(_) => ("signing_failed", S::SERVICE_UNAVAILABLE),
            Self::Policy(_) => ("bad_change", S::CONFLICT),
            Self::Timeout => ("timeout", S::SERVICE_UNAVAILABLE),
            Self::Busy => ("busy", S::CONFLICT),
        }
    }

    /// What to do about it.
    fn hint(&self) -> &'static str {
        match self {
            Self::Unproved => "send `Authorization: Bearer TOKEN`, or have a client certificate",
            Self::Certificate(_) => "connect anew, with a certificate that is valid now",
            Self::TokenUnknown => "make one with `remora-control token create`",
            Self::TokenExpired => "make another with `remora-control token create`",
            Self::TokenUsed => "if it was not you who used it, somebody has stolen it: audit.jsonl",
            Self::TokenKind => "this control does not run on Kubernetes: use a join token",
            Self::TokenRefused(_) => {
                "mount a projected serviceAccountToken whose `audience` is control's `--audience`"
            }
            Self::ReviewFailed(_) => {
                "try again; control must reach the API server and may create TokenReviews"
            }
            Self::OtherPod(_) => "give the pod's own name as `instance`, which is its host name",
            Self::OtherId { .. } => "leave the URI out of the CSR, or name the caller's own id",
            Self::ReservedId(_) => {
                "`control` and `operator` of namespace `remora` are no workloads"
            }
            Self::ForeignId(_) => "the form is spiffe://TRUST-DOMAIN/ns/NS/sa/SERVICE-ACCOUNT",
            Self::Csr(_) => "send PKCS #10 in PEM, signed by an ECDSA key on P-256 or P-384",
            Self::Body(_) => "send JSON as src/sync/wire.rs has it",
            Self::TooLarge(_) => "send less",
            Self::Instance => "give the pod's name: 1 to 253 letters, digits, `-`, `.` and `_`",
            Self::NotOperator(_) => "use the commands, where the authority is, or `--identity`",
            Self::RateLimited(_) => "wait as `Retry-After` says",
            Self::NoSuchCall => "calls begin with `/v1/`",
            Self::Method => "see `Allow`",
            Self::FleetFull => "give instances names that stay, or wait until certificates end",
            Self::StoreFailed(_) => "try again; on control's side, check the space left",
            Self::SigningFailed(_) => {
                "`remora-control check` shows lives; `rotate` makes an issuer"
            }
            Self::Policy(_) => "`remora-control status` shows the generations",
            Self::Timeout => "send it faster, or try again",
            Self::Busy => "end the other, or make another connection",
        }
    }

    /// Its word on the wire, in logs and metrics.
    pub(crate) fn word(&self) -> &'static str {
        self.row().0
    }

    /// The answer's status.
    pub(crate) fn status(&self) -> StatusCode {
        self.row().1
    }

    /// As it is answered.
    pub(crate) fn refusal(&self) -> Refusal {
        let (reason, error, hint) = (self.word().to_owned(), self.to_string(), self.hint());
        Refusal { reason, error, hint: hint.to_owned() }
    }
}
