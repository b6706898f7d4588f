//! UDP and pings through the engine, where its own tests leave off: back-pressure, fragments
//! towards the guest, and hosts that behave oddly.

mod common;

use common::packets::*;
use common::rig::*;
use passt::engine::Settings;
use passt::engine::counters::DropReason;
use passt::flow::Endpoint;
use passt::link::{Link, MAX_FRAME, Offload, Segmentation, SegmentationKind};
use passt::time::Duration;
use passt::token::{Readiness, Token};
use std::net::IpAddr;

const GUEST: (IpAddr, u16) = (GUEST_V4, 4000);
const PEER: (IpAddr, u16) = (PEER_V4, 9);
const GUEST6: (IpAddr, u16) = (GUEST_V6, 4000);
const PEER6: (IpAddr, u16) = (PEER_V6, 9);

/// A flow that the guest has opened; its socket is number 0.
fn opened(v6: bool) -> Rig {
    let mut rig = Rig::new();
    open(&mut rig, v6);
    rig
}

fn open(rig: &mut Rig, v6: bool) {
    let frame = if v6 { udp(GUEST6, PEER6, b"query") } else { udp(GUEST, PEER, b"query") };
    assert!(rig.send(frame).is_empty());
}

/// The payload of a UDP datagram to the guest, whose checksum must be right.
#[track_caller]
fn read_udp(frame: &[u8]) -> Vec<u8> {
    let ip = read_ip(frame);
    assert_eq!((ip.protocol, ip.ttl), (17, 255));
    datagram(ip.src, ip.dst, &ip.payload)
}

#[track_caller]
fn datagram(src: IpAddr, dst: IpAddr, bytes: &[u8]) -> Vec<u8> {
    let len = usize::from(u16::from_be_bytes([bytes[4], bytes[5]]));
    assert_eq!(len, bytes.len(), "the length field");
    assert_eq!(checksum(&[&pseudo(src, dst, 17, len), bytes]), 0, "UDP checksum");
    bytes[8..].to_vec()
}

fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i.wrapping_mul(29) >> 4) as u8).collect()
}

/// Puts fragments to the guest together.
#[track_caller]
fn reassemble(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut ids = std::collections::BTreeSet::new();
    let mut ends = None;
    for (index, frame) in frames.iter().enumerate() {
        assert!(frame.len() <= 1514, "longer than the MTU");
        let ip = read_ip(frame);
        let (id, offset, more, part) = match ip.src {
            IpAddr::V4(_) => {
                let (id, field) = ip.fragment;
                assert_eq!(field & 0xc000, 0, "no DF on fragments");
                (u32::from(id), usize::from(field & 0x1fff) * 8, field & 0x2000 != 0, ip.payload)
            }
            IpAddr::V6(_) => {
                assert_eq!((ip.protocol, ip.payload[0]), (44, 17));
                let field = u16::from_be_bytes([ip.payload[2], ip.payload[3]]);
                let id = u32::from_be_bytes(ip.payload[4..8].try_into().unwrap());
                (id, usize::from(field & 0xfff8), field & 1 != 0, ip.payload[8..].to_vec())
            }
        };
        assert_eq!((offset, more), (bytes.len(), index + 1 < frames.len()));
        ids.insert(id);
        bytes.extend(part);
        ends = Some((ip.src, ip.dst));
    }
    assert_eq!(ids.len(), 1, "one identification");
    let (src, dst) = ends.expect("a fragment at least");
    datagram(src, dst, &bytes)
}

#[test]
fn checksums_to_the_guest_are_right_with_and_without_its_help() {
    for v6 in [false, true] {
        let mut rig = opened(v6);
        for payload in [&b""[..], b"x", b"odd", &pattern(1400)] {
            assert_eq!(read_udp(&rig.remote_sends(0, &[payload])[0]), payload);
        }
        rig.link.sink.caps.checksum = true;
        let frame = rig.remote_sends(0, &[b"partial"]).remove(0);
        let ip = read_ip(&frame);
        let field = u16::from_be_bytes([ip.payload[6], ip.payload[7]]);
        assert_eq!(field, !checksum(&[&pseudo(ip.src, ip.dst, 17, ip.payload.len())]));
    }
}

#[test]
fn appendix_b_16_a_checksum_of_zero_is_sent_as_all_ones() {
    let mut rig = opened(true);
    let (mut zero, mut other) = (0, 0);
    for n in 0..=u16::MAX {
        let frame = rig.remote_sends(0, &[&n.to_be_bytes()]).remove(0);
        let field = &frame[14 + 40 + 6..][..2];
        zero += u32::from(field == [0, 0]);
        other += u32::from(field == [0xff, 0xff]);
    }
    assert_eq!((zero, other), (0, 1));
}

#[test]
fn what_exceeds_the_mtu_comes_in_fragments_whole_or_not_at_all() {
    for v6 in [false, true] {
        let mut rig = opened(v6);
        let largest = if v6 { 65_527 } else { 65_507 };
        for len in [1473, 1480, 3000, largest] {
            let payload = pattern(len);
            let frames = rig.remote_sends(0, &[&payload]);
            assert!(frames.len() > 1 && reassemble(&frames) == payload, "{len}");
        }
        rig.link.sink.free = 2;
        let payload = pattern(4000);
        assert!(rig.remote_sends(0, &[&payload]).is_empty(), "no part of it without the rest");
        assert!(rig.datagrams(0).paused);
        rig.link.sink.free = 100;
        assert_eq!(reassemble(&rig.room()), payload);
        assert!(!rig.datagrams(0).paused);
    }
}

#[test]
fn a_datagram_that_the_ring_never_holds_does_not_hold_up_the_rest_for_ever() {
    let mut rig = opened(false);
    rig.link.sink.free = 2;
    assert!(rig.remote_sends(0, &[&pattern(9000), b"behind"]).is_empty());
    let mut frames = Vec::new();
    for _ in 0..100 {
        rig.link.sink.free = 2;
        frames.extend(rig.room());
    }
    assert_eq!(frames.len(), 1);
    assert_eq!(read_udp(&frames[0]), b"behind");
    assert_eq!(rig.all_drops(), [(DropReason::NoRoom, 1)]);
}

#[test]
fn a_run_that_is_cut_for_want_of_room_goes_on_where_it_was() {
    let mut rig = opened(false);
    let run = pattern(10 * 100);
    let token = rig.datagrams(0).token;
    rig.datagrams(0).incoming.push_back((run.clone(), Some(100)));
    rig.link.sink.free = 3;
    let mut frames = rig.ready(token, READABLE);
    while frames.len() < 10 {
        rig.link.sink.free = 3;
        let more = rig.room();
        assert!(!more.is_empty());
        frames.extend(more);
    }
    let got: Vec<u8> = frames.iter().flat_map(|frame| read_udp(frame)).collect();
    assert_eq!(got, run, "each datagram once");
}

#[test]
fn late_datagrams_are_bounded_and_forgotten_with_their_flow() {
    let mut rig = opened(false);
    rig.link.sink.free = 1;
    let empty: Vec<&[u8]> = vec![b""; 32];
    assert_eq!(rig.remote_sends(0, &empty).len(), 1);
    for _ in 0..10 {
        let token = rig.datagrams(0).token;
        rig.datagrams(0).incoming.push_back((vec![1], None));
        assert!(rig.ready(token, READABLE).is_empty());
    }
    assert_eq!(rig.datagrams(0).incoming.len(), 10, "the rest waits in the socket");
    rig.after(Duration::from_secs(200));
    assert_eq!(rig.engine.datagram_flows(), 0);
    assert!(rig.datagrams(0).closed);
    rig.link.sink.free = 100;
    assert!(rig.room().is_empty());
}

#[test]
fn a_listeners_batch_that_finds_no_room_waits_with_its_flows() {
    let mut rig = Rig::new();
    rig.link.sink.free = 2;
    let to = Endpoint::new([192, 0, 2, 1].into(), HOST_PORT);
    for n in 0..10u8 {
        let from = Endpoint::new([198, 51, 100, n % 3 + 1].into(), 9);
        rig.engine.host_mut().state().borrow_mut().listener.push_back((vec![n], from, to));
    }
    let mut frames = rig.ready(Token::Listener(1), READABLE);
    assert_eq!(frames.len(), 2);
    assert!(rig.engine.host_mut().state().borrow().listener_paused);
    rig.link.sink.free = 100;
    frames.extend(rig.room());
    let mut got: Vec<u8> = frames.iter().flat_map(|frame| read_udp(frame)).collect();
    let order: Vec<Vec<u8>> =
        (0..3).map(|r| got.iter().copied().filter(|n| n % 3 == r).collect()).collect();
    assert!(order.iter().all(|flow| flow.is_sorted()), "in order within a flow: {got:?}");
    got.sort_unstable();
    assert_eq!(got, (0..10).collect::<Vec<u8>>());
    assert!(!rig.engine.host_mut().state().borrow().listener_paused);
    assert_eq!(rig.all_drops(), []);
}

#[test]
fn while_the_link_is_down_datagrams_wait_in_their_sockets() {
    let mut rig = opened(false);
    rig.link.sink.down = true;
    assert!(rig.remote_sends(0, &[b"later"]).is_empty());
    assert!(rig.datagrams(0).paused);
    rig.link.sink.down = false;
    rig.engine.on_link_up(rig.link.halves().1, rig.now);
    let frames = rig.flush();
    assert!(frames.iter().any(|f| f[12..14] == [8, 0] && read_udp(f) == b"later"));
}

#[test]
fn what_waits_for_long_for_a_guest_that_is_not_there_does_not_reach_the_next() {
    let to = Endpoint::new([192, 0, 2, 1].into(), HOST_PORT);
    for (millis, stale) in [(900, false), (1100, true)] {
        let mut rig = opened(false);
        // One finds no room any more, another is not even received, and so is a third at the door.
        rig.link.sink.free = 1;
        assert_eq!(rig.remote_sends(0, &[b"seen", b"late"]).len(), 1);
        rig.link.sink.free = 100;
        rig.link.sink.down = true;
        let from = Endpoint::new([198, 51, 100, 1].into(), 9);
        rig.datagrams(0).incoming.push_back((b"later".to_vec(), None));
        rig.engine.host_mut().state().borrow_mut().listener.push_back((vec![1], from, to));
        assert!(rig.ready(Token::Listener(1), READABLE).is_empty());
        rig.now = rig.now + Duration::from_millis(millis);
        rig.link.sink.down = false;
        rig.engine.on_link_up(rig.link.halves().1, rig.now);
        let is_udp = |frame: &&Vec<u8>| frame[12..14] == [8, 0];
        let got: Vec<_> = rig.flush().iter().filter(is_udp).map(|f| read_udp(f)).collect();
        let all = [&b"late"[..], b"later", &[1]];
        assert_eq!(got, if stale { &[][..] } else { &all[..] });
        assert_eq!(rig.drops(DropReason::Stale), if stale { 3 } else { 0 });
        // From now on all is as ever.
        assert!(!rig.datagrams(0).paused);
        assert_eq!(rig.engine.waiting(), 0);
        let frames = rig.remote_sends(0, &[b"new"]);
        assert_eq!(frames.iter().map(|f| read_udp(f)).collect::<Vec<_>>(), [b"new"]);
        // A link that was not down has nothing that is stale.
        rig.now = rig.now + Duration::from_secs(60);
        rig.engine.on_link_up(rig.link.halves().1, rig.now);
        assert_eq!(rig.drops(DropReason::Stale), if stale { 3 } else { 0 });
    }
}

#[test]
fn frames_that_never_fit_are_counted_and_hold_up_nothing() {
    let mut rig = opened(false);
    rig.link.sink.size = 200;
    let frames = rig.remote_sends(0, &[&pattern(1000), b"small", &pattern(2000), b"too"]);
    let got: Vec<_> = frames.iter().map(|frame| read_udp(frame)).collect();
    assert_eq!(got, [&b"small"[..], b"too"]);
    assert_eq!(rig.all_drops(), [(DropReason::TooLarge, 2)]);
}

#[test]
fn a_socket_whose_error_is_not_to_be_found_is_closed_in_the_end() {
    let mut rig = opened(false);
    let token = rig.datagrams(0).token;
    let error = Readiness { error: true, ..NOT_READY };
    for _ in 0..100 {
        assert!(rig.ready(token, error).is_empty());
    }
    assert_eq!(rig.engine.datagram_flows(), 0);
    open(&mut rig, false);
    assert_eq!(rig.engine.datagram_flows(), 1, "the next datagram has a new one");
}

#[test]
fn many_small_segments_are_few_messages() {
    let mut rig = Rig::new();
    rig.link.sink.caps.max_frame = MAX_FRAME;
    let payload = pattern(128 * 10);
    let segmentation = Some(Segmentation { kind: SegmentationKind::Udp, size: 10, header_len: 42 });
    let offload = Offload { segmentation, ..Offload::default() };
    for _ in 0..3 {
        rig.link.source.push(udp(GUEST, PEER, &payload), offload);
    }
    rig.turn();
    let sent = rig.datagrams(0).sent.clone();
    assert_eq!(sent.len(), 3 * 128);
    assert!(sent.iter().all(|(part, _)| part.len() == 10));
    assert_eq!(sent.iter().flat_map(|(part, _)| part.clone()).count(), 3 * payload.len());
}

#[test]
fn a_ping_without_a_socket_is_counted_and_the_next_may_have_one() {
    let mut rig = Rig::new();
    let echo = sum(GUEST_V4, PEER_V4, 1, 2, vec![8, 0, 0, 0, 0, 7, 0, 1, b'x']);
    let frame = ip(GUEST_V4, PEER_V4, 1, 64, &echo);
    rig.engine.host_mut().state().borrow_mut().open_errors.push_back(libc::EMFILE);
    assert!(rig.send(frame.clone()).is_empty());
    assert_eq!(rig.all_drops(), [(DropReason::NoSocket, 1)]);
    rig.send(frame);
    assert_eq!(rig.datagrams(0).sent, [(echo.clone(), 64)]);
    let mut reply = echo;
    reply[0] = 0;
    reply[4..6].copy_from_slice(&[0x12, 0x34]); // what the kernel made of the identifier
    let frames = rig.remote_sends(0, &[&reply]);
    let packet = read_ip(&frames[0]);
    assert_eq!((packet.src, packet.protocol), (PEER_V4, 1));
    assert_eq!(packet.payload[4..], [0, 7, 0, 1, b'x']);
    assert_eq!(checksum(&[&packet.payload]), 0);
}

#[test]
fn a_full_table_costs_datagrams_until_a_flow_ends() {
    let mut rig = Rig::with(Settings { max_flows: 1, ..settings() });
    open(&mut rig, false);
    // An exchange that nobody has answered would make way.
    assert_eq!(rig.remote_sends(0, &[b"answer"]).len(), 1);
    rig.send(udp((GUEST_V4, 1), PEER, b"one too many"));
    assert_eq!(rig.all_drops(), [(DropReason::TableFull, 1)]);
    rig.after(Duration::from_secs(31));
    rig.send(udp((GUEST_V4, 1), PEER, b"now"));
    assert_eq!(rig.datagrams(1).sent, [(b"now".to_vec(), 64)]);
}

#[test]
fn events_of_flows_that_are_gone_do_nothing() {
    let mut rig = opened(false);
    let old = rig.datagrams(0).token;
    rig.after(Duration::from_secs(31));
    open(&mut rig, false);
    rig.datagrams(1).incoming.push_back((b"not for the old one".to_vec(), None));
    assert!(rig.ready(old, Readiness { error: true, ..READABLE }).is_empty());
    assert_eq!(rig.datagrams(1).incoming.len(), 1);
}
