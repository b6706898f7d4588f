//! The first ten bytes of a virtio-net header (virtio 1.3 5.1.6) as [`Offload`] and back: what a
//! tap has in front of each frame, and a ring with two bytes more. Little endian.

use super::{LinkCaps, Offload, PartialChecksum, Segmentation, SegmentationKind};

/// Bytes of the header, as far as it is common.
pub(super) const LEN: usize = 10;

/// `flags`: the checksum is partial.
const NEEDS_CSUM: u8 = 1;

/// `gso_type`.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

/// Reads a header; `None` for what is not `allowed` or does not exist: a partial checksum or a
/// segmentation that was not agreed on, old ones (UFO, ECN), or segments of no bytes. Unknown flags
/// are ignored, as the standard wants. UDP has one number for both families: one of them is enough.
pub(super) fn parse(header: &[u8; LEN], allowed: &LinkCaps) -> Option<Offload> {
    let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = *header;
    let mut offload = Offload::default();
    if flags & NEEDS_CSUM != 0 {
        if !allowed.checksum {
            return None;
        }
        let start = u16::from_le_bytes([s0, s1]);
        offload.checksum = Some(PartialChecksum { start, offset: u16::from_le_bytes([o0, o1]) });
    }
    let kind = match gso_type {
        GSO_NONE => return Some(offload),
        GSO_TCPV4 => SegmentationKind::Tcp4,
        GSO_TCPV6 => SegmentationKind::Tcp6,
        GSO_UDP_L4 => SegmentationKind::Udp,
        _ => return None,
    };
    let size = u16::from_le_bytes([g0, g1]);
    if !is_allowed(kind, allowed) || size == 0 {
        return None;
    }
    let header_len = u16::from_le_bytes([h0, h1]);
    offload.segmentation = Some(Segmentation { kind, size, header_len });
    Some(offload)
}

/// Writes a header. What is not `allowed` (a bug of the caller's, who was told) is left out.
pub(super) fn emit(offload: &Offload, allowed: &LinkCaps) -> [u8; LEN] {
    let mut header = [0; LEN];
    if let Some(partial) = offload.checksum.filter(|_| allowed.checksum) {
        header[0] = NEEDS_CSUM;
        header[6..8].copy_from_slice(&partial.start.to_le_bytes());
        header[8..10].copy_from_slice(&partial.offset.to_le_bytes());
    }
    if let Some(cut) = offload.segmentation.filter(|cut| is_allowed(cut.kind, allowed)) {
        header[1] = match cut.kind {
            SegmentationKind::Tcp4 => GSO_TCPV4,
            SegmentationKind::Tcp6 => GSO_TCPV6,
            SegmentationKind::Udp => GSO_UDP_L4,
        };
        header[2..4].copy_from_slice(&cut.header_len.to_le_bytes());
        header[4..6].copy_from_slice(&cut.size.to_le_bytes());
    }
    header
}

const fn is_allowed(kind: SegmentationKind, allowed: &LinkCaps) -> bool {
    match kind {
        SegmentationKind::Tcp4 => allowed.tcp4_segmentation,
        SegmentationKind::Tcp6 => allowed.tcp6_segmentation,
        SegmentationKind::Udp => allowed.udp4_segmentation || allowed.udp6_segmentation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn caps(bits: u8) -> LinkCaps {
        LinkCaps {
            checksum: bits & 1 != 0,
            tcp4_segmentation: bits & 2 != 0,
            tcp6_segmentation: bits & 4 != 0,
            udp4_segmentation: bits & 8 != 0,
            udp6_segmentation: bits & 16 != 0,
            max_frame: 0,
        }
    }

    #[test]
    fn headers_that_were_not_agreed_on_are_refused() {
        let tcp4 = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0];
        let udp = [1, 5, 42, 0, 0xb4, 5, 34, 0, 6, 0];
        let cases: &[(&str, [u8; LEN], u8, bool)] = &[
            ("tcp4", tcp4, 1 | 2, true),
            ("tcp4 where only tcp6 may be", tcp4, 1 | 4, false),
            ("partial checksum where none may be", tcp4, 2, false),
            ("udp where IPv6 may", udp, 1 | 16, true),
            ("udp where none may", udp, 1 | 2 | 4, false),
            ("segments of no bytes", [1, 1, 54, 0, 0, 0, 34, 0, 16, 0], 31, false),
            ("UFO", [1, 3, 54, 0, 9, 0, 34, 0, 6, 0], 31, false),
            ("ECN bit", [1, 0x81, 54, 0, 9, 0, 34, 0, 6, 0], 31, false),
            ("unknown flags", [0xfe, 0, 0, 0, 0, 0, 0, 0, 0, 0], 31, true),
            ("nothing, where nothing may be", [0; LEN], 0, true),
        ];
        for (name, header, allowed, good) in cases {
            assert_eq!(parse(header, &caps(*allowed)).is_some(), *good, "{name}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_was_allowed_and_reads_the_same_again(header: [u8; LEN], allowed in 0u8..32) {
            let allowed = caps(allowed);
            if let Some(offload) = parse(&header, &allowed) {
                prop_assert!(offload.checksum.is_none() || allowed.checksum);
                prop_assert!(offload.segmentation.is_none_or(|cut| cut.size > 0));
                prop_assert_eq!(parse(&emit(&offload, &allowed), &allowed), Some(offload));
                let bare = emit(&offload, &LinkCaps::default());
                prop_assert_eq!(bare, [0; LEN]);
            }
        }
    }
}
