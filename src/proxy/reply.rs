//! Reply: the responses Remora makes itself.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};

use super::{
    failure::Failure,
    headers::{REASON, Seen},
};
use crate::transport::body::Body;

/// What a caller is told to wait where nothing says how long it will take.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// Whether these are the fields of a gRPC call, which is answered in its own terms.
pub fn is_grpc(headers: &HeaderMap, seen: Seen) -> bool {
    let kind = if seen.content_type { headers.get(header::CONTENT_TYPE) } else { None };
    kind.is_some_and(|it| it.as_bytes().starts_with(b"application/grpc"))
}

/// The response to a request that failed here.
///
/// An HTTP caller gets the status of the failure table and one line of text; a gRPC caller
/// gets a trailers-only response, which is HTTP 200 with a `grpc-status`. A 429 and a 503
/// carry `Retry-After`.
pub fn failed(failure: Failure, grpc: bool) -> Response<Body> {
    let row = failure.row();
    let mut response = Response::new(Body::Empty);
    let headers = response.headers_mut();
    headers.insert(REASON, HeaderValue::from_static(row.label));
    if grpc {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", u16::from(row.grpc_status).into());
        headers.insert("grpc-message", HeaderValue::from_static(row.label));
        return response;
    }
    if matches!(row.status.as_u16(), 429 | 503) {
        headers.insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    let text = format!("remora: {}\n", row.label);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(header::CONTENT_LENGTH, text.len().into());
    *response.status_mut() = row.status;
    *response.body_mut() = Body::Full(Bytes::from(text));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_caller_is_answered_in_its_own_terms() {
        let response = failed(Failure::NoEndpoints, true);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["x-remora-reason"], "no_endpoints");
    }

    #[test]
    fn an_unavailable_service_says_when_to_come_back() {
        let response = failed(Failure::NoEndpoints, false);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "1");
    }
}
