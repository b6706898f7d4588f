//! Seam 2, the native side: sockets of the host as the engine needs them.
//!
//! The engine is generic over [`Host`]; [`sockets`] implements it with the kernel's sockets, tests
//! with scripts. Handles are owned: dropping one closes it. Every call returns at once; short
//! counts and `WouldBlock` are ordinary outcomes. No implementation knows `translate` or `engine`.

pub mod diag;
pub mod inside;
pub mod listen;
pub mod netlink;
pub mod sockets;

pub use listen::{Changes, Failure};

use crate::flow::rules::Rules;
use crate::flow::{Endpoint, FlowId, Protocol, Side};
use crate::span::{Span, SpanMut};
use crate::time::Duration;
use crate::token::{Interest, Token};
use std::io;
use std::net::IpAddr;

/// Pieces of room that a peek looks at, and no more: what the kernel takes in one call (UIO_MAXIOV),
/// less some for bytes that are to be skipped.
pub const MAX_ROOM: usize = 1024 - 16;

/// How a TCP connect began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// It is done.
    Done,
    /// The socket becomes writable when it is; then ask [`Host::connect_result`].
    InProgress,
}

/// A connection that a listener has accepted.
#[derive(Debug)]
pub struct Accepted<S> {
    /// The connection, non-blocking, not watched yet.
    pub stream: S,
    /// The far end.
    pub peer: Endpoint,
    /// Our end: the address that the peer connected to.
    pub local: Endpoint,
    /// The number of the forwarding rule that wants the listener.
    pub rule: usize,
}

/// What the kernel knows of a TCP socket: the parts of TCP_INFO and SO_MEMINFO that we use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamInfo {
    /// Bytes that the peer has acknowledged, our SYN not counted, our FIN counted as one; `None`
    /// before Linux 4.1.
    pub bytes_acked: Option<u64>,
    /// The peer's window in bytes; `None` before Linux 5.4.
    pub peer_window: Option<u32>,
    /// Smoothed round-trip time towards the peer.
    pub rtt: Duration,
    /// Largest payload of a segment towards the peer.
    pub peer_mss: u16,
    /// Bytes that the send buffer takes before it blocks, overhead discounted as far as known.
    pub send_room: u32,
    /// Bytes in the send buffer that the peer has not acknowledged (SIOCOUTQ).
    pub unacked: u32,
    /// Whether the connection is established, or further, and not yet closed.
    pub established: bool,
}

/// How far a look at who listens has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// Nobody wants to know.
    Off,
    /// There is more to do: to be called again in this turn or the next.
    More,
    /// It is done, and nothing has changed.
    Same,
    /// It is done, and services have come or gone.
    Changed,
}

/// How far a change of the rules has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Relisten {
    /// The rules before are in force. To be called again, with the same rules, in the next turn.
    More,
    /// The rules can be had: from now on listeners name them, and they are in force. To be called
    /// again.
    Bound,
    /// It is done.
    Done(Changes),
}

/// The native side of the engine.
pub trait Host {
    /// A TCP connection, closed on drop.
    type Stream: std::fmt::Debug;
    /// A UDP or ping socket, closed on drop.
    type Datagram: std::fmt::Debug;

    /// A pipe between sockets, closed on drop.
    type Pipe: std::fmt::Debug;

    /// Link-local IPv6 destinations are on the interface with this number from now on.
    fn set_scope(&mut self, _scope: u32) {}

    /// Opens a TCP connection to `to`, from a socket of this side. It is watched in the name of
    /// `token` for `interest`, which is to have its end in it (writable).
    fn connect(
        &mut self,
        side: Side,
        to: Endpoint,
        token: Token,
        interest: Interest,
    ) -> io::Result<(Self::Stream, Connect)>;

    /// How the connect ended (SO_ERROR).
    fn connect_result(&mut self, stream: &Self::Stream) -> io::Result<()>;

    /// The next connection of listener `listener`; `WouldBlock` when there is none.
    fn accept(&mut self, listener: u32) -> io::Result<Accepted<Self::Stream>>;

    /// Watches `stream` in the name of `token`; free of system calls when nothing changes. After an
    /// error (no memory, or none for more watches) nothing would ever be heard of it: it is to be
    /// reset.
    fn watch(
        &mut self,
        stream: &mut Self::Stream,
        token: Token,
        interest: Interest,
    ) -> io::Result<()>;

    /// Sends from `payload`; returns how many bytes the socket took.
    fn send(&mut self, stream: &mut Self::Stream, payload: &[Span<'_>]) -> io::Result<usize>;

    /// Copies received bytes behind the first `skip` ones to `room`, that is to the first
    /// [`MAX_ROOM`] pieces of it, and leaves them all in the socket. `Ok(0)` is the end of the
    /// stream; `WouldBlock` is nothing new, or empty `room`.
    ///
    /// Where there is urgent data ([`Readiness::urgent`]), a short count does not mean that there
    /// is nothing behind it, and `WouldBlock` only that nothing can be had before some of the
    /// skipped bytes were discarded.
    ///
    /// [`Readiness::urgent`]: crate::token::Readiness::urgent
    fn peek(
        &mut self,
        stream: &mut Self::Stream,
        skip: usize,
        room: &[SpanMut<'_>],
    ) -> io::Result<usize>;

    /// Drops the first `n` received bytes from the socket; returns how many were dropped.
    fn discard(&mut self, stream: &mut Self::Stream, n: usize) -> io::Result<usize>;

    /// Ends our half of the connection: a FIN behind all that was sent.
    fn shutdown(&mut self, stream: &mut Self::Stream) -> io::Result<()>;

    /// Closes with a RST instead of a FIN.
    fn reset(&mut self, stream: Self::Stream);

    /// Switches keepalive probes towards the peer on (the guest has sent one itself).
    fn keepalive(&mut self, stream: &mut Self::Stream);

    /// Lets the peer send far ahead: the stream has much to carry. To be called once.
    fn widen(&mut self, stream: &mut Self::Stream);

    /// Sends without regard to any network: the stream has much to carry and does not leave this
    /// machine. To be called once.
    fn hurry(&mut self, stream: &mut Self::Stream);

    /// What the kernel knows of the connection.
    fn info(&mut self, stream: &Self::Stream) -> io::Result<StreamInfo>;

    /// The pending error of the socket, cleared by asking (SO_ERROR).
    fn take_error(&mut self, stream: &Self::Stream) -> Option<io::Error>;

    /// Takes the next step to listen as `rules` say and no longer as the rules before said, until
    /// that is done or has failed; sockets of rules that have not changed stay open. Each step is
    /// short; between two of them everything else may go on. A failure leaves all as it was.
    fn relisten(&mut self, rules: &Rules) -> Result<Relisten, Failure>;

    /// Looks, a step at a time, who listens on either side, and has the ports of rules that wait
    /// for that (`auto`) follow.
    fn scan(&mut self, rules: &Rules) -> Scan;

    /// Whether listeners are not watched because the process was out of descriptors: call
    /// [`Host::feed`] in a while.
    fn is_starved(&self) -> bool;

    /// Watches such listeners again.
    fn feed(&mut self);

    /// The protocol of listener `listener`; `None` when there is no such listener.
    fn listener_protocol(&self, listener: u32) -> Option<Protocol>;

    /// The side that listener `listener` listens on.
    fn listener_side(&self, listener: u32) -> Side;

    /// Opens a UDP socket of this side, connected to `remote` and watched for input in the name
    /// of `token`. With an unspecified `local.addr` the host chooses the address, and `local.port`
    /// is a wish (a guest's source port); otherwise it is bound to `local`, or fails. Returns our
    /// end as the kernel has it.
    fn open_udp(
        &mut self,
        side: Side,
        local: Endpoint,
        remote: Endpoint,
        token: Token,
    ) -> io::Result<(Self::Datagram, Endpoint)>;

    /// As [`Host::open_udp`], for an exchange that came to `listener`: it is between `remote` and
    /// `local`, which is where the listener was asked. What more `remote` sends may keep coming to
    /// the listener, where the host has no right to bind its port a second time.
    fn open_beside(
        &mut self,
        listener: u32,
        local: Endpoint,
        remote: Endpoint,
        token: Token,
    ) -> io::Result<Self::Datagram> {
        let side = self.listener_side(listener);
        Ok(self.open_udp(side, local, remote, token)?.0)
    }

    /// Opens a ping socket for `flow`, watched for input, that sends echo requests to `remote`. The
    /// kernel sets identifier and checksum of requests; `identifier` is a wish.
    fn open_echo(
        &mut self,
        remote: IpAddr,
        identifier: u16,
        flow: FlowId,
    ) -> io::Result<Self::Datagram>;

    /// Sends `messages`, whose payloads stand one behind the other in `spans`, with this TTL or hop
    /// limit; returns how many were taken. A message that the kernel refuses is an error only if
    /// it is the first; `WouldBlock` means that the socket is full. An error may also be that of an
    /// earlier message, for which [`Host::next_error`] tells more: then the same may go next time.
    fn send_messages(
        &mut self,
        socket: &mut Self::Datagram,
        messages: &[Outbound],
        spans: &[Span<'_>],
        ttl: u8,
    ) -> io::Result<usize>;

    /// Receives what fits `batch`, which is emptied first; returns how many messages came.
    /// `WouldBlock` when there are none. With `coalesce`, runs of datagrams of equal size may come
    /// as one message ([`Message::segment`]). Where [`Message::from`] is set and is not the
    /// remote end, a stranger's message came between binding and connecting, or to a ping socket.
    fn receive_messages(
        &mut self,
        socket: &mut Self::Datagram,
        batch: &mut Batch,
        coalesce: bool,
    ) -> io::Result<usize>;

    /// As [`Host::receive_messages`], from a UDP listener; [`Message::from`] and [`Message::to`] are
    /// set. Returns the number of the listener's rule and how many messages came.
    fn receive_listener(&mut self, listener: u32, batch: &mut Batch) -> io::Result<(usize, usize)>;

    /// Stops to report input of `socket`, which stays there, or goes on. Errors are always
    /// reported.
    fn pause(&mut self, socket: &mut Self::Datagram, paused: bool);

    /// Stops to report what waits at listener `listener`, or goes on.
    fn pause_listener(&mut self, listener: u32, paused: bool);

    /// The next entry of the socket's error queue (IP_RECVERR), with the payload that it quotes; or
    /// its pending error (SO_ERROR) when the queue is empty. `None` when there is none.
    fn next_error(&mut self, socket: &mut Self::Datagram) -> Option<SocketError>;

    /// An empty pipe.
    fn pipe(&mut self) -> io::Result<Self::Pipe>;

    /// Takes a pipe that is empty back, for the next one who asks.
    fn give_back(&mut self, pipe: Self::Pipe);

    /// Moves at most `max` received bytes from `stream` to the empty `pipe`; returns how many.
    /// `Ok(0)` is the end of the stream; `WouldBlock` is nothing new. Where there is urgent data
    /// either may be said in front of it.
    fn fill(
        &mut self,
        pipe: &mut Self::Pipe,
        stream: &mut Self::Stream,
        max: usize,
    ) -> io::Result<usize>;

    /// Moves one received byte from `stream` to the empty `pipe`, also where [`Host::fill`] ends before
    /// one that is marked as urgent; returns as that does.
    fn fill_one(&mut self, pipe: &mut Self::Pipe, stream: &mut Self::Stream) -> io::Result<usize>;

    /// Moves `n` bytes, which must be in `pipe`, to `stream`; returns how many the socket took.
    /// `WouldBlock` is a full socket.
    fn drain(
        &mut self,
        pipe: &mut Self::Pipe,
        stream: &mut Self::Stream,
        n: usize,
    ) -> io::Result<usize>;
}

/// A message to send: so many of the spans make its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// How many spans belong to it, of those that earlier messages have left.
    pub spans: usize,
    /// Set for a run of datagrams of this size, the last one shorter (UDP_SEGMENT).
    pub segment: Option<u16>,
}

/// Received messages, each in a place of its own of one large buffer.
#[derive(Debug)]
pub struct Batch {
    /// [`Batch::STRIDE`] bytes for each of [`Batch::MESSAGES`] messages.
    pub bytes: Vec<u8>,
    /// The messages that are there.
    pub messages: Vec<Message>,
}

/// One received message; message *i* of a batch starts at *i* times [`Batch::STRIDE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Bytes of payload.
    pub len: usize,
    /// Set when this is a run of datagrams of this size (UDP_GRO).
    pub segment: Option<u16>,
    /// Who sent it, as far as asked for.
    pub from: Option<Endpoint>,
    /// Which address and port of ours it was sent to, as far as asked for.
    pub to: Option<Endpoint>,
}

impl Batch {
    /// Messages that one call receives at most.
    pub const MESSAGES: usize = 32;

    /// Room for one message: the longest that IP can carry.
    pub const STRIDE: usize = 1 << 16;

    /// An empty batch. Its memory is only taken as messages arrive.
    #[must_use]
    pub fn new() -> Self {
        Self {
            bytes: vec![0; Self::MESSAGES * Self::STRIDE],
            messages: Vec::with_capacity(Self::MESSAGES),
        }
    }

    /// Message `index` and its payload.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<(&Message, &[u8])> {
        let message = self.messages.get(index)?;
        let start = index * Self::STRIDE;
        Some((message, self.bytes.get(start..start + message.len)?))
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

/// An error that the network or the kernel reports for something that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketError {
    /// The error number (`errno`).
    pub errno: i32,
    /// The ICMP or ICMPv6 message behind it; `None` for errors of this host.
    pub icmp: Option<IcmpCause>,
    /// What was sent, without headers, as far as the error quotes it.
    pub quoted: Vec<u8>,
}

/// The ICMP (for IPv4 sockets) or ICMPv6 message behind an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpCause {
    /// Who sent it.
    pub offender: IpAddr,
    /// Its type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// The MTU of "fragmentation needed" and "packet too big", else 0.
    pub info: u32,
}
