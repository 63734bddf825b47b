//! Quick start: a small mesh on this machine, and three bad moments in its life.
//!
//! ```text
//! cargo run --release --example quickstart              3,000 requests, and what becomes of them
//! cargo run --release --example quickstart -- --serve   the same, and then the mesh is yours
//! ```
//!
//! A shop has a `web` application that asks one of three `orders` applications. Each of
//! the four has a sidecar of its own, as it would in a pod, and knows nothing of it:
//!
//! ```text
//!            the pod of web                           a pod of orders (one of three)
//! clients ─> sidecar ─> web ─> sidecar ══ mutual TLS ══> sidecar ─> orders
//!                                 │
//!                                 └─ DNS: where is orders?
//! ```
//!
//! While 16 clients send their requests, a pod of orders dies without a word, every
//! certificate is replaced, and somebody edits a policy. No client may notice any of it.
//!
//! Read on in this order: [`drill`] below is the story, [`mesh`] starts what it is about,
//! [`apps`] are the two applications, [`traffic`] the clients. Everything that runs is a
//! real process with real certificates and a real name server, on loopback, without root.

mod apps;
mod child;
mod client;
mod dns;
mod mesh;
mod report;
mod traffic;

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use crate::{
    mesh::{Mesh, ORDERS},
    report::{Report, Story},
    traffic::{Phase, Traffic},
};

/// What may go wrong in an example is shown, and ends it.
type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

const REQUESTS: usize = 3_000;
const CLIENTS: usize = 16;

/// After so many answers a pod dies,
const KILL_AT: usize = 1_000;
/// the certificates are replaced, and no more than so many are sent before they are in use,
const ROTATE_AT: usize = 1_700;
const ROTATED_BY: usize = 2_000;
/// and a policy is edited, and no more than so many are sent before it is in force.
const EDIT_AT: usize = 2_300;
const EDITED_BY: usize = 2_700;

/// All of it takes seconds.
const LONGEST: Duration = Duration::from_mins(1);

fn main() -> ExitCode {
    // This program is also each of its children: `child` says how.
    if let Some(code) = child::run(env::args_os().skip(1), |args| apps::run(args)) {
        return code;
    }
    let serve = env::args().skip(1).any(|it| it == "--serve");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let mut out = io::stdout();
    let ended = runtime.map_err(Into::into).and_then(|it| it.block_on(run(serve, &mut out)));
    ended.unwrap_or_else(|error| {
        let verdict = format!("quickstart: FAILED, {REQUESTS} requests, {REQUESTS} failed");
        let told = writeln!(out, "error: {error}\n{verdict}");
        // Where nobody listens, the exit code still tells.
        told.map_or(ExitCode::FAILURE, |()| ExitCode::FAILURE)
    })
}

async fn run(serve: bool, out: &mut dyn Write) -> Result<ExitCode> {
    writeln!(out, "starting control, a name server, web and three of orders, a sidecar for each")?;
    let mut mesh = tokio::select! {
        mesh = Mesh::start() => mesh?,
        () = interrupted() => return Ok(ExitCode::FAILURE),
    };
    let drilled = tokio::select! {
        drilled = timeout(LONGEST, drill(&mut mesh, out)) => drilled,
        () = interrupted() => return Ok(ExitCode::FAILURE),
    };
    let drilled = drilled.unwrap_or_else(|_| Err(format!("not done after {LONGEST:?}").into()));
    if !drilled.as_ref().is_ok_and(Report::is_ok) {
        writeln!(out, "\nhint: what each process logged is in {}", mesh.keep().display())?;
    }
    let report = drilled?;
    report.print(out)?;
    writeln!(out, "\n{}", report.verdict())?;
    if serve {
        mesh.restore().await?;
        mesh.print_what_to_try(out)?;
        interrupted().await;
    }
    Ok(if report.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The story: traffic, and what happens to the mesh while it flows.
async fn drill(mesh: &mut Mesh, out: &mut dyn Write) -> Result<Report> {
    let mut story = Story::begin(out)?;
    let traffic = Traffic::start(mesh.web(), REQUESTS, CLIENTS, ROTATE_AT);
    story.tell(0, &format!("{CLIENTS} clients begin to ask web"), out)?;

    // A node is lost: nobody closes a connection, finishes a request or says goodbye.
    let at = traffic.answered(KILL_AT).await;
    mesh.kill(ORDERS[2])?;
    traffic.enter(Phase::Killed, ROTATED_BY);
    story.tell(at, "orders-3 is killed, application and sidecar, and leaves DNS", out)?;

    // Certificates live for hours, so this happens all the time.
    let at = traffic.answered(ROTATE_AT).await;
    let handshakes = mesh.client_handshakes().await?;
    mesh.rotate().await?;
    traffic.enter(Phase::Rotated, EDITED_BY);
    story.tell(at, "every certificate is replaced, and in use", out)?;

    let at = traffic.answered(EDIT_AT).await;
    let handshakes = mesh.client_handshakes().await? - handshakes;
    let (old, new) = mesh.edit_policy().await?;
    traffic.enter(Phase::Edited, REQUESTS);
    let edited =
        format!("a policy is edited: orders-2 weighs 3, orders-1 weighs 1 ({old} -> {new})");
    story.tell(at, &edited, out)?;

    let at = traffic.answered(REQUESTS).await;
    story.tell(at, "the last answer", out)?;
    Report::new(traffic.end().await, handshakes, mesh).await
}

/// Ends with Ctrl-C, or a polite request to leave.
async fn interrupted() {
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
        return tokio::time::sleep(Duration::MAX).await;
    };
    tokio::select! {
        _ = interrupt.recv() => (),
        _ = terminate.recv() => (),
    }
}
