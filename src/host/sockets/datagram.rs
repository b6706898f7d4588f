//! One UDP or ping socket, connected to one remote end.

use super::beside::Beside;
use super::{Setup, endpoint};
use crate::flow::{Endpoint, FlowId};
use crate::host::{Batch, IcmpCause, Message, Outbound, SocketError};
use crate::span::Span;
use crate::sys::epoll::Epoll;
use crate::sys::socket::message::{self, Messages, Received};
use crate::sys::socket::{self, Family, IntOption, Kind};
use crate::token::{Interest, Token};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes of an offending message that are asked for: what an ICMPv6 error may quote.
const QUOTE: usize = 1232;

/// What a UDP socket may hold until we read it, overhead of the kernel included: a few milliseconds
/// at full speed. The default is that of some hundred short datagrams.
const RECEIVE_BUFFER: i32 = 2 << 20;

/// What an exchange of datagrams goes through.
#[derive(Debug)]
pub enum Datagram {
    /// A socket of its own.
    Connected(Connected),
    /// The socket of the listener that it came to.
    Beside(Beside),
}

/// A socket that is connected to its remote end; closed on drop.
#[derive(Debug)]
pub struct Connected {
    fd: OwnedFd,
    family: Family,
    multicast: bool,
    token: Token,
    /// Whether input is reported; `None` before the socket is watched at all.
    watched: Option<bool>,
    /// The TTL that the socket was last given.
    ttl: Option<u8>,
    coalescing: bool,
    /// Strangers' messages may be in the socket: senders are to be told.
    strangers: Strangers,
}

/// Whose messages a socket may hold besides its remote end's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strangers {
    /// Those that came between binding and connecting; until the socket was empty once.
    Early,
    /// The kernel hands ping sockets all replies with their identifier.
    Always,
    /// Nobody's.
    Never,
}

/// What system calls for many messages need, kept for reuse.
#[derive(Debug, Default)]
pub(in crate::host) struct Tables {
    pub(super) messages: Messages,
    received: Vec<Received>,
}

impl Tables {
    /// Fills `batch` from a socket, with senders if `names`. `port` is that of the socket, where
    /// it tells addresses of ours.
    pub(in crate::host) fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        batch: &mut Batch,
        names: bool,
        port: u16,
    ) -> io::Result<usize> {
        self.received.clear();
        batch.messages.clear();
        let (room, out) = (&mut batch.bytes, &mut self.received);
        let n = self.messages.receive(fd, room, Batch::STRIDE, names, out)?;
        batch.messages.extend(self.received.iter().map(|r| Message {
            len: r.len.min(Batch::STRIDE),
            segment: r.segment,
            from: r.from.map(endpoint),
            to: r.to.map(|addr| Endpoint::new(addr, port)),
        }));
        Ok(n)
    }
}

impl Connected {
    /// Makes `socket` one between `local` and `remote`, not watched yet.
    pub(super) fn new(
        socket: OwnedFd,
        setup: &Setup,
        local: Endpoint,
        remote: Endpoint,
        token: Token,
    ) -> io::Result<(Self, Endpoint)> {
        let address = setup.socket_addr(remote);
        let family = Family::of(&address);
        let fd = socket.as_fd();
        deepen(fd);
        // Many flows of one source port of the guest's share that port here.
        socket::set(fd, IntOption::REUSE_ADDRESS, 1)?;
        socket::set(fd, IntOption::error_queue(family), 1)?;
        if setup.freebind {
            socket::set(fd, IntOption::freebind(family), 1)?;
        }
        if local.addr.is_unspecified() {
            prefer_port(setup, fd, remote, local.port)?;
        } else {
            socket::bind(fd, &setup.socket_addr(local))?;
        }
        socket::connect(fd, &address)?;
        let ours = endpoint(socket::local_address(fd)?);
        let multicast = remote.addr.is_multicast();
        let mut this = Self::with(socket, family, token, Strangers::Early);
        this.multicast = multicast;
        Ok((this, ours))
    }

    pub(super) fn open_echo(
        epoll: &Epoll,
        setup: &Setup,
        remote: IpAddr,
        identifier: u16,
        flow: FlowId,
    ) -> io::Result<Self> {
        let remote = Endpoint::new(remote, 0);
        let address = setup.socket_addr(remote);
        let family = Family::of(&address);
        let socket = socket::open(family, Kind::Ping)?;
        let fd = socket.as_fd();
        socket::set(fd, IntOption::error_queue(family), 1)?;
        // The kernel finds ping sockets by identifier alone, and lets them share one unless told.
        socket::set(fd, IntOption::REUSE_ADDRESS, 0)?;
        prefer_port(setup, fd, remote, identifier)?;
        socket::connect(fd, &address)?;
        let mut this = Self::with(socket, family, Token::Datagram(flow), Strangers::Always);
        this.watch(epoll, true)?;
        Ok(this)
    }

    const fn with(fd: OwnedFd, family: Family, token: Token, strangers: Strangers) -> Self {
        Self {
            fd,
            family,
            multicast: false,
            token,
            watched: None,
            ttl: None,
            coalescing: false,
            strangers,
        }
    }

    /// Reports input, or only errors.
    pub(super) fn watch(&mut self, epoll: &Epoll, readable: bool) -> io::Result<()> {
        let interest = Interest { readable, ..Interest::default() };
        match self.watched {
            Some(same) if same == readable => return Ok(()),
            Some(_) => epoll.modify(self.as_fd(), self.token, interest)?,
            None => epoll.add(self.as_fd(), self.token, interest)?,
        }
        self.watched = Some(readable);
        Ok(())
    }

    /// Sets TTL or hop limit if it is another than the last one. One of 0 would not leave us.
    pub(super) fn set_ttl(&mut self, ttl: u8) {
        let ttl = ttl.max(1);
        if self.ttl == Some(ttl) {
            return;
        }
        let option = IntOption::ttl(self.family, self.multicast);
        // A kernel that does not want it sends with its own.
        let _ = socket::set(self.as_fd(), option, i32::from(ttl));
        self.ttl = Some(ttl);
    }

    /// Lets the kernel hand over runs of datagrams as one, or not.
    pub(super) fn coalesce(&mut self, coalesce: bool) {
        let udp = self.strangers != Strangers::Always;
        if udp && self.coalescing != coalesce {
            // Kernels without it (before 5.0) go on one by one.
            let _ = socket::set(self.as_fd(), IntOption::COALESCE, i32::from(coalesce));
            self.coalescing = coalesce;
        }
    }

    pub(super) fn send(
        &self,
        tables: &mut Tables,
        messages: &[Outbound],
        spans: &[Span<'_>],
    ) -> io::Result<usize> {
        let parts = messages.iter().map(|message| (message.spans, message.segment));
        tables.messages.send(self.as_fd(), None, parts, spans)
    }

    pub(super) fn receive(&mut self, tables: &mut Tables, batch: &mut Batch) -> io::Result<usize> {
        let names = self.strangers != Strangers::Never;
        let result = tables.receive(self.as_fd(), batch, names, 0);
        let empty = match &result {
            Ok(n) => *n < Batch::MESSAGES,
            Err(e) => e.kind() == io::ErrorKind::WouldBlock,
        };
        if empty && self.strangers == Strangers::Early {
            self.strangers = Strangers::Never;
        }
        result
    }

    /// The next error in the queue, else the pending one.
    pub(super) fn next_error(&self) -> Option<SocketError> {
        let mut quote = [0; QUOTE];
        if let Ok(Some(error)) = message::next_error(self.as_fd(), &mut quote) {
            let icmp = error.offender.filter(|_| error.icmp);
            return Some(SocketError {
                errno: error.errno,
                icmp: icmp.map(|offender| IcmpCause {
                    offender,
                    kind: error.kind,
                    code: error.code,
                    info: error.info,
                }),
                quoted: quote.get(..error.quoted).unwrap_or_default().to_vec(),
            });
        }
        let pending = socket::take_error(self.as_fd()).unwrap_or_else(Some)?;
        Some(SocketError {
            errno: pending.raw_os_error().unwrap_or(libc::EIO),
            icmp: None,
            quoted: Vec::new(),
        })
    }
}

impl AsFd for Connected {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Lets a UDP socket hold [`RECEIVE_BUFFER`], or as much of it as net.core.rmem_max allows.
pub(in crate::host) fn deepen(fd: BorrowedFd<'_>) {
    // What the administrator's default has made deeper stays. The kernel doubles what it is told.
    if socket::get(fd, IntOption::RECEIVE_BUFFER).is_ok_and(|now| now < RECEIVE_BUFFER) {
        let _ = socket::set(fd, IntOption::RECEIVE_BUFFER, RECEIVE_BUFFER / 2);
    }
}

/// Binds an outgoing socket to its source address, and to `port` if that is to be had: it may be
/// someone else's or need privileges.
fn prefer_port(setup: &Setup, fd: BorrowedFd<'_>, remote: Endpoint, port: u16) -> io::Result<()> {
    match setup.prepare_outgoing(fd, remote, port) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EADDRINUSE | libc::EACCES)) => {
            setup.prepare_outgoing(fd, remote, 0)
        }
        other => other,
    }
}
