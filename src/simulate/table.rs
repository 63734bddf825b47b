//! Table: what came of a scenario under several rules, phase by phase.

use std::{fmt::Write, time::Duration};

use super::{Outcome, Rules, Scenario, tally::Phase};

/// One table for each phase, and for a chain how much each rules amplify the load at its
/// end.
pub fn table(scenario: &Scenario, outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    let mut from = Duration::ZERO;
    for (at, phase) in scenario.phases.iter().enumerate() {
        let until = from + phase.length;
        let (begin, end) = (from.as_secs_f64(), until.as_secs_f64());
        let name = &phase.name;
        let separator = if at == 0 { "" } else { "\n" };
        write_line(
            &mut text,
            format_args!("{separator}{name}: {begin} s to {end} s, {} requests/s", phase.rate),
        );
        write_line(
            &mut text,
            format_args!(
                "  {:<12} {:>9} {:>14} {:>10} {:>10} {:>13} {:>10}",
                "rules", "goodput", "amplification", "p50", "p99", "to the faulty", "ejections"
            ),
        );
        for outcome in outcomes {
            if let Some(phase) = outcome.phases.get(at) {
                row(&mut text, outcome.rules, phase);
            }
        }
        from = until;
    }
    text
}

fn row(text: &mut String, rules: Rules, phase: &Phase) {
    let goodput = format!("{:.1} %", 100.0 * phase.goodput());
    let amplification = format!("{:.2}×", phase.amplification());
    let latency = |percent| {
        phase
            .latency(percent)
            .map_or("-".to_owned(), |it| format!("{:.1} ms", it.as_secs_f64() * 1_000.0))
    };
    let (p50, p99) = (latency(50), latency(99));
    let bad = phase.bad_share().map_or("-".to_owned(), |it| format!("{:.1} %", 100.0 * it));
    let (name, ejections) = (rules.name(), phase.ejections);
    write_line(
        text,
        format_args!(
            "  {name:<12} {goodput:>9} {amplification:>14} {p50:>10} {p99:>10} {bad:>13} \
             {ejections:>10}"
        ),
    );
}

/// The last line: how many tries reach the end of the chain for each request, in the worst
/// phase, under our rules and the peers'; nothing unless all three were run.
pub fn amplification(outcomes: &[Outcome]) -> Option<String> {
    let of = |rules: Rules| {
        let found = outcomes.iter().find(|it| it.rules == rules);
        found.map(Outcome::amplification)
    };
    let is_ours = |it: &&Outcome| matches!(it.rules, Rules::Remora(_));
    let ours = outcomes.iter().find(is_ours)?.amplification();
    let (istio, linkerd) = (of(Rules::Istio)?, of(Rules::Linkerd)?);
    Some(format!("amplification: {ours:.2}× (peers: istio {istio:.2}×, linkerd {linkerd:.2}×)"))
}

fn write_line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _infallible = writeln!(text, "{line}");
}
