//! A mesh in which anything may happen at any time, and what must hold all the while.

use proptest::{collection::vec, prelude::*};

use super::*;

/// Sidecars that come and go.
const SIDECARS: usize = 4;

/// How long a leaf lives, in seconds of the model's clock.
const LIFE: u64 = 40;

#[derive(Clone, Copy, Debug)]
enum Action {
    /// A sidecar's process begins, or asks for its next certificate: it is remembered.
    Ask(usize),
    /// Its request is signed by what is in use at that moment.
    Sign(usize),
    /// The answer arrives, or is lost on the way.
    Answer(usize, bool),
    /// It hears of the bundle of the moment.
    Hear(usize),
    /// It says how it does.
    Report(usize),
    /// Its process ends, without a word.
    Leave(usize),
    /// The network between control and it breaks or heals.
    Cut(usize),
    /// Control shakes hands with it.
    Prove(usize),
    /// Control looks whether to go on.
    Turn,
    /// Control is killed: proofs are gone, and of some sidecars what they said.
    Crash(usize),
    /// Time passes.
    Wait(u64),
    /// An operator begins a rotation, of the root too or not.
    Begin(bool),
    /// An operator gives one up.
    Abort,
}

#[derive(Clone, Debug, Default)]
struct Process {
    running: bool,
    cut: bool,
    /// The issuer of the leaf in use, and when it ends.
    leaf: Option<(Issuer, u64)>,
    sequence: u64,
    roots: String,
    /// The request under way: when what is signed for it ends.
    asked: Option<u64>,
    signed: Option<(Issuer, u64, Bundle)>,
}

struct World {
    now: u64,
    record: Record,
    issuers: usize,
    processes: Vec<Process>,
    fleet: Vec<Option<Sidecar>>,
    proofs: Proofs,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_sidecar_ever_meets_a_leaf_it_does_not_trust(actions in vec(action(), 1..250)) {
        let mut world = World::new();
        for action in actions {
            world.act(action);
            if let Err(reason) = world.check() {
                return Err(TestCaseError::fail(format!("after {action:?}: {reason}")));
            }
        }
    }

    #[test]
    fn a_rotation_ends_when_the_faults_do(actions in vec(action(), 1..150)) {
        let mut world = World::new();
        for action in actions {
            world.act(action);
        }
        let under_way = u64::from(world.record.step != Step::Rest);
        let before = world.record.finished;
        world.settle();
        prop_assert_eq!(world.record.step, Step::Rest);
        prop_assert_eq!(world.record.finished, before + under_way);
        prop_assert!(world.check().is_ok());
    }
}

#[test]
fn the_model_gets_through_whole_rotations() {
    let mut world = World::new();
    (0..SIDECARS).for_each(|at| world.act(Action::Ask(at)));
    for finished in 1..=3 {
        world.act(Action::Begin(true));
        world.settle();
        assert_eq!(world.record.finished, finished);
        assert!(world.processes.iter().all(|it| it.lives(world.now)));
    }
}

fn action() -> impl Strategy<Value = Action> {
    let one = 0..SIDECARS;
    prop_oneof![
        3 => one.clone().prop_map(Action::Ask),
        5 => one.clone().prop_map(Action::Sign),
        5 => (one.clone(), prop::bool::weighted(0.9)).prop_map(|(it, ok)| Action::Answer(it, ok)),
        6 => one.clone().prop_map(Action::Hear),
        8 => one.clone().prop_map(Action::Report),
        1 => one.clone().prop_map(Action::Leave),
        1 => one.clone().prop_map(Action::Cut),
        8 => one.prop_map(Action::Prove),
        12 => Just(Action::Turn),
        1 => (0..1_usize << SIDECARS).prop_map(Action::Crash),
        2 => (1..LIFE / 4).prop_map(Action::Wait),
        2 => any::<bool>().prop_map(Action::Begin),
        1 => Just(Action::Abort),
    ]
}

impl World {
    fn new() -> Self {
        Self {
            now: NOW.as_secs(),
            record: Record::first(issuer(1, 1)),
            issuers: 1,
            processes: vec![Process::default(); SIDECARS],
            fleet: vec![None; SIDECARS],
            proofs: Proofs::new(),
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Ask(at) => self.ask(at),
            Action::Sign(at) => {
                let (signs, bundle) = (self.record.signs.clone(), self.record.bundle.clone());
                let it = &mut self.processes[at];
                it.signed = it.asked.map(|until| (signs, until, bundle));
            }
            Action::Answer(at, arrives) => self.processes[at].answered(arrives),
            Action::Hear(at) if self.processes[at].talks(self.now) => {
                self.processes[at].trust(self.record.bundle.clone());
            }
            Action::Report(at) if self.processes[at].talks(self.now) => self.report(at),
            Action::Leave(at) => {
                let cut = self.processes[at].cut;
                self.processes[at] = Process { cut, ..Process::default() };
            }
            Action::Cut(at) => self.processes[at].cut ^= true,
            Action::Prove(at) if self.record.step == Step::Prove => self.prove(at),
            Action::Hear(_) | Action::Report(_) | Action::Prove(_) => {}
            Action::Turn => self.turn(),
            Action::Crash(lost) => self.crash(lost),
            Action::Wait(time) => self.wait(time),
            Action::Begin(root) => self.begin(root),
            Action::Abort => self.record = self.record.aborted().unwrap_or(self.record.clone()),
        }
    }

    fn ask(&mut self, at: usize) {
        let it = &mut self.processes[at];
        if it.cut || it.asked.is_some() {
            return;
        }
        let until = self.now + LIFE;
        (it.running, it.asked) = (true, Some(until));
        let known = self.fleet[at].get_or_insert_with(|| {
            let blank = sidecar(&at.to_string(), &self.record.signs, 0);
            let report = Report { certificate: Certificate::default(), ..blank.report };
            Sidecar { not_after: until, report, ..blank }
        });
        known.not_after = known.not_after.max(until);
    }

    fn report(&mut self, at: usize) {
        let it = &self.processes[at];
        let Some((known, (issuer, until))) = self.fleet[at].as_mut().zip(it.leaf.as_ref()) else {
            return;
        };
        let (issuer, not_after) = (issuer.fingerprint.clone(), *until);
        known.report.bundle = it.sequence;
        known.report.certificate = Certificate { issuer, not_after, ..Certificate::default() };
    }

    fn prove(&mut self, at: usize) {
        let it = &self.processes[at];
        let Some(known) = &self.fleet[at] else { return };
        let is_new = |(issuer, _): &(Issuer, u64)| *issuer == self.record.signs;
        let shown = it.talks(self.now) && it.leaf.as_ref().is_some_and(is_new);
        let proof = if shown { Ok(()) } else { Err("refused".to_owned()) };
        self.proofs.insert((known.id.clone(), at.to_string()), proof);
    }

    fn turn(&mut self) {
        let known: Vec<_> = self.fleet.iter().flatten().cloned().collect();
        let now = Duration::from_secs(self.now);
        let next = self.record.advance(&known, &self.proofs, now);
        if let Some(next) = next.or_else(|| self.record.cleaned()) {
            if next.step == Step::Renew {
                self.proofs.clear();
            }
            self.record = next;
        }
    }

    fn crash(&mut self, lost: usize) {
        self.proofs.clear();
        for (at, known) in self.fleet.iter_mut().enumerate() {
            if let Some(known) = known.as_mut().filter(|_| lost & (1 << at) != 0) {
                known.report = Report { instance: at.to_string(), ..Report::default() };
            }
        }
    }

    fn wait(&mut self, time: u64) {
        self.now += time;
        for (known, it) in self.fleet.iter_mut().zip(&mut self.processes) {
            if known.as_ref().is_some_and(|known| known.not_after <= self.now) {
                // What was asked for as long ago as a leaf lives is no longer answered.
                (*known, it.asked, it.signed) = (None, None, None);
            }
        }
    }

    fn begin(&mut self, root: bool) {
        let number = self.issuers + 1;
        let root = if root { pem(number) } else { self.record.signs.root.clone() };
        if let Some(begun) = self.record.begun(Issuer { root, ..issuer(number, 0) }) {
            (self.record, self.issuers) = (begun, number);
        }
    }

    /// Everybody is reachable again, and those who left stay away until they are forgotten.
    fn settle(&mut self) {
        for _ in 0..12 {
            for at in 0..SIDECARS {
                self.processes[at].cut = false;
                if self.processes[at].running {
                    self.act(Action::Answer(at, false));
                    self.act(Action::Ask(at));
                    self.act(Action::Sign(at));
                    self.act(Action::Answer(at, true));
                    self.act(Action::Hear(at));
                    self.act(Action::Report(at));
                    self.act(Action::Prove(at));
                }
            }
            self.wait(LIFE / 4);
            self.turn();
        }
    }

    fn check(&self) -> Result<(), String> {
        let live = || self.processes.iter().enumerate().filter(|(_, it)| it.lives(self.now));
        for (at, it) in live() {
            let issuer = &it.leaf.as_ref().unwrap().0;
            if let Some((peer, _)) = live().find(|(_, it)| !it.roots.contains(&issuer.root)) {
                return Err(format!("{peer} does not trust the leaf of {at}"));
            }
            if !it.roots.contains(&self.record.signs.root) {
                return Err(format!("{at} does not trust the leaf of a newcomer"));
            }
            if !self.record.bundle.roots.contains(&issuer.root) {
                return Err(format!("a newcomer does not trust the leaf of {at}"));
            }
        }
        Ok(())
    }
}

impl Process {
    /// Whether it has a leaf that peers are to accept.
    fn lives(&self, now: u64) -> bool {
        self.running && self.leaf.as_ref().is_some_and(|(_, until)| now < *until)
    }

    /// Whether control and it can talk to each other.
    fn talks(&self, now: u64) -> bool {
        self.lives(now) && !self.cut
    }

    fn answered(&mut self, arrives: bool) {
        self.asked = None;
        if let Some((issuer, until, bundle)) = self.signed.take().filter(|_| arrives) {
            self.leaf = Some((issuer, until));
            self.trust(bundle);
        }
    }

    /// An older bundle than its own changes nothing.
    fn trust(&mut self, bundle: Bundle) {
        if self.sequence < bundle.sequence {
            (self.sequence, self.roots) = (bundle.sequence, bundle.roots);
        }
    }
}
