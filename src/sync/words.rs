//! Words: what sidecars, policy and rotations say of themselves, for people.
//!
//! On the wire are numbers, digests and times. What they amount to is said here, so that
//! whoever shows it to an operator says the same.

use std::{array, fmt, iter, time::Duration};

use remora_certs::{bundle, duration::span, x509::Facts};
use serde::Serialize;

use super::{
    client::{Client, Error},
    wire::{self, Bundle, Canary, PolicyStatus, RotationStatus, Sidecar, Sidecars, Standing},
};

/// Digits of a fingerprint that are enough to tell issuers apart.
const SHORT: usize = 8;

/// All that control tells operators.
#[derive(Clone, Debug, Serialize)]
pub struct Overview {
    /// Who lives by its certificates.
    pub sidecars: Sidecars,
    /// What it hands out.
    pub policy: PolicyStatus,
    /// How far a new issuer is.
    pub rotation: RotationStatus,
}

impl Overview {
    /// Asks control for it.
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    pub async fn of(client: &Client) -> Result<Self, Error> {
        Ok(Self {
            sidecars: client.get(wire::SIDECARS).await?,
            policy: client.get(wire::POLICY).await?,
            rotation: client.get(wire::ROTATION).await?,
        })
    }

    /// What is not well, a line each: first what ends within `min_life`, of the certificates
    /// of sidecars and of `others`, which are what they are called and when they end.
    pub fn findings(
        &self,
        others: Vec<(String, Duration)>,
        min_life: Duration,
        now: Duration,
    ) -> Vec<String> {
        let sidecars = &self.sidecars.sidecars;
        let leaves =
            sidecars.iter().map(|it| (format!("{}: its certificate", it.name()), it.end()));
        let lives = others.into_iter().chain(leaves);
        let lives = lives.map(|(what, end)| (what, end.saturating_sub(now)));
        let short = lives.filter(|(_, left)| *left < min_life);
        let short = short.map(|(what, left)| format!("{what} has {} left", span(left)));
        let policy = self.policy.error.iter().map(|it| format!("policy folder refused: {it}"));
        let rotation = self.rotation.error.iter().map(|it| format!("rotation: {it}"));
        let wrong = |it: &Sidecar| Some(format!("{}: {}", it.name(), self.sidecars.wrong(it)?));
        let wrong = sidecars.iter().filter_map(wrong);
        short.chain(policy).chain(rotation).chain(wrong).collect()
    }

    /// All of it: its lines, and below them a table of the sidecars, where there are any.
    pub fn page(&self, now: Duration) -> String {
        let sidecars = &self.sidecars.sidecars;
        if sidecars.is_empty() {
            return self.to_string();
        }
        format!("{self}\n{}", table(Sidecar::COLUMNS, sidecars.iter().map(|it| it.cells(now))))
    }
}

/// A line about what signs, what is handed out, what goes on, and who is there.
impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sidecars { issuer, bundle, sidecars, .. } = &self.sidecars;
        let connected = sidecars.iter().filter(|it| it.connected).count();
        let RotationStatus { step, finished, .. } = &self.rotation;
        let step = step.as_deref().unwrap_or("none under way");
        writeln!(f, "issuer    {}, bundle {bundle}", short(issuer))?;
        writeln!(f, "policy    {}", self.policy.words())?;
        writeln!(f, "rotation  {step}, {finished} finished{}", self.rotation.trouble())?;
        writeln!(f, "sidecars  {}, {connected} connected", sidecars.len())
    }
}

impl Sidecars {
    /// What is wrong with one of them, but for its certificate's life.
    fn wrong(&self, it: &Sidecar) -> Option<String> {
        let report = &it.report;
        let behind = |what, has, due| (has < due).then(|| format!("has {what} {has}, not {due}"));
        let other = report.certificate.issuer != self.issuer;
        (!it.connected)
            .then(|| "not connected".to_owned())
            .or_else(|| it.error())
            .or_else(|| behind("policy", report.policy.accepted, self.generation))
            .or_else(|| behind("trust bundle", report.bundle, self.bundle))
            .or_else(|| other.then(|| "its certificate is of another issuer".to_owned()))
    }
}

impl Sidecar {
    /// What [`Sidecar::cells`] are about.
    const COLUMNS: [&str; 8] =
        ["ID", "INSTANCE", "CONNECTED", "POLICY", "CERTIFICATE", "ISSUER", "SEEN", "ERROR"];

    /// How it does: a row of a table.
    fn cells(&self, now: Duration) -> [String; 8] {
        let report = &self.report;
        let left = self.end().checked_sub(now);
        [
            self.id.clone(),
            report.instance.clone(),
            yes(self.connected),
            report.policy.accepted.to_string(),
            left.map_or_else(|| "none".to_owned(), span),
            short(&report.certificate.issuer).to_owned(),
            format!("{} ago", span(now.saturating_sub(Duration::from_secs(self.seen)))),
            self.error().unwrap_or_default(),
        ]
    }

    /// Its id and instance.
    fn name(&self) -> String {
        format!("{} {}", self.id, self.report.instance)
    }

    /// When the certificate that it serves ends.
    fn end(&self) -> Duration {
        Duration::from_secs(self.report.certificate.not_after)
    }

    /// What is wrong with it, as it says itself.
    fn error(&self) -> Option<String> {
        let refused = self.report.policy.error.as_ref().map(|it| format!("policy refused: {it}"));
        refused.or_else(|| self.report.last_error.clone())
    }
}

impl PolicyStatus {
    /// What everybody gets, what is on trial and what is refused.
    pub fn words(&self) -> String {
        let handed_out = format!("generation {}", self.generation);
        let trial = self.canary.as_ref().map(|Canary { generation, percent, accepted, asked }| {
            format!("{generation} on trial with {percent} %: {accepted} of {asked} took it")
        });
        let parts = [Some(handed_out), trial, self.error.clone()];
        parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}

impl RotationStatus {
    /// How many sidecars have done what is being waited for.
    pub fn words(&self) -> String {
        let Some(step) = &self.step else { return "waiting for the server".to_owned() };
        let all = self.sidecars.len();
        format!("{step}: {} of {all} sidecars{}", all - self.behind(), self.trouble())
    }

    /// Sidecars that keep it from going on.
    pub fn behind(&self) -> usize {
        self.sidecars.iter().filter(|it| it.is_behind()).count()
    }

    /// How far each sidecar is, as a table.
    pub fn table(&self) -> String {
        table(Standing::COLUMNS, self.sidecars.iter().map(Standing::cells))
    }

    /// What goes behind what it says: why it does not go on.
    fn trouble(&self) -> String {
        self.error.as_ref().map_or_else(String::new, |it| format!(": {it}"))
    }
}

impl Standing {
    /// What [`Standing::cells`] are about.
    const COLUMNS: [&str; 6] = ["ID", "INSTANCE", "TRUSTS", "RENEWED", "PROVED", "LACKS"];

    /// How far it is: a row of a table.
    fn cells(&self) -> [String; 6] {
        let [trusts, renewed, proved] = [self.trusts, self.renewed, self.proved].map(yes);
        [self.id.clone(), self.instance.clone(), trusts, renewed, proved, self.lacks.clone()]
    }
}

/// `rows` under their `names`, each column as wide as it must be.
fn table<const N: usize>(names: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<_> = iter::once(names.map(str::to_owned)).chain(rows).collect();
    let width = |at: usize| rows.iter().map(|it| it[at].chars().count()).max();
    let widths: [_; N] = array::from_fn(|at| width(at).unwrap_or_default());
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// The roots, and the `issuer` that control showed: what each is called, and when it ends.
pub fn signers(trusted: &Bundle, issuer: Option<&Facts>) -> Vec<(String, Duration)> {
    let roots = bundle::Bundle::from_pem(trusted.roots.as_bytes());
    let named = |role, it: &Facts| (format!("{role} `{}`", it.subject), it.not_after);
    let roots = roots.iter().flat_map(bundle::Bundle::facts).map(|it| named("root", &it));
    roots.chain(issuer.map(|it| named("issuer", it))).collect()
}

/// Enough of a fingerprint to tell issuers apart; `-` for none.
fn short(fingerprint: &str) -> &str {
    fingerprint.get(..SHORT).unwrap_or("-")
}

fn yes(it: bool) -> String {
    if it { "yes" } else { "no" }.to_owned()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::{
        wire::{Certificate, Policy, Report},
        *,
    };

    const NOW: Duration = Duration::from_secs(1_770_091_506);

    #[test]
    fn an_overview_is_a_line_about_each_thing() {
        let mut all = overview();
        all.sidecars.sidecars[1].connected = false;
        all.rotation.error = Some("disk full".to_owned());
        assert_eq!(
            all.to_string(),
            "issuer    5e884898, bundle 3\n\
             policy    generation 17\n\
             rotation  none under way, 1 finished: disk full\n\
             sidecars  2, 1 connected\n"
        );
    }

    #[test]
    fn status_shows_each_sidecar_and_what_all_are_to_have() {
        let mut all = overview();
        all.sidecars.sidecars[1].connected = false;
        all.sidecars.sidecars[1].report.last_error = Some("no space left on device".to_owned());
        expect![[r"
            issuer    5e884898, bundle 3
            policy    generation 17
            rotation  none under way, 1 finished
            sidecars  2, 1 connected

            ID                             INSTANCE  CONNECTED  POLICY  CERTIFICATE  ISSUER    SEEN     ERROR
            spiffe://td/ns/shop/sa/orders  orders-0  yes        17      20 h         5e884898  4 s ago
            spiffe://td/ns/shop/sa/orders  orders-1  no         17      20 h         5e884898  4 s ago  no space left on device
        "]]
        .assert_eq(&all.page(NOW));
    }

    #[test]
    fn what_is_on_trial_or_refused_is_said() {
        let (generation, error) = (17, Some("`a.yaml:1:2`: unknown key".to_owned()));
        let canary = Some(Canary { generation: 18, percent: 10, accepted: 1, asked: 3 });
        let policy = PolicyStatus { generation, canary, history: Vec::new(), error };
        let expected =
            "generation 17; 18 on trial with 10 %: 1 of 3 took it; `a.yaml:1:2`: unknown key";
        assert_eq!(policy.words(), expected);
    }

    #[test]
    fn a_rotation_says_how_many_it_waits_for() {
        let mut rotation = RotationStatus::default();
        assert_eq!(rotation.words(), "waiting for the server");
        rotation.step = Some("renew".to_owned());
        let (id, instance) = ("spiffe://td/ns/shop/sa/orders".to_owned(), "orders-0".to_owned());
        let [trusts, renewed, proved] = [true, false, false];
        let lacks = "a certificate of the new issuer".to_owned();
        let behind = Standing { id, instance, trusts, renewed, proved, lacks };
        let out = Standing { lacks: wire::LEFT_OUT.to_owned(), ..behind.clone() };
        let ready = Standing { lacks: String::new(), ..behind.clone() };
        assert_eq!(behind.cells()[2..], ["yes", "no", "no", behind.lacks.as_str()]);
        rotation.sidecars = vec![behind, out, ready];
        assert_eq!((rotation.behind(), rotation.words().as_str()), (1, "renew: 2 of 3 sidecars"));
        rotation.error = Some("disk full".to_owned());
        assert_eq!(rotation.words(), "renew: 2 of 3 sidecars: disk full");
    }

    #[test]
    fn a_row_tells_times_as_spans() {
        let mut sidecar = overview().sidecars.sidecars.remove(0);
        let id = "spiffe://td/ns/shop/sa/orders";
        assert_eq!(
            sidecar.cells(NOW),
            [id, "orders-0", "yes", "17", "20 h", "5e884898", "4 s ago", ""]
        );
        sidecar.connected = false;
        sidecar.report.certificate = Certificate::default();
        sidecar.report.last_error = Some("disk full".to_owned());
        assert_eq!(
            sidecar.cells(NOW),
            [id, "orders-0", "no", "17", "none", "-", "4 s ago", "disk full"]
        );
    }

    #[test]
    fn what_is_well_gives_no_line() {
        assert_eq!(found(|_| (), Duration::from_hours(20)), [""; 0]);
    }

    #[test]
    fn each_life_that_is_too_short_gives_a_line() {
        let at = "spiffe://td/ns/shop/sa/orders";
        assert_eq!(
            found(|_| (), Duration::from_hours(25)),
            [
                "issuer `CN=td` has 1 d left",
                &format!("{at} orders-0: its certificate has 20 h left"),
                &format!("{at} orders-1: its certificate has 20 h left"),
            ]
        );
    }

    #[test]
    fn each_thing_that_is_wrong_with_a_sidecar_gives_a_line() {
        type Break = fn(&mut Sidecar);
        let refused: Break = |it| it.report.policy.error = Some("no such key".into());
        let cases: [(Break, &str); 6] = [
            (|it| it.connected = false, "not connected"),
            (refused, "policy refused: no such key"),
            (|it| it.report.last_error = Some("disk full".into()), "disk full"),
            (|it| it.report.policy.accepted = 16, "has policy 16, not 17"),
            (|it| it.report.bundle = 2, "has trust bundle 2, not 3"),
            (|it| it.report.certificate.issuer.clear(), "its certificate is of another issuer"),
        ];
        for (break_it, line) in cases {
            let found = found(|all| break_it(&mut all.sidecars.sidecars[1]), Duration::ZERO);
            assert_eq!(found, [format!("spiffe://td/ns/shop/sa/orders orders-1: {line}")]);
        }
    }

    #[test]
    fn a_policy_folder_or_a_rotation_that_fails_gives_a_line() {
        let found = found(
            |all| {
                all.policy.error = Some("empty".to_owned());
                all.rotation.error = Some("disk full".to_owned());
            },
            Duration::ZERO,
        );
        assert_eq!(found, ["policy folder refused: empty", "rotation: disk full"]);
    }

    fn found(change: impl FnOnce(&mut Overview), min_life: Duration) -> Vec<String> {
        let mut all = overview();
        change(&mut all);
        let issuer = ("issuer `CN=td`".to_owned(), NOW + Duration::from_hours(24));
        all.findings(vec![issuer], min_life, NOW)
    }

    /// Two sidecars that are well.
    fn overview() -> Overview {
        let issuer = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8";
        let not_after = NOW.as_secs() + 20 * 3600;
        let certificate =
            Certificate { serial: "01".to_owned(), not_after, issuer: issuer.to_owned() };
        let sidecar = |instance: &str| Sidecar {
            id: "spiffe://td/ns/shop/sa/orders".to_owned(),
            connected: true,
            seen: NOW.as_secs() - 4,
            not_after,
            peer: None,
            report: Report {
                instance: instance.to_owned(),
                certificate: certificate.clone(),
                bundle: 3,
                policy: Policy { received: 17, accepted: 17, error: None },
                ..Report::default()
            },
        };
        Overview {
            sidecars: Sidecars {
                generation: 17,
                issuer: issuer.to_owned(),
                bundle: 3,
                sidecars: vec![sidecar("orders-0"), sidecar("orders-1")],
            },
            policy: PolicyStatus { generation: 17, ..PolicyStatus::default() },
            rotation: RotationStatus { finished: 1, ..RotationStatus::default() },
        }
    }
}
