use super::*;

const GOOD: &str = "
seed: 7
callers: 2
phases:
- {name: healthy, length: 20s, rate: 60}
- {name: outage, length: 10s, rate: 90}
hops:
- {name: orders, instances: 3, workers: 16, work: 5ms, timeout: 1s, tryTimeout: 300ms}
- {name: stock, instances: 2, workers: 8, queue: 5, work: {mean: 5ms, spread: lognormal}}
faults:
- {hop: stock, during: outage, mode: error, status: 503}
- {hop: orders, instances: [2], from: 5s, for: 2s, mode: flap, period: 100ms}
";

#[test]
fn a_fault_lasts_as_long_as_the_phase_it_names() {
    let scenario = read(GOOD.as_bytes(), Path::new("a.yaml")).unwrap();
    let seconds = Duration::from_secs;
    let [outage, flap] = scenario.faults.as_slice() else { panic!("{:?}", scenario.faults) };
    assert_eq!((outage.from, outage.until), (seconds(20), seconds(30)));
    assert_eq!((flap.from, flap.until), (seconds(5), seconds(7)));
    assert!(outage.concerns(1, 0) && outage.concerns(1, 1) && !outage.concerns(0, 0));
    assert!(flap.concerns(0, 2) && !flap.concerns(0, 1));
    assert_eq!(scenario.hops[0].policy.timeouts.request, seconds(1));
    assert_eq!(scenario.length(), seconds(30));
}

#[test]
fn everything_that_is_wrong_is_said_at_its_place() {
    for (from, to, expected) in [
        ("callers", "caller", "a.yaml:3:1: unknown key `caller` in a scenario"),
        ("during: outage", "during: outrage", "a.yaml:11:24: unknown phase `outrage`"),
        ("hop: stock", "hop: stok", "a.yaml:11:9: unknown value `stok`"),
        ("instances: [2]", "instances: [3]", "a.yaml:12:29: `3` is not in the range"),
        ("period: 100ms", "factor: 3", "a.yaml:12:3: flap has no `period`"),
        ("status: 503", "factor: 3", "a.yaml:11:53: `factor` means nothing in this mode"),
        ("from: 5s", "from: 30s", "a.yaml:12:3: the fault begins after the last phase"),
        ("rate: 60", "rate: 0", "a.yaml:5:38: `0` is not in the range"),
        ("hops:", "---\nhops:", "a second document"),
    ] {
        let errors = read(GOOD.replace(from, to).as_bytes(), Path::new("a.yaml")).unwrap_err();
        assert!(errors.to_string().contains(expected), "{errors}");
    }
    assert!(read(b"", Path::new("a.yaml")).is_err() && read(b"[1]", Path::new("a")).is_err());
}
