//! Config: what the operator asked for, understood completely or refused completely.
//!
//! Two inputs: process [`settings`], from flags and `REMORA_*` variables, and policy
//! documents, from a watched folder ([`Policies`]). A folder is read ([`folder`]), each
//! file becomes trees of values that know their places ([`yaml`]), each tree a document
//! ([`schema`]), and all documents together one policy ([`validate`]). Whatever is wrong
//! on the way is noted ([`report`]) and the rest is still looked at: all errors come at
//! once, and a policy with one of them is never in force.

pub mod catalogue;
mod decode;
mod folder;
pub mod push;
pub mod report;
pub mod scenario;
mod schema;
pub mod selection;
pub mod settings;
pub mod units;
mod validate;
pub mod watch;
pub mod words;
mod yaml;

use std::{collections::BTreeMap, path::Path, sync::Arc};

pub use catalogue::Catalogue;
pub use report::{Errors, Place, Problem};
pub use settings::Settings;
pub use watch::{Event, Policies, Status};

use self::{
    decode::Decoder,
    folder::Source,
    report::{Complaint, Report},
    schema::Document,
};
use crate::policy::Snapshot;

/// Who reads the documents: a document without a namespace is in this one, and what guards
/// workloads is looked up for this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The workload's namespace.
    pub namespace: String,
    /// The workload's service account, where it has an identity.
    pub service_account: Option<String>,
    /// The workload's zone, where it was told: endpoints of the same one are near.
    pub zone: Option<String>,
}

/// What the documents of a folder amount to.
#[derive(Debug)]
pub struct Loaded {
    /// The policy; its generation is 0 until [`Policies`] puts it in force.
    pub snapshot: Snapshot,
    /// What is allowed and looks like a mistake.
    pub warnings: Vec<Problem>,
    /// How many files were read.
    pub files: usize,
    /// How many documents they hold.
    pub documents: usize,
}

/// Loads every document of the folder, or the file, `path`.
///
/// # Errors
///
/// Everything that is wrong with them.
pub fn load(path: &Path, context: &Context) -> Result<Loaded, Errors> {
    load_all(&[path], context)
}

/// Loads every document of some folders and files as if they were one folder.
///
/// # Errors
///
/// Everything that is wrong with them.
pub fn load_all<P: AsRef<Path>>(paths: &[P], context: &Context) -> Result<Loaded, Errors> {
    let (mut sources, mut report) = (Vec::new(), Report::default());
    for path in paths.iter().map(AsRef::as_ref) {
        match folder::read(path) {
            Ok(found) => sources.extend(found),
            Err(error) => {
                let message = format!("cannot be read: {error}");
                let complaint = Complaint::new(message, "name a folder or file that is there");
                report.error(folder::whole(&path.into()), complaint);
            }
        }
    }
    understand(&sources, context, report)
}

/// Loads the documents of one file that holds `bytes`; never panics, whatever they are.
///
/// # Errors
///
/// Everything that is wrong with them.
pub fn load_bytes(bytes: &[u8], context: &Context) -> Result<Loaded, Errors> {
    let content = Ok(bytes.to_vec());
    understand(&[Source { file: Path::new("-").into(), content }], context, Report::default())
}

/// Loads the documents of `files`, by name, as if they were a folder.
///
/// # Errors
///
/// Everything that is wrong with them.
pub fn load_files(files: &BTreeMap<String, String>, context: &Context) -> Result<Loaded, Errors> {
    let source = |(name, text): (&String, &String)| Source {
        file: Path::new(name).into(),
        content: Ok(text.as_bytes().to_vec()),
    };
    let sources: Vec<_> = files.iter().map(source).collect();
    understand(&sources, context, Report::default())
}

/// Makes one policy of all documents.
fn understand(sources: &[Source], context: &Context, mut report: Report) -> Result<Loaded, Errors> {
    let (documents, count) = decode(sources, context, &mut report);
    let snapshot = validate::resolve(documents, context, &mut report);
    let warnings = report.settle()?;
    Ok(Loaded { snapshot, warnings, files: sources.len(), documents: count })
}

/// The documents that can be made out, and how many there are.
fn decode(sources: &[Source], context: &Context, report: &mut Report) -> (Vec<Document>, usize) {
    let mut documents = Vec::new();
    let mut count = 0;
    for source in sources {
        let (nodes, wrong) = yaml::parse(source.content(report));
        let (file, namespace) = (Arc::clone(&source.file), context.namespace.as_str());
        let zone = context.zone.as_deref();
        let mut decoder = Decoder { file, report: &mut *report, namespace, zone };
        for (at, Complaint { message, hint }) in wrong {
            decoder.error(at, message, hint);
        }
        count += nodes.len();
        documents.extend(nodes.iter().filter_map(|it| schema::document(&mut decoder, it)));
    }
    (documents, count)
}
