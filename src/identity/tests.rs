//! Real handshakes, each refusal on both sides.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    sync::Arc,
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConfig, CommonState, HandshakeKind, NamedGroup, ProtocolVersion, ServerConfig,
    SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    crypto::SupportedKxGroup,
    pki_types::ServerName,
    server::ServerSessionMemoryCache,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{
    Alpn, Event, Expected, HandshakeFailure as Failure, Identity, peer_id,
    testing::{Mesh, in_days, self_signed},
};
use crate::{clock, drain};

const WEB: &str = "spiffe://td/ns/shop/sa/web";
const ORDERS: &str = "spiffe://td/ns/shop/sa/orders";

/// Far longer than any event takes, so that only a lost one fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// What cert-manager's csi-driver-spiffe mounts: a leaf that the root itself signed, the
/// bare key behind it (SEC 1), roots that name no trust domain, all by a swap of `..data`,
/// for its owner and group to read.
#[tokio::test]
async fn the_volume_of_csi_driver_spiffe_is_an_identity_folder() {
    let dir = tempfile::tempdir().unwrap();
    let root = CsiRoot::new();
    root.mount(dir.path(), "2026_02_03_04_05_06.111", &root.pem);
    let identity = Identity::from_folder(dir.path()).unwrap();
    assert_eq!(identity.id().as_str(), ORDERS);
    let client = identity.client_config(&Expected::AnyInTrustDomain, Alpn::H2);
    let (client, server) = handshake(&client, &identity.server_config()).await;
    assert_eq!(client, Ok(Peer { id: ORDERS.into(), alpn: Some(Alpn::H2) }));
    assert_eq!(server, client);

    let (sender, mut events) = tokio::sync::mpsc::channel(16);
    let told = move |event: &Event| sender.try_send(event.clone()).unwrap();
    drain::spawn("identity watch", identity.clone().watch(told));
    let mut rotated = async |generation| {
        let event = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap();
        assert!(
            matches!(event, Some(Event::Rotated { generation: it, .. }) if it == generation),
            "{event:?}"
        );
    };
    // It renews, and writes new roots beside the certificate there is.
    root.mount(dir.path(), "2026_02_03_04_45_06.222", &root.pem);
    rotated(2).await;
    let both = format!("{}{}", CsiRoot::new().pem, root.pem);
    root.mount(dir.path(), "2026_02_03_05_25_06.333", &both);
    rotated(3).await;
}

/// A root as cert-manager's `selfSigned` issuer makes it, which a `CA` issuer signs with.
struct CsiRoot {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl CsiRoot {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "my-spiffe-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::KeyCertSign,
        ];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Writes as `AtomicWriter` of Kubernetes does.
    fn mount(&self, folder: &Path, dated: &str, roots: &str) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(ORDERS.try_into().unwrap())];
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap().pem();
        let wrapped = key.serialize_der();
        let bare = &wrapped[29..][..usize::from(wrapped[28])];
        let key = remora_certs::pem::encode("EC PRIVATE KEY", bare);

        let fresh = folder.join(format!("..{dated}"));
        fs::create_dir(&fresh).unwrap();
        for (name, content) in [("tls.crt", &*leaf), ("tls.key", &**key), ("ca.crt", roots)] {
            let path = fresh.join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
        }
        symlink(fresh.file_name().unwrap(), folder.join("..data_tmp")).unwrap();
        let old = fs::read_link(folder.join("..data")).ok();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            if old.is_none() {
                symlink(format!("..data/{name}"), folder.join(name)).unwrap();
            }
        }
        if let Some(old) = old {
            fs::remove_dir_all(folder.join(old)).unwrap();
        }
    }
}

/// What one side found out about the other.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Peer {
    id: String,
    alpn: Option<Alpn>,
}

type Outcome = Result<Peer, Failure>;

#[tokio::test]
async fn two_workloads_of_a_mesh_prove_their_ids_to_each_other() {
    let mesh = Mesh::new();
    let (web, orders) = (mesh.identity("web"), mesh.identity("orders"));
    for alpn in [Alpn::H2, Alpn::Http1, Alpn::Tcp] {
        let client = web.client_config(&Expected::Ids([ORDERS.into()].into()), alpn);
        let (client, server) = handshake(&client, &orders.server_config()).await;
        assert_eq!(client, Ok(Peer { id: ORDERS.into(), alpn: Some(alpn) }));
        assert_eq!(server, Ok(Peer { id: WEB.into(), alpn: Some(alpn) }));
    }
}

#[tokio::test]
async fn mesh_tls_is_tls_1_3_with_a_post_quantum_key_exchange() {
    let mesh = Mesh::new();
    let (near, far) = duplex(1 << 16);
    let client = mesh.identity("web").client_config(&Expected::AnyInTrustDomain, Alpn::H2);
    let server = mesh.identity("orders").server_config();
    let accept = TlsAcceptor::from(server).accept(far);
    let (client, server) = tokio::join!(TlsConnector::from(client).connect(name(), near), accept);
    let (client, server) = (client.unwrap(), server.unwrap());
    for side in [&**client.get_ref().1 as &CommonState, &**server.get_ref().1] {
        assert_eq!(side.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        let group = side.negotiated_key_exchange_group().map(SupportedKxGroup::name);
        assert_eq!(group, Some(NamedGroup::X25519MLKEM768));
    }
}

#[tokio::test]
async fn nothing_is_ever_resumed_even_with_a_peer_that_would() {
    let mesh = Mesh::new();
    let ours = mesh.identity("web").client_config(&Expected::AnyInTrustDomain, Alpn::H2);
    let our_server = mesh.identity("orders").server_config();
    let mut willing = ClientConfig::clone(&ours);
    willing.resumption = Resumption::in_memory_sessions(8);
    let mut willing_server = ServerConfig::clone(&our_server);
    willing_server.session_storage = ServerSessionMemoryCache::new(8);
    willing_server.send_tls13_tickets = 2;
    let (willing, willing_server) = (Arc::new(willing), Arc::new(willing_server));
    for (client, server, resumed) in [
        (&ours, &willing_server, false),
        (&willing, &our_server, false),
        // The test can tell.
        (&willing, &willing_server, true),
    ] {
        full_handshake(client, server).await;
        assert_eq!(full_handshake(client, server).await, !resumed);
    }
}

/// Whether a handshake was a full one, verifiers and all.
async fn full_handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> bool {
    let (near, far) = duplex(1 << 16);
    let connect = async {
        let connector = TlsConnector::from(Arc::clone(client));
        let mut stream = connector.connect(name(), near).await.unwrap();
        // Tickets come before the first byte.
        stream.read_u8().await.unwrap();
        stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Full)
    };
    let (full, accepted) = tokio::join!(connect, accept(server, far));
    accepted.unwrap();
    full
}

#[tokio::test]
async fn a_server_is_refused_for_what_is_wrong_with_it() {
    let (mesh, stranger) = (Mesh::new(), Mesh::new());
    let (web, orders) = (mesh.identity("web"), mesh.identity("orders"));
    let client = web.client_config(&Expected::Ids([ORDERS.into()].into()), Alpn::H2);
    for (mistake, certificate, failure, told) in mistakes(&mesh, &stranger) {
        let mut server = ServerConfig::clone(&orders.server_config());
        server.cert_resolver = Arc::new(SingleCertAndKey::from(certificate));
        let (client, server) = handshake(&client, &Arc::new(server)).await;
        assert_eq!((client, server), (Err(failure), Err(told)), "{mistake}");
    }
}

#[tokio::test]
async fn a_client_is_refused_for_what_is_wrong_with_it() {
    let (mesh, stranger) = (Mesh::new(), Mesh::new());
    let (web, orders) = (mesh.identity("web"), mesh.identity("orders"));
    for (mistake, certificate, failure, told) in mistakes(&mesh, &stranger) {
        let mut client =
            ClientConfig::clone(&web.client_config(&Expected::AnyInTrustDomain, Alpn::H2));
        client.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certificate));
        let (client, server) = handshake(&Arc::new(client), &orders.server_config()).await;
        assert_eq!((server, client), (Err(failure), Err(told)), "{mistake}");
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let mesh = Mesh::new();
    let mut client = ClientConfig::clone(
        &mesh.identity("web").client_config(&Expected::AnyInTrustDomain, Alpn::H2),
    );
    client.client_auth_cert_resolver = Arc::new(Nobody);
    let server = mesh.identity("orders").server_config();
    let (client, server) = handshake(&Arc::new(client), &server).await;
    assert_eq!((client, server), (Err(Failure::NoCertificate), Err(Failure::NoCertificate)));
}

#[tokio::test]
async fn a_server_that_is_not_expected_is_refused() {
    let mesh = Mesh::new();
    let (web, orders) = (mesh.identity("web"), mesh.identity("orders"));
    for expected in [
        Expected::Ids([WEB.into()].into()),
        Expected::Ids([].into()),
        Expected::Namespace("payments".into()),
    ] {
        let client = web.client_config(&expected, Alpn::H2);
        let (client, server) = handshake(&client, &orders.server_config()).await;
        assert_eq!(client, Err(Failure::WrongIdentity), "{expected:?}");
        assert_eq!(server, Err(Failure::WrongIdentity));
    }
    for expected in [
        Expected::Ids([WEB.into(), ORDERS.into()].into()),
        Expected::Namespace("shop".into()),
        Expected::AnyInTrustDomain,
    ] {
        let client = web.client_config(&expected, Alpn::H2);
        assert!(handshake(&client, &orders.server_config()).await.0.is_ok(), "{expected:?}");
    }
}

#[tokio::test]
async fn a_peer_that_speaks_no_mesh_tls_is_told_from_a_wrong_one() {
    let mesh = Mesh::new();
    let client = mesh.identity("web").client_config(&Expected::AnyInTrustDomain, Alpn::H2);
    // An alert: fatal, protocol_version.
    let alert = b"\x15\x03\x03\x00\x02\x02\x46";
    for (answer, failure) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], Failure::NotMesh),
        (b"-ERR unknown command\r\n", Failure::NotMesh),
        (b"SSH-2.0-OpenSSH_9.9\r\n", Failure::NotMesh),
        (alert, Failure::NotMesh),
        (b"", Failure::Closed),
    ] {
        let (near, mut far) = duplex(1 << 16);
        let answered = async {
            far.read_u8().await.unwrap();
            far.write_all(answer).await.unwrap();
            drop(far);
        };
        let connector = TlsConnector::from(Arc::clone(&client));
        let (error, ()) = tokio::join!(connector.connect(name(), near), answered);
        assert_eq!(Failure::of(&error.unwrap_err()), failure, "{answer:?}");
    }
}

#[tokio::test]
async fn a_client_that_offers_no_protocol_of_ours_is_refused() {
    let mesh = Mesh::new();
    let mut client = ClientConfig::clone(
        &mesh.identity("web").client_config(&Expected::AnyInTrustDomain, Alpn::H2),
    );
    client.alpn_protocols = vec![b"h2".to_vec()];
    let (client, server) =
        handshake(&Arc::new(client), &mesh.identity("orders").server_config()).await;
    assert_eq!((client, server), (Err(Failure::NotMesh), Err(Failure::NotMesh)));
}

#[tokio::test]
async fn configurations_outlive_a_rotation_and_use_the_new_certificate() {
    let mesh = Mesh::new();
    let (web, orders) = (mesh.identity("web"), mesh.identity("orders"));
    let client = web.client_config(&Expected::AnyInTrustDomain, Alpn::H2);
    let server = orders.server_config();
    let before = leaf_of(&client, &server).await;
    mesh.issue("orders");
    assert!(matches!(reload(&orders), Some(Event::Rotated { generation: 2, .. })));
    assert_ne!(leaf_of(&client, &server).await, before);
    assert_eq!((orders.generation(), web.generation()), (2, 1));
}

#[tokio::test]
async fn no_handshake_fails_while_both_sides_rotate() {
    let mesh = Mesh::new();
    let (web, orders) = (mesh.identity("web"), mesh.identity("orders"));
    let client = web.client_config(&Expected::AnyInTrustDomain, Alpn::H2);
    let server = orders.server_config();
    let rotations = async {
        for round in 0..20 {
            let (account, identity) =
                if round % 2 == 0 { ("web", &web) } else { ("orders", &orders) };
            mesh.issue(account);
            assert!(matches!(reload(identity), Some(Event::Rotated { .. })));
            // Several flights of a handshake pass between two rotations, and some do not.
            for _ in 0..=round % 3 {
                tokio::task::yield_now().await;
            }
        }
    };
    let handshakes = async {
        for _ in 0..30 {
            let (client, server) = handshake(&client, &server).await;
            assert_eq!(
                (client.map(|it| it.id), server.map(|it| it.id)),
                (Ok(ORDERS.into()), Ok(WEB.into()))
            );
        }
    };
    tokio::join!(rotations, handshakes);
    assert_eq!((web.generation(), orders.generation()), (11, 11));
}

#[tokio::test]
async fn a_root_that_left_the_bundle_vouches_for_nobody_from_then_on() {
    let (old, new) = (Mesh::new(), Mesh::new());
    let (web, orders) = (old.identity("web"), old.identity("orders"));
    let client = web.client_config(&Expected::AnyInTrustDomain, Alpn::H2);
    let server = orders.server_config();
    assert!(handshake(&client, &server).await.0.is_ok());
    // The whole identity of `orders` moves to the new authority.
    new.issue("orders");
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        let path = fs::canonicalize(old.folder("orders").join(name)).unwrap();
        fs::copy(new.folder("orders").join(name), path).unwrap();
    }
    assert!(matches!(reload(&orders), Some(Event::Rotated { .. })));
    let (client, _server) = handshake(&client, &server).await;
    assert_eq!(client, Err(Failure::UnknownIssuer));
}

#[test]
fn a_client_configuration_is_made_once() {
    let mesh = Mesh::new();
    let web = mesh.identity("web");
    let shop = Expected::Namespace("shop".into());
    let first = web.client_config(&shop, Alpn::H2);
    assert!(Arc::ptr_eq(&first, &web.clone().client_config(&shop, Alpn::H2)));
    assert!(!Arc::ptr_eq(&first, &web.client_config(&shop, Alpn::Tcp)));
    assert!(!Arc::ptr_eq(&first, &web.client_config(&Expected::AnyInTrustDomain, Alpn::H2)));
    assert!(Arc::ptr_eq(&web.server_config(), &web.server_config()));
}

#[test]
fn the_cache_of_configurations_is_bounded() {
    let mesh = Mesh::new();
    let web = mesh.identity("web");
    let shop = Expected::Namespace("shop".into());
    let first = web.client_config(&shop, Alpn::H2);
    for number in 0..1024 {
        web.client_config(&Expected::Namespace(number.to_string().into()), Alpn::H2);
    }
    assert!(!Arc::ptr_eq(&first, &web.client_config(&shop, Alpn::H2)));
    assert_eq!(Arc::strong_count(&first), 1);
}

/// Certificates with mistakes, how each is refused, and what the refused side is told.
fn mistakes(
    mesh: &Mesh,
    stranger: &Mesh,
) -> Vec<(&'static str, Arc<CertifiedKey>, Failure, Failure)> {
    use Failure::{
        BadSpiffeId, Expired, NotMesh, NotYetValid, Protocol, UnknownIssuer, WrongIdentity,
        WrongTrustDomain,
    };
    let ok = |_: &mut CertificateParams| ();
    let ended = |it: &mut CertificateParams| it.not_after = in_days(-1);
    let not_begun = |it: &mut CertificateParams| it.not_before = in_days(1);
    let signing = |it: &mut CertificateParams| it.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let neither = |it: &mut CertificateParams| {
        it.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    };
    let elsewhere = "spiffe://elsewhere/ns/shop/sa/orders";
    vec![
        ("another trust domain", mesh.leaf(&[elsewhere], ok), WrongTrustDomain, WrongIdentity),
        ("ended", mesh.leaf(&[ORDERS], ended), Expired, Expired),
        ("not begun", mesh.leaf(&[ORDERS], not_begun), NotYetValid, Expired),
        ("another authority", stranger.leaf(&[ORDERS], ok), UnknownIssuer, UnknownIssuer),
        ("self-signed", self_signed(&[ORDERS]), UnknownIssuer, UnknownIssuer),
        ("self-signed, no mesh", self_signed(&[]), NotMesh, WrongIdentity),
        ("other TLS", self_signed(&["https://orders"]), NotMesh, WrongIdentity),
        ("two URIs", mesh.leaf(&[ORDERS, WEB], ok), BadSpiffeId, WrongIdentity),
        ("malformed", mesh.leaf(&["spiffe://td/ns//sa/orders"], ok), BadSpiffeId, WrongIdentity),
        ("no SPIFFE id", mesh.leaf(&["https://orders"], ok), BadSpiffeId, WrongIdentity),
        ("no URI", mesh.leaf(&[], ok), BadSpiffeId, WrongIdentity),
        ("no path", mesh.leaf(&["spiffe://td"], ok), BadSpiffeId, WrongIdentity),
        ("a signing certificate", mesh.leaf(&[ORDERS], signing), UnknownIssuer, WrongIdentity),
        ("another purpose", mesh.leaf(&[ORDERS], neither), Protocol, Protocol),
    ]
}

/// One handshake and one byte, which carries what the server thinks of the client.
async fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> (Outcome, Outcome) {
    let (near, far) = duplex(1 << 16);
    let (client, server) = tokio::join!(connect(client, near), accept(server, far));
    (client.map_err(|it| Failure::of(&it)), server.map_err(|it| Failure::of(&it)))
}

async fn connect(config: &Arc<ClientConfig>, io: DuplexStream) -> io::Result<Peer> {
    let mut stream = TlsConnector::from(Arc::clone(config)).connect(name(), io).await?;
    stream.read_u8().await?;
    Ok(Peer::of(stream.get_ref().1))
}

async fn accept(config: &Arc<ServerConfig>, io: DuplexStream) -> io::Result<Peer> {
    let mut stream = TlsAcceptor::from(Arc::clone(config)).accept(io).await?;
    stream.write_u8(1).await?;
    stream.flush().await?;
    Ok(Peer::of(stream.get_ref().1))
}

/// The server's leaf, in DER.
async fn leaf_of(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Vec<u8> {
    let (near, far) = duplex(1 << 16);
    let connect = TlsConnector::from(Arc::clone(client)).connect(name(), near);
    let (stream, _) = tokio::join!(connect, TlsAcceptor::from(Arc::clone(server)).accept(far));
    stream.unwrap().get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn reload(identity: &Identity) -> Option<Event> {
    identity.inner.folder.reload(&identity.inner.store, clock::wall())
}

fn name() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST).into())
}

impl Peer {
    fn of(side: &CommonState) -> Self {
        let id = peer_id(side.peer_certificates()).unwrap().to_string();
        Self { id, alpn: side.alpn_protocol().and_then(Alpn::from_name) }
    }
}

/// A client with nothing to show.
#[derive(Debug)]
struct Nobody;

impl ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
