//! Health: whether the pod may get traffic, and what is missing where not.
//!
//! Ready is the conjunction of named conditions, each set by who knows. What is degraded
//! but served is a note: a policy folder with a mistake in it leaves the old policy in force,
//! and must not take every pod of a deployment out at once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use serde_json::json;

/// What has to hold for a pod to be ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// The listeners are bound.
    Listeners,
    /// A certificate is in use.
    Identity,
    /// A generation of policy is in force.
    Policy,
    /// The pod's traffic comes through here.
    Capture,
    /// Control can be heard; it only ever has notes, since a pod goes on without it.
    Control,
}

impl Condition {
    /// Its name in a report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Listeners => "listeners",
            Self::Identity => "identity",
            Self::Policy => "policy",
            Self::Capture => "capture",
            Self::Control => "control",
        }
    }
}

/// The conditions of one process. Cheap to clone; clones are one.
#[derive(Clone, Debug)]
pub struct Health {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    conditions: Mutex<BTreeMap<Condition, Standing>>,
    started: AtomicBool,
}

#[derive(Clone, Debug)]
struct Standing {
    holds: Result<(), String>,
    note: Option<String>,
}

/// The conditions at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What does not hold, and why.
    pub missing: Vec<(&'static str, String)>,
    /// What holds and is not as it should be.
    pub notes: Vec<(&'static str, String)>,
}

impl Health {
    /// Health that depends on `needed`, of which nothing holds yet.
    pub fn new(needed: impl IntoIterator<Item = Condition>) -> Self {
        let waiting = || Standing { holds: Err("not yet".into()), note: None };
        let conditions = needed.into_iter().map(|it| (it, waiting())).collect();
        let inner = Inner { conditions: Mutex::new(conditions), started: AtomicBool::new(false) };
        let health = Self { inner: inner.into() };
        health.see();
        health
    }

    /// Says whether a condition holds, and why not. One that is not needed is passed over.
    pub fn set(&self, condition: Condition, holds: Result<(), String>) {
        if let Some(standing) = self.inner.conditions.lock().get_mut(&condition) {
            standing.holds = holds;
        }
        self.see();
    }

    /// Says that a condition is not as it should be, without making the pod unready for it.
    pub fn note(&self, condition: Condition, note: Option<String>) {
        if let Some(standing) = self.inner.conditions.lock().get_mut(&condition) {
            standing.note = note;
        }
    }

    /// Whether it has been ready once.
    pub fn has_started(&self) -> bool {
        self.inner.started.load(Ordering::Acquire)
    }

    /// The conditions now. A process that drains is not ready.
    pub fn report(&self, draining: bool) -> Report {
        let conditions = self.inner.conditions.lock();
        let missing = conditions.iter().filter_map(|(condition, it)| {
            Some((condition.as_str(), it.holds.as_ref().err()?.clone()))
        });
        let drain = draining.then(|| ("draining", "the pod is shutting down".into()));
        let notes = conditions
            .iter()
            .filter_map(|(condition, it)| Some((condition.as_str(), it.note.clone()?)));
        Report { missing: missing.chain(drain).collect(), notes: notes.collect() }
    }

    /// Remembers a start, if this is one.
    fn see(&self) {
        let ready = self.inner.conditions.lock().values().all(|it| it.holds.is_ok());
        self.inner.started.fetch_or(ready, Ordering::AcqRel);
    }
}

impl Report {
    /// Whether the pod may get traffic.
    pub fn is_ready(&self) -> bool {
        self.missing.is_empty()
    }

    /// As a JSON object, with a line feed.
    pub fn to_json(&self) -> String {
        let list = |it: &[(&str, String)]| -> Vec<_> {
            it.iter()
                .map(|(condition, why)| json!({"condition": condition, "detail": why}))
                .collect()
        };
        let (missing, notes) = (list(&self.missing), list(&self.notes));
        json!({"ready": self.is_ready(), "missing": missing, "notes": notes}).to_string() + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_every_condition_holds() {
        let health = Health::new([Condition::Identity, Condition::Policy]);
        health.set(Condition::Policy, Ok(()));
        assert_eq!(health.report(false).missing, [("identity", "not yet".into())]);
        health.set(Condition::Identity, Ok(()));
        assert!(health.report(false).is_ready() && !health.report(true).is_ready());
    }

    #[test]
    fn a_start_is_remembered() {
        let health = Health::new([Condition::Identity]);
        assert!(!health.has_started());
        health.set(Condition::Identity, Ok(()));
        health.set(Condition::Identity, Err("certificate expired".into()));
        assert!(health.has_started() && !health.report(false).is_ready());
    }

    #[test]
    fn a_condition_that_is_not_needed_cannot_make_a_pod_unready() {
        let health = Health::new([]);
        health.set(Condition::Capture, Err("no rules".into()));
        assert!(health.report(false).is_ready() && health.has_started());
    }

    #[test]
    fn a_note_leaves_a_pod_ready() {
        let health = Health::new([Condition::Policy]);
        health.set(Condition::Policy, Ok(()));
        health.note(Condition::Policy, Some("a.yaml:3:1: unknown field `x`".into()));
        let report = health.report(false);
        assert!(report.is_ready());
        assert_eq!(
            report.to_json(),
            concat!(
                r#"{"missing":[],"notes":[{"condition":"policy","#,
                r#""detail":"a.yaml:3:1: unknown field `x`"}],"ready":true}"#,
                "\n"
            )
        );
    }
}
