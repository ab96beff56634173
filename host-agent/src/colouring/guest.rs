//! What is told to a guest agent, whoever colours.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use unasnap_protocol::guest::{Epoch, SetMembers, StartHooks, WordState};

use crate::clock::unix_ns;
use crate::guest_channel::{GuestChannel, GuestError};

/// How long a guest agent that is not needed may take to stand aside.
const COURTESY: Duration = Duration::from_millis(500);
/// How long a resumed guest may take until its agent answers again; it wakes up in the middle of a cut.
const WAKE_LIMIT: Duration = Duration::from_secs(15);
/// The same where it is not known whether there is an agent at all.
const COURTESY_WAKE_LIMIT: Duration = Duration::from_secs(2);
/// In this time a guest that runs takes from its card what lay there. Its kernel does so as soon as it is woken; the agent,
/// which may have a higher priority, waits for requests meanwhile.
const CARD_DRAINS: Duration = Duration::from_millis(20);

/// Makes programs that the guest may have of its own idle, and asks what only the guest knows: connections to the
/// outside. `None` when nobody answers.
pub(super) async fn stand_aside(guest: &mut GuestChannel, members: SetMembers, epoch: Epoch) -> Option<u32> {
    let ask = async {
        guest.set_word(WordState::idle(epoch)).await?;
        guest.set_members(members).await?;
        guest.count_outside().await
    };
    timeout(COURTESY, ask).await.ok()?.ok()
}

/// Sets the word as soon as the guest agent answers, then members, clock and entropy; answers the hooks that failed.
///
/// Where the agent is `needed`, its programs are strict until the frames have been judged that lay in the guest's card at the cut.
/// Idle at once, they would take one of the future for one of today, if the network had cleared its mark.
///
/// # Errors
/// Nobody answers in time; less of it where the agent is not `needed`.
pub(super) async fn wake(
    guest: &mut GuestChannel,
    members: SetMembers,
    epoch: Epoch,
    needed: bool,
) -> Result<Vec<String>, GuestError> {
    let deadline = Instant::now() + if needed { WAKE_LIMIT } else { COURTESY_WAKE_LIMIT };
    // All of it may be repeated. A guest whose RAM is still being read from the disk may miss any of the answers' limits.
    loop {
        match told(guest, &members, epoch, needed).await {
            Ok(problems) => return Ok(problems),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(error) => tracing::debug!("not awake yet: {error}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn told(
    guest: &mut GuestChannel,
    members: &SetMembers,
    epoch: Epoch,
    needed: bool,
) -> Result<Vec<String>, GuestError> {
    guest.set_word(if needed { WordState::waking(epoch) } else { WordState::idle(epoch) }).await?;
    guest.set_members(members.clone()).await?;
    let hooks = StartHooks { unix_ns: unix_ns(), entropy: entropy() };
    let problem = guest.start_hooks(hooks).await.err();
    if needed {
        sleep(CARD_DRAINS).await;
        guest.set_word(WordState::idle(epoch)).await?;
    }
    Ok(problem.into_iter().map(|error| error.to_string()).collect())
}

/// Randomness of the host's kernel.
fn entropy() -> [u8; 32] {
    use std::io::Read;
    let mut bytes = [0; 32];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    if let Err(error) = read {
        tracing::warn!(%error, "/dev/urandom cannot be read; the restored guest is not reseeded well");
    }
    bytes
}
