//! Manifests: every YAML file under `k8s/` and `examples/` parses, and each object of
//! `k8s/` says what it is.

use std::collections::BTreeSet;

use granit_parser::{Event, Parser, ScanError};

use super::{
    report,
    tree::{File, project},
};

/// One object: each scalar with its path, `spec.containers.0.name`.
type Object = Vec<(String, String)>;

#[test]
fn manifests_are_kubernetes_objects() {
    let files: Vec<_> = project().into_iter().filter(|it| is_manifest(&it.path)).collect();
    assert!(!files.is_empty(), "no manifest was found under k8s/");
    report(files.iter().flat_map(faults));
}

#[test]
fn a_sidecar_ends_before_its_pod_is_killed() {
    let sidecar = project().into_iter().find(|it| it.path == "k8s/base/sidecar.yaml").unwrap();
    let [deployment] = &objects(&sidecar.text).unwrap()[..] else { panic!("one object") };
    let mut values = deployment.iter().map(|(_, value)| value);
    let grace = values.find_map(|it| it.strip_prefix("--grace=")?.strip_suffix('s')).unwrap();
    let killed_after = value(deployment, "spec.template.spec.terminationGracePeriodSeconds");
    assert!(grace.parse::<u64>().unwrap() < killed_after.unwrap().parse().unwrap());
}

/// The transcripts are of what control sends: its tests compare them.
#[test]
fn control_may_do_what_it_does_and_no_more() {
    let files: Vec<_> = project().into_iter().collect();
    let roles = files.iter().find(|it| it.path == "k8s/control/rbac.yaml").unwrap();
    let roles = objects(&roles.text).unwrap();
    let own = |it: &&Object| {
        value(it, "metadata.name") == Some("remora-control")
            && value(it, "rules.0.verbs.0").is_some()
    };
    let allowed: BTreeSet<_> = roles.iter().filter(own).flat_map(allowed).collect();
    let transcripts = files
        .iter()
        .filter(|it| it.path.starts_with("k8s/src/tests/") && it.path.ends_with(".txt"));
    let done: BTreeSet<_> = transcripts.flat_map(|it| it.text.lines().filter_map(call)).collect();
    assert_eq!(allowed, done);
}

/// What a role's rules allow: `verb resource`.
fn allowed(role: &Object) -> Vec<String> {
    let within = |rule: usize, list: &str| {
        let prefix = format!("rules.{rule}.{list}.");
        role.iter().filter(move |it| it.0.starts_with(&prefix)).map(|it| it.1.as_str())
    };
    let rule = |rule| {
        let verbs = within(rule, "verbs");
        verbs.flat_map(move |verb| {
            within(rule, "resources").map(move |resource| format!("{verb} {resource}"))
        })
    };
    (0..role.len()).flat_map(rule).collect()
}

/// What a call asks to be allowed, the same way.
fn call(line: &str) -> Option<String> {
    let (method, path) = line.split_once(" /api")?;
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let kinds = ["secrets", "configmaps", "leases", "tokenreviews"];
    let mut steps = path.split('/').skip_while(|it| !kinds.contains(it));
    let (resource, name) = (steps.next()?, steps.next());
    let verb = match (method, name) {
        ("GET", Some(_)) => "get",
        ("GET", None) if query.contains("watch=true") => "watch",
        ("GET", None) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("DELETE", _) => "delete",
        _ => return Some(line.to_owned()),
    };
    Some(format!("{verb} {resource}"))
}

fn is_manifest(path: &str) -> bool {
    let is_yaml = [".yaml", ".yml"].iter().any(|it| path.ends_with(it));
    is_yaml && ["k8s/", "examples/"].iter().any(|it| path.starts_with(it))
}

fn faults(file: &File) -> Vec<String> {
    let objects = match objects(&file.text) {
        Ok(objects) => objects,
        Err(error) => return vec![format!("{}: {error}", file.path)],
    };
    let mut faults = Vec::new();
    if !file.path.starts_with("k8s/") {
        return faults;
    }
    for (number, object) in (1..).zip(&objects) {
        for field in ["apiVersion", "kind"] {
            if value(object, field).is_none() {
                faults.push(format!("{}: object {number} has no `{field}`", file.path));
            }
        }
    }
    faults
}

fn value<'a>(object: &'a Object, path: &str) -> Option<&'a str> {
    object.iter().find(|(at, _)| at == path).map(|(_, value)| value.as_str())
}

/// A list or map that is open, and where in it the next value stands.
enum Open {
    List(usize),
    Map { key: Option<String> },
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the other events carry no value")]
fn objects(text: &str) -> Result<Vec<Object>, ScanError> {
    let (mut objects, mut open) = (Vec::<Object>::new(), Vec::<Open>::new());
    for step in Parser::new_from_str(text) {
        match step?.0 {
            Event::DocumentStart(..) => objects.push(Object::new()),
            Event::SequenceStart(..) => open.push(Open::List(0)),
            Event::MappingStart(..) => open.push(Open::Map { key: None }),
            Event::SequenceEnd | Event::MappingEnd => {
                open.pop();
                advance(&mut open);
            }
            Event::Scalar(text, ..) => {
                if let Some(Open::Map { key: key @ None }) = open.last_mut() {
                    *key = Some(text.to_string());
                } else {
                    objects.last_mut().unwrap().push((path(&open), text.to_string()));
                    advance(&mut open);
                }
            }
            Event::Alias(_) => advance(&mut open),
            _ => (),
        }
    }
    Ok(objects)
}

/// A value is complete.
fn advance(open: &mut [Open]) {
    match open.last_mut() {
        Some(Open::List(index)) => *index += 1,
        Some(Open::Map { key }) => *key = None,
        None => (),
    }
}

fn path(open: &[Open]) -> String {
    let steps = open.iter().map(|it| match it {
        Open::List(index) => index.to_string(),
        Open::Map { key } => key.clone().unwrap_or_default(),
    });
    steps.collect::<Vec<_>>().join(".")
}

#[test]
fn a_document_without_a_kind_is_seen() {
    let file = |text: &str| File { path: "k8s/x.yaml".to_owned(), text: text.to_owned() };
    let whole = "apiVersion: v1\nkind: Pod\n---\napiVersion: v1\nkind: Pod\n";
    assert!(faults(&file(whole)).is_empty());
    assert_eq!(faults(&file("apiVersion: v1\nspec: {kind: Pod}\n")).len(), 1);
    assert_eq!(faults(&file("a: [")).len(), 1);
}

#[test]
fn scalars_are_found_by_their_path() {
    let objects = objects("a: {b: [1, {c: 2}, [3]], d: 4}\ne: 5").unwrap();
    let found: Vec<_> = objects[0].iter().map(|(at, value)| format!("{at}={value}")).collect();
    assert_eq!(found, ["a.b.0=1", "a.b.1.c=2", "a.b.2.0=3", "a.d=4", "e=5"]);
}
