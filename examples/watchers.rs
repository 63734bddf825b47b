//! Watchers: how soon a new generation of policy is with every sidecar.
//!
//! ```text
//! cargo run --release --example watchers     1,000 watchers, from the file to the last of them
//! ```
//!
//! Control serves on loopback as an operator runs it; 1,000 sidecars of 100 workloads watch
//! it, each by a TLS connection and a certificate of its own. Then a file of the policy folder
//! is replaced, and the clock runs from there until each has the whole of its new documents.
//! All of them change: each namespace has a file of 40 documents, some 12 KiB.
//!
//! Both ends run in this process, so the figures hold the cost of 1,000 clients as well. What
//! sidecars do with the policy is not in them: that happens on 1,000 machines.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, Write},
    net::SocketAddr,
    path::Path,
    process::ExitCode,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use remora::{
    clock, drain,
    identity::{self, Expected},
    sync::wire::{self, Message},
};
use remora_certs::{bundle::Bundle, svid::Svid};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, mpsc as channel},
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// What may go wrong in an example is shown, and ends it.
type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

const WATCHERS: usize = 1_000;
const WORKLOADS: usize = 100;
const NAMESPACES: usize = 10;

/// Documents of a namespace.
const SERVICES: usize = 40;

/// How often the policy is replaced; the slowest counts.
const ROUNDS: u64 = 5;

/// What is promised.
const WITHIN: Duration = Duration::from_secs(1);

/// After this it has failed, whatever it was.
const LONGEST: Duration = Duration::from_mins(1);

/// Handshakes at a time.
const DIALS: usize = 64;

/// A watcher has a generation: its number, and when its last byte was there.
type Arrival = (u64, Instant);

fn main() -> ExitCode {
    let mut out = io::stdout();
    match run(&mut out) {
        Ok(code) => code,
        Err(error) => {
            let told = writeln!(out, "error: {error}\nwatchers: FAILED");
            // Where nobody listens, the exit code still tells.
            told.map_or(ExitCode::FAILURE, |()| ExitCode::FAILURE)
        }
    }
}

fn run(out: &mut dyn Write) -> Result<ExitCode> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let dir = env::temp_dir().join(format!("remora-watchers-{}", std::process::id()));
    fs::create_dir(&dir)?;
    let ended = measure(&dir, out);
    fs::remove_dir_all(&dir)?;
    ended
}

fn measure(dir: &Path, out: &mut dyn Write) -> Result<ExitCode> {
    let authority = dir.join("authority");
    control(["init", "--dir", text(&authority)?])?;
    let policies = dir.join("policies");
    fs::create_dir(&policies)?;
    publish(&policies, 0)?;
    let address = serve(&authority, &policies)?;
    let mut workloads = Vec::new();
    for index in 0..WORKLOADS {
        let id = format!("spiffe://cluster.local/ns/n{}/sa/w{index}", index % NAMESPACES);
        workloads.push(workload(&authority, &dir.join("workload"), &id)?);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let begun = clock::now();
        let (mut before, mut arrivals) = connect(address, &workloads).await?;
        let took = clock::now() - begun;
        writeln!(out, "{WATCHERS} watchers connected in {} ms", took.as_millis())?;
        let mut slowest = Duration::ZERO;
        for round in 1..=ROUNDS {
            let begun = clock::now();
            publish(&policies, round)?;
            let (number, mut taken) = gather(&mut arrivals, before, begun).await?;
            taken.sort_unstable();
            let at = |percent: usize| taken[(taken.len() - 1) * percent / 100].as_millis();
            let (half, most, all) = (at(50), at(99), at(100));
            writeln!(out, "generation {number}: p50 {half} ms, p99 {most} ms, max {all} ms")?;
            slowest = slowest.max(taken[taken.len() - 1]);
            before = number;
        }
        let (ok, ms) = (slowest < WITHIN, slowest.as_millis());
        let verdict = if ok { "ok" } else { "TOO SLOW" };
        writeln!(out, "watchers: {verdict}, {WATCHERS} of {WATCHERS} in {ms} ms")?;
        Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// Runs a command of control.
fn control<const N: usize>(args: [&str; N]) -> Result<()> {
    let args = ["remora-control"].into_iter().chain(args).map(OsString::from);
    let mut err = Vec::new();
    let code = remora_control::cli::run(args, &mut io::sink(), &mut err);
    let told = String::from_utf8_lossy(&err).into_owned();
    if code == ExitCode::SUCCESS { Ok(()) } else { Err(told.into()) }
}

/// Runs control for as long as this process lives; where it listens.
fn serve(authority: &Path, policies: &Path) -> Result<SocketAddr> {
    let args = [
        "remora-control",
        "serve",
        "--dir",
        text(authority)?,
        "--policy",
        text(policies)?,
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--log",
        "warn",
    ];
    let args = args.map(OsString::from);
    let (said, says) = mpsc::sync_channel(64);
    thread::spawn(move || remora_control::cli::run(args, &mut Says(said), &mut io::stderr()));
    let mut line = String::new();
    while !line.ends_with('\n') {
        line += &says.recv_timeout(LONGEST)?;
    }
    let address = line.split("https://").nth(1).and_then(|it| it.lines().next()?.parse().ok());
    address.ok_or_else(|| format!("control said `{line}`").into())
}

/// What is written to it can be received.
struct Says(mpsc::SyncSender<String>);

impl Write for Says {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // After the first line nobody listens.
        let _heard = self.0.send(String::from_utf8_lossy(bytes).into_owned()).is_ok();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a workload connects.
fn workload(authority: &Path, folder: &Path, id: &str) -> Result<Arc<ClientConfig>> {
    control(["issue", "--dir", text(authority)?, "--id", id, "--out", text(folder)?])?;
    let svid =
        Svid::from_pem(&fs::read(folder.join("tls.crt"))?, &fs::read(folder.join("tls.key"))?)?;
    let roots = Bundle::from_pem(&fs::read(folder.join("ca.crt"))?)?;
    let expected = format!("spiffe://cluster.local{}", wire::CONTROL_PATH);
    let expected = Expected::Ids([expected.into()].into());
    Ok(Arc::new(identity::client_config(svid, roots, &expected, b"h2")?))
}

/// Replaces the documents of every namespace by those of a round, with one rename.
fn publish(policies: &Path, round: u64) -> Result<()> {
    let document = |namespace: usize, service: usize| {
        format!(
            "---\napiVersion: remora.dev/v1alpha1\nkind: ServicePolicy\n\
             metadata: {{name: s{service}, namespace: n{namespace}}}\n\
             spec:\n  targetRefs: [{{kind: Service, name: s{service}}}]\n\
             \x20 timeouts: {{request: {}ms}}\n\
             \x20 breaker: {{consecutiveFailures: 7, failureRatio: 50%, minRequests: 20}}\n\
             \x20 retryBudget: {{ratio: 20%, burst: 10}}\n",
            1_000 + round
        )
    };
    let all = (0..NAMESPACES).flat_map(|namespace| (0..SERVICES).map(move |it| (namespace, it)));
    let documents: String = all.map(|(namespace, it)| document(namespace, it)).collect();
    let aside = policies.join(".next");
    fs::write(&aside, documents)?;
    fs::rename(aside, policies.join("all.yaml"))?;
    Ok(())
}

/// Connects all watchers, until each has the policy there is.
async fn connect(
    address: SocketAddr,
    workloads: &[Arc<ClientConfig>],
) -> Result<(u64, channel::Receiver<Arrival>)> {
    let (sender, mut arrivals) = channel::channel(WATCHERS);
    let dials = Arc::new(Semaphore::new(DIALS));
    for index in 0..WATCHERS {
        let (config, sender) = (Arc::clone(&workloads[index % WORKLOADS]), sender.clone());
        let dials = Arc::clone(&dials);
        drain::spawn("watcher", async move {
            let Ok(turn) = dials.acquire().await else { return };
            let lines = Box::pin(dial(address, config, index)).await;
            drop(turn);
            if let Ok(lines) = lines {
                follow(lines, &sender).await;
            }
        });
    }
    let (number, _) = gather(&mut arrivals, 0, clock::now()).await?;
    Ok((number, arrivals))
}

/// Opens the watch of one sidecar.
async fn dial(address: SocketAddr, config: Arc<ClientConfig>, index: usize) -> Result<Incoming> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from("localhost")?;
    let tls = TlsConnector::from(config).connect(name, tcp).await?;
    let made = http2::handshake(TokioExecutor::new(), TokioIo::new(tls));
    let (mut send, connection) = Box::pin(made).await?;
    drain::spawn("connection", connection);
    let uri = format!("https://localhost{}?instance=sidecar-{index}", wire::WATCH);
    let response = send.send_request(Request::get(uri).body(Empty::<Bytes>::new())?).await?;
    if !response.status().is_success() {
        return Err(format!("control answers with {}", response.status()).into());
    }
    Ok(response.into_body())
}

/// Tells of each generation that has come in whole.
async fn follow(mut lines: Incoming, sender: &channel::Sender<Arrival>) {
    let mut rest = Vec::new();
    while let Some(Ok(frame)) = lines.frame().await {
        rest.extend_from_slice(frame.data_ref().map_or(&[], |it| it));
        while let Some(end) = rest.iter().position(|it| *it == b'\n') {
            let at = clock::now();
            let line: Vec<u8> = rest.drain(..=end).collect();
            let Ok(Message::Policy(policy)) = serde_json::from_slice(&line) else { continue };
            let Ok(it) = serde_json::from_str::<wire::Generation>(&policy.payload) else { return };
            if it.files.is_empty() || sender.send((it.number, at)).await.is_err() {
                return;
            }
        }
    }
}

/// The generation after `before`, and how long each took to have it.
async fn gather(
    arrivals: &mut channel::Receiver<Arrival>,
    before: u64,
    begun: Instant,
) -> Result<(u64, Vec<Duration>)> {
    let (mut taken, mut newest) = (Vec::with_capacity(WATCHERS), before);
    while taken.len() < WATCHERS {
        let late = |_| format!("{} of {WATCHERS} have it after {LONGEST:?}", taken.len());
        let arrival = timeout(LONGEST, arrivals.recv()).await.map_err(late)?;
        let (number, at) = arrival.ok_or("all watchers have ended")?;
        if before < number {
            newest = newest.max(number);
            taken.push(at - begun);
        }
    }
    Ok((newest, taken))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| "the temporary folder's name is no text".into())
}
