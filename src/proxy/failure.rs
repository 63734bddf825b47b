//! Failure: every way a request can fail here, in one table.
//!
//! A response Remora makes itself carries its failure's label in `x-remora-reason`, in
//! `remora_local_replies_total` and in the access log, so that three places tell one story.

use http::StatusCode;

use crate::resilience::service::Refused;

/// Every way a request can fail here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The request is malformed or ambiguous.
    BadRequest,
    /// The request's head is over the limits.
    HeadersTooLarge,
    /// Nothing says where the request goes, or it would come straight back.
    NoRoute,
    /// The service is known, and no endpoint of it is.
    NoEndpoints,
    /// Nobody listens at the endpoint, or there is no way to it.
    ConnectRefused,
    /// The endpoint did not answer the dial in time.
    ConnectTimeout,
    /// The endpoint does not complete a mesh handshake.
    TlsHandshake,
    /// The endpoint is not who it has to be.
    TlsIdentity,
    /// The endpoint closed or reset the connection before it answered.
    Reset,
    /// What the endpoint answered is not the protocol that was spoken.
    Protocol,
    /// No answer within the request's time.
    RequestTimeout,
    /// No answer within one try's time.
    TryTimeout,
    /// An upload on which nothing moved for too long.
    UploadIdle,
    /// An answer's body on which nothing moved for too long.
    IdleTimeout,
    /// The caller's deadline had passed.
    DeadlineExpired,
    /// The breaker of every endpoint is open.
    BreakerOpen,
    /// No connection is free, and no more may be made.
    PoolFull,
    /// The caller is over its rate.
    RateLimited,
    /// The workload has as much to do as it can.
    Overloaded,
    /// Policy does not let this caller in.
    Denied,
    /// This process is going away.
    Draining,
    /// A policy asked for the failure.
    FaultInjected,
    /// A bug of ours.
    Internal,
}

/// Who is at fault, which is what an operator asks first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller.
    Downstream,
    /// Whoever was called.
    Upstream,
    /// This process, or its policy.
    Local,
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The label in metrics, logs and `x-remora-reason`.
    pub label: &'static str,
    /// What an HTTP caller gets.
    pub status: StatusCode,
    /// What a gRPC caller gets (<https://grpc.io/docs/guides/status-codes/>).
    pub grpc_status: u8,
    /// Who is at fault.
    pub side: Side,
    /// Whether another endpoint may do better. Whether it is safe to ask is another
    /// question: see [`crate::policy::retry`].
    pub retryable: bool,
    /// Whether it counts against the endpoint.
    pub charges_breaker: bool,
}

const CANCELLED: u8 = 1;
const INVALID_ARGUMENT: u8 = 3;
const DEADLINE_EXCEEDED: u8 = 4;
const PERMISSION_DENIED: u8 = 7;
const RESOURCE_EXHAUSTED: u8 = 8;
const UNIMPLEMENTED: u8 = 12;
const INTERNAL: u8 = 13;
const UNAVAILABLE: u8 = 14;

impl Failure {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 23] = [
        Self::BadRequest,
        Self::HeadersTooLarge,
        Self::NoRoute,
        Self::NoEndpoints,
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::TlsHandshake,
        Self::TlsIdentity,
        Self::Reset,
        Self::Protocol,
        Self::RequestTimeout,
        Self::TryTimeout,
        Self::UploadIdle,
        Self::IdleTimeout,
        Self::DeadlineExpired,
        Self::BreakerOpen,
        Self::PoolFull,
        Self::RateLimited,
        Self::Overloaded,
        Self::Denied,
        Self::Draining,
        Self::FaultInjected,
        Self::Internal,
    ];

    /// Its row of the table.
    pub const fn row(self) -> Row {
        use Side::{Downstream, Local, Upstream};
        let (label, status, grpc_status, side, retryable, charges_breaker) = match self {
            Self::BadRequest => ("bad_request", 400, INVALID_ARGUMENT, Downstream, false, false),
            Self::HeadersTooLarge => {
                ("headers_too_large", 431, RESOURCE_EXHAUSTED, Downstream, false, false)
            }
            Self::NoRoute => ("no_route", 404, UNIMPLEMENTED, Local, false, false),
            Self::NoEndpoints => ("no_endpoints", 503, UNAVAILABLE, Upstream, false, false),
            Self::ConnectRefused => ("connect_refused", 503, UNAVAILABLE, Upstream, true, true),
            Self::ConnectTimeout => ("connect_timeout", 504, UNAVAILABLE, Upstream, true, true),
            Self::TlsHandshake => ("tls_handshake", 502, UNAVAILABLE, Upstream, true, true),
            Self::TlsIdentity => ("tls_identity", 502, UNAVAILABLE, Upstream, true, true),
            Self::Reset => ("reset", 502, UNAVAILABLE, Upstream, true, true),
            Self::Protocol => ("protocol", 502, INTERNAL, Upstream, true, true),
            Self::RequestTimeout => {
                ("request_timeout", 504, DEADLINE_EXCEEDED, Upstream, false, true)
            }
            Self::TryTimeout => ("try_timeout", 504, DEADLINE_EXCEEDED, Upstream, true, true),
            Self::UploadIdle => ("upload_idle", 408, DEADLINE_EXCEEDED, Downstream, false, false),
            Self::IdleTimeout => ("idle_timeout", 504, DEADLINE_EXCEEDED, Upstream, false, true),
            Self::DeadlineExpired => {
                ("deadline_expired", 504, DEADLINE_EXCEEDED, Downstream, false, false)
            }
            Self::BreakerOpen => ("breaker_open", 503, UNAVAILABLE, Local, true, false),
            Self::PoolFull => ("pool_full", 503, RESOURCE_EXHAUSTED, Local, true, false),
            Self::RateLimited => {
                ("rate_limited", 429, RESOURCE_EXHAUSTED, Downstream, false, false)
            }
            Self::Overloaded => ("overloaded", 503, RESOURCE_EXHAUSTED, Local, false, false),
            Self::Denied => ("denied", 403, PERMISSION_DENIED, Downstream, false, false),
            Self::Draining => ("draining", 503, UNAVAILABLE, Local, true, false),
            Self::FaultInjected => ("fault_injected", 503, CANCELLED, Local, false, false),
            Self::Internal => ("internal", 500, INTERNAL, Local, false, false),
        };
        let status = match StatusCode::from_u16(status) {
            Ok(status) => status,
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Row { label, status, grpc_status, side, retryable, charges_breaker }
    }

    /// The label in metrics, logs and `x-remora-reason`.
    pub const fn label(self) -> &'static str {
        self.row().label
    }

    /// The failure a label stands for.
    pub fn from_label(label: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.label().as_bytes() == label)
    }

    /// Whether, reported by a mesh peer, it says that the application saw nothing of the
    /// request.
    pub const fn is_before_the_application(self) -> bool {
        matches!(
            self,
            Self::ConnectRefused
                | Self::ConnectTimeout
                | Self::BreakerOpen
                | Self::PoolFull
                | Self::Draining
        )
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NoEndpoints => Self::NoEndpoints,
            Refused::BreakerOpen => Self::BreakerOpen,
            Refused::Full => Self::PoolFull,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::expect_file;

    use super::*;

    /// The README shows this table; `UPDATE_EXPECT=1` writes it again.
    #[test]
    fn the_table_is_the_one_the_docs_show() {
        let mut table = String::from(
            "| reason | HTTP | gRPC | side | retryable | charges the breaker |\n|---|---|---|---|---|---|\n",
        );
        for failure in Failure::ALL {
            let Row { label, status, grpc_status, side, retryable, charges_breaker } =
                failure.row();
            let (status, side) = (status.as_u16(), format!("{side:?}").to_lowercase());
            let yes = |it| if it { "yes" } else { "no" };
            let (retryable, charges) = (yes(retryable), yes(charges_breaker));
            writeln!(
                table,
                "| `{label}` | {status} | {grpc_status} | {side} | {retryable} | {charges} |"
            )
            .unwrap();
        }
        expect_file!["failures.md"].assert_eq(&table);
    }

    #[test]
    fn each_label_leads_back_to_its_failure() {
        for failure in Failure::ALL {
            assert_eq!(Failure::from_label(failure.label().as_bytes()), Some(failure));
        }
    }
}
