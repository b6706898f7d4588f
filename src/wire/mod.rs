//! Wire formats: bytes to values and back. No state, no I/O, no unsafe; knows nothing of us.
//!
//! Each format has a *repr*: a value that cannot hold nonsense, with `parse(&[u8]) -> Result<..>`,
//! `emit(&self, &mut [u8])` and `len()`. `parse` takes any bytes without panicking and checks
//! every length with `get`; `emit` writes exactly `len()` bytes and asks for at least that much
//! room. Numbers in a repr are in host order; only the bytes are in network order.

pub mod seq;

use std::fmt;

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
