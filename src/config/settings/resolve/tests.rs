#![expect(clippy::needless_raw_string_hashes, reason = "UPDATE_EXPECT writes them")]

use std::time::Duration;

use clap::Parser;
use expect_test::{Expect, expect};

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    flags: Flags,
}

#[test]
fn one_flag_is_enough_and_the_rest_has_defaults() {
    let settings = good(&["--identity=/certs"]);
    assert_eq!(settings.identity, Identity::Dir("/certs".into()));
    assert_eq!(settings.mode, Mode::Capture);
    assert_eq!(settings.inbound, addresses(&["0.0.0.0:15006", "[::]:15006"]));
    assert_eq!(settings.outbound, addresses(&["127.0.0.1:15001", "[::1]:15001"]));
    assert_eq!(settings.admin, addresses(&["0.0.0.0:15020", "[::]:15020"]));
    assert_eq!((settings.grace, settings.lame_duck), (seconds(25), seconds(2)));
    assert_eq!((settings.threads, settings.max_connections), (1, 10_000));
    assert_eq!((settings.access_log, settings.log_format), (AccessLog::Failures, LogFormat::Json));
    assert_eq!(settings.log, "info");
    assert!(settings.app.is_none() && settings.tcp.is_empty() && settings.dns.is_empty());
    assert!(settings.policy.is_none() && settings.namespace.is_none() && !settings.upgrade);
}

#[test]
fn naming_the_application_or_a_port_chooses_explicit_mode() {
    assert_eq!(good(&["--identity=none", "--app=127.0.0.1:8080"]).mode, Mode::Explicit);
    let settings = good(&["--identity=none", "--inbound=off", "--tcp=5432=postgres.shop:5432"]);
    assert_eq!(settings.mode, Mode::Explicit);
    let local = "127.0.0.1:5432".parse().unwrap();
    let forward = TcpForward { local, host: "postgres.shop".to_owned(), port: 5432 };
    assert_eq!(settings.tcp, [forward]);
}

#[test]
fn a_local_port_leads_to_a_name_or_an_address() {
    for (text, local, host) in [
        ("1=db:2", "127.0.0.1:1", "db"),
        ("0.0.0.0:1=10.0.0.7:2", "0.0.0.0:1", "10.0.0.7"),
        ("[::1]:1=[fd00::7]:2", "[::1]:1", "fd00::7"),
    ] {
        let local = local.parse().unwrap();
        let expected = TcpForward { local, host: host.to_owned(), port: 2 };
        assert_eq!(forward(text), Ok(expected), "{text}");
    }
    for text in ["", "1", "1=db", "1=db:0", "x=db:1", "1=a b:1", "1=:1", "=db:1"] {
        assert!(forward(text).is_err(), "{text}");
    }
}

#[test]
fn a_share_of_the_requests_may_be_logged() {
    assert_eq!(access_log("1%"), Ok(AccessLog::Sampled { per_ten_thousand: 100 }));
    assert_eq!(access_log("100%"), Ok(AccessLog::All));
    assert!(access_log("0%").is_err());
}

#[test]
fn listeners_may_ask_for_any_port_and_be_off() {
    let any = "127.0.0.1:0";
    let settings = good(&["--identity=none", "--outbound=off", "--inbound", any, "--admin", any]);
    assert_eq!((settings.outbound, settings.inbound), (Vec::new(), addresses(&[any])));
}

#[test]
fn a_zone_that_nobody_knows_is_none() {
    let zone = |flags: &[&str]| good(flags).zone;
    assert_eq!(zone(&["--identity=none", "--zone=eu-1a"]).as_deref(), Some("eu-1a"));
    assert_eq!(zone(&["--identity=none", "--zone="]), None);
    assert_eq!(zone(&["--identity=none"]), None);
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    check(
        &[
            "--mode=explicit",
            "--inbound=15006",
            "--tcp=1=db",
            "--dns=ten",
            "--grace=2",
            "--threads=65",
            "--max-connections=0",
            "--access-log=some",
            "--log=infoo",
            "--log-format=jsn",
            "--namespace=Shop",
            "--zone=eu 1a",
            "--policy=",
        ],
        &expect![[r#"
            `--identity` (REMORA_IDENTITY): it is missing
            hint: name the folder of tls.crt, tls.key and ca.crt, or `control` to be given them, or `none` to run without mutual TLS
            `--grace` (REMORA_GRACE): `2` is not a duration
            hint: write a whole number and a unit: `250ms`, `2s`, `5m`, `1h30m`
            `--inbound` (REMORA_INBOUND): `15006` is not an address and port
            hint: write `127.0.0.1:8080` or `[::1]:8080`
            `--tcp` (REMORA_TCP): `1=db` is not LOCAL=HOST:PORT
            hint: write `5432=postgres.shop:5432` or `127.0.0.1:5432=10.0.0.7:5432`
            `--policy` (REMORA_POLICY): it is empty
            hint: give it a value, or do not set it
            `--namespace` (REMORA_NAMESPACE): `Shop` is not a namespace
            hint: use lower-case letters, digits and `-`, at most 63 of them
            `--zone` (REMORA_ZONE): `eu 1a` is not a zone
            hint: write the label `topology.kubernetes.io/zone` of the node, such as `eu-1a`
            `--dns` (REMORA_DNS): `ten` is not the address of a DNS server
            hint: write `10.96.0.10` or `127.0.0.1:5353`
            `--threads` (REMORA_THREADS): `65` is not in the range
            hint: write a whole number from 1 to 64
            `--max-connections` (REMORA_MAX_CONNECTIONS): `0` is not in the range
            hint: write a whole number from 1 to 1000000
            `--access-log` (REMORA_ACCESS_LOG): unknown value `some`
            hint: one of: off, failures, all, or a share such as `1%`
            `--log` (REMORA_LOG): `infoo` is not a log filter
            hint: write a level such as `info`, or targets such as `info,remora::discovery=debug`
            `--log-format` (REMORA_LOG_FORMAT): unknown value `jsn`
            hint: did you mean `json`?
            `--app` (REMORA_APP) is missing, and explicit mode needs it
            hint: name the application: `--app 127.0.0.1:8080`, or set `--inbound off`"#]],
    );
}

#[test]
fn settings_that_contradict_are_said() {
    check(
        &["--identity=none", "--mode=capture", "--app=127.0.0.1:15006", "--grace=2s"],
        &expect![[r#"
            `--grace` is not longer than `--lame-duck`
            hint: requests in flight get what is left of `--grace` after `--lame-duck`
            `--app` (REMORA_APP) is of no use in capture mode
            hint: remove it, or choose `--mode explicit`
            `--app 127.0.0.1:15006` is a listener of this process
            hint: name the port the application listens on"#]],
    );
    check(
        &["--identity=none", "--inbound=off", "--outbound=off"],
        &expect![[r#"
        `--inbound` and `--outbound` are both off: there is nothing to do
        hint: leave one of them at its default"#]],
    );
    check(
        &[
            "--identity=none",
            "--outbound=127.0.0.1:15020",
            "--tcp=15001=db:1,15001=db:2",
            "--inbound=off",
        ],
        &expect![[r#"
            `--admin` and `--outbound` both listen on `0.0.0.0:15020`
            hint: choose another port for one of them
            `--tcp` and `--tcp` both listen on `127.0.0.1:15001`
            hint: choose another port for one of them"#]],
    );
}

#[test]
fn control_is_found_and_known() {
    let all = good(&[
        "--identity=control",
        "--control=https://remora-control.remora",
        "--control-token=/token",
        "--control-ca=/ca.crt",
        "--control-id=spiffe://td/ns/remora/sa/control",
        "--state=/dev/shm/state",
        "--instance=web-0",
    ]);
    assert_eq!((all.identity, all.state), (Identity::Control, "/dev/shm/state".into()));
    let control = all.control.unwrap();
    assert_eq!((control.host.as_str(), control.port), ("remora-control.remora", 15_030));
    assert_eq!(control.id.unwrap().as_str(), "spiffe://td/ns/remora/sa/control");
    assert_eq!((control.token, control.roots), (Some("/token".into()), Some("/ca.crt".into())));
    assert_eq!(control.instance.as_deref(), Some("web-0"));
    let only_policy = good(&["--identity=/certs", "--control=https://[::1]:443/"]);
    let control = only_policy.control.unwrap();
    assert_eq!((control.host.as_str(), control.port), ("::1", 443));
    for text in ["unix:/run/agent.sock", "unix:///run/agent.sock"] {
        let socket = Identity::Socket("/run/agent.sock".into());
        assert_eq!(good(&[&format!("--identity={text}")]).identity, socket);
    }
}

#[test]
fn what_does_not_go_with_control_is_said() {
    check(
        &["--identity=control", "--control-token=/t", "--control-id=x", "--instance=a b"],
        &expect![[r#"
            `--control-id` (REMORA_CONTROL_ID): `x` is not a SPIFFE id: a SPIFFE id begins with `spiffe://`
            hint: write `spiffe://cluster.local/ns/remora/sa/control`
            `--instance` (REMORA_INSTANCE): `a b` is not a name
            hint: use letters, digits, `-`, `.` and `_`, at most 253 of them
            `--control` (REMORA_CONTROL) is missing, and `--identity control` needs it
            hint: say where control is: `--control https://remora-control.remora`
            `--control-token` (REMORA_CONTROL_TOKEN) is of no use without `--control`
            hint: remove it, or say where control is
            `--control-id` (REMORA_CONTROL_ID) is of no use without `--control`
            hint: remove it, or say where control is"#]],
    );
    check(
        &["--identity=none", "--control=http://control", "--policy=/p"],
        &expect![[r#"
            `--control` (REMORA_CONTROL): `http://control` is not where control can be
            hint: write `https://remora-control.remora:15030`
            `--control` (REMORA_CONTROL) and `--policy` (REMORA_POLICY) are both given
            hint: policy comes from control, or from a folder: remove one of them
            `--control` (REMORA_CONTROL) does not go with `--identity none`
            hint: control has to know whom it speaks to: choose `--identity control` or a folder"#]],
    );
    check(
        &["--identity=control", "--control=https://control/path", "--state="],
        &expect![[r#"
            `--control` (REMORA_CONTROL): `https://control/path` is not where control can be
            hint: write `https://remora-control.remora:15030`
            `--state` (REMORA_STATE): it is empty
            hint: give it a value, or do not set it
            `--control-ca` (REMORA_CONTROL_CA) is missing, and `--identity control` needs it
            hint: name the file of the mesh's roots; `remora-control bundle` prints them"#]],
    );
}

fn check(args: &[&str], expected: &Expect) {
    expected.assert_eq(&resolved(args).unwrap_err().to_string());
}

fn good(args: &[&str]) -> Settings {
    resolved(args).unwrap()
}

fn resolved(args: &[&str]) -> Result<Settings, Errors> {
    Settings::new(&Line::try_parse_from([&["remora"], args].concat()).unwrap().flags)
}

fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
    texts.iter().map(|it| it.parse().unwrap()).collect()
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}
