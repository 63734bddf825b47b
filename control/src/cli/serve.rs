//! Serve: control as a process, from flags to the last write after SIGTERM.

use std::{
    fs,
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use clap::Args;
use remora::{
    clock,
    drain::{self, Drain},
    telemetry::log,
};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};

use super::error::Error;
use crate::{
    duration::parse as duration,
    issuing::Names,
    kubernetes::{self, Cluster, First},
    publish,
    serve::{Pace, Parts, Server, Settings, audit::Audit, auth::Tokens, limits::Rates},
    store::{self, Folder, Store},
};

/// The audit log, in the authority's folder.
const AUDIT: &str = "state/audit.jsonl";

/// Serve certificates and policy to sidecars, until SIGTERM
///
/// The API is HTTPS (TLS 1.3, HTTP/2 or 1.1) with JSON. Sidecars join by a token of `token
/// create` and renew by the certificate they have; operators use the other commands, with the
/// same --dir or --kubernetes. Every certificate is written down in DIR/state/audit.jsonl, or
/// in the log.
///
/// Health and metrics are plain HTTP at --admin: /health/live, /health/ready, /metrics.
///
/// What sidecars need to go on is with them: control may be stopped at any time.
#[derive(Args)]
pub(super) struct Serve {
    /// The authority's folder, made by `init`; what control keeps is in DIR/state
    #[arg(long, value_name = "DIR", required_unless_present = "kubernetes")]
    dir: Option<PathBuf>,
    /// Keep everything in Kubernetes instead, as the pod's service account or KUBECONFIG may.
    /// Several replicas may serve at once. Policy is what ConfigMaps labelled
    /// `remora.dev/policy=true` hold, and sidecars join by service-account tokens, too
    #[arg(long, conflicts_with_all = ["dir", "policy"])]
    kubernetes: bool,
    #[command(flatten)]
    options: kubernetes::Options,
    /// A folder of policy documents (*.yaml) to follow and to publish
    #[arg(long, value_name = "FOLDER")]
    policy: Option<PathBuf>,
    /// Where the API listens
    #[arg(
        long,
        value_name = "ADDRESS",
        value_delimiter = ',',
        default_value = "0.0.0.0:15030,[::]:15030"
    )]
    listen: Vec<SocketAddr>,
    /// Where health and metrics are, in plain HTTP
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', default_value = "127.0.0.1:15031")]
    admin: Vec<SocketAddr>,
    /// Host names and addresses that clients such as curl call control by, beside localhost
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    name: Vec<String>,
    /// How long certificates of workloads are valid: 1h, 24h
    #[arg(long, value_name = "LIFE", default_value = "24h", value_parser = duration)]
    leaf_life: Duration,
    /// Give a new generation of policy to so many sidecars first, such as 10%; it is stopped
    /// when one of them rejects it
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    canary: Option<u8>,
    /// How long those may take to say what they make of it; 30 seconds, unless it is given
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "canary")]
    canary_wait: Option<Duration>,
    /// What is logged, as JSON on standard error: a level, or `module=level` by commas
    #[arg(long, value_name = "FILTER", default_value = log::DEFAULT_FILTER)]
    log: String,
}

/// Reads `1%` to `99%`.
fn percent(text: &str) -> Result<u8, &'static str> {
    let number = text.strip_suffix('%').and_then(|it| it.parse().ok());
    number.filter(|it| (1..100).contains(it)).ok_or("expected 1% to 99%")
}

pub(super) fn run(args: Serve, out: &mut dyn Write) -> Result<(), Error> {
    // Whatever else is left out, the audit log is not.
    match log::init(log::Format::Json, &format!("{},audit=info", args.log)) {
        // Whoever runs control as a part logs already.
        Ok(()) | Err(log::Error::Twice(_)) => (),
        Err(error) => return Err(Error::Log(error)),
    }
    let runtime = runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        if args.kubernetes {
            Box::pin(in_kubernetes(args, out)).await
        } else {
            Box::pin(in_folder(args, out)).await
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

async fn in_folder(mut args: Serve, out: &mut dyn Write) -> Result<(), Error> {
    let dir = args.dir.take().unwrap_or_default();
    let folder = Folder::new(&dir);
    let unusable = |source| Error::State { path: dir.clone(), source };
    let Some(_serving) = folder.serve().map_err(unusable)? else {
        return Err(Error::Served(dir));
    };
    let audit = Audit::file(&dir.join(AUDIT)).map_err(unusable)?;
    let source = args.policy.take().map(publish::Source::Folder);
    let store = Arc::new(Store::Folder(folder));
    let parts = Parts { dir: Some(dir), audit, ..parts(args, store, source, Vec::new()) };
    Box::pin(serve(parts, Drain::new(), None, out)).await
}

async fn in_kubernetes(args: Serve, out: &mut dyn Write) -> Result<(), Error> {
    let (options, drain) = (args.options.clone(), Drain::new());
    let replica = options.replica.or_else(host_name).unwrap_or_default();
    let cluster = Arc::new(
        Cluster::connect(options.namespace.as_deref().unwrap_or_default(), &replica).await?,
    );
    let store = Arc::new(Store::Kubernetes(store::Kubernetes::new(Arc::clone(&cluster))));
    let first =
        First { trust_domain: &options.trust_domain, secret: options.issuer_secret.as_deref() };
    Box::pin(cluster.begin(&store, first, clock::wall())).await?;
    cluster.start(&drain).await.map_err(kubernetes::Error::from)?;
    let policy = cluster.policy().await.map_err(kubernetes::Error::from)?;
    let source = publish::Source::Files(policy);
    let host = format!("remora-control.{}", cluster.namespace());
    let tokens = Tokens::Kubernetes(Arc::clone(&cluster), options.audience);
    let names = vec![format!("{host}.svc"), host];
    let parts = Parts { replica, tokens, ..parts(args, store, Some(source), names) };
    let bundle = (cluster, options.bundle_namespaces);
    Box::pin(serve(parts, drain, Some(bundle), out)).await
}

/// Of a server that is alone, and has `own` names beside those of [`Names`].
fn parts(
    args: Serve,
    store: Arc<Store>,
    source: Option<publish::Source>,
    own: Vec<String>,
) -> Parts {
    let wait = args.canary_wait.unwrap_or(publish::WAIT);
    let canary = args.canary.map(|percent| publish::Canary { percent, wait });
    Parts {
        store,
        dir: None,
        replica: "server".to_owned(),
        policy: publish::Settings { source, canary },
        tokens: Tokens::None,
        audit: Audit::Log,
        settings: Settings {
            names: names(own, &args.name, &args.listen),
            listen: args.listen,
            admin: args.admin,
            leaf_life: args.leaf_life,
            rates: Rates::DEFAULT,
            pace: Pace::DEFAULT,
        },
    }
}

/// The host's name, which is that of its pod in Kubernetes.
fn host_name() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_ascii_lowercase()).filter(|it| !it.is_empty())
}

async fn serve(
    parts: Parts,
    drain: Drain,
    bundle: Option<(Arc<Cluster>, Vec<String>)>,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let leave = leave(drain.clone())?;
    let server = Box::pin(Server::start(parts, drain)).await?;
    let [listen, admin] = server.addresses();
    let urls = |scheme: &str, all: &[SocketAddr]| {
        let urls: Vec<_> = all.iter().map(|it| format!("{scheme}://{it}")).collect();
        urls.join(", ")
    };
    writeln!(out, "serving `{}` at {}", server.trust_domain(), urls("https", &listen))?;
    writeln!(out, "  health and metrics at {}", urls("http", &admin))?;
    out.flush()?;
    drain::spawn("signals", leave);
    if let Some((cluster, namespaces)) = bundle {
        drain::spawn("bundle", kubernetes::keep_bundle(cluster, namespaces, server.live()));
    }
    Box::pin(server.run()).await;
    Ok(())
}

/// Begins the drain when the process is told to end.
fn leave(drain: Drain) -> io::Result<impl Future<Output = ()> + Send> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
        tracing::info!("leaving");
        drain.begin();
    })
}

/// What control's certificate is to have beside its id.
fn names(own: Vec<String>, given: &[String], listen: &[SocketAddr]) -> Names {
    let mut names = Names::default();
    names.dns.extend(own);
    names.addresses.extend(listen.iter().map(SocketAddr::ip).filter(|it| !it.is_unspecified()));
    for name in given {
        match name.parse() {
            Ok(address) => names.addresses.push(address),
            Err(_) => names.dns.push(name.clone()),
        }
    }
    names.addresses.sort_unstable();
    names.addresses.dedup();
    names
}
