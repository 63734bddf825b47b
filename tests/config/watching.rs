//! How a change in the policy folder arrives.

use std::{
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use remora::{
    config::{Context, Event, Policies},
    policy::Mtls,
};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

const EMPTY: &str = "# nothing\n";
const STRICT: &str = "
apiVersion: remora.dev/v1alpha1
kind: WorkloadPolicy
metadata: {name: all}
spec: {mtls: {mode: strict}}
";
const BAD: &str = "kind: Nothing\n";

#[tokio::test]
async fn a_swap_of_the_data_link_arrives() {
    let mut watched = Watched::new(|folder| {
        publish(folder, "..1", EMPTY);
        symlink("..data/all.yaml", folder.join("all.yaml")).unwrap();
    })
    .await;
    publish(&watched.folder, "..2", STRICT);
    assert_eq!(watched.next().await, accepted(3));
    assert_eq!(watched.policies.current().workload.mtls, Mtls::Strict);
    publish(&watched.folder, "..3", EMPTY);
    fs::remove_dir_all(watched.folder.join("..2")).unwrap();
    assert_eq!(watched.next().await, accepted(4));
    assert_eq!(watched.policies.current().workload.mtls, Mtls::Permissive);
}

#[tokio::test]
async fn a_rename_over_arrives() {
    let mut watched = Watched::new(|folder| fs::write(folder.join("a.yaml"), EMPTY).unwrap()).await;
    let elsewhere = watched.root.path().join("new");
    fs::write(&elsewhere, STRICT).unwrap();
    fs::rename(&elsewhere, watched.folder.join("a.yaml")).unwrap();
    assert_eq!(watched.next().await, accepted(3));
    assert_eq!(watched.policies.current().workload.mtls, Mtls::Strict);
}

#[tokio::test]
async fn a_save_beside_and_a_rename_arrives() {
    let mut watched = Watched::new(|folder| fs::write(folder.join("a.yaml"), EMPTY).unwrap()).await;
    fs::write(watched.folder.join(".a.yaml.swp"), STRICT).unwrap();
    fs::rename(watched.folder.join("a.yaml"), watched.folder.join("a.yaml~")).unwrap();
    fs::rename(watched.folder.join(".a.yaml.swp"), watched.folder.join("a.yaml")).unwrap();
    assert_eq!(watched.next().await, accepted(3));
    assert_eq!(watched.policies.current().workload.mtls, Mtls::Strict);
}

#[tokio::test]
async fn a_save_in_place_arrives_when_it_is_complete() {
    let mut watched = Watched::new(|folder| fs::write(folder.join("a.yaml"), EMPTY).unwrap()).await;
    let mut file = fs::File::create(watched.folder.join("a.yaml")).unwrap();
    let (first, second) = STRICT.split_at(STRICT.len() / 2);
    file.write_all(first.as_bytes()).unwrap();
    file.write_all(second.as_bytes()).unwrap();
    drop(file);
    // On a machine that is slow enough, half a file is seen and refused, or an empty one.
    while watched.policies.current().workload.mtls != Mtls::Strict {
        watched.next().await;
    }
    assert_eq!(watched.policies.status().last_error, None);
}

#[tokio::test]
async fn a_bad_file_keeps_the_last_good_generation_and_says_so() {
    let mut watched =
        Watched::new(|folder| fs::write(folder.join("a.yaml"), STRICT).unwrap()).await;
    fs::write(watched.folder.join("b.yaml"), BAD).unwrap();
    let Event::Refused { errors } = watched.next().await else { panic!("it was accepted") };
    assert_eq!(errors.problems().len(), 1);
    let status = watched.policies.status();
    assert_eq!((status.generation, watched.policies.generation()), (2, 2));
    assert_eq!(status.last_error, Some(errors.to_string()));
    assert_eq!(watched.policies.current().workload.mtls, Mtls::Strict);
    fs::remove_file(watched.folder.join("b.yaml")).unwrap();
    assert_eq!(watched.next().await, accepted(3));
    assert_eq!(watched.policies.status().last_error, None);
}

#[tokio::test]
async fn a_folder_that_goes_keeps_the_last_good_generation() {
    let mut watched =
        Watched::new(|folder| fs::write(folder.join("a.yaml"), STRICT).unwrap()).await;
    let away = watched.root.path().join("away");
    fs::rename(&watched.folder, &away).unwrap();
    assert!(matches!(watched.next().await, Event::Refused { .. }));
    assert_eq!(watched.policies.current().workload.mtls, Mtls::Strict);
    fs::rename(&away, &watched.folder).unwrap();
    assert_eq!(watched.next().await, accepted(3));
    // And the folder that came back is watched.
    fs::write(watched.folder.join("a.yaml"), EMPTY).unwrap();
    assert_eq!(watched.next().await, accepted(4));
}

#[tokio::test]
async fn a_folder_that_was_gone_for_a_moment_is_watched_again() {
    let mut watched = Watched::new(|folder| fs::write(folder.join("a.yaml"), EMPTY).unwrap()).await;
    let away = watched.root.path().join("away");
    fs::rename(&watched.folder, &away).unwrap();
    fs::write(away.join("a.yaml"), STRICT).unwrap();
    fs::rename(&away, &watched.folder).unwrap();
    assert_eq!(watched.next().await, accepted(3));
    fs::write(watched.folder.join("a.yaml"), EMPTY).unwrap();
    assert_eq!(watched.next().await, accepted(4));
}

#[tokio::test]
async fn a_folder_that_is_not_there_yet_is_picked_up_when_it_appears() {
    let root = TempDir::new().unwrap();
    let folder = root.path().join("remora/policy");
    let (policies, errors) = Policies::load(Some(&folder), context());
    assert_eq!((errors, policies.generation()), (None, 0));
    assert!(policies.status().warnings[0].contains("is not there yet"));
    let mut watched = Watched::over(root, folder, policies);
    fs::create_dir_all(&watched.folder).unwrap();
    fs::write(watched.folder.join("a.yaml"), STRICT).unwrap();
    while watched.policies.current().workload.mtls != Mtls::Strict {
        assert!(matches!(watched.next().await, Event::Accepted { .. }));
    }
    assert!(watched.policies.status().warnings.is_empty());
}

#[tokio::test]
async fn errors_at_the_start_leave_the_defaults_in_force() {
    let root = TempDir::new().unwrap();
    fs::write(root.path().join("a.yaml"), BAD).unwrap();
    let (policies, errors) = Policies::load(Some(root.path()), context());
    assert_eq!(errors.unwrap().problems().len(), 1);
    assert_eq!(policies.generation(), 0);
    assert!(policies.status().last_error.unwrap().contains("unknown kind `Nothing`"));
    let folder = root.path().to_owned();
    let mut watched = Watched::over(root, folder, policies);
    fs::write(watched.folder.join("a.yaml"), STRICT).unwrap();
    assert_eq!(watched.next().await, accepted(1));
}

#[tokio::test]
async fn a_process_without_a_folder_runs_on_the_defaults() {
    let (policies, errors) = Policies::load(None, context());
    assert_eq!((errors, policies.generation()), (None, 0));
    assert_eq!(*policies.current().workload, remora::policy::WorkloadPolicy::default());
}

/// A folder, what is in force, and the events of its watch.
struct Watched {
    root: TempDir,
    folder: PathBuf,
    policies: Policies,
    events: mpsc::Receiver<Event>,
    watching: JoinHandle<()>,
}

impl Watched {
    /// Watches a folder that `fill` has filled; generation 2 is in force, which came by a
    /// change, so that the eyes are known to be open.
    async fn new(fill: impl FnOnce(&Path)) -> Self {
        let root = TempDir::new().unwrap();
        let folder = root.path().join("policy");
        fs::create_dir(&folder).unwrap();
        fill(&folder);
        let (policies, errors) = Policies::load(Some(&folder), context());
        assert_eq!((errors, policies.generation()), (None, 1));
        let mut watched = Self::over(root, folder, policies);
        fs::write(watched.folder.join("open.yaml"), EMPTY).unwrap();
        assert_eq!(watched.next().await, accepted(2));
        watched
    }

    fn over(root: TempDir, folder: PathBuf, policies: Policies) -> Self {
        let (sender, events) = mpsc::channel(16);
        let watching = policies.clone().watch(move |event| {
            sender.try_send(event.clone()).unwrap();
        });
        let watching = remora::drain::spawn("watch", watching);
        Self { root, folder, policies, events, watching }
    }

    /// The next event; long before the regular reading, which would hide a missed notice.
    async fn next(&mut self) -> Event {
        timeout(Duration::from_secs(15), self.events.recv()).await.unwrap().unwrap()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

/// Publishes a version as the kubelet does: a folder, a link to it, and a rename.
fn publish(folder: &Path, version: &str, text: &str) {
    fs::create_dir(folder.join(version)).unwrap();
    fs::write(folder.join(version).join("all.yaml"), text).unwrap();
    symlink(version, folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
}

fn accepted(generation: u64) -> Event {
    Event::Accepted { generation, warnings: Vec::new() }
}

fn context() -> Context {
    Context { namespace: "shop".to_owned(), service_account: None, zone: None }
}
