//! Nothing that a program says, at whichever level, and nothing that others can see of it, tells a private key.

use std::fmt::Write;
use std::fs;

use crate::cluster::{Cluster, privileges};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// What stands before the 32 bytes of the secret in a PKCS #8 key of P-256: version 1, a string of 32 bytes (RFC 5915).
const BEFORE_SECRET: [u8; 5] = [2, 1, 1, 4, 32];

fn from_base64(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for letter in text.bytes().filter(|letter| *letter != b'=') {
        bits =
            bits << 6 | u32::try_from(ALPHABET.iter().position(|known| *known == letter).unwrap()).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).unwrap());
        }
    }
    bytes
}

/// Without what is left over at the end.
fn to_base64(bytes: &[u8]) -> String {
    let groups = bytes.chunks_exact(3).map(|group| u32::from_be_bytes([0, group[0], group[1], group[2]]));
    let letters = groups.flat_map(|bits| [18, 12, 6, 0].map(|shift| ALPHABET[(bits >> shift & 63) as usize]));
    letters.map(char::from).collect()
}

/// How a key could show: its own PEM lines, and half of the secret itself as programs print bytes.
fn forms(pem: &str) -> Vec<String> {
    let lines: Vec<&str> = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = from_base64(&lines.concat());
    let at = der.windows(BEFORE_SECRET.len()).position(|window| window == BEFORE_SECRET).unwrap();
    let secret = &der[at + BEFORE_SECRET.len()..][..32];
    let mut forms: Vec<String> =
        lines.iter().filter(|line| line.len() > 16).map(|line| (*line).to_owned()).collect();
    // Base64 of what begins a little before or after it is shifted: one of these three is in it.
    forms.extend((0..3).map(|shift| to_base64(&secret[shift..][..15])));
    let (mut hex, mut list) = (String::new(), Vec::new());
    for byte in &secret[..16] {
        write!(hex, "{byte:02x}").unwrap();
        list.push(byte.to_string());
    }
    forms.extend([hex.to_uppercase(), hex, list.join(", "), list.join(",")]);
    forms
}

/// Every private key of the cluster, the CA's own included, in every form.
fn all_forms(cluster: &Cluster) -> Vec<String> {
    let files = fs::read_dir(cluster.path("pki")).unwrap().map(|entry| entry.unwrap().path());
    let keys: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "key")).collect();
    assert_eq!(keys.len(), 5, "of the CA, the coordinator, two hosts and the operator: {keys:?}");
    keys.iter().flat_map(|path| forms(&fs::read_to_string(path).unwrap())).collect()
}

fn finds(forms: &[String], text: &str) -> bool {
    forms.iter().any(|form| text.contains(form))
}

#[test]
fn a_key_is_found_in_whichever_form_it_shows() {
    let key = rcgen_like_key();
    let forms = forms(&key.0);
    let (pem, secret) = (key.0.as_str(), key.1);
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    for shown in [pem, &hex, &hex.to_uppercase(), &format!("{secret:?}"), &to_base64(&secret)] {
        assert!(finds(&forms, &format!("the key is {shown}.")), "{shown}");
    }
    for before in 0..3 {
        let shifted = to_base64(&[&vec![7; before], &secret[..]].concat());
        assert!(finds(&forms, &shifted), "{before} bytes before it");
    }
    assert!(!finds(&forms, "nothing of it, and no -----BEGIN PRIVATE KEY-----"));
}

/// A key as `unasnap pki` writes it, of which only the secret matters, and that secret.
fn rcgen_like_key() -> (String, [u8; 32]) {
    let secret: [u8; 32] = std::array::from_fn(|at| u8::try_from(at * 37 % 251).unwrap());
    let der = [&[0x30, 0x41, 2, 1, 0][..], &BEFORE_SECRET, &secret, &[0; 12]].concat();
    (format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", to_base64(&der)), secret)
}

#[test]
fn no_private_key_is_said_or_seen() {
    let cluster = Cluster::start(&privileges("unasnap-host.service"), &["host"]);
    assert_eq!(cluster.attempt(&["pki", "add-host", "h2", "--dir", "pki"]).0, 0);
    cluster.json(&["snapshot", "take"]);
    cluster.json(&["restore"]);
    // Certificates are taken back, and one that does not fit its key is put in the place of another: errors are said, too.
    for revoked in ["host-h2", "coordinator"] {
        assert_eq!(cluster.attempt(&["pki", "revoke", revoked, "--dir", "pki"]).0, 0);
    }
    cluster.wait("the host agent leaves the revoked coordinator", |cluster| {
        cluster.words().contains("the coordinator is not trusted any more")
    });
    fs::copy(cluster.path("pki/host-h2.pem"), cluster.path("pki/host-h1.pem")).unwrap();
    cluster.wait("the host agent says so", |cluster| cluster.words().contains("used as they were before"));
    fs::copy(cluster.path("pki/host-h2.pem"), cluster.path("pki/operator.pem")).unwrap();
    assert_eq!(cluster.attempt(&["status"]).0, 2, "a certificate without its key");

    let (forms, words) = (all_forms(&cluster), cluster.words());
    assert!(words.contains("TRACE") && words.contains("rustls"), "the libraries speak, too");
    assert!(!finds(&forms, &words), "a private key is in the log");
    assert!(!words.contains("PRIVATE KEY"), "a private key is in the log");
    let processes = cluster.processes();
    assert_eq!(processes.len(), 3, "coordinator, host agent, QEMU");
    for pid in processes {
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap();
            let shown = String::from_utf8_lossy(&bytes);
            assert!(!shown.is_empty() && !finds(&forms, &shown), "a private key is in /proc/{pid}/{file}");
        }
    }
    assert!(
        !cluster.path("state/session-keys").exists(),
        "keys of connections are not for the environment to ask"
    );
}
