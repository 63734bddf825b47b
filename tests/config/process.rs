//! The command line: what it prints, and the code it ends with.

use std::process::{Command, Output};

use expect_test::{Expect, expect};

#[test]
fn a_folder_with_three_mistakes_prints_three_positions() {
    check(
        &["check", "tests/config/three"],
        1,
        &expect![[r#"
        tests/config/three/a.yaml:6:15: unknown value `strikt`
        hint: did you mean `strict`?
        tests/config/three/b.yaml:5:3: unknown key `opaquePort` in spec
        hint: did you mean `opaquePorts`?
        tests/config/three/b.yaml:9:18: ServicePolicy `shop/orders` comes twice
        hint: rename or remove one; the first is at tests/config/three/a.yaml:3:18
        3 errors in 2 files
    "#]],
        &expect![[""]],
    );
}

#[test]
fn good_documents_are_counted() {
    check(
        &["check", "examples/policies"],
        0,
        &expect![[r#"
        ok: 7 documents in 4 files
    "#]],
        &expect![[""]],
    );
}

#[test]
fn a_path_that_is_not_there_is_an_error() {
    check(
        &["check", "tests/config/absent"],
        1,
        &expect![[r#"
        tests/config/absent: cannot be read: No such file or directory (os error 2)
        hint: name a folder or file that is there
        1 error in 1 file
    "#]],
        &expect![[""]],
    );
}

#[test]
fn the_defaults_have_their_reasons() {
    check(
        &["defaults"],
        0,
        &expect![[r#"
        ServicePolicy: how callers reach a service
          tls.mode               auto          mutual TLS with every peer that speaks it; the others are counted
          tls.identities         the namespace any workload of the service's namespace may answer
          loadBalancer.algorithm LeastRequest  of two drawn, the one with fewer requests pending; picked per request, not per connection
          timeouts.request       1m            to the response's head only: a limit on the whole would cut exports and long polls
          timeouts.connect       1s            inside a cluster a SYN that took longer was lost
          timeouts.idle          5m            between two frames of a body: longer than any keep-alive in use
          discovery              the host      the addresses of the name the application asked for

        WorkloadPolicy: what guards a workload
          mtls.mode              permissive    callers outside the mesh still get in, and are counted
          mtls.ports             none          every port is like the others
          opaquePorts            none          the protocol is detected on every port
          timeouts.request       1m            as for callers: to the response's head
          timeouts.idle          5m            as for callers: between two frames of a body
    "#]],
        &expect![[""]],
    );
}

#[test]
fn settings_that_are_missing_end_with_78() {
    check(
        &["--mode", "explicit"],
        78,
        &expect![[""]],
        &expect![[r#"
        `--identity` (REMORA_IDENTITY): it is missing
        hint: name the folder of tls.crt, tls.key and ca.crt, or `none` to run without mutual TLS
        `--app` (REMORA_APP) is missing, and explicit mode needs it
        hint: name the application: `--app 127.0.0.1:8080`, or set `--inbound off`
        `remora --help` explains every setting
    "#]],
    );
}

#[test]
fn a_variable_is_as_good_as_a_flag_and_the_flag_wins() {
    let output = Command::new(env!("CARGO_BIN_EXE_remora"))
        .env_clear()
        .env("REMORA_GRACE", "soon")
        .env("REMORA_THREADS", "none")
        .env("REMORA_TCP", "1=a:1,2=b")
        .args(["--threads", "65"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
    expect![[r#"
        `--identity` (REMORA_IDENTITY): it is missing
        hint: name the folder of tls.crt, tls.key and ca.crt, or `none` to run without mutual TLS
        `--grace` (REMORA_GRACE): `soon` is not a duration
        hint: write a whole number and a unit: `250ms`, `2s`, `5m`, `1h30m`
        `--tcp` (REMORA_TCP): `2=b` is not LOCAL=HOST:PORT
        hint: write `5432=postgres.shop:5432` or `127.0.0.1:5432=10.0.0.7:5432`
        `--threads` (REMORA_THREADS): `65` is not in the range
        hint: write a whole number from 1 to 64
        `--app` (REMORA_APP) is missing, and explicit mode needs it
        hint: name the application: `--app 127.0.0.1:8080`, or set `--inbound off`
        `remora --help` explains every setting
    "#]]
    .assert_eq(&text(&output.stderr));
}

#[test]
fn a_command_that_does_not_exist_ends_with_2() {
    let output = remora(&["chekc"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn help_is_no_error_and_names_every_variable() {
    let output = remora(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    let flags = help.lines().filter(|it| it.trim_start().starts_with("--"));
    // Each setting, but neither --help nor --version, which come with a short flag.
    assert_eq!(flags.count(), help.matches("[env: REMORA_").count());
}

fn check(args: &[&str], code: i32, out: &Expect, err: &Expect) {
    let output = remora(args);
    out.assert_eq(&text(&output.stdout));
    err.assert_eq(&text(&output.stderr));
    assert_eq!(output.status.code(), Some(code));
}

fn remora(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_remora")).env_clear().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
