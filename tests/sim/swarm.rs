//! Swarm: a scenario from a seed, with some kinds of faults left out and the others at
//! wildly different rates.
//!
//! A run in which everything goes wrong a little finds less than one in which something
//! goes very wrong and something else not at all.
//!
//! # Sources
//!
//! - A. Groce and others, *Swarm Testing*, 2012: leaving features out finds more bugs.

use std::{sync::Arc, time::Duration};

use remora::{
    config::scenario::{Arrivals, Fault, Hop, Phase, Spread, Trouble, Work},
    policy::ServicePolicy,
    resilience::{Mode, balancer::Algorithm, breaker::Scope},
    simulate::{Chance, Scenario},
};

const CALM: Duration = Duration::from_secs(2);
const CHAOS: Duration = Duration::from_secs(8);

/// Faults stop, and breakers, budgets and balancers have so long to come round.
pub(super) const RECOVERY: Duration = Duration::from_secs(40);

/// Then everything must be as if nothing had been: longer than the balancer leaves anybody
/// alone for one slow answer.
const AFTER: Duration = Duration::from_secs(20);

/// The scenario of `seed`.
pub(super) fn scenario(seed: u64) -> Scenario {
    let mut chance = Chance::new(seed, 0x7377_6172);
    let chance = &mut chance;
    let arrivals = if chance.percent(75) { Arrivals::Poisson } else { Arrivals::Constant };
    let rate = one_of(chance, &[20, 50, 100, 150]);
    let phase = |name: &str, length, rate| Phase { name: name.into(), length, rate };
    let hops: Vec<_> = (0..one_of(chance, &[1, 1, 2, 3])).map(|it| hop(chance, it)).collect();
    let faults = faults(chance, &hops);
    Scenario {
        seed,
        arrivals,
        callers: one_of(chance, &[1, 2, 3]),
        idempotent_percent: one_of(chance, &[0, 50, 90, 100, 100]),
        network: Duration::from_micros(one_of(chance, &[50, 500, 5_000])),
        phases: vec![
            phase("calm", CALM, rate),
            phase("chaos", CHAOS, rate),
            phase("recovery", RECOVERY, 20),
            phase("after", AFTER, 50),
        ],
        hops,
        faults,
    }
}

fn hop(chance: &mut Chance, at: u32) -> Hop {
    let mean = Duration::from_millis(one_of(chance, &[1, 5, 10]));
    let spread = one_of(chance, &[Spread::Constant, Spread::Exponential, Spread::Lognormal]);
    Hop {
        name: Arc::from(format!("hop{at}")),
        instances: one_of(chance, &[1, 2, 3, 3, 5, 8]),
        workers: one_of(chance, &[16, 32, 100]),
        queue: one_of(chance, &[10, 100, 1_000]),
        work: Work { mean, spread },
        policy: policy(chance),
    }
}

/// The defaults more often than not, since they are what most services have.
fn policy(chance: &mut Chance) -> ServicePolicy {
    let mut policy = ServicePolicy::default();
    policy.timeouts.request = Duration::from_millis(one_of(chance, &[500, 1_000, 5_000]));
    if chance.percent(30) {
        policy.retries.try_timeout = Some(Duration::from_millis(300));
    }
    policy.retries.attempts = one_of(chance, &[0, 1, 2, 2, 2, 5]);
    let resilience = &mut policy.resilience;
    if chance.percent(30) {
        resilience.balancer.algorithm =
            one_of(chance, &[Algorithm::LeastRequest, Algorithm::RoundRobin, Algorithm::Random]);
    }
    if chance.percent(30) {
        resilience.budget.percent = one_of(chance, &[0, 1, 10, 50, 100]);
        resilience.budget.burst = one_of(chance, &[0, 1, 10, 100]);
    }
    if chance.percent(20) {
        resilience.breaker.consecutive_failures = one_of(chance, &[None, Some(1), Some(3)]);
        resilience.breaker.open_for = Duration::from_millis(one_of(chance, &[100, 1_000]));
        resilience.breaker.probes = one_of(chance, &[1, 3]);
    }
    if chance.percent(20) {
        resilience.outlier.max_ejected_percent = one_of(chance, &[0, 10, 30, 99]);
    }
    if chance.percent(10) {
        resilience.breaker.scope = one_of(chance, &[Scope::Service, Scope::Route]);
    }
    let switch = |chance: &mut Chance| one_of(chance, &[Mode::Observe, Mode::Off]);
    if chance.percent(10) {
        resilience.breaker.mode = switch(chance);
    }
    if chance.percent(10) {
        resilience.outlier.mode = switch(chance);
    }
    if chance.percent(10) {
        resilience.admission.mode = switch(chance);
    }
    if chance.percent(20) {
        resilience.hedge.mode = Mode::Enforce;
    }
    policy
}

fn faults(chance: &mut Chance, hops: &[Hop]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for kind in 0..7 {
        // Half of the kinds are left out.
        let many = one_of(chance, &[0, 0, 0, 1, 2, 10]);
        for _ in 0..many {
            let hop = index(chance, hops.len());
            let instances = hops[hop].instances;
            let length = one_of(chance, &[10, 100, 1_000, 8_000]);
            let from = chance.below(8_000 - length + 1);
            let from = CALM + Duration::from_millis(from);
            let some = (0..instances).filter(|_| chance.percent(40)).collect();
            faults.push(Fault {
                hop,
                instances: if chance.percent(20) { Vec::new() } else { some },
                from,
                until: from + Duration::from_millis(length),
                trouble: trouble(chance, kind),
            });
        }
    }
    faults
}

fn trouble(chance: &mut Chance, kind: u32) -> Trouble {
    let warm_up = Duration::from_millis(one_of(chance, &[1, 1_000]));
    match kind {
        0 => Trouble::Slow { factor: one_of(chance, &[2, 10, 100]) },
        1 => Trouble::Error {
            status: one_of(chance, &[500, 502, 503, 504, 429]),
            after: Duration::from_millis(one_of(chance, &[0, 1, 100])),
            percent: one_of(chance, &[1, 10, 50, 100]),
        },
        2 => Trouble::Hang,
        3 => Trouble::Refuse,
        4 => Trouble::Flap { period: Duration::from_millis(one_of(chance, &[10, 500, 3_000])) },
        5 => Trouble::Restart { warm_up },
        _ => Trouble::Crash { warm_up },
    }
}

fn one_of<T: Copy>(chance: &mut Chance, values: &[T]) -> T {
    values[index(chance, values.len())]
}

fn index(chance: &mut Chance, bound: usize) -> usize {
    usize::try_from(chance.below(u64::try_from(bound).unwrap())).unwrap()
}
