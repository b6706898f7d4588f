//! The virtio-net header (virtio 1.3 5.1.6) under the features of a driver.
//!
//! Always 12 bytes: we insist on VERSION_1, so `num_buffers` is always there.

use super::features;
use crate::link::{LinkCaps, Offload, virtio};

/// Bytes of the header.
pub(super) const LEN: usize = 12;

/// `flags`: the checksum is right.
const DATA_VALID: u8 = 2;

/// Reads what a driver wrote; `None` for what it may not write under these features.
pub(super) fn parse(header: &[u8; LEN], features: u64) -> Option<Offload> {
    virtio::parse(header.first_chunk()?, &from_driver(features))
}

/// Writes what a driver shall read. What it does not want to see (a bug of the caller's, who was
/// told by [`caps()`]) is left out.
pub(super) fn emit(offload: &Offload, buffers: u16, features: u64) -> [u8; LEN] {
    let mut header = [0; LEN];
    let common = virtio::emit(offload, &caps(features, 0));
    header[..virtio::LEN].copy_from_slice(&common);
    if offload.checksum.is_none() && features & features::GUEST_CSUM != 0 {
        header[0] = DATA_VALID;
    }
    header[virtio::LEN..].copy_from_slice(&buffers.to_le_bytes());
    header
}

/// What a driver may send under these features.
const fn from_driver(features: u64) -> LinkCaps {
    let udp = features & features::HOST_USO != 0;
    LinkCaps {
        checksum: features & features::CSUM != 0,
        tcp4_segmentation: features & features::HOST_TSO4 != 0,
        tcp6_segmentation: features & features::HOST_TSO6 != 0,
        udp4_segmentation: udp,
        udp6_segmentation: udp,
        max_frame: 0,
    }
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
    use crate::link::{PartialChecksum, Segmentation, SegmentationKind};

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
