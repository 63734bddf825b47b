//! Control: sidecars get certificates and policy from it, and are none the worse without it.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use http::Version;
use remora::{clock, intercept};

use crate::{
    host::{PATIENCE, config},
    http as web,
    load::Load,
    pods::{Mesh, ORDERS, Setup, Sidecar, eventually, outbound},
    pods_control::{Control, Fleet, State},
    runner::Case,
    topology::Topology,
};

pub(crate) const CASES: &[Case] = &[
    ("control_a_sidecar_joins_by_a_token_and_is_served", join),
    ("control_certificates_are_renewed_under_load_without_a_failure", renewal),
    ("control_killed_is_not_missed_and_is_found_again", killed),
    ("control_is_not_needed_for_a_restart", restart),
    ("control_policy_is_in_force_within_a_second", policy),
    ("control_policy_with_a_mistake_leaves_the_old_in_force", mistake),
    ("control_that_swallows_everything_disturbs_nobody", partition),
    ("control_and_a_full_state_folder_leave_the_old_in_force", full),
    ("control_says_in_readiness_what_is_waited_for", waiting),
    ("control_keeps_no_key_on_a_disk", disk),
    ("control_is_not_needed_where_an_agent_gives_identities", agent),
    ("control_absent_for_too_long_takes_the_pod_out_before_its_certificate_ends", end),
    ("control_proves_what_a_captured_sidecar_serves", captured),
];

const WEB_ID: &str = "spiffe://mesh.test/ns/shop/sa/web";
const RENEWALS: &str = "remora_certificate_renewals_total";

/// A policy for `orders` that lets so many requests pass. It is the second generation: the
/// first is that of the empty folder.
fn limited(requests: u32) -> String {
    format!(
        "apiVersion: remora.dev/v1alpha1\n\
         kind: WorkloadPolicy\n\
         metadata: {{name: orders, namespace: shop}}\n\
         spec: {{rateLimits: [{{requests: {requests}, per: 1h, burst: {requests}, by: identity}}]}}\n"
    )
}

fn join() {
    let fleet = Fleet::new("1h");
    let seen = fleet.get("/who").json();
    assert_eq!(seen["headers"]["x-remora-peer"][0], WEB_ID, "{seen}");
    fleet.until_connected(true);
    let status = fleet.control.status();
    let text = status.to_string();
    for account in ["web", "orders"] {
        let id = format!("spiffe://mesh.test/ns/shop/sa/{account}");
        assert!(text.contains(&id) && text.contains(&format!("{account}-0")), "{text}");
    }
    // What `web` calls is known at once.
    let known =
        eventually(|| fleet.control.status().to_string().contains(r#""services":["orders.shop"]"#));
    assert!(known, "{}", fleet.control.status());
}

fn renewal() {
    let fleet = Fleet::new("6s");
    let load = Load::paced(&fleet.web, outbound(), (8, Duration::from_millis(50)), |_| {
        web::get(Version::HTTP_11, ORDERS, "/who")
    });
    // The first was for joining.
    for sidecar in [fleet.client(), fleet.server()] {
        sidecar.until(RENEWALS, &[("result", "ok")], |it| 4 <= it);
    }
    load.go_on_for(100);
    load.stop_without_failure();
    for sidecar in [fleet.client(), fleet.server()] {
        assert_eq!(sidecar.count(RENEWALS, &[("result", "failed")]), 0);
        assert_eq!(sidecar.admin("/health/ready").status, 200);
    }
}

fn killed() {
    let fleet = Fleet::new("1h");
    fleet.until_connected(true);
    let load = Load::paced(&fleet.web, outbound(), (4, Duration::from_millis(20)), |_| {
        web::get(Version::HTTP_11, ORDERS, "/who")
    });
    fleet.control.kill();
    fleet.until_connected(false);
    load.go_on_for(100);
    fleet.control.start_again();
    fleet.until_connected(true);
    let both = eventually(|| {
        fleet.control.status().to_string().matches(r#""connected":true"#).count() == 2
    });
    assert!(both, "{}", fleet.control.status());
    load.stop_without_failure();
    for sidecar in [fleet.client(), fleet.server()] {
        assert_eq!(sidecar.count(RENEWALS, &[]), 1, "the certificate is good still");
    }
}

fn restart() {
    let mut fleet = Fleet::new("1h");
    fleet.control.policy.write("orders.yaml", &limited(3));
    fleet.server().until("remora_control_generation", &[], |it| it == 2);
    fleet.control.kill();
    fleet.restart_sidecars();
    let statuses: Vec<_> = (0..4).map(|_| fleet.get("/who").status).collect();
    assert_eq!(statuses, [200, 200, 200, 429], "the policy is in force, too");
    assert_eq!(fleet.server().count("remora_control_connected", &[]), 0);
    fleet.control.start_again();
    fleet.until_connected(true);
}

fn policy() {
    let fleet = Fleet::new("1h");
    fleet.until_connected(true);
    fleet.get("/who");
    let mut took = Vec::new();
    for number in 1..4 {
        let written: Instant = clock::now();
        fleet.control.policy.write("orders.yaml", &limited(1_000 + number));
        let wanted = u64::from(number) + 1;
        for sidecar in [fleet.client(), fleet.server()] {
            sidecar.until("remora_control_generation", &[], |it| it == wanted);
        }
        took.push(clock::now() - written);
    }
    // On a machine that is busy with something else, one of them may take longer.
    assert!(took.iter().any(|it| *it < Duration::from_secs(1)), "{took:?}");
    assert_eq!(fleet.server().admin("/health/ready").status, 200);
}

fn mistake() {
    let fleet = Fleet::new("1h");
    fleet.control.policy.write("orders.yaml", &limited(2));
    fleet.server().until("remora_control_generation", &[], |it| it == 2);
    fleet.control.policy.write("orders.yaml", "kind: Nonsense\n");
    let said = eventually(|| {
        fleet.control.run(&["status"]).contains("Nonsense")
            || fleet.control.status().to_string().contains("Nonsense")
    });
    assert!(said, "{}", fleet.control.run(&["status"]));
    let statuses: Vec<_> = (0..3).map(|_| fleet.get("/who").status).collect();
    assert_eq!(statuses, [200, 200, 429]);
    fleet.control.policy.write("orders.yaml", &limited(1_000));
    fleet.server().until("remora_control_generation", &[], |it| it == 3);
    assert_eq!(fleet.get("/who").status, 200);
}

fn partition() {
    let mut fleet = Fleet::new("1h");
    fleet.control.policy.write("orders.yaml", &limited(10_000));
    for sidecar in [fleet.client(), fleet.server()] {
        sidecar.until("remora_control_generation", &[], |it| it == 2);
    }
    let paced = || {
        Load::paced(&fleet.web, outbound(), (4, Duration::from_millis(20)), |_| {
            web::get(Version::HTTP_11, ORDERS, "/who")
        })
    };
    let load = paced();
    fleet.away.unplug();
    fleet.until_connected(false);
    load.stop_without_failure();
    // Nor does it keep anybody from starting.
    let began = clock::now();
    fleet.restart_sidecars();
    assert!(clock::now() - began < PATIENCE / 2, "{:?}", clock::now() - began);
    assert_eq!(fleet.get("/who").status, 200);
    fleet.away.plug();
    fleet.until_connected(true);
}

fn full() {
    let fleet = Fleet::new("1h");
    fleet.control.policy.write("orders.yaml", &limited(2));
    fleet.server().until("remora_control_generation", &[], |it| it == 2);
    let filling = fleet.states[1].fill();
    fleet.control.policy.write("orders.yaml", &limited(1_000));
    fleet.server().log(&["what control sent is not written down", "No space left on device"]);
    let told = || fleet.control.status().to_string().contains("No space left on device");
    assert!(eventually(told), "{}", fleet.control.status());
    fleet.until_connected(true);
    let statuses: Vec<_> = (0..3).map(|_| fleet.get("/who").status).collect();
    assert_eq!(statuses, [200, 200, 429]);
    fs::remove_file(filling).unwrap();
    fleet.server().until("remora_control_generation", &[], |it| it == 3);
    assert_eq!(fleet.get("/who").status, 200);
    let mended = || !fleet.control.status().to_string().contains("No space left on device");
    assert!(eventually(mended), "{}", fleet.control.status());
}

fn waiting() {
    let [pod, away] = Topology::of(["web", "control"]);
    let control = Control::start(&away, "1h");
    let state = State::of("4m");
    let setup = control.setup("web", &state);
    control.kill();
    let sidecar = setup.begin(&pod);
    let reason = format!("waiting for control at {}", control.address());
    sidecar.log(&["no identity yet", &reason]);
    let ready = sidecar.admin("/health/ready");
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains(&reason), "{}", ready.text());
    assert_eq!(sidecar.admin("/health/live").status, 200);
    control.start_again();
    sidecar.log(&["ready to serve"]);
    assert!(eventually(|| sidecar.admin("/health/ready").status == 200));
}

fn disk() {
    let [pod] = Topology::of(["web"]);
    let setup = Setup::new(Path::new("control"))
        .with("--control", "https://127.0.0.1")
        .with("--control-ca", "/nowhere")
        .with("--state", "/proc/self");
    let mut sidecar = setup.begin(&pod);
    assert_eq!(sidecar.process.wait().code(), Some(78));
    let output = sidecar.process.output();
    assert!(output.contains("is on a disk") && output.contains("medium: Memory"), "{output}");
}

fn end() {
    let fleet = Fleet::new("12s");
    fleet.until_connected(true);
    fleet.control.kill();
    let notes = |sidecar: &Sidecar| {
        let ready = sidecar.admin("/health/ready");
        (ready.status, ready.text().to_owned())
    };
    // First it is said, then the pod is not ready, and only then are handshakes refused.
    let is_said = || {
        let (status, said) = notes(fleet.server());
        said.contains("is not renewed")
            && said.contains("control is not connected")
            && status == 200
    };
    assert!(eventually(is_said), "{:?}", notes(fleet.server()));
    assert_eq!(fleet.get("/who").status, 200);
    assert!(eventually(|| notes(fleet.server()).0 == 503), "{:?}", notes(fleet.server()));
    let said = notes(fleet.server()).1;
    assert!(said.contains("the certificate ends within"), "{said}");
}

fn captured() {
    let [web, away] = Topology::of(["web", "control"]);
    let control = Control::start(&away, "1h");
    let state = State::of("4m");
    let setup = control
        .setup("web", &state)
        .with("--mode", "capture")
        .with("--inbound", "0.0.0.0:15006,[::]:15006")
        .without("--app");
    let host = web.as_proxy();
    let mut command = crate::process::remora();
    command.args(setup.arguments());
    let sidecar = Sidecar::new(&web, host.spawn(command));
    sidecar.log(&["control is connected"]);
    web.intercept(intercept::Command::Apply, &config()).unwrap();
    let said = control.run(&["rotate", "--prove", "--root"]);
    assert!(said.contains("finished"), "{said}");
    sidecar.until("remora_handshakes_total", &[("side", "server"), ("result", "ok")], |it| 1 <= it);
    // Nothing else leads anywhere there.
    let to = std::net::SocketAddr::new(web.v4(), 15_006);
    let answer = away.run(move || async move {
        web::fetch(Version::HTTP_11, to, "web", "/who").await.map(|it| it.status).ok()
    });
    assert_eq!(answer, None);
}

fn agent() {
    let [pod] = Topology::of(["web"]);
    let (mesh, state) = (Mesh::new(), State::of("4m"));
    let socket = state.path().with_file_name("agent.sock");
    let setup = Setup::new(Path::new(&format!("unix:{}", socket.display())))
        .with("--state", &state.path().display());
    let sidecar = setup.begin(&pod);
    sidecar.log(&["the agent gives no identity"]);
    let waiting = format!("waiting for the agent at {}", socket.display());
    assert!(eventually(|| sidecar.admin("/health/ready").text().contains(&waiting)));
    // What it gave once is enough to go on, and to start again, without it.
    let leaf = mesh.leaf("web");
    leaf.write(&state.path().join("identity"), clock::wall()).unwrap();
    sidecar.log(&["ready to serve", WEB_ID]);
    drop(sidecar);
    let again = setup.start(&pod);
    assert_eq!(again.admin("/health/ready").status, 200);
    again.log(&["the agent gives no identity"]);
}
