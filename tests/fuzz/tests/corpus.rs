//! Every input that was kept goes through its target again; so does each with every one of its bytes changed a little.

use std::path::{Path, PathBuf};

use unasnap_fuzz::{TARGETS, memory};

#[global_allocator]
static MEMORY: memory::Counting = memory::Counting;

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

#[test]
fn what_was_kept_does_no_harm() {
    for target in TARGETS {
        let files =
            std::fs::read_dir(corpus(target.name)).unwrap_or_else(|_| panic!("no corpus of {}", target.name));
        let mut count = 0;
        for entry in files.map(Result::unwrap) {
            let mut input = std::fs::read(entry.path()).unwrap();
            memory::bounded(&input, target.run);
            for at in (0..input.len()).step_by(1 + input.len() / 64) {
                for change in [1, 0x80, 0xff] {
                    input[at] ^= change;
                    memory::bounded(&input, target.run);
                    input[at] ^= change;
                }
            }
            count += 1;
        }
        assert!(count >= 3, "the corpus of {} has {count} inputs", target.name);
    }
}
