//! What is said about the image catalogue.

use unasnap_protocol::image::*;

use super::*;

pub fn requests() -> Vec<ImageRequest> {
    let image: ImageRef = "debian:12.5".parse().unwrap();
    vec![
        ImageRequest::List(Some(name("debian"))),
        ImageRequest::Add { image: image.clone(), host: name("h1"), path: "/d".to_owned() },
        ImageRequest::Tag { image: image.clone(), version: Version::latest() },
        ImageRequest::Remove(image.clone()),
        ImageRequest::Preload { image, hosts: vec![name("h2")], per_second: Some(300), within_s: 60 },
    ]
}

pub fn record() -> ImageRecord {
    let copy = ImageCopy {
        host: name("h1"),
        base: name("debian"),
        path: "/d".to_owned(),
        users: vec![name("vm1")],
        problem: Some("gone".to_owned()),
    };
    ImageRecord {
        name: name("debian"),
        version: "12.5".parse().unwrap(),
        blake3: "ab".repeat(32),
        format: "qcow2".to_owned(),
        virtual_bytes: 2 << 30,
        bytes: 300,
        added: "2026-01-01T00:00:00Z".to_owned(),
        copies: vec![copy],
    }
}

/// Each wish.
#[test]
fn images() {
    let mut lines = String::new();
    for request in requests() {
        let request = Request::Image(request);
        let bytes = request.encode(&());
        assert_eq!(Request::decode(&frame_of(&bytes)), Ok(((), request)));
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(lines, "{hex}").unwrap();
    }
    insta::assert_snapshot!("images", lines);
}
