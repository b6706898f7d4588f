//! The virtio-net header (virtio 1.3 5.1.6) as [`Offload`] and back.
//!
//! Little endian, always 12 bytes: we insist on VERSION_1, so `num_buffers` is always there.

use super::features;
use crate::link::{LinkCaps, Offload, PartialChecksum, Segmentation, SegmentationKind};

/// Bytes of the header.
pub(super) const LEN: usize = 12;

/// `flags`: the checksum is partial.
const NEEDS_CSUM: u8 = 1;
/// `flags`: the checksum is right.
const DATA_VALID: u8 = 2;

/// `gso_type`.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

/// Reads what a driver wrote; `None` for what it may not write under these features: a partial
/// checksum or a segmentation that was not negotiated or does not exist (UFO, ECN), or segments of
/// no bytes. Unknown flags are ignored, as the standard wants.
pub(super) fn parse(header: &[u8; LEN], features: u64) -> Option<Offload> {
    let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, ..] = *header;
    let mut offload = Offload::default();
    if flags & NEEDS_CSUM != 0 {
        if features & features::CSUM == 0 {
            return None;
        }
        let start = u16::from_le_bytes([s0, s1]);
        offload.checksum = Some(PartialChecksum { start, offset: u16::from_le_bytes([o0, o1]) });
    }
    let (kind, needs) = match gso_type {
        GSO_NONE => return Some(offload),
        GSO_TCPV4 => (SegmentationKind::Tcp4, features::HOST_TSO4),
        GSO_TCPV6 => (SegmentationKind::Tcp6, features::HOST_TSO6),
        GSO_UDP_L4 => (SegmentationKind::Udp, features::HOST_USO),
        _ => return None,
    };
    let size = u16::from_le_bytes([g0, g1]);
    if features & needs == 0 || size == 0 {
        return None;
    }
    let header_len = u16::from_le_bytes([h0, h1]);
    offload.segmentation = Some(Segmentation { kind, size, header_len });
    Some(offload)
}

/// Writes what a driver shall read. What it does not want to see (a bug of the caller's, who was
/// told by [`caps()`]) is left out.
pub(super) fn emit(offload: &Offload, buffers: u16, features: u64) -> [u8; LEN] {
    let mut header = [0; LEN];
    let has = |bits| features & bits != 0;
    if has(features::GUEST_CSUM) {
        header[0] = if offload.checksum.is_some() { NEEDS_CSUM } else { DATA_VALID };
        if let Some(c) = offload.checksum {
            header[6..8].copy_from_slice(&c.start.to_le_bytes());
            header[8..10].copy_from_slice(&c.offset.to_le_bytes());
        }
    }
    if let Some(s) = offload.segmentation {
        let (gso_type, needs) = match s.kind {
            SegmentationKind::Tcp4 => (GSO_TCPV4, features::GUEST_TSO4),
            SegmentationKind::Tcp6 => (GSO_TCPV6, features::GUEST_TSO6),
            SegmentationKind::Udp => (GSO_UDP_L4, features::GUEST_USO4 | features::GUEST_USO6),
        };
        if has(needs) {
            header[1] = gso_type;
            header[2..4].copy_from_slice(&s.header_len.to_le_bytes());
            header[4..6].copy_from_slice(&s.size.to_le_bytes());
        }
    }
    header[10..12].copy_from_slice(&buffers.to_le_bytes());
    header
}

/// What may be sent under these features, in frames up to `max_frame`.
pub(super) const fn caps(features: u64, max_frame: usize) -> LinkCaps {
    LinkCaps {
        checksum: features & features::GUEST_CSUM != 0,
        tcp4_segmentation: features & features::GUEST_TSO4 != 0,
        tcp6_segmentation: features & features::GUEST_TSO6 != 0,
        udp4_segmentation: features & features::GUEST_USO4 != 0,
        udp6_segmentation: features & features::GUEST_USO6 != 0,
        max_frame,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: u64 = features::ALL;

    #[test]
    fn headers_that_were_not_negotiated_are_refused() {
        let tcp4 = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];
        let cases: &[(&str, [u8; LEN], u64, bool)] = &[
            ("nothing asked for, nothing negotiated", [0; LEN], 0, true),
            ("partial checksum without CSUM", [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], 0, false),
            ("tcp4 with all", tcp4, EVERYTHING, true),
            ("tcp4 without HOST_TSO4", tcp4, EVERYTHING & !features::HOST_TSO4, false),
            ("segments of no bytes", [1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0], EVERYTHING, false),
            ("UFO", [1, 3, 54, 0, 9, 0, 34, 0, 6, 0, 0, 0], EVERYTHING, false),
            ("ECN bit", [1, 0x81, 54, 0, 9, 0, 34, 0, 6, 0, 0, 0], EVERYTHING, false),
            ("unknown flags", [0xfe, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], EVERYTHING, true),
        ];
        for (name, header, features, good) in cases {
            assert_eq!(parse(header, *features).is_some(), *good, "{name}");
        }
    }

    #[test]
    fn what_is_emitted_reads_back() {
        for kind in [SegmentationKind::Tcp4, SegmentationKind::Tcp6, SegmentationKind::Udp] {
            let offload = Offload {
                checksum: Some(PartialChecksum { start: 34, offset: 16 }),
                segmentation: Some(Segmentation { kind, size: 1448, header_len: 66 }),
            };
            let header = emit(&offload, 0x1234, EVERYTHING);
            assert_eq!(parse(&header, EVERYTHING), Some(offload));
            assert_eq!(header[10..], [0x34, 0x12]);
        }
    }

    #[test]
    fn a_driver_without_offloads_sees_an_empty_header() {
        let offload = Offload {
            checksum: Some(PartialChecksum { start: 34, offset: 16 }),
            segmentation: Some(Segmentation {
                kind: SegmentationKind::Tcp4,
                size: 1448,
                header_len: 66,
            }),
        };
        assert_eq!(emit(&offload, 1, 0), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(emit(&Offload::default(), 1, features::GUEST_CSUM)[0], DATA_VALID);
    }
}
