//! Offloads of the vhost-user device: what a driver may send and what it gets, for each combination
//! of what it takes.

mod common;

use common::driver::{out, room};
use common::frontend::{BUFFERS, Machine, Options};
use passt::link::vhost::features::{
    self, CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_USO4, GUEST_USO6, HOST_TSO4, HOST_TSO6,
    HOST_USO, MRG_RXBUF,
};
use passt::link::{
    Link, LinkCaps, Offload, PartialChecksum, Segmentation, SegmentationKind, Sink, Source,
};
use passt::span;

/// What a driver takes or does not.
const TOGGLES: [u64; 10] = [
    CSUM, GUEST_CSUM, HOST_TSO4, HOST_TSO6, HOST_USO, GUEST_TSO4, GUEST_TSO6, GUEST_USO4,
    GUEST_USO6, MRG_RXBUF,
];

/// Where frames to the guest go, in buffers of this size, or one for all where they are not merged.
const ROOM: u64 = BUFFERS + 0x10_0000;
const BUFFER: usize = 1600;

/// A frame as it is on the ring.
struct Case {
    name: &'static str,
    /// The first ten bytes of the virtio-net header, as the standard has them.
    header: [u8; 10],
    offload: Offload,
    len: usize,
    /// What a driver must have taken to send it: all of these.
    to_send: u64,
    /// And to get it: one of the last, if there are any.
    to_get: (u64, u64),
}

fn cases() -> [Case; 6] {
    let partial = |start, offset| Some(PartialChecksum { start, offset });
    let cut = |kind, header_len| Some(Segmentation { kind, size: 1400, header_len });
    let case = |name, header, checksum, segmentation, to_send, to_get| Case {
        name,
        header,
        offload: Offload { checksum, segmentation },
        len: if segmentation.is_some() { 9000 } else { 1514 },
        to_send,
        to_get,
    };
    use SegmentationKind::{Tcp4, Tcp6, Udp};
    // Flags, type, length of the headers, size of a segment, where sums start and go.
    [
        case("plain", [0; 10], None, None, 0, (0, 0)),
        case(
            "partial",
            [1, 0, 0, 0, 0, 0, 34, 0, 16, 0],
            partial(34, 16),
            None,
            CSUM,
            (GUEST_CSUM, 0),
        ),
        case(
            "TCP over IPv4",
            [1, 1, 54, 0, 0x78, 5, 34, 0, 16, 0],
            partial(34, 16),
            cut(Tcp4, 54),
            CSUM | HOST_TSO4,
            (GUEST_CSUM, GUEST_TSO4),
        ),
        case(
            "TCP over IPv6",
            [1, 4, 74, 0, 0x78, 5, 54, 0, 16, 0],
            partial(54, 16),
            cut(Tcp6, 74),
            CSUM | HOST_TSO6,
            (GUEST_CSUM, GUEST_TSO6),
        ),
        case(
            "UDP over IPv4",
            [1, 5, 42, 0, 0x78, 5, 34, 0, 6, 0],
            partial(34, 6),
            cut(Udp, 42),
            CSUM | HOST_USO,
            (GUEST_CSUM, GUEST_USO4 | GUEST_USO6),
        ),
        case(
            "UDP over IPv6",
            [1, 5, 62, 0, 0x78, 5, 54, 0, 6, 0],
            partial(54, 6),
            cut(Udp, 62),
            CSUM | HOST_USO,
            (GUEST_CSUM, GUEST_USO4 | GUEST_USO6),
        ),
    ]
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len).map(|n| ((n * 7) ^ (n >> 8)) as u8 ^ seed as u8).collect()
}

/// The guest sends it; what arrives.
fn from_guest(m: &mut Machine, case: &Case, frame: &[u8]) -> Option<(Vec<u8>, Offload)> {
    m.memory.write_fast(BUFFERS, &[&case.header[..], &[0, 0], frame].concat());
    m.tx.add(&[out(BUFFERS, 12 + frame.len() as u32)]);
    m.tx.publish();
    m.pump();
    let (source, _) = m.link.halves();
    let mut arrived = Vec::new();
    loop {
        let n = source.receive().expect("receive");
        for index in 0..n {
            let got = source.frame(index);
            let mut bytes = vec![0; got.len];
            span::gather(got.spans, 0, &mut bytes);
            arrived.extend((got.len > 0).then_some((bytes, got.offload)));
        }
        source.release();
        if n == 0 {
            break;
        }
    }
    assert_eq!(m.tx.all_used().len(), 1, "it has its buffer back");
    assert!(arrived.len() <= 1);
    arrived.pop()
}

/// It is sent to the guest; the header and frame that arrive.
fn to_guest(m: &mut Machine, case: &Case, frame: &[u8], merged: bool) -> (Vec<u8>, Vec<u8>) {
    let size = if merged { BUFFER } else { 12 + frame.len() };
    let count = (12 + frame.len()).div_ceil(size);
    for n in 0..count {
        m.rx.add(&[room(ROOM + (n * size) as u64, size as u32)]);
    }
    m.rx.publish();
    m.pump();
    let (_, sink) = m.link.halves();
    let slot = sink.reserve(frame.len()).expect("room");
    sink.write(&slot, 0, frame);
    sink.commit(slot, frame.len(), case.offload);
    sink.flush().expect("flush");
    let used = m.rx.all_used();
    assert_eq!(used.len(), count);
    assert_eq!(used.iter().map(|used| used.1 as usize).sum::<usize>(), 12 + frame.len());
    let mut bytes = vec![0; 12 + frame.len()];
    m.memory.read_fast(ROOM, &mut bytes);
    assert_eq!(bytes[10..12], (count as u16).to_le_bytes(), "num_buffers");
    (bytes[..10].to_vec(), bytes[12..].to_vec())
}

#[test]
fn every_combination_of_offloads_carries_what_it_allows_and_nothing_else() {
    let all: u64 = TOGGLES.iter().sum();
    for combination in 0..1u64 << TOGGLES.len() {
        let chosen = TOGGLES.iter().enumerate().filter(|(n, _)| combination >> n & 1 != 0);
        let taken: u64 = chosen.map(|(_, toggle)| toggle).sum();
        let options =
            Options { features: features::ALL & !all | taken, size: 16, ..Options::default() };
        let mut m = Machine::new(options);
        // Segmentation without checksums of the same direction is what no driver may take
        // (virtio 1.3 5.1.3.1): such a choice is as if it had not been made.
        let mut valid = taken;
        if taken & CSUM == 0 {
            valid &= !(HOST_TSO4 | HOST_TSO6 | HOST_USO);
        }
        if taken & GUEST_CSUM == 0 {
            valid &= !(GUEST_TSO4 | GUEST_TSO6 | GUEST_USO4 | GUEST_USO6);
        }
        assert_eq!(m.link.features() & all, valid);
        let has = |feature| valid & feature != 0;
        let caps = m.link.halves().1.caps();
        assert_eq!(
            LinkCaps { max_frame: 0, ..caps },
            LinkCaps {
                checksum: has(GUEST_CSUM),
                tcp4_segmentation: has(GUEST_TSO4),
                tcp6_segmentation: has(GUEST_TSO6),
                udp4_segmentation: has(GUEST_USO4),
                udp6_segmentation: has(GUEST_USO6),
                max_frame: 0,
            }
        );
        let mut refused = 0;
        for case in cases() {
            let name = format!("{}, features {taken:#x}", case.name);
            let frame = pattern(case.len, combination);
            let arrived = from_guest(&mut m, &case, &frame);
            if case.to_send & !valid == 0 {
                assert_eq!(arrived, Some((frame.clone(), case.offload)), "{name}");
            } else {
                refused += 1;
                assert_eq!(arrived, None, "{name}");
            }
            assert_eq!(m.link.stats().bad_offloads, refused, "{name}");
            // The engine cuts frames and sums them up itself where it is not allowed to leave that
            // to the guest: then none of these is for the sink, but one without offloads always is.
            let (all_of, one_of) = case.to_get;
            if all_of & !valid != 0 || one_of != 0 && !has(one_of) || frame.len() > caps.max_frame {
                continue;
            }
            let (header, got) = to_guest(&mut m, &case, &frame, has(MRG_RXBUF));
            assert_eq!(got, frame, "{name}");
            let mut expected = case.header;
            if case.offload.checksum.is_none() && has(GUEST_CSUM) {
                expected[0] = 2; // DATA_VALID
            }
            assert_eq!(header, expected, "{name}");
        }
    }
}
