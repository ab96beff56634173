//! The channel over real sockets: who is let in, and what slow or foreign peers meet.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::io::AsyncWriteExt;
use unasnap_channel::{
    ChannelError, Connection, Identity, IdentityError, Listener, Peer, TlsFiles, Trust, connect,
};
use unasnap_protocol::frame::{Frame, MAX_CONTROL_PAYLOAD, encode};
use unasnap_protocol::name::Name;
use unasnap_protocol::role::Role;

struct Authority(Issuer<'static, KeyPair>, String);

fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "test CA");
    let pem = params.self_signed(&key).unwrap().pem();
    Authority(Issuer::new(params, key), pem)
}

/// What a certificate of these names says that is valid until the beginning of a year.
fn params(names: &[&str], last_year: i32) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(last_year, 1, 1);
    params
}

/// Writes the three files of one identity.
fn write(folder: &Path, authority: &Authority, params: &CertificateParams) {
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority.0).unwrap();
    std::fs::write(folder.join("ca.pem"), &authority.1).unwrap();
    std::fs::write(folder.join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
    std::fs::set_permissions(folder.join("key.pem"), PermissionsExt::from_mode(0o600)).unwrap();
}

fn files(folder: &Path, crl: Option<&str>) -> TlsFiles {
    let crl = crl.map(Into::into);
    let mut files = TlsFiles { ca: "ca.pem".into(), cert: "cert.pem".into(), key: "key.pem".into(), crl };
    files.resolve(folder);
    files
}

fn load(folder: &Path) -> Result<Identity, IdentityError> {
    Identity::load(&files(folder, None))
}

fn identity(authority: &Authority, names: &[&str], last_year: i32) -> Identity {
    issued(authority, &params(names, last_year))
}

fn issued(authority: &Authority, params: &CertificateParams) -> Identity {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), authority, params);
    load(folder.path()).unwrap()
}

fn listen(identity: &Identity) -> (Listener, String) {
    let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), identity.clone().into()).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// Both ends of one attempt: what the listener gets, what the one who connects gets.
async fn attempt(
    server: &Identity,
    client: &Identity,
) -> (Result<Connection, ChannelError>, Result<Connection, ChannelError>) {
    let (listener, address) = listen(server);
    let accepting = async { listener.accept().await.unwrap().handshake().await };
    within("both handshakes", async { tokio::join!(accepting, connect(&address, client)) }).await
}

/// Waits, longer than any limit of the channel, and names what it waited for.
async fn within<T>(what: &str, done: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(30), done).await;
    done.unwrap_or_else(|_| panic!("waited 30 s for {what}"))
}

/// What the next `recv` says.
async fn heard(connection: &mut Connection) -> Result<Option<Frame>, ChannelError> {
    within("the next frame or the end", connection.recv()).await
}

async fn pair() -> (Connection, Connection) {
    let authority = authority();
    let server = identity(&authority, &["coordinator.unasnap"], 2999);
    let client = identity(&authority, &["h1.host.unasnap"], 2999);
    let (accepted, connected) = attempt(&server, &client).await;
    (accepted.unwrap(), connected.unwrap())
}

#[tokio::test]
async fn frames_go_both_ways_and_both_know_each_other() {
    let (mut server, mut client) = pair().await;
    assert_eq!(server.peer(), &Peer::Host(Name::new("h1").unwrap()));
    assert_eq!(client.peer(), &Peer::Coordinator);
    let large = encode(5, &vec![7; MAX_CONTROL_PAYLOAD]);
    let (sent, got) = tokio::join!(client.send(&large), heard(&mut server));
    sent.unwrap();
    let frame = got.unwrap().unwrap();
    assert_eq!((frame.number, frame.payload.len()), (5, MAX_CONTROL_PAYLOAD));
    server.send(&[encode(6, b"a"), encode(7, b"b")].concat()).await.unwrap();
    assert_eq!(heard(&mut client).await.unwrap().unwrap().number, 6);
    assert_eq!(heard(&mut client).await.unwrap().unwrap().number, 7);
    let (_reader, mut writer) = client.split();
    writer.close().await;
    assert_eq!(heard(&mut server).await.unwrap(), None);
}

#[tokio::test]
async fn a_foreign_ca_is_named_on_both_sides() {
    let (ours, theirs) = (authority(), authority());
    let server = identity(&ours, &["coordinator.unasnap"], 2999);
    let stranger = identity(&theirs, &["h1.host.unasnap"], 2999);
    let (accepted, connected) = attempt(&server, &stranger).await;
    assert!(matches!(connected, Err(ChannelError::ForeignCa)), "{connected:?}");
    assert!(matches!(accepted, Err(ChannelError::NotTrusted(_))), "{accepted:?}");
}

#[tokio::test]
async fn an_expired_certificate_is_named_on_both_sides() {
    let authority = authority();
    let server = identity(&authority, &["coordinator.unasnap"], 2999);
    let expired = identity(&authority, &["h1.host.unasnap"], 2021);
    let (accepted, connected) = attempt(&server, &expired).await;
    assert!(matches!(accepted, Err(ChannelError::Expired)), "{accepted:?}");
    // With TLS 1.3 the refusal comes with the first read.
    let error = heard(&mut connected.unwrap()).await.unwrap_err();
    assert!(matches!(error, ChannelError::NotTrusted(_)), "{error}");
}

#[tokio::test]
async fn an_expired_coordinator_is_not_connected_to() {
    let authority = authority();
    let expired = identity(&authority, &["coordinator.unasnap"], 2021);
    let client = identity(&authority, &["h1.host.unasnap"], 2999);
    let (accepted, connected) = attempt(&expired, &client).await;
    assert!(matches!(connected, Err(ChannelError::Expired)), "{connected:?}");
    assert!(matches!(accepted, Err(ChannelError::NotTrusted(_))), "{accepted:?}");
}

#[tokio::test]
async fn a_certificate_that_expires_ends_its_open_connection() {
    let authority = authority();
    let server = identity(&authority, &["coordinator.unasnap"], 2999);
    let mut params = params(&["h1.host.unasnap"], 2999);
    let soon = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(2);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + soon;
    let (accepted, connected) = attempt(&server, &issued(&authority, &params)).await;
    let (accepted, _connected) = (accepted.unwrap(), connected.unwrap());
    let trust = Trust::from(server);
    let lost = trust.lost(accepted.certificate());
    tokio::pin!(lost);
    // The time between two looks passes at once; that until the certificate expires is real.
    tokio::time::pause();
    let begun = Instant::now();
    let error = loop {
        if let Ok(error) = tokio::time::timeout(Duration::from_secs(3600), &mut lost).await {
            break error;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "an expired certificate is still trusted");
    };
    assert!(matches!(error, ChannelError::Expired), "{error}");
}

#[tokio::test]
async fn only_the_coordinator_is_connected_to() {
    let authority = authority();
    let host = identity(&authority, &["h2.host.unasnap"], 2999);
    let client = identity(&authority, &["h1.host.unasnap"], 2999);
    let (_, connected) = attempt(&host, &client).await;
    assert!(matches!(connected, Err(ChannelError::NotCoordinator)), "{connected:?}");
}

#[tokio::test]
async fn a_frame_once_begun_must_end() {
    let (mut server, mut client) = pair().await;
    tokio::time::pause();
    let whole = encode(5, b"payload");
    client.send(&whole[..9]).await.unwrap();
    let begun = tokio::time::Instant::now();
    let error = heard(&mut server).await.unwrap_err();
    assert!(matches!(error, ChannelError::Stalled), "{error}");
    assert!(begun.elapsed() >= Duration::from_secs(10));
}

/// A drip of bytes does not move the limit, and neither does a caller that gives up and asks again.
#[tokio::test]
async fn a_drip_of_bytes_does_not_prolong_a_frame() {
    let (mut server, client) = pair().await;
    tokio::time::pause();
    let (_reader, mut writer) = client.split();
    let whole = encode(5, &[0; 600]);
    let begun = tokio::time::Instant::now();
    let error = loop {
        let at = usize::try_from(begun.elapsed().as_secs()).unwrap();
        writer.send(&whole[at..=at]).await.unwrap();
        if let Ok(result) = tokio::time::timeout(Duration::from_secs(1), server.recv()).await {
            break result.unwrap_err();
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "it goes on for ever");
    };
    assert!(matches!(error, ChannelError::Stalled), "{error}");
}

#[tokio::test]
async fn bad_frames_end_the_connection() {
    let mut version = encode(1, b"x");
    version[4] = 9;
    for (bytes, expected) in [
        (encode(1, &vec![0; MAX_CONTROL_PAYLOAD + 1])[..64].to_vec(), "larger than"),
        (version, "version 9"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "does not speak unasnap"),
    ] {
        let (mut server, mut client) = pair().await;
        client.send(&bytes).await.unwrap();
        let error = heard(&mut server).await.unwrap_err();
        assert!(matches!(&error, ChannelError::Frame(_)) && error.to_string().contains(expected), "{error}");
    }
    let (mut server, mut client) = pair().await;
    client.send(&encode(1, b"x")[..9]).await.unwrap();
    drop(client);
    assert!(matches!(heard(&mut server).await, Err(ChannelError::Vanished)));
}

#[tokio::test]
async fn plain_tcp_and_nobody_are_told_apart() {
    let authority = authority();
    let server = identity(&authority, &["coordinator.unasnap"], 2999);
    let client = identity(&authority, &["h1.host.unasnap"], 2999);
    let (listener, address) = listen(&server);
    let mut plain = tokio::net::TcpStream::connect(&address).await.unwrap();
    plain.write_all(b"hello, is anybody there?\n").await.unwrap();
    let arrival = within("a connection", listener.accept()).await.unwrap();
    let refused = within("its handshake", arrival.handshake()).await.map(|_| ());
    assert!(matches!(refused, Err(ChannelError::NotTls)), "{refused:?}");
    drop(listener);
    let nobody = connect(&address, &client).await.map(|_| ());
    assert!(matches!(nobody, Err(ChannelError::Unreachable { .. })), "{nobody:?}");

    let echo = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = echo.local_addr().unwrap().to_string();
    let talker = async {
        let (mut stream, _) = echo.accept().await.unwrap();
        stream.write_all(b"220 mail.example ready\r\n").await.unwrap();
        stream
    };
    let (_stream, talked) = tokio::join!(talker, connect(&address, &client));
    assert!(matches!(talked, Err(ChannelError::NotTls)), "{talked:?}");
}

#[tokio::test]
async fn a_peer_that_never_shakes_hands_is_given_up() {
    let authority = authority();
    let server = identity(&authority, &["coordinator.unasnap"], 2999);
    let (listener, address) = listen(&server);
    let _silent = tokio::net::TcpStream::connect(&address).await.unwrap();
    let arrival = within("a connection", listener.accept()).await.unwrap();
    let given_up = within("its handshake", arrival.handshake()).await.map(|_| ());
    assert!(matches!(given_up, Err(ChannelError::HandshakeTimedOut)), "{given_up:?}");
}

#[test]
fn identities_are_checked_when_they_are_loaded() {
    let authority = authority();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let unfit: [&[&str]; 7] = [
        &["example.org"],
        &["a.host.unasnap", "b.view.operator.unasnap"],
        &["a.view.operator.unasnap", "a.admin.operator.unasnap"],
        &["a.b.host.unasnap"],
        &["a.operator.unasnap"],
        &["a.root.operator.unasnap"],
        &["a.b.admin.operator.unasnap"],
    ];
    for names in unfit {
        write(path, &authority, &params(names, 2999));
        assert!(matches!(load(path), Err(IdentityError::NoRole { .. })), "{names:?}");
    }
    for role in Role::ALL {
        let peer = Peer::Operator(Name::new("ann").unwrap(), role);
        write(path, &authority, &params(&[&peer.dns_name()], 2999));
        assert_eq!(load(path).unwrap().peer(), &peer);
    }
    std::fs::set_permissions(path.join("key.pem"), PermissionsExt::from_mode(0o640)).unwrap();
    let exposed = load(path).unwrap_err();
    assert!(matches!(exposed, IdentityError::KeyExposed { mode: 0o640, .. }), "{exposed}");
    std::fs::set_permissions(path.join("key.pem"), PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(path.join("key.pem"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(matches!(load(path), Err(IdentityError::Mismatch { .. })));
    std::fs::remove_file(path.join("ca.pem")).unwrap();
    assert!(matches!(load(path), Err(IdentityError::Unreadable { .. })));
}
