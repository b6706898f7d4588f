//! What an event is about, as the 64 bits that epoll carries for us.
//!
//! A value module: the engine chooses tokens, the host's sockets and the links register them, the
//! runtime takes them apart again. Nobody else reads the bits.

use crate::flow::{FlowId, Side};

/// The subject of a readiness event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Token {
    /// Something of the guest's link: a listener, the control socket, a kick, a tap. The number is
    /// the link's own.
    Link(u32),
    /// A signal has arrived.
    Signal,
    /// A listening socket of the host.
    Listener(u32),
    /// The socket of a TCP flow.
    Tcp(FlowId),
    /// The socket of a UDP flow or a ping.
    Datagram(FlowId),
    /// One of the sockets of a spliced TCP connection: that of this side.
    Splice(FlowId, Side),
    /// One of the sockets of a UDP exchange between both sides: that of this side.
    Relay(FlowId, Side),
    /// Anything else the runtime registered: netlink, control API, watches.
    Runtime(u32),
}

impl Token {
    /// The 64 bits for `epoll_event.u64`: kind (8), generation (24), index (32).
    pub const fn to_bits(self) -> u64 {
        let (kind, generation, index) = match self {
            Self::Link(n) => (0, 0, n),
            Self::Signal => (1, 0, 0),
            Self::Listener(n) => (2, 0, n),
            Self::Tcp(id) => (3, id.generation(), id.index()),
            Self::Datagram(id) => (4, id.generation(), id.index()),
            Self::Runtime(n) => (5, 0, n),
            Self::Splice(id, Side::Outside) => (6, id.generation(), id.index()),
            Self::Splice(id, Side::Inside) => (7, id.generation(), id.index()),
            Self::Relay(id, Side::Outside) => (8, id.generation(), id.index()),
            Self::Relay(id, Side::Inside) => (9, id.generation(), id.index()),
        };
        ((kind as u64) << 56) | ((generation as u64) << 32) | index as u64
    }

    /// The inverse of [`Token::to_bits`]; `None` for bits that it never makes.
    pub const fn from_bits(bits: u64) -> Option<Self> {
        let index = bits as u32;
        let generation = (bits >> 32) as u32 & FlowId::GENERATION_MASK;
        let flow = FlowId::new(index, generation);
        Some(match bits >> 56 {
            0 => Self::Link(index),
            1 => Self::Signal,
            2 => Self::Listener(index),
            3 => Self::Tcp(flow),
            4 => Self::Datagram(flow),
            5 => Self::Runtime(index),
            6 => Self::Splice(flow, Side::Outside),
            7 => Self::Splice(flow, Side::Inside),
            8 => Self::Relay(flow, Side::Outside),
            9 => Self::Relay(flow, Side::Inside),
            _ => return None,
        })
    }
}

/// What a file descriptor is ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Data or a connection can be read (EPOLLIN).
    pub readable: bool,
    /// Data can be written, or a connect has ended (EPOLLOUT).
    pub writable: bool,
    /// The peer has closed its writing half (EPOLLRDHUP).
    pub read_closed: bool,
    /// Both halves are closed (EPOLLHUP).
    pub hung_up: bool,
    /// An error is pending (EPOLLERR): read SO_ERROR or the error queue.
    pub error: bool,
    /// There is urgent data (EPOLLPRI).
    pub urgent: bool,
}

/// What a file descriptor is to be watched for. Errors and hang-ups are always reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Report [`Readiness::readable`] and, of changes only, [`Readiness::urgent`].
    pub readable: bool,
    /// Report [`Readiness::writable`].
    pub writable: bool,
    /// Report [`Readiness::read_closed`].
    pub read_closed: bool,
    /// Report changes only (EPOLLET), for data that is left unread on purpose.
    pub edge: bool,
}
