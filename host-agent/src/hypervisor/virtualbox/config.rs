//! The `[virtualbox]` part of `host.toml`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use unasnap_protocol::name::Name;

/// Where the program proper is. The one in the `PATH` is a wrapper that prints warnings among the answers.
const VBOXMANAGE: &str = "/usr/lib/virtualbox/VBoxManage";

/// The `[virtualbox]` part of the host agent's configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtualBoxConfig {
    /// The host agent's state folder; set by the program, not in the table.
    #[serde(skip)]
    pub state_dir: PathBuf,
    /// The program; not the wrapper of the same name in the `PATH`, which prints warnings among the answers.
    #[serde(default = "default_vboxmanage")]
    pub vboxmanage: PathBuf,
    /// Value of `modifyvm --vm-execution-engine` for machines that are started; without it, theirs stays. `recompiler` runs where
    /// VirtualBox's kernel module is not.
    #[serde(default)]
    pub execution_engine: Option<String>,
    /// `VBOX_USER_HOME`: VirtualBox's settings, where they are not those of the agent's user.
    #[serde(default)]
    pub user_home: Option<PathBuf>,
    /// `VBOX_IPC_SOCKETID`: which of several VirtualBoxes of one user.
    #[serde(default)]
    pub ipc_socket_id: Option<String>,
    /// Hosts whose machines come as they are, also such as were made by hand. Whoever rules one of these can have this host's VirtualBox
    /// open any file of the agent's user.
    #[serde(default)]
    pub believes: Vec<Name>,
    /// VMs whose agent is reached by `VBoxManage guestcontrol`, because no serial port is free for it.
    #[serde(default)]
    pub guestcontrol: BTreeMap<Name, Login>,
}

/// Who VirtualBox is in a guest.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// A user of the guest: its root, or one of the same rights.
    #[serde(default = "root")]
    pub user: String,
    /// File of the host with the user's password, which nobody but the agent's user may read.
    pub password_file: PathBuf,
}

fn root() -> String {
    "root".to_owned()
}

fn default_vboxmanage() -> PathBuf {
    VBOXMANAGE.into()
}

impl Default for VirtualBoxConfig {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::new(),
            vboxmanage: default_vboxmanage(),
            execution_engine: None,
            user_home: None,
            ipc_socket_id: None,
            believes: Vec::new(),
            guestcontrol: BTreeMap::new(),
        }
    }
}
