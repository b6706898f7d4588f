//! Wire formats: bytes to values and back. No state, no I/O, no unsafe; knows nothing of us.
//!
//! Each format has a *repr*: a value that cannot hold nonsense, with `parse(&[u8]) -> Result<..>`,
//! `emit(&self, &mut [u8])` and `len()`. `parse` takes any bytes without panicking and checks
//! every length with `get`; `emit` writes exactly `len()` bytes and asks for at least that much
//! room (with less it writes nothing, and a debug build says so). Numbers in a repr are in host order; only the bytes are in network order.

pub mod arp;
pub mod checksum;
pub mod dhcpv4;
pub mod dhcpv6;
pub mod dns;
pub mod ethernet;
pub mod icmpv4;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod ndp;
pub mod seq;
pub mod tcp;
pub mod udp;

use std::fmt;
use std::net::Ipv6Addr;

/// An Ethernet address.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// All ones: everyone on the link.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether the group bit is set (multicast or broadcast).
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// The group that stands for an IPv6 multicast address (RFC 2464 7).
    pub const fn of_ipv6_multicast(group: Ipv6Addr) -> Self {
        let [.., a, b, c, d] = group.octets();
        Self([0x33, 0x33, a, b, c, d])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why bytes are not what they were taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Fewer bytes than the format, or a length field in it, asks for.
    Truncated,
    /// A field has a value that the format forbids.
    Malformed,
}

/// The outcome of parsing.
pub type Result<T> = std::result::Result<T, Error>;

/// IP protocol numbers and IPv6 next header values that mean something to us (IANA).
pub mod protocol {
    /// ICMP.
    pub const ICMPV4: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

/// The `N` bytes at `offset`.
fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N]> {
    bytes.get(offset..).and_then(<[u8]>::first_chunk).copied().ok_or(Error::Truncated)
}

/// The byte at `offset`.
fn u8_at(bytes: &[u8], offset: usize) -> Result<u8> {
    bytes.get(offset).copied().ok_or(Error::Truncated)
}

/// The number of 16 bits at `offset`.
fn u16_at(bytes: &[u8], offset: usize) -> Result<u16> {
    array_at(bytes, offset).map(u16::from_be_bytes)
}

/// The number of 32 bits at `offset`.
fn u32_at(bytes: &[u8], offset: usize) -> Result<u32> {
    array_at(bytes, offset).map(u32::from_be_bytes)
}

/// Copies `from` to `offset` of `out` if there is room for all of it.
fn put(out: &mut [u8], offset: usize, from: &[u8]) {
    let end = offset.saturating_add(from.len());
    if let Some(room) = out.get_mut(offset..end) {
        room.copy_from_slice(from);
    } else {
        debug_assert!(false, "emit asked for {end} bytes of room, got {}", out.len());
    }
}
