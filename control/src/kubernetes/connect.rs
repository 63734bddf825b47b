//! Connect: from a kubeconfig, or from inside a pod, to a client of the API server.
//!
//! TLS is made by hand, of the one provider of cryptography that the rest has, rather than by
//! `kube`, which would make one the default of the whole process. The roots are read again
//! for each connection, as the file they are in is renewed; so are tokens, by `kube`.
//! HTTP/1.1: a call that is given up takes its connection along, and a dead one is never
//! shared.

use std::{fs, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use clap::Args;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt as _},
    config::AuthInfo,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tower::{BoxError, Service as _, ServiceBuilder, service_fn};

use super::{Cluster, Error, PATIENCE};

/// How long a connection is kept for the next call.
const IDLE: Duration = Duration::from_secs(30);

/// How often a silent connection is probed; three misses end it.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Tokens that are asked about at once.
const REVIEWS_MAX: usize = 16;

/// What only Kubernetes has.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Control's own namespace in Kubernetes; without it, that of the pod or the context
    #[arg(long, value_name = "NS", requires = "kubernetes")]
    pub(crate) namespace: Option<String>,
    /// A Secret with the issuer to begin with, as cert-manager makes it: tls.crt, tls.key,
    /// ca.crt. Without it, and where there is none yet, a root and an issuer are made; the
    /// root's key is not kept
    #[arg(long, value_name = "NAME", requires = "kubernetes")]
    pub(crate) issuer_secret: Option<String>,
    /// The trust domain to begin with, where the issuer names none
    #[arg(long, value_name = "NAME", default_value = "cluster.local", requires = "kubernetes")]
    pub(crate) trust_domain: String,
    /// The name of this replica, another for each; without it the host's, which is the pod's
    #[arg(long, value_name = "NAME", requires = "kubernetes")]
    pub(crate) replica: Option<String>,
    /// Whom service-account tokens must be for
    #[arg(
        long,
        value_name = "AUDIENCE",
        default_value = "remora.dev/control",
        requires = "kubernetes"
    )]
    pub(crate) audience: String,
    /// Keep ConfigMap remora-bundle in these namespaces, too, for sidecars to know control by
    #[arg(long, value_name = "NAMESPACE", value_delimiter = ',', requires = "kubernetes")]
    pub(crate) bundle_namespaces: Vec<String>,
}

impl Cluster {
    /// A client of the API server that the environment names; nothing is sent yet.
    ///
    /// Control's own namespace is that of the pod, or of the kubeconfig's context, where
    /// `namespace` is empty.
    pub(crate) async fn connect(namespace: &str, replica: &str) -> Result<Self, Error> {
        let mut config =
            Box::pin(Config::infer()).await.map_err(|it| Error::Infer(Box::new(it)))?;
        if !namespace.is_empty() {
            namespace.clone_into(&mut config.default_namespace);
        }
        Self::with(config, replica)
    }

    pub(super) fn with(config: Config, replica: &str) -> Result<Self, Error> {
        let namespace = config.default_namespace.clone();
        let client = client(config).map_err(Error::Credentials)?;
        Ok(Self {
            client,
            namespace,
            replica: format!("{replica}_{:08x}", rand::random::<u32>()),
            leading: watch::Sender::default(),
            changes: watch::Sender::default(),
            reviews: Semaphore::new(REVIEWS_MAX),
            patience: PATIENCE,
        })
    }
}

fn client(config: Config) -> Result<Client, BoxError> {
    // Whatever is wrong shows now, not with the first call.
    tls(&config)?;
    let (base, auth) = (config.base_uri_layer(), config.auth_layer()?);
    let namespace = config.default_namespace.clone();
    let config = Arc::new(config);
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    // A watch is silent for minutes, and must notice that its other end is gone.
    http.set_keepalive(Some(KEEPALIVE));
    http.set_keepalive_interval(Some(KEEPALIVE));
    http.set_keepalive_retries(Some(3));
    let connector = service_fn(move |uri| {
        let (http, tls) = (http.clone(), tls(&config));
        Box::pin(async move {
            let connected = HttpsConnector::from((http, tls?)).call(uri);
            timeout(PATIENCE, connected).await.map_err(BoxError::from).flatten()
        })
    });
    let client = legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .build::<_, Body>(connector);
    let service = ServiceBuilder::new().layer(base).option_layer(auth);
    Ok(Client::new(service.map_err(BoxError::from).service(client), namespace))
}

fn tls(config: &Config) -> Result<ClientConfig, BoxError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &config.root_cert_file {
        for root in CertificateDer::pem_file_iter(path)? {
            roots.add(root?)?;
        }
    } else {
        for root in config.root_cert.iter().flatten() {
            roots.add(root.clone().into())?;
        }
    }
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let builder = ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    Ok(match identity(&config.auth_info)? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    })
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The client certificate of a kubeconfig, as file or as text.
fn identity(auth: &AuthInfo) -> Result<Option<Identity>, BoxError> {
    let auth = serde_json::to_value(auth)?;
    let read = |name: &str| -> Result<Option<Vec<u8>>, BoxError> {
        let text = |name: &str| auth.get(name).and_then(|it| it.as_str());
        Ok(match (text(&format!("{name}-data")), text(name)) {
            (Some(data), _) => Some(BASE64_STANDARD.decode(data)?),
            (None, Some(path)) => Some(fs::read(path)?),
            (None, None) => None,
        })
    };
    let (Some(chain), Some(key)) = (read("client-certificate")?, read("client-key")?) else {
        return Ok(None);
    };
    let chain = CertificateDer::pem_slice_iter(&chain).collect::<Result<_, _>>()?;
    Ok(Some((chain, PrivateKeyDer::from_pem_slice(&key)?)))
}
