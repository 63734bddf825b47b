//! Review: whose service-account token it is, as the API server says.
//!
//! A token must be valid now, and made for control: one that was made for another audience
//! could be passed on by whom it was shown to. Its holder is the service account, and its pod
//! where the token is bound to one. Nothing is remembered: a pod that was deleted a moment
//! ago is nobody's proof.
//!
//! # Sources
//!
//! - TokenReview: <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/>

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::Api;

use super::{Cluster, PARAMS};

/// Where a token says which pod it is of.
const POD: &str = "authentication.kubernetes.io/pod-name";

/// Whose a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Where it is.
    pub namespace: String,
    /// What it is called there.
    pub name: String,
    /// The pod that the token is bound to.
    pub pod: Option<String>,
}

/// Why a token proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is no good.
    #[error("{0}")]
    Token(String),
    /// The API server could not be asked.
    #[error("{0}")]
    Unasked(String),
}

impl Cluster {
    /// Whose `token` is; it must be for `audience`.
    ///
    /// # Errors
    ///
    /// When it proves nothing, or nobody can tell.
    pub async fn review(&self, token: &str, audience: &str) -> Result<Account, Refused> {
        let audiences = Some(vec![audience.to_owned()]);
        let spec = TokenReviewSpec { audiences, token: Some(token.to_owned()) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api = Api::all(self.client.clone());
        // Who is not proved yet may keep the API server only so busy.
        let _turn = self.reviews.acquire().await;
        let answer = self.call(|| api.create(&PARAMS, &review)).await;
        let status = answer.map_err(|it| Refused::Unasked(it.to_string()))?.status;
        account(status.unwrap_or_default(), audience).map_err(Refused::Token)
    }
}

/// What the API server says of a token.
fn account(status: TokenReviewStatus, audience: &str) -> Result<Account, String> {
    if status.authenticated != Some(true) {
        return Err(status.error.unwrap_or_else(|| "it is not valid".to_owned()));
    }
    // An API server that knows no audiences answers none.
    if !status.audiences.is_some_and(|it| it.iter().any(|it| it == audience)) {
        return Err(format!("it is not for `{audience}`"));
    }
    let mut user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|it| it.split_once(':'));
    let Some((namespace, name)) = account else {
        return Err(format!("`{}` is no service account", name.escape_debug()));
    };
    let pod = user.extra.as_mut().and_then(|it| it.remove(POD)).and_then(|mut it| it.pop());
    Ok(Account { namespace: namespace.to_owned(), name: name.to_owned(), pod })
}
