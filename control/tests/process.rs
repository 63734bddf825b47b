//! The program as operators run it: a process with files, streams and an exit code.
#![expect(clippy::unwrap_used, reason = "all of it is a test: a surprise should stop it")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use remora_certs::{jwks, svid::Svid};

#[test]
fn an_authority_is_made_renewed_and_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let run = |words: &str| control(dir.path(), words);
    succeeded(&run("init --dir ca --trust-domain td"));
    succeeded(&run("init --dir next --root ca/root.crt --root-key ca/root.key --key p384"));
    let refused = run("init --dir next --root ca/root.crt --root-key ca/root.key");
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(78), 0));
    succeeded(&run("issue --dir next --id spiffe://td/ns/shop/sa/web --out web"));
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    let svid = Svid::from_pem(&read("web/tls.crt"), &read("web/tls.key")).unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://td/ns/shop/sa/web");
    assert_eq!(read("web/ca.crt"), read("ca/root.crt"));

    let bundle = succeeded(&run("bundle --dir next --format spiffe"));
    assert_eq!(jwks::read(bundle.as_bytes()).unwrap().keys.len(), 1);
    let said = succeeded(&run("inspect web/tls.crt web/tls.key"));
    assert!(said.contains("workload `spiffe://td/ns/shop/sa/web`"), "{said}");
    assert!(said.contains("ECDSA, 384 bits"), "{said}");
}

#[test]
fn no_key_is_ever_printed_or_for_others_to_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut said = String::new();
    for words in [
        "init --dir ca",
        "init --dir next --root ca/root.crt --root-key ca/root.key",
        "init --dir taken --issuer next/issuer.crt --issuer-key next/issuer.key --root ca/root.crt",
        "issue --dir taken --namespace shop --service-account web --out web",
        "inspect ca/root.key taken/issuer.key web/tls.key web/tls.crt",
        "bundle --dir taken",
        "bundle --dir taken --format spiffe",
    ] {
        said += &succeeded(&control(dir.path(), words));
    }
    for name in
        ["ca/root.key", "ca/issuer.key", "next/issuer.key", "taken/issuer.key", "web/tls.key"]
    {
        let path = dir.path().join(name);
        let key = fs::read_to_string(&path).unwrap();
        assert!(!said.contains(key.lines().nth(1).unwrap()), "{name}");
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_server_serves_until_it_is_told_to_end() {
    let dir = tempfile::tempdir().unwrap();
    succeeded(&control(dir.path(), "init --dir ca"));
    let words = "serve --dir ca --listen 127.0.0.1:0 --admin 127.0.0.1:0";
    let limited = "ulimit -S -n 256; exec \"$0\" \"$@\"";
    let mut server = Command::new("/bin/sh")
        .args(["-c", limited, env!("CARGO_BIN_EXE_remora-control")])
        .args(words.split(' '))
        .current_dir(dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap);
    let serving = lines.next().unwrap();
    assert!(serving.starts_with("serving `cluster.local` at https://127.0.0.1:"), "{serving}");
    let address = lines.next().unwrap().rsplit("http://").next().unwrap().to_owned();
    assert!(page(&address, "/health/ready").starts_with("HTTP/1.1 200"));
    assert!(page(&address, "/metrics").contains("remora_control_build_info"));
    // One at a time; and who makes tokens needs no server, nor disturbs it.
    let second = control(dir.path(), words);
    assert_eq!((second.status.code(), second.stdout.len()), (Some(1), 0));
    let token = control(dir.path(), "token create --dir ca --namespace n --service-account s");
    assert!(succeeded(&token).starts_with("remora-join-"));
    let id = server.id().to_string();
    let kill =
        |signal: &str| Command::new("kill").args([signal, id.as_str()]).status().unwrap().success();
    // A terminal that closes ends nobody.
    assert!(kill("-HUP"));
    assert!(page(&address, "/health/live").starts_with("HTTP/1.1 200"));
    let limits = fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
    let files = limits.lines().find_map(|it| it.strip_prefix("Max open files")).unwrap();
    let [soft, hard, _] = files.split_whitespace().collect::<Vec<_>>()[..] else { panic!() };
    assert_eq!(soft, hard, "as many as there may be");
    assert!(kill("-TERM"));
    assert!(server.wait().unwrap().success());
    let audit = fs::metadata(dir.path().join("ca/state/audit.jsonl")).unwrap();
    assert_eq!(audit.permissions().mode() & 0o777, 0o600);
}

/// A page of plain HTTP.
fn page(address: &str, path: &str) -> String {
    let mut tcp = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).unwrap();
    answer
}

fn control(folder: &Path, words: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_remora-control"));
    command.args(words.split(' ')).current_dir(folder).output().unwrap()
}

/// What it printed.
fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}
