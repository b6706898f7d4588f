//! IPv4 headers (RFC 791). Options are skipped when read and never written.

use super::{Error, Result, array_at, checksum, put, u8_at, u16_at};
use std::net::Ipv4Addr;

/// Bytes of a header without options: what [`Header::emit`] writes.
pub const LEN: usize = 20;

const RESERVED: u16 = 0x8000;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

/// An IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
    /// The protocol of the payload ([`super::protocol`]).
    pub protocol: u8,
    /// Time to live.
    pub ttl: u8,
    /// Bytes behind the header: total length less header length. What lies behind those in a frame
    /// is padding.
    pub payload_len: u16,
    /// Bytes of this header with its options, 20 to 60; not written.
    pub header_len: usize,
    /// Which datagram a fragment belongs to.
    pub identification: u16,
    /// Whether routers may not fragment it.
    pub dont_fragment: bool,
    /// Whether another fragment of the datagram follows.
    pub more_fragments: bool,
    /// Where the payload belongs in its datagram, in bytes: a multiple of 8.
    pub fragment_offset: u16,
}

impl Header {
    /// A header as we send them: identification 0, not to be fragmented, TTL 255.
    pub const fn new(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, payload_len: u16) -> Self {
        Self {
            src,
            dst,
            protocol,
            ttl: 255,
            payload_len,
            header_len: LEN,
            identification: 0,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
        }
    }

    /// Whether this is a piece of a larger datagram.
    pub const fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset != 0
    }

    /// Reads the header at the start of `bytes`, which may be a copy of only the first bytes of a
    /// packet; `available` bytes are really there behind the Ethernet header. The checksum is not
    /// verified: nothing between the guest and us can have changed it.
    ///
    /// # Errors
    /// [`Error::Truncated`] when the header is not all in `bytes` or the packet not all in
    /// `available`; [`Error::Malformed`] for a wrong version, a header length below 20, a total
    /// length below that, or the reserved flag.
    pub fn parse(bytes: &[u8], available: usize) -> Result<Self> {
        let first = u8_at(bytes, 0)?;
        let header_len = usize::from(first & 0x0f) * 4;
        if first >> 4 != 4 || header_len < LEN {
            return Err(Error::Malformed);
        }
        let total_len = u16_at(bytes, 2)?;
        if bytes.len() < header_len || available < usize::from(total_len) {
            return Err(Error::Truncated);
        }
        let payload_len = usize::from(total_len).checked_sub(header_len).ok_or(Error::Malformed)?;
        let flags = u16_at(bytes, 6)?;
        if flags & RESERVED != 0 {
            return Err(Error::Malformed);
        }
        Ok(Self {
            src: Ipv4Addr::from(array_at::<4>(bytes, 12)?),
            dst: Ipv4Addr::from(array_at::<4>(bytes, 16)?),
            protocol: u8_at(bytes, 9)?,
            ttl: u8_at(bytes, 8)?,
            payload_len: u16::try_from(payload_len).map_err(|_| Error::Malformed)?,
            header_len,
            identification: u16_at(bytes, 4)?,
            dont_fragment: flags & DONT_FRAGMENT != 0,
            more_fragments: flags & MORE_FRAGMENTS != 0,
            fragment_offset: (flags & OFFSET_MASK) << 3,
        })
    }

    /// The header as bytes, without options, checksum in place. A payload beyond 65 515 bytes does
    /// not fit a packet: the total length then says 65 535.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let flags = if self.dont_fragment { DONT_FRAGMENT } else { 0 }
            | if self.more_fragments { MORE_FRAGMENTS } else { 0 }
            | self.fragment_offset >> 3;
        let [l0, l1] = self.payload_len.saturating_add(20).to_be_bytes();
        let [i0, i1] = self.identification.to_be_bytes();
        let [f0, f1] = flags.to_be_bytes();
        let [s0, s1, s2, s3] = self.src.octets();
        let [d0, d1, d2, d3] = self.dst.octets();
        let mut bytes = [
            0x45,
            0,
            l0,
            l1,
            i0,
            i1,
            f0,
            f1,
            self.ttl,
            self.protocol,
            0,
            0,
            s0,
            s1,
            s2,
            s3,
            d0,
            d1,
            d2,
            d3,
        ];
        let sum = checksum::checksum(&bytes).to_be_bytes();
        put(&mut bytes, 10, &sum);
        bytes
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

    /// The header of an ordinary packet, from a capture (total length 115).
    const UDP: [u8; LEN] = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00,
        0x01, 0xc0, 0xa8, 0x00, 0xc7,
    ];

    #[test]
    fn an_ordinary_header_is_read_and_written() {
        let header = Header::parse(&UDP, 200).unwrap();
        let expected = Header {
            ttl: 64,
            ..Header::new(
                Ipv4Addr::new(192, 168, 0, 1),
                Ipv4Addr::new(192, 168, 0, 199),
                super::super::protocol::UDP,
                95,
            )
        };
        assert_eq!(header, expected);
        assert_eq!(header.to_bytes(), UDP);
    }

    #[test]
    fn lengths_are_checked_against_what_is_there() {
        assert_eq!(Header::parse(&UDP, 114), Err(Error::Truncated), "packet longer than frame");
        assert_eq!(Header::parse(&UDP[..19], 200), Err(Error::Truncated), "header cut off");
        assert!(Header::parse(&UDP, 115).is_ok(), "exactly there");
        for (at, value, error) in [
            (0, 0x44, Error::Malformed), // header of 16 bytes
            (0, 0x65, Error::Malformed), // version 6
            (0, 0x46, Error::Truncated), // options that the copy does not hold
            (3, 19, Error::Malformed),   // total length below header length
            (6, 0x80, Error::Malformed), // reserved flag
        ] {
            let mut bytes = UDP;
            bytes[at] = value;
            assert_eq!(Header::parse(&bytes, 200), Err(error), "byte {at} = {value:#x}");
        }
    }

    #[test]
    fn options_are_skipped() {
        let mut bytes = [0u8; 60];
        bytes[..20].copy_from_slice(&UDP);
        bytes[0] = 0x4f;
        let header = Header::parse(&bytes, 200).unwrap();
        assert_eq!((header.header_len, header.payload_len), (60, 55));
    }

    #[test]
    fn fragments_are_told_by_flag_or_offset() {
        let mut bytes = UDP;
        bytes[6..8].copy_from_slice(&0x2000u16.to_be_bytes());
        let first = Header::parse(&bytes, 200).unwrap();
        assert!(first.is_fragment() && first.more_fragments && first.fragment_offset == 0);
        bytes[6..8].copy_from_slice(&0x1fffu16.to_be_bytes());
        let last = Header::parse(&bytes, 200).unwrap();
        assert!(last.is_fragment() && !last.more_fragments && last.fragment_offset == 65_528);
    }

    proptest! {
        #[test]
        fn parse_never_panics_and_stays_inside(
            mut bytes in prop::collection::vec(any::<u8>(), 0..128),
            available in 0usize..70_000,
            likely: bool,
        ) {
            if likely && !bytes.is_empty() {
                bytes[0] = 0x45 | bytes[0] & 0x0f;
            }
            if let Ok(header) = Header::parse(&bytes, available) {
                prop_assert!(header.header_len <= bytes.len());
                prop_assert!(header.header_len + usize::from(header.payload_len) <= available);
            }
        }

        #[test]
        fn parse_undoes_emit(
            src: u32, dst: u32, protocol: u8, ttl: u8, payload_len in 0u16..=65_515,
            identification: u16, dont_fragment: bool, more_fragments: bool, offset in 0u16..0x2000,
        ) {
            let header = Header {
                src: Ipv4Addr::from_bits(src),
                dst: Ipv4Addr::from_bits(dst),
                protocol,
                ttl,
                payload_len,
                header_len: LEN,
                identification,
                dont_fragment,
                more_fragments,
                fragment_offset: offset * 8,
            };
            let mut out = [0; LEN];
            header.emit(&mut out);
            prop_assert_eq!(checksum::checksum(&out), 0);
            prop_assert_eq!(Header::parse(&out, 65_535), Ok(header));
        }
    }
}
