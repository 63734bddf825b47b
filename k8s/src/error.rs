//! Error: why the API server is of no use, and whether it may have heard us all the same.

use std::error::Error as _;

use remora::telemetry::words;

/// What to do when a call is not served.
pub const HINT: &str =
    "check the API server, and what control's service account may: k8s/control/rbac.yaml";

/// Why a call was not served, or cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Error {
    pub(super) reason: String,
    /// What to do about it.
    pub hint: &'static str,
    /// The status of the answer, if there was one.
    pub(super) code: Option<u16>,
    /// Whether a try may have been heard, though it was not answered.
    pub(super) unsure: bool,
}

impl Error {
    pub(super) fn unheard(reason: String) -> Self {
        Self { reason, hint: HINT, code: None, unsure: true }
    }

    /// What there is, or what was answered, is of no use.
    pub fn unusable(reason: String, hint: &'static str) -> Self {
        Self { reason, hint, code: None, unsure: false }
    }

    /// Whether it is this status that the API server answered.
    pub(super) fn is(&self, code: u16) -> bool {
        self.code == Some(code)
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        if let kube::Error::Api(it) = &error {
            let reason = format!("the API server answered {}: {}", it.code, it.message);
            return Self { reason, hint: HINT, code: Some(it.code), unsure: 500 <= it.code };
        }
        let causes = error.source().map_or_else(String::new, |it| format!(": {}", words(it)));
        Self::unheard(format!("cannot reach the API server{causes}"))
    }
}
