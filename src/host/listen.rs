//! Listening sockets: what the forwarding rules ask for, and accepting without ever spinning.

use super::Accepted;
use super::sockets::{Setup, Sockets, Stream, endpoint};
use crate::config::ports::Rule;
use crate::flow::{Protocol, Side};
use crate::sys::socket::{self, Family, IntOption, Kind};
use crate::token::{Interest, Token};
use nix::sys::resource::{Resource, getrlimit};
use std::ffi::CString;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Connections that may wait to be accepted.
const BACKLOG: libc::c_int = 128;

/// Connections that one call of accept looks at: those that are gone again, and those that are
/// refused for want of descriptors.
const MAX_ATTEMPTS: usize = 16;

/// One listening socket.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    v4: bool,
    watched: bool,
    /// What is listened to.
    pub listening: Listening,
}

/// What a listening socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The index of its rule, in the order in which the rules were given.
    pub rule: usize,
    /// The port it listens on.
    pub port: u16,
    /// The side it listens on.
    pub side: Side,
}

/// A port that cannot be listened on.
#[derive(Debug)]
pub struct Failure {
    listen: String,
    protocol: &'static str,
    port: u16,
    reason: io::Error,
}

impl Failure {
    fn new(rule: &Rule, port: u16, reason: io::Error) -> Self {
        let protocol = if rule.protocol == Protocol::Udp { "UDP" } else { "TCP" };
        Self { listen: describe(rule), protocol, port, reason }
    }
}

/// Whether sockets of rule `index` may have to share their ports with those of another.
fn competes(rules: &[Rule], index: usize) -> bool {
    let Some(rule) = rules.get(index) else { return false };
    rules.iter().enumerate().any(|(other, r)| other != index && rule.competes_with(r))
}

/// Best-effort rules may take three quarters of all descriptors, and flows have the rest.
fn most_weak_listeners() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(limit / 4 * 3).unwrap_or(usize::MAX)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { listen, protocol, port, reason } = self;
        write!(f, "Listen failed for HOST {protocol} port {listen}/{port}: ")?;
        match reason.raw_os_error() {
            Some(number) => f.write_str(nix::errno::Errno::from_raw(number).desc()),
            None => reason.fmt(f),
        }
    }
}

/// What became of the rules, when none of them failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listened {
    /// Sockets that were opened.
    pub sockets: usize,
    /// What best-effort rules could not do: one line for each rule.
    pub warnings: Vec<String>,
}

impl Sockets {
    /// Opens the listeners of all `rules` but the scanned ones (`auto`), and watches them as
    /// [`Token::Listener`]. Best-effort rules come last and get what descriptors they may have:
    /// some must be left for flows.
    ///
    /// # Errors
    /// A port of a rule that is not best-effort, or the last one tried when of all best-effort
    /// rules of a protocol no port at all could be bound. Listeners that were opened before stay;
    /// the caller is to give up.
    pub fn listen(&mut self, rules: &[Rule]) -> Result<Listened, Failure> {
        let mut listened = Listened::default();
        let asked = || rules.iter().enumerate().filter(|(_, rule)| !rule.auto);
        for (index, rule) in asked().filter(|(_, rule)| !rule.weak) {
            let shared = competes(rules, index);
            for port in rule.first..=rule.last {
                self.listen_port(index, rule, port, shared)
                    .map_err(|reason| Failure::new(rule, port, reason))?;
                listened.sockets += 1;
            }
        }
        let weak = |protocol| asked().filter(move |(_, r)| r.weak && r.protocol == protocol);
        let mut left = most_weak_listeners().saturating_sub(self.listeners.len());
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let (mut opened, mut last) = (0, None);
            // One protocol leaves the other its half.
            let share = if protocol == Protocol::Tcp && weak(Protocol::Udp).next().is_some() {
                left / 2
            } else {
                left
            };
            let most = self.listeners.len().saturating_add(share);
            for (index, rule) in weak(protocol) {
                let outcome = self.listen_weak(index, rule, competes(rules, index), most);
                opened += outcome.0;
                if let Some((failed, failure)) = outcome.1 {
                    listened.warnings.push(match failed {
                        1 => failure.to_string(),
                        n => format!("{n} ports are left out, the last one: {failure}"),
                    });
                    last = Some(failure);
                }
            }
            listened.sockets += opened;
            left = left.saturating_sub(opened);
            if let Some(failure) = last.filter(|_| opened == 0) {
                return Err(failure);
            }
        }
        Ok(listened)
    }

    /// Opens the listeners of one best-effort rule, up to `most` in all: how many, and how many
    /// failed with the last failure.
    fn listen_weak(
        &mut self,
        index: usize,
        rule: &Rule,
        shared: bool,
        most: usize,
    ) -> (usize, Option<(usize, Failure)>) {
        let (mut opened, mut failed, mut last) = (0, 0, None);
        for port in rule.first..=rule.last {
            let outcome = if self.listeners.len() < most {
                self.listen_port(index, rule, port, shared)
            } else {
                Err(io::Error::from_raw_os_error(libc::EMFILE))
            };
            match outcome {
                Ok(()) => opened += 1,
                Err(reason) => {
                    failed += 1;
                    last = Some((port, reason));
                }
            }
        }
        (opened, last.map(|(port, reason)| (failed, Failure::new(rule, port, reason))))
    }

    fn listen_port(&mut self, rule: usize, spec: &Rule, port: u16, shared: bool) -> io::Result<()> {
        let (fd, v4) = open(&self.setup, spec, port, shared)?;
        let index = u32::try_from(self.listeners.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let interest = Interest { readable: true, ..Interest::default() };
        self.epoll.add(fd.as_fd(), Token::Listener(index), interest)?;
        let listening = Listening { protocol: spec.protocol, rule, port, side: Side::Outside };
        self.listeners.push(Listener { fd, v4, watched: true, listening });
        Ok(())
    }

    /// The next connection of listener `index`. When descriptors run out, connections are taken
    /// with the spare one and reset, so that an event always means progress; where even that is
    /// not possible the listener is not watched until [`Sockets::feed`].
    pub(super) fn accept_from(&mut self, index: u32) -> io::Result<Accepted<Stream>> {
        for _ in 0..MAX_ATTEMPTS {
            let Some(listener) = self.listeners.get(index as usize) else {
                return Err(io::ErrorKind::NotFound.into());
            };
            match socket::accept(listener.fd.as_fd()) {
                Ok((fd, peer)) => {
                    let local = socket::local_address(fd.as_fd())?;
                    let stream = Stream::accepted(fd, listener.v4);
                    return Ok(Accepted {
                        stream,
                        peer: endpoint(peer),
                        local: endpoint(local),
                        rule: listener.listening.rule,
                    });
                }
                Err(e) => match e.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE) => self.refuse(index)?,
                    Some(libc::ENOBUFS | libc::ENOMEM) => self.starve(index)?,
                    Some(libc::EAGAIN | libc::EBADF | libc::EINVAL | libc::ENOTSOCK) => {
                        return Err(e);
                    }
                    // The others are errors of the connection, which is gone (accept(2)).
                    _ => {}
                },
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Accepts one connection with the spare descriptor and resets it.
    fn refuse(&mut self, index: u32) -> io::Result<()> {
        let Some(spare) = self.spare.take() else {
            return self.starve(index);
        };
        drop(spare);
        let taken = match self.listeners.get(index as usize) {
            Some(listener) => socket::accept(listener.fd.as_fd()),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        if let Ok((fd, _)) = &taken {
            // Without it the peer sees an orderly end, which is all we can do then.
            let _ = socket::linger_none(fd.as_fd());
        }
        let gone = taken.map(drop);
        self.spare = self.epoll.as_fd().try_clone_to_owned().ok();
        match gone {
            Err(e) if !matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => Err(e),
            Err(_) => self.starve(index),
            Ok(()) => Ok(()),
        }
    }

    /// Watches listener `index`, or stops to; starved ones stay as they are.
    pub(super) fn watch_listener(&mut self, index: u32, readable: bool) {
        let Some(listener) = self.listeners.get_mut(index as usize) else { return };
        if listener.watched == readable || self.starved.contains(&index) {
            return;
        }
        let interest = Interest { readable, ..Interest::default() };
        if self.epoll.modify(listener.fd.as_fd(), Token::Listener(index), interest).is_ok() {
            listener.watched = readable;
        }
    }

    /// Stops to watch a listener that could only fail again, and says that there is no connection.
    fn starve(&mut self, index: u32) -> io::Result<()> {
        self.watch_listener(index, false);
        self.starved.push(index);
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Whether there are listeners that wait for [`Sockets::feed`].
    pub const fn is_starved(&self) -> bool {
        !self.starved.is_empty()
    }

    /// Watches starved listeners again. To be called a while (a second) after
    /// [`Sockets::is_starved`] has become true.
    pub fn feed(&mut self) {
        if self.spare.is_none() {
            self.spare = self.epoll.as_fd().try_clone_to_owned().ok();
        }
        for index in std::mem::take(&mut self.starved) {
            self.watch_listener(index, true);
        }
    }

    /// What listener `index` is for.
    pub fn listening(&self, index: u32) -> Option<Listening> {
        self.listeners.get(index as usize).map(|l| l.listening)
    }
}

impl Listener {
    /// The socket.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `ADDR%IFNAME` of a rule, as users write it.
fn describe(rule: &Rule) -> String {
    let address = match rule.listen {
        Some(IpAddr::V6(a)) => format!("[{a}]"),
        Some(a) => a.to_string(),
        None => "*".to_owned(),
    };
    match &rule.ifname {
        Some(name) => format!("{address}%{name}"),
        None => address,
    }
}

/// The socket for one port of a rule, and whether it is of the IPv4 family.
fn open(setup: &Setup, rule: &Rule, port: u16, shared: bool) -> io::Result<(OwnedFd, bool)> {
    let any_v4 = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let any_v6 = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    match rule.listen {
        Some(addr) => open_at(setup, rule, addr, port, shared, false),
        None if !setup.v6 => open_at(setup, rule, any_v4, port, shared, false),
        None if !setup.v4 => open_at(setup, rule, any_v6, port, shared, false),
        None => match open_at(setup, rule, any_v6, port, shared, true) {
            // The kernel has no IPv6 at all.
            Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                open_at(setup, rule, any_v4, port, shared, false)
            }
            other => other,
        },
    }
}

fn open_at(
    setup: &Setup,
    rule: &Rule,
    addr: IpAddr,
    port: u16,
    shared: bool,
    dual: bool,
) -> io::Result<(OwnedFd, bool)> {
    let family = if addr.is_ipv4() { Family::V4 } else { Family::V6 };
    let tcp = rule.protocol == Protocol::Tcp;
    let socket = socket::open(family, if tcp { Kind::Stream } else { Kind::Datagram })?;
    let fd = socket.as_fd();
    socket::set(fd, IntOption::REUSE_ADDRESS, 1)?;
    if shared {
        socket::set(fd, IntOption::REUSE_PORT, 1)?;
    }
    if family == Family::V6 {
        socket::set(fd, IntOption::V6_ONLY, i32::from(!dual))?;
    }
    if setup.freebind {
        socket::set(fd, IntOption::freebind(family), 1)?;
    }
    if let Some(name) = &rule.ifname {
        let name = CString::new(name.as_str())?;
        socket::bind_to_device(fd, &name)?;
    }
    if tcp {
        // Connections inherit both, which saves two calls for each.
        socket::set(fd, IntOption::NO_DELAY, 1)?;
        socket::set(fd, IntOption::URGENT_INLINE, 1)?;
    } else {
        socket::set(fd, IntOption::packet_info(family), 1)?;
    }
    socket::bind(fd, &address(setup, rule, addr, port))?;
    if tcp {
        socket::listen(fd, BACKLOG)?;
    }
    Ok((socket, family == Family::V4))
}

/// The address to bind to; link-local ones belong to the rule's interface, else to the host's.
fn address(setup: &Setup, rule: &Rule, addr: IpAddr, port: u16) -> SocketAddr {
    match addr {
        IpAddr::V6(a) if a.is_unicast_link_local() => {
            let name = rule.ifname.as_ref().and_then(|name| CString::new(name.as_str()).ok());
            let scope = name.and_then(|name| socket::interface_index(&name));
            SocketAddr::V6(SocketAddrV6::new(a, port, 0, scope.unwrap_or(setup.scope)))
        }
        _ => SocketAddr::new(addr, port),
    }
}
