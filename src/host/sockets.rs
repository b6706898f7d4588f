//! The kernel's sockets as the native side ([`super::Host`]).
//!
//! Options are set once, events are programmed when they change, features of the kernel are probed
//! once ([`Features`]). Knows nothing of guests, frames or protocols' states.

mod beside;
mod datagram;
mod peek;
mod splice;
mod stream;
#[cfg(test)]
mod tests;

pub use datagram::Datagram;
pub(super) use datagram::deepen;
pub use splice::Pipe;
pub use stream::Stream;

use self::datagram::{Connected, Tables};
use self::peek::Scratch;
use self::splice::Interior;
use super::diag::Diag;
use super::listen::{self, Change, Failure, Listeners, Lookout};
use super::{Accepted, Batch, Connect, Host, Outbound, Relisten, Scan, SocketError, StreamInfo};
use crate::flow::rules::Rules;
use crate::flow::{Endpoint, FlowId, Protocol, Side};
use crate::span::{Span, SpanMut};
use crate::sys::epoll::Epoll;
use crate::sys::socket::{self, Family, IntOption, Kind};
use crate::token::{Interest, Token};
use nix::sys::resource::{Resource, getrlimit};
use std::cell::Cell;
use std::ffi::CString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

/// Bytes that a busy stream may receive ahead; the kernel allows half of tcp_rmem's maximum.
const WIDE: i32 = 3 << 20;

/// What the command line and the host's network ask of sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// IPv4 is switched on.
    pub v4: bool,
    /// IPv6 is switched on.
    pub v6: bool,
    /// Source address of outgoing IPv4 sockets (`--outbound`).
    pub outbound_v4: Option<Ipv4Addr>,
    /// Source address of outgoing IPv6 sockets (`--outbound`).
    pub outbound_v6: Option<Ipv6Addr>,
    /// Interface of outgoing IPv4 sockets (`--outbound-if4`).
    pub device_v4: Option<CString>,
    /// Interface of outgoing IPv6 sockets (`--outbound-if6`).
    pub device_v6: Option<CString>,
    /// Number of the interface that link-local IPv6 addresses belong to; 0 for none.
    pub scope: u32,
    /// Listening and UDP sockets may take addresses that the host does not have (`--freebind`).
    pub freebind: bool,
    /// The address of `--outbound`, IPv4 and IPv6, is not the host's, and we have said so.
    pub missing: [Cell<bool>; 2],
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            v4: true,
            v6: true,
            outbound_v4: None,
            outbound_v6: None,
            device_v4: None,
            device_v6: None,
            scope: 0,
            freebind: false,
            missing: Default::default(),
        }
    }
}

impl Setup {
    /// `to` for the kernel: link-local IPv6 addresses get their interface.
    pub(super) const fn socket_addr(&self, to: Endpoint) -> SocketAddr {
        match to.addr {
            IpAddr::V6(a) if a.is_unicast_link_local() => {
                SocketAddr::V6(SocketAddrV6::new(a, to.port, 0, self.scope))
            }
            addr => SocketAddr::new(addr, to.port),
        }
    }

    /// Gives an outgoing socket its source address (with `port`, 0 for any) and interface.
    /// Destinations on the loopback interface are reached from there only, so they get neither. A
    /// source address that the host does not have is done without, as when it was not asked for.
    fn prepare_outgoing(&self, fd: BorrowedFd<'_>, to: Endpoint, port: u16) -> io::Result<()> {
        let (own, device, any) = match to.addr {
            IpAddr::V4(_) => (
                self.outbound_v4.map(IpAddr::V4),
                &self.device_v4,
                IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            ),
            IpAddr::V6(_) => (
                self.outbound_v6.map(IpAddr::V6),
                &self.device_v6,
                IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            ),
        };
        let own = own.filter(|_| !to.addr.is_loopback());
        if let Some(device) = device.as_deref().filter(|_| !to.addr.is_loopback()) {
            socket::bind_to_device(fd, device)?;
        }
        let bind = |addr| socket::bind(fd, &self.socket_addr(Endpoint::new(addr, port)));
        if let Some(own) = own {
            let bound = bind(own);
            let missing = matches!(&bound, Err(e) if e.raw_os_error() == Some(libc::EADDRNOTAVAIL));
            self.note_missing(own, missing);
            if !missing {
                return bound;
            }
        }
        if port == 0 { Ok(()) } else { bind(any) }
    }

    /// Warns when the host turns out not to have `own`; once, until it was seen to have it again.
    fn note_missing(&self, own: IpAddr, missing: bool) {
        let [v4, v6] = &self.missing;
        let known = if own.is_ipv4() { v4 } else { v6 };
        if missing && !known.replace(true) {
            log::warn!("This host doesn't have {own} (--outbound): going on without it");
        } else if !missing {
            known.set(false);
        }
    }

    /// Warns of source addresses that the host does not have.
    fn check_outbound(&self) {
        let v4 = self.outbound_v4.map(IpAddr::V4);
        for own in v4.into_iter().chain(self.outbound_v6.map(IpAddr::V6)) {
            let own = Endpoint::new(own, 0);
            let bound = socket::open(family(own), Kind::Datagram)
                .and_then(|fd| socket::bind(fd.as_fd(), &self.socket_addr(own)));
            let missing = matches!(bound, Err(e) if e.raw_os_error() == Some(libc::EADDRNOTAVAIL));
            self.note_missing(own.addr, missing);
        }
    }
}

/// What the kernel can do; probed once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// SO_PEEK_OFF works for TCP over IPv4 (Linux 6.9).
    pub peek_offset_v4: bool,
    /// SO_PEEK_OFF works for TCP over IPv6 (Linux 6.9).
    pub peek_offset_v6: bool,
}

impl Features {
    /// Asks the kernel.
    pub fn probe() -> Self {
        let peek_offset = |family| {
            socket::open(family, Kind::Stream)
                .and_then(|fd| socket::set(fd.as_fd(), IntOption::PEEK_OFFSET, 0))
                .is_ok()
        };
        Self { peek_offset_v4: peek_offset(Family::V4), peek_offset_v6: peek_offset(Family::V6) }
    }
}

/// The kernel's sockets.
#[derive(Debug)]
pub struct Sockets {
    pub(super) epoll: Rc<Epoll>,
    pub(super) setup: Setup,
    features: Features,
    pub(super) listeners: Listeners,
    /// As the limit of open files was when we began.
    pub(super) most_listeners: usize,
    /// Descriptors from this one on are not for datagrams.
    reserved: RawFd,
    /// Whether sockets inside can be bound to an interface, once that is known.
    pub(super) inside_devices: Option<bool>,
    /// Tells who waits on the host for datagrams, if the kernel does.
    pub(super) diag: Option<Diag>,
    /// Sees who listens on both sides, where that is wanted.
    pub(super) lookout: Option<Box<Lookout>>,
    /// Rules that are being replaced.
    pub(super) change: Option<Box<Change>>,
    /// A descriptor to give up when there are no others, so that a connection can be refused.
    pub(super) spare: Option<OwnedFd>,
    /// Listeners that are not watched because accepting would fail again at once.
    pub(super) starved: Vec<u32>,
    /// Where peeks without SO_PEEK_OFF put what they are not asked for.
    scratch: Scratch,
    pub(super) tables: Tables,
    /// The kernel has refused a ping socket, and we have said so.
    ping_refused: bool,
    /// The namespace that we serve, if that is what we serve.
    interior: Option<Interior>,
    /// Empty pipes.
    pipes: Vec<Pipe>,
}

impl Sockets {
    /// Sockets that are watched through `epoll`; probes the kernel.
    pub fn new(epoll: Rc<Epoll>, setup: Setup) -> io::Result<Self> {
        Self::with_features(epoll, setup, Features::probe())
    }

    /// As [`Sockets::new`], for a kernel that is said to have `features`.
    pub fn with_features(epoll: Rc<Epoll>, setup: Setup, features: Features) -> io::Result<Self> {
        setup.check_outbound();
        let spare = Some(epoll.as_fd().try_clone_to_owned()?);
        Ok(Self {
            epoll,
            setup,
            features,
            listeners: Listeners::default(),
            most_listeners: listen::most_listeners(),
            reserved: first_reserved(),
            inside_devices: None,
            diag: Diag::open().ok(),
            lookout: None,
            change: None,
            spare,
            starved: Vec::new(),
            scratch: Scratch::default(),
            tables: Tables::default(),
            ping_refused: false,
            interior: None,
            pipes: Vec::new(),
        })
    }

    /// What was found out about the kernel.
    pub const fn features(&self) -> Features {
        self.features
    }

    const fn can_peek_at_offset(&self, v4: bool) -> bool {
        if v4 { self.features.peek_offset_v4 } else { self.features.peek_offset_v6 }
    }
}

/// The descriptors that exchanges of datagrams leave to connections: they come by the thousand
/// when a guest looks for open ports.
fn first_reserved() -> RawFd {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    RawFd::try_from(limit - (limit / 8).min(1024)).unwrap_or(RawFd::MAX)
}

/// Refuses a socket whose descriptor is reserved: the kernel gives the lowest that is free, so
/// nearly all are in use.
fn leave_some(socket: &impl AsFd, reserved: RawFd) -> io::Result<()> {
    if socket.as_fd().as_raw_fd() >= reserved {
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    Ok(())
}

const fn family(of: Endpoint) -> Family {
    if of.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// An address of the kernel's as ours: v4-mapped ones become IPv4.
pub(super) const fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::new(address.ip().to_canonical(), address.port())
}

impl Host for Sockets {
    type Stream = Stream;
    type Datagram = Datagram;
    type Pipe = Pipe;

    fn relisten(&mut self, rules: &Rules) -> Result<Relisten, Failure> {
        self.listen_on(rules)
    }

    fn scan(&mut self, rules: &Rules) -> Scan {
        Self::scan(self, rules)
    }

    fn set_scope(&mut self, scope: u32) {
        self.setup.scope = scope;
    }

    fn is_starved(&self) -> bool {
        Self::is_starved(self)
    }

    fn feed(&mut self) {
        Self::feed(self);
    }

    fn connect(
        &mut self,
        side: Side,
        to: Endpoint,
        token: Token,
        interest: Interest,
    ) -> io::Result<(Stream, Connect)> {
        let (fd, setup) = self.open(side, family(to), Kind::Stream)?;
        socket::set(fd.as_fd(), IntOption::NO_DELAY, 1)?;
        socket::set(fd.as_fd(), IntOption::URGENT_INLINE, 1)?;
        setup.prepare_outgoing(fd.as_fd(), to, 0)?;
        let progress = match socket::connect(fd.as_fd(), &setup.socket_addr(to)) {
            Ok(()) => Connect::Done,
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Connect::InProgress,
            Err(e) => return Err(e),
        };
        let mut stream = Stream::connected(fd, to.is_ipv4());
        stream.watch(&self.epoll, token, interest)?;
        Ok((stream, progress))
    }

    fn connect_result(&mut self, stream: &Stream) -> io::Result<()> {
        socket::take_error(stream.as_fd())?.map_or(Ok(()), Err)
    }

    fn accept(&mut self, listener: u32) -> io::Result<Accepted<Stream>> {
        self.accept_from(listener)
    }

    fn watch(&mut self, stream: &mut Stream, token: Token, interest: Interest) -> io::Result<()> {
        stream.watch(&self.epoll, token, interest)
    }

    fn send(&mut self, stream: &mut Stream, payload: &[Span<'_>]) -> io::Result<usize> {
        socket::send(stream.as_fd(), payload)
    }

    fn peek(
        &mut self,
        stream: &mut Stream,
        skip: usize,
        room: &[SpanMut<'_>],
    ) -> io::Result<usize> {
        if room.iter().all(SpanMut::is_empty) {
            // The kernel would say 0, which is the end of the stream.
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.can_peek_at_offset(stream.is_ipv4()) {
            return stream.peek_at_offset(skip, room);
        }
        stream.peek_behind(skip, room, &mut self.scratch)
    }

    fn discard(&mut self, stream: &mut Stream, n: usize) -> io::Result<usize> {
        stream.discard(n)
    }

    fn shutdown(&mut self, stream: &mut Stream) -> io::Result<()> {
        socket::shutdown_write(stream.as_fd())
    }

    fn reset(&mut self, stream: Stream) {
        // Where this fails the close below still ends the connection, only less clearly.
        let _ = socket::linger_none(stream.as_fd());
    }

    fn keepalive(&mut self, stream: &mut Stream) {
        // A connection that is not probed is no worse than before.
        let _ = socket::set(stream.as_fd(), IntOption::KEEPALIVE, 1);
    }

    fn widen(&mut self, stream: &mut Stream) {
        // What was peeked stays in the receive buffer until the guest acknowledges it. The kernel's
        // tuning takes it for unread and leaves the buffer small, so that peer and guest move in
        // lock-step. A low-water mark is the way to a large buffer that needs no privilege and
        // does not end the tuning; the mark itself is not wanted. Both may fail: then all is slow.
        let fd = stream.as_fd();
        let _ = socket::set(fd, IntOption::RECEIVE_LOW_WATER, WIDE);
        let _ = socket::set(fd, IntOption::RECEIVE_LOW_WATER, 1);
    }

    fn hurry(&mut self, stream: &mut Stream) {
        stream.hurry();
    }

    fn info(&mut self, stream: &Stream) -> io::Result<StreamInfo> {
        stream.info()
    }

    fn take_error(&mut self, stream: &Stream) -> Option<io::Error> {
        socket::take_error(stream.as_fd()).unwrap_or_else(Some)
    }

    fn listener_protocol(&self, listener: u32) -> Option<Protocol> {
        self.listening(listener).map(|listening| listening.protocol)
    }

    fn listener_side(&self, listener: u32) -> Side {
        self.listening(listener).map_or(Side::Outside, |listening| listening.side)
    }

    fn open_udp(
        &mut self,
        side: Side,
        local: Endpoint,
        remote: Endpoint,
        token: Token,
    ) -> io::Result<(Datagram, Endpoint)> {
        let reserved = self.reserved;
        let (socket, setup) = self.open(side, family(remote), Kind::Datagram)?;
        leave_some(&socket, reserved)?;
        let (mut socket, ours) = Connected::new(socket, setup, local, remote, token)?;
        socket.watch(&self.epoll, true)?;
        Ok((Datagram::Connected(socket), ours))
    }

    fn open_beside(
        &mut self,
        listener: u32,
        local: Endpoint,
        remote: Endpoint,
        token: Token,
    ) -> io::Result<Datagram> {
        let side = self.listener_side(listener);
        match self.open_udp(side, local, remote, token) {
            Ok((socket, _)) => Ok(socket),
            // We have given the right to this port up since the listener was bound.
            Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
                Ok(Datagram::Beside(self.share(listener, local, remote)?))
            }
            Err(e) => Err(e),
        }
    }

    fn open_echo(&mut self, remote: IpAddr, identifier: u16, flow: FlowId) -> io::Result<Datagram> {
        let opened = Connected::open_echo(&self.epoll, &self.setup, remote, identifier, flow);
        if matches!(&opened, Err(e) if e.kind() == io::ErrorKind::PermissionDenied)
            && !std::mem::replace(&mut self.ping_refused, true)
        {
            log::warn!(
                "Guests cannot ping: our group must be in the range of the sysctl \
                 net.ipv4.ping_group_range"
            );
        }
        let opened = opened?;
        leave_some(&opened, self.reserved)?;
        Ok(Datagram::Connected(opened))
    }

    fn send_messages(
        &mut self,
        socket: &mut Datagram,
        messages: &[Outbound],
        spans: &[Span<'_>],
        ttl: u8,
    ) -> io::Result<usize> {
        match socket {
            Datagram::Connected(socket) => {
                socket.set_ttl(ttl);
                socket.send(&mut self.tables, messages, spans)
            }
            Datagram::Beside(beside) => self.send_beside(*beside, messages, spans, ttl),
        }
    }

    fn receive_messages(
        &mut self,
        socket: &mut Datagram,
        batch: &mut Batch,
        coalesce: bool,
    ) -> io::Result<usize> {
        // All that comes for the others comes to their listeners.
        let Datagram::Connected(socket) = socket else {
            batch.messages.clear();
            return Err(io::ErrorKind::WouldBlock.into());
        };
        socket.coalesce(coalesce);
        socket.receive(&mut self.tables, batch)
    }

    fn receive_listener(&mut self, listener: u32, batch: &mut Batch) -> io::Result<(usize, usize)> {
        let Some(of) = self.listeners.get(listener) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let of_what = of.listening();
        let n = self.tables.receive(of.fd(), batch, true, of_what.port)?;
        Ok((of_what.rule, n))
    }

    fn pause(&mut self, socket: &mut Datagram, paused: bool) {
        // A socket that cannot be paused is asked again; one that cannot be resumed has run into
        // the limits of the host's memory and times out.
        if let Datagram::Connected(socket) = socket {
            let _ = socket.watch(&self.epoll, !paused);
        }
    }

    fn pause_listener(&mut self, listener: u32, paused: bool) {
        self.watch_listener(listener, !paused);
    }

    fn next_error(&mut self, socket: &mut Datagram) -> Option<SocketError> {
        match socket {
            Datagram::Connected(socket) => socket.next_error(),
            Datagram::Beside(_) => None,
        }
    }

    fn pipe(&mut self) -> io::Result<Pipe> {
        self.next_pipe()
    }

    fn give_back(&mut self, pipe: Pipe) {
        self.keep_pipe(pipe);
    }

    fn fill(&mut self, pipe: &mut Pipe, stream: &mut Stream, max: usize) -> io::Result<usize> {
        pipe.fill(stream, max)
    }

    fn fill_one(&mut self, pipe: &mut Pipe, stream: &mut Stream) -> io::Result<usize> {
        pipe.fill_one(stream)
    }

    fn drain(&mut self, pipe: &mut Pipe, stream: &mut Stream, n: usize) -> io::Result<usize> {
        pipe.drain(stream, n)
    }
}
