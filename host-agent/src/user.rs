//! Whether somebody sits at this host.
//!
//! Desktops know that in ways of their own (screen savers, idle hints of the session, logins), and have hooks for all of them.
//! So a hook makes a file, and another removes it; the agent only looks whether it is there.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, interval};

use crate::config::UserConfig;

/// From one look to the next.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Looks from now on, as long as anybody wants to know.
pub fn watch(config: UserConfig) -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(config.file.exists());
    tokio::spawn(async move {
        let (mut tick, mut seen, mut told) = (interval(LOOK_EVERY), Instant::now(), false);
        while !sender.is_closed() {
            tick.tick().await;
            let is_there = match tokio::fs::try_exists(&config.file).await {
                Ok(is_there) => is_there,
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "whether somebody sits here cannot be seen: {}", config.file.display());
                    }
                    false
                }
            };
            if is_there {
                seen = Instant::now();
            }
            let here = is_there || (*sender.borrow() && seen.elapsed().as_secs() < config.away_after_s);
            sender.send_if_modified(|known| std::mem::replace(known, here) != here);
        }
    });
    receiver
}

/// Waits for the next change; for ever on a host without a user.
pub async fn change(user: &mut Option<watch::Receiver<bool>>) -> bool {
    if let Some(user) = user
        && user.changed().await.is_ok()
    {
        return *user.borrow_and_update();
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn somebody_is_here_at_once_and_gone_after_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("user");
        let mut user = Some(watch(UserConfig { file: file.clone(), away_after_s: 60 }));
        let begun = Instant::now();
        std::fs::write(&file, "").unwrap();
        assert!(change(&mut user).await);
        assert!(begun.elapsed() <= 2 * LOOK_EVERY, "{:?}", begun.elapsed());

        std::fs::remove_file(&file).unwrap();
        let gone = Instant::now();
        tokio::time::sleep(Duration::from_secs(30)).await;
        // Back before anybody noticed.
        std::fs::write(&file, "").unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
        std::fs::remove_file(&file).unwrap();
        assert!(!change(&mut user).await);
        assert!(gone.elapsed() >= Duration::from_secs(110), "{:?}", gone.elapsed());
    }
}
