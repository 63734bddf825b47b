//! Audit: a line of JSON for each certificate handed out, and for each that was refused.
//!
//! Who runs on one machine finds them in `DIR/state/audit.jsonl`; on Kubernetes they are on
//! standard error, among those of the log and with `target` `audit`, whatever its filter. A
//! certificate whose line cannot be written is not handed out. There is never a token or a key
//! in a line, nor in what it is made of. Refusals for coming too often are counted and not
//! written.

use serde::Serialize;

/// The audit's lines in the authority's folder.
pub(crate) const FILE: &str = "state/audit.jsonl";

/// What is said of a certificate, or of a refusal.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Line {
    pub(crate) event: &'static str,
    pub(crate) caller: String,
    /// `join_token`, `service_account`, `certificate` or `none`.
    pub(crate) proof: &'static str,
    /// The beginning of the join token's digest, as `token create` shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    /// Whom the caller proved to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) instance: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) not_after: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}
