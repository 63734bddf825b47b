//! Control: where it is, how it is known, and what does not go together with it.

use http::{Uri, uri::Scheme};

use super::{
    super::{Control, Flags, Identity, Settings},
    Wrong, named, path,
};
use crate::config::report::{Complaint, quoted};

/// Where control listens unless it is told otherwise.
const PORT: u16 = 15_030;

/// The most the name of an instance may have: that of a pod.
const INSTANCE_MAX: usize = 253;

/// What the flags say of control; nothing where it is not wanted.
pub(super) fn of(flags: &Flags, wrong: &mut Wrong) -> Option<Control> {
    let mut file = |flag: &str, text: &Option<String>| {
        text.as_deref().and_then(|it| wrong.take(flag, path(it)))
    };
    let token = file("control-token", &flags.control_token);
    let roots = file("control-ca", &flags.control_ca);
    let id = flags.control_id.as_deref().and_then(|it| {
        let id = it.parse().map_err(|error| {
            let hint = "write `spiffe://cluster.local/ns/remora/sa/control`";
            Complaint::new(format!("{} is not a SPIFFE id: {error}", quoted(it)), hint)
        });
        wrong.take("control-id", id)
    });
    let instance = flags.instance.as_deref().and_then(|it| wrong.take("instance", instance(it)));
    let (host, port) = wrong.take("control", address(flags.control.as_deref()?))?;
    Some(Control { host, port, token, roots, id, instance })
}

/// What goes only with control, and what does not go with it.
pub(super) fn check(settings: &Settings, flags: &Flags, wrong: &mut Wrong) {
    if flags.control.is_none() {
        if settings.identity == Identity::Control {
            let message =
                format!("{} is missing, and `--identity control` needs it", named("control"));
            wrong.note(message, "say where control is: `--control https://remora-control.remora`");
        }
        let only = [
            ("control-token", &flags.control_token),
            ("control-ca", &flags.control_ca),
            ("control-id", &flags.control_id),
        ];
        for (flag, _) in only.iter().filter(|(_, it)| it.is_some()) {
            let message = format!("{} is of no use without `--control`", named(flag));
            wrong.note(message, "remove it, or say where control is");
        }
        return;
    }
    if flags.policy.is_some() {
        let message = format!("{} and {} are both given", named("control"), named("policy"));
        wrong.note(message, "policy comes from control, or from a folder: remove one of them");
    }
    match settings.identity {
        Identity::None if flags.identity.is_some() => wrong.note(
            format!("{} does not go with `--identity none`", named("control")),
            "control has to know whom it speaks to: choose `--identity control` or a folder",
        ),
        Identity::Control if flags.control_ca.is_none() => wrong.note(
            format!("{} is missing, and `--identity control` needs it", named("control-ca")),
            "name the file of the mesh's roots; `remora-control bundle` prints them",
        ),
        Identity::None | Identity::Dir(_) | Identity::Control | Identity::Socket(_) => (),
    }
}

fn address(text: &str) -> Result<(String, u16), Complaint> {
    let read = || {
        let uri: Uri = text.parse().ok()?;
        let authority = uri.authority()?;
        let is_bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
        let is_plain = !authority.as_str().contains('@');
        let port = match (authority.port_u16(), authority.as_str().ends_with(':')) {
            (Some(0), _) | (None, true) => return None,
            (port, _) => port.unwrap_or(PORT),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let is_https = uri.scheme() == Some(&Scheme::HTTPS);
        (is_https && is_bare && is_plain && !host.is_empty()).then(|| (host.to_owned(), port))
    };
    read().ok_or_else(|| {
        Complaint::new(
            format!("{} is not where control can be", quoted(text)),
            "write `https://remora-control.remora:15030`",
        )
    })
}

fn instance(text: &str) -> Result<String, Complaint> {
    let is_name = |it: u8| it.is_ascii_alphanumeric() || b"-._".contains(&it);
    if !text.is_empty() && text.len() <= INSTANCE_MAX && text.bytes().all(is_name) {
        return Ok(text.to_owned());
    }
    let hint = "use letters, digits, `-`, `.` and `_`, at most 253 of them";
    Err(Complaint::new(format!("{} is not a name", quoted(text)), hint))
}
