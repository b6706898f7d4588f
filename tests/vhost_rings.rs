//! Rings of the vhost-user device under drivers that are hostile, broken, or just fast.

mod common;

use common::driver::{Buffer, DriverRing, INDIRECT, NEXT, WRITE, descriptor, out, room};
use common::frontend::{BUFFERS, Machine, Options, pump};
use passt::link::vhost::{Malformed, features};
use passt::link::{
    Link, Offload, PartialChecksum, Refused, Segmentation, SegmentationKind, Sink, Source,
};
use passt::span;
use passt::sys::epoll::Events;
use passt::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// An indirect table, out of the way of buffers.
const TABLE: u64 = BUFFERS + 0x10_0000;

/// Bytes that tell where they came from.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| ((n * 7) ^ (n >> 8) ^ seed) as u8).collect()
}

/// All frames that the source has now; a batch without any is the link's way to breathe.
fn receive_all(m: &mut Machine) -> Vec<(Vec<u8>, Offload)> {
    let mut frames = Vec::new();
    let (source, _) = m.link.halves();
    loop {
        let n = source.receive().expect("receive");
        if n == 0 {
            assert!(!source.signal(false), "told, or not wanted");
            return frames;
        }
        for index in 0..n {
            let frame = source.frame(index);
            let mut bytes = vec![0; frame.len];
            assert_eq!(span::gather(frame.spans, 0, &mut bytes), frame.len);
            if frame.len > 0 {
                frames.push((bytes, frame.offload));
            }
        }
        source.release();
    }
}

/// Sends a frame to the guest.
fn deliver(m: &mut Machine, frame: &[u8]) -> Result<(), Refused> {
    let (_, sink) = m.link.halves();
    let slot = sink.reserve(frame.len())?;
    sink.write(&slot, 0, frame);
    sink.commit(slot, frame.len(), Offload::default());
    sink.flush().expect("flush");
    Ok(())
}

/// A chain that is malformed, for a direction: `flags` is WRITE for a receive ring.
type Chain = fn(&mut DriverRing, u16) -> u16;

/// Heads are at 0, so that descriptors can be written by hand.
const MALFORMED: &[(&str, Malformed, Chain)] = &[
    ("a descriptor that names itself", Malformed::Loop, |ring, flags| {
        ring.set_descriptor(0, BUFFERS, 64, flags | NEXT, 0);
        0
    }),
    ("a loop of two", Malformed::Loop, |ring, flags| {
        ring.set_descriptor(0, BUFFERS, 64, flags | NEXT, 1);
        ring.set_descriptor(1, BUFFERS, 64, flags | NEXT, 0);
        0
    }),
    ("a successor that is not there", Malformed::Index, |ring, flags| {
        ring.set_descriptor(0, BUFFERS, 64, flags | NEXT, ring.size);
        0
    }),
    ("the wrong direction", Malformed::Direction, |ring, flags| {
        ring.set_descriptor(0, BUFFERS, 2048, flags ^ WRITE, 0);
        0
    }),
    ("the wrong direction at the end", Malformed::Direction, |ring, flags| {
        ring.set_descriptor(0, BUFFERS, 64, flags | NEXT, 1);
        ring.set_descriptor(1, BUFFERS, 2048, flags ^ WRITE, 0);
        0
    }),
    ("no bytes", Malformed::Empty, |ring, flags| {
        ring.set_descriptor(0, BUFFERS, 0, flags, 0);
        0
    }),
    ("no bytes in the middle", Malformed::Empty, |ring, flags| {
        ring.set_descriptor(0, BUFFERS, 64, flags | NEXT, 1);
        ring.set_descriptor(1, BUFFERS, 0, flags | NEXT, 2);
        ring.set_descriptor(2, BUFFERS, 2048, flags, 0);
        0
    }),
    ("an address in no region", Malformed::Unmapped, |ring, flags| {
        ring.set_descriptor(0, 20 << 20, 2048, flags, 0);
        0
    }),
    ("a buffer that runs out of the last region", Malformed::Unmapped, |ring, flags| {
        ring.set_descriptor(0, (40 << 20) - 2000, 2001, flags, 0);
        0
    }),
    ("a buffer across a gap", Malformed::Unmapped, |ring, flags| {
        ring.set_descriptor(0, (16 << 20) - 100, 2048, flags, 0);
        0
    }),
    ("an address that wraps", Malformed::Unmapped, |ring, flags| {
        ring.set_descriptor(0, u64::MAX - 100, 2048, flags, 0);
        0
    }),
    ("4 GiB", Malformed::Unmapped, |ring, flags| {
        ring.set_descriptor(0, BUFFERS, u32::MAX, flags, 0);
        0
    }),
    ("a table of no entries", Malformed::Indirect, |ring, _| {
        ring.set_descriptor(0, TABLE, 0, INDIRECT, 0);
        0
    }),
    ("a table of one and a half entries", Malformed::Indirect, |ring, _| {
        ring.set_descriptor(0, TABLE, 24, INDIRECT, 0);
        0
    }),
    ("a table of too many entries", Malformed::Indirect, |ring, _| {
        ring.set_descriptor(0, TABLE, 16 * 1025, INDIRECT, 0);
        0
    }),
    ("a table with a successor", Malformed::Indirect, |ring, flags| {
        ring.memory.write(TABLE, &descriptor(BUFFERS, 2048, flags, 0));
        ring.set_descriptor(0, TABLE, 16, INDIRECT | NEXT, 1);
        ring.set_descriptor(1, BUFFERS, 2048, flags, 0);
        0
    }),
    ("a table in a table", Malformed::Indirect, |ring, flags| {
        ring.memory.write(TABLE, &descriptor(TABLE + 16, 16, INDIRECT, 0));
        ring.memory.write(TABLE + 16, &descriptor(BUFFERS, 2048, flags, 0));
        ring.set_descriptor(0, TABLE, 16, INDIRECT, 0);
        0
    }),
    ("a table in no region", Malformed::Unmapped, |ring, _| {
        ring.set_descriptor(0, 20 << 20, 16, INDIRECT, 0);
        0
    }),
    ("a table that wraps", Malformed::Unmapped, |ring, _| {
        ring.set_descriptor(0, u64::MAX - 7, 32, INDIRECT, 0);
        0
    }),
    ("a loop in a table", Malformed::Loop, |ring, flags| {
        ring.memory.write(TABLE, &descriptor(BUFFERS, 64, flags | NEXT, 1));
        ring.memory.write(TABLE + 16, &descriptor(BUFFERS, 64, flags | NEXT, 0));
        ring.set_descriptor(0, TABLE, 32, INDIRECT, 0);
        0
    }),
    ("a successor that is not in the table", Malformed::Index, |ring, flags| {
        ring.memory.write(TABLE, &descriptor(BUFFERS, 64, flags | NEXT, 2));
        ring.set_descriptor(0, TABLE, 32, INDIRECT, 0);
        0
    }),
    ("more pieces than we take", Malformed::Long, |ring, flags| {
        for n in 0..300u64 {
            let next = if n == 299 { 0 } else { NEXT };
            let entry = descriptor(BUFFERS, 8, flags | next, n as u16 + 1);
            ring.memory.write(TABLE + 16 * n, &entry);
        }
        ring.set_descriptor(0, TABLE, 16 * 300, INDIRECT, 0);
        0
    }),
];

#[test]
fn malformed_chains_from_the_guest_go_back_with_length_0() {
    for (name, reason, chain) in MALFORMED {
        let mut m = Machine::new(Options::default());
        let head = chain(&mut m.tx, 0);
        m.tx.offer(head);
        m.tx.set_descriptor(100, BUFFERS + 4096, 72, 0, 0);
        m.tx.offer(100);
        m.tx.publish();
        m.pump();
        assert_eq!(receive_all(&mut m).len(), 1, "{name}: the next one arrives");
        assert_eq!(m.link.stats().malformed(*reason), 1, "{name}: {:?}", m.link.stats());
        assert_eq!(m.tx.all_used(), [(head, 0), (100, 0)], "{name}");
        assert!(m.tx.err.read().is_err(), "{name}: the ring is not broken");
    }
}

#[test]
fn malformed_chains_to_the_guest_go_back_with_length_0() {
    for merged in [features::MRG_RXBUF, 0] {
        for (name, reason, chain) in MALFORMED {
            let options = Options {
                features: features::ALL & !features::MRG_RXBUF | merged,
                ..Options::default()
            };
            let mut m = Machine::new(options);
            let head = chain(&mut m.rx, WRITE);
            m.rx.offer(head);
            m.rx.publish();
            // Alone it goes back when room is asked for.
            assert_eq!(deliver(&mut m, &[1; 100]), Err(Refused::Full), "{name}");
            assert_eq!(m.rx.all_used(), [(head, 0)], "{name}");
            assert_eq!(m.link.stats().malformed(*reason), 1, "{name}: {:?}", m.link.stats());
            // Before a good one it goes back first.
            m.rx.offer(head);
            m.rx.set_descriptor(100, BUFFERS + 4096, 2048, WRITE, 0);
            m.rx.offer(100);
            assert!(m.rx.publish(), "{name}: a kick was asked for");
            assert!(m.pump().room, "{name}");
            deliver(&mut m, &[1; 100]).expect(name);
            assert_eq!(m.rx.all_used(), [(head, 0), (100, 112)], "{name}");
            assert!(m.rx.err.read().is_err(), "{name}: the ring is not broken");
        }
    }
}

#[test]
fn a_malformed_chain_amid_merged_buffers_goes_back_before_them() {
    let mut m = Machine::new(Options::default());
    m.rx.set_descriptor(10, BUFFERS, 1000, WRITE, 0);
    m.rx.set_descriptor(11, BUFFERS, 0, WRITE, 0);
    m.rx.set_descriptor(12, BUFFERS + 1000, 1000, WRITE, 0);
    for head in [10, 11, 12] {
        m.rx.offer(head);
    }
    m.rx.publish();
    let frame = pattern(1500, 5);
    deliver(&mut m, &frame).expect("room");
    assert_eq!(m.rx.all_used(), [(11, 0), (10, 1000), (12, 512)]);
    assert_eq!(m.memory.read(BUFFERS + 10, 2), [2, 0], "of two buffers");
    assert_eq!(m.memory.read(BUFFERS + 12, 1500), frame);
    assert_eq!(m.stop_ring(0), 3);
}

#[test]
fn tables_and_buffers_may_cross_neighbouring_regions() {
    let edge = 8u64 << 20;
    let mut m = Machine::new(Options::default());
    let frame = pattern(3000, 9);
    m.memory.write(edge - 1000, &[&[0; 12], &frame[..]].concat());
    // The second entry of the table lies half in either region.
    let table = edge - 24;
    let far = edge + 4096;
    m.memory.write(far, &[&[0; 12], &frame[..]].concat());
    m.memory.write(table, &descriptor(far, 500, NEXT, 1));
    m.memory.write(table + 16, &descriptor(far + 500, 2512, 0, 0));
    m.tx.set_descriptor(0, table, 32, INDIRECT, 0);
    m.tx.offer(0);
    m.tx.publish();
    m.pump();
    assert_eq!(receive_all(&mut m), [(frame.clone(), Offload::default())]);
    m.memory.write(edge - 1000, &[&[0; 12], &frame[..]].concat());
    m.tx.set_descriptor(1, edge - 1000, 3012, 0, 0);
    m.tx.offer(1);
    m.tx.publish();
    m.pump();
    assert_eq!(receive_all(&mut m), [(frame.clone(), Offload::default())]);
    m.rx.add(&[room(edge - 5, 4000)]);
    m.rx.publish();
    deliver(&mut m, &frame).expect("room");
    assert_eq!(m.memory.read(edge - 5 + 12, 3000), frame);
}

#[test]
fn a_direct_chain_may_end_in_a_table() {
    let mut m = Machine::new(Options::default());
    let frame = pattern(200, 1);
    m.memory.write(BUFFERS, &[&[0; 12], &frame[..]].concat());
    m.memory.write(TABLE, &descriptor(BUFFERS + 50, 162, 0, 0));
    m.tx.set_descriptor(0, BUFFERS, 50, NEXT, 1);
    m.tx.set_descriptor(1, TABLE, 16, INDIRECT, 0);
    m.tx.offer(0);
    m.tx.publish();
    m.pump();
    assert_eq!(receive_all(&mut m), [(frame, Offload::default())]);
}

#[test]
fn tables_are_malformed_unless_negotiated() {
    let features = features::ALL & !features::INDIRECT_DESC;
    let mut m = Machine::new(Options { features, ..Options::default() });
    m.memory.write(TABLE, &descriptor(BUFFERS, 100, 0, 0));
    m.tx.set_descriptor(0, TABLE, 16, INDIRECT, 0);
    m.tx.offer(0);
    m.tx.publish();
    m.pump();
    assert!(receive_all(&mut m).is_empty());
    assert_eq!(m.link.stats().malformed(Malformed::Indirect), 1);
}

#[test]
fn the_header_may_be_cut_anywhere() {
    let mut m = Machine::new(Options::default());
    let frame = pattern(100, 3);
    let mut bytes = vec![0; 12];
    bytes[..8].copy_from_slice(&[1, 0, 0, 0, 0, 0, 34, 0]);
    bytes[8] = 16;
    bytes.extend(&frame);
    m.memory.write(BUFFERS, &bytes);
    let checksum = Some(PartialChecksum { start: 34, offset: 16 });
    let expected = (frame, Offload { checksum, segmentation: None });
    for first in 1..111u32 {
        for second in [1, 5, 12 - first.min(11)] {
            let rest = 112 - first - second.min(111 - first);
            let chain = [
                out(BUFFERS, first),
                out(BUFFERS + u64::from(first), 112 - first - rest),
                out(BUFFERS + 112 - u64::from(rest), rest),
            ];
            let chain: Vec<Buffer> = chain.into_iter().filter(|b| b.len > 0).collect();
            m.tx.add(&chain);
            m.tx.publish();
            m.pump();
            assert_eq!(receive_all(&mut m), std::slice::from_ref(&expected), "{chain:?}");
            m.tx.all_used();
        }
    }
}

#[test]
fn frames_of_impossible_lengths_and_offloads_are_counted() {
    let mut m = Machine::new(Options::default());
    for len in [1, 12, 25, 26, 65_561, 65_562, 100_000] {
        m.tx.add(&[out(BUFFERS, len)]);
    }
    m.memory.write(BUFFERS + 0x8_0000, &[0, 77]);
    m.tx.add(&[out(BUFFERS + 0x8_0000, 100)]);
    m.tx.publish();
    m.pump();
    let lens: Vec<_> = receive_all(&mut m).iter().map(|(frame, _)| frame.len()).collect();
    assert_eq!(lens, [14, 65_549]);
    let stats = m.link.stats();
    assert_eq!((stats.short_frames, stats.long_frames, stats.bad_offloads), (3, 2, 1));
    assert_eq!(m.tx.all_used().len(), 8);
}

#[test]
fn offloads_arrive_as_negotiated() {
    let mut m = Machine::new(Options::default());
    m.memory.write(BUFFERS, &[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
    m.tx.add(&[out(BUFFERS, 60_012)]);
    m.tx.publish();
    m.pump();
    let expected = Offload {
        checksum: Some(PartialChecksum { start: 34, offset: 16 }),
        segmentation: Some(Segmentation {
            kind: SegmentationKind::Tcp4,
            size: 1448,
            header_len: 54,
        }),
    };
    assert_eq!(receive_all(&mut m)[0].1, expected);
    m.rx.add(&[room(BUFFERS, 2048)]);
    m.rx.publish();
    let (_, sink) = m.link.halves();
    let caps = sink.caps();
    assert!(caps.checksum && caps.tcp4_segmentation && caps.udp6_segmentation);
    let slot = sink.reserve(100).expect("room");
    sink.commit(slot, 100, expected);
    sink.flush().expect("flush");
    assert_eq!(m.memory.read(BUFFERS, 12), [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 1, 0]);
}

/// What a driver does to its ring.
type Damage = fn(&mut DriverRing);

/// What breaks a ring.
const BREAKS: &[(&str, Damage)] = &[
    ("the index jumps ahead", |ring| ring.available_idx.store(1000, Ordering::SeqCst)),
    ("the index goes back", |ring| ring.available_idx.store(u16::MAX, Ordering::SeqCst)),
    ("a head that is not there", |ring| {
        ring.offer(256);
        ring.publish();
    }),
    ("the last head there is not", |ring| {
        ring.offer(u16::MAX);
        ring.publish();
    }),
];

#[test]
fn a_broken_ring_stops_and_says_so_once_while_the_other_goes_on() {
    for (name, damage) in BREAKS {
        for which in [0, 1] {
            let mut m = Machine::new(Options::default());
            receive_all(&mut m);
            if which == 0 {
                damage(&mut m.rx)
            } else {
                damage(&mut m.tx)
            }
            for _ in 0..3 {
                m.tx.kick.write(1).expect("kick");
                m.rx.kick.write(1).expect("kick");
                m.pump();
                assert!(receive_all(&mut m).is_empty(), "{name}");
                let refused = deliver(&mut m, &[1; 100]);
                let expected = if which == 0 { Refused::Down } else { Refused::Full };
                assert_eq!(refused, Err(expected), "{name}");
            }
            let broken = if which == 0 { &m.rx } else { &m.tx };
            assert_eq!(broken.err.read().expect("signalled"), 1, "{name}");
            assert_eq!(m.link.stats().broken_rings, 1, "{name}");
            // The other ring works, and after a reset this one does again.
            for attempt in 0..2 {
                if attempt == 0 && which == 1 || attempt == 1 {
                    m.rx.add(&[room(BUFFERS, 2048)]);
                    m.rx.publish();
                    deliver(&mut m, &[1; 100]).expect(name);
                }
                if attempt == 0 && which == 0 || attempt == 1 {
                    m.tx.add(&[out(BUFFERS, 100)]);
                    m.tx.publish();
                    m.pump();
                    assert_eq!(receive_all(&mut m).len(), 1, "{name}");
                }
                m.stop_ring(0);
                m.stop_ring(1);
                m.tx.reset();
                m.rx.reset();
                m.start_rings();
            }
        }
    }
}

#[test]
fn an_empty_receive_ring_is_full_until_a_kick() {
    for features in [features::ALL, features::ALL & !features::EVENT_IDX] {
        let mut m = Machine::new(Options { features, ..Options::default() });
        for round in 0..10 {
            assert_eq!(deliver(&mut m, &[1; 4000]), Err(Refused::Full));
            m.rx.add(&[room(BUFFERS, 2048)]);
            assert!(m.rx.publish(), "round {round}: the first buffer wakes");
            assert!(m.pump().room);
            assert_eq!(deliver(&mut m, &[1; 4000]), Err(Refused::Full), "not enough yet");
            m.rx.add(&[room(BUFFERS + 2048, 2048)]);
            assert!(m.rx.publish(), "round {round}: and the second");
            assert!(m.pump().room);
            deliver(&mut m, &[1; 4000]).expect("room");
            m.rx.add(&[room(BUFFERS + 4096, 2048)]);
            assert!(!m.rx.publish() || round == 0, "round {round}: nobody waits now");
            m.pump();
            deliver(&mut m, &[1; 100]).expect("room");
            assert_eq!(m.rx.all_used().len(), 3);
        }
    }
}

#[test]
fn a_smaller_frame_that_finds_room_does_not_hush_the_kick_that_a_larger_one_waits_for() {
    for features in [features::ALL, features::ALL & !features::EVENT_IDX] {
        let mut m = Machine::new(Options { features, ..Options::default() });
        for round in 0..10 {
            for n in 0..2 {
                m.rx.add(&[room(BUFFERS + n * 2048, 2048)]);
            }
            m.rx.publish();
            m.pump();
            assert_eq!(deliver(&mut m, &[1; 6000]), Err(Refused::Full));
            deliver(&mut m, &[1; 100]).expect("room for this one");
            for n in 2..4 {
                m.rx.add(&[room(BUFFERS + n * 2048, 2048)]);
            }
            assert!(m.rx.publish(), "round {round}: the larger one still waits");
            assert!(m.pump().room);
            deliver(&mut m, &[1; 6000]).expect("room");
            assert_eq!(m.rx.all_used().len(), 4);
        }
    }
}

#[test]
fn a_driver_that_wants_no_interrupts_gets_none() {
    let features = features::ALL & !features::EVENT_IDX;
    let mut m = Machine::new(Options { features, ..Options::default() });
    for quiet in [false, true, false] {
        m.rx.available_flags.store(u16::from(quiet), Ordering::SeqCst);
        m.tx.available_flags.store(u16::from(quiet), Ordering::SeqCst);
        m.rx.was_called();
        m.tx.was_called();
        m.rx.add(&[room(BUFFERS, 2048)]);
        m.rx.publish();
        deliver(&mut m, &[1; 100]).expect("room");
        assert_eq!(m.rx.was_called(), !quiet);
        m.tx.add(&[out(BUFFERS, 100)]);
        m.tx.publish();
        m.pump();
        assert_eq!(receive_all(&mut m).len(), 1);
        assert_eq!(m.tx.was_called(), !quiet);
        m.rx.all_used();
        m.tx.all_used();
    }
}

#[test]
fn a_driver_that_was_just_woken_is_told_of_its_frames_only_if_it_has_not_seen_them() {
    for seen in [false, true] {
        let mut m = Machine::new(Options::default());
        m.tx.was_called();
        m.tx.used_event.store(0, Ordering::SeqCst);
        m.tx.add(&[out(BUFFERS, 100)]);
        m.tx.publish();
        m.pump();
        let (source, _) = m.link.halves();
        assert_eq!(source.receive().expect("a frame"), 1);
        source.release();
        assert!(source.signal(true), "put off");
        assert!(!m.tx.was_called());
        if seen {
            m.tx.used_event.store(1, Ordering::SeqCst);
        }
        let (source, _) = m.link.halves();
        assert!(!source.signal(false));
        assert_eq!(m.tx.was_called(), !seen);
        let (source, _) = m.link.halves();
        assert!(!source.signal(true), "nothing is owed any more");
    }
}

#[test]
fn with_event_idx_the_driver_is_told_of_the_element_it_asked_for() {
    let mut m = Machine::new(Options::default());
    m.rx.was_called();
    for n in 0..100 {
        m.rx.add(&[room(BUFFERS + n * 2048, 2048)]);
    }
    m.rx.publish();
    m.rx.used_event.store(9, Ordering::SeqCst);
    for n in 0..20 {
        deliver(&mut m, &[1; 100]).expect("room");
        assert_eq!(m.rx.was_called(), n == 9, "element {n}");
    }
}

#[test]
fn without_merged_buffers_a_frame_must_fit_one_chain() {
    let features = features::ALL & !features::MRG_RXBUF;
    let mut m = Machine::new(Options { features, ..Options::default() });
    m.rx.add(&[room(BUFFERS, 1000), room(BUFFERS + 4096, 1000)]);
    m.rx.add(&[room(BUFFERS + 8192, 65_562)]);
    m.rx.publish();
    assert_eq!(deliver(&mut m, &[1; 1989]), Err(Refused::TooLarge));
    let frame = pattern(1988, 1);
    deliver(&mut m, &frame).expect("room");
    assert_eq!(m.memory.read(BUFFERS + 12, 988), frame[..988]);
    assert_eq!(m.memory.read(BUFFERS + 4096, 1000), frame[988..]);
    deliver(&mut m, &pattern(65_549, 1)).expect("room");
    assert_eq!(m.rx.all_used().iter().map(|u| u.1).collect::<Vec<_>>(), [2000, 65_561]);
    assert_eq!(deliver(&mut m, &[0; 65_550]), Err(Refused::TooLarge));
}

#[test]
fn the_largest_frame_depends_on_what_was_negotiated() {
    let none = features::VERSION_1 | features::PROTOCOL_FEATURES;
    for (features, expected) in [
        (none, 1514),
        (none | features::MTU, 65_534),
        (none | features::MRG_RXBUF, 65_549),
        (none | features::GUEST_CSUM | features::GUEST_TSO6, 65_549),
        (none | features::GUEST_TSO6, 1514),
    ] {
        let mut m = Machine::new(Options { features, ..Options::default() });
        assert_eq!(m.link.halves().1.caps().max_frame, expected, "{features:x}");
    }
}

#[test]
fn a_ring_too_small_for_a_frame_says_so() {
    let mut m = Machine::new(Options { size: 4, ..Options::default() });
    for n in 0..4 {
        m.rx.add(&[room(BUFFERS + n * 2048, 1024)]);
    }
    m.rx.publish();
    assert_eq!(deliver(&mut m, &[1; 4085]), Err(Refused::TooLarge));
    deliver(&mut m, &[1; 4084]).expect("room");
}

#[test]
fn short_commits_give_back_what_they_can() {
    let mut m = Machine::new(Options::default());
    for n in 0..20 {
        m.rx.add(&[room(BUFFERS + n * 2048, 1024)]);
    }
    m.rx.publish();
    let (_, sink) = m.link.halves();
    // One after the other: each gives its tail back.
    for _ in 0..3 {
        let slot = sink.reserve(5000).expect("room");
        sink.commit(slot, 100, Offload::default());
    }
    // Together: only the last can.
    let one = sink.reserve(3000).expect("room");
    let two = sink.reserve(3000).expect("room");
    sink.commit(one, 1500, Offload::default());
    sink.commit(two, 100, Offload::default());
    sink.flush().expect("flush");
    let lens: Vec<_> = m.rx.all_used().iter().map(|u| u.1).collect();
    assert_eq!(lens, [112, 112, 112, 1024, 488, 0, 112]);
    assert_eq!(m.stop_ring(0), 7);
}

#[test]
fn a_flush_amid_open_slots_publishes_what_is_committed() {
    let mut m = Machine::new(Options::default());
    for n in 0..8 {
        m.rx.add(&[room(BUFFERS + n * 2048, 1024)]);
    }
    m.rx.publish();
    let (_, sink) = m.link.halves();
    let one = sink.reserve(100).expect("room");
    let two = sink.reserve(1500).expect("room");
    let three = sink.reserve(100).expect("room");
    sink.write(&one, 0, &[1; 100]);
    sink.commit(one, 100, Offload::default());
    sink.flush().expect("flush");
    sink.write(&two, 0, &[2; 1500]);
    sink.write(&three, 0, &[3; 100]);
    let mut back = [0; 10];
    assert_eq!(sink.read(&two, 1495, &mut back), 5);
    assert_eq!(back, [2, 2, 2, 2, 2, 0, 0, 0, 0, 0]);
    sink.commit(two, 1500, Offload::default());
    sink.commit(three, 100, Offload::default());
    sink.flush().expect("flush");
    assert_eq!(m.rx.all_used(), [(0, 112), (1, 1024), (2, 488), (3, 112)]);
    assert_eq!(m.memory.read(BUFFERS + 12, 100), [1; 100]);
    assert_eq!(m.memory.read(BUFFERS + 2 * 2048, 488), [2; 488]);
    assert_eq!(m.memory.read(BUFFERS + 3 * 2048 + 12, 100), [3; 100]);
}

#[test]
fn writes_and_commits_beyond_a_slot_are_left_out() {
    let mut m = Machine::new(Options::default());
    m.memory.write_fast(BUFFERS, &[0xee; 2048]);
    m.rx.add(&[room(BUFFERS, 2048)]);
    m.rx.publish();
    let (_, sink) = m.link.halves();
    let slot = sink.reserve(100).expect("room");
    sink.write(&slot, 90, &[1; 100]);
    sink.write(&slot, 200, &[1; 100]);
    sink.write(&slot, usize::MAX, &[1; 100]);
    let mut spans = Vec::new();
    sink.room(&slot, 99, &mut spans);
    assert_eq!(span::total_mut(&spans), 1);
    sink.room(&slot, 100, &mut spans);
    sink.room(&slot, usize::MAX, &mut spans);
    assert_eq!(span::total_mut(&spans), 1);
    assert_eq!(sink.read(&slot, usize::MAX, &mut [0; 4]), 0);
    drop(spans);
    sink.commit(slot, 5000, Offload::default());
    sink.flush().expect("flush");
    assert_eq!(m.rx.all_used(), [(0, 112)]);
    assert_eq!(m.memory.read(BUFFERS + 12 + 90, 12), [[1; 10].as_slice(), &[0xee; 2]].concat());
}

#[test]
fn indices_wrap_around() {
    for size in [1u16, 2, 4, 256] {
        let mut m = Machine::new(Options { size, ..Options::default() });
        for round in 0..70_000u32 {
            m.tx.add(&[out(BUFFERS, 100)]);
            m.tx.publish();
            let (source, _) = m.link.halves();
            assert_eq!(source.receive().expect("receive"), 1, "round {round}");
            source.release();
            assert_eq!(m.tx.all_used().len(), 1);
        }
        assert_eq!(m.stop_ring(1), 70_000 - 65_536);
    }
}

#[test]
fn nothing_but_bad_chains_does_not_keep_the_link_busy() {
    let mut m = Machine::new(Options::default());
    for _ in 0..256 {
        m.tx.add(&[room(BUFFERS, 100)]);
    }
    m.tx.publish();
    m.pump();
    let (source, _) = m.link.halves();
    assert_eq!(source.receive().expect("receive"), 1, "a frame of no bytes: ask again");
    assert_eq!(source.frame(0).len, 0);
    source.release();
    assert_eq!(source.receive().expect("receive"), 0);
    assert_eq!(m.tx.all_used().len(), 256);
}

/// A driver that polls must never see a part of a merged frame (Linux: "rx error: N buffers out of
/// M missing").
#[test]
fn a_spinning_driver_never_sees_a_torn_frame() {
    const FRAMES: usize = 4000;
    const BUFFER: u32 = 1536;
    let mut m = Machine::new(Options::default());
    let mut ring = std::mem::replace(&mut m.rx, DriverRing::new(m.memory, 0x18_0000, 2));
    // One buffer belongs to one descriptor for good.
    let at = |head: u16| BUFFERS + u64::from(head) * u64::from(BUFFER);
    for head in 0..256 {
        ring.set_descriptor(head, at(head), BUFFER, WRITE, 0);
        ring.offer(head);
    }
    ring.publish();
    let driver = std::thread::spawn(move || {
        let mut seen = 0;
        while seen < FRAMES {
            // What is visible at the first glance must be whole frames.
            let visible = ring.used_idx.load(Ordering::Acquire).wrapping_sub(ring.seen);
            if visible == 0 {
                continue;
            }
            let (head, len) = ring.used().expect("visible");
            let mut bytes = vec![0; len as usize];
            ring.memory.read_fast(at(head), &mut bytes);
            let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
            assert!(visible >= buffers, "torn: {visible} of {buffers}");
            let mut heads = vec![head];
            for _ in 1..buffers {
                let (head, len) = ring.used().expect("visible");
                let mut more = vec![0; len as usize];
                ring.memory.read_fast(at(head), &mut more);
                bytes.extend(more);
                heads.push(head);
            }
            let expected = pattern(1000 + seen * 13 % 60_000, seen);
            assert!(bytes[12..] == expected[..], "frame {seen} has changed");
            for head in heads {
                ring.offer(head);
            }
            ring.publish();
            seen += 1;
        }
    });
    let mut sent = 0;
    while sent < FRAMES && !driver.is_finished() {
        let frame = pattern(1000 + sent * 13 % 60_000, sent);
        match deliver(&mut m, &frame) {
            Ok(()) => sent += 1,
            Err(Refused::Full) => {
                m.pump();
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    driver.join().expect("driver");
    assert_eq!(sent, FRAMES);
}

/// The driver kicks only when asked to; the device sleeps until it is kicked. A wake-up that gets
/// lost would leave both waiting.
#[test]
fn no_kick_and_no_call_is_lost() {
    const ROUNDS: u32 = 30_000;
    for features in [features::ALL, features::ALL & !features::EVENT_IDX] {
        let mut m = Machine::new(Options { features, ..Options::default() });
        let mut ring = std::mem::replace(&mut m.tx, DriverRing::new(m.memory, 0x18_0000, 2));
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let driver = std::thread::spawn(move || {
            for round in 0..ROUNDS {
                for _ in 0..=round % 3 {
                    ring.add(&[out(BUFFERS, 100)]);
                    ring.publish();
                }
                while ring.free() < usize::from(ring.size) && !flag.load(Ordering::Relaxed) {
                    ring.used();
                }
            }
        });
        let mut events = Events::with_capacity(8);
        let mut received = 0;
        while !driver.is_finished() {
            // Far longer than any of this takes: only a lost kick runs into it.
            let n = m.epoll.wait(&mut events, Some(Duration::from_secs(20))).expect("epoll");
            if n == 0 && !driver.is_finished() {
                stop.store(true, Ordering::Relaxed);
                driver.join().expect("driver");
                panic!("a kick was lost after {received} frames");
            }
            for (token, ready) in events.iter() {
                let passt::token::Token::Link(which) = token else { panic!("{token:?}") };
                m.link.on_event(which, ready).expect("event");
            }
            received += receive_all(&mut m).len();
            if received as u32 == ROUNDS / 3 * 6 {
                break;
            }
        }
        driver.join().expect("driver");
        pump(&m.epoll, &mut m.link);
    }
}

#[test]
fn a_frame_may_take_as_many_chains_as_a_ring_may_have_with_bad_ones_among_them() {
    const SIZE: u16 = 32_768;
    const LEN: usize = 16_000;
    let mut m = Machine::silent(Options::default());
    m.rx = DriverRing::new(m.memory, 0x40_0000, SIZE);
    m.boot();
    let (nowhere, place) = (1 << 40, |n: u16| BUFFERS + u64::from(n / 2));
    let add = |m: &mut Machine, n: u16| {
        m.rx.add(&[room(if n.is_multiple_of(2) { nowhere } else { place(n) }, 1)])
    };
    let heads: Vec<u16> = (0..SIZE).map(|n| add(&mut m, n)).collect();
    m.rx.publish();
    m.pump();
    let reserve = |m: &mut Machine, len| m.link.halves().1.reserve(len);
    assert_eq!(reserve(&mut m, 60_000).expect_err("too many"), Refused::TooLarge);
    // The bad one at the front has gone back, and makes room for another; the others stay.
    assert_eq!(m.rx.all_used(), [(heads[0], 0)]);
    assert_eq!(reserve(&mut m, 60_000).expect_err("too many"), Refused::Full);
    let frame = pattern(LEN, 3);
    let slot = reserve(&mut m, LEN).expect("room");
    let (_, sink) = m.link.halves();
    sink.write(&slot, 0, &frame);
    sink.commit(slot, LEN, Offload::default());
    sink.flush().expect("flush");
    let used = m.rx.all_used();
    let good = LEN + 12;
    let bad = used.iter().take_while(|(_, len)| *len == 0).count();
    assert_eq!((bad, used.len()), (good - 1, 2 * good - 1));
    let expected = |first: usize| heads[first..].iter().step_by(2).copied();
    assert!(used[..bad].iter().map(|used| used.0).eq(expected(2).take(bad)), "bad ones first");
    assert!(used[bad..].iter().copied().eq(expected(1).take(good).map(|head| (head, 1))));
    assert_eq!(m.memory.read(BUFFERS + 12, LEN), frame);
    assert_eq!(m.memory.read(BUFFERS, 12), [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x8c, 0x3e]);
}
