use super::*;

fn chunk(length: usize) -> Chunk {
    vec![7; length].try_into().unwrap()
}

#[test]
fn what_is_too_large_or_no_command_or_path_does_not_come_off_the_wire() {
    let large = postcard::to_allocvec(&vec![0_u8; CHUNK_BYTES + 1]).unwrap();
    assert!(postcard::from_bytes::<Chunk>(&large).is_err());
    let words = |words: &[&[u8]]| words.iter().map(|word| word.to_vec()).collect::<Vec<_>>();
    let bad = [words(&[]), words(&[b"", b"a"]), words(&[b"a\0b"]), words(&[b"a", &[b'a'; CHUNK_BYTES]])];
    for bad in bad {
        let wire = postcard::to_allocvec(&bad).unwrap();
        assert!(postcard::from_bytes::<CommandLine>(&wire).is_err(), "{bad:?}");
    }
    let long = format!("/{}", "a".repeat(MAX_PATH_BYTES));
    for bad in ["", "etc/motd", "/", "/etc/", "/etc/..", "/a\0b", &long] {
        let wire = postcard::to_allocvec(bad).unwrap();
        assert!(postcard::from_bytes::<GuestPath>(&wire).is_err(), "{bad:?}");
    }
    assert_eq!(
        "/etc/../motd".parse::<GuestPath>().map(|path| path.as_str().to_owned()),
        Ok("/etc/../motd".into())
    );
}

/// Whatever is logged of a request shows the program and nothing else of it.
#[test]
fn arguments_paths_and_contents_are_not_shown() {
    let command = CommandLine::try_from(vec![b"mysql".to_vec(), b"--password=hunter2".to_vec()]).unwrap();
    let path: GuestPath = "/root/hunter2".parse().unwrap();
    let asks = [
        Ask::Exec(command, 60),
        Ask::Get(path.clone()),
        Ask::Put(path, File { mode: 0o600, bytes: 7 }),
        Ask::Data(b"hunter2".to_vec().try_into().unwrap()),
    ];
    for ask in asks {
        let request = AccessRequest::Turn(Name::new("vm1").unwrap(), 1, ask);
        assert!(!format!("{request:?}").contains("hunter2"), "{request:?}");
    }
    let shown = format!("{:?}", CommandLine::try_from(vec![b"ls".to_vec(), b"-l".to_vec()]).unwrap());
    assert_eq!(shown, "\"ls\" with 1 arguments");
}

#[test]
fn a_guest_is_believed_only_what_answers_the_question() {
    let (opened, file) = (Opened { chunk: 9, file: None }, Some(File { mode: 0, bytes: 1 }));
    let path: GuestPath = "/a".parse().unwrap();
    let command = CommandLine::try_from(vec![b"a".to_vec()]).unwrap();
    assert!(Said::Opened(opened).fits(&Ask::Exec(command.clone(), 1)));
    assert!(!Said::Opened(Opened { file, ..opened }).fits(&Ask::Exec(command.clone(), 1)));
    assert!(!Said::Opened(Opened { chunk: 0, ..opened }).fits(&Ask::Exec(command, 1)));
    assert!(!Said::Opened(opened).fits(&Ask::Get(path)));
    assert!(Said::Output(Stream::Out, chunk(8)).fits(&Ask::More(8)));
    assert!(!Said::Output(Stream::Out, chunk(9)).fits(&Ask::More(8)));
    assert!(!Said::Data(chunk(9)).fits(&Ask::More(8)));
    assert!(!Said::Taken.fits(&Ask::End([0; 32])) && !Said::Closed.fits(&Ask::More(1)));
}
