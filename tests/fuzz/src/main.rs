//! The fuzzer: one target per run, named by `UNASNAP_FUZZ_TARGET`. `cargo xtask fuzz` builds and runs it.

#![no_main]

use std::sync::OnceLock;

use unasnap_fuzz::{Target, memory};

#[global_allocator]
static MEMORY: memory::Counting = memory::Counting;

static TARGET: OnceLock<Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let name = std::env::var("UNASNAP_FUZZ_TARGET").unwrap_or_default();
        let target = unasnap_fuzz::find(&name).unwrap_or_else(|| {
            eprintln!("UNASNAP_FUZZ_TARGET={name:?} is none of: {}", unasnap_fuzz::names());
            std::process::exit(2)
        });
        TARGET.set(target).ok();
    },
    |input: &[u8]| {
        if let Some(target) = TARGET.get() {
            memory::bounded(input, target.run);
        }
    }
);
