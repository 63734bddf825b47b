//! The command line's output is an API: each message is here as it is printed.

#![expect(clippy::needless_raw_string_hashes, reason = "`UPDATE_EXPECT=1` writes them")]

mod serving;

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path};

use expect_test::{Expect, expect};
use remora_certs::{bundle::Bundle, jwks, pem, svid::Svid};
use tempfile::TempDir;

use super::*;

const NOW: Duration = Duration::from_secs(1_770_091_506);

const WEB: &str = "--namespace shop --service-account web";

#[test]
fn init_makes_an_authority() {
    let dir = tempfile::tempdir().unwrap();
    check(
        &dir,
        "init --dir DIR/ca",
        0,
        &expect![[r#"
        made the authority of `cluster.local` in `DIR/ca`
          root.crt, root.key: the root, until 2036-02-01 04:05:06 UTC
          issuer.crt, issuer.key: the issuer, until 2027-02-03 04:05:06 UTC
        keep `root.key` elsewhere: it is needed only for the next issuer
    "#]],
    );
    for (name, mode) in
        [("root.crt", 0o644), ("root.key", 0o600), ("issuer.crt", 0o644), ("issuer.key", 0o600)]
    {
        let permissions = fs::metadata(dir.path().join("ca").join(name)).unwrap().permissions();
        // What is public is so as far as the umask lets it.
        assert_eq!(permissions.mode() & 0o600, mode & 0o600, "{name}");
        assert!(permissions.mode() & 0o777 <= mode, "{name}");
    }
}

#[test]
fn init_never_overwrites() {
    let dir = authority();
    check(
        &dir,
        "init --dir DIR/ca",
        78,
        &expect![[r#"
            error: `DIR/ca/root.key` exists
            hint: nothing was overwritten: choose another folder, or `--force` to replace them
        "#]],
    );
}

#[test]
fn issue_writes_what_a_sidecar_watches() {
    let dir = authority();
    let command = format!("issue --dir DIR/ca {WEB} --out DIR/web");
    check(
        &dir,
        &command,
        0,
        &expect![[r#"
        issued `spiffe://cluster.local/ns/shop/sa/web` until 2026-02-04 04:05:06 UTC
          in `DIR/web`: tls.crt, tls.key, ca.crt
    "#]],
    );
    let read = |name| fs::read(dir.path().join("web").join(name)).unwrap();
    let svid = Svid::from_pem(&read("tls.crt"), &read("tls.key")).unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(svid.chain().len(), 2);
    assert_eq!(Bundle::from_pem(&read("ca.crt")).unwrap().roots().len(), 1);
    assert_eq!(read("ca.crt"), fs::read(dir.path().join("ca/root.crt")).unwrap());
}

#[test]
fn issuing_again_replaces_all_files_by_one_swap() {
    let dir = authority();
    let data = || fs::read_link(dir.path().join("web/..data")).unwrap();
    let run = |now| run_words(&dir, now, &format!("issue --dir DIR/ca {WEB} --out DIR/web"));
    assert_eq!(run(NOW).0, 0);
    let first = data();
    assert_eq!(run(NOW + Duration::from_hours(1)).0, 0);
    assert_ne!(data(), first);
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        let link = fs::read_link(dir.path().join("web").join(name)).unwrap();
        assert_eq!(link, Path::new("..data").join(name));
    }
}

#[test]
fn a_whole_id_and_its_parts_ask_for_the_same() {
    let dir = authority();
    let id = "--id spiffe://cluster.local/ns/shop/sa/web";
    let (code, by_id, _) = run_words(&dir, NOW, &format!("issue --dir DIR/ca {id} --out DIR/x"));
    let (_, by_parts, _) = run_words(&dir, NOW, &format!("issue --dir DIR/ca {WEB} --out DIR/x"));
    assert_eq!((code, by_id), (0, by_parts));
}

#[test]
fn wrong_ids_and_lives_are_refused_with_a_hint() {
    let dir = authority();
    let mut messages = String::new();
    for arguments in [
        "--id spiffe://elsewhere/ns/shop/sa/web --out DIR/x",
        "--id spiffe://cluster.local --out DIR/x",
        "--id https://cluster.local/ns/shop/sa/web --out DIR/x",
        "--namespace shop/sa/root --service-account web --out DIR/x",
        "--namespace shop --service-account web --out DIR/x --life 366d",
    ] {
        let (code, out, err) = run_words(&dir, NOW, &format!("issue --dir DIR/ca {arguments}"));
        assert_eq!((code, out.as_str()), (78, ""), "{arguments}");
        messages += &err;
    }
    expect![[r#"
        error: `spiffe://elsewhere/ns/shop/sa/web` is not in the trust domain `cluster.local` of this authority
        hint: ids of this authority begin with `spiffe://cluster.local/`
        error: `spiffe://cluster.local` names a trust domain, not a workload in it
        hint: name a workload: `spiffe://cluster.local/ns/NAMESPACE/sa/SERVICE-ACCOUNT`
        error: `https://cluster.local/ns/shop/sa/web` is not a SPIFFE id: a SPIFFE id begins with `spiffe://`
        hint: the form is spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT
        error: `spiffe://cluster.local/ns/shop/sa/root/sa/web` is not a SPIFFE id: `/` at byte 30 is not allowed in a path (letters, digits, `.`, `-`, `_`)
        hint: the form is spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT
        error: a life of 31622400 seconds is longer than the 31536000 the signing certificate has left
        hint: ask for at most 365 d, or make a new signer with `init`
    "#]].assert_eq(&messages);
    assert!(!dir.path().join("x").exists());
}

#[test]
fn arguments_that_do_not_go_together_are_refused() {
    let dir = authority();
    let mut messages = String::new();
    for arguments in [
        "issue --dir DIR/ca --out DIR/x",
        "issue --dir DIR/ca --out DIR/x --namespace shop",
        "issue --dir DIR/ca --out DIR/x --namespace shop --service-account web --id spiffe://a/b",
        "issue --dir DIR/ca --out DIR/x --namespace shop --service-account web --life 24",
        "inspect",
        "initialise",
    ] {
        let (code, out, err) = run_words(&dir, NOW, arguments);
        assert_eq!((code, out.as_str()), (78, ""), "{arguments}");
        messages += err.split("\n\n").next().unwrap_or_default();
        messages += "\n";
    }
    expect![[r#"
        error: the following required arguments were not provided:
          --id <ID>
        error: the following required arguments were not provided:
          --service-account <SA>
        error: the argument '--namespace <NS>' cannot be used with '--id <ID>'
        error: invalid value '24' for '--life <LIFE>': expected a unit behind the number: `s`, `m`, `h` or `d`
        error: the following required arguments were not provided:
          <FILE>...
        error: unrecognized subcommand 'initialise'
    "#]].assert_eq(&messages);
}

#[test]
fn a_folder_that_is_no_authority_is_refused() {
    let dir = authority();
    let command = format!("issue --dir DIR/nowhere {WEB} --out DIR/x");
    check(
        &dir,
        &command,
        1,
        &expect![[r#"
        error: cannot read `DIR/nowhere/root.crt`: No such file or directory (os error 2)
        hint: --dir takes a folder made by `remora-control init`, with all its files
    "#]],
    );
    fs::write(dir.path().join("ca/issuer.crt"), "garbage").unwrap();
    let command = format!("issue --dir DIR/ca {WEB} --out DIR/x");
    check(
        &dir,
        &command,
        78,
        &expect![[r#"
        error: `DIR/ca/issuer.crt` is not an authority's certificate: no certificate in the trust bundle
        hint: --dir takes a folder made by `remora-control init`, with all its files
    "#]],
    );
}

#[test]
fn an_authority_that_ended_says_so() {
    let dir = authority();
    let later = NOW + Duration::from_hours(400 * 24);
    let command = format!("issue --dir DIR/ca {WEB} --out DIR/x");
    check_at(
        later,
        &dir,
        &command,
        78,
        &expect![[r#"
        error: the issuer's certificate has ended
        hint: make a new authority with `remora-control init`
    "#]],
    );
}

#[test]
fn a_folder_with_files_of_its_own_is_left_alone() {
    let dir = authority();
    fs::create_dir(dir.path().join("web")).unwrap();
    fs::write(dir.path().join("web/tls.key"), "mine").unwrap();
    let command = format!("issue --dir DIR/ca {WEB} --out DIR/web");
    check(
        &dir,
        &command,
        78,
        &expect![[r#"
        error: `DIR/web/tls.key` is a file of its own and cannot be replaced together with the others
        hint: choose an empty folder, or remove the file: links into `..data` replace it
    "#]],
    );
}

#[test]
fn inspect_says_in_words_what_files_hold() {
    let dir = authority();
    assert_eq!(run_words(&dir, NOW, &format!("issue --dir DIR/ca {WEB} --out DIR/web")).0, 0);
    let command = "inspect DIR/web/tls.crt DIR/web/ca.crt DIR/web/tls.key";
    check_at(
        NOW + Duration::from_mins(30),
        &dir,
        command,
        0,
        &expect![[r#"
            DIR/web/tls.crt
              1. workload `spiffe://cluster.local/ns/shop/sa/web`
                 valid      2026-02-03 04:00:06 UTC to 2026-02-04 04:05:06 UTC
                            ends in 23 h 30 min
                 names      URI:spiffe://cluster.local/ns/shop/sa/web
                 subject    (none)
                 signed by  O=Remora, CN=cluster.local issuer …
                 may sign   nothing
                 key        ECDSA, 256 bits
                 serial     …
                 sha-256    …
              2. issuer
                 valid      2026-02-03 04:00:06 UTC to 2027-02-03 04:05:06 UTC
                            ends in 364 d 23 h
                 names      URI:spiffe://cluster.local
                 subject    O=Remora, CN=cluster.local issuer …
                 signed by  O=Remora, CN=cluster.local root …
                 may sign   workloads only
                 key        ECDSA, 256 bits
                 serial     …
                 sha-256    …
            DIR/web/ca.crt
              1. root
                 valid      2026-02-03 04:00:06 UTC to 2036-02-01 04:05:06 UTC
                            ends in 3649 d 23 h
                 names      URI:spiffe://cluster.local
                 subject    O=Remora, CN=cluster.local root …
                 signed by  O=Remora, CN=cluster.local root …
                 may sign   workloads, and issuers of workloads
                 key        ECDSA, 256 bits
                 serial     …
                 sha-256    …
            DIR/web/tls.key
              1. private key, not shown
        "#]],
    );
}

#[test]
fn inspect_says_what_is_wrong_with_a_file() {
    let dir = authority();
    fs::write(dir.path().join("empty"), "").unwrap();
    fs::write(dir.path().join("half"), "\n-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
    check(
        &dir,
        "inspect DIR/empty",
        78,
        &expect![[r#"
            error: `DIR/empty` holds no certificate: no PEM, DER, or SPIFFE bundle in JSON
            hint: expected certificates in PEM, which begin with `-----BEGIN CERTIFICATE-----`
        "#]],
    );
    check(
        &dir,
        "inspect DIR/half",
        78,
        &expect![[r#"
        error: `DIR/half`, line 2: the `CERTIFICATE` that begins here has no end
        hint: expected certificates in PEM, which begin with `-----BEGIN CERTIFICATE-----`
    "#]],
    );
    fs::write(dir.path().join("large"), vec![b'#'; 1024 * 1024 + 1]).unwrap();
    check(
        &dir,
        "inspect DIR/large",
        78,
        &expect![[r#"
            error: `DIR/large` has more than 1 MiB
            hint: expected certificates in PEM, which begin with `-----BEGIN CERTIFICATE-----`
        "#]],
    );
    check(
        &dir,
        "inspect DIR/nowhere",
        1,
        &expect![[r#"
        error: cannot read `DIR/nowhere`: No such file or directory (os error 2)
        hint: check the path and who may read it
    "#]],
    );
}

#[test]
fn inspect_reads_der_and_spiffe_bundles_too() {
    let dir = authority();
    let path = |name: &str| dir.path().join(name);
    let root = fs::read(path("ca/root.crt")).unwrap();
    let der = pem::blocks(&root).unwrap()[0].certificate().unwrap();
    fs::write(path("root.der"), &der).unwrap();
    let (_, from_der, _) = run_words(&dir, NOW, "inspect DIR/root.der");
    let (_, from_pem, _) = run_words(&dir, NOW, "inspect DIR/ca/root.crt");
    assert_eq!(
        from_der.lines().skip(1).collect::<Vec<_>>(),
        from_pem.lines().skip(1).collect::<Vec<_>>()
    );
    let (_, json, _) = run_words(&dir, NOW, "bundle --dir DIR/ca --format spiffe --sequence 7");
    let other = json.replace("\"keys\": [", r#""keys": [{"use": "jwt-svid", "kid": "k1"},"#);
    fs::write(path("bundle.json"), other).unwrap();
    check(
        &dir,
        "inspect DIR/bundle.json",
        0,
        &expect![[r#"
        DIR/bundle.json: SPIFFE bundle, sequence 7, look again every 5 min
          1. `jwt-svid` key `k1`, not read
          2. root
             valid      2026-02-03 04:00:06 UTC to 2036-02-01 04:05:06 UTC
                        ends in 3650 d
             names      URI:spiffe://cluster.local
             subject    O=Remora, CN=cluster.local root …
             signed by  O=Remora, CN=cluster.local root …
             may sign   workloads, and issuers of workloads
             key        ECDSA, 256 bits
             serial     …
             sha-256    …
    "#]],
    );
}

#[test]
fn inspect_shows_constraints_on_names() {
    let dir = tempfile::tempdir().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(2));
    let only = vec![rcgen::GeneralSubtree::DnsName("shop".to_owned())];
    let excluded_subtrees = Vec::new();
    params.name_constraints =
        Some(rcgen::NameConstraints { permitted_subtrees: only, excluded_subtrees });
    let root = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    fs::write(dir.path().join("root"), root.der()).unwrap();
    let (_, said, _) = run_words(&dir, NOW, "inspect DIR/root");
    assert!(said.contains("     limits     only DNS:shop\n"), "{said}");
    assert!(said.contains("     may sign   further authorities, too, 2 deep\n"), "{said}");
}

#[test]
fn a_bundle_is_printed_as_ca_crt_has_it_or_as_spiffe_federates_it() {
    let dir = authority();
    let root = fs::read_to_string(dir.path().join("ca/root.crt")).unwrap();
    // What needs no key asks for none.
    fs::remove_file(dir.path().join("ca/issuer.key")).unwrap();
    assert_eq!(run_words(&dir, NOW, "bundle --dir DIR/ca"), (0, root.clone(), String::new()));
    let spiffe = |now, more: &str| {
        let command = format!("bundle --dir DIR/ca --format spiffe{more}");
        let (code, out, _) = run_words(&dir, now, &command);
        assert_eq!(code, 0);
        jwks::read(out.as_bytes()).unwrap()
    };
    let first = spiffe(NOW, "");
    let der = pem::blocks(root.as_bytes()).unwrap()[0].certificate().unwrap();
    assert_eq!(first.keys, [jwks::Found::Root(der)]);
    assert_eq!(
        (first.sequence, first.refresh),
        (Some(NOW.as_secs()), Some(Duration::from_mins(5)))
    );
    // Later means more, without anybody keeping count.
    assert!(first.sequence < spiffe(NOW + Duration::from_secs(1), "").sequence);
    let told = spiffe(NOW, " --sequence 7 --refresh 1h");
    assert_eq!((told.sequence, told.refresh), (Some(7), Some(Duration::from_hours(1))));
}

#[test]
fn a_folder_without_a_root_has_no_bundle() {
    let dir = authority();
    check(
        &dir,
        "bundle --dir DIR/nowhere",
        1,
        &expect![[r#"
        error: cannot read `DIR/nowhere/root.crt`: No such file or directory (os error 2)
        hint: check the path and who may read it
    "#]],
    );
    fs::write(dir.path().join("ca/root.crt"), "").unwrap();
    check(
        &dir,
        "bundle --dir DIR/ca",
        78,
        &expect![[r#"
            error: `DIR/ca/root.crt`: no certificate in the trust bundle
            hint: expected certificates in PEM, which begin with `-----BEGIN CERTIFICATE-----`
        "#]],
    );
}

#[test]
fn init_replaces_only_when_forced() {
    let dir = authority();
    let read = || fs::read(dir.path().join("ca/root.key")).unwrap();
    let before = read();
    assert_eq!(run_words(&dir, NOW, "init --dir DIR/ca --key p384").0, 78);
    assert_eq!(read(), before);
    assert_eq!(run_words(&dir, NOW, "init --dir DIR/ca --key p384 --force").0, 0);
    assert_ne!(read(), before);
    let (_, said, _) = run_words(&dir, NOW, "inspect DIR/ca/root.crt DIR/ca/issuer.crt");
    assert_eq!(said.matches("key        ECDSA, 384 bits").count(), 2, "{said}");
    let mode = fs::metadata(dir.path().join("ca/root.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn init_makes_a_new_issuer_below_a_root_that_exists() {
    let dir = authority();
    let command = "init --dir DIR/new --root DIR/ca/root.crt --root-key DIR/ca/root.key";
    check(
        &dir,
        command,
        0,
        &expect![[r#"
        made an issuer of `cluster.local` in `DIR/new`
          root.crt: the root given; its key was read, and not kept
          issuer.crt, issuer.key: the issuer, until 2027-02-03 04:05:06 UTC
    "#]],
    );
    let command = format!("issue --dir DIR/new {WEB} --out DIR/web");
    assert_eq!(run_words(&dir, NOW, &command).0, 0);
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert_eq!(read("web/ca.crt"), read("ca/root.crt"));
    assert!(!dir.path().join("new/root.key").exists());
}

#[test]
fn init_takes_over_an_issuer_made_elsewhere() {
    let dir = authority();
    let files = "--issuer DIR/ca/issuer.crt --issuer-key DIR/ca/issuer.key --root DIR/ca/root.crt";
    check(
        &dir,
        &format!("init --dir DIR/new {files}"),
        0,
        &expect![[r#"
        took over an issuer of `cluster.local` into `DIR/new`
          root.crt: the root that vouches for it
          issuer.crt, issuer.key: the issuer, until 2027-02-03 04:05:06 UTC
        when it is renewed where it was made: `init` again, with `--force`
    "#]],
    );
    assert_eq!(run_words(&dir, NOW, &format!("issue --dir DIR/new {WEB} --out DIR/web")).0, 0);
}

#[test]
fn init_says_what_is_wrong_with_what_it_is_given() {
    let dir = authority();
    fs::write(dir.path().join("empty"), "").unwrap();
    let mut messages = String::new();
    for arguments in [
        "--root DIR/ca/root.crt",
        "--root DIR/ca/root.crt --root-key DIR/ca/root.key --issuer DIR/x --issuer-key DIR/y",
        "--issuer DIR/ca/issuer.crt",
        "--issuer DIR/ca/issuer.crt --issuer-key DIR/ca/issuer.key --key p384",
        "--root DIR/ca/root.crt --root-key DIR/ca/issuer.key",
        "--root DIR/ca/root.crt --root-key DIR/empty",
        "--root DIR/empty --root-key DIR/ca/root.key",
        "--root DIR/ca/issuer.crt --root-key DIR/ca/issuer.key",
        "--root DIR/ca/root.crt --root-key DIR/ca/root.key --trust-domain other",
        "--root DIR/ca/root.crt --root-key DIR/ca/root.key --issuer-life 9999d",
        "--issuer DIR/ca/issuer.crt --issuer-key DIR/ca/issuer.key",
        "--issuer DIR/ca/root.crt --issuer-key DIR/ca/root.key",
        "--issuer DIR/ca/issuer.crt --issuer-key DIR/ca/root.key --root DIR/ca/root.crt",
    ] {
        let (code, out, err) = run_words(&dir, NOW, &format!("init --dir DIR/new {arguments}"));
        assert_eq!((code, out.as_str()), (78, ""), "{arguments}");
        messages += err.split("\n\n").next().unwrap_or_default().trim_end();
        messages += "\n";
    }
    expect![[r#"
        error: the following required arguments were not provided:
          <--root-key <FILE>|--issuer <FILE>>
        error: the argument '--root-key <FILE>' cannot be used with '--issuer <FILE>'
        error: the following required arguments were not provided:
          --issuer-key <FILE>
        error: the argument '--issuer <FILE>' cannot be used with '--key <CURVE>'
        error: `DIR/ca/issuer.key`: not the key of `O=Remora, CN=cluster.local root …`
        hint: certificate and key must be of one pair
        error: `DIR/empty`: not one private key that can be read, or it is encrypted or of an unsupported kind
        hint: expected one key in PEM, of ECDSA, Ed25519 or RSA, not encrypted
        error: `DIR/empty`: no certificate in it
        hint: expected certificates in PEM, which begin with `-----BEGIN CERTIFICATE-----`
        error: `DIR/ca/issuer.crt`: `O=Remora, CN=cluster.local issuer …` is an issuer, not a root
        hint: an issuer and its key are `--issuer` and `--issuer-key`
        error: `DIR/ca/root.crt`: `O=Remora, CN=cluster.local root …` is of the trust domain `cluster.local`, not `other`
        hint: leave `--trust-domain` out, or name that one
        error: a life of 863913600 seconds is longer than the 315360000 the signing certificate has left
        hint: ask for at most 3650 d, or make a new signer with `init`
        error: `DIR/ca/issuer.crt`: the root that vouches for `O=Remora, CN=cluster.local issuer …` is missing
        hint: name its file with `--root`
        error: `DIR/ca/root.crt`: `O=Remora, CN=cluster.local root …` is a root, not an issuer below one
        hint: a root and its key are `--root` and `--root-key`
        error: `DIR/ca/root.key`: not the key of `O=Remora, CN=cluster.local issuer …`
        hint: certificate and key must be of one pair
    "#]].assert_eq(&messages);
    assert!(!dir.path().join("new").exists());
}

#[test]
fn help_explains_every_argument_of_bundle() {
    let dir = tempfile::tempdir().unwrap();
    check(
        &dir,
        "bundle --help",
        0,
        &expect![[r#"
            Print the trust bundle: whoever has it can tell this authority's workloads

            Needs no key. Of the folder, only root.crt is read, or what a server says is to be trusted now: two
            roots while one is replaced.

            Usage: remora-control bundle [OPTIONS] --dir <DIR>

            Options:
                  --dir <DIR>
                      The authority's folder, made by `init`

                  --format <FORMAT>
                      As it is in ca.crt, or as SPIFFE federates it (JSON)

                      [default: pem]
                      [possible values: pem, spiffe]

                  --sequence <NUMBER>
                      For spiffe: what grows with each change; without it, what the server counts, or the time
                      in seconds

                  --refresh <TIME>
                      For spiffe: how often others are to look for a newer one

                      [default: 5m]

              -h, --help
                      Print help (see a summary with '-h')
        "#]],
    );
}

#[test]
fn the_process_gets_the_exit_code() {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut exit = |argument: &str| run(["x".into(), argument.into()], &mut out, &mut err);
    assert_eq!((exit("--version"), exit("--wrong")), (ExitCode::SUCCESS, ExitCode::from(78)));
    assert_eq!(out, concat!("remora-control ", env!("CARGO_PKG_VERSION"), "\n").as_bytes());
}

#[test]
fn help_shows_the_commands_and_an_example_of_each() {
    let dir = tempfile::tempdir().unwrap();
    check(
        &dir,
        "--help",
        0,
        &expect![[r#"
            Remora's authority: gives workloads the identities that sidecars prove to each other

            Usage: remora-control <COMMAND>

            Commands:
              init      Make a new authority: a root and one issuer under it
              issue     Give a workload an identity: a fresh key and a certificate for it
              inspect   Say in words what certificate files hold
              bundle    Print the trust bundle: whoever has it can tell this authority's workloads
              serve     Serve certificates and policy to sidecars, until SIGTERM
              token     Join tokens, by which workloads get their first certificate
              rotate    Replace the issuer, or the root too, with nobody left behind
              status    Say which sidecars there are, and how they do
              check     Exit with 1 unless every sidecar is well and certificates last
              push      Check policy documents and write them into a folder that sidecars watch
              rollback  Return to the policy documents of an earlier generation
              help      Print this message or the help of the given subcommand(s)

            Options:
              -h, --help     Print help
              -V, --version  Print version

            Examples:
              remora-control init --dir authority
              remora-control issue --dir authority --namespace shop --service-account orders --out orders
              remora-control inspect orders/tls.crt orders/ca.crt
              remora-control bundle --dir authority --format spiffe
              remora-control serve --dir authority --policy policies
              remora-control token create --dir authority --namespace shop --service-account orders
              remora-control rotate --prove --dir authority --root
              remora-control check --dir authority --min-life 6h
              remora-control rollback --dir authority
              remora-control push --policy policies --to /etc/remora/policy
        "#]],
    );
}

#[test]
fn help_explains_every_argument_of_init() {
    let dir = tempfile::tempdir().unwrap();
    check(
        &dir,
        "init --help",
        0,
        &expect![[r#"
            Make a new authority: a root and one issuer under it

            Writes root.crt, root.key, issuer.crt and issuer.key, and never overwrites one unless told to. Only
            root.crt is trusted and only issuer.key signs workloads, so keep root.key elsewhere.

            With --root and --root-key, only the issuer is new. With --issuer and --issuer-key, nothing is: an
            issuer that cert-manager, Vault or the like made is checked and taken over.

            Usage: remora-control init [OPTIONS] --dir <DIR>

            Options:
                  --dir <DIR>
                      The folder to write to, made when absent

                  --trust-domain <NAME>
                      The trust domain: what every id of this authority begins with; without it, the one that
                      the root or issuer given names, or cluster.local where all is new

                  --root-life <LIFE>
                      How long a new root is valid, such as 3650d

                      [default: 3650d]

                  --issuer-life <LIFE>
                      How long a new issuer is valid, such as 365d

                      [default: 365d]

                  --key <CURVE>
                      The kind of new keys, those of workloads included: ECDSA on this curve

                      [default: p256]
                      [possible values: p256, p384]

                  --root <FILE>
                      A root that exists, in PEM: to sign a new issuer, or the one of --issuer

                  --root-key <FILE>
                      Its key, in PEM; read, and not kept

                  --issuer <FILE>
                      An issuer that exists, in PEM; the certificates up to its root may follow

                  --issuer-key <FILE>
                      Its key, in PEM

                  --force
                      Replace the files of an earlier authority, keys included

              -h, --help
                      Print help (see a summary with '-h')
        "#]],
    );
}

#[test]
fn help_explains_every_argument_of_issue() {
    let dir = tempfile::tempdir().unwrap();
    check(
        &dir,
        "issue --help",
        0,
        &expect![[r#"
        Give a workload an identity: a fresh key and a certificate for it

        Writes tls.crt (leaf and issuer), tls.key and ca.crt by one atomic swap, so that a sidecar watching
        the folder never sees the old and the new mixed. Run it again for the same folder to rotate.

        Usage: remora-control issue [OPTIONS] --dir <DIR> --out <FOLDER>

        Options:
              --dir <DIR>
                  The authority's folder, made by `init`

              --id <ID>
                  The whole SPIFFE id: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`

              --namespace <NS>
                  The workload's Kubernetes namespace, instead of --id

              --service-account <SA>
                  The workload's service account, instead of --id

              --out <FOLDER>
                  The folder a sidecar watches, made when absent

              --life <LIFE>
                  How long the certificate is valid: 90m, 24h, 30d

                  [default: 24h]

          -h, --help
                  Print help (see a summary with '-h')
    "#]],
    );
}

#[test]
fn help_explains_every_argument_of_inspect() {
    let dir = tempfile::tempdir().unwrap();
    check(
        &dir,
        "inspect --help",
        0,
        &expect![[r#"
            Say in words what certificate files hold

            Reads certificates, chains and bundles in PEM, a certificate in DER, and SPIFFE bundles in JSON.
            Private keys are never shown.

            Usage: remora-control inspect <FILE>...

            Arguments:
              <FILE>...
                      Files in PEM, DER or JSON

            Options:
              -h, --help
                      Print help (see a summary with '-h')
        "#]],
    );
}

#[test]
fn output_that_nobody_takes_is_an_error() {
    let dir = authority();
    let mut err = Vec::new();
    let file = dir.path().join("ca/root.crt");
    let args = ["remora-control".into(), "inspect".into(), file.into_os_string()];
    let code = run_at(NOW, args, &mut io::Cursor::new(&mut [0; 4][..]), &mut err);
    assert_eq!(code, 1);
    expect![[r#"
        error: cannot write the output: failed to write whole buffer
    "#]]
    .assert_eq(&String::from_utf8(err).unwrap());
}

/// Runs `words`, in which `DIR` stands for `dir`, and compares all it prints.
fn check(dir: &TempDir, words: &str, code: u8, expected: &Expect) {
    check_at(NOW, dir, words, code, expected);
}

fn check_at(now: Duration, dir: &TempDir, words: &str, code: u8, expected: &Expect) {
    let (actual, out, err) = run_words(dir, now, words);
    expected.assert_eq(&format!("{out}{err}"));
    assert_eq!(actual, code);
    assert!(out.is_empty() || err.is_empty());
}

/// The exit code, the output and the errors, without what differs from run to run.
fn run_words(dir: &TempDir, now: Duration, words: &str) -> (u8, String, String) {
    let path = dir.path().to_str().unwrap();
    let args = words.split(' ').map(|word| word.replace("DIR/", &format!("{path}/")).into());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let args = std::iter::once("remora-control".into()).chain(args);
    let code = run_at(now, args, &mut out, &mut err);
    let stable = |text: Vec<u8>| masked(&String::from_utf8(text).unwrap().replace(path, "DIR"));
    (code, stable(out), stable(err))
}

/// Hides serial numbers and the tags that tell authorities apart.
fn masked(text: &str) -> String {
    let line = |line: &str| {
        for name in ["serial     ", "sha-256    "] {
            if let Some((before, _)) = line.split_once(name) {
                return format!("{before}{name}…\n");
            }
        }
        // The tag is eight digits, at the end of the line or of a quotation.
        let parts = line.split_once("CN=").and_then(|(before, name)| {
            let (at, _) = name.match_indices(' ').nth(1)?;
            let after = name.get(at + 1..)?.trim_start_matches(|it: char| it.is_ascii_hexdigit());
            Some(format!("{before}CN={} …{after}\n", name.get(..at)?))
        });
        parts.unwrap_or_else(|| format!("{}\n", line.trim_end()))
    };
    text.lines().map(line).collect()
}

fn authority() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run_words(&dir, NOW, "init --dir DIR/ca").0, 0);
    dir
}
