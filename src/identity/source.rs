//! Source: the folder an identity is read from, and followed.
//!
//! Another process writes `tls.crt`, `tls.key` and `ca.crt`: kubelet or `remora-control`
//! by swapping `..data`, others by renaming over, an editor in place. So the *directory* is
//! watched, changes are left to settle, and the three are used only when they belong
//! together, are valid now and vouch for each other. Anything else leaves the SVID in use
//! alone and is told once, when it begins.
//!
//! Watching may miss something: a directory that was replaced, a link to elsewhere, a file
//! system without notifications. So the files are read again every 30 s all the same.
//!
//! # Sources
//!
//! - inotify(7): renames, and why directories are watched rather than files

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use parking_lot::Mutex;
use remora_certs::{
    bundle::{self, Bundle},
    folder,
    spiffe_id::SpiffeId,
    svid::{self, Svid},
};
use rustls::{
    client::verify_server_cert_signed_by_trust_anchor,
    pki_types::UnixTime,
    server::{ParsedCertificate, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio::{sync::Notify, time};

use super::{
    Event, Material,
    svid::{Current, Store},
    tls,
};
use crate::clock;

/// What an identity is made of.
pub(super) const FILES: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];

/// A change has settled when nothing happened for so long.
const QUIET: Duration = Duration::from_millis(50);

/// A folder that never is quiet is read all the same, after so many waits of [`QUIET`].
const QUIET_WAITS_MAX: u32 = 20;

/// How often to read without being told of a change.
const REREAD: Duration = Duration::from_secs(30);

/// How often to try again to watch a directory that could not be.
const REARM: Duration = Duration::from_secs(1);

/// Why the files of a folder are not an identity.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is missing or unreadable.
    #[error(transparent)]
    Files(#[from] folder::Error),
    /// Certificate and key are damaged or do not belong together.
    #[error("`tls.crt` and `tls.key` are no identity: {0}")]
    Svid(svid::Error),
    /// The trust roots are damaged.
    #[error("`ca.crt` is no trust bundle: {0}")]
    Roots(bundle::Error),
    /// The certificate has ended.
    #[error("the certificate of `{id}` ended {} seconds ago", .ago.as_secs())]
    Ended {
        /// Whose it is.
        id: SpiffeId,
        /// How long ago.
        ago: Duration,
    },
    /// The certificate has not begun.
    #[error("the certificate of `{id}` begins in {} seconds", .wait.as_secs())]
    NotBegun {
        /// Whose it is.
        id: SpiffeId,
        /// When.
        wait: Duration,
    },
    /// The roots beside the certificate do not vouch for it: files of two authorities.
    #[error("the roots in `ca.crt` do not vouch for the certificate of `{id}`: {reason}")]
    Untrusted {
        /// Whose it is.
        id: SpiffeId,
        /// What rustls says.
        reason: rustls::Error,
    },
    /// rustls cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(rustls::Error),
}

impl Error {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Files(_) => {
                "the folder must hold `tls.crt`, `tls.key` and `ca.crt`; \
                 `remora-control issue --out FOLDER` writes them"
            }
            Self::Svid(_) => {
                "write certificate and key together, by a swap of `..data` as \
                 `remora-control issue` does"
            }
            Self::Roots(_) => "`ca.crt` must hold the root certificates in PEM, and nothing else",
            Self::Ended { .. } => "issue a new certificate, or set the clock right",
            Self::NotBegun { .. } => "set this machine's clock, or the issuer's, right",
            Self::Untrusted { .. } => {
                "`tls.crt` must hold leaf and issuer, and `ca.crt` the root above them"
            }
            Self::Tls(_) => "this is a bug of Remora: report it",
        }
    }
}

/// Three files that were found to be an identity.
pub(super) struct Set {
    svid: Svid,
    roots: Bundle,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Set {
    fn into_current(self, generation: u64) -> Current {
        Current { generation, svid: self.svid, roots: self.roots, clients: self.clients }
    }
}

impl From<Set> for Material {
    fn from(Set { svid, roots, .. }: Set) -> Self {
        Self { svid, roots }
    }
}

/// The folder, and what was made of its files so far.
#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    examined: Mutex<Examined>,
    last_error: ArcSwapOption<Error>,
}

/// Fingerprints of files.
#[derive(Debug)]
struct Examined {
    /// Those of the SVID in use.
    in_use: u64,
    /// The newest.
    newest: u64,
}

/// What reading a folder gives: the contents, wiped when dropped.
pub(super) type Files = Result<[folder::Content; 3], folder::Error>;

impl Folder {
    /// Reads the folder for the first time.
    pub(super) fn open(dir: &Path, now: Duration) -> Result<(Self, Store), Error> {
        let files = folder::read(dir, FILES);
        let fingerprint = fingerprint(&files);
        let store = Store::new(examine(files, now)?.into_current(1))?;
        let examined = Mutex::new(Examined { in_use: fingerprint, newest: fingerprint });
        Ok((Self { dir: dir.to_owned(), examined, last_error: ArcSwapOption::empty() }, store))
    }

    pub(super) fn last_error(&self) -> Option<Arc<Error>> {
        self.last_error.load_full()
    }

    /// Reads the folder again and acts on what changed, if anything did.
    pub(super) fn reload(&self, store: &Store, now: Duration) -> Option<Event> {
        let mut examined = self.examined.lock();
        let files = folder::read(&self.dir, FILES);
        let fingerprint = fingerprint(&files);
        let changed = std::mem::replace(&mut examined.newest, fingerprint) != fingerprint;
        if fingerprint == examined.in_use {
            return self.last_error.swap(None).map(|_| Event::Restored);
        }
        // What was refused may have become good with time, so it is examined every time.
        match examine(files, now) {
            Ok(set) => {
                let generation = store.current().generation + 1;
                let not_after = set.svid.not_after();
                store.rotate(set.into_current(generation));
                examined.in_use = fingerprint;
                self.last_error.store(None);
                Some(Event::Rotated { generation, not_after })
            }
            Err(error) => {
                let error = Arc::new(error);
                self.last_error.store(Some(Arc::clone(&error)));
                changed.then_some(Event::Refused { error })
            }
        }
    }

    /// Follows the folder until dropped.
    pub(super) async fn follow(&self, store: &Store, on_event: impl Fn(&Event) + Send) {
        let mut watch = Watch::default();
        loop {
            // Armed before reading: a change in between is a reason to read again.
            let wait = if watch.arm(&self.dir) { REREAD } else { REARM };
            if let Some(event) = self.reload(store, clock::wall()) {
                on_event(&event);
            }
            if time::timeout(wait, watch.changed.notified()).await.is_ok() {
                watch.settle().await;
            }
        }
    }
}

/// Decides whether three files are an identity at `now`.
pub(super) fn examine(files: Files, now: Duration) -> Result<Set, Error> {
    let [chain, key, roots] = files?;
    let svid = Svid::from_pem(&chain, &key).map_err(Error::Svid)?;
    let roots = Bundle::from_pem(&roots).map_err(Error::Roots)?;
    let id = || svid.id().clone();
    if now < svid.not_before() {
        return Err(Error::NotBegun { id: id(), wait: svid.not_before().saturating_sub(now) });
    }
    if svid.not_after() <= now {
        return Err(Error::Ended { id: id(), ago: now.saturating_sub(svid.not_after()) });
    }
    let clients = clients_of(&roots)?;
    vouched_for(&svid, &roots, &*clients, now)
        .map_err(|reason| Error::Untrusted { id: id(), reason })?;
    Ok(Set { svid, roots, clients })
}

/// An SVID that comes from no folder; who made it answers for its being one of `roots`.
pub(super) fn of_parts(svid: Svid, roots: Bundle) -> Result<Current, Error> {
    let clients = clients_of(&roots)?;
    Ok(Current { generation: 1, svid, roots, clients })
}

/// rustls' own check of a client's chain against `roots`.
fn clients_of(roots: &Bundle) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    WebPkiClientVerifier::builder_with_provider(
        Arc::clone(roots.store()),
        Arc::new(tls::provider()),
    )
    .build()
    .map_err(|error| Error::Tls(rustls::Error::General(error.to_string())))
}

/// Whether peers with the same roots would accept `svid` on both sides.
fn vouched_for(
    svid: &Svid,
    roots: &Bundle,
    clients: &dyn ClientCertVerifier,
    now: Duration,
) -> Result<(), rustls::Error> {
    let (leaf, rest) = svid.chain().split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
    let now = UnixTime::since_unix_epoch(now);
    let algorithms = tls::provider().signature_verification_algorithms.all;
    let parsed = ParsedCertificate::try_from(leaf)?;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots.store(), rest, now, algorithms)?;
    clients.verify_client_cert(leaf, rest, now).map(|_| ())
}

/// Tells files apart without keeping a copy of a key.
fn fingerprint(files: &Files) -> u64 {
    match files {
        Ok(files) => fingerprint_of(files),
        Err(error) => hash(error.to_string()),
    }
}

/// The same, of files that could be read.
pub(super) fn fingerprint_of(files: &[folder::Content; 3]) -> u64 {
    hash(files.each_ref().map(|it| it.as_slice()))
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// A watch on a directory, as far as one could be had.
#[derive(Debug, Default)]
struct Watch {
    changed: Arc<Notify>,
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of the directory being watched.
    directory: Option<(u64, u64)>,
}

impl Watch {
    /// Watches `dir`, again if it is another directory than before; whether it can.
    fn arm(&mut self, dir: &Path) -> bool {
        let directory = fs::metadata(dir).ok().map(|it| (it.dev(), it.ino()));
        if directory.is_none() || directory != self.directory {
            self.directory = directory;
            self.watcher = watcher(dir, Arc::clone(&self.changed)).ok();
        }
        self.watcher.is_some()
    }

    /// Waits until nothing more changes.
    async fn settle(&self) {
        for _ in 0..QUIET_WAITS_MAX {
            if time::timeout(QUIET, self.changed.notified()).await.is_err() {
                return;
            }
        }
    }
}

fn watcher(dir: &Path, changed: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // An error may stand for changes that were lost.
        if event.map_or(true, |it| is_change(it.kind)) {
            changed.notify_one();
        }
    })?;
    watcher.watch(dir, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// Whether an event may mean new content; our own reading must not.
fn is_change(kind: EventKind) -> bool {
    let wrote = EventKind::Access(AccessKind::Close(AccessMode::Write));
    kind == wrote || !kind.is_access()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use notify::event::{DataChange, ModifyKind, RemoveKind};
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        drain,
        identity::{
            Identity,
            testing::{DAY, Mesh},
        },
    };

    #[test]
    fn three_files_make_an_identity() {
        let mesh = Mesh::new();
        let identity = mesh.identity("orders");
        assert_eq!(identity.id().as_str(), "spiffe://td/ns/shop/sa/orders");
        assert_eq!(identity.generation(), 1);
        assert!(identity.last_error().is_none());
        let left = identity.not_after().saturating_sub(clock::wall());
        assert!(left <= DAY && Duration::from_hours(23) < left);
    }

    #[test]
    fn a_first_load_that_fails_says_why_and_what_to_do() {
        let (mesh, stranger) = (Mesh::new(), Mesh::new());
        let other = stranger.issue("orders");
        for (file, content, message) in [
            ("tls.crt", None, "cannot read"),
            ("ca.crt", None, "cannot read"),
            ("tls.key", Some(String::new()), "no private key in the key file"),
            ("tls.crt", Some("garbage".into()), "no certificate in the certificate file"),
            ("ca.crt", Some(String::new()), "no certificate in the trust bundle"),
            ("tls.key", Some(text(&other, "tls.key")), "does not belong to the certificate"),
            ("ca.crt", Some(text(&other, "ca.crt")), "do not vouch for the certificate of"),
        ] {
            let dir = plain(&mesh);
            match content {
                Some(content) => fs::write(dir.path().join(file), content).unwrap(),
                None => fs::remove_file(dir.path().join(file)).unwrap(),
            }
            let error = Identity::from_folder(dir.path()).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
            assert!(!error.hint().is_empty());
        }
    }

    #[test]
    fn a_certificate_counts_only_while_it_is_valid() {
        let mesh = Mesh::new();
        let folder = mesh.issue("orders");
        let now = clock::wall();
        let open = |now| Folder::open(&folder, now).map(|_| ());
        assert!(open(now).is_ok());
        assert!(open(now + Duration::from_hours(23)).is_ok());
        assert!(matches!(open(now + DAY), Err(Error::Ended { .. })));
        // Backdated by five minutes.
        assert!(open(now.saturating_sub(Duration::from_mins(4))).is_ok());
        assert!(matches!(open(now.saturating_sub(DAY)), Err(Error::NotBegun { .. })));
    }

    #[test]
    fn a_half_written_set_is_refused_once_and_the_old_one_kept() {
        let mesh = Mesh::new();
        let dir = plain(&mesh);
        let (folder, store) = Folder::open(dir.path(), clock::wall()).unwrap();
        let old = text(dir.path(), "tls.key");
        let new = mesh.issue("orders");
        let reload = || folder.reload(&store, clock::wall());

        fs::copy(new.join("tls.key"), dir.path().join("tls.key")).unwrap();
        let refused = reload();
        assert!(matches!(refused, Some(Event::Refused { .. })), "{refused:?}");
        // It is told when it begins, not each time it is seen.
        assert!(reload().is_none());
        assert!(matches!(*folder.last_error().unwrap(), Error::Svid(svid::Error::KeyMismatch)));
        assert_eq!(store.current().generation, 1);

        // Back to what is in use: no rotation.
        fs::write(dir.path().join("tls.key"), &old).unwrap();
        assert!(matches!(reload(), Some(Event::Restored)));
        assert!(folder.last_error().is_none());

        // Refused again, then completed.
        fs::copy(new.join("tls.key"), dir.path().join("tls.key")).unwrap();
        assert!(matches!(reload(), Some(Event::Refused { .. })));
        fs::copy(new.join("tls.crt"), dir.path().join("tls.crt")).unwrap();
        assert!(matches!(reload(), Some(Event::Rotated { generation: 2, .. })));
        assert!(folder.last_error().is_none());
        assert!(reload().is_none());
    }

    #[test]
    fn a_set_refused_for_the_time_is_taken_when_its_time_comes() {
        let mesh = Mesh::new();
        let dir = plain(&mesh);
        let (folder, store) = Folder::open(dir.path(), clock::wall()).unwrap();
        let new = mesh.issue("orders");
        copy(&new, dir.path());
        let before = clock::wall().saturating_sub(DAY);
        assert!(matches!(folder.reload(&store, before), Some(Event::Refused { .. })));
        assert!(folder.reload(&store, before).is_none());
        let event = folder.reload(&store, clock::wall());
        assert!(matches!(event, Some(Event::Rotated { generation: 2, .. })));
    }

    #[tokio::test]
    async fn every_way_of_writing_is_noticed() {
        let mesh = Mesh::new();
        // By a swap of `..data`.
        let identity = mesh.identity("orders");
        let mut events = events(&identity);
        mesh.issue("orders");
        assert_eq!(rotated(&mut events).await, 2);
        mesh.issue("orders");
        assert_eq!(rotated(&mut events).await, 3);

        // By renaming over, and in place.
        let dir = plain(&mesh);
        let identity = Identity::from_folder(dir.path()).unwrap();
        let mut events = self::events(&identity);
        let new = mesh.issue("orders");
        for name in FILES {
            fs::copy(new.join(name), dir.path().join("fresh")).unwrap();
            fs::rename(dir.path().join("fresh"), dir.path().join(name)).unwrap();
        }
        assert_eq!(rotated(&mut events).await, 2);
        copy(&mesh.issue("orders"), dir.path());
        assert_eq!(rotated(&mut events).await, 3);
    }

    #[tokio::test]
    async fn what_was_written_before_watching_began_is_not_missed() {
        let mesh = Mesh::new();
        let identity = mesh.identity("orders");
        mesh.issue("orders");
        assert_eq!(rotated(&mut events(&identity)).await, 2);
        assert_eq!(identity.generation(), 2);
    }

    #[tokio::test]
    async fn a_directory_that_is_replaced_is_found_again() {
        let mesh = Mesh::new();
        let (dir, first) = (tempfile::tempdir().unwrap(), plain(&mesh));
        let folder = dir.path().join("certificates");
        symlink(first.path(), &folder).unwrap();
        let (watched, store) = Folder::open(&folder, clock::wall()).unwrap();
        let mut watch = Watch::default();
        assert!(watch.arm(&folder));

        let second = plain(&mesh);
        fs::remove_file(&folder).unwrap();
        assert!(!watch.arm(&folder));
        symlink(second.path(), &folder).unwrap();
        assert!(watch.arm(&folder));
        let event = watched.reload(&store, clock::wall());
        assert!(matches!(event, Some(Event::Rotated { generation: 2, .. })));
        // The new directory is the one being watched.
        while time::timeout(QUIET, watch.changed.notified()).await.is_ok() {}
        fs::write(second.path().join("tls.key"), "").unwrap();
        time::timeout(PATIENCE, watch.changed.notified()).await.unwrap();
    }

    #[test]
    fn our_own_reading_is_no_change() {
        for (kind, change) in [
            (EventKind::Access(AccessKind::Open(AccessMode::Any)), false),
            (EventKind::Access(AccessKind::Close(AccessMode::Read)), false),
            (EventKind::Access(AccessKind::Close(AccessMode::Write)), true),
            (EventKind::Modify(ModifyKind::Data(DataChange::Any)), true),
            (EventKind::Remove(RemoveKind::Any), true),
            (EventKind::Any, true),
        ] {
            assert_eq!(is_change(kind), change, "{kind:?}");
        }
    }

    /// Far longer than any event takes, so that only a lost one fails.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn events(identity: &Identity) -> mpsc::Receiver<Event> {
        let (sender, events) = mpsc::channel(16);
        let told = move |event: &Event| sender.try_send(event.clone()).unwrap();
        drain::spawn("identity watch", identity.clone().watch(told));
        events
    }

    /// The generation that comes after any refusals of what was half-written.
    async fn rotated(events: &mut mpsc::Receiver<Event>) -> u64 {
        loop {
            let event = time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
            if let Event::Rotated { generation, .. } = event {
                return generation;
            }
        }
    }

    /// A new identity of `orders` as three plain files.
    fn plain(mesh: &Mesh) -> tempfile::TempDir {
        let (from, dir) = (mesh.issue("orders"), tempfile::tempdir().unwrap());
        copy(&from, dir.path());
        dir
    }

    fn copy(from: &Path, to: &Path) {
        for name in FILES {
            fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }

    fn text(dir: &Path, name: &str) -> String {
        fs::read_to_string(dir.join(name)).unwrap()
    }
}
