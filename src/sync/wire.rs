//! Wire: what sidecar and control say to each other, as JSON over HTTP/2.
//!
//! The types are the protocol: control and sidecar use the same ones, and every call can be
//! made with curl. Unknown keys are passed over and missing ones have defaults where a
//! version may lack them, so that both sides may be upgraded in any order. Times are whole
//! seconds since the Unix epoch.
//!
//! | call | by whom | body and answer |
//! |---|---|---|
//! | `POST /v1/certificates` | join token or service-account token (`Authorization: Bearer`), or a client certificate | [`SigningRequest`] → [`Signed`] |
//! | `GET /v1/watch?instance=NAME&generation=SHA256` | client certificate | lines of [`Message`], until either side ends it |
//! | `POST /v1/report` | client certificate | [`Report`] → 204 |
//! | `GET /v1/bundle` | anybody | [`Bundle`]; `?format=spiffe` as SPIFFE federates it |
//! | `GET /v1/sidecars` | operator's client certificate | [`Sidecars`] |
//! | `GET /v1/policy`, `POST /v1/policy` | operator | [`PolicyStatus`]; [`PolicyChange`] → [`PolicyStatus`] |
//! | `GET /v1/rotation` | operator | [`RotationStatus`] |
//!
//! Whatever is refused is answered with a [`Refusal`] and a status that fits.
//!
//! A watch resumes at a generation: `generation`, which may be left out, is the SHA-256 of the
//! [`Envelope::payload`] that the sidecar has in force, in lower-case hexadecimal. Where that is
//! what it is to have, it is not sent again at the beginning. A number would not do: one
//! generation has other files for a workload that calls other services, and a connection may
//! end between the report of a new service and the files for it.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

/// Where certificates are asked for.
pub const CERTIFICATES: &str = "/v1/certificates";
/// Where news are waited for.
pub const WATCH: &str = "/v1/watch";
/// Where a sidecar says how it does.
pub const REPORT: &str = "/v1/report";
/// Where the trust bundle is.
pub const BUNDLE: &str = "/v1/bundle";
/// Where operators see the sidecars.
pub const SIDECARS: &str = "/v1/sidecars";
/// Where operators see and change the generation of policy.
pub const POLICY: &str = "/v1/policy";
/// Where operators see a rotation.
pub const ROTATION: &str = "/v1/rotation";

/// The path of control's own SPIFFE id, after the trust domain.
pub const CONTROL_PATH: &str = "/ns/remora/sa/control";
/// The path of an operator's SPIFFE id, after the trust domain.
pub const OPERATOR_PATH: &str = "/ns/remora/sa/operator";

/// How often a watch says that it lives; three in a row missing mean it does not.
pub const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(10);

/// The most one message, request or answer may hold.
pub const BYTES_MAX: usize = 8 << 20;

/// Whether the id of this path is control's own or an operator's: no workload may have it.
pub fn is_reserved(path: &str) -> bool {
    [CONTROL_PATH, OPERATOR_PATH].contains(&path)
}

/// The most a name of an instance may have: that of a pod.
const INSTANCE_MAX: usize = 253;

/// Whether an instance may be called so. It could be a pod's name: it stands in logs and on
/// terminals.
pub fn is_instance(name: &str) -> bool {
    let fits = |it: u8| it.is_ascii_alphanumeric() || b"-._".contains(&it);
    (1..=INSTANCE_MAX).contains(&name.len()) && name.bytes().all(fits)
}

/// Services that a report may name: a pod that calls more gets no policy for the rest.
const SERVICES_MAX: usize = 1_000;

/// Bytes of the names of one sidecar's services.
const SERVICES_BYTES_MAX: usize = 32 * 1024;

/// Bytes of a report's serial, issuer and version: two SHA-256 in hexadecimal have 128.
const WORD_MAX: usize = 128;

/// Bytes of each error in a report; its beginning names the place.
const ERROR_MAX: usize = 512;

/// Asks for a certificate. Whose it is comes from what proves the caller, and must be what
/// the request asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SigningRequest {
    /// PKCS #10 in PEM, signed by the new key. Its one URI, if any, must be the caller's id.
    pub csr: String,
    /// Which of the workload's sidecars asks: the pod's name.
    pub instance: String,
}

/// A certificate, and whom to trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// The leaf, then the issuer, in PEM.
    pub chain: String,
    /// Whom to trust now.
    pub bundle: Bundle,
    /// When the leaf ends.
    pub not_after: u64,
}

/// Whom to trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// Grows with each change.
    pub sequence: u64,
    /// Root certificates in PEM.
    pub roots: String,
}

/// A line of a watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    /// Whom to trust from now on.
    Bundle(Bundle),
    /// The policy from now on.
    Policy(Envelope),
    /// A new certificate is to be asked for, unless the present one is of this issuer.
    Renew {
        /// SHA-256 of the issuer's certificate, in lower-case hexadecimal.
        issuer: String,
        /// Over how many seconds to spread it.
        within: u64,
    },
    /// Nothing new.
    Heartbeat,
}

impl Message {
    /// Its `type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Bundle(_) => "bundle",
            Self::Policy(_) => "policy",
            Self::Renew { .. } => "renew",
            Self::Heartbeat => "heartbeat",
        }
    }
}

/// A generation, signed by control's own SVID over the bytes of `payload`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// A [`Generation`] in JSON.
    pub payload: String,
    /// As `remora_certs::signed` makes it, in base64.
    pub signature: String,
    /// The signer's leaf and issuer in PEM.
    pub chain: String,
}

/// What a workload needs of a generation of policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Grows with each change; a smaller one than the last accepted is refused.
    pub number: u64,
    /// Whom it is for: a SPIFFE id. Anybody else refuses it.
    pub audience: String,
    /// Name of each file, `*.yaml`, and what it holds.
    pub files: BTreeMap<String, String>,
}

/// How a sidecar does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// As in [`SigningRequest::instance`].
    pub instance: String,
    /// The sidecar's version.
    pub version: String,
    /// Where its inbound listener is; control looks there, at the address the report comes
    /// from unless this one is loopback and so is that.
    pub inbound: Option<SocketAddr>,
    /// The certificate it serves.
    pub certificate: Certificate,
    /// [`Bundle::sequence`] of the roots in use.
    pub bundle: u64,
    /// What it makes of the policy.
    pub policy: Policy,
    /// The services its application calls, as `name.namespace`.
    #[serde(default)]
    pub services: Vec<String>,
    /// The last thing that failed and has not been mended.
    #[serde(default)]
    pub last_error: Option<String>,
    /// Whether it is about to end: nobody needs to wait for it.
    #[serde(default)]
    pub leaving: bool,
}

impl Report {
    /// Leaves so much of it that it takes little room, and says in one line what it says: one
    /// sidecar's is shown among those of others, to people at terminals.
    pub fn curb(&mut self) {
        let mut room = SERVICES_BYTES_MAX;
        self.services.truncate(SERVICES_MAX);
        self.services.retain(|it| {
            let left = room.checked_sub(it.len());
            room = left.unwrap_or(room);
            left.is_some()
        });
        let curb = |text: &mut String, most| {
            text.truncate(text.floor_char_boundary(most));
            *text = text.replace(char::is_control, " ");
        };
        for word in [&mut self.version, &mut self.certificate.serial, &mut self.certificate.issuer]
        {
            curb(word, WORD_MAX);
        }
        for error in [&mut self.policy.error, &mut self.last_error].into_iter().flatten() {
            curb(error, ERROR_MAX);
        }
    }
}

/// A certificate in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// In hexadecimal.
    pub serial: String,
    /// When it ends.
    pub not_after: u64,
    /// SHA-256 of its issuer's certificate, in lower-case hexadecimal.
    pub issuer: String,
}

/// What a sidecar makes of the policy it got.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The newest it got; 0 for none.
    pub received: u64,
    /// The newest it took; 0 for none.
    pub accepted: u64,
    /// Why it took not the newest.
    #[serde(default)]
    pub error: Option<String>,
}

/// All sidecars with a certificate that is valid.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sidecars {
    /// Of the policy everybody is to have.
    pub generation: u64,
    /// SHA-256 of the issuer in use.
    pub issuer: String,
    /// [`Bundle::sequence`] everybody is to have.
    pub bundle: u64,
    /// Ordered by id and instance.
    pub sidecars: Vec<Sidecar>,
}

/// A sidecar as control knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sidecar {
    /// Its SPIFFE id.
    pub id: String,
    /// Whether a watch of it is open.
    pub connected: bool,
    /// When control heard of it last.
    pub seen: u64,
    /// When the newest certificate it was given ends.
    pub not_after: u64,
    /// Where its connection comes from.
    pub peer: Option<std::net::IpAddr>,
    /// What it said last.
    pub report: Report,
}

impl Sidecar {
    /// Its SPIFFE id, and which instance of it.
    pub fn key(&self) -> (String, String) {
        (self.id.clone(), self.report.instance.clone())
    }

    /// Where control may connect to its inbound listener: where its connection comes from, at
    /// the port that it names; nothing where it has no listener.
    ///
    /// It says itself where it listens, and must not have control connect to anything else.
    ///
    /// # Errors
    ///
    /// Why what it says is not to be believed, or not yet.
    pub fn listener(&self) -> Result<Option<SocketAddr>, String> {
        let Some(inbound) = self.report.inbound else { return Ok(None) };
        match self.peer {
            Some(peer) if peer.is_loopback() || !inbound.ip().is_loopback() => {
                Ok(Some(SocketAddr::new(peer, inbound.port())))
            }
            Some(peer) => Err(format!("its listener is {inbound}, which {peer} does not show")),
            None => Err("no connection of it has been seen yet".to_owned()),
        }
    }
}

/// The policy control hands out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// What everybody gets; 0 for none.
    pub generation: u64,
    /// What only some get as yet.
    pub canary: Option<Canary>,
    /// Generations that can be returned to, newest first.
    pub history: Vec<u64>,
    /// Why the folder's newest content is not handed out.
    pub error: Option<String>,
}

/// A generation on trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// Its number.
    pub generation: u64,
    /// Sidecars of a hundred that get it.
    pub percent: u8,
    /// Those that took it.
    pub accepted: usize,
    /// Those it was sent to.
    pub asked: usize,
}

/// A change an operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyChange {
    /// The generation whose content to return to; without it, the one before.
    pub rollback: Option<u64>,
}

/// How far a rotation is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationStatus {
    /// What is being waited for; `None` when no rotation is under way.
    pub step: Option<String>,
    /// Number of rotations finished.
    pub finished: u64,
    /// Why the last one was given up, or what keeps this one.
    pub error: Option<String>,
    /// Each sidecar, and what it lacks; empty strings for nothing.
    pub sidecars: Vec<Standing>,
}

/// Where a sidecar is in a rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Its SPIFFE id.
    pub id: String,
    /// Its instance.
    pub instance: String,
    /// Whether it trusts the new root.
    pub trusts: bool,
    /// Whether it says that it has a leaf of the new issuer.
    pub renewed: bool,
    /// Whether a live handshake showed that leaf.
    pub proved: bool,
    /// What is missing, in words; empty for nothing, or [`LEFT_OUT`].
    pub lacks: String,
}

/// What a sidecar lacks that an operator wants left out.
pub const LEFT_OUT: &str = "left out";

impl Standing {
    /// Whether it keeps the rotation from going on.
    pub fn is_behind(&self) -> bool {
        !["", LEFT_OUT].contains(&&*self.lacks)
    }
}

/// Why a call was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// A word of a closed set: `token_expired`, `other_id`, `rate_limited`, …
    pub reason: String,
    /// In a sentence.
    pub error: String,
    /// What to do.
    pub hint: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, error, hint } = self;
        write!(f, "{error} (`{reason}`{}{hint})", if hint.is_empty() { "" } else { "; " })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_and_operators_ids_are_reserved() {
        for (path, reserved) in [
            ("/ns/remora/sa/control", true),
            ("/ns/remora/sa/operator", true),
            ("/ns/remora/sa/web", false),
            ("/ns/shop/sa/control", false),
        ] {
            assert_eq!(is_reserved(path), reserved, "{path}");
        }
    }

    #[test]
    fn a_sidecar_cannot_have_control_connect_elsewhere() {
        let at = |peer: Option<&str>, inbound: Option<&str>| {
            let inbound = inbound.map(|it| it.parse().unwrap());
            let report = Report { inbound, ..Report::default() };
            let peer = peer.map(|it| it.parse().unwrap());
            let listener = Sidecar { peer, report, ..Sidecar::default() }.listener();
            listener.map(|it| it.map(|it| it.to_string())).map_err(drop)
        };
        for (peer, inbound, expected) in [
            (Some("10.0.0.7"), "10.0.0.7:15006", Ok("10.0.0.7:15006")),
            (Some("10.0.0.7"), "0.0.0.0:15006", Ok("10.0.0.7:15006")),
            (Some("10.0.0.7"), "169.254.169.254:80", Ok("10.0.0.7:80")),
            (Some("10.0.0.7"), "127.0.0.1:15006", Err(())),
            (Some("127.0.0.1"), "127.0.0.1:15006", Ok("127.0.0.1:15006")),
            (Some("::1"), "[::]:15006", Ok("[::1]:15006")),
            (None, "10.0.0.7:15006", Err(())),
        ] {
            let expected = expected.map(|it| Some(it.to_owned()));
            assert_eq!(at(peer, Some(inbound)), expected, "{peer:?} {inbound}");
        }
        assert_eq!(at(Some("10.0.0.7"), None), Ok(None));
    }
}
