//! The Internet checksum (RFC 1071).
//!
//! Sums run over native-endian words: the one's-complement sum of byte-swapped words is the
//! byte-swapped sum, so only the 16-bit result is ever swapped. Every `u16` that goes in or comes
//! out is a plain number in host order, to be written with `to_be_bytes` like any other field.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A one's-complement sum in the making.
///
/// Bytes may be added in chunks of any length: a chunk that begins at an odd offset is accounted
/// for. `add_u16` and the pseudo-headers belong at even offsets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Of native-endian words; any carries are folded at the end.
    total: u64,
    /// Whether an odd number of bytes was added so far.
    odd: bool,
}

impl Sum {
    /// Nothing added yet.
    pub const fn new() -> Self {
        Self { total: 0, odd: false }
    }

    /// Adds the next bytes.
    pub fn add_bytes(&mut self, bytes: &[u8]) {
        let sum = fold(sum_native(bytes));
        // At an odd offset each byte stands in the other half of its word.
        let sum = if self.odd { sum.swap_bytes() } else { sum };
        self.total = self.total.wrapping_add(u64::from(sum));
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// Adds a number of 16 bits, as it would be written at an even offset.
    pub fn add_u16(&mut self, value: u16) {
        self.total = self.total.wrapping_add(u64::from(value.to_be()));
    }

    /// Adds a number of 32 bits, as it would be written at an even offset.
    pub fn add_u32(&mut self, value: u32) {
        self.total = self.total.wrapping_add(u64::from(value.to_be()));
    }

    /// The sum, folded to 16 bits and **not** inverted: what stands in the checksum field of a
    /// packet that someone else is to complete (virtio's NEEDS_CSUM).
    pub const fn partial(self) -> u16 {
        u16::from_be(fold(self.total))
    }

    /// The checksum: the folded sum, inverted.
    pub const fn finish(self) -> u16 {
        !self.partial()
    }

    /// The checksum of a UDP datagram: 0 would mean "none" and is sent as all ones (RFC 768).
    pub const fn finish_udp(self) -> u16 {
        match self.finish() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

/// The pseudo-header of TCP, UDP over IPv4 (RFC 9293 3.1); `len` is that of header and payload.
pub fn pseudo_v4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, len: u32) -> Sum {
    let mut sum = Sum::new();
    sum.add_u32(src.to_bits());
    sum.add_u32(dst.to_bits());
    sum.add_u16(u16::from(protocol));
    sum.add_u32(len);
    sum
}

/// The pseudo-header of upper layers over IPv6 (RFC 8200 8.1); `len` is that of header and
/// payload.
pub fn pseudo_v6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, len: u32) -> Sum {
    let mut sum = Sum::new();
    sum.add_bytes(&src.octets());
    sum.add_bytes(&dst.octets());
    sum.add_u16(u16::from(protocol));
    sum.add_u32(len);
    sum
}

/// The pseudo-header of either family; `None` when the two addresses are of different ones.
pub fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, len: u32) -> Option<Sum> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => Some(pseudo_v4(src, dst, protocol, len)),
        (IpAddr::V6(src), IpAddr::V6(dst)) => Some(pseudo_v6(src, dst, protocol, len)),
        _ => None,
    }
}

/// The checksum of `bytes` alone. Over bytes that contain a correct checksum it is 0.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = Sum::new();
    sum.add_bytes(bytes);
    sum.finish()
}

/// Bytes that are summed in one step: eight lanes of 64 bits take 32 bits each, which the
/// compiler turns into vector additions that never carry.
const STEP: usize = 32;

/// The sum of native-endian words of `bytes`, padded with a zero byte if odd; may carry beyond 16
/// bits. Lanes would overflow behind 128 GiB.
fn sum_native(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; STEP / 4];
    let (steps, rest) = bytes.as_chunks::<STEP>();
    for step in steps {
        let (words, _) = step.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = lane.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
        }
    }
    let (words, tail) = rest.as_chunks::<2>();
    let mut sum = lanes.iter().fold(0u64, |sum, &lane| sum.wrapping_add(u64::from(fold(lane))));
    for word in words {
        sum = sum.wrapping_add(u64::from(u16::from_ne_bytes(*word)));
    }
    if let [last] = tail {
        sum = sum.wrapping_add(u64::from(u16::from_ne_bytes([*last, 0])));
    }
    sum
}

/// Adds the carries back in until 16 bits are left.
const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071, word by word in network order.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            let word = [pair[0], pair.get(1).copied().unwrap_or(0)];
            sum += u32::from(u16::from_be_bytes(word));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071_sums_up() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&bytes), !0xddf2);
    }

    #[test]
    fn a_real_ipv4_header_has_sum_zero() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8,
            0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(checksum(&header), 0);
    }

    #[test]
    fn pseudo_headers_equal_their_bytes() {
        let (a, b) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 7));
        let bytes = [192, 0, 2, 1, 198, 51, 100, 7, 0, 6, 0x12, 0x34];
        assert_eq!(pseudo_v4(a, b, 6, 0x1234).finish(), reference(&bytes));
        let (a, b) = (Ipv6Addr::LOCALHOST, Ipv6Addr::from_bits(0x2001_0db8 << 96));
        let mut bytes = [a.octets(), b.octets()].concat();
        bytes.extend([0, 0, 0x12, 0x34, 0, 0, 0, 58]);
        assert_eq!(pseudo_v6(a, b, 58, 0x1234).finish(), reference(&bytes));
        assert!(pseudo(a.into(), Ipv4Addr::LOCALHOST.into(), 6, 0).is_none());
    }

    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_all_ones() {
        let mut sum = Sum::new();
        sum.add_u16(0xffff);
        assert_eq!((sum.finish(), sum.finish_udp()), (0, 0xffff));
    }

    proptest! {
        #[test]
        fn any_bytes_sum_like_the_reference(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(checksum(&bytes), reference(&bytes));
        }

        #[test]
        fn borders_of_chunks_do_not_matter(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            cuts in prop::collection::vec(0usize..300, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let (mut sum, mut from) = (Sum::new(), 0);
            for cut in cuts {
                sum.add_bytes(&bytes[from..cut]);
                from = cut;
            }
            prop_assert_eq!(sum.finish(), reference(&bytes));
            prop_assert_eq!(!sum.partial(), sum.finish());
        }
    }
}
