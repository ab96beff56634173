//! The state word of a real guest, changed in its RAM in the pause of a cut.

use std::time::{Duration, Instant};

use unasnap_host::colouring::memory::MemoryWord;
use unasnap_host::definition::VmDefinition;
use unasnap_host::guest_channel::{GuestChannel, Pace};
use unasnap_host::hypervisor::{Hypervisor, InPause, Vm};
use unasnap_protocol::guest::{Epoch, Located, WordState};

use crate::bench::{Bench, name, with_bench};

/// An emulated guest takes some seconds to boot and to load the programs.
const AGENT_PATIENCE: Duration = Duration::from_secs(60);

/// A channel to a guest whose agent finds all in order, within this time.
pub async fn channel(vm: &dyn Vm, patience: Duration) -> GuestChannel {
    let mut channel = GuestChannel::new(vm.guest_channel_path().to_owned(), Pace::PORT, vm.incarnation());
    let deadline = Instant::now() + patience;
    while let Err(error) = channel.self_check().await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    channel
}

pub fn armed(epoch: Epoch) -> WordState {
    WordState { strict: true, ..WordState::colouring(epoch) }
}

/// Arms the member, cuts with the flip in the pause, and asks the guest what its word is.
pub async fn cut_and_flip(bench: &Bench, vm: &mut dyn Vm, snapshot: &str, epoch: Epoch) {
    let mut channel = channel(vm, AGENT_PATIENCE).await;
    let located = channel.locate_word().await.unwrap();
    let word = MemoryWord::find(vm.ram().unwrap(), located).unwrap();
    channel.set_word(WordState::colouring(epoch)).await.unwrap();
    assert!(word.check_armed(epoch).is_err(), "not armed yet");
    let draft = bench.store.begin(&name(snapshot), &bench.vm.name).unwrap();
    vm.prepare_cut(draft.folder()).await.unwrap();
    vm.arm_cut().await.unwrap();
    channel.set_strict(epoch).await.unwrap();
    word.check_armed(epoch).unwrap();
    let mut flipped = None;
    let times = vm
        .cut(InPause { fixed: Box::new(|| flipped = Some(word.flip(epoch))), ..InPause::nothing() })
        .await
        .unwrap();
    flipped.unwrap().unwrap();
    println!("pause {:?} {:?}", times.pause(), times.parts);
    assert_eq!(channel.identify().await.unwrap().word, WordState::colouring(epoch + 1));
    bench.finish(vm, draft, snapshot).await;
}

/// In RAM that is a memfd, and in RAM of a restored VM, which is its own copy of a file.
#[test]
fn a_word_that_is_written_in_the_pause_is_the_guests_and_not_the_snapshots() {
    with_bench(None, |bench| {
        Box::pin(async {
            let append = format!("{} agent", bench.vm.append);
            let definition = VmDefinition { append, ..bench.vm.clone() };
            let mut vm = bench.driver.start(&definition, 1).await.unwrap();
            cut_and_flip(bench, &mut *vm, "first", 4).await;
            for (snapshot, next, epoch) in [("first", "second", 4), ("second", "third", 7)] {
                bench.driver.destroy(&bench.vm.name).await.unwrap();
                vm = bench.restore(snapshot).await;
                vm.resume().await.unwrap();
                let found = channel(&*vm, AGENT_PATIENCE).await.identify().await.unwrap().word;
                assert_eq!(found, armed(epoch), "the snapshot has the word from before the flip");
                cut_and_flip(bench, &mut *vm, next, 7).await;
                bench.assert_counting().await;
            }
        })
    });
}

#[test]
fn what_a_guest_says_about_its_word_is_not_believed() {
    with_bench(None, |bench| {
        Box::pin(async {
            let vm = bench.start().await;
            let ram_bytes = bench.vm.memory_bytes();
            for guest_physical in [0, 4096, ram_bytes, 3 << 30, 4 << 30, u64::MAX - 4095, 8] {
                let lie = Located { guest_physical, nonce: 0x0bad_cafe_0bad_cafe };
                assert!(MemoryWord::find(vm.ram().unwrap(), lie).is_err(), "{guest_physical:#x}");
            }
            bench.assert_counting().await;
        })
    });
}
