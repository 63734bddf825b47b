//! Simulate: a scenario under our rules and the peers', from the command line.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use crate::{
    clock,
    config::scenario,
    simulate::{self, Mechanism, Rules, Without},
};

/// What to simulate, and how.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The scenario, as in examples/simulate.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// All chance comes from this number instead of the scenario's own.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Whose rules the callers keep: remora, istio, linkerd, gobreaker, none, or all. Or
    /// mechanisms: ours, and ours without each mechanism in turn.
    #[arg(long, value_name = "NAME", default_value = "all", value_parser = rules)]
    rules: Chosen,

    /// Mechanisms of ours to leave out, separated by commas: admission, breaker, budget,
    /// chain, deadline, latency, retries.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = mechanism)]
    without: Vec<Mechanism>,
}

/// Some rules.
#[derive(Clone, Debug)]
struct Chosen(Vec<Rules>);

/// Simulates, and writes a table for each phase.
pub(super) fn run(args: &Args, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<ExitCode> {
    let bytes = match std::fs::read(&args.file) {
        Ok(bytes) => bytes,
        Err(error) => {
            let file = args.file.display();
            writeln!(err, "error: {file}: cannot be read: {error}\nhint: name a scenario")?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let scenario = match scenario::read(&bytes, &args.file) {
        Ok(scenario) => scenario,
        Err(errors) => {
            writeln!(err, "{errors}")?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let seed = args.seed.unwrap_or(scenario.seed);
    let origin = clock::now();
    let without = |without: Without| args.without.iter().fold(without, |all, it| all.and(*it));
    let mut outcomes = Vec::new();
    for rules in &args.rules.0 {
        let ours = |it| Rules::Remora(without(it));
        let rules = if let Rules::Remora(it) = *rules { ours(it) } else { *rules };
        match simulate::run(&scenario, rules, seed, origin) {
            Ok(outcome) => outcomes.push(outcome),
            Err(violation) => {
                writeln!(err, "error: a promise was broken: {violation}")?;
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    write!(out, "{}", simulate::table(&scenario, &outcomes))?;
    if let Some(line) = simulate::amplification(&outcomes)
        && 1 < scenario.hops.len()
    {
        writeln!(out, "\n{line}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn rules(text: &str) -> Result<Chosen, String> {
    if text == "mechanisms" {
        let one = |it| Rules::Remora(Without::NOTHING.and(it));
        let ours = [Rules::Remora(Without::NOTHING)];
        return Ok(Chosen(ours.into_iter().chain(Mechanism::ALL.map(one)).collect()));
    }
    let found = Rules::ALL.into_iter().filter(|it| text == "all" || it.name() == text);
    let found: Vec<_> = found.collect();
    if found.is_empty() {
        let names = Rules::ALL.map(Rules::name);
        return Err(format!("one of: {}, all, mechanisms", names.join(", ")));
    }
    Ok(Chosen(found))
}

fn mechanism(text: &str) -> Result<Mechanism, String> {
    let found = Mechanism::ALL.into_iter().find(|it| it.name() == text);
    let names = || Mechanism::ALL.map(Mechanism::name).join(", ");
    found.ok_or_else(|| format!("one of: {}", names()))
}
