//! What hosts say to each other.

use unasnap_protocol::transfer::{Ask, Chunk, Disks, Give, Image, Item, Offer, Piece, Wanted};

use super::*;

pub fn moved() -> Moved {
    Moved { sent: 300, to_send: 400, total: 500 }
}

pub fn restore_at() -> RestoreRequest {
    let places = vec![Place { vm: name("vm1"), host: name("h2") }];
    RestoreRequest { snapshot: Some(name("ring-000004")), places }
}

pub fn fetched() -> FetchedMember {
    let mut fetched = FetchedMember::new(name("vm1"), name("h1"), name("h2"));
    fetched.note(moved(), 3.0);
    fetched
}

pub fn copies() -> Copies {
    let missing = Some("h3 is not connected".to_owned());
    Copies { wanted: 2, members: vec![MemberCopies { vm: name("vm1"), hosts: vec![name("h1")], missing }] }
}

#[test]
fn transfers() {
    let wanted = Wanted { snapshot: name("ring-000004"), vm: name("vm1"), digest: [7; 32] };
    let image = Image { path: "/srv/a".to_owned(), size: 300, data_bytes: 200, digest: [8; 32] };
    let offer = Offer { manifest_bytes: 700, data_bytes: vec![300, 1], images: vec![image] };
    pin!(
        Ask,
        (),
        [
            Ask::Open(wanted),
            Ask::Read(Piece { item: Item::File(3), offset: 300 }),
            Ask::Base([8; 32]),
            Ask::Disks(Disks { vm: name("vm1"), digest: [7; 32] })
        ]
    );
    pin!(
        Give,
        (),
        [
            Give::Offer(offer),
            Give::Chunk(Chunk { offset: 300, bytes: vec![1, 2, 3] }),
            Give::End(303),
            Give::Busy(()),
            Give::Refused("why".to_owned()),
        ]
    );
    let items = [Item::Manifest, Item::File(0), Item::Image(0)];
    let pieces = items.map(|item| Ask::Read(Piece { item, offset: 0 }).encode(&()));
    assert_eq!(pieces.map(|bytes| bytes[unasnap_protocol::frame::HEADER_BYTES]), [0, 1, 2]);
}
