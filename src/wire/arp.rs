//! ARP for IPv4 over Ethernet (RFC 826). Other combinations are malformed to us.

use super::{Error, MacAddr, Result, array_at, put, u16_at};
use std::net::Ipv4Addr;

/// Bytes of a packet.
pub const LEN: usize = 28;

/// Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4.
const PREFIX: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// What the sender wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender address is at the sender's hardware address.
    Reply,
}

/// An ARP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Request or reply.
    pub operation: Operation,
    /// The sender's Ethernet address.
    pub sender_mac: MacAddr,
    /// The sender's IPv4 address; unspecified in probes (RFC 5227).
    pub sender_addr: Ipv4Addr,
    /// The target's Ethernet address; meaningless in requests.
    pub target_mac: MacAddr,
    /// The target's IPv4 address.
    pub target_addr: Ipv4Addr,
}

impl Packet {
    /// Reads the packet behind an Ethernet header; padding is ignored.
    ///
    /// # Errors
    /// [`Error::Truncated`] below [`LEN`] bytes, [`Error::Malformed`] for other address kinds and
    /// operations.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if array_at(bytes, 0)? != PREFIX {
            return Err(Error::Malformed);
        }
        let operation = match u16_at(bytes, 6)? {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return Err(Error::Malformed),
        };
        Ok(Self {
            operation,
            sender_mac: MacAddr(array_at(bytes, 8)?),
            sender_addr: Ipv4Addr::from(array_at::<4>(bytes, 14)?),
            target_mac: MacAddr(array_at(bytes, 18)?),
            target_addr: Ipv4Addr::from(array_at::<4>(bytes, 24)?),
        })
    }

    /// Writes the packet to the start of `out`, which has room for [`LEN`] bytes.
    pub fn emit(&self, out: &mut [u8]) {
        let operation: u16 = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        let mut bytes = [0; LEN];
        put(&mut bytes, 0, &PREFIX);
        put(&mut bytes, 6, &operation.to_be_bytes());
        put(&mut bytes, 8, &self.sender_mac.0);
        put(&mut bytes, 14, &self.sender_addr.octets());
        put(&mut bytes, 18, &self.target_mac.0);
        put(&mut bytes, 24, &self.target_addr.octets());
        put(out, 0, &bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// "Who has 192.0.2.1? Tell 192.0.2.2", by hand from RFC 826.
    const REQUEST: [u8; LEN] =
        [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 192, 0, 2, 2, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1];

    #[test]
    fn a_request_is_read_and_written() {
        let packet = Packet::parse(&REQUEST).unwrap();
        assert_eq!(
            packet,
            Packet {
                operation: Operation::Request,
                sender_mac: MacAddr([2, 0, 0, 0, 0, 9]),
                sender_addr: Ipv4Addr::new(192, 0, 2, 2),
                target_mac: MacAddr([0; 6]),
                target_addr: Ipv4Addr::new(192, 0, 2, 1),
            }
        );
        let mut out = [0xff; LEN];
        packet.emit(&mut out);
        assert_eq!(out, REQUEST);
    }

    #[test]
    fn other_address_kinds_and_operations_are_malformed() {
        for (at, value) in [(1, 6), (2, 0x86), (4, 8), (5, 16), (7, 3), (6, 1)] {
            let mut bytes = REQUEST;
            bytes[at] = value;
            assert_eq!(Packet::parse(&bytes), Err(Error::Malformed), "byte {at}");
        }
        assert_eq!(Packet::parse(&REQUEST[..27]), Err(Error::Truncated));
    }

    proptest! {
        #[test]
        fn parse_never_panics_and_emit_undoes_it(
            mut bytes in prop::collection::vec(any::<u8>(), 0..60),
            likely: bool,
        ) {
            if likely && bytes.len() >= 8 {
                bytes[..8].copy_from_slice(&REQUEST[..8]);
            }
            if let Ok(packet) = Packet::parse(&bytes) {
                let mut out = [0; LEN];
                packet.emit(&mut out);
                prop_assert_eq!(&out[..], &bytes[..LEN]);
            }
        }
    }
}
