//! Report: what the clients saw, what the sidecars counted, and whether it is well.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use remora::clock;

use crate::{
    REQUESTS, Result,
    apps::WORK,
    mesh::{Mesh, ORDERS},
    traffic::{Answer, Phase},
};

/// As whom orders has to know web.
const WEB_ID: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// Failures that are shown one by one.
const SHOWN: usize = 10;

/// What happens, told as it happens.
#[derive(Debug)]
pub(crate) struct Story {
    began: Instant,
}

impl Story {
    /// Begins with the first line.
    pub(crate) fn begin(out: &mut dyn Write) -> Result<Self> {
        writeln!(out, "\n   seconds  answers  what happens")?;
        Ok(Self { began: clock::now() })
    }

    /// Tells what happened after so many answers.
    pub(crate) fn tell(&mut self, answers: usize, what: &str, out: &mut dyn Write) -> Result<()> {
        let seconds = (clock::now() - self.began).as_secs_f64();
        writeln!(out, "  {seconds:>8.2}  {answers:>7}  {what}")?;
        Ok(out.flush()?)
    }
}

/// What became of it all.
#[derive(Debug)]
pub(crate) struct Report {
    answers: Vec<Answer>,
    /// Handshakes that followed the new certificates.
    handshakes: f64,
    retries: f64,
    plaintext: f64,
}

impl Report {
    /// What the clients saw, beside what the sidecars have counted.
    pub(crate) async fn new(answers: Vec<Answer>, handshakes: f64, mesh: &Mesh) -> Result<Self> {
        let (retries, plaintext) = (mesh.retries().await?, mesh.plaintext().await?);
        Ok(Self { answers, handshakes, retries, plaintext })
    }

    /// Prints the table, and each failure below it.
    pub(crate) fn print(&self, out: &mut dyn Write) -> Result<()> {
        let (half, most) = (self.percentile(50), self.percentile(99));
        let (mesh, handshakes) = (self.mesh_percent(), self.handshakes);
        let (failed, retries, plaintext) = (self.failed(), self.retries, self.plaintext);
        let work = WORK.as_millis();
        writeln!(out)?;
        writeln!(out, "  requests   {:>10}", self.answers.len())?;
        writeln!(out, "  failed     {failed:>10}")?;
        writeln!(out, "  retries    {retries:>10}  by web's sidecar, so that web notices nothing")?;
        writeln!(out, "  p50        {half:>7.1} ms  of which orders works {work} ms")?;
        writeln!(out, "  p99        {most:>7.1} ms")?;
        writeln!(out, "  mutual TLS {mesh:>8.1} %  of requests reached orders as web's, verified")?;
        writeln!(out, "  plaintext  {plaintext:>10}  connections between sidecars")?;
        writeln!(out, "  handshakes {handshakes:>10}  with the new certificates\n")?;
        write!(out, "  answered by          ")?;
        ORDERS.iter().try_for_each(|it| write!(out, "{it:>10}"))?;
        writeln!(out)?;
        let columns = [
            ("before the kill", [Phase::Calm, Phase::Calm]),
            ("after the kill", [Phase::Killed, Phase::Rotated]),
            ("after the edit", [Phase::Edited, Phase::Edited]),
        ];
        for (title, phases) in columns {
            write!(out, "  {title:<21}")?;
            ORDERS.iter().try_for_each(|it| write!(out, "{:>8.1} %", self.share(it, phases)))?;
            writeln!(out)?;
        }
        for failure in self.answers.iter().filter_map(|it| it.failure.as_ref()).take(SHOWN) {
            writeln!(out, "failed: {failure}")?;
        }
        for broken in self.broken() {
            writeln!(out, "not so: {broken}")?;
        }
        Ok(())
    }

    /// Whether all is well.
    pub(crate) fn is_ok(&self) -> bool {
        self.failed() == 0 && self.broken().is_empty()
    }

    /// The last line.
    pub(crate) fn verdict(&self) -> String {
        let word = if self.is_ok() { "ok" } else { "FAILED" };
        format!("quickstart: {word}, {REQUESTS} requests, {} failed", self.failed())
    }

    fn failed(&self) -> usize {
        let answered = self.answers.iter().filter(|it| it.failure.is_none()).count();
        REQUESTS - answered
    }

    /// What the mesh promises beside answers, and did not keep.
    fn broken(&self) -> Vec<&'static str> {
        let after = [Phase::Killed, Phase::Rotated];
        let edited = self.share(ORDERS[1], [Phase::Edited; 2]);
        let promises = [
            (self.mesh_percent() >= 100.0, "every request reaches orders over mutual TLS"),
            (self.plaintext == 0.0, "no connection between sidecars is in plaintext"),
            (self.share(ORDERS[2], after) == 0.0, "nothing is answered by who is dead"),
            (self.handshakes > 0.0, "new certificates are followed by new handshakes"),
            (edited > 60.0, "the edited policy gives orders-2 most of the requests"),
        ];
        promises.into_iter().filter(|(kept, _)| !kept).map(|(_, it)| it).collect()
    }

    fn percentile(&self, percent: usize) -> f64 {
        let mut times: Vec<Duration> = self.answers.iter().map(|it| it.took).collect();
        times.sort_unstable();
        let at = times.len() * percent / 100;
        times.get(at).map_or(0.0, |it| it.as_secs_f64() * 1000.0)
    }

    fn mesh_percent(&self) -> f64 {
        percent(&self.answers, |it| it.caller == WEB_ID)
    }

    fn share(&self, pod: &str, phases: [Phase; 2]) -> f64 {
        let sent = self.answers.iter().filter(|it| phases.contains(&it.phase));
        percent(sent, |it| it.served_by == pod)
    }
}

fn percent<'a>(
    answers: impl IntoIterator<Item = &'a Answer>,
    is_so: impl Fn(&Answer) -> bool,
) -> f64 {
    let (mut all, mut so) = (0_u32, 0_u32);
    for it in answers {
        all += 1;
        so += u32::from(is_so(it));
    }
    100.0 * f64::from(so) / f64::from(all.max(1))
}
