use std::path::Path;

use remora::{clock, identity::Identity};
use remora_certs::authority::{Authority, Leaf, Plan, create};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{
    issuing,
    rotation::Record,
    store::{Expected as Before, Folder, Store},
};

const ORDERS: &str = "spiffe://td/ns/shop/sa/orders";

#[tokio::test]
async fn a_leaf_of_the_new_issuer_is_shown_by_a_handshake() {
    let (old, new) = (Place::new(), Place::new());
    let issuing = rotated(&old, &new).await;
    let sidecar = serve(&new, &[&old, &new]).await;
    assert_eq!(proof(&issuing, &sidecar).await, Ok(()));
}

#[tokio::test]
async fn a_leaf_of_the_old_issuer_is_none() {
    let (old, new) = (Place::new(), Place::new());
    let issuing = rotated(&old, &new).await;
    let sidecar = serve(&old, &[&old, &new]).await;
    let reason = proof(&issuing, &sidecar).await.unwrap_err();
    assert!(reason.contains("a certificate of another issuer"), "{reason}");
}

#[tokio::test]
async fn one_that_does_not_trust_the_new_issuer_is_found_out() {
    let (old, new) = (Place::new(), Place::new());
    let issuing = rotated(&old, &new).await;
    // Its roots must vouch for its own leaf, so it is one of an unrelated issuer.
    let sidecar = serve(&old, &[&old]).await;
    assert!(proof(&issuing, &sidecar).await.is_err());
}

#[tokio::test]
async fn another_workload_at_the_address_is_found_out() {
    let (old, new) = (Place::new(), Place::new());
    let issuing = rotated(&old, &new).await;
    let mut sidecar = serve(&new, &[&old, &new]).await;
    sidecar.id = "spiffe://td/ns/shop/sa/payments".to_owned();
    let reason = proof(&issuing, &sidecar).await.unwrap_err();
    assert!(reason.ends_with("is another workload"), "{reason}");
}

#[tokio::test]
async fn nobody_listening_is_said_with_the_address() {
    let (old, new) = (Place::new(), Place::new());
    let issuing = rotated(&old, &new).await;
    let mut sidecar = serve(&new, &[&old, &new]).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    sidecar.report.inbound = Some(free);
    let reason = proof(&issuing, &sidecar).await.unwrap_err();
    assert!(reason.contains(&format!("no connection to {free}")), "{reason}");
}

#[test]
fn a_sidecar_cannot_have_control_connect_elsewhere() {
    let at = |peer: Option<&str>, inbound: &str| {
        address(peer.map(|it| it.parse().unwrap()), inbound.parse().unwrap())
            .map(|it| it.to_string())
            .map_err(|_| ())
    };
    for (peer, inbound, expected) in [
        (Some("10.0.0.7"), "10.0.0.7:15006", Ok("10.0.0.7:15006")),
        (Some("10.0.0.7"), "0.0.0.0:15006", Ok("10.0.0.7:15006")),
        (Some("10.0.0.7"), "169.254.169.254:80", Ok("10.0.0.7:80")),
        (Some("10.0.0.7"), "127.0.0.1:15006", Err(())),
        (Some("127.0.0.1"), "127.0.0.1:15006", Ok("127.0.0.1:15006")),
        (Some("::1"), "[::]:15006", Ok("[::1]:15006")),
        (None, "10.0.0.7:15006", Err(())),
    ] {
        assert_eq!(at(peer, inbound), expected.map(str::to_owned), "{peer:?} {inbound}");
    }
}

/// An authority's folder.
struct Place {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let life = Duration::from_hours(24);
        let plan = Plan { trust_domain: "td", root_life: life, issuer_life: life };
        let authority = create(dir.path(), &plan, clock::wall()).unwrap();
        Self { dir, authority }
    }

    fn store(&self) -> Store {
        Store::Folder(Folder::new(self.dir.path()))
    }
}

/// What signs when a rotation from one to the other is at `prove`.
async fn rotated(old: &Place, new: &Place) -> Issuing {
    let (store, now) = (old.store(), clock::wall());
    let first = Issuing::load(&store, Some(old.dir.path()), now).await.unwrap();
    let next = issuing::keep(&store, &new.authority).await.unwrap();
    let mut record: Record = first.record.begun(next).unwrap();
    while record.step != super::super::Step::Prove {
        record = super::super::advance(&record, &[], &Proofs::new(), now).unwrap();
    }
    issuing::write(&store, &record, &Before::Any).await.unwrap();
    Issuing::read(&store, now).await.unwrap()
}

/// A sidecar's listener with a leaf of `issuer`, and how it is reported.
async fn serve(issuer: &Place, trusts: &[&Place]) -> Sidecar {
    let folder = tempfile::tempdir().unwrap();
    write_identity(issuer, trusts, folder.path());
    let identity = Identity::from_folder(folder.path()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let inbound = listener.local_addr().unwrap();
    drain::spawn("listener", async move {
        let acceptor = TlsAcceptor::from(identity.server_config());
        let (tcp, _) = listener.accept().await.unwrap();
        // A handshake may fail: that is what some tests are about.
        let Ok(mut tls) = acceptor.accept(tcp).await else { return };
        let mut preface = [0; 24];
        let _read = tls.read_exact(&mut preface).await;
        let _written = tls.write_all(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00").await;
        let _rest = tls.read(&mut preface).await;
    });
    let report = remora::sync::wire::Report { inbound: Some(inbound), ..Default::default() };
    Sidecar {
        id: ORDERS.to_owned(),
        connected: true,
        seen: 0,
        not_after: u64::MAX,
        peer: Some(inbound.ip()),
        report,
    }
}

fn write_identity(issuer: &Place, trusts: &[&Place], folder: &Path) {
    let id = ORDERS.parse().unwrap();
    let life = Duration::from_hours(1);
    let leaf = Leaf { id: &id, life, dns_names: &[], addresses: &[] };
    let mut issued = issuer.authority.issue(&leaf, clock::wall()).unwrap();
    issued.roots = trusts.iter().map(|it| it.authority.root_pem()).collect();
    issued.write(folder, clock::wall()).unwrap();
}

async fn proof(issuing: &Issuing, sidecar: &Sidecar) -> Result<(), String> {
    let proofs = prove(issuing, &[sidecar]).await;
    proofs.into_values().next().unwrap()
}
