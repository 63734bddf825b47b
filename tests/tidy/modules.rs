//! Modules: who may name whom, inside the crate and outside it.

use std::collections::BTreeSet;

use super::{
    report,
    tree::{File, is_comment, project},
};

/// What decides and never acts; see [`IMPURE`].
const PURE: &[&str] = &["resilience", "endpoint", "policy", "simulate"];

/// What no [`PURE`] module names: it would read a clock, do IO, hold a lock or log.
const IMPURE: &[&str] = &[
    "arc_swap",
    "h2",
    "hyper",
    "hyper_util",
    "nix",
    "parking_lot",
    "pingora_core",
    "prometheus",
    "rustls",
    "serde",
    "serde_json",
    "socket2",
    "tokio",
    "tower",
    "tracing",
];

/// Which top-level modules each may name. One that is missing is an error, so that a new
/// one states its place.
const LAYERS: &[(&str, &[&str])] = &[
    ("resilience", &["endpoint"]),
    ("endpoint", &[]),
    ("policy", &["resilience", "endpoint"]),
    ("clock", &[]),
    ("drain", &[]),
    ("intercept", &[]),
    ("config", &["policy", "resilience", "endpoint", "clock", "drain"]),
    ("simulate", &["config", "policy", "resilience", "endpoint"]),
    ("telemetry", &["policy", "resilience", "endpoint"]),
    ("identity", &["clock", "drain", "telemetry"]),
    ("discovery", &["policy", "endpoint", "clock", "drain", "telemetry"]),
    ("transport", &["endpoint", "policy", "intercept", "identity", "clock", "drain", "telemetry"]),
    (
        "proxy",
        &[
            "resilience",
            "endpoint",
            "policy",
            "config",
            "intercept",
            "identity",
            "discovery",
            "transport",
            "telemetry",
            "clock",
            "drain",
        ],
    ),
    ("sync", &["config", "resilience", "telemetry", "drain", "identity", "clock", "transport"]),
    ("admin", &["config", "telemetry", "drain", "identity", "clock"]),
    (
        "app",
        &[
            "admin",
            "clock",
            "config",
            "discovery",
            "drain",
            "endpoint",
            "identity",
            "intercept",
            "policy",
            "proxy",
            "resilience",
            "sync",
            "telemetry",
            "transport",
        ],
    ),
    (
        "cli",
        &["app", "clock", "config", "policy", "resilience", "endpoint", "intercept", "simulate"],
    ),
];

/// Crates that only some places name: a prefix of the path below `src`.
const ONLY: &[(&str, &[&str])] = &[
    ("granit_parser", &["config/"]),
    ("h2", &["proxy", "transport"]),
    ("hickory_resolver", &["discovery"]),
    ("hyper", &["proxy", "transport", "admin", "sync", "identity/workload_api"]),
    ("hyper_util", &["proxy", "transport", "admin", "sync", "identity/workload_api"]),
    ("nix", &["intercept", "transport", "app", "drain", "main"]),
    ("notify", &["config/", "identity/", "discovery"]),
    ("pingora_core", &["app", "drain", "discovery", "main"]),
    ("pingora_ketama", &["resilience"]),
    ("prometheus", &["telemetry"]),
    ("prost", &["identity/workload_api"]),
    ("rustls", &["identity", "transport/tls"]),
    ("serde_saphyr", &["config/"]),
    ("tikv_jemallocator", &["main"]),
    ("tokio_rustls", &["identity", "transport", "sync"]),
    ("tower", &["proxy", "transport"]),
    ("tracing_subscriber", &["telemetry", "app", "config/settings"]),
    ("x509_parser", &["identity"]),
];

#[test]
fn modules_depend_downwards() {
    report(sidecar().iter().flat_map(upward));
}

#[test]
fn pure_modules_decide_and_nothing_else() {
    report(sidecar().iter().flat_map(impure));
}

#[test]
fn crates_are_named_where_they_belong() {
    report(sidecar().iter().flat_map(misplaced));
}

/// The files of `src`, tests left out.
fn sidecar() -> Vec<File> {
    let rust = project().into_iter().filter(|it| it.has_extension("rs"));
    let own = rust.filter(|it| it.path.starts_with("src/"));
    own.map(|it| File { text: without_comments(it.code()), ..it }).collect()
}

fn upward(file: &File) -> Vec<String> {
    let Some(module) = top_module(&file.path) else { return Vec::new() };
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else {
        return vec![format!("{}: `{module}` has no place in LAYERS; give it one", file.path)];
    };
    let wrong = own_modules(&file.text).into_iter();
    wrong
        .filter(|it| it != module && !allowed.contains(&it.as_str()))
        .map(|it| {
            let hint = "take what it needs as an argument, or move the code";
            format!("{}: `{module}` may not use `crate::{it}`; {hint}", file.path)
        })
        .collect()
}

fn impure(file: &File) -> Vec<String> {
    if !top_module(&file.path).is_some_and(|it| PURE.contains(&it)) {
        return Vec::new();
    }
    let named = crates(&file.text).into_iter().filter(|it| IMPURE.contains(&it.as_str()));
    named
        .map(|it| {
            format!("{}: names `{it}`; pure code takes values and returns decisions", file.path)
        })
        .collect()
}

fn misplaced(file: &File) -> Vec<String> {
    let below = file.path.trim_start_matches("src/");
    let mut wrong = Vec::new();
    for named in crates(&file.text) {
        let Some((_, places)) = ONLY.iter().find(|(name, _)| *name == named) else { continue };
        if !places.iter().any(|it| below.starts_with(it)) {
            let places = places.join(", ");
            wrong.push(format!("{}: names `{named}`, which only {places} may", file.path));
        }
    }
    wrong
}

/// `src/proxy/forward.rs` and `src/proxy.rs` are both `proxy`; roots have no module.
fn top_module(path: &str) -> Option<&str> {
    let module = path.strip_prefix("src/")?.split('/').next()?.trim_end_matches(".rs");
    (!matches!(module, "lib" | "main")).then_some(module)
}

/// Every `x` in `crate::x`, and in `crate::{x::…, y::…}` one level deep.
fn own_modules(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, path) in code.match_indices("crate::") {
        if code[..at].ends_with('$') {
            continue; // a macro's own crate, wherever it is used
        }
        let rest = &code[at + path.len()..];
        match rest.strip_prefix('{') {
            None => names.extend(ident(rest)),
            Some(group) => names.extend(group_items(group).iter().filter_map(|it| ident(it))),
        }
    }
    names
}

/// The items of a `{…}` group, each up to its own first brace.
fn group_items(group: &str) -> Vec<String> {
    let (mut depth, mut items) = (0, vec![String::new()]);
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => items.push(String::new()),
            _ if depth == 0 => items.last_mut().unwrap().push(c),
            _ => (),
        }
    }
    items
}

/// Every `x` that begins a path `x::…`.
fn crates(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("::") {
        let before = &code[..at];
        let start = before.trim_end_matches(|c: char| c.is_alphanumeric() || c == '_').len();
        if !before[..start].ends_with("::") {
            names.extend(ident(&before[start..]));
        }
    }
    names
}

/// The identifier of a module or crate that the text begins with.
fn ident(text: &str) -> Option<String> {
    let is_part = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_';
    let name: String = text.trim_start().chars().take_while(is_part).collect();
    (!name.is_empty()).then_some(name)
}

fn without_comments(code: &str) -> String {
    code.lines().filter(|it| !is_comment(it)).collect::<Vec<_>>().join("\n")
}

mod checks {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn every_layer_names_layers_below_it() {
        let mut below = BTreeSet::new();
        let order = ["endpoint", "resilience", "policy", "clock", "drain", "intercept"];
        let upper =
            ["telemetry", "config", "simulate", "identity", "discovery", "transport", "proxy"];
        for module in order.iter().chain(&upper).chain(&["sync", "admin", "app", "cli"]) {
            let (_, allowed) = LAYERS.iter().find(|(name, _)| name == module).unwrap();
            assert!(allowed.iter().all(|it| below.contains(it)), "{module}: {allowed:?}");
            below.insert(*module);
        }
        assert_eq!(below.len(), LAYERS.len());
    }

    #[test]
    fn an_arrow_upwards_is_seen_in_each_way_to_write_it() {
        let ways = [
            "use crate::proxy::Context;",
            "use crate::{endpoint::Endpoint, proxy};",
            "use crate::{\n    endpoint::{Endpoint, EndpointSet},\n    proxy::{a, b},\n};",
            "fn f(it: crate::proxy::Context) {}",
        ];
        for way in ways {
            assert_eq!(upward(&file("src/policy/route.rs", way)).len(), 1, "{way}");
        }
        assert!(upward(&file("src/proxy/pick.rs", "use crate::policy::Route;")).is_empty());
    }

    #[test]
    fn a_module_without_a_place_is_seen() {
        assert_eq!(upward(&file("src/novel/a.rs", "")).len(), 1);
        assert!(upward(&file("src/main.rs", "use crate::novel;")).is_empty());
    }

    #[test]
    fn io_in_a_pure_module_is_seen() {
        let code = "async fn f() { tokio::task::yield_now().await }";
        assert_eq!(impure(&file("src/resilience/budget.rs", code)).len(), 1);
        assert!(impure(&file("src/proxy/admit.rs", code)).is_empty());
    }

    #[test]
    fn a_crate_out_of_its_place_is_seen() {
        let code = "use rustls::ServerConfig;";
        assert_eq!(misplaced(&file("src/admin/serve.rs", code)).len(), 1);
        assert!(misplaced(&file("src/transport/tls.rs", code)).is_empty());
        assert!(misplaced(&file("src/admin.rs", "use crate::transport::rustls::X;")).is_empty());
        assert_eq!(misplaced(&file("src/config.rs", "#[derive(prometheus::X)]")).len(), 1);
    }
}
