//! Why frames and connections came to nothing, counted. A guest can make these happen at will, so
//! they are counted and never logged one by one.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident => $text:literal,)*) => {
        /// Why a frame was dropped or a connection refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// All reasons, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The reason in a few words.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// Shorter than an Ethernet header, or longer than any frame.
    BadLength => "bad frame length",
    /// An EtherType other than ARP, IPv4 and IPv6.
    UnknownEtherType => "unknown EtherType",
    /// A family that is switched off.
    FamilyDisabled => "address family disabled",
    /// The IP header does not hold together.
    BadIpHeader => "malformed IP header",
    /// A loopback address on the link.
    Loopback => "loopback address on the link",
    /// A fragment that was refused, or whose datagram was never completed.
    Fragment => "fragment dropped",
    /// A transport protocol that we do not carry.
    UnknownProtocol => "unknown transport protocol",
    /// The transport header does not hold together.
    BadTransportHeader => "malformed transport header",
    /// Offload fields that do not fit the frame.
    BadOffload => "bad offload fields",
    /// An address or port that no flow may have.
    BadEndpoint => "unusable address or port",
    /// A protocol that is switched off.
    ProtocolDisabled => "protocol disabled",
    /// No more flows can be kept.
    TableFull => "flow table full",
    /// What nobody had answered, when there was no room for a new flow of datagrams.
    MadeWay => "unanswered flow made way",
    /// The host refused a socket.
    NoSocket => "no socket",
    /// Address translation has no target.
    NoTarget => "no target address",
    /// A TCP segment without a flow that does not open one.
    NoFlow => "segment without a flow",
    /// The guest gave no room and the frame could not wait.
    NoRoom => "no room towards the guest",
    /// A datagram that had waited for a guest that was not there.
    Stale => "datagram came while there was no guest",
    /// A frame larger than the guest's buffers.
    TooLarge => "frame larger than the guest's buffers",
    /// A message to a flow's socket from someone else than the flow's remote end.
    Stranger => "message from a stranger",
    /// A datagram that the host's socket did not take.
    NotSent => "datagram not taken by the host",
    /// A connection from outside that may not come in.
    Refused => "inbound connection refused",
    /// A message to one of our services that it does not answer.
    ServiceIgnored => "service message ignored",
}

/// A count for each reason.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self([0; DropReason::ALL.len()])
    }
}

impl Drops {
    /// Counts one.
    pub fn count(&mut self, reason: DropReason) {
        if let Some(count) = self.0.get_mut(reason as usize) {
            *count = count.wrapping_add(1);
        }
    }

    /// How often this has happened.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// All reasons that have happened.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&r| (r, self.get(r))).filter(|&(_, n)| n > 0)
    }
}

impl fmt::Debug for Drops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
