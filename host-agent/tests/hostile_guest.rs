//! A guest that does what it can to harm its host: it costs its own VM the snapshot, and the host a bounded piece of time
//! and memory.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use unasnap_host::guest_channel::{GuestChannel, GuestError, MAX_WORDS, Pace};
use unasnap_protocol::frame::{Decoder, MAX_GUEST_PAYLOAD, encode};
use unasnap_protocol::guest::{GuestReply, GuestRequest, ReplyHead, RequestHead, WordState};

/// What comes from the host, and where the guest writes.
struct Port {
    stream: UnixStream,
    decoder: Decoder,
}

impl Port {
    async fn request(&mut self) -> (RequestHead, GuestRequest) {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return GuestRequest::decode(&frame).unwrap();
            }
            let mut buffer = [0; 4096];
            let count = self.stream.read(&mut buffer).await.unwrap();
            assert!(count > 0, "the host has gone");
            self.decoder.push(&buffer[..count]);
        }
    }

    async fn reply(&mut self, head: RequestHead, reply: &GuestReply) {
        self.stream.write_all(&reply.encode(&ReplyHead { sequence: head.sequence })).await.unwrap();
    }
}

/// A channel to a guest that does this with every connection.
fn guest<F: Future<Output = ()> + Send>(act: impl Fn(Port) -> F + Send + 'static) -> (GuestChannel, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("port");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            act(Port { stream, decoder: Decoder::resync(MAX_GUEST_PAYLOAD) }).await;
        }
    });
    (GuestChannel::new(path, Pace::PORT, 7), folder)
}

/// Fails within the limit, with these words.
async fn fails(channel: &mut GuestChannel, words: &str) -> GuestError {
    let begun = Instant::now();
    let error = channel.set_word(WordState::idle(1)).await.unwrap_err();
    assert!(begun.elapsed() < 5 * Pace::PORT.answer, "{:?}", begun.elapsed());
    assert!(error.to_string().contains(words), "{error}");
    error
}

/// Writes the same bytes until the host has had enough.
async fn flood(mut port: Port, bytes: Vec<u8>) {
    while port.stream.write_all(&bytes).await.is_ok() {}
}

#[tokio::test]
async fn a_flood_is_given_up_and_the_next_request_begins_anew() {
    let torn = encode(129, &[0; MAX_GUEST_PAYLOAD])[..16].to_vec();
    let unknown = encode(999, b"");
    let stale = GuestReply::Done(()).encode(&ReplyHead { sequence: 1 });
    for bytes in [vec![0; 4096], torn.repeat(256), unknown.repeat(256), stale.repeat(200)] {
        let (mut channel, _folder) = guest(move |port| flood(port, bytes.clone()));
        for _ in 0..2 {
            let error = fails(&mut channel, "no answer to SetWord among them").await;
            assert!(matches!(error, GuestError::Floods { .. }), "{error}");
        }
    }
}

#[tokio::test]
async fn half_a_frame_and_huge_lengths_are_waited_for_no_longer_than_an_answer() {
    for piece in
        [encode(130, &[0; 1000])[..500].to_vec(), b"USNP\x01\0\x82\0\xff\xff\xff\xff\0\0\0\0".to_vec()]
    {
        let (mut channel, _folder) = guest(move |mut port| {
            let piece = piece.clone();
            async move {
                port.request().await;
                port.stream.write_all(&piece).await.unwrap();
                // A second request on the same connection is answered: the torn frame does not hide the whole one.
                let (head, _) = port.request().await;
                port.reply(head, &GuestReply::Done(())).await;
                port.request().await;
            }
        });
        fails(&mut channel, "did not answer SetWord").await;
        channel.set_word(WordState::idle(1)).await.unwrap();
    }
}

#[tokio::test]
async fn a_guest_that_reads_nothing_is_waited_for_no_longer_than_an_answer() {
    let (mut channel, _folder) = guest(|port| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(port);
    });
    fails(&mut channel, "did not answer SetWord").await;
}

#[tokio::test]
async fn answers_that_do_not_belong_here_change_nothing() {
    let (mut channel, _folder) = guest(|mut port| async move {
        let (head, request) = port.request().await;
        assert_eq!(request.name(), "SetWord");
        // To another request; of another kind; for another incarnation.
        port.reply(RequestHead { sequence: head.sequence - 1, ..head }, &GuestReply::Done(())).await;
        port.reply(RequestHead { sequence: u64::MAX, ..head }, &GuestReply::Done(())).await;
        port.reply(head, &GuestReply::Outside(9)).await;
        let (head, _) = port.request().await;
        assert_eq!(head.incarnation, 7);
        port.reply(head, &GuestReply::OldIncarnation(u64::MAX)).await;
        let (head, _) = port.request().await;
        assert_eq!(head.incarnation, 7, "the guest's word does not change ours");
        port.reply(head, &GuestReply::Done(())).await;
        port.request().await;
    });
    fails(&mut channel, "it answered Outside, which is no answer to that").await;
    fails(&mut channel, "incarnation 7 has ended").await;
    channel.set_word(WordState::idle(1)).await.unwrap();
}

/// Its words end in logs and on terminals.
#[tokio::test]
async fn what_a_guest_says_is_short_and_plain() {
    let long = format!("\x1b]0;owned\x07\n{}", "a".repeat(60_000));
    for reply in [GuestReply::Failed(long.clone()), GuestReply::Health(vec![long; 1])] {
        let (mut channel, _folder) = guest(move |mut port| {
            let reply = reply.clone();
            async move {
                let (head, _) = port.request().await;
                port.reply(head, &reply).await;
                port.request().await;
            }
        });
        let error = channel.self_check().await.unwrap_err().to_string();
        assert!(error.chars().all(|letter| !letter.is_control()), "{error:?}");
        assert!(error.contains("owned") && error.len() < MAX_WORDS + 100, "{error}");
    }
}
