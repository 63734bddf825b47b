use expect_test::expect;
use remora::sync::{
    wire::{Certificate, Policy, PolicyStatus, Report, RotationStatus, Sidecar, Sidecars},
    words::Overview,
};

use super::*;

const NOW: Duration = Duration::from_secs(1_770_091_506);

#[test]
fn status_shows_each_sidecar_and_what_all_are_to_have() {
    let mut all = overview();
    all.sidecars.sidecars[1].connected = false;
    all.sidecars.sidecars[1].report.last_error = Some("no space left on device".to_owned());
    let mut out = Vec::new();
    print(&all, NOW, &mut out).unwrap();
    expect![[r"
        issuer    5e884898, bundle 3
        policy    generation 17
        rotation  none under way, 1 finished
        sidecars  2, 1 connected

        ID                             INSTANCE  CONNECTED  POLICY  CERTIFICATE  ISSUER    SEEN     ERROR
        spiffe://td/ns/shop/sa/orders  orders-0  yes        17      20 h         5e884898  4 s ago
        spiffe://td/ns/shop/sa/orders  orders-1  no         17      20 h         5e884898  4 s ago  no space left on device
    "]]
    .assert_eq(&String::from_utf8(out).unwrap());
}

/// Two sidecars that are well.
fn overview() -> Overview {
    let issuer = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8";
    let sidecar = |instance: &str| Sidecar {
        id: "spiffe://td/ns/shop/sa/orders".to_owned(),
        connected: true,
        seen: NOW.as_secs() - 4,
        not_after: NOW.as_secs() + 20 * 3600,
        peer: None,
        report: Report {
            instance: instance.to_owned(),
            certificate: Certificate {
                serial: "01".to_owned(),
                not_after: NOW.as_secs() + 20 * 3600,
                issuer: issuer.to_owned(),
            },
            bundle: 3,
            policy: Policy { received: 17, accepted: 17, error: None },
            ..Report::default()
        },
    };
    Overview {
        sidecars: Sidecars {
            generation: 17,
            issuer: issuer.to_owned(),
            bundle: 3,
            sidecars: vec![sidecar("orders-0"), sidecar("orders-1")],
        },
        policy: PolicyStatus { generation: 17, ..PolicyStatus::default() },
        rotation: RotationStatus { finished: 1, ..RotationStatus::default() },
    }
}
