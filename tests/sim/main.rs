//! Simulation: the very `resilience::Service` of the proxy under faults, many times over.
//!
//! What must hold after every event is checked by the simulator itself
//! (`remora::simulate::Violation`); here is what must hold at the end.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod examples;
mod swarm;

use remora::{
    clock,
    simulate::{self, Outcome, Rules, Scenario, Without},
};

const OURS: Rules = Rules::Remora(Without::NOTHING);

/// Seeds that are always run.
const SEEDS: u64 = 200;

#[test]
fn no_swarm_of_faults_breaks_a_promise_even_seeds() {
    report((1..=SEEDS).filter(|it| it % 2 == 0).filter_map(|it| broken(it).err()));
}

#[test]
fn no_swarm_of_faults_breaks_a_promise_odd_seeds() {
    report((1..=SEEDS).filter(|it| it % 2 == 1).filter_map(|it| broken(it).err()));
}

/// `SIM_SEED` is how a failure is seen again, and how a new seed is tried at each commit.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test's own setting")]
fn no_swarm_of_the_seed_in_the_environment_breaks_a_promise() {
    let seed = std::env::var("SIM_SEED").map_or(0, |it| it.parse().unwrap());
    report(broken(seed).err().into_iter());
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 1..=10 {
        let scenario = swarm::scenario(seed);
        assert_eq!(scenario, swarm::scenario(seed));
        for rules in Rules::ALL {
            let (first, second) = (run(&scenario, rules, seed), run(&scenario, rules, seed));
            assert_eq!(first.trace, second.trace, "{rules:?}, seed {seed}");
            assert_eq!(first, second, "{rules:?}, seed {seed}");
            assert_ne!(first.trace, run(&scenario, rules, seed + 1).trace);
        }
    }
}

/// What is wrong with a run of `seed`.
fn broken(seed: u64) -> Result<(), String> {
    let scenario = swarm::scenario(seed);
    let outcome = simulate::run(&scenario, OURS, seed, clock::now())
        .map_err(|violation| describe(seed, &violation.to_string()))?;
    let Some(after) = outcome.phases.last() else { return Ok(()) };
    let seconds = swarm::RECOVERY.as_secs();
    if after.good < after.offered {
        let (good, offered) = (after.good, after.offered);
        let what = format!("{good} of {offered} succeed {seconds} s after the last fault");
        return Err(describe(seed, &what));
    }
    for (hop, copies) in after.tries.iter().enumerate() {
        if copies.contains(&0) {
            let what = format!("hop {hop} {seconds} s after the last fault: {copies:?} tries");
            return Err(describe(seed, &what));
        }
    }
    Ok(())
}

fn describe(seed: u64, what: &str) -> String {
    format!("{what}\n    SIM_SEED={seed} cargo test --test sim environment")
}

fn report(broken: impl Iterator<Item = String>) {
    let broken: Vec<_> = broken.collect();
    assert!(broken.is_empty(), "{} seeds:\n{}", broken.len(), broken.join("\n"));
}

fn run(scenario: &Scenario, rules: Rules, seed: u64) -> Outcome {
    simulate::run(scenario, rules, seed, clock::now()).unwrap()
}
