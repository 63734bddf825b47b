use super::*;
use crate::cli::status::tests::everything;

const NOW: Duration = Duration::from_secs(1_770_091_506);
const DAY: Duration = Duration::from_hours(24);

#[test]
fn what_is_well_gives_no_line() {
    assert_eq!(found(|_| (), Duration::from_hours(20)), [""; 0]);
}

#[test]
fn each_life_that_is_too_short_gives_a_line() {
    let at = "spiffe://td/ns/shop/sa/orders";
    assert_eq!(
        found(|_| (), Duration::from_hours(25)),
        [
            "issuer `CN=td` has 1 d left",
            &format!("{at} orders-0: its certificate has 20 h left"),
            &format!("{at} orders-1: its certificate has 20 h left"),
        ]
    );
}

#[test]
fn each_thing_that_is_wrong_with_a_sidecar_gives_a_line() {
    type Break = fn(&mut Sidecar);
    let cases: [(Break, &str); 6] = [
        (|it| it.connected = false, "not connected"),
        (|it| it.report.policy.error = Some("no such key".into()), "policy refused: no such key"),
        (|it| it.report.last_error = Some("disk full".into()), "disk full"),
        (|it| it.report.policy.accepted = 16, "has policy 16, not 17"),
        (|it| it.report.bundle = 2, "has trust bundle 2, not 3"),
        (|it| it.report.certificate.issuer.clear(), "its certificate is of another issuer"),
    ];
    for (break_it, line) in cases {
        let found = found(|all| break_it(&mut all.sidecars.sidecars[1]), Duration::ZERO);
        assert_eq!(found, [format!("spiffe://td/ns/shop/sa/orders orders-1: {line}")]);
    }
}

#[test]
fn a_policy_folder_or_a_rotation_that_fails_gives_a_line() {
    let found = found(
        |all| {
            all.policy.error = Some("empty".to_owned());
            all.rotation.error = Some("disk full".to_owned());
        },
        Duration::ZERO,
    );
    assert_eq!(found, ["policy folder refused: empty", "rotation: disk full"]);
}

fn found(change: impl FnOnce(&mut Everything), min_life: Duration) -> Vec<String> {
    let mut all = everything();
    change(&mut all);
    let issuer = ("issuer `CN=td`".to_owned(), NOW + DAY);
    findings(&all, [issuer].into_iter(), min_life, NOW)
}
