//! Frames through the vhost-user device, both ways, with a well-behaved driver.

mod common;

use common::driver::{Buffer, out, room};
use common::frontend::{BUFFERS, Machine, Options};
use passt::link::vhost::features;
use passt::link::{Link, Offload, Refused, Sink, Source};
use passt::span;

/// Bytes that tell where they came from.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| ((n * 7) ^ (n >> 8) ^ seed) as u8).collect()
}

/// Puts a frame without offloads into the guest's memory, header first, as one buffer.
fn outgoing(m: &Machine, addr: u64, frame: &[u8]) -> Buffer {
    m.memory.write_fast(addr, &[0; 12]);
    m.memory.write_fast(addr + 12, frame);
    out(addr, frame.len() as u32 + 12)
}

/// All frames that the source has now.
fn receive_all(m: &mut Machine) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let (source, _) = m.link.halves();
    loop {
        let n = source.receive().expect("receive");
        if n == 0 {
            return frames;
        }
        for index in 0..n {
            let frame = source.frame(index);
            let mut bytes = vec![0; frame.len];
            assert_eq!(span::gather(frame.spans, 0, &mut bytes), frame.len);
            frames.push(bytes);
        }
        source.release();
    }
}

/// Gives the driver's ring `n` receive buffers of `len` bytes.
fn post(m: &mut Machine, n: u64, len: u32) {
    for i in 0..n {
        m.rx.add(&[room(BUFFERS + i * u64::from(len).next_multiple_of(64), len)]);
    }
    m.rx.publish();
}

#[test]
fn a_booting_driver_brings_the_link_up_once() {
    let mut m = Machine::silent(Options::default());
    let (_, sink) = m.link.halves();
    assert_eq!(sink.reserve(100).unwrap_err(), Refused::Down);
    let events = m.boot();
    assert!(events.up && events.frames && !events.ended);
    assert!(m.rx.was_called(), "SET_VRING_CALL signals at once");
    let (_, sink) = m.link.halves();
    assert_eq!(sink.reserve(100).unwrap_err(), Refused::Full);
}

#[test]
fn frames_from_the_guest_arrive_in_order_and_go_back_at_once() {
    let mut m = Machine::new(Options::default());
    receive_all(&mut m);
    let frames: Vec<_> = (0..50).map(|n| pattern(60 + n * 100, n)).collect();
    for (n, frame) in frames.iter().enumerate() {
        let buffer = outgoing(&m, BUFFERS + n as u64 * 8192, frame);
        m.tx.add(&[buffer]);
    }
    m.tx.want_call();
    assert!(m.tx.publish(), "the device waits for a kick");
    assert!(m.pump().frames);
    assert_eq!(receive_all(&mut m), frames);
    let used = m.tx.all_used();
    assert_eq!(used.len(), 50);
    assert!(used.iter().all(|(_, len)| *len == 0));
    assert!(m.tx.was_called());
    m.tx.want_call();
    assert!(!m.tx.was_called(), "one signal for all");
}

#[test]
fn frames_to_the_guest_fill_merged_buffers() {
    let mut m = Machine::new(Options::default());
    post(&mut m, 100, 1526);
    m.rx.want_call();
    m.rx.was_called();
    let frame = pattern(60_000, 3);
    let (_, sink) = m.link.halves();
    let slot = sink.reserve(frame.len()).expect("room");
    let mut spans = Vec::new();
    sink.room(&slot, 0, &mut spans);
    assert_eq!(span::total_mut(&spans), frame.len());
    span::scatter(&spans, 0, &frame);
    drop(spans);
    sink.commit(slot, frame.len(), Offload::default());
    assert!(m.rx.used().is_none(), "nothing is visible before the flush");
    let (_, sink) = m.link.halves();
    sink.flush().expect("flush");
    assert!(m.rx.was_called());
    let used = m.rx.all_used();
    assert_eq!(used.len(), 60_012usize.div_ceil(1526));
    let mut bytes = Vec::new();
    for (n, (_, len)) in used.iter().enumerate() {
        bytes.extend(m.memory.read(BUFFERS + n as u64 * 1536, *len as usize));
    }
    assert_eq!(bytes[10..12], (used.len() as u16).to_le_bytes());
    assert_eq!(bytes[12..], frame[..]);
}

#[test]
fn unused_room_goes_back_to_the_ring() {
    let mut m = Machine::new(Options::default());
    post(&mut m, 8, 1526);
    let (_, sink) = m.link.halves();
    let slots: Vec<_> = (0..4).map(|_| sink.reserve(2000).expect("room")).collect();
    assert_eq!(sink.reserve(100).unwrap_err(), Refused::Full);
    let mut slots = slots.into_iter();
    let first = slots.next().expect("slot");
    sink.write(&first, 0, &pattern(100, 1));
    sink.commit(first, 100, Offload::default());
    for slot in slots {
        sink.cancel(slot);
    }
    sink.flush().expect("flush");
    assert_eq!(m.rx.all_used(), [(0, 112)]);
    assert_eq!(m.stop_ring(0), 1, "seven chains are still the driver's");
    assert_eq!(m.stop_ring(1), 0);
}

#[test]
fn short_frames_are_padded_with_zeros() {
    let mut m = Machine::new(Options::default());
    m.memory.write_fast(BUFFERS, &[0xee; 100]);
    post(&mut m, 1, 1526);
    let (_, sink) = m.link.halves();
    let slot = sink.reserve(42).expect("room");
    sink.write(&slot, 0, &[0xaa; 42]);
    sink.commit(slot, 42, Offload::default());
    sink.flush().expect("flush");
    assert_eq!(m.rx.used(), Some((0, 72)));
    let bytes = m.memory.read(BUFFERS + 12, 62);
    assert_eq!(bytes, [[0xaa; 42].as_slice(), &[0; 18], &[0xee; 2]].concat());
}

#[test]
fn every_combination_of_ring_features_carries_frames() {
    let toggles = [
        features::MRG_RXBUF,
        features::EVENT_IDX,
        features::INDIRECT_DESC,
        features::CSUM | features::GUEST_CSUM,
        features::PROTOCOL_FEATURES,
    ];
    for combination in 0..1 << toggles.len() {
        let mut features = features::ALL;
        for (n, toggle) in toggles.iter().enumerate() {
            if combination >> n & 1 == 0 {
                features &= !toggle;
            }
        }
        let mut m = Machine::new(Options { features, size: 16, ..Options::default() });
        assert_eq!(m.link.features() & !features, 0);
        for round in 0..40 {
            let frame = pattern(1514, round);
            let buffer = outgoing(&m, BUFFERS, &frame);
            m.tx.add(&[buffer]);
            m.tx.publish();
            assert!(m.pump().frames || round == 0, "{features:x}, round {round}");
            assert_eq!(receive_all(&mut m), std::slice::from_ref(&frame), "{features:x}");
            assert_eq!(m.tx.all_used().len(), 1);
            m.rx.add(&[room(BUFFERS + 0x1_0000, 1600)]);
            m.rx.publish();
            let (_, sink) = m.link.halves();
            let slot = sink.reserve(frame.len()).expect("room");
            sink.write(&slot, 0, &frame);
            sink.commit(slot, frame.len(), Offload::default());
            sink.flush().expect("flush");
            assert_eq!(m.rx.all_used().len(), 1);
            assert_eq!(m.memory.read(BUFFERS + 0x1_0000 + 12, 1514), frame);
        }
    }
}
