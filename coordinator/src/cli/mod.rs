//! Subcommands: what is typed, and what is printed. stdout is data, stderr is talk.

mod create;
mod deploy;
mod disk;
mod files;
mod guest;
mod household;
mod image;
mod migrate;
mod output;
mod pause;
mod pki;
mod progress;
mod restore;
mod snapshot;
mod status;
mod vm;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};
use unasnap_protocol::access::{GuestPath, MAX_LIMIT_S};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::Place;
use unasnap_protocol::power::{Pattern, Verb};
use unasnap_protocol::role::Role;

use crate::config::{CLIENT_PATH, COORDINATOR_PATH, ClientConfig, CoordinatorConfig};
use crate::daemon;
use crate::failure::{CliError, EXIT_CODES, Result};

/// Consistent global snapshots of running distributed systems in virtual machines.
#[derive(Parser)]
#[command(name = "unasnap", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// Configuration file [default: $UNASNAP_CONFIG or /etc/unasnap/client.toml; for `coordinator`
    /// /etc/unasnap/coordinator.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object on stdout instead of text
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show coordinator, hosts, VMs and what is under way
    Status,
    /// Take, list, show or delete global snapshots
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Bring every VM of a deployment back to a snapshot
    Restore {
        /// The snapshot [default: the newest usable one]
        id: Option<Name>,
        /// Run these VMs on these hosts from now on [default: each where it lives]
        #[arg(long = "place", value_name = "VM=HOST", value_delimiter = ',')]
        places: Vec<Place>,
    },
    /// Take a snapshot of a deployment, and when that is committed power all its VMs off
    Pause {
        /// The deployment
        deployment: Name,
        /// Pause it whenever somebody sits down at one of its hosts, and resume it when nobody is left
        #[arg(long, value_name = "on|off", num_args = 0..=1, default_missing_value = "on")]
        for_user: Option<pause::Switch>,
    },
    /// Bring a paused deployment back
    Resume {
        /// The deployment
        deployment: Name,
    },
    /// Show which files a VM at a snapshot consists of, and which of them a restore elsewhere needs
    Files {
        #[command(flatten)]
        of: FilesOf,
        /// Name of the snapshot, of files here also its UUID or number [default: the current state]
        #[arg(long, value_name = "NAME|UUID")]
        snapshot: Option<String>,
    },
    /// Make and start the VMs that a file describes, where there is room; those that are there stay
    #[command(after_help = deploy::EXAMPLE)]
    Deploy(deploy::Deploy),
    /// Hosts
    #[command(subcommand)]
    Host(List),
    /// Virtual machines
    #[command(subcommand)]
    Vm(Vm),
    /// Read-only images of hosts, on which VMs are made
    #[command(subcommand)]
    Disk(disk::Disk),
    /// Images of what VMs are made of, and the catalogue of them
    #[command(subcommand)]
    Image(image::Image),
    /// Make the cluster's certificates
    #[command(subcommand)]
    Pki(Pki),
    /// Run the coordinator
    Coordinator,
}

#[derive(Subcommand)]
enum Snapshot {
    /// Take a snapshot of all VMs of a deployment
    Take {
        /// The deployment [default: the only one]
        deployment: Option<Name>,
    },
    /// List usable snapshots
    List {
        /// Also those that were aborted or are being taken or deleted
        #[arg(long)]
        all: bool,
    },
    /// Show one snapshot with the times of every VM
    Show {
        /// The snapshot
        id: Name,
    },
    /// Compare every byte of a snapshot with its digests, on all hosts
    Verify {
        /// The snapshot
        id: Name,
    },
    /// Delete a snapshot and its files
    Delete {
        /// The snapshot
        id: Name,
    },
}

#[derive(Args)]
#[group(required = true, multiple = true)]
struct FilesOf {
    /// VMs of the cluster
    #[arg(value_name = "VM", conflicts_with_all = ["vbox", "qcow2"])]
    vms: Vec<Name>,
    /// All VMs of a deployment
    #[arg(long, conflicts_with_all = ["vms", "vbox", "qcow2"])]
    deployment: Option<Name>,
    /// A VirtualBox machine; may be repeated, for the sum of a deployment
    #[arg(long, value_name = "FILE")]
    vbox: Vec<PathBuf>,
    /// The newest image of a qcow2 chain; may be repeated
    #[arg(long, value_name = "FILE")]
    qcow2: Vec<PathBuf>,
}

#[derive(Subcommand)]
enum List {
    /// List them
    List,
}

#[derive(Subcommand)]
enum Vm {
    /// List them
    List {
        /// Names, with `*` for any characters and `?` for any one [default: all]
        #[arg(value_name = "PATTERN")]
        patterns: Vec<Pattern>,
    },
    /// Show one
    Show {
        /// The VM
        vm: Name,
    },
    /// Boot VMs that do not run, from their disks as they left them
    Start(Which),
    /// Press the power button and wait until the guest has shut down
    Stop {
        #[command(flatten)]
        which: Which,
        /// End them at once, as a power failure would
        #[arg(long)]
        force: bool,
    },
    /// Stop the virtual CPUs
    Pause(Which),
    /// Let paused VMs run on
    Resume(Which),
    /// Press the reset button of running VMs
    Reset(Which),
    /// Let a VM live on another host: take a snapshot of its deployment, and restore all of it with this VM there
    Migrate {
        /// The VM
        vm: Name,
        /// Where it is to live
        host: Name,
        /// Restore this snapshot instead of taking one
        #[arg(long, value_name = "ID")]
        snapshot: Option<Name>,
    },
    /// Make VMs on a base; nothing is copied
    Create(create::CreateVm),
    /// Make a VM with the disks that a stopped one has now; nothing is copied
    Clone(create::CloneVm),
    /// Make a VM on another host with the disks that a stopped one has now; bases that are there already are not copied
    Replicate(create::ReplicateVm),
    /// End a VM for good, with its disks
    Delete(create::DeleteVm),
    /// Run a command in VMs whose definitions and guest agents allow it; the exit code is the command's
    Exec {
        /// Name, with `*` for any characters and `?` for any one: then lines say whose they are
        #[arg(value_name = "PATTERN")]
        vms: Pattern,
        /// Program and arguments; no shell reads them
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
        #[command(flatten)]
        limit: Limit,
    },
    /// Copy a file into a VM
    Put {
        /// The VM
        vm: Name,
        /// The file here
        local: PathBuf,
        /// Its absolute path there
        remote: GuestPath,
        #[command(flatten)]
        limit: Limit,
    },
    /// Copy a file out of a VM
    Get {
        /// The VM
        vm: Name,
        /// The file's absolute path there
        remote: GuestPath,
        /// What it is to be called here
        local: PathBuf,
        #[command(flatten)]
        limit: Limit,
    },
    /// Show the end of what a VM wrote to its serial console
    Console {
        /// The VM
        vm: Name,
        /// How many lines, of 64 KiB at most
        #[arg(long, value_name = "N", default_value_t = 50)]
        lines: u32,
    },
}

#[derive(Args)]
struct Limit {
    /// How long it may take, up to a day
    #[arg(long = "timeout", value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_LIMIT_S)))]
    seconds: u32,
}

#[derive(Args)]
struct Which {
    /// Names, with `*` for any characters and `?` for any one, e.g. 'ring-*'
    #[arg(value_name = "PATTERN", required = true)]
    patterns: Vec<Pattern>,
}

#[derive(Subcommand)]
enum Pki {
    /// Write a new CA, and key pairs of coordinator, hosts and operator
    Init {
        /// Folder for the files
        #[arg(long)]
        dir: PathBuf,
        /// Names of the hosts
        #[arg(long = "host", num_args = 1.., required = true, value_name = "HOST")]
        hosts: Vec<Name>,
        /// Name of the operator, who may do everything
        #[arg(long, default_value = "admin", value_name = "NAME")]
        operator: Name,
    },
    /// Write the key pair of one more host
    AddHost {
        /// Name of the host
        host: Name,
        /// Folder that `pki init` wrote
        #[arg(long)]
        dir: PathBuf,
    },
    /// Write the key pair of one more operator
    Operator {
        /// Name of the operator
        name: Name,
        /// What it may do: `view` looks, `operate` takes and restores snapshots and controls VMs too, `admin` also deletes them
        #[arg(long, default_value = "operate", value_name = "ROLE")]
        role: Role,
        /// Folder that `pki init` wrote
        #[arg(long)]
        dir: PathBuf,
    },
    /// Take a certificate back: write it into the list that all programs read
    Revoke {
        /// The certificate, as in its file name (e.g. host-alpha), or the path of its file
        name: String,
        /// Folder that `pki init` wrote
        #[arg(long)]
        dir: PathBuf,
    },
}

/// Carries out what was typed; answers the exit code.
pub fn run(cli: Cli) -> Result<u8> {
    let Cli { config, json, command } = cli;
    match command {
        Command::Vm(Vm::Exec { vms, command, limit }) => {
            let executed = client(config).and_then(|config| {
                runtime(false)?.block_on(guest::exec::exec(&config, vms, command, limit.seconds, json))
            });
            // Told apart from what the command says by its own code.
            executed.map_err(|error| error.above(guest::exec::OUR_CODES))
        }
        Command::Image(wanted) => image::run(|| client(config), wanted, json),
        command => carry_out(config, json, command).map(|()| 0),
    }
}

fn client(config: Option<PathBuf>) -> Result<ClientConfig> {
    let path = config.or_else(|| std::env::var_os("UNASNAP_CONFIG").map(PathBuf::from));
    ClientConfig::load(&path.unwrap_or_else(|| CLIENT_PATH.into()))
}

fn carry_out(config: Option<PathBuf>, json: bool, command: Command) -> Result<()> {
    match command {
        Command::Pki(Pki::Init { dir, hosts, operator }) => pki::init(&dir, &hosts, &operator, json),
        Command::Pki(Pki::AddHost { host, dir }) => pki::add_host(&dir, &host, json),
        Command::Pki(Pki::Operator { name, role, dir }) => pki::add_operator(&dir, &name, role, json),
        Command::Pki(Pki::Revoke { name, dir }) => pki::revoke(&dir, &name, json),
        Command::Files { of: FilesOf { vms, deployment: None, vbox, qcow2 }, snapshot } if vms.is_empty() => {
            let snapshot = snapshot.as_deref();
            let machines = vbox.iter().map(|path| unasnap_files::vbox::track(path, snapshot));
            let images = qcow2.iter().map(|path| unasnap_files::qcow2::track(path, snapshot));
            let reports: std::result::Result<Vec<_>, _> = machines.chain(images).collect();
            let reports = reports?;
            files::print(&reports, unasnap_files::sum(&reports), json)
        }
        Command::Coordinator => {
            let path = config.unwrap_or_else(|| COORDINATOR_PATH.into());
            runtime(true)?.block_on(daemon::run(&CoordinatorConfig::load(&path)?))
        }
        command => {
            let config = client(config)?;
            runtime(false)?.block_on(ask(command, &config, json))
        }
    }
}

async fn ask(command: Command, config: &ClientConfig, json: bool) -> Result<()> {
    match command {
        Command::Status => status::overview(config, json).await,
        Command::Host(List::List) => status::hosts(config, json).await,
        Command::Vm(Vm::List { patterns }) => vm::list(config, &patterns, json).await,
        Command::Vm(Vm::Show { vm }) => vm::show(config, vm, json).await,
        Command::Vm(Vm::Start(which)) => vm::control(config, Verb::Start, which.patterns, json).await,
        Command::Vm(Vm::Stop { which, force }) => {
            let verb = if force { Verb::Kill } else { Verb::Stop };
            vm::control(config, verb, which.patterns, json).await
        }
        Command::Vm(Vm::Pause(which)) => vm::control(config, Verb::Pause, which.patterns, json).await,
        Command::Vm(Vm::Resume(which)) => vm::control(config, Verb::Resume, which.patterns, json).await,
        Command::Vm(Vm::Migrate { vm, host, snapshot }) => {
            migrate::migrate(config, Place { vm, host }, snapshot, json).await
        }
        Command::Vm(Vm::Create(wanted)) => create::create(config, wanted, json).await,
        Command::Vm(Vm::Clone(wanted)) => create::clone(config, wanted, json).await,
        Command::Vm(Vm::Replicate(wanted)) => create::replicate(config, wanted, json).await,
        Command::Vm(Vm::Delete(wanted)) => create::delete(config, wanted, json).await,
        Command::Deploy(wanted) => deploy::run(config, wanted, json).await,
        Command::Disk(wanted) => disk::run(config, wanted, json).await,
        Command::Vm(Vm::Reset(which)) => vm::control(config, Verb::Reset, which.patterns, json).await,
        Command::Vm(Vm::Put { vm, local, remote, limit }) => {
            guest::transfer::put(config, vm, &local, remote, limit.seconds, json).await
        }
        Command::Vm(Vm::Get { vm, remote, local, limit }) => {
            guest::transfer::get(config, vm, remote, &local, limit.seconds, json).await
        }
        Command::Vm(Vm::Console { vm, lines }) => guest::console::console(config, vm, lines, json).await,
        Command::Snapshot(Snapshot::Take { deployment }) => snapshot::take(config, deployment, json).await,
        Command::Snapshot(Snapshot::List { all }) => snapshot::list(config, all, json).await,
        Command::Snapshot(Snapshot::Show { id }) => snapshot::show(config, id, json).await,
        Command::Snapshot(Snapshot::Verify { id }) => snapshot::verify(config, id, json).await,
        Command::Snapshot(Snapshot::Delete { id }) => snapshot::delete(config, id, json).await,
        Command::Pause { deployment, for_user: None } => pause::pause(config, deployment, json).await,
        Command::Pause { deployment, for_user: Some(switch) } => {
            pause::for_user(config, deployment, switch, json).await
        }
        Command::Resume { deployment } => pause::resume(config, deployment, json).await,
        Command::Restore { id, places } => restore::restore(config, id, places, json).await,
        Command::Files { of: FilesOf { vms, deployment, .. }, snapshot } => {
            files::of_cluster(config, vms, deployment, snapshot, json).await
        }
        Command::Pki(_) | Command::Image(_) | Command::Coordinator | Command::Vm(Vm::Exec { .. }) => Ok(()),
    }
}

/// The coordinator's journal blocks one thread while it syncs; the others go on.
fn runtime(threads: bool) -> Result<Runtime> {
    let mut builder = if threads { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    let built = builder.worker_threads(2).enable_all().build();
    built.map_err(|error| CliError::internal(format!("cannot start the runtime: {error}")))
}
