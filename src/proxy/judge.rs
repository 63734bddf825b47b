//! Judge (step 9): what a response says of its endpoint, and of another try.
//!
//! An endpoint has failed with a 5xx other than 501, or with a gRPC status that is not the
//! caller's doing, in the head or in the trailers. "Not now" (429, a gRPC quota, a sidecar
//! that sheds load) costs the endpoint traffic and is no failure of it.
//!
//! # Sources
//!
//! - gRPC, *Status codes and their use in gRPC*.
//!   <https://grpc.github.io/grpc/core/md_doc_statuscodes.html>

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::{context::Facts, failure::Failure, headers};
use crate::{
    clock,
    policy::retry::{Failed, Said, answer::Fields},
    resilience::{
        backoff::Asked,
        balancer::{Outcome, PASSED_ON},
    },
};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// The gRPC statuses that are no caller's doing: UNKNOWN, `DEADLINE_EXCEEDED`, INTERNAL,
/// UNAVAILABLE, `DATA_LOSS`.
const FAILURES: u32 = 1 << 2 | 1 << 4 | 1 << 13 | 1 << 14 | 1 << 15;

/// `RESOURCE_EXHAUSTED`.
const EXHAUSTED: u8 = 8;

/// What a response says of another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// What became of this one.
    pub failed: Failed,
    /// What the answer asks for.
    pub said: Said,
}

/// Judges the head of a response; `mesh` says that its endpoint is believed.
pub fn response<B>(response: &Response<B>, facts: &Facts, mesh: bool) -> (Outcome, Option<Judged>) {
    let (status, fields) = (response.status(), response.headers());
    let is_fine = !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS;
    let grpc = if facts.grpc { grpc_status(fields) } else { None };
    if is_fine && matches!(grpc, None | Some(0)) {
        return (Outcome::Success, None);
    }
    let believed = || fields.get(&headers::REASON).filter(|_| mesh);
    let reported = believed().and_then(|it| Failure::from_label(it.as_bytes()));
    let said = said(fields, mesh);
    let failed = match (reported, grpc) {
        (Some(failure), _) if failure.is_before_the_application() => Failed::Unprocessed,
        // The application may have done what it was asked before it died.
        (Some(Failure::Reset), _) => Failed::Reset,
        (_, Some(code)) => Failed::Grpc(code),
        (_, None) => Failed::Status(status.as_u16()),
    };
    // What failed is further on and has been judged there; here it would open the breakers,
    // and refuse the requests, of every hop above.
    let passed_on = mesh && fields.get(&headers::RETRY).is_some_and(|it| it == "no");
    let busy = reported.is_some_and(|it| !it.row().charges_breaker)
        || matches!(failed, Failed::Status(429) | Failed::Grpc(EXHAUSTED));
    let outcome = match failed {
        _ if passed_on => Outcome::Busy(Some(PASSED_ON)),
        _ if busy => Outcome::Busy(match said {
            Said::After(Asked::AtLeast(wait) | Asked::Exactly(wait)) => Some(wait),
            Said::Nothing | Said::Never => None,
        }),
        // The caller asked for what nobody here does.
        Failed::Status(501) => Outcome::Success,
        Failed::Grpc(code) => of_grpc(code),
        Failed::Unsent
        | Failed::Unprocessed
        | Failed::ReusedReset
        | Failed::Reset
        | Failed::TryTimeout
        | Failed::Status(_)
        | Failed::Final => Outcome::Failure,
    };
    (outcome, Some(Judged { failed, said }))
}

/// Judges the trailers of a gRPC response; `None` where they say nothing new.
pub fn trailers(fields: &HeaderMap) -> Option<Outcome> {
    grpc_status(fields).map(of_grpc).filter(|it| *it != Outcome::Success)
}

fn of_grpc(code: u8) -> Outcome {
    match code {
        EXHAUSTED => Outcome::Busy(None),
        code if FAILURES.checked_shr(code.into()).is_some_and(|it| it & 1 == 1) => Outcome::Failure,
        _ => Outcome::Success,
    }
}

fn grpc_status(fields: &HeaderMap) -> Option<u8> {
    fields.get(&GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// What an answer asks of whoever would send its request again.
fn said(fields: &HeaderMap, mesh: bool) -> Said {
    let field = |name: &HeaderName| fields.get(name).map(HeaderValue::as_bytes);
    let retry = field(&headers::RETRY).filter(|_| mesh);
    let (pushback, retry_after) = (field(&PUSHBACK), field(&header::RETRY_AFTER));
    Fields { retry, pushback, retry_after }.said(clock::wall())
}
