//! Catalogue: the documents of many namespaces, each with its text and whom it concerns.
//!
//! A sidecar reads the documents of a folder for one workload; who hands out documents reads
//! them for all, and must know which workload needs which. The documents are good here when
//! they are good to a sidecar of every namespace: the checks are the sidecar's own.
//!
//! A document says its namespace itself. To a sidecar, one that does not is in that sidecar's
//! namespace; for many of them that would be everywhere, which nobody means.
//!
//! # Sources
//!
//! - YAML 1.2.2, section 9.1.2: what separates documents.
//!   <https://yaml.org/spec/1.2.2/#912-document-markers>

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{
    Context, Errors, Loaded, Problem, decode,
    folder::{self, Source},
    report::{Complaint, Place, Report},
    schema::{self, Spec},
    selection::written,
    understand, validate, watch,
};
use crate::policy::ServiceName;

/// The files of a folder, all of one moment.
#[derive(Debug)]
pub struct Files {
    /// What their names begin with and do not say.
    root: PathBuf,
    sources: Vec<Source>,
}

/// Documents that are good together.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// By file and position.
    pub documents: Vec<Document>,
    /// What is allowed and looks like a mistake.
    pub warnings: Vec<Problem>,
}

/// One document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// `HTTPRoute`, `ServicePolicy` or the like.
    pub kind: &'static str,
    /// The namespace it is in.
    pub namespace: String,
    /// Its name there.
    pub name: String,
    /// The file it is in, without the folder.
    pub file: String,
    /// The line it begins at, from 1.
    pub line: usize,
    /// All of it as it was written, comments included.
    pub text: String,
    /// The services whose callers it concerns.
    pub targets: Vec<ServiceName>,
    /// The services it sends those callers to.
    pub backends: Vec<ServiceName>,
    /// For what guards workloads: the service accounts it is for, or all where `None`.
    pub accounts: Option<Vec<String>>,
}

impl Files {
    /// Reads the folder, or the file, `path`. What cannot be read is an error of
    /// [`Catalogue::new`].
    pub fn read(path: &Path) -> Self {
        let sources = folder::read(path).unwrap_or_else(|error| {
            let message = format!("the policy folder cannot be read: {error}");
            let complaint = Complaint::new(message, "put it back, or name another");
            vec![Source { file: path.into(), content: Err(complaint) }]
        });
        Self { root: path.to_owned(), sources }
    }

    /// Files that were read elsewhere, by name.
    pub fn new(files: &BTreeMap<String, String>) -> Self {
        let source = |(name, text): (&String, &String)| Source {
            file: Path::new(name).into(),
            content: Ok(text.clone().into_bytes()),
        };
        Self { root: PathBuf::new(), sources: files.iter().map(source).collect() }
    }

    /// Their names without the folder, of those that cannot be read, too.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.sources.iter().map(|it| self.name(&it.file))
    }

    /// What the files hold, by their names without the folder; what is not text is left out.
    pub fn texts(&self) -> BTreeMap<String, String> {
        let text = |it: &Source| {
            let text = str::from_utf8(it.content.as_ref().ok()?).ok()?;
            Some((self.name(&it.file), text.to_owned()))
        };
        self.sources.iter().filter_map(text).collect()
    }

    /// What they amount to for one workload.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with them.
    pub fn load(&self, context: &Context) -> Result<Loaded, Errors> {
        understand(&self.sources, context, Report::default())
    }

    /// Checks them for sidecars of `namespace`, in which documents are that name none, or else
    /// for those of every namespace.
    ///
    /// Gives what is allowed and looks like a mistake.
    ///
    /// # Errors
    ///
    /// As [`Files::load`], or [`Catalogue::new`].
    pub fn check(&self, namespace: Option<&str>) -> Result<Vec<Problem>, Errors> {
        match namespace {
            Some(namespace) => Ok(self.load(&context(namespace))?.warnings),
            None => Ok(Catalogue::new(self)?.warnings),
        }
    }

    /// Has the files of the folder `path` read, at once and whenever one of them has changed;
    /// never returns.
    ///
    /// `read` runs on a thread that may wait for a disk; what it makes of them goes to `found`.
    ///
    /// # Cancel safety
    ///
    /// Safe: a reading under way comes to its end, and nobody is told.
    pub async fn follow<T: Send + 'static>(
        path: &Path,
        read: impl Fn(&Self) -> T + Clone + Send + 'static,
        mut found: impl FnMut(T) + Send,
    ) {
        let (folder, last) = (path.to_owned(), Arc::new(Mutex::new(None)));
        let look = move || {
            let files = Self::read(&folder);
            let seen = Some(folder::fingerprint(&files.sources));
            let is_new = mem::replace(&mut *last.lock(), seen) != seen;
            is_new.then(|| read(&files))
        };
        watch::follow(path, look, |it: Option<T>| it.into_iter().for_each(&mut found)).await;
    }

    fn name(&self, file: &Path) -> String {
        let below = file.strip_prefix(&self.root).ok().filter(|it| !it.as_os_str().is_empty());
        let name = below.or_else(|| file.file_name().map(Path::new)).unwrap_or(file);
        name.to_string_lossy().into_owned()
    }
}

impl Catalogue {
    /// Reads the documents of `files`.
    ///
    /// # Errors
    ///
    /// Everything that a sidecar of any namespace would refuse, and each document without a
    /// namespace.
    pub fn new(files: &Files) -> Result<Self, Errors> {
        let mut report = Report::default();
        let (found, _) = decode(&files.sources, &context("default"), &mut report);
        for it in found.iter().filter(|it| !it.names_namespace) {
            let message = format!("{} `{}` names no namespace", it.kind.name(), it.name);
            let hint = "add `namespace: …` to its `metadata`: sidecars of many namespaces get it";
            report.error(it.place.clone(), Complaint::new(message, hint));
        }
        let documents = describe(files, &found, &mut report);
        for (name, text) in written(&documents) {
            // The comments that are added count, too.
            if folder::FILE_BYTES_MAX < text.len() as u64 {
                let hint = "split it into several files";
                let complaint = Complaint::new("the file is too large", hint);
                report.error(folder::whole(&Path::new(&name).into()), complaint);
            }
        }
        check(&found, &mut report);
        Ok(Self { documents, warnings: report.settle()? })
    }
}

/// Checks the documents for each namespace to which they look different.
fn check(found: &[schema::Document], report: &mut Report) {
    let is_route = |it: &&schema::Document| matches!(it.spec, Some(Spec::Route(_)));
    // Only routes for services of other namespaces are read by some and not by others.
    let callers: BTreeSet<_> = found.iter().filter(is_route).map(|it| &it.namespace).collect();
    // To a namespace that has none of these, all look the same: to that of no name, too.
    let everybody = found.to_vec();
    drop(validate::resolve(everybody, &context(""), report));
    for namespace in callers {
        let seen = |it: &&schema::Document| !is_route(it) || it.namespace == *namespace;
        let seen = found.iter().filter(seen).cloned().collect();
        let mut besides = Report::default();
        drop(validate::resolve(seen, &context(namespace), &mut besides));
        report.add(besides);
    }
}

fn context(namespace: &str) -> Context {
    Context { namespace: namespace.to_owned(), service_account: None, zone: None }
}

/// Says of each document what it is about, and cuts its text out.
fn describe(files: &Files, found: &[schema::Document], report: &mut Report) -> Vec<Document> {
    let texts: BTreeMap<&Arc<Path>, Vec<(usize, &str)>> = files
        .sources
        .iter()
        .filter_map(|it| Some((&it.file, str::from_utf8(it.content.as_ref().ok()?).ok()?)))
        .map(|(file, text)| (file, pieces(text)))
        .collect();
    let mut taken = BTreeSet::new();
    let mut documents = Vec::with_capacity(found.len());
    for it in found {
        let file = &it.place.file;
        let pieces = texts.get(file).map_or(&[][..], Vec::as_slice);
        let after = pieces.partition_point(|(line, _)| *line <= it.at.line);
        let piece = after.checked_sub(1).and_then(|at| pieces.get(at));
        let Some((line, text)) = piece.filter(|(line, _)| taken.insert((file, *line))) else {
            let place = Place { line: it.at.line, column: it.at.column, file: Arc::clone(file) };
            let message = "this document cannot be told from the one before";
            report.error(place, Complaint::new(message, "begin it behind a line `---`"));
            continue;
        };
        let (mut targets, mut backends, mut accounts) = (Vec::new(), Vec::new(), None);
        match &it.spec {
            Some(Spec::Route(route)) => {
                targets.extend(route.parents.iter().map(|it| it.service.clone()));
                let all = route.rules.iter().flat_map(|it| it.backends.iter());
                backends.extend(all.map(|it| it.service.clone()));
            }
            Some(Spec::Service(service)) => {
                targets.extend(service.targets.iter().map(|(_, it)| it.clone()));
            }
            Some(Spec::Workload(workload)) => {
                let names = |it: &Vec<(Place, String)>| it.iter().map(|it| it.1.clone()).collect();
                accounts = workload.accounts.as_ref().map(names);
            }
            None => (),
        }
        for list in [&mut targets, &mut backends] {
            list.sort_unstable();
            list.dedup();
        }
        let (kind, file, text) = (it.kind.name(), files.name(file), (*text).to_owned());
        let (namespace, name, line) = (it.namespace.clone(), it.name.clone(), *line);
        documents.push(Document {
            kind,
            namespace,
            name,
            file,
            line,
            text,
            targets,
            backends,
            accounts,
        });
    }
    documents
}

/// A file cut at the lines that separate its documents, each piece with its first line's
/// number. No text within a document may have such a line, not even a block of it.
fn pieces(text: &str) -> Vec<(usize, &str)> {
    let mut pieces = Vec::new();
    let (mut start, mut first, mut at) = (0, 1, 0);
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let next = at + line.len();
        let rest = line.strip_prefix("---").or_else(|| line.strip_prefix("..."));
        if let Some(rest) =
            rest.filter(|it| it.is_empty() || it.starts_with([' ', '\t', '\r', '\n']))
        {
            pieces.push((first, text.get(start..at).unwrap_or_default()));
            // A document may begin behind the marker, in its line.
            let is_alone = rest.trim().is_empty() || line.starts_with('.');
            (start, first) = if is_alone { (next, number + 1) } else { (at, number) };
        }
        at = next;
    }
    pieces.push((first, text.get(start..).unwrap_or_default()));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_comes_with_its_own_text_and_place_and_whom_it_concerns() {
        let text = "\
# of the shop
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: orders}]
  rules: [{backendRefs: [{name: stock, namespace: store, port: 80}, {name: orders, port: 80}]}]
--- # nothing

---
apiVersion: remora.dev/v1alpha1
kind: WorkloadPolicy
metadata: {name: some, namespace: shop}
spec: {targetRefs: [{kind: ServiceAccount, name: orders}]}
...
";
        let catalogue = Catalogue::new(&files(&[("a.yaml", text)])).unwrap();
        let [route, workload] = &catalogue.documents[..] else { panic!("{catalogue:?}") };
        assert_eq!((route.kind, &*route.file, route.line), ("HTTPRoute", "a.yaml", 1));
        assert!(route.text.starts_with("# of") && route.text.ends_with("port: 80}]}]\n"));
        assert_eq!(route.targets, [ServiceName::new("shop", "orders")]);
        let backends = [ServiceName::new("shop", "orders"), ServiceName::new("store", "stock")];
        assert_eq!((&route.backends[..], &route.accounts), (&backends[..], &None));
        assert_eq!((workload.kind, workload.line), ("WorkloadPolicy", 11));
        assert_eq!(workload.accounts, Some(vec!["orders".to_owned()]));
        assert!(workload.text.starts_with("api") && workload.text.ends_with("orders}]}\n"));
    }

    #[test]
    fn each_document_names_its_namespace() {
        let text = "{apiVersion: remora.dev/v1alpha1, kind: WorkloadPolicy, metadata: {name: a}, \
                    spec: {}}";
        let errors = Catalogue::new(&files(&[("a.yaml", text)])).unwrap_err();
        assert_eq!(
            errors.to_string(),
            "a.yaml:1:74: WorkloadPolicy `a` names no namespace\nhint: add `namespace: …` to its \
             `metadata`: sidecars of many namespaces get it"
        );
    }

    #[test]
    fn what_only_one_namespace_would_refuse_is_refused_and_said_once() {
        let route = |kind: &str, name: &str, to: &str| {
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
                 metadata: {{name: {name}, namespace: web}}\nspec:\n  \
                 parentRefs: [{{group: '', kind: Service, name: orders, namespace: {to}}}]\n  \
                 rules: [{{}}]\n---\n"
            )
        };
        let text = route("HTTPRoute", "a", "shop") + &route("GRPCRoute", "b", "shop");
        let errors = Catalogue::new(&files(&[("a.yaml", &text)])).unwrap_err();
        let [problem] = errors.problems() else { panic!("{errors}") };
        assert_eq!(problem.place.to_string(), "a.yaml:10:18");
        assert!(problem.message.contains("has rules of HTTPRoute and of GRPCRoute"), "{problem}");
        // What everybody would refuse is not said again for each namespace.
        let text = route("HTTPRoute", "a", "web") + &route("GRPCRoute", "b", "web");
        let errors = Catalogue::new(&files(&[("a.yaml", &text)])).unwrap_err();
        assert_eq!(errors.problems().len(), 1, "{errors}");
    }

    #[test]
    fn a_file_that_a_sidecar_would_not_read_is_refused() {
        let document = "{apiVersion: remora.dev/v1alpha1, kind: WorkloadPolicy, \
                        metadata: {name: a, namespace: b}, spec: {}} #";
        let comment = "# a.yaml:1\n".len() + "\n".len();
        let most = usize::try_from(folder::FILE_BYTES_MAX).unwrap() - comment - document.len();
        let read = |excess| {
            let text = document.to_owned() + &"#".repeat(most + excess);
            Catalogue::new(&files(&[("a.yaml", &text)]))
        };
        assert!(read(0).is_ok());
        let expected = "a.yaml: the file is too large\nhint: split it into several files";
        assert_eq!(read(1).unwrap_err().to_string(), expected);
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_an_error_and_not_empty() {
        let folder = tempfile::TempDir::new().unwrap();
        assert!(Catalogue::new(&Files::read(folder.path())).unwrap().documents.is_empty());
        let errors = Catalogue::new(&Files::read(&folder.path().join("gone"))).unwrap_err();
        assert!(errors.to_string().contains("the policy folder cannot be read: No such file"));
    }

    #[test]
    fn names_are_those_below_the_folder() {
        let folder = tempfile::TempDir::new().unwrap();
        std::fs::write(folder.path().join("a.yaml"), "# nothing\n").unwrap();
        let expected = BTreeMap::from([("a.yaml".to_owned(), "# nothing\n".to_owned())]);
        assert_eq!(Files::read(folder.path()).texts(), expected);
        assert_eq!(Files::read(&folder.path().join("a.yaml")).texts(), expected);
        assert_eq!(Files::new(&expected).texts(), expected);
    }

    #[test]
    fn only_lines_that_are_markers_separate() {
        for (text, expected) in [
            ("", vec![(1, "")]),
            ("a\n---x\n ---\n", vec![(1, "a\n---x\n ---\n")]),
            ("a\n---\nb", vec![(1, "a\n"), (3, "b")]),
            ("---\r\na\n--- b\n", vec![(1, ""), (2, "a\n"), (3, "--- b\n")]),
            ("a\n...\n%YAML 1.2\n---\nb\n", vec![(1, "a\n"), (3, "%YAML 1.2\n"), (5, "b\n")]),
        ] {
            assert_eq!(pieces(text), expected, "{text:?}");
        }
    }

    fn files(files: &[(&str, &str)]) -> Files {
        Files::new(&files.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect())
    }
}
