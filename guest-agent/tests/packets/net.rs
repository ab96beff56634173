//! Namespaces, raw sockets, and datagrams with their traffic class.

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    process::Command,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg},
};

/// How long to wait for a packet that has to come.
pub const SOON: Duration = Duration::from_secs(5);
/// How long to wait for a packet that must not come.
pub const A_WHILE: Duration = Duration::from_millis(40);

/// A network namespace; threads enter it for one closure at a time.
pub struct Namespace(File);

impl Namespace {
    /// Makes a namespace, which the calling thread is in afterwards.
    pub fn enter_new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        run("ip link set lo up");
        Self(File::open("/proc/thread-self/ns/net").unwrap())
    }

    /// Runs `action` in this namespace and goes back.
    pub fn within<T>(&self, action: impl FnOnce() -> T) -> T {
        let home = File::open("/proc/thread-self/ns/net").unwrap();
        setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
        let outcome = action();
        setns(home, CloneFlags::CLONE_NEWNET).unwrap();
        outcome
    }

    /// Moves an interface of the calling thread's namespace into this one.
    pub fn adopt(&self, interface: &str) {
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd());
        run(&format!("ip link set {interface} netns {path}"));
    }
}

/// Runs a command line (split at blanks), which has to succeed.
pub fn run(line: &str) {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A raw socket on one interface: sends frames and sees every frame that arrives.
pub struct Wire(OwnedFd);

impl Wire {
    pub fn on(interface: &str) -> Self {
        let every_protocol = libc::c_int::from((libc::ETH_P_ALL as u16).to_be());
        // SAFETY: no pointers; the result is checked.
        let raw =
            unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, every_protocol) };
        assert!(raw >= 0, "packet socket: {}", io::Error::last_os_error());
        // SAFETY: a new descriptor that nobody else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        // SAFETY: a C structure of integers, for which zeros are a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = nix::net::if_::if_nametoindex(interface).unwrap().cast_signed();
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the pointer is good for the length given with it.
        let bound = unsafe { libc::bind(raw, (&raw const address).cast(), length) };
        assert_eq!(bound, 0, "bind to {interface}: {}", io::Error::last_os_error());
        Self(socket)
    }

    pub fn send(&self, frame: &[u8]) {
        assert_eq!(nix::unistd::write(&self.0, frame).unwrap(), frame.len());
    }

    /// The next frame that arrives within `limit` and that `choose` makes something of. Own frames, which
    /// the kernel shows as well, are left out.
    pub fn receive<T>(&self, limit: Duration, choose: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut buffer = vec![0; 1 << 17];
        while readable(&self.0, deadline) {
            // SAFETY: a C structure of integers, for which zeros are a value.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut from_length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            // SAFETY: every pointer is good for the length given with it.
            let count = unsafe {
                libc::recvfrom(
                    self.0.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut from_length,
                )
            };
            let count = usize::try_from(count).expect("recvfrom failed");
            if from.sll_pkttype != libc::PACKET_OUTGOING
                && let Some(chosen) = choose(&buffer[..count])
            {
                return Some(chosen);
            }
        }
        None
    }
}

fn readable(socket: &impl AsFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = PollTimeout::from(u16::try_from(left.as_millis()).unwrap());
        match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], limit) {
            Err(Errno::EINTR) => {}
            outcome => return outcome.unwrap() > 0,
        }
    }
}

/// A UDP socket that sets and sees the traffic class (DSCP and ECN).
pub struct Datagrams(UdpSocket);

impl Datagrams {
    pub fn bind(address: impl Into<IpAddr>, port: u16) -> Self {
        let address = SocketAddr::new(address.into(), port);
        let datagrams = Self(UdpSocket::bind(address).unwrap());
        if address.is_ipv4() {
            datagrams.set(libc::IPPROTO_IP, libc::IP_RECVTOS, 1);
        } else {
            datagrams.set(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1);
        }
        datagrams
    }

    pub fn send(&self, to: impl Into<IpAddr>, port: u16, traffic_class: u8, payload: &[u8]) {
        let to = SocketAddr::new(to.into(), port);
        if to.is_ipv4() {
            self.set(libc::IPPROTO_IP, libc::IP_TOS, traffic_class.into());
        } else {
            self.set(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, traffic_class.into());
        }
        assert_eq!(self.0.send_to(payload, to).unwrap(), payload.len());
    }

    /// Payload and traffic class of the next datagram, as the guest's stack sees them.
    pub fn receive(&self, limit: Duration) -> Option<(Vec<u8>, u8)> {
        if !readable(&self.0, Instant::now() + limit) {
            return None;
        }
        let mut payload = [0; 2048];
        let mut space = nix::cmsg_space!(i32);
        let mut parts = [io::IoSliceMut::new(&mut payload)];
        let socket = self.0.as_raw_fd();
        let message =
            recvmsg::<SockaddrStorage>(socket, &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
        let traffic_class = message.cmsgs().unwrap().find_map(|control| match control {
            ControlMessageOwned::Ipv4Tos(value) => Some(value),
            ControlMessageOwned::Ipv6TClass(value) => Some(u8::try_from(value).unwrap()),
            _ => None,
        });
        let count = message.bytes;
        Some((payload[..count].to_vec(), traffic_class.expect("the kernel tells the traffic class")))
    }

    fn set(&self, level: i32, option: i32, value: i32) {
        let length = size_of::<i32>() as libc::socklen_t;
        // SAFETY: the pointer is good for the length given with it.
        let set =
            unsafe { libc::setsockopt(self.0.as_raw_fd(), level, option, (&raw const value).cast(), length) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
    }
}
