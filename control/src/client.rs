//! Client: calls control's API as the operator that an issuer's key makes.
//!
//! Who can read the key of the issuer can make any identity there is, so nobody else needs
//! to vouch for an operator: each call mints a certificate of [`LIFE`] for itself, by what
//! the store says at that moment. So a rotation may pass between two calls. Where there is
//! no such key, a folder with an identity of the operator does, made by `issue`.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use clap::{ArgGroup, Args};
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use remora::{
    clock, drain,
    identity::{self, Expected},
    sync::wire,
};
use remora_certs::{bundle::Bundle, folder, svid::Svid};
use rustls::pki_types::{CertificateDer, ServerName};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::TcpStream, time};
use tokio_rustls::TlsConnector;

use crate::{
    issuing::{self, Issuing},
    kubernetes::{self, Cluster},
    store::{Folder, Kubernetes, Store},
};

/// How long an operator's certificate is valid that is made for one call.
const LIFE: Duration = Duration::from_mins(10);

/// A call takes at most so long, from the first packet to the answer's end.
const DEADLINE: Duration = Duration::from_secs(10);

/// Where control is, and who calls.
#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("operator").required(true).args(["dir", "identity", "kubernetes"]))]
pub(crate) struct Operator {
    /// The authority's folder, whose key makes an operator of the caller
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// A folder with tls.crt, tls.key and ca.crt of the operator, instead of --dir
    #[arg(long, value_name = "FOLDER")]
    pub(crate) identity: Option<PathBuf>,
    /// Control keeps its authority in Kubernetes, where KUBECONFIG leads
    #[arg(long)]
    pub(crate) kubernetes: bool,
    /// Control's namespace in Kubernetes; without it, that of the context
    #[arg(long, value_name = "NS", requires = "kubernetes")]
    pub(crate) namespace: Option<String>,
    /// Where `remora-control serve` listens
    #[arg(long, value_name = "URL", default_value = "https://127.0.0.1:15030")]
    pub(crate) server: String,
}

/// Calls one control.
#[derive(Debug)]
pub(crate) struct Client {
    server: Uri,
    operator: Operator,
}

/// Why a call got no answer, or none that is of use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("`{0}` is not the URL of a server")]
    Url(String),
    #[error(transparent)]
    Issuing(#[from] issuing::Error),
    #[error("no identity of an operator in `{folder}`: {reason}")]
    Identity { folder: PathBuf, reason: String },
    #[error(transparent)]
    Kubernetes(#[from] kubernetes::Error),
    #[error("no answer from `{server}`: {reason}")]
    NoServer { server: String, reason: String },
    #[error("`{server}` says: {}", .refusal.error)]
    Refused { server: String, refusal: wire::Refusal },
    #[error("`{server}` answers `{path}` with what is not understood: {reason}")]
    Answer { server: String, path: String, reason: String },
}

/// An answer, and whom it came from.
pub(crate) struct Answer<T> {
    pub(crate) body: T,
    /// The server's certificates, leaf first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
}

/// Runs what calls control, to its end.
pub(crate) fn block_on<F: Future>(calls: F) -> io::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(calls))
}

impl Client {
    /// Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// When the address is none.
    pub(crate) fn open(operator: &Operator) -> Result<Self, Error> {
        let wrong = || Error::Url(operator.server.clone());
        let server: Uri = operator.server.parse().map_err(|_| wrong())?;
        if server.scheme_str() != Some("https") || server.host().is_none() {
            return Err(wrong());
        }
        Ok(Self { server, operator: operator.clone() })
    }

    /// What is at `path`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        Ok(self.ask(path).await?.body)
    }

    /// What is at `path`, and the certificates of who said so.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<Answer<T>, Error> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    /// What comes of sending `body` to `path`.
    pub(crate) async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, Error> {
        let answer = |reason| self.answer(path, reason);
        let body = serde_json::to_vec(body).map_err(answer)?;
        Ok(self.call(Method::POST, path, body.into()).await?.body)
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Answer<T>, Error> {
        let (svid, roots) = Box::pin(self.identity()).await?;
        let exchange = Box::pin(self.exchange(method, path, body, (svid, roots)));
        let called = time::timeout(DEADLINE, exchange);
        let late = |_| self.no_server("no answer within 10 s");
        let (status, bytes, chain) = called.await.map_err(late)??;
        if status.is_success() {
            let body = serde_json::from_slice(&bytes).map_err(|it| self.answer(path, it))?;
            return Ok(Answer { body, chain });
        }
        Err(match serde_json::from_slice(&bytes) {
            Ok(refusal) => Error::Refused { server: self.url(), refusal },
            Err(_) => self.answer(path, status),
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        (svid, roots): (Svid, Bundle),
    ) -> Result<(StatusCode, Bytes, Vec<CertificateDer<'static>>), Error> {
        let control = format!("spiffe://{}{}", svid.id().trust_domain(), wire::CONTROL_PATH);
        let expected = Expected::Ids([control.into()].into());
        let config = identity::client_config(svid, roots, &expected, b"h2");
        let config = config.map_err(|it| self.no_server(it))?;
        let host = self.server.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = self.server.port_u16().unwrap_or(443);
        let tcp = TcpStream::connect((host, port)).await.map_err(|it| self.no_server(it))?;
        let name = ServerName::try_from(host.to_owned()).map_err(|it| self.no_server(it))?;
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
        let tls = tls.map_err(|it| self.no_server(it))?;
        let chain = tls.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls));
        let (mut sender, connection) = Box::pin(made).await.map_err(|it| self.no_server(it))?;
        let task = drain::spawn("operator's connection", connection);
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url()))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|it| self.no_server(it))?;
        let response = sender.send_request(request).await.map_err(|it| self.no_server(it))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), wire::BYTES_MAX).collect().await;
        let body = body.map_err(|it| self.no_server(it))?.to_bytes();
        task.abort();
        Ok((status, body, chain))
    }

    /// Where the authority is kept; `None` for an operator who has but an identity.
    ///
    /// # Errors
    ///
    /// When it is in Kubernetes, and there is no way to get there.
    pub(crate) async fn store(&self) -> Result<Option<Store>, Error> {
        let Operator { dir, kubernetes, namespace, .. } = &self.operator;
        if let Some(dir) = dir {
            return Ok(Some(Store::Folder(Folder::new(dir))));
        }
        if !kubernetes {
            return Ok(None);
        }
        let namespace = namespace.as_deref().unwrap_or_default();
        let cluster = Cluster::connect(namespace, "operator").await?;
        Ok(Some(Store::Kubernetes(Kubernetes::new(Arc::new(cluster)))))
    }

    /// Who calls, and whom to trust.
    async fn identity(&self) -> Result<(Svid, Bundle), Error> {
        if let Some(store) = self.store().await? {
            let issuing = Issuing::read(&store, clock::wall()).await?;
            return Ok((issuing.own(wire::OPERATOR_PATH, LIFE, clock::wall())?, issuing.roots));
        }
        let folder = self.operator.identity.clone().unwrap_or_default();
        let unfit = |reason: String| Error::Identity { folder: folder.clone(), reason };
        let files = folder::read(&folder, ["tls.crt", "tls.key", "ca.crt"]);
        let [chain, key, roots] = files.map_err(|it| unfit(it.to_string()))?;
        let svid = Svid::from_pem(&chain, &key).map_err(|it| unfit(it.to_string()))?;
        Ok((svid, Bundle::from_pem(&roots).map_err(|it| unfit(it.to_string()))?))
    }

    fn url(&self) -> String {
        self.server.to_string().trim_end_matches('/').to_owned()
    }

    #[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
    fn no_server(&self, reason: impl ToString) -> Error {
        Error::NoServer { server: self.url(), reason: reason.to_string() }
    }

    #[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
    fn answer(&self, path: &str, reason: impl ToString) -> Error {
        Error::Answer { server: self.url(), path: path.to_owned(), reason: reason.to_string() }
    }
}

impl Error {
    /// Whether it may pass: nobody answered, or the operator's certificate was of an issuer
    /// that was retired between its making and the call.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::NoServer { .. } | Self::Refused { .. })
    }

    /// What to do about it.
    pub(crate) fn hint(&self) -> &str {
        match self {
            Self::Url(_) => "such as `https://127.0.0.1:15030`",
            Self::Issuing(issuing::Error::None) => {
                "`remora-control serve` takes over what `init` made, and must have run once"
            }
            Self::Issuing(_) | Self::Kubernetes(_) => {
                "--dir takes the folder that `serve` was given, or --kubernetes its cluster"
            }
            Self::Identity { .. } => {
                "--identity takes what `remora-control issue --id spiffe://TRUST-DOMAIN/ns/remora\
                 /sa/operator --out FOLDER` wrote"
            }
            Self::NoServer { .. } => {
                "start it with `remora-control serve`, or name another with `--server`"
            }
            Self::Refused { refusal, .. } => &refusal.hint,
            Self::Answer { .. } => "check that `--server` is a control of this version",
        }
    }
}
