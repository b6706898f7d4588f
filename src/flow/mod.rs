//! Flows: who talks to whom. Pure: keys, the table, address translation, deadlines.
//!
//! Knows [`crate::wire`] and [`crate::time`], and the values of [`crate::config`]; never a socket,
//! a frame or a clock.

pub mod deadline;
pub mod forward;
pub mod rules;
pub mod slots;
pub mod table;

use std::fmt;
use std::net::IpAddr;

/// The transport protocols that become flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP or ICMPv6 echo; the identifier stands for both ports.
    Echo,
}

/// One of the two places between which traffic goes without the link (pasta): where sockets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// The host: the network namespace that we were started in.
    Outside,
    /// The network namespace that we serve.
    Inside,
}

impl Side {
    /// Both of them.
    pub const BOTH: [Self; 2] = [Self::Outside, Self::Inside];

    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::Outside => Self::Inside,
            Self::Inside => Self::Outside,
        }
    }
}

/// By the names that the control protocol gives them.
impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Outside => "HOST",
            Self::Inside => "SPLICE",
        })
    }
}

/// An address and a port (host order). IPv4 is always [`IpAddr::V4`], never v4-mapped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address.
    pub addr: IpAddr,
    /// The port, or the identifier of an echo.
    pub port: u16,
}

impl Endpoint {
    /// An address with a port.
    pub const fn new(addr: IpAddr, port: u16) -> Self {
        Self { addr, port }
    }

    /// Whether the address is IPv4.
    pub const fn is_ipv4(&self) -> bool {
        self.addr.is_ipv4()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addr {
            IpAddr::V4(a) => write!(f, "{a}:{}", self.port),
            IpAddr::V6(a) => write!(f, "[{a}]:{}", self.port),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A flow as the guest sees it: the key of the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The protocol.
    pub protocol: Protocol,
    /// The guest's address and port.
    pub guest: Endpoint,
    /// The address and port that the guest believes it talks to.
    pub remote: Endpoint,
}

/// The name of a flow in its table: a slot, and which of the slot's tenants is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId {
    index: u32,
    generation: u32,
}

impl FlowId {
    /// Generations have 24 bits, for they travel in a [`crate::token::Token`].
    pub const GENERATION_MASK: u32 = (1 << 24) - 1;

    /// The tenant `generation` (modulo 2^24) of slot `index`.
    pub const fn new(index: u32, generation: u32) -> Self {
        Self { index, generation: generation & Self::GENERATION_MASK }
    }

    /// The slot.
    pub const fn index(self) -> u32 {
        self.index
    }

    /// The tenant.
    pub const fn generation(self) -> u32 {
        self.generation
    }
}
