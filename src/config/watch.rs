//! Watch: the policy in force is always the last one that was good as a whole.
//!
//! A change in the folder is read 100 ms after it is noticed, as a whole, and becomes the
//! policy in force in one swap, or not at all. Readers take the snapshot once and keep it;
//! what did not change between two generations is the same [`Arc`] in both, so that what
//! hangs on it need not be built anew.
//!
//! The *folder* is watched, and not its files: Kubernetes swaps a link, editors rename
//! over. The folder above is watched too, for the folder may come, go or be replaced. And
//! all of it is read again every 30 s, since a notice can be lost.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::{select, sync::Notify, task::spawn_blocking, time::sleep};

use self::eyes::Eyes;
use super::{
    Context, Errors, Loaded, Problem, folder, load_files,
    report::{Complaint, Report},
    understand,
};
use crate::{clock, policy::Snapshot};

mod eyes;

/// How long a change may go on before it is read: an editor's or a `kubectl cp`'s many
/// steps become one.
const SETTLE: Duration = Duration::from_millis(100);

/// How often the folder is read though nothing was noticed.
const REREAD: Duration = Duration::from_secs(30);

/// The policy in force; cheap to clone, and all clones see the same.
#[derive(Clone, Debug)]
pub struct Policies {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: Option<PathBuf>,
    context: Context,
    current: ArcSwap<Snapshot>,
    status: Mutex<Status>,
    /// What the last reading found; held during a reading, so that there is one at a time.
    seen: Mutex<Option<Seen>>,
}

/// What a reading found, to know whether the next one finds something else.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Files(u64),
    Unreadable(io::ErrorKind),
}

/// How the policy folder is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Of the policy in force; 0 where no documents were accepted yet.
    pub generation: u64,
    /// Why the newest documents are not in force, a line and its hint each.
    pub last_error: Option<String>,
    /// What looks like a mistake in what is in force.
    pub warnings: Vec<String>,
    /// When this became so, since the Unix epoch.
    pub since: Duration,
}

/// What came of a change in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The documents are in force.
    Accepted {
        /// Of the policy that is now in force.
        generation: u64,
        /// What looks like a mistake in it.
        warnings: Vec<Problem>,
    },
    /// The documents were refused; the last good ones stay in force.
    Refused {
        /// Everything that is wrong with them.
        errors: Errors,
    },
}

impl Policies {
    /// Loads the folder; the errors are why the defaults are in force instead.
    ///
    /// A folder that is not there yet is an empty one, and a warning of [`Policies::status`].
    pub fn load(dir: Option<&Path>, context: Context) -> (Self, Option<Errors>) {
        let shared = Shared {
            folder: dir.map(Path::to_owned),
            context,
            current: ArcSwap::default(),
            status: Mutex::new(Status { since: clock::wall(), ..Status::default() }),
            seen: Mutex::new(None),
        };
        let errors = match shared.reload() {
            Some(Event::Refused { errors }) => Some(errors),
            Some(Event::Accepted { .. }) | None => None,
        };
        (Self { shared: Arc::new(shared) }, errors)
    }

    /// The policy in force.
    pub fn current(&self) -> Arc<Snapshot> {
        self.shared.current.load_full()
    }

    /// The generation of the policy in force.
    pub fn generation(&self) -> u64 {
        self.shared.current.load().generation
    }

    /// How the policy folder is doing.
    pub fn status(&self) -> Status {
        self.shared.status.lock().clone()
    }

    /// Whether the documents in `files`, by name, could be in force here.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with them.
    pub fn check(&self, files: &BTreeMap<String, String>) -> Result<(), Errors> {
        load_files(files, &self.shared.context).map(drop)
    }

    /// Reads the folder now, for who has just written it; nothing where it is as it was.
    ///
    /// What it returns is not told to [`Policies::watch`]'s caller as well.
    pub fn reload(&self) -> Option<Event> {
        self.shared.reload()
    }

    /// Keeps the policy in force up to date; never returns.
    ///
    /// `on_event` is told what came of each change, after it is in force.
    ///
    /// # Cancel safety
    ///
    /// Safe: the policy in force stays.
    pub async fn watch(self, on_event: impl Fn(&Event) + Send + 'static) {
        self.watch_every(REREAD, on_event).await;
    }

    async fn watch_every(self, reread: Duration, on_event: impl Fn(&Event) + Send + 'static) {
        let Some(folder) = self.shared.folder.clone() else { return std::future::pending().await };
        let shared = self.shared;
        let reload = move || shared.reload();
        let told = move |event: Option<Event>| event.iter().for_each(&on_event);
        follow_every(&folder, reread, reload, told).await;
    }
}

/// Has `folder` read whenever something may have changed in it, and every 30 s; never returns.
///
/// `read` runs on a thread that may wait for a disk, the first time at once; what it finds
/// goes to `found`.
///
/// # Cancel safety
///
/// Safe: a reading under way comes to its end, and nobody is told.
pub async fn follow<T: Send + 'static>(
    folder: &Path,
    read: impl Fn() -> T + Clone + Send + 'static,
    found: impl FnMut(T) + Send,
) {
    follow_every(folder, REREAD, read, found).await;
}

async fn follow_every<T: Send + 'static>(
    folder: &Path,
    reread: Duration,
    read: impl Fn() -> T + Clone + Send + 'static,
    mut found: impl FnMut(T) + Send,
) {
    let noticed = Arc::new(Notify::new());
    let mut eyes = Eyes::new(folder, Arc::clone(&noticed));
    loop {
        let read = read.clone();
        let step = spawn_blocking(move || {
            // In this order, a change between the two is noticed after it was read.
            eyes.look();
            (eyes, read())
        });
        eyes = match step.await {
            Ok((eyes, it)) => {
                found(it);
                eyes
            }
            // The reading panicked, or the runtime is being shut down.
            Err(_) => Eyes::new(folder, Arc::clone(&noticed)),
        };
        select! {
            () = noticed.notified() => sleep(SETTLE).await,
            () = sleep(reread) => (),
        }
        // What was noticed meanwhile is in the next reading.
        let _was_noticed = pin!(noticed.notified()).enable();
    }
}

impl Shared {
    /// Reads the folder; `None` where nothing came of it.
    fn reload(&self) -> Option<Event> {
        let folder = self.folder.as_ref()?;
        let mut last = self.seen.lock();
        let found = folder::read(folder);
        let seen = match &found {
            Ok(sources) => Seen::Files(folder::fingerprint(sources)),
            Err(error) => Seen::Unreadable(error.kind()),
        };
        if last.as_ref() == Some(&seen) {
            return None;
        }
        let is_first = last.replace(seen).is_none();
        let loaded = match found {
            Ok(sources) => understand(&sources, &self.context, Report::default()),
            Err(error) if is_first && error.kind() == io::ErrorKind::NotFound => {
                let message = "the policy folder is not there yet: the defaults are in force";
                self.status.lock().warnings = vec![format!("{}: {message}", folder.display())];
                return None;
            }
            Err(error) => {
                let message = format!("the policy folder cannot be read: {error}");
                let hint = "put it back; the policy in force stays until then";
                let mut report = Report::default();
                report
                    .error(folder::whole(&folder.as_path().into()), Complaint::new(message, hint));
                understand(&[], &self.context, report)
            }
        };
        Some(match loaded {
            Ok(loaded) => self.accept(loaded),
            Err(errors) => self.refuse(errors),
        })
    }

    fn accept(&self, loaded: Loaded) -> Event {
        let Loaded { mut snapshot, warnings, .. } = loaded;
        let before = self.current.load();
        let generation = before.generation + 1;
        snapshot.generation = generation;
        for (name, new) in &mut snapshot.services {
            keep(new, before.services.get(name));
        }
        for (name, new) in &mut snapshot.routes {
            keep(new, before.routes.get(name));
        }
        keep(&mut snapshot.workload, Some(&before.workload));
        self.current.store(Arc::new(snapshot));
        *self.status.lock() = Status {
            generation,
            last_error: None,
            warnings: warnings.iter().map(Problem::to_string).collect(),
            since: clock::wall(),
        };
        Event::Accepted { generation, warnings }
    }

    fn refuse(&self, errors: Errors) -> Event {
        let mut status = self.status.lock();
        status.last_error = Some(errors.to_string());
        status.since = clock::wall();
        Event::Refused { errors }
    }
}

/// Makes `new` the very value it was before, if it did not change.
fn keep<T: PartialEq>(new: &mut Arc<T>, before: Option<&Arc<T>>) {
    if let Some(before) = before.filter(|it| *it == new) {
        *new = Arc::clone(before);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;
    use tokio::sync::mpsc;

    use super::*;

    const STRICT: &str = "
apiVersion: remora.dev/v1alpha1
kind: WorkloadPolicy
metadata: {name: all}
spec: {mtls: {mode: strict}}
";

    #[tokio::test]
    async fn a_change_nobody_noticed_is_found_by_the_next_reading() {
        let (folder, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let file = elsewhere.path().join("all.yaml");
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, folder.path().join("all.yaml")).unwrap();
        let (policies, errors) = Policies::load(Some(folder.path()), context());
        assert_eq!(errors, None);
        let (sender, mut events) = mpsc::channel(8);
        let watching =
            policies.clone().watch_every(Duration::from_millis(5), move |event: &Event| {
                sender.try_send(event.clone()).unwrap();
            });
        // Behind a link, where no watch is.
        fs::write(&file, STRICT).unwrap();
        select! {
            () = watching => (),
            event = events.recv() => {
                assert_eq!(event, Some(Event::Accepted { generation: 2, warnings: Vec::new() }));
            }
        }
        assert_eq!(policies.generation(), 2);
    }

    #[test]
    fn what_did_not_change_is_the_same_in_both_generations() {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("a.yaml"), STRICT).unwrap();
        let (policies, _) = Policies::load(Some(folder.path()), context());
        let before = policies.current();
        fs::write(folder.path().join("b.yaml"), "# more\n").unwrap();
        assert!(policies.shared.reload().is_some());
        let after = policies.current();
        assert_eq!((before.generation, after.generation), (1, 2));
        assert!(Arc::ptr_eq(&before.workload, &after.workload));
    }

    #[test]
    fn reading_the_same_again_is_no_generation() {
        let folder = TempDir::new().unwrap();
        let (policies, _) = Policies::load(Some(folder.path()), context());
        assert_eq!(policies.shared.reload(), None);
        assert_eq!(policies.generation(), 1);
    }

    fn context() -> Context {
        Context { namespace: "shop".to_owned(), service_account: None, zone: None }
    }
}
