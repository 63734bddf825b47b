//! Examples: what each scenario of `examples/simulate` is there to show.

use std::path::Path;

use remora::{
    config::scenario,
    simulate::{Outcome, Rules, Scenario},
};

use super::{OURS, run};

#[test]
fn an_outage_at_the_end_of_a_chain_is_hardly_amplified() {
    let scenario = example("three-hop-outage");
    let ours = run(&scenario, OURS, scenario.seed);
    assert!(ours.amplification() <= 1.3, "{}", ours.amplification());
    let istio = run(&scenario, Rules::Istio, scenario.seed).amplification();
    assert!(ours.amplification() < istio, "istio {istio}");
    let (at_first, later) = (ours.phases[2].goodput(), ours.phases[3].goodput());
    assert!(0.75 <= at_first && 0.999 <= later, "{at_first} {later}");
}

#[test]
fn an_endpoint_that_hangs_gets_less_than_one_percent_after_ten_seconds() {
    let scenario = example("one-of-three-hangs");
    let ours = run(&scenario, OURS, scenario.seed);
    let share = ours.phases[2].bad_share().unwrap();
    assert!(share < 0.01, "{share}");
    assert!(0.995 <= ours.phases[2].goodput(), "{}", ours.phases[2].goodput());
    assert!(0.999 <= recovered(&ours), "{}", recovered(&ours));
    assert!(ours.phases[3].tries[0].iter().all(|it| 50 < *it), "{:?}", ours.phases[3].tries);
}

#[test]
fn an_endpoint_of_fast_503s_gets_less_than_five_percent() {
    let scenario = example("fast-503");
    let ours = run(&scenario, OURS, scenario.seed);
    let share = ours.phases[1].bad_share().unwrap();
    assert!(share < 0.05, "{share}");
    assert!(0.999 <= ours.phases[1].goodput(), "{}", ours.phases[1].goodput());
}

#[test]
fn nothing_fails_in_a_rolling_restart() {
    let scenario = example("rolling-restart");
    let ours = run(&scenario, OURS, scenario.seed);
    for phase in &ours.phases {
        assert_eq!(phase.good, phase.offered);
    }
}

#[test]
fn an_overload_ends_when_the_load_does() {
    let scenario = example("overload");
    let ours = run(&scenario, OURS, scenario.seed);
    assert!(ours.amplification() <= 1.3, "{}", ours.amplification());
    // Two thirds is what it can do.
    assert!(0.66 <= ours.phases[1].goodput(), "{}", ours.phases[1].goodput());
    assert!(0.999 <= recovered(&ours), "{}", recovered(&ours));
}

fn example(name: &str) -> Scenario {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/simulate");
    let path = path.join(format!("{name}.yaml"));
    scenario::read(&std::fs::read(&path).unwrap(), &path).unwrap()
}

/// The share of good requests in the last phase.
fn recovered(outcome: &Outcome) -> f64 {
    outcome.phases.last().unwrap().goodput()
}
