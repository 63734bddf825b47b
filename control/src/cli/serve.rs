//! Serve: control as a process, from flags to the last write after SIGTERM.

use std::{
    fs::File,
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use clap::Args;
use remora::{
    drain::{self, Drain},
    sync::host_name,
    telemetry::{Journal, log},
    transport::listen::{bind_all, raise_descriptors},
};
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};

use super::error::Error;
use crate::{
    duration::parse as duration,
    issuing::Names,
    kubernetes::{self, Cluster},
    publish,
    serve::{Control, Parts, audit},
    store::{Folder, Store},
};

/// Where the API is, unless it is said.
const LISTEN: &str = "0.0.0.0:15030,[::]:15030";

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
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', default_value = LISTEN)]
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
    // Whoever runs control as a part logs already.
    if let Err(error @ log::Error::Filter { .. }) = log::init(log::Format::Json, &args.log) {
        return Err(Error::Log(error));
    }
    raise_descriptors();
    let runtime = Runtime::new()?;
    let served = runtime.block_on(Box::pin(serve(args, out)));
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

/// Serves and says where, until the process is told to end.
async fn serve(mut args: Serve, out: &mut dyn Write) -> Result<(), Error> {
    let (control, _alone) = match args.dir.take() {
        Some(dir) => Box::pin(in_folder(&args, dir)).await?,
        None => Box::pin(in_kubernetes(&mut args)).await?,
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Once it is watched, a terminal that closes ends nobody.
    let _hung_up = signal(SignalKind::hangup())?;
    let (listeners, api) = listen("https", &args.listen)?;
    let (admin, pages) = listen("http", &args.admin)?;
    let control = control.start(listeners, admin);
    let trust_domain = control.live.get().authority.trust_domain().to_owned();
    writeln!(out, "serving `{trust_domain}` at {api}\n  health and metrics at {pages}")?;
    out.flush()?;
    let told = async {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
        tracing::info!("leaving");
        control.drain.begin();
    };
    tokio::join!(told, control.run());
    Ok(())
}

/// A server of files, and what keeps others off them for as long as it lives.
async fn in_folder(args: &Serve, dir: PathBuf) -> Result<(Control, Option<File>), Error> {
    let unusable = |source| Error::State(dir.clone(), source);
    let folder = Folder::new(&dir);
    let Some(alone) = folder.serve().map_err(unusable)? else { return Err(Error::Served(dir)) };
    let audit = Journal::file(&dir.join(audit::FILE)).map_err(unusable)?;
    let source = args.policy.clone().map(publish::Source::Folder);
    let parts = Parts { dir: Some(dir), audit, ..parts(args, Arc::new(folder), source) };
    Ok((Control::load(parts).await?, Some(alone)))
}

/// A server of Kubernetes objects, with whom it shares nothing but them.
async fn in_kubernetes(args: &mut Serve) -> Result<(Control, Option<File>), Error> {
    let (options, drain) = (args.options.clone(), Drain::new());
    let replica = options.replica.clone().unwrap_or_else(|| host_name().to_ascii_lowercase());
    let cluster = Arc::new(Cluster::connect(options.namespace.as_deref(), &replica).await?);
    options.begin(&cluster).await?;
    let source = kubernetes::start(&cluster, &drain).await?;
    let host = format!("remora-control.{}", cluster.namespace());
    args.name.extend([format!("{host}.svc"), host]);
    let mut control = Control::load(Parts {
        replica,
        ..parts(args, Arc::<Cluster>::clone(&cluster), Some(source))
    })
    .await?;
    let (live, others) = (Arc::clone(&control.live), options.bundle_namespaces);
    drain::spawn("bundle", kubernetes::keep_bundle(Arc::clone(&cluster), others, live));
    (control.drain, control.tokens) = (drain, Some((cluster, options.audience)));
    Ok((control, None))
}

/// What a server begins with that is alone.
fn parts(args: &Serve, store: Arc<Store>, source: Option<publish::Source>) -> Parts {
    let wait = args.canary_wait.unwrap_or(publish::WAIT);
    let canary = args.canary.map(|percent| publish::Canary { percent, wait });
    let bound = args.listen.iter().map(SocketAddr::ip).filter(|it| !it.is_unspecified());
    let mut names = Names::default();
    names.dns.push("remora-control".to_owned());
    names.extend(args.name.iter().cloned().chain(bound.map(|it| it.to_string())));
    Parts {
        store,
        dir: None,
        replica: "server".to_owned(),
        names,
        audit: Journal::log("audit", io::stderr()),
        policy: publish::Settings { source, canary },
        leaf_life: args.leaf_life,
    }
}

/// Listens at these addresses, and says at which.
fn listen(scheme: &str, addresses: &[SocketAddr]) -> Result<(Vec<TcpListener>, String), Error> {
    let all = bind_all(addresses).map_err(|(address, error)| Error::Listen(address, error))?;
    let urls = all.iter().map(|it| Ok(format!("{scheme}://{}", it.local_addr()?)));
    let urls = urls.collect::<io::Result<Vec<_>>>()?.join(", ");
    Ok((all, urls))
}
