//! Canary: who tries a generation, and what comes of it.
//!
//! Pure. A sidecar is in one of [`BUCKETS`] by its name, so that every replica asks the same
//! ones without a word; of those that are connected, one is asked at least. Nobody to ask is
//! no reason to go on: the first to connect is asked, and it is a matter of milliseconds.

use aws_lc_rs::digest::{SHA256, digest};
use remora::sync::wire::Sidecar;

use super::record::Trial;

/// Sidecars fall into so many, of which a percentage takes the lowest ones.
const BUCKETS: u32 = 10_000;

/// How a trial is going.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// Connected sidecars that it was sent to.
    pub(super) asked: usize,
    /// Those of them that took it.
    pub(super) accepted: usize,
    /// What is to be done.
    pub(super) verdict: Verdict,
}

/// What is to be done about a trial.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing yet.
    #[default]
    Wait,
    /// The sidecars below this bucket are to get it.
    Ask(u32),
    /// Everybody is to get it.
    Promote,
    /// Nobody is to have it, for a reason.
    Stop(String),
}

/// The bucket of a sidecar.
pub(super) fn bucket(id: &str, instance: &str) -> u32 {
    let digest = digest(&SHA256, format!("{id}\n{instance}").as_bytes());
    let bytes = digest.as_ref().first_chunk().copied().unwrap_or_default();
    u32::from_be_bytes(bytes) % BUCKETS
}

impl Trial {
    /// Whether a sidecar is to get it.
    pub(super) fn asks(&self, id: &str, instance: &str) -> bool {
        bucket(id, instance) < self.below.unwrap_or(self.floor)
    }

    /// What the sidecars say; `is_late` when they have had their time.
    pub(super) fn judge(&self, sidecars: &[Sidecar], is_late: bool) -> Standing {
        let number = self.entry.number;
        let connected = || sidecars.iter().filter(|it| it.connected);
        if self.below.is_none() {
            let buckets = connected().map(|it| bucket(&it.id, &it.report.instance));
            let share = u32::from(self.percent) * (BUCKETS / 100);
            let ask = buckets.min().map(|least| Verdict::Ask(self.floor.max(share).max(least + 1)));
            return Standing { verdict: ask.unwrap_or_default(), ..Standing::default() };
        }
        let asked = |it: &&Sidecar| self.asks(&it.id, &it.report.instance);
        let took = |it: &Sidecar| it.report.policy.accepted == number;
        let refusal = sidecars.iter().filter(asked).find_map(|it| {
            let policy = &it.report.policy;
            let reason = policy.error.as_ref().filter(|_| policy.received == number)?;
            (!took(it)).then(|| format!("{} refused it: {reason}", named(it)))
        });
        let silent = connected().filter(asked).find(|it| !took(it));
        let (asked, accepted) = connected()
            .filter(asked)
            .fold((0, 0), |(asked, accepted), it| (asked + 1, accepted + usize::from(took(it))));
        let verdict = match (refusal, silent) {
            (Some(reason), _) => Verdict::Stop(reason),
            (None, None) if 0 < asked => Verdict::Promote,
            (None, Some(it)) if is_late => {
                Verdict::Stop(format!("{} did not say in time what it makes of it", named(it)))
            }
            (None, None) if is_late => Verdict::Stop("who was asked is gone".to_owned()),
            (None, _) => Verdict::Wait,
        };
        Standing { asked, accepted, verdict }
    }
}

fn named(sidecar: &Sidecar) -> String {
    format!("`{}` ({})", sidecar.id, sidecar.report.instance)
}

#[cfg(test)]
mod tests {
    use remora::sync::wire::{Policy, Report};

    use super::*;
    use crate::publish::record::Entry;

    #[test]
    fn a_percentage_of_many_is_asked_and_of_few_at_least_one() {
        let trial = trial(None);
        for (many, least, most) in [(1, 1, 1), (5, 1, 4), (2_000, 150, 250)] {
            let fleet: Vec<_> = (0..many).map(|it| sidecar(it, 6, None)).collect();
            let Verdict::Ask(below) = trial.judge(&fleet, false).verdict else { panic!("{many}") };
            let trial = self::trial(Some(below));
            let asked = fleet.iter().filter(|it| trial.asks(&it.id, &it.report.instance)).count();
            assert!((least..=most).contains(&asked), "{asked} of {many}");
        }
    }

    #[test]
    fn nobody_to_ask_is_waited_for_however_long() {
        let gone = Sidecar { connected: false, ..sidecar(0, 7, None) };
        for fleet in [vec![], vec![gone]] {
            assert_eq!(trial(None).judge(&fleet, true), Standing::default());
        }
    }

    #[test]
    fn who_had_a_trial_before_is_asked_again() {
        let fleet = [sidecar(0, 6, None)];
        let again = Trial { floor: 7_000, ..trial(None) };
        let asked = bucket(&fleet[0].id, "0") + 1;
        assert_eq!(again.judge(&fleet, false).verdict, Verdict::Ask(asked.max(7_000)));
    }

    #[test]
    fn all_that_are_asked_and_connected_must_have_taken_it() {
        let all = trial(Some(BUCKETS));
        let judge = |fleet: &[Sidecar]| {
            let Standing { asked, accepted, verdict } = all.judge(fleet, false);
            (asked, accepted, verdict)
        };
        let silent = sidecar(1, 6, None);
        assert_eq!(judge(&[sidecar(0, 7, None), silent.clone()]), (2, 1, Verdict::Wait));
        assert_eq!(judge(&[sidecar(0, 7, None), sidecar(1, 7, None)]), (2, 2, Verdict::Promote));
        let gone = Sidecar { connected: false, ..silent };
        assert_eq!(judge(&[sidecar(0, 7, None), gone.clone()]), (1, 1, Verdict::Promote));
        assert_eq!(judge(&[gone]), (0, 0, Verdict::Wait));
    }

    #[test]
    fn one_refusal_stops_it_even_of_who_has_gone_since() {
        let all = trial(Some(BUCKETS));
        let mut refusal = sidecar(1, 6, Some("a.yaml:1:1: wrong"));
        for connected in [true, false] {
            refusal.connected = connected;
            let verdict = all.judge(&[sidecar(0, 7, None), refusal.clone()], false).verdict;
            let reason = "`spiffe://td/ns/a/sa/b` (1) refused it: a.yaml:1:1: wrong".to_owned();
            assert_eq!(verdict, Verdict::Stop(reason));
        }
        // Of another generation, or of who was not asked.
        refusal.report.policy.received = 5;
        assert_eq!(all.judge(&[refusal], false).verdict, Verdict::Wait);
        let nobody = trial(Some(0));
        let refusal = sidecar(1, 6, Some("a.yaml:1:1: wrong"));
        assert_eq!(nobody.judge(&[refusal], false).verdict, Verdict::Wait);
    }

    #[test]
    fn silence_stops_it_when_time_is_over() {
        let all = trial(Some(BUCKETS));
        let fleet = [sidecar(0, 7, None), sidecar(1, 6, None)];
        let reason = "`spiffe://td/ns/a/sa/b` (1) did not say in time what it makes of it";
        assert_eq!(all.judge(&fleet, true).verdict, Verdict::Stop(reason.to_owned()));
        // Whom it was sent to is gone: it may have been the policy.
        let gone = Sidecar { connected: false, ..sidecar(0, 6, None) };
        let reason = "who was asked is gone".to_owned();
        assert_eq!(all.judge(&[gone], true).verdict, Verdict::Stop(reason));
        assert_eq!(all.judge(&fleet[..1], true).verdict, Verdict::Promote);
    }

    fn trial(below: Option<u32>) -> Trial {
        let entry = Entry { number: 7, origin: 7, digest: String::new() };
        Trial { entry, percent: 10, below, floor: 0 }
    }

    fn sidecar(index: usize, accepted: u64, error: Option<&str>) -> Sidecar {
        let policy = Policy { received: 7, accepted, error: error.map(str::to_owned) };
        let report = Report { instance: index.to_string(), policy, ..Report::default() };
        let id = "spiffe://td/ns/a/sa/b".to_owned();
        Sidecar { id, connected: true, seen: 0, not_after: 0, peer: None, report }
    }
}
