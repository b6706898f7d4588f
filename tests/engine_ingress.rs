//! What the engine takes from a guest: every check of a frame, and what comes of those that pass.

mod common;

use common::packets::*;
use common::rig::*;
use passt::engine::Settings;
use passt::engine::counters::DropReason;
use passt::link::{MAX_FRAME, Offload, PartialChecksum, Segmentation, SegmentationKind};
use passt::time::Duration;
use std::net::IpAddr;

const GUEST: (IpAddr, u16) = (GUEST_V4, 4000);
const PEER: (IpAddr, u16) = (PEER_V4, 9);
const GUEST6: (IpAddr, u16) = (GUEST_V6, 4000);
const PEER6: (IpAddr, u16) = (PEER_V6, 9);

fn good4() -> Vec<u8> {
    udp(GUEST, PEER, b"payload")
}

fn good6() -> Vec<u8> {
    udp(GUEST6, PEER6, b"payload")
}

/// `frame` with some bytes replaced.
fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// All drops that one frame causes; nothing may come back, and no flow may be made.
#[track_caller]
fn drops(frame: Vec<u8>) -> Vec<(DropReason, u64)> {
    drops_of(Rig::new(), frame, Offload::default())
}

#[track_caller]
fn drops_of(mut rig: Rig, frame: Vec<u8>, offload: Offload) -> Vec<(DropReason, u64)> {
    assert!(rig.send_with(frame, offload).is_empty());
    assert_eq!((rig.engine.tcp_flows(), rig.engine.datagram_flows()), (0, 0));
    rig.all_drops()
}

/// What a frame makes the host send.
#[track_caller]
fn passes(frame: Vec<u8>) -> Vec<u8> {
    let mut rig = Rig::new();
    let answers = rig.send(frame);
    assert!(answers.is_empty() && rig.all_drops().is_empty(), "{:?}", rig.all_drops());
    let sent = rig.datagrams(0).sent.clone();
    assert_eq!(sent.len(), 1);
    sent.into_iter().next().expect("one").0
}

#[test]
fn frames_of_impossible_length_are_counted() {
    assert_eq!(drops(Vec::new()), [(DropReason::BadLength, 1)]);
    assert_eq!(drops(good4()[..13].to_vec()), [(DropReason::BadLength, 1)]);
    assert_eq!(drops(vec![0; MAX_FRAME + 1]), [(DropReason::BadLength, 1)]);
    assert_eq!(drops(good4()[..14].to_vec()), [(DropReason::BadIpHeader, 1)]);
}

#[test]
fn other_ethertypes_are_counted() {
    for ether_type in [[0u8, 0], [0x81, 0], [0x88, 0xcc], [0xff, 0xff]] {
        assert_eq!(drops(with(good4(), 12, &ether_type)), [(DropReason::UnknownEtherType, 1)]);
    }
}

#[test]
fn the_destination_mac_does_not_matter() {
    assert_eq!(passes(with(good4(), 0, &[2, 9, 9, 9, 9, 9])), b"payload");
}

#[test]
fn ipv4_headers_that_do_not_hold_together_are_counted() {
    let good = good4();
    for (name, frame) in [
        ("header cut off", good[..33].to_vec()),
        ("version 5", with(good.clone(), 14, &[0x55])),
        ("version 6 under the EtherType of 4", with(good.clone(), 14, &[0x65])),
        ("header of 16 bytes", with(good.clone(), 14, &[0x44])),
        ("header beyond the frame", with(good.clone(), 14, &[0x4f])),
        ("total length beyond the frame", with(good.clone(), 16, &[0, 36])),
        ("total length below the header", with(good.clone(), 16, &[0, 19])),
        ("reserved flag", with(good.clone(), 20, &[0x80])),
    ] {
        assert_eq!(drops(frame), [(DropReason::BadIpHeader, 1)], "{name}");
    }
}

#[test]
fn what_ipv4_need_not_check_passes() {
    let good = good4();
    assert_eq!(passes(with(good.clone(), 24, &[0xde, 0xad])), b"payload", "header checksum");
    assert_eq!(passes(with(good.clone(), 15, &[0xff])), b"payload", "type of service");
    assert_eq!(passes(with(good.clone(), 18, &[9, 9])), b"payload", "identification");
    assert_eq!(passes(with(good.clone(), 40, &[1, 2])), b"payload", "UDP checksum");
    assert_eq!(passes([&good[..], &[0xee; 30]].concat()), b"payload", "padding");
    let mut options = good.clone();
    options[14] = 0x4f;
    options[16..18].copy_from_slice(&(60u16 + 15).to_be_bytes());
    let options = [&options[..34], &[1; 40], &good[34..]].concat();
    assert_eq!(passes(options), b"payload", "40 bytes of options");
}

#[test]
fn all_options_of_ipv4_and_tcp_together_are_no_obstacle() {
    let end = End::new(GUEST, PEER);
    let options = [&[2u8, 4, 0x05, 0xb4][..], &[1; 36]].concat();
    let syn = Tcp { options, ..end.segment(SYN, b"") };
    let mut frame = syn.frame();
    frame[14] = 0x4f;
    frame[16..18].copy_from_slice(&120u16.to_be_bytes());
    let frame = [&frame[..34], &[1; 40], &frame[34..]].concat();
    let mut rig = Rig::new();
    assert_eq!(only_tcp(&rig.send(frame)).flags, SYN | ACK);
}

#[test]
fn loopback_addresses_have_no_place_on_a_link() {
    for addr in [[127, 0, 0, 1], [127, 255, 255, 254]] {
        for at in [26, 30] {
            assert_eq!(drops(with(good4(), at, &addr)), [(DropReason::Loopback, 1)]);
        }
    }
    let loopback = octets("::1".parse().unwrap());
    for at in [22, 38] {
        assert_eq!(drops(with(good6(), at, &loopback)), [(DropReason::Loopback, 1)]);
    }
}

#[test]
fn a_family_that_is_off_is_dropped_with_its_arp() {
    let mut off = settings();
    off.view.v4 = None;
    let none = Offload::default();
    assert_eq!(drops_of(Rig::with(off.clone()), good4(), none), [(DropReason::FamilyDisabled, 1)]);
    let found = drops_of(Rig::with(off.clone()), arp_request(GATEWAY_V4), none);
    assert_eq!(found, [(DropReason::ServiceIgnored, 1)]);
    let mut rig = Rig::with(off);
    rig.send(good6());
    assert_eq!(rig.datagrams(0).sent.len(), 1, "the other family goes on");
    let mut off = settings();
    off.view.v6 = None;
    assert_eq!(drops_of(Rig::with(off), good6(), none), [(DropReason::FamilyDisabled, 1)]);
}

fn arp_request(target: IpAddr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend(GUEST_MAC);
    packet.extend(octets(GUEST_V4));
    packet.extend([0; 6]);
    packet.extend(octets(target));
    ethernet(0x0806, &packet)
}

#[test]
fn ipv6_headers_that_do_not_hold_together_are_counted() {
    let good = good6();
    for (name, frame) in [
        ("header cut off", good[..53].to_vec()),
        ("version 4", with(good.clone(), 14, &[0x40])),
        ("payload beyond the frame", with(good.clone(), 18, &[0, 16])),
        ("hop-by-hop options without end", with(good.clone(), 20, &[0])),
        ("routing header without end", with(good.clone(), 20, &[43])),
    ] {
        assert_eq!(drops(frame), [(DropReason::BadIpHeader, 1)], "{name}");
    }
    assert_eq!(passes([&good[..], &[0xee; 30]].concat()), b"payload", "padding (B 22)");
    assert_eq!(passes(with(good, 15, &[0xff, 0xff, 0xff])), b"payload", "class and label");
}

/// A UDP datagram behind extension headers, given as (protocol, header without its first byte).
fn extended(headers: &[(u8, Vec<u8>)], last: u8) -> Vec<u8> {
    let message = udp_message(GUEST6, PEER6, b"payload");
    let mut payload = Vec::new();
    for (index, (_, header)) in headers.iter().enumerate() {
        payload.push(headers.get(index + 1).map_or(last, |(protocol, _)| *protocol));
        payload.extend(header);
    }
    payload.extend(message);
    ip(GUEST_V6, PEER_V6, headers.first().map_or(last, |(protocol, _)| *protocol), 64, &payload)
}

fn options(units: u8) -> Vec<u8> {
    [vec![units], vec![0; 6 + 8 * usize::from(units)]].concat()
}

#[test]
fn appendix_b_3_extension_headers_are_walked() {
    let atomic = (44, vec![0, 0, 0, 0, 0, 0, 7]);
    let authentication = (51, [vec![1], vec![0; 10]].concat());
    for headers in [
        vec![],
        vec![(0, options(0))],
        vec![(60, options(0))],
        vec![(43, options(2))],
        vec![(0, options(1)), (43, options(0)), (60, options(3))],
        vec![atomic.clone()],
        vec![(60, options(0)), atomic, authentication, (60, options(1))],
        vec![(60, options(30))],
    ] {
        assert_eq!(passes(extended(&headers, 17)), b"payload", "{headers:?}");
    }
}

#[test]
fn extension_headers_that_lead_nowhere_are_counted() {
    let many = vec![(60, options(0)); 9];
    for (headers, last, reason) in [
        (vec![(60, options(0)), (0, options(0))], 17, DropReason::BadIpHeader),
        (many, 17, DropReason::BadIpHeader),
        (vec![(60, options(33))], 17, DropReason::BadIpHeader),
        (vec![], 59, DropReason::UnknownProtocol),
        (vec![(60, options(0))], 59, DropReason::UnknownProtocol),
        (vec![], 50, DropReason::UnknownProtocol),
        (vec![], 135, DropReason::UnknownProtocol),
        (vec![], 139, DropReason::UnknownProtocol),
        (vec![], 253, DropReason::UnknownProtocol),
        (vec![], 132, DropReason::UnknownProtocol),
    ] {
        assert_eq!(drops(extended(&headers, last)), [(reason, 1)], "{headers:?} {last}");
    }
}

#[test]
fn transport_headers_that_do_not_hold_together_are_counted() {
    let bad = [(DropReason::BadTransportHeader, 1)];
    for length in [0u16, 7, 16, 0xffff] {
        assert_eq!(drops(with(good4(), 38, &length.to_be_bytes())), bad, "UDP length {length}");
        assert_eq!(drops(with(good6(), 58, &length.to_be_bytes())), bad, "UDP length {length}");
    }
    assert_eq!(drops(ip(GUEST_V4, PEER_V4, 17, 64, &[1; 7])), bad, "UDP cut off");
    assert_eq!(passes(with(good4(), 38, &[0, 11])), b"pay", "what lies behind is padding (B 15)");
    let syn = End::new(GUEST, PEER).syn();
    for offset in [0x00, 0x40, 0xf0] {
        assert_eq!(drops(with(syn.clone(), 46, &[offset])), bad, "data offset {offset:#x}");
    }
    assert_eq!(drops(ip(GUEST_V4, PEER_V4, 6, 64, &[1; 19])), bad, "TCP cut off");
}

#[test]
fn a_bad_data_offset_harms_no_connection() {
    let mut rig = Rig::new();
    let mut end = End::new(GUEST, PEER);
    let syn = end.syn();
    let answer = only_tcp(&rig.send(syn));
    end.take(&answer);
    let frame = end.segment(ACK, b"data").frame();
    assert!(rig.send(with(frame.clone(), 46, &[0xf0])).is_empty());
    assert!(rig.send(with(frame, 46, &[0x10])).is_empty());
    assert_eq!(rig.drops(DropReason::BadTransportHeader), 2);
    let frame = end.next(0, b"data");
    rig.send(frame);
    assert_eq!(rig.sock(0).sent, b"data");
}

#[test]
fn tcp_checksums_are_not_verified() {
    let mut rig = Rig::new();
    let syn = End::new(GUEST, PEER).syn();
    assert_eq!(only_tcp(&rig.send(with(syn, 50, &[0xba, 0xad]))).flags, SYN | ACK);
}

#[test]
fn icmp_but_echo_requests_is_counted() {
    let echo = |kind| sum(GUEST_V4, PEER_V4, 1, 2, vec![kind, 0, 0, 0, 0, 7, 0, 1, b'x']);
    for (kind, reason) in [
        (0, DropReason::UnknownProtocol),
        (3, DropReason::UnknownProtocol),
        (13, DropReason::UnknownProtocol),
    ] {
        assert_eq!(drops(ip(GUEST_V4, PEER_V4, 1, 64, &echo(kind))), [(reason, 1)]);
    }
    assert_eq!(
        drops(ip(GUEST_V4, PEER_V4, 1, 64, &echo(8)[..7])),
        [(DropReason::UnknownProtocol, 1)]
    );
    // The messages of the other family.
    assert_eq!(drops(ip(GUEST_V4, PEER_V4, 58, 64, &echo(8))), [(DropReason::UnknownProtocol, 1)]);
    assert_eq!(drops(ip(GUEST_V6, PEER_V6, 1, 64, &echo(128))), [(DropReason::UnknownProtocol, 1)]);
}

#[test]
fn other_protocols_and_those_that_are_off_are_counted() {
    for protocol in [2, 47, 50, 132, 255] {
        let frame = ip(GUEST_V4, PEER_V4, protocol, 64, &[0; 20]);
        assert_eq!(drops(frame), [(DropReason::UnknownProtocol, 1)]);
    }
    let off = |change: fn(&mut Settings)| {
        let mut settings = settings();
        change(&mut settings);
        Rig::with(settings)
    };
    let none = Offload::default();
    let disabled = [(DropReason::ProtocolDisabled, 1)];
    assert_eq!(drops_of(off(|s| s.protocols.udp = false), good4(), none), disabled);
    let syn = End::new(GUEST, PEER).syn();
    assert_eq!(drops_of(off(|s| s.protocols.tcp = false), syn, none), disabled);
    let echo = sum(GUEST_V4, PEER_V4, 1, 2, vec![8, 0, 0, 0, 0, 7, 0, 1]);
    let echo = ip(GUEST_V4, PEER_V4, 1, 64, &echo);
    assert_eq!(drops_of(off(|s| s.protocols.icmp = false), echo, none), disabled);
}

// ---- What the guest is taken for.

#[test]
fn replies_go_to_the_mac_that_was_seen_last() {
    let mut rig = Rig::new();
    let mac = |frames: &[Vec<u8>]| frames[0][..6].to_vec();
    rig.send(good4());
    assert_eq!(mac(&rig.remote_sends(0, &[b"x"])), GUEST_MAC);
    let other = [2, 0, 0, 0, 0, 9];
    rig.send(with(good4(), 6, &other));
    assert_eq!(mac(&rig.remote_sends(0, &[b"x"])), other);
    for nobody in [[0xff; 6], [1, 0, 0, 0, 0, 1], [0; 6]] {
        rig.send(with(good4(), 6, &nobody));
        assert_eq!(mac(&rig.remote_sends(0, &[b"x"])), other, "{nobody:?} is nobody's");
    }
}

#[test]
fn connections_from_outside_go_to_the_address_that_was_seen_last() {
    use passt::flow::Endpoint;
    let mut rig = Rig::new();
    let mut port = 1;
    let mut target = |rig: &mut Rig| {
        port += 1;
        let peer = Endpoint::new([198, 51, 100, 1].into(), port);
        let local = Endpoint::new([192, 0, 2, 1].into(), HOST_PORT);
        rig.engine.host_mut().state().borrow_mut().backlog.push_back(Ok((peer, local, 0)));
        only_tcp(&rig.knock()).dst.0
    };
    assert_eq!(target(&mut rig), GUEST_V4);
    let other: IpAddr = [10, 0, 0, 77].into();
    rig.send(udp((other, 1), PEER, b"here I am"));
    assert_eq!(target(&mut rig), other);
    for nobody in [[0, 0, 0, 0], [224, 0, 0, 1], [255, 255, 255, 255]] {
        rig.send(udp((nobody.into(), 1), PEER, b"nobody"));
        assert_eq!(target(&mut rig), other);
    }
    rig.send(with(udp(GUEST, PEER, b"a whole one"), 20, &[0x20]));
    assert_eq!(target(&mut rig), other, "a fragment alone teaches nothing");
}

// ---- Offload headers.

fn cut(kind: SegmentationKind, size: u16, header_len: u16) -> Offload {
    Offload { segmentation: Some(Segmentation { kind, size, header_len }), ..Offload::default() }
}

fn partial(start: u16, offset: u16) -> Offload {
    Offload { checksum: Some(PartialChecksum { start, offset }), ..Offload::default() }
}

#[test]
fn offload_fields_that_do_not_fit_the_frame_are_counted() {
    use SegmentationKind::{Tcp4, Tcp6, Udp};
    let syn4 = || End::new(GUEST, PEER).syn();
    let syn6 = || End::new(GUEST6, PEER6).syn();
    let len = good4().len() as u16;
    for (name, frame, offload) in [
        ("checksum behind the frame", good4(), partial(len - 1, 0)),
        ("checksum far behind", good4(), partial(0xffff, 0xffff)),
        ("TCP segments of UDP", good4(), cut(Tcp4, 100, 42)),
        ("UDP segments of TCP", syn4(), cut(Udp, 100, 54)),
        ("IPv6 segments of IPv4", syn4(), cut(Tcp6, 100, 54)),
        ("IPv4 segments of IPv6", syn6(), cut(Tcp4, 100, 74)),
        ("headers longer than the frame", good4(), cut(Udp, 100, len + 1)),
        ("segments of nothing", good4(), cut(Udp, 0, 42)),
        ("segments of ARP", arp_request(GATEWAY_V4), cut(Udp, 1, 14)),
        ("segments of a fragment", with(good4(), 20, &[0x20]), cut(Udp, 2, 42)),
        ("more segments than any kernel makes", udp(GUEST, PEER, &[0; 1400]), cut(Udp, 1, 42)),
    ] {
        assert_eq!(drops_of(Rig::new(), frame, offload), [(DropReason::BadOffload, 1)], "{name}");
    }
}

#[test]
fn offload_fields_that_fit_change_nothing_of_the_payload() {
    for (frame, offload) in [
        (good4(), partial(34, 6)),
        (good4(), partial(good4().len() as u16 - 2, 0)),
        (good4(), cut(SegmentationKind::Udp, 7, 0)),
        (good4(), cut(SegmentationKind::Udp, 0xffff, 42)),
        (good6(), cut(SegmentationKind::Udp, 1000, 62)),
    ] {
        let mut rig = Rig::new();
        rig.send_with(frame, offload);
        assert_eq!(rig.datagrams(0).sent, [(b"payload".to_vec(), 64)]);
    }
    let mut rig = Rig::new();
    rig.send_with(good4(), cut(SegmentationKind::Udp, 3, 42));
    let sent = [&b"pay"[..], b"loa", b"d"].map(|part| (part.to_vec(), 64));
    assert_eq!(rig.datagrams(0).sent, sent);
}

// ---- Fragments.

/// The fragments of a UDP datagram, `size` bytes of it in each.
fn fragments(id: u16, payload: &[u8], size: usize, v6: bool) -> Vec<Vec<u8>> {
    let (guest, peer) = if v6 { (GUEST6, PEER6) } else { (GUEST, PEER) };
    let message = udp_message(guest, peer, payload);
    let count = message.len().div_ceil(size);
    let parts = message.chunks(size).enumerate();
    parts
        .map(|(index, part)| {
            let more = index + 1 < count;
            if v6 {
                let field = (index * size) as u16 | u16::from(more);
                let mut header = vec![17, 0];
                header.extend(field.to_be_bytes());
                header.extend(u32::from(id).to_be_bytes());
                ip(guest.0, peer.0, 44, 64, &[&header, part].concat())
            } else {
                let field = (index * size / 8) as u16 | if more { 0x2000 } else { 0 };
                let frame = ip(guest.0, peer.0, 17, 64, part);
                with(with(frame, 18, &id.to_be_bytes()), 20, &field.to_be_bytes())
            }
        })
        .collect()
}

#[test]
fn fragments_in_any_order_become_a_datagram_in_its_place_among_others() {
    let payload: Vec<u8> = (0..3000).map(|i| i as u8).collect();
    for v6 in [false, true] {
        let mut rig = Rig::new();
        let mut frames = fragments(1, &payload, 1200, v6);
        frames.reverse();
        let (guest, peer) = if v6 { (GUEST6, PEER6) } else { (GUEST, PEER) };
        frames.insert(1, udp(guest, peer, b"first"));
        frames.push(udp(guest, peer, b"last"));
        rig.offer(&frames);
        let sent = rig.datagrams(0).sent.clone();
        let sent: Vec<_> = sent.iter().map(|(bytes, _)| &bytes[..]).collect();
        assert_eq!(sent, [b"first", &payload[..], b"last"]);
        assert_eq!(rig.all_drops(), []);
    }
}

#[test]
fn fragments_of_one_id_but_other_ends_do_not_mix() {
    let mut rig = Rig::new();
    let ours = fragments(1, &[1; 100], 56, false);
    let other = with(ours[1].clone(), 30, &[192, 0, 2, 81]);
    rig.offer(&[ours[0].clone(), other]);
    assert_eq!(rig.engine.datagram_flows(), 0);
    rig.send(ours[1].clone());
    assert_eq!(rig.datagrams(0).sent.len(), 1);
}

#[test]
fn fragments_that_overlap_or_make_no_sense_are_counted() {
    let parts = fragments(1, &[1; 100], 56, false);
    let overlap = with(parts[1].clone(), 21, &[6]);
    let mut rig = Rig::new();
    rig.offer(&[parts[0].clone(), overlap, parts[1].clone()]);
    assert_eq!(rig.all_drops(), [(DropReason::Fragment, 1)]);
    assert_eq!(rig.engine.datagram_flows(), 0);
    // Fragments of TCP.
    let mut rig = Rig::new();
    let message = Tcp { options: vec![], ..End::new(GUEST, PEER).segment(SYN, &[0; 60]) }.message();
    let first = with(ip(GUEST_V4, PEER_V4, 6, 64, &message[..40]), 20, &[0x20]);
    let last = with(ip(GUEST_V4, PEER_V4, 6, 64, &message[40..]), 20, &[0, 5]);
    assert!(rig.offer(&[first, last]).is_empty());
    assert_eq!(rig.all_drops(), [(DropReason::Fragment, 1)]);
}

#[test]
fn fragments_that_never_become_a_datagram_are_forgotten_and_counted() {
    let mut rig = Rig::new();
    let parts = fragments(1, &[1; 100], 56, false);
    rig.send(parts[0].clone());
    rig.after(Duration::from_secs(31));
    assert_eq!(rig.all_drops(), [(DropReason::Fragment, 1)]);
    rig.send(parts[1].clone());
    assert_eq!(rig.engine.datagram_flows(), 0);
    // Too many at once: the oldest go.
    let mut rig = Rig::new();
    for id in 0..100 {
        rig.send(fragments(id, &[1; 100], 56, false)[0].clone());
    }
    assert_eq!(rig.drops(DropReason::Fragment), 100 - 64);
    rig.send(fragments(99, &[1; 100], 56, false)[1].clone());
    assert_eq!(rig.datagrams(0).sent.len(), 1);
}

#[test]
fn services_do_not_take_fragments() {
    let parts = fragments(1, &[1; 300], 160, false);
    let mut rig = Rig::new();
    for frame in parts {
        // To the DHCP server's port; the second part has other bytes there.
        let frame = if frame[20] & 0x20 != 0 { with(frame, 36, &[0, 67]) } else { frame };
        assert!(rig.send(frame).is_empty());
    }
}

#[test]
fn counters_name_every_frame_that_came_to_nothing() {
    let mut rig = Rig::new();
    let frames = [good4(), with(good4(), 12, &[9, 9]), good4()[..20].to_vec(), good6()];
    rig.offer(&frames);
    let total: u64 = rig.all_drops().iter().map(|(_, n)| n).sum();
    assert_eq!((total, rig.engine.datagram_flows()), (2, 2));
}
