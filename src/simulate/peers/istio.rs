//! Istio: Envoy with the settings Istio gives it, and outlier detection switched on.
//!
//! Two choices over active requests; two retries of any request on 503, a refused or a
//! reset connection, to another host, after a full-jitter wait; no bound on the sum of
//! retries (`max_retries` is 2³²−1). Five failures in a row eject a host for 30 s and
//! longer each time, but at most 10 % of a pool: of fewer than ten hosts, none ever.
//!
//! # Sources
//!
//! - Istio, *Traffic Management*: default retry policy; `DestinationRule`'s outlier
//!   detection. <https://istio.io/latest/docs/concepts/traffic-management/#retries>
//! - Envoy, `outlier_detection_impl.cc`: the cap, the sweep every interval.

use super::super::{
    chance::Chance,
    rules::{Answer, Ended, Failure, Kind, Next},
    time::At,
};

const SECOND: At = 1_000_000_000;
const MILLISECOND: At = 1_000_000;
const RETRIES: u8 = 2;
const BACKOFF: At = 25 * MILLISECOND;
const BACKOFF_MAX: At = 10 * BACKOFF;
const CONSECUTIVE: u32 = 5;
const SWEEP: At = 10 * SECOND;
const EJECTION: At = 30 * SECOND;
const EJECTION_MAX: At = 300 * SECOND;
const EJECTED_PERCENT_MAX: usize = 10;
/// How often a host that was tried is drawn again before it is taken.
const DRAWS: usize = 5;

/// A caller as Envoy is one.
#[derive(Debug)]
pub(in super::super) struct Istio {
    hosts: Vec<Host>,
    swept: At,
    /// How often a host was left out.
    pub(in super::super) ejections: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Host {
    active: u32,
    failures: u32,
    ejected: Option<At>,
    back: At,
    times: u64,
}

impl Istio {
    /// A caller of so many endpoints.
    pub(in super::super) fn new(endpoints: u32) -> Self {
        Self { hosts: vec![Host::default(); endpoints as usize], swept: 0, ejections: 0 }
    }

    /// Of two hosts that are in, the one with fewer active requests.
    pub(in super::super) fn pick(
        &mut self,
        avoid: Option<u32>,
        now: At,
        chance: &mut Chance,
    ) -> Option<(u32, u64)> {
        self.sweep(now);
        let hosts = (0..).zip(&self.hosts);
        let ready: Vec<u32> =
            hosts.filter(|(_, it)| it.ejected.is_none()).map(|(at, _)| at).collect();
        let mut draw = || {
            let at = usize::try_from(chance.below(ready.len() as u64)).unwrap_or(0);
            ready.get(at).copied()
        };
        let mut found = None;
        for _ in 0..DRAWS {
            let (a, b) = (draw()?, draw()?);
            let active = |it: u32| self.hosts[it as usize].active;
            found = Some(if active(a) <= active(b) { a } else { b });
            if found != avoid {
                break;
            }
        }
        let found = found?;
        self.hosts[found as usize].active += 1;
        Some((found, 0))
    }

    /// Counts how a try ended.
    pub(in super::super) fn settle(&mut self, at: u32, ended: Option<Ended>, now: At) {
        self.sweep(now);
        let (total, out) =
            (self.hosts.len(), self.hosts.iter().filter(|it| it.ejected.is_some()).count());
        let host = &mut self.hosts[at as usize];
        host.active = host.active.saturating_sub(1);
        match ended {
            None => return,
            Some(ended) if ended.is_good() => host.failures = 0,
            Some(_) => host.failures += 1,
        }
        if host.failures < CONSECUTIVE {
            return;
        }
        host.failures = 0;
        if host.ejected.is_none() && (out + 1) * 100 <= EJECTED_PERCENT_MAX * total {
            host.ejected = Some(now);
            if host.times * EJECTION < EJECTION_MAX + EJECTION {
                host.times += 1;
            }
            self.ejections += 1;
        }
    }

    /// Two more tries of what may do better elsewhere.
    pub(in super::super) fn judge(
        Failure { ended, tries, .. }: Failure,
        chance: &mut Chance,
    ) -> Next {
        let retried = match ended {
            Ended::Answered(Answer { status, .. }) => status == 503,
            Ended::Refused | Ended::Reset => true,
            Ended::TimedOut => false,
        };
        if !retried || RETRIES < tries {
            return Next::End { last: false };
        }
        let bound = (BACKOFF << (tries - 1)).min(BACKOFF_MAX);
        Next::Try(Kind::Granted, chance.below(bound))
    }

    /// Hosts come back, and are forgiven, on the sweep only.
    fn sweep(&mut self, now: At) {
        while self.swept + SWEEP <= now {
            self.swept += SWEEP;
            for host in &mut self.hosts {
                match host.ejected {
                    Some(at) if at + (EJECTION * host.times).min(EJECTION_MAX) <= self.swept => {
                        *host = Host { ejected: None, failures: 0, back: self.swept, ..*host };
                    }
                    None if host.back + SWEEP <= self.swept => {
                        host.times = host.times.saturating_sub(1);
                    }
                    Some(_) | None => (),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_fewer_than_ten_hosts_none_is_ever_ejected() {
        for (endpoints, expected) in [(9, 0), (10, 1)] {
            let mut istio = Istio::new(endpoints);
            for at in 0..endpoints {
                (0..10).for_each(|_| istio.settle(at, Some(Ended::Reset), 0));
            }
            assert_eq!(istio.ejections, expected, "{endpoints}");
        }
    }

    #[test]
    fn a_host_comes_back_on_the_sweep_after_its_time() {
        let mut istio = Istio::new(10);
        (0..5).for_each(|_| istio.settle(3, Some(Ended::Reset), SECOND));
        istio.sweep(39 * SECOND);
        assert!(istio.hosts[3].ejected.is_some());
        istio.sweep(40 * SECOND);
        assert!(istio.hosts[3].ejected.is_none());
    }

    #[test]
    fn a_request_is_tried_three_times() {
        let mut chance = Chance::new(1, 1);
        let mut judge =
            |tries| Istio::judge(Failure { ended: Ended::Reset, tries, again: false }, &mut chance);
        assert!(matches!(judge(1), Next::Try(..)) && matches!(judge(2), Next::Try(..)));
        assert_eq!(judge(3), Next::End { last: false });
    }
}
