//! The guest channel without a port, with a guest that answers what is written to its agent.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;
use unasnap_host::config::Config;
use unasnap_host::guest_channel::{GuestChannel, Pace};
use unasnap_host::hypervisor::virtualbox::calls::{Answer, Calls};
use unasnap_host::hypervisor::virtualbox::{Login, VirtualBox};
use unasnap_host::hypervisor::{Hypervisor, HypervisorError, Pending, Vm};
use unasnap_protocol::frame::{Decoder, MAX_GUEST_PAYLOAD};
use unasnap_protocol::guest::{
    GuestReply, GuestRequest, Prefix, ReplyHead, SetMembers, StartHooks, WordState,
};
use unasnap_protocol::relay;

use crate::recorded::answer;
use crate::simulated::{Simulated, UUID};
use crate::support::{Host, config, name};

const PASSWORD: &str = "a secret";

/// VirtualBox with a guest that has the Guest Additions and an agent.
struct Additions {
    machine: Arc<Simulated>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    calls: Vec<Vec<String>>,
    requests: Vec<GuestRequest>,
    /// What lies in the guest.
    file: Option<String>,
    /// What the next calls answer instead; the last of them first. `None`: it does not end.
    instead: Vec<Option<Answer>>,
    /// The next call does not end; its begin is told here.
    hangs: Option<oneshot::Sender<Hanging>>,
}

/// A call that does not end: the receiver ends when it is given up.
type Hanging = oneshot::Receiver<()>;

impl Additions {
    fn of(host: &Host) -> Arc<Self> {
        Arc::new(Self { machine: host.virtualbox.clone(), state: Mutex::default() })
    }

    async fn driver(self: &Arc<Self>, host: &Host) -> VirtualBox {
        let mut config = config(host.folder.path());
        let login = Login { user: "admin".to_owned(), password_file: password(host) };
        config.guestcontrol.insert(name("web"), login);
        VirtualBox::with_calls(config, self.clone()).await.unwrap()
    }

    fn answers(&self, instead: impl IntoIterator<Item = Option<Answer>>) {
        self.state.lock().unwrap().instead = instead.into_iter().collect();
    }

    /// Requests that have come, and the calls that carried them.
    fn taken(&self) -> (Vec<GuestRequest>, Vec<Vec<String>>) {
        let mut state = self.state.lock().unwrap();
        (std::mem::take(&mut state.requests), std::mem::take(&mut state.calls))
    }

    fn in_guest(&self, arguments: &[&str]) -> Answer {
        let mut state = self.state.lock().unwrap();
        state.calls.push(arguments.iter().map(|word| (*word).to_owned()).collect());
        let word = match arguments {
            [.., "copyto", "--username", "admin", "--passwordfile", _, from, relay::REQUEST_FILE] => {
                let mode = std::fs::metadata(from).unwrap().permissions().mode() & 0o777;
                assert_eq!(mode, 0o600, "others may read {from}");
                state.file = Some(std::fs::read_to_string(from).unwrap());
                return printed("");
            }
            [.., "--", "relay", "--file", relay::REQUEST_FILE] => state.file.take().unwrap(),
            [.., "--", "relay", word] => (*word).to_owned(),
            other => panic!("{other:?}"),
        };
        let mut decoder = Decoder::strict(MAX_GUEST_PAYLOAD);
        decoder.push(&relay::frame(&word).unwrap());
        let (head, request) = GuestRequest::decode(&decoder.next_frame().unwrap().unwrap()).unwrap();
        let reply = match &request {
            GuestRequest::SetWord(word) => GuestReply::Word(*word),
            _ => GuestReply::Done(()),
        };
        state.requests.push(request);
        printed(&(relay::word(&reply.encode(&ReplyHead { sequence: head.sequence })) + "\n"))
    }
}

fn printed(text: &str) -> Answer {
    Answer { code: 0, stdout: text.to_owned(), stderr: String::new() }
}

impl Calls for Additions {
    fn call<'a>(&'a self, vm: &'a str, arguments: &'a [&'a str], limit: Duration) -> Pending<'a, Answer> {
        if arguments[0] != "guestcontrol" {
            return self.machine.call(vm, arguments, limit);
        }
        if let Some(begun) = self.state.lock().unwrap().hangs.take() {
            return Box::pin(async {
                let (_given_up, hanging) = oneshot::channel();
                begun.send(hanging).unwrap();
                std::future::pending().await
            });
        }
        let instead = self.state.lock().unwrap().instead.pop();
        let answer = match instead {
            None => Ok(self.in_guest(arguments)),
            Some(Some(answer)) => Ok(answer),
            Some(None) => {
                let what = arguments.join(" ");
                Err(HypervisorError::TimedOut { vm: vm.to_owned(), what, after: limit })
            }
        };
        Box::pin(async { answer })
    }
}

fn password(host: &Host) -> PathBuf {
    let path = host.folder.path().join("password");
    std::fs::write(&path, PASSWORD).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// The VM runs, and this is the channel to its guest.
async fn begun(host: &Host) -> (Arc<Additions>, Box<dyn Vm>, GuestChannel) {
    let virtualbox = Additions::of(host);
    let vm = virtualbox.driver(host).await.start(&host.vm, 3).await.unwrap();
    let channel = channel(&*vm);
    (virtualbox, vm, channel)
}

fn channel(vm: &dyn Vm) -> GuestChannel {
    assert_eq!(vm.guest_channel_pace(), Pace::CALLS);
    GuestChannel::new(vm.guest_channel_path().to_owned(), vm.guest_channel_pace(), vm.incarnation())
}

#[tokio::test]
async fn a_request_is_one_call_and_the_machine_keeps_its_ports() {
    let host = Host::new().await;
    let (virtualbox, _vm, mut channel) = begun(&host).await;
    assert!(!host.virtualbox.taken().iter().any(|call| call.contains("--uart")));
    channel.set_word(WordState::colouring(4)).await.unwrap();
    assert!(channel.was_heard());
    let (requests, calls) = virtualbox.taken();
    assert_eq!(requests, [GuestRequest::SetWord(WordState::colouring(4))]);
    let file = host.folder.path().join("password");
    let [login, how] = [
        format!("guestcontrol {UUID} run --username admin --passwordfile {}", file.display()),
        "--exe /usr/bin/unasnap-guest --timeout 5500 --wait-stdout --wait-stderr -- relay".to_owned(),
    ];
    let (_word, rest) = calls[0].split_last().unwrap();
    assert_eq!((calls.len(), rest.join(" ")), (1, format!("{login} {how}")));
}

#[tokio::test]
async fn what_is_secret_or_long_is_on_no_command_line() {
    let host = Host::new().await;
    let (virtualbox, _vm, mut channel) = begun(&host).await;
    let hooks = StartHooks { unix_ns: 1, entropy: [7; 32] };
    channel.start_hooks(hooks.clone()).await.unwrap();
    let prefixes = (0..2000).map(|_| Prefix::V6([0xfd; 16], 64)).collect();
    let members = SetMembers { prefixes, code_points: [3, 5, 7], future_lease_ms: 2000 };
    channel.set_members(members.clone()).await.unwrap();
    let (requests, calls) = virtualbox.taken();
    assert_eq!(requests, [GuestRequest::StartHooks(hooks), GuestRequest::SetMembers(members)]);
    assert_eq!(calls.iter().map(|call| &*call[2]).collect::<Vec<_>>(), ["copyto", "run", "copyto", "run"]);
    for word in calls.iter().flatten() {
        assert!(word.len() < 200 && !word.contains(PASSWORD), "{word}");
    }
    assert!(!host.folder.path().join("vms/web/guestcontrol.request").exists());
}

#[tokio::test]
async fn what_fails_is_told_in_virtualboxs_words_and_the_next_request_is_carried() {
    let host = Host::new().await;
    let (virtualbox, _vm, mut channel) = begun(&host).await;
    let no_agent = "unasnap-guest: error: no answer from /run/unasnap-guest/agent.sock";
    let cases = [
        (
            Some(answer("13-guestcontrol-linux/004-run-badpw")),
            "The specified user was not able to logon on guest",
        ),
        (
            Some(answer("13-guestcontrol-linux/005-run-noexe")),
            "No such file or directory \"/bin/nosuch\" on guest",
        ),
        (Some(answer("13-guestcontrol-linux/023-cat-restored")), "current status is: terminated"),
        (Some(answer("06-running-vm/015-guestcontrol-no-additions")), "Guest Additions are not installed"),
        (Some(Answer { code: 33, stdout: String::new(), stderr: no_agent.to_owned() }), no_agent),
        (Some(printed("Welcome!")), "is the same release in host and guest?"),
        (Some(printed("")), "is the same release in host and guest?"),
        (None, "VBoxManage guestcontrol run unasnap-guest relay did not finish within 5500 ms"),
    ];
    for (instead, words) in cases {
        virtualbox.answers([instead]);
        let error = channel.set_word(WordState::idle(1)).await.unwrap_err().to_string();
        assert!(error.contains("VM web: VBoxManage guestcontrol run") && error.contains(words), "{error}");
        assert!(!channel.was_heard(), "{words}");
    }
    virtualbox.answers([Some(answer("13-guestcontrol-linux/006-copyto"))]);
    let hooks = || StartHooks { unix_ns: 1, entropy: [7; 32] };
    let error = channel.start_hooks(hooks()).await.unwrap_err().to_string();
    assert!(error.contains("VBoxManage guestcontrol copyto was refused: File copy failed"), "{error}");
    assert!(!host.folder.path().join("vms/web/guestcontrol.request").exists());
    channel.start_hooks(hooks()).await.unwrap();
}

/// An operator's turn makes way for a step of a snapshot like that.
#[tokio::test]
async fn a_request_that_is_given_up_does_not_hold_up_the_next() {
    let host = Host::new().await;
    let (virtualbox, _vm, mut channel) = begun(&host).await;
    let (sender, call_begun) = oneshot::channel();
    virtualbox.state.lock().unwrap().hangs = Some(sender);
    let hanging = tokio::select! {
        _ = channel.set_word(WordState::idle(1)) => panic!("it is not answered"),
        hanging = call_begun => hanging.unwrap(),
    };
    channel.set_word(WordState::idle(2)).await.unwrap();
    assert!(hanging.await.is_err(), "the call goes on");
    assert_eq!(virtualbox.taken().0, [GuestRequest::SetWord(WordState::idle(2))]);
}

#[tokio::test]
async fn a_password_that_others_may_read_is_not_used() {
    let host = Host::new().await;
    let (virtualbox, _vm, mut channel) = begun(&host).await;
    let path = password(&host);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = channel.set_word(WordState::idle(1)).await.unwrap_err().to_string();
    assert!(error.contains("can be read by other users (mode 0640); run `chmod 600"), "{error}");
    std::fs::remove_file(&path).unwrap();
    let error = channel.set_word(WordState::idle(1)).await.unwrap_err().to_string();
    assert!(error.contains(&format!("cannot read {}: No such file", path.display())), "{error}");
    assert_eq!(virtualbox.taken().1, [] as [Vec<String>; 0]);
    password(&host);
    channel.set_word(WordState::idle(1)).await.unwrap();
}

#[tokio::test]
async fn the_next_agent_listens_where_this_one_did() {
    let host = Host::new().await;
    let (virtualbox, vm, mut channel_before) = begun(&host).await;
    channel_before.set_word(WordState::idle(1)).await.unwrap();
    drop((vm, channel_before));
    let vm = virtualbox.driver(&host).await.adopt(&host.vm).await.unwrap().unwrap();
    channel(&*vm).set_word(WordState::idle(2)).await.unwrap();
    let (requests, _) = virtualbox.taken();
    assert_eq!(requests, [1, 2].map(|epoch| GuestRequest::SetWord(WordState::idle(epoch))));
}

#[test]
fn a_host_says_which_vms_are_reached_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.toml");
    let load = |more: &str| {
        let text = format!(
            "name = 'a'\ncoordinator = 'c:1'\nstate_dir = '.'\nvm_dir = '.'\n\
             [tls]\nca = 'ca'\ncert = 'c'\nkey = 'k'\n[virtualbox.guestcontrol.web]\n{more}\n"
        );
        std::fs::write(&path, text).unwrap();
        Config::load(&path).map_err(|error| format!("{error:#}"))
    };
    let config = load("password_file = 'web.password'").unwrap();
    let login = &config.virtualbox.guestcontrol[&name("web")];
    let password_file = folder.path().join("web.password");
    assert_eq!((&*login.user, &login.password_file), ("root", &password_file));
    assert_eq!(load("user = 'u'").unwrap_err().matches("missing field `password_file`").count(), 1);
    assert!(load("password_file = 'p'\npassword = 'x'").unwrap_err().contains("unknown field `password`"));
}
