//! Ethernet II headers (IEEE 802.3, RFC 894).

use super::{MacAddr, Result, array_at, put, u16_at};

/// Bytes of a header.
pub const LEN: usize = 14;

/// What a frame carries, by the EtherTypes that we speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtherType {
    /// IPv4 (RFC 894).
    Ipv4,
    /// ARP (RFC 826).
    Arp,
    /// IPv6 (RFC 2464).
    Ipv6,
    /// Anything else, VLAN tags among it.
    Other(u16),
}

impl From<u16> for EtherType {
    fn from(number: u16) -> Self {
        match number {
            0x0800 => Self::Ipv4,
            0x0806 => Self::Arp,
            0x86dd => Self::Ipv6,
            other => Self::Other(other),
        }
    }
}

impl From<EtherType> for u16 {
    fn from(ether_type: EtherType) -> Self {
        match ether_type {
            EtherType::Ipv4 => 0x0800,
            EtherType::Arp => 0x0806,
            EtherType::Ipv6 => 0x86dd,
            EtherType::Other(other) => other,
        }
    }
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who is to get it.
    pub dst: MacAddr,
    /// Who sends it.
    pub src: MacAddr,
    /// What it carries.
    pub ether_type: EtherType,
}

impl Header {
    /// Reads the header at the start of a frame.
    ///
    /// # Errors
    /// [`super::Error::Truncated`] below [`LEN`] bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Ok(Self {
            dst: MacAddr(array_at(bytes, 0)?),
            src: MacAddr(array_at(bytes, 6)?),
            ether_type: u16_at(bytes, 12)?.into(),
        })
    }

    /// The header as bytes.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let [d0, d1, d2, d3, d4, d5] = self.dst.0;
        let [s0, s1, s2, s3, s4, s5] = self.src.0;
        let [t0, t1] = u16::from(self.ether_type).to_be_bytes();
        [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1]
    }

    /// Writes the header to the start of `out`, which has room for [`LEN`] bytes.
    pub fn emit(&self, out: &mut [u8]) {
        put(out, 0, &self.to_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parse_takes_anything_and_emit_undoes_it(
            bytes in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            match Header::parse(&bytes) {
                Ok(header) => prop_assert_eq!(&header.to_bytes()[..], &bytes[..LEN]),
                Err(_) => prop_assert!(bytes.len() < LEN),
            }
        }
    }
}
