//! Rotation by control: a root is replaced, whoever is killed or cut off meanwhile.

use http::Version;

use crate::{
    control::{Control, ended},
    dns::Dns,
    host::Host,
    http::{self as web, App},
    load::Load,
    pods::{APP, ORDERS, Sidecar, eventually, outbound},
    runner::Case,
    topology::Topology,
};

pub(crate) const CASES: &[Case] = &[
    ("rotation_finishes_though_control_is_killed_at_each_step", killed),
    ("rotation_waits_for_a_sidecar_that_is_cut_off", cut_off),
    ("rotation_goes_on_without_a_killed_pod_that_an_operator_leaves_out", left_out),
];

/// `web` asks `orders`, and both live by control.
struct Shop {
    control: Control,
    web: Host,
    dns: Dns,
    _orders: (Sidecar, App),
    _web: Sidecar,
}

impl Shop {
    fn new(control: &Host, web: Host, orders: &Host) -> Self {
        let (control, dns) = (Control::start(control), web.dns());
        dns.set("orders.shop", &[orders.v4()], 1);
        let app = orders.http_app(APP);
        let orders = (control.sidecar(orders, "orders", web.v4()), app);
        let client = control.sidecar(&web, "web", web.v4());
        Self { control, web, dns, _orders: orders, _web: client }
    }

    fn load(&self) -> Load {
        Load::start(&self.web, outbound(), 4, |_| web::get(Version::HTTP_11, ORDERS, "/who"))
    }
}

fn killed() {
    let [control, web, orders] = Topology::of(["control", "web", "orders"]);
    let mut shop = Shop::new(&control, web, &orders);
    let load = shop.load();
    load.go_on_for(100);
    let rotating = shop.control.begin(&["rotate", "--prove", "--root"]);
    rotating.wait_for("prepared");
    // A step may be over before it is seen; then control is killed at the one after it.
    let mut killed_at = Vec::new();
    while shop.control.step() != "rest" {
        let step = shop.control.step();
        if killed_at.contains(&step) || step == "rest" {
            assert!(eventually(|| shop.control.step() != step), "it stays at `{step}`");
            continue;
        }
        shop.control.kill();
        killed_at.push(step);
        load.go_on_for(20);
        shop.control.serve();
    }
    let (code, said) = ended(rotating);
    assert_eq!(code, 0, "killed at {killed_at:?}: {said}");
    assert!(said.contains("finished: the old issuer's key is removed"), "{said}");
    // Those that wait for what sidecars say cannot be over at once.
    for step in ["trust", "renew", "retire"] {
        assert!(killed_at.iter().any(|it| it == step), "not killed at `{step}`: {killed_at:?}");
    }
    load.go_on_for(100);
    load.stop_without_failure();
    // Whom the last kill cut off has to come back first.
    let mut said = String::new();
    let well = eventually(|| {
        let (code, now) = shop.control.command(&["check"]);
        said = now;
        code == 0
    });
    assert!(well, "{said}");
    assert_eq!(said, "ok: 2 sidecars, generation 1\n");
}

fn cut_off() {
    let [control, web, orders, away] = Topology::of(["control", "web", "orders", "away"]);
    let shop = Shop::new(&control, web, &orders);
    let _idle = shop.control.sidecar(&away, "away", shop.web.v4());
    let load = shop.load();
    load.go_on_for(100);
    away.unplug();
    let (code, said) = shop.control.command(&["rotate", "--prove", "--root", "--timeout", "3s"]);
    assert_eq!(code, 1, "{said}");
    let row = said.lines().find(|it| it.contains(" away ")).expect("a row of the table");
    assert!(row.contains("does not say that it trusts the new root"), "{said}");
    assert!(said.contains("1 of 3 sidecars are behind, at `trust`"), "{said}");
    load.go_on_for(100);
    away.plug();
    let (code, said) = shop.control.command(&["rotate", "--prove"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.starts_with("a rotation is under way, at `trust`\n"), "{said}");
    load.go_on_for(100);
    load.stop_without_failure();
    drop(shop.dns);
}

fn left_out() {
    let [control, web, orders, gone] = Topology::of(["control", "web", "orders", "gone"]);
    let shop = Shop::new(&control, web, &orders);
    // Its process is killed, and so says no farewell.
    drop(shop.control.sidecar(&gone, "gone", shop.web.v4()));
    let load = shop.load();
    load.go_on_for(100);
    let (code, said) = shop.control.command(&["rotate", "--prove", "--root", "--timeout", "2s"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("1 of 3 sidecars are behind, at `trust`"), "{said}");
    let (code, said) = shop.control.command(&["rotate", "--prove", "--without", "gone"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.starts_with("a rotation is under way, at `trust`\n"), "{said}");
    load.go_on_for(100);
    load.stop_without_failure();
    drop(shop.dns);
}
