//! `serve` and `token`, as far as they need no server.

use super::*;
use crate::{store::Folder, token::PREFIX};

#[test]
fn help_explains_every_argument_of_serve() {
    let dir = tempfile::tempdir().unwrap();
    check(
        &dir,
        "serve --help",
        0,
        &expect![[r#"
            Serve certificates and policy to sidecars, until SIGTERM

            The API is HTTPS (TLS 1.3, HTTP/2 or 1.1) with JSON. Sidecars join by a token of `token create` and
            renew by the certificate they have; operators use the other commands, with the same --dir or
            --kubernetes. Every certificate is written down in DIR/state/audit.jsonl, or in the log.

            Health and metrics are plain HTTP at --admin: /health/live, /health/ready, /metrics.

            What sidecars need to go on is with them: control may be stopped at any time.

            Usage: remora-control serve [OPTIONS]

            Options:
                  --dir <DIR>
                      The authority's folder, made by `init`; what control keeps is in DIR/state

                  --kubernetes
                      Keep everything in Kubernetes instead, as the pod's service account or KUBECONFIG may.
                      Several replicas may serve at once. Policy is what ConfigMaps labelled
                      `remora.dev/policy=true` hold, and sidecars join by service-account tokens, too

                  --namespace <NS>
                      Control's own namespace in Kubernetes; without it, that of the pod or the context

                  --issuer-secret <NAME>
                      A Secret with the issuer to begin with, as cert-manager makes it: tls.crt, tls.key,
                      ca.crt. Without it, and where there is none yet, a root and an issuer are made; the root's
                      key is not kept

                  --trust-domain <NAME>
                      The trust domain to begin with, where the issuer names none

                      [default: cluster.local]

                  --replica <NAME>
                      The name of this replica, another for each; without it the host's, which is the pod's

                  --audience <AUDIENCE>
                      Whom service-account tokens must be for

                      [default: remora.dev/control]

                  --bundle-namespaces <NAMESPACE>
                      Keep ConfigMap remora-bundle in these namespaces, too, for sidecars to know control by

                  --policy <FOLDER>
                      A folder of policy documents (*.yaml) to follow and to publish

                  --listen <ADDRESS>
                      Where the API listens

                      [default: 0.0.0.0:15030,[::]:15030]

                  --admin <ADDRESS>
                      Where health and metrics are, in plain HTTP

                      [default: 127.0.0.1:15031]

                  --name <NAME>
                      Host names and addresses that clients such as curl call control by, beside localhost

                  --leaf-life <LIFE>
                      How long certificates of workloads are valid: 1h, 24h

                      [default: 24h]

                  --canary <PERCENT>
                      Give a new generation of policy to so many sidecars first, such as 10%; it is stopped when
                      one of them rejects it

                  --canary-wait <TIME>
                      How long those may take to say what they make of it; 30 seconds, unless it is given

                  --log <FILTER>
                      What is logged, as JSON on standard error: a level, or `module=level` by commas

                      [default: info]

              -h, --help
                      Print help (see a summary with '-h')
        "#]],
    );
}

#[test]
fn help_explains_every_argument_of_token_create() {
    let dir = tempfile::tempdir().unwrap();
    check(
        &dir,
        "token create --help",
        0,
        &expect![[r#"
        Make a join token for one workload, and print it: it is shown this once

        The token is good for one key. Whoever has it can be the workload, so give it to the sidecar as a
        file that only it can read (`--control-token FILE`). The server need not run, nor be told.

        Usage: remora-control token create [OPTIONS] --dir <DIR>

        Options:
              --dir <DIR>
                  The authority's folder, made by `init`

              --id <ID>
                  The whole SPIFFE id: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`

              --namespace <NS>
                  The workload's Kubernetes namespace, instead of --id

              --service-account <SA>
                  The workload's service account, instead of --id

              --ttl <TIME>
                  How long it may be used: 10m, 1h, 7d at the most

                  [default: 1h]

          -h, --help
                  Print help (see a summary with '-h')
    "#]],
    );
}

#[test]
fn a_token_is_all_of_the_output_and_what_it_is_for_is_told_beside_it() {
    let dir = authority();
    let command = format!("token create --dir DIR/ca {WEB} --ttl 90m");
    let (code, out, err) = run_words(&dir, NOW, &command);
    assert_eq!((code, out.lines().count()), (0, 1));
    assert!(out.starts_with(PREFIX), "{out}");
    let name = err.split(' ').nth(2).unwrap().to_owned();
    expect![[r#"
        join token NAME of `spiffe://cluster.local/ns/shop/sa/web`
          for 1 h 30 min, until 2026-02-03 05:35:06 UTC
    "#]]
    .assert_eq(&err.replace(&name, "NAME"));
    assert!(dir.path().join("ca/state/token").join(name).exists());
    // Another each time.
    assert_ne!(run_words(&dir, NOW, &command).1, out);
}

#[test]
fn a_token_that_no_server_would_take_is_not_made() {
    let dir = authority();
    let mut messages = String::new();
    for arguments in [
        "--id spiffe://elsewhere/ns/shop/sa/web",
        "--id spiffe://cluster.local",
        "--id web",
        "--namespace remora --service-account control",
        "--namespace remora --service-account operator",
        "--namespace shop --service-account web --ttl 8d",
    ] {
        let command = format!("token create --dir DIR/ca {arguments}");
        let (code, out, err) = run_words(&dir, NOW, &command);
        assert_eq!((code, out.as_str()), (78, ""), "{arguments}");
        messages += &err;
    }
    expect![[r#"
        error: `spiffe://elsewhere/ns/shop/sa/web` is not in the trust domain `cluster.local` of this authority
        hint: ids of this authority begin with `spiffe://cluster.local/`
        error: `spiffe://cluster.local` names a trust domain, not a workload in it
        hint: name a workload: `spiffe://cluster.local/ns/NAMESPACE/sa/SERVICE-ACCOUNT`
        error: `web` is not a SPIFFE id: a SPIFFE id begins with `spiffe://`
        hint: the form is spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT
        error: `spiffe://cluster.local/ns/remora/sa/control` is reserved
        hint: control makes its own; operators use `--dir`, or `issue`
        error: `spiffe://cluster.local/ns/remora/sa/operator` is reserved
        hint: control makes its own; operators use `--dir`, or `issue`
        error: a join token for 8 d
        hint: 7 days at the most: make another when it is needed
    "#]].assert_eq(&messages);
    assert!(!dir.path().join("ca/state").exists());
}

#[test]
fn a_server_that_cannot_begin_says_why() {
    let dir = authority();
    let mut messages = String::new();
    let ports = "--listen 127.0.0.1:0 --admin 127.0.0.1:0";
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let _serving = Folder::new(&dir.path().join("held")).serve().unwrap().unwrap();
    fs::create_dir_all(dir.path().join("empty")).unwrap();
    for (arguments, code) in [
        (format!("--dir DIR/empty {ports}"), 1),
        (format!("--dir DIR/held {ports}"), 1),
        (format!("--dir DIR/ca --listen 127.0.0.1:{port} --admin 127.0.0.1:0"), 1),
        (format!("--dir DIR/ca {ports} --canary 100%"), 78),
        (format!("--dir DIR/ca {ports} --canary-wait 1s"), 78),
        (format!("--dir DIR/ca {ports} --log remora=loud"), 78),
        (ports.to_owned(), 78),
    ] {
        let (actual, out, err) = run_words(&dir, NOW, &format!("serve {arguments}"));
        assert_eq!((actual, out.as_str()), (code, ""), "{arguments}: {err}");
        messages += &err.replace(&port.to_string(), "PORT");
    }
    expect![[r#"
        error: cannot read `DIR/empty/root.crt`: No such file or directory (os error 2)
        hint: --dir takes a folder made by `remora-control init`
        error: another server has `DIR/held`
        hint: stop it first, or talk to it: `remora-control status`
        error: cannot listen at `127.0.0.1:PORT`: Address already in use (os error 98)
        hint: name another with `--listen` or `--admin`
        error: invalid value '100%' for '--canary <PERCENT>': expected 1% to 99%

        For more information, try '--help'.
        error: the following required arguments were not provided:
          --canary <PERCENT>

        Usage: remora-control serve --canary <PERCENT> --dir <DIR> --listen <ADDRESS> --admin <ADDRESS> --canary-wait <TIME>

        For more information, try '--help'.
        error: bad log filter `remora=loud`
        hint: a level, or `module=level` separated by commas
        hint: a level such as `info`, or `module=level` separated by commas
        error: the following required arguments were not provided:
          --dir <DIR>

        Usage: remora-control serve --listen <ADDRESS> --admin <ADDRESS> --dir <DIR>

        For more information, try '--help'.
    "#]].assert_eq(&messages);
}
