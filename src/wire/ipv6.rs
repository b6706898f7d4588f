//! IPv6 headers and the way through extension headers (RFC 8200).

use super::{Error, Result, array_at, put, u8_at, u16_at, u32_at};
use std::net::Ipv6Addr;

/// Bytes of the fixed header.
pub const LEN: usize = 40;

/// Extension headers that we walk; each number is a next header value (RFC 8200 4.1, RFC 4302).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// More extension headers than this are malformed to us; no honest sender comes near.
const MAX_EXTENSIONS: usize = 8;
/// More bytes of extension headers than this are malformed to us.
const MAX_EXTENSION_BYTES: usize = 256;

/// An IPv6 header. The traffic class is not looked at and written as 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source address.
    pub src: Ipv6Addr,
    /// Destination address.
    pub dst: Ipv6Addr,
    /// What follows: an extension header or the payload's protocol.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Flow label, 20 bits (RFC 6437).
    pub flow_label: u32,
    /// Bytes behind the header, extension headers among them.
    pub payload_len: u16,
}

impl Header {
    /// Reads the header at the start of `bytes`, which may be a copy of only the first bytes of a
    /// packet; `available` bytes are really there behind the Ethernet header. Bytes behind the
    /// payload length are padding.
    ///
    /// # Errors
    /// [`Error::Truncated`] when the header is not all in `bytes` or the packet not all in
    /// `available`; [`Error::Malformed`] for a wrong version.
    pub fn parse(bytes: &[u8], available: usize) -> Result<Self> {
        let first = u32_at(bytes, 0)?;
        if first >> 28 != 6 {
            return Err(Error::Malformed);
        }
        let payload_len = u16_at(bytes, 4)?;
        let dst = Ipv6Addr::from(array_at::<16>(bytes, 24)?);
        if available < LEN + usize::from(payload_len) {
            return Err(Error::Truncated);
        }
        Ok(Self {
            src: Ipv6Addr::from(array_at::<16>(bytes, 8)?),
            dst,
            next_header: u8_at(bytes, 6)?,
            hop_limit: u8_at(bytes, 7)?,
            flow_label: first & 0x000f_ffff,
            payload_len,
        })
    }

    /// The header as bytes.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let first = 6 << 28 | self.flow_label & 0x000f_ffff;
        put(&mut bytes, 0, &first.to_be_bytes());
        put(&mut bytes, 4, &self.payload_len.to_be_bytes());
        put(&mut bytes, 6, &[self.next_header, self.hop_limit]);
        put(&mut bytes, 8, &self.src.octets());
        put(&mut bytes, 24, &self.dst.octets());
        bytes
    }

    /// Writes the header to the start of `out`, which has room for [`LEN`] bytes.
    pub fn emit(&self, out: &mut [u8]) {
        put(out, 0, &self.to_bytes());
    }
}

/// Where the extension headers end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// The number of the first header that is none of the extension headers we walk: a transport
    /// protocol, or something to drop (no next header 59, ESP 50, mobility 135, ...).
    pub protocol: u8,
    /// Where it begins, in bytes behind the fixed header.
    pub offset: usize,
    /// Set for a real fragment: then `offset` is where the fragment's data begins and `protocol`
    /// the first header of the **reassembled** part, which may be an extension header again.
    pub fragment: Option<Fragment>,
}

/// What a fragment header says. Atomic fragments (RFC 6946) are no fragments to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Which packet the fragment belongs to.
    pub id: u32,
    /// Where its data belongs, in bytes: a multiple of 8.
    pub offset: u16,
    /// Whether another fragment follows.
    pub more: bool,
}

/// Walks the extension headers. `bytes` begins behind the fixed header (possibly a copy of only
/// the first bytes), `next_header` is the fixed header's, `available` its payload length.
///
/// # Errors
/// [`Error::Truncated`] when a header reaches beyond `bytes` or `available`; [`Error::Malformed`]
/// for a hop-by-hop header that is not the first, or too many headers.
pub fn walk_extensions(bytes: &[u8], next_header: u8, available: usize) -> Result<Transport> {
    let (mut protocol, mut offset) = (next_header, 0usize);
    for index in 0..=MAX_EXTENSIONS {
        let units = match protocol {
            HOP_BY_HOP if index > 0 => return Err(Error::Malformed),
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => 8,
            AUTHENTICATION => 4,
            FRAGMENT => 0,
            _ => return Ok(Transport { protocol, offset, fragment: None }),
        };
        let len = match (units, usize::from(u8_at(bytes, offset + 1)?)) {
            (8, n) => (n + 1) * 8,
            (4, n) => (n + 2) * 4,
            _ => 8,
        };
        let next = u8_at(bytes, offset)?;
        let end = offset + len;
        if end > bytes.len() || end > available {
            return Err(Error::Truncated);
        }
        if end > MAX_EXTENSION_BYTES {
            return Err(Error::Malformed);
        }
        if protocol == FRAGMENT {
            let field = u16_at(bytes, offset + 2)?;
            let fragment = Fragment {
                id: u32_at(bytes, offset + 4)?,
                offset: field & 0xfff8,
                more: field & 1 != 0,
            };
            if fragment.more || fragment.offset != 0 {
                return Ok(Transport { protocol: next, offset: end, fragment: Some(fragment) });
            }
        }
        (protocol, offset) = (next, end);
    }
    Err(Error::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UDP: u8 = 17;

    fn walk(bytes: &[u8], first: u8) -> Result<Transport> {
        walk_extensions(bytes, first, bytes.len())
    }

    fn plain(protocol: u8, offset: usize) -> Result<Transport> {
        Ok(Transport { protocol, offset, fragment: None })
    }

    #[test]
    fn a_header_is_checked_against_what_is_there() {
        let header = Header {
            src: Ipv6Addr::LOCALHOST,
            dst: Ipv6Addr::from_bits(0xfe80 << 112 | 2),
            next_header: UDP,
            hop_limit: 64,
            flow_label: 0xabcde,
            payload_len: 8,
        };
        let bytes = header.to_bytes();
        assert_eq!(bytes[..8], [0x60, 0x0a, 0xbc, 0xde, 0, 8, 17, 64]);
        assert_eq!(Header::parse(&bytes, 48), Ok(header));
        assert_eq!(Header::parse(&bytes, 60), Ok(header), "padded frames are trimmed");
        assert_eq!(Header::parse(&bytes, 47), Err(Error::Truncated));
        assert_eq!(Header::parse(&bytes[..39], 48), Err(Error::Truncated));
        let mut bytes = bytes;
        bytes[0] = 0x45;
        assert_eq!(Header::parse(&bytes, 48), Err(Error::Malformed));
    }

    #[test]
    fn no_extension_is_no_walk() {
        assert_eq!(walk(&[], UDP), plain(UDP, 0));
        for other in [59, 50, 135, 139, 140, 253, 254, 255] {
            assert_eq!(walk(&[0; 64], other), plain(other, 0), "{other} is for the caller to drop");
        }
    }

    #[test]
    fn options_routing_and_authentication_are_skipped_by_their_own_lengths() {
        assert_eq!(walk(&[UDP, 0, 1, 4, 0, 0, 0, 0], DESTINATION_OPTIONS), plain(UDP, 8));
        let mut bytes = [0u8; 64];
        bytes[0] = ROUTING; // hop-by-hop, 8 bytes
        bytes[8] = AUTHENTICATION; // routing, 24 bytes
        bytes[9] = 2;
        bytes[32] = UDP; // authentication, 16 bytes
        bytes[33] = 2;
        assert_eq!(walk(&bytes, HOP_BY_HOP), plain(UDP, 48));
    }

    #[test]
    fn hop_by_hop_comes_first_or_not_at_all() {
        let bytes = [HOP_BY_HOP, 0, 0, 0, 0, 0, 0, 0, UDP, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(walk(&bytes, DESTINATION_OPTIONS), Err(Error::Malformed));
    }

    #[test]
    fn atomic_fragments_pass_and_others_are_reported() {
        let mut bytes = [UDP, 0xff, 0, 0, 1, 2, 3, 4];
        assert_eq!(walk(&bytes, FRAGMENT), plain(UDP, 8));
        bytes[2..4].copy_from_slice(&(1480u16 | 1).to_be_bytes());
        let fragment = Some(Fragment { id: 0x0102_0304, offset: 1480, more: true });
        assert_eq!(
            walk(&bytes, FRAGMENT),
            Ok(Transport { protocol: UDP, offset: 8, fragment }),
            "data of the fragment begins behind its header"
        );
    }

    #[test]
    fn lengths_beyond_the_packet_or_the_copy_are_truncated() {
        assert_eq!(walk(&[UDP, 1, 0, 0, 0, 0, 0, 0], DESTINATION_OPTIONS), Err(Error::Truncated));
        assert_eq!(walk(&[UDP], DESTINATION_OPTIONS), Err(Error::Truncated));
        assert_eq!(walk(&[], FRAGMENT), Err(Error::Truncated));
        let bytes = [UDP, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(walk_extensions(&bytes, DESTINATION_OPTIONS, 7), Err(Error::Truncated));
    }

    #[test]
    fn chains_without_end_are_malformed() {
        let mut many = Vec::new();
        for _ in 0..9 {
            many.extend([DESTINATION_OPTIONS, 0, 0, 0, 0, 0, 0, 0]);
        }
        assert_eq!(walk(&many, DESTINATION_OPTIONS), Err(Error::Malformed));
        many[56] = UDP;
        assert_eq!(walk(&many, DESTINATION_OPTIONS), plain(UDP, 64), "eight are allowed");
        let mut long = vec![0u8; 600];
        (long[0], long[1]) = (UDP, 32);
        assert_eq!(walk(&long, DESTINATION_OPTIONS), Err(Error::Malformed), "264 bytes");
    }

    proptest! {
        #[test]
        fn walking_never_panics_and_stays_inside(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0u8..4, Just(60), Just(44)], 0..300),
            first in prop_oneof![any::<u8>(), Just(0), Just(43), Just(44), Just(51), Just(60)],
            available in 0usize..400,
        ) {
            if let Ok(end) = walk_extensions(&bytes, first, available) {
                prop_assert!(end.offset <= bytes.len() && end.offset <= available);
                prop_assert!(end.offset <= MAX_EXTENSION_BYTES);
            }
        }

        #[test]
        fn parse_never_panics_and_undoes_emit(
            mut bytes in prop::collection::vec(any::<u8>(), 0..100),
            available in 0usize..70_000,
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = 0x60 | *first >> 7;
            }
            if let Ok(header) = Header::parse(&bytes, available) {
                prop_assert!(LEN + usize::from(header.payload_len) <= available);
                let mut out = [0; LEN];
                header.emit(&mut out);
                prop_assert_eq!(Header::parse(&out, available), Ok(header));
            }
        }
    }
}
