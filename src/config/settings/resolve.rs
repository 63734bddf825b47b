//! Resolve: what was typed becomes settings, or everything that is wrong with it.

mod control;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
};

use super::{AccessLog, Flags, Identity, LogFormat, Mode, Settings, TcpForward};
use crate::config::{
    report::{Complaint, quoted, suggestion},
    units,
};

/// More threads than this have nothing to do in a pod.
const THREADS: RangeInclusive<usize> = 1..=64;

/// A million connections are 10 GB already.
const CONNECTIONS: RangeInclusive<usize> = 1..=1_000_000;

/// The port DNS is asked at.
const DNS_PORT: u16 = 53;

/// Everything that is wrong with the settings; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(Vec<Complaint>);

/// A line for each thing that is wrong, and its hint.
impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Complaint { message, hint }) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{message}\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// What is wrong so far.
#[derive(Debug, Default)]
pub(super) struct Wrong(Vec<Complaint>);

impl Wrong {
    fn note(&mut self, message: impl Into<String>, hint: impl Into<String>) {
        self.0.push(Complaint::new(message, hint));
    }

    /// The value, or a complaint that names the flag and its variable.
    fn take<T>(&mut self, flag: &str, value: Result<T, Complaint>) -> Option<T> {
        let Complaint { message, hint } = match value {
            Ok(value) => return Some(value),
            Err(complaint) => complaint,
        };
        self.note(format!("{}: {message}", named(flag)), hint);
        None
    }

    /// The values of a list, as many as are good.
    fn list<T>(
        &mut self,
        flag: &str,
        items: &[String],
        read: fn(&str) -> Result<T, Complaint>,
    ) -> Vec<T> {
        items.iter().filter_map(|it| self.take(flag, read(it))).collect()
    }

    /// The addresses of a listener; none for `off`.
    fn listener(&mut self, flag: &str, text: &str) -> Vec<SocketAddr> {
        if text == "off" {
            return Vec::new();
        }
        let items: Vec<_> = text.split(',').map(str::to_owned).collect();
        self.list(flag, &items, address)
    }
}

impl Settings {
    /// The settings that `flags` amount to.
    ///
    /// # Errors
    ///
    /// Everything that is missing, malformed or contradictory, at once.
    pub fn new(flags: &Flags) -> Result<Self, Errors> {
        let mut wrong = Wrong::default();
        // Where a value is wrong a stand-in takes its place, and never leaves this function.
        let identity = wrong.take("identity", identity(flags.identity.as_deref()));
        let app = flags.app.as_deref().and_then(|it| wrong.take("app", address(it)));
        let chosen = flags.mode.as_deref().and_then(|it| wrong.take("mode", mode(it)));
        let is_explicit = flags.app.is_some() || !flags.tcp.is_empty();
        let mode = if is_explicit { Mode::Explicit } else { Mode::Capture };
        let (grace, lame_duck) = (
            wrong.take("grace", units::duration_or_zero(&flags.grace)),
            wrong.take("lame-duck", units::duration_or_zero(&flags.lame_duck)),
        );
        let settings = Self {
            inbound: wrong.listener("inbound", &flags.inbound),
            outbound: wrong.listener("outbound", &flags.outbound),
            admin: wrong.listener("admin", &flags.admin),
            app,
            tcp: wrong.list("tcp", &flags.tcp, forward),
            mode: chosen.unwrap_or(mode),
            identity: identity.unwrap_or(Identity::None),
            control: control::of(flags, &mut wrong),
            state: wrong.take("state", path(&flags.state)).unwrap_or_default(),
            policy: flags.policy.as_deref().and_then(|it| wrong.take("policy", path(it))),
            namespace: flags.namespace.as_deref().and_then(|it| {
                let result = namespace(it);
                wrong.take("namespace", result)
            }),
            // Kubernetes gives an empty one to a pod whose node has no such label.
            zone: flags.zone.as_deref().filter(|it| !it.is_empty()).and_then(|it| {
                let result = zone(it);
                wrong.take("zone", result)
            }),
            dns: wrong.list("dns", &flags.dns, dns_server),
            grace: grace.unwrap_or_default(),
            lame_duck: lame_duck.unwrap_or_default(),
            threads: wrong.take("threads", count(&flags.threads, THREADS)).unwrap_or(1),
            max_connections: wrong
                .take("max-connections", count(&flags.max_connections, CONNECTIONS))
                .unwrap_or(1),
            access_log: wrong
                .take("access-log", access_log(&flags.access_log))
                .unwrap_or(AccessLog::Off),
            log: wrong.take("log", log_filter(&flags.log)).unwrap_or_default(),
            log_format: wrong
                .take("log-format", log_format(&flags.log_format))
                .unwrap_or(LogFormat::Json),
            upgrade: flags.upgrade,
            upgrade_sock: wrong.take("upgrade-sock", path(&flags.upgrade_sock)).unwrap_or_default(),
        };
        if let (Some(grace), Some(lame_duck)) = (grace, lame_duck)
            && grace <= lame_duck
        {
            let hint = "requests in flight get what is left of `--grace` after `--lame-duck`";
            wrong.note("`--grace` is not longer than `--lame-duck`", hint);
        }
        settings.check_mode(flags, &mut wrong);
        control::check(&settings, flags, &mut wrong);
        settings.check_listeners(&mut wrong);
        if wrong.0.is_empty() { Ok(settings) } else { Err(Errors(wrong.0)) }
    }

    /// What the mode asks for or forbids.
    fn check_mode(&self, flags: &Flags, wrong: &mut Wrong) {
        match self.mode {
            Mode::Explicit if flags.app.is_none() && flags.inbound != "off" => wrong.note(
                format!("{} is missing, and explicit mode needs it", named("app")),
                "name the application: `--app 127.0.0.1:8080`, or set `--inbound off`",
            ),
            Mode::Capture if flags.app.is_some() => wrong.note(
                format!("{} is of no use in capture mode", named("app")),
                "remove it, or choose `--mode explicit`",
            ),
            Mode::Explicit | Mode::Capture => (),
        }
        if flags.inbound == "off" && flags.outbound == "off" && flags.tcp.is_empty() {
            let message = "`--inbound` and `--outbound` are both off: there is nothing to do";
            wrong.note(message, "leave one of them at its default");
        }
    }

    /// Addresses that two listeners want, or that lead back here.
    fn check_listeners(&self, wrong: &mut Wrong) {
        let of = |flag: &'static str, list: &[SocketAddr]| {
            list.iter().map(move |it| (flag, *it)).collect::<Vec<_>>()
        };
        let mut all = of("inbound", &self.inbound);
        all.extend(of("outbound", &self.outbound));
        all.extend(of("admin", &self.admin));
        all.extend(self.tcp.iter().map(|it| ("tcp", it.local)));
        for (index, (flag, address)) in all.iter().enumerate() {
            let earlier = all.iter().take(index).find(|(_, it)| overlap(*it, *address));
            if let Some((other, _)) = earlier {
                let message = format!("`--{flag}` and `--{other}` both listen on `{address}`");
                wrong.note(message, "choose another port for one of them");
            }
        }
        let behind = self.app.filter(|app| all.iter().any(|(_, it)| leads_to(*app, *it)));
        if let Some(app) = behind {
            let message = format!("`--app {app}` is a listener of this process");
            wrong.note(message, "name the port the application listens on");
        }
    }
}

/// Whether two listeners cannot both be had. Port 0 is a new port each time.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let same_family = a.is_ipv4() == b.is_ipv4();
    let same_address = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && same_family && same_address
}

/// Whether a connection to `to` reaches `listener`.
fn leads_to(to: SocketAddr, listener: SocketAddr) -> bool {
    let everywhere = listener.ip().is_unspecified() && to.ip().is_loopback();
    to.port() == listener.port() && (to.ip() == listener.ip() || everywhere)
}

/// A flag with its variable.
fn named(flag: &str) -> String {
    format!("`--{flag}` (REMORA_{})", flag.to_uppercase().replace('-', "_"))
}

fn identity(text: Option<&str>) -> Result<Identity, Complaint> {
    match text {
        Some("none") => Ok(Identity::None),
        Some("control") => Ok(Identity::Control),
        Some(text) => match text.strip_prefix("unix:") {
            Some(socket) => path(socket.trim_start_matches("//")).map(Identity::Socket),
            None => path(text).map(Identity::Dir),
        },
        None => Err(Complaint::new(
            "it is missing",
            "name the folder of tls.crt, tls.key and ca.crt, or `control` to be given them, \
             or `none` to run without mutual TLS",
        )),
    }
}

fn mode(text: &str) -> Result<Mode, Complaint> {
    word(text, &[("capture", Mode::Capture), ("explicit", Mode::Explicit)])
}

fn log_format(text: &str) -> Result<LogFormat, Complaint> {
    word(text, &[("json", LogFormat::Json), ("text", LogFormat::Text)])
}

fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, Complaint> {
    let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
    let found = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
    found.ok_or_else(|| {
        Complaint::new(format!("unknown value {}", quoted(text)), suggestion(text, &known))
    })
}

fn access_log(text: &str) -> Result<AccessLog, Complaint> {
    if text.ends_with('%') {
        return units::ten_thousandths(text).map(|share| match share {
            10_000 => AccessLog::All,
            per_ten_thousand => AccessLog::Sampled { per_ten_thousand },
        });
    }
    let words =
        [("off", AccessLog::Off), ("failures", AccessLog::Failures), ("all", AccessLog::All)];
    word(text, &words).map_err(|Complaint { message, hint }| Complaint {
        message,
        hint: format!("{hint}, or a share such as `1%`"),
    })
}

fn log_filter(text: &str) -> Result<String, Complaint> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    // A lone word would be taken for a target, and a level with a typing error for none.
    let is_known = |part: &str| part.contains('=') || LEVELS.contains(&part);
    let is_filter = text.parse::<tracing_subscriber::filter::Targets>().is_ok();
    if is_filter && text.split(',').all(is_known) {
        return Ok(text.to_owned());
    }
    Err(Complaint::new(
        format!("{} is not a log filter", quoted(text)),
        "write a level such as `info`, or targets such as `info,remora::discovery=debug`",
    ))
}

fn path(text: &str) -> Result<PathBuf, Complaint> {
    if text.is_empty() {
        return Err(Complaint::new("it is empty", "give it a value, or do not set it"));
    }
    Ok(PathBuf::from(text))
}

fn namespace(text: &str) -> Result<String, Complaint> {
    let hint = "use lower-case letters, digits and `-`, at most 63 of them";
    let is_label = units::is_label(text);
    let message = || format!("{} is not a namespace", quoted(text));
    is_label.then(|| text.to_owned()).ok_or_else(|| Complaint::new(message(), hint))
}

fn zone(text: &str) -> Result<String, Complaint> {
    let hint = "write the label `topology.kubernetes.io/zone` of the node, such as `eu-1a`";
    let message = || format!("{} is not a zone", quoted(text));
    units::is_zone(text).then(|| text.to_owned()).ok_or_else(|| Complaint::new(message(), hint))
}

fn address(text: &str) -> Result<SocketAddr, Complaint> {
    text.parse().map_err(|_| {
        Complaint::new(
            format!("{} is not an address and port", quoted(text)),
            "write `127.0.0.1:8080` or `[::1]:8080`",
        )
    })
}

fn dns_server(text: &str) -> Result<SocketAddr, Complaint> {
    let with_port = text.parse::<IpAddr>().map(|it| SocketAddr::new(it, DNS_PORT));
    with_port.or_else(|_| text.parse()).map_err(|_| {
        Complaint::new(
            format!("{} is not the address of a DNS server", quoted(text)),
            "write `10.96.0.10` or `127.0.0.1:5353`",
        )
    })
}

/// `LOCAL=HOST:PORT`.
fn forward(text: &str) -> Result<TcpForward, Complaint> {
    let read = || {
        let (local, remote) = text.split_once('=')?;
        let local = match local.parse::<u16>() {
            Ok(port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            Err(_) => local.parse().ok()?,
        };
        let (host, port) = if let Ok(address) = remote.parse::<SocketAddr>() {
            (address.ip().to_string(), address.port())
        } else {
            let (host, port) = remote.rsplit_once(':')?;
            (host.to_owned(), port.parse().ok()?)
        };
        let is_host = units::is_dns_name(&host) || host.parse::<IpAddr>().is_ok();
        (is_host && port != 0).then_some(TcpForward { local, host, port })
    };
    read().ok_or_else(|| {
        Complaint::new(
            format!("{} is not LOCAL=HOST:PORT", quoted(text)),
            "write `5432=postgres.shop:5432` or `127.0.0.1:5432=10.0.0.7:5432`",
        )
    })
}

fn count(text: &str, range: RangeInclusive<usize>) -> Result<usize, Complaint> {
    let number = text.parse().ok().filter(|it| range.contains(it));
    number.ok_or_else(|| {
        Complaint::new(
            format!("{} is not in the range", quoted(text)),
            format!("write a whole number from {} to {}", range.start(), range.end()),
        )
    })
}

#[cfg(test)]
mod tests;
