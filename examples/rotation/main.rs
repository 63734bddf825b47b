//! Rotation: every certificate of a mesh is renewed many times, and its root replaced.
//!
//! ```text
//! cargo run --release --example rotation     200 renewals and a new root, under load
//! ```
//!
//! Control, a mesh of 24 sidecars and the applications behind them run on loopback, without
//! root. Certificates live for seconds here, so that half a minute holds what is otherwise a
//! week. All the while clients send requests through the mesh, and not one may fail: not
//! when a certificate is renewed, not when the root that everybody trusts is another one,
//! not when control is killed in the middle of that.
//!
//! ```text
//! clients ─> sidecar of web ══ mutual TLS ══> sidecar of orders ─> orders
//!                  │                                  │
//!                  └──── certificates, policy ────────┘
//!                               control
//! ```
//!
//! [`drill`] below is the story, [`mesh`] starts what it is about, [`load`] are clients and
//! applications. Nothing is done by hand that an operator would not do: it is all commands
//! of `remora-control`.

#[expect(dead_code, reason = "shared with the quick start, which needs more of it")]
#[path = "../quickstart/child.rs"]
mod child;
#[path = "../quickstart/client.rs"]
mod client;

mod load;
mod mesh;

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use remora::clock;
use tokio::time::timeout;

use crate::{load::Load, mesh::Mesh};

/// What may go wrong in an example is shown, and ends it.
type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// So many certificates are renewed before the end,
const RENEWALS: u64 = 200;
/// and so many before the root is replaced.
const ROTATE_AT: u64 = 80;

/// All of it takes half a minute, twice that on a busy machine.
const LONGEST: Duration = Duration::from_mins(4);

fn main() -> ExitCode {
    // This program is also each of its children: `child` says how.
    if let Some(code) = child::run(env::args_os().skip(1), |_| ExitCode::FAILURE) {
        return code;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let mut out = io::stdout();
    let ended = runtime.map_err(Into::into).and_then(|it| it.block_on(run(&mut out)));
    ended.unwrap_or_else(|error| {
        let told = writeln!(out, "error: {error}\nrotation: FAILED");
        // Where nobody listens, the exit code still tells.
        told.map_or(ExitCode::FAILURE, |()| ExitCode::FAILURE)
    })
}

async fn run(out: &mut dyn Write) -> Result<ExitCode> {
    let (sidecars, life) = (mesh::ORDERS + mesh::WEBS, mesh::LEAF_LIFE);
    writeln!(out, "starting control and {sidecars} sidecars; a certificate lives for {life}")?;
    let mut mesh = Mesh::start().await?;
    let drilled = timeout(LONGEST, drill(&mut mesh, out)).await;
    let drilled = drilled.unwrap_or_else(|_| Err(format!("not done after {LONGEST:?}").into()));
    if !drilled.as_ref().is_ok_and(Verdict::is_ok) {
        writeln!(out, "\nhint: what each process logged is in {}", mesh.keep().display())?;
    }
    let verdict = drilled?;
    writeln!(out, "\n{}", verdict.line())?;
    Ok(if verdict.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What came of it.
struct Verdict {
    failures: Vec<String>,
    renewals: u64,
    /// The generation of policy, where every sidecar has it.
    generation: Result<u64, String>,
}

impl Verdict {
    fn is_ok(&self) -> bool {
        self.failures.is_empty() && self.generation.is_ok() && RENEWALS <= self.renewals
    }

    fn line(&self) -> String {
        let word = if self.is_ok() { "ok" } else { "FAILED" };
        let failed = self.failures.len();
        let sidecars = match &self.generation {
            Ok(number) => format!("all sidecars on generation {number}"),
            Err(reason) => reason.clone(),
        };
        format!("rotation: {word}, {failed} failed requests, {sidecars}")
    }
}

/// The story: load, and what happens to the mesh meanwhile.
async fn drill(mesh: &mut Mesh, out: &mut dyn Write) -> Result<Verdict> {
    let mut story = Story { began: clock::now() };
    writeln!(out, "\n   seconds  requests  renewals  what happens")?;
    let load = Load::start(&mesh.webs());
    story.tell(&load, mesh, "clients begin to ask, and go on all the while", out).await?;

    mesh.renewed(ROTATE_AT).await?;
    story.tell(&load, mesh, "remora-control rotate --prove --root", out).await?;
    let rotating = mesh.rotate();
    // The worst moment: everybody is being told of the new root.
    mesh.kill_control().await?;
    story.tell(&load, mesh, "control is killed, and begins again", out).await?;
    let said = rotating.await??;
    story.tell(&load, mesh, "the new root is proved everywhere, the old one retired", out).await?;

    let number = mesh.edit_policy().await?;
    let edited = format!("a policy is edited: generation {number} is with every sidecar");
    story.tell(&load, mesh, &edited, out).await?;

    let renewals = mesh.renewed(RENEWALS).await?;
    story.tell(&load, mesh, "the last renewal", out).await?;
    let (requests, failures) = load.end().await;
    writeln!(out, "\nwhat `rotate --prove` said:\n{}", said.trim_end())?;
    writeln!(out, "\n  requests  {requests:>8}\n  failed    {:>8}", failures.len())?;
    writeln!(out, "  renewals  {renewals:>8}")?;
    for failure in failures.iter().take(10) {
        writeln!(out, "failed: {failure}")?;
    }
    Ok(Verdict { failures, renewals, generation: mesh.generation().await })
}

/// What happens, told as it happens.
struct Story {
    began: Instant,
}

impl Story {
    async fn tell(
        &mut self,
        load: &Load,
        mesh: &Mesh,
        what: &str,
        out: &mut dyn Write,
    ) -> Result<()> {
        let seconds = (clock::now() - self.began).as_secs_f64();
        let (requests, renewals) = (load.answered(), mesh.renewals().await?);
        writeln!(out, "  {seconds:>8.2}  {requests:>8}  {renewals:>8}  {what}")?;
        Ok(out.flush()?)
    }
}
