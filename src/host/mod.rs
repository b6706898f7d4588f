//! Seam 2, the native side: sockets of the host as the engine needs them.
//!
//! The engine is generic over [`Host`]; [`sockets`] implements it with the kernel's sockets, tests
//! with scripts. Handles are owned: dropping one closes it. Every call returns at once; short
//! counts and `WouldBlock` are ordinary outcomes. No implementation knows `translate` or `engine`.

pub mod listen;
pub mod netlink;
pub mod sockets;

use crate::flow::{Endpoint, FlowId};
use crate::span::{Span, SpanMut};
use crate::time::Duration;
use crate::token::Interest;
use std::io;

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
    /// The forwarding rule that opened the listener, by its index.
    pub rule: usize,
}

/// What the kernel knows of a TCP socket: the parts of TCP_INFO and SO_MEMINFO that we use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamInfo {
    /// Bytes that the peer has acknowledged, SYN not counted; `None` on old kernels.
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

/// The native side of the engine.
pub trait Host {
    /// A TCP connection, closed on drop.
    type Stream: std::fmt::Debug;
    /// A UDP socket, closed on drop.
    type Datagram: std::fmt::Debug;
    /// A ping socket, closed on drop.
    type Echo: std::fmt::Debug;

    /// Opens a TCP connection to `to` for flow `flow`, watched for its end (writable edge). `mss`,
    /// if given, caps what the peer may send in one segment (TCP_MAXSEG).
    fn connect(&mut self, to: Endpoint, flow: FlowId) -> io::Result<(Self::Stream, Connect)>;

    /// How the connect ended (SO_ERROR).
    fn connect_result(&mut self, stream: &Self::Stream) -> io::Result<()>;

    /// The next connection of listener `listener`; `WouldBlock` when there is none.
    fn accept(&mut self, listener: u32) -> io::Result<Accepted<Self::Stream>>;

    /// Watches `stream` on behalf of `flow`; free of system calls when nothing changes.
    fn watch(&mut self, stream: &mut Self::Stream, flow: FlowId, interest: Interest);

    /// Sends from `payload`; returns how many bytes the socket took.
    fn send(&mut self, stream: &mut Self::Stream, payload: &[Span<'_>]) -> io::Result<usize>;

    /// Copies received bytes behind the first `skip` ones to `room` and leaves them all in the
    /// socket. `Ok(0)` is the end of the stream (and `room` is never empty); `WouldBlock` is
    /// nothing new.
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

    /// What the kernel knows of the connection.
    fn info(&mut self, stream: &Self::Stream) -> io::Result<StreamInfo>;

    /// The pending error of the socket, cleared by asking (SO_ERROR).
    fn take_error(&mut self, stream: &Self::Stream) -> Option<io::Error>;
}
