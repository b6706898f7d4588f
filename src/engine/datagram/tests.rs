//! UDP and pings between a scripted guest and a scripted host.

mod script;

use super::*;
use crate::host::{IcmpCause, Message, SocketError};
use crate::link::{Offload, Segmentation};
use crate::time::Duration;
use crate::time::Instant;
use crate::wire::ethernet;
use script::*;

const V4: (&str, &str) = ("192.0.2.10", "198.51.100.7");
const V6: (&str, &str) = ("2001:db8::10", "2001:db8:5::7");

/// A datagram of the guest's from port 4000 to port 9 of a remote host.
fn outgoing((guest, remote): (&str, &str), payload: &[u8]) -> Vec<u8> {
    datagram(end(guest, 4000), end(remote, 9), payload)
}

fn sent(bytes: &[u8]) -> Sent {
    Sent { bytes: bytes.to_vec(), segment: None, ttl: 64 }
}

#[test]
fn a_datagram_goes_out_and_its_answer_comes_back() {
    for (guest, remote) in [V4, V6] {
        let mut net = Net::new(1500);
        net.frame(outgoing((guest, remote), b"ping"));
        net.frame(outgoing((guest, remote), b""));
        let socket = &net.host().sockets[0];
        assert_eq!(socket.remote, end(remote, 9));
        assert!(socket.local.addr.is_unspecified() && socket.local.port == 4000);
        assert_eq!(socket.sent, [sent(b"ping"), sent(b"")]);
        net.arrive(0, b"pong");
        net.arrive(0, b"");
        for expected in [&b"pong"[..], b""] {
            let packet = net.received();
            assert_eq!(packet.udp(), (end(remote, 9), end(guest, 4000), expected));
        }
        net.nothing_more();
        assert_eq!(net.engine.datagram_flows(), 1);
    }
}

#[test]
fn datagrams_of_one_size_go_in_one_run() {
    let mut net = Net::new(1500);
    let frames: Vec<_> = [&b"aaaa"[..], b"bbbb", b"cc", b"dd", b"eeeeeeee"]
        .iter()
        .map(|payload| (outgoing(V4, payload), Offload::default()))
        .collect();
    net.frames(&frames);
    let run = |bytes: &[u8], size| Sent { segment: size, ..sent(bytes) };
    let expected = [run(b"aaaabbbbcc", Some(4)), run(b"dd", None), run(b"eeeeeeee", None)];
    assert_eq!(net.host().sockets[0].sent, expected);
}

#[test]
fn flows_of_one_batch_keep_their_order_and_their_ttl() {
    let mut net = Net::new(1500);
    let other = ("192.0.2.10", "203.0.113.9");
    let ttl = |payload, ttl| {
        let (from, to) = (end(V4.0, 4000), end(V4.1, 9));
        (datagram_with(from, to, payload, ttl), Offload::default())
    };
    net.frames(&[
        ttl(b"1", 64),
        (outgoing(other, b"x"), Offload::default()),
        ttl(b"2", 1),
        ttl(b"3", 64),
        (outgoing(other, b"yy"), Offload::default()),
    ]);
    let sockets = &net.host().sockets;
    assert_eq!(sockets[0].sent, [sent(b"1"), Sent { ttl: 1, ..sent(b"2") }, sent(b"3")]);
    assert_eq!(sockets[1].sent, [sent(b"x"), sent(b"yy")]);
}

fn segmented(size: u16) -> Offload {
    let cut = Segmentation { kind: SegmentationKind::Udp, size, header_len: 42 };
    Offload { checksum: None, segmentation: Some(cut) }
}

#[test]
fn a_segmented_frame_is_a_run() {
    let mut net = Net::new(1500);
    net.frames(&[
        (outgoing(V4, &[7; 2500]), segmented(1000)),
        (outgoing(V6, &[8; 1000]), segmented(1000)),
    ]);
    let whole = Sent { segment: Some(1000), ..sent(&[7; 2500]) };
    assert_eq!(net.host().sockets[0].sent, [whole]);
    assert_eq!(net.host().sockets[1].sent, [sent(&[8; 1000])], "one datagram is no run");
    let tcp = Segmentation { kind: SegmentationKind::Tcp4, size: 4, header_len: 42 };
    net.frames(&[(outgoing(V4, b"12345678"), Offload { segmentation: Some(tcp), ..segmented(1) })]);
    assert_eq!(net.engine.drops().get(DropReason::BadOffload), 1);
}

#[test]
fn where_the_path_refuses_runs_datagrams_go_one_by_one() {
    let mut net = Net::new(1500);
    net.frame(outgoing(V4, b"first"));
    // Refused, and refused again when no earlier error is in the way.
    net.host().sockets[0].outcomes.extend([Err(libc::EINVAL), Err(libc::EINVAL)]);
    let frames: Vec<_> =
        [b"aa", b"bb"].iter().map(|payload| (outgoing(V4, *payload), Offload::default())).collect();
    net.frames(&frames);
    net.frames(&frames);
    let one_by_one = [b"aa", b"bb", b"aa", b"bb"].map(|payload| sent(payload));
    assert_eq!(net.host().sockets[0].sent[1..], one_by_one);
}

#[test]
fn a_datagram_that_the_host_refuses_stops_no_other() {
    let mut net = Net::new(1500);
    net.frame(outgoing(V4, b"first"));
    net.host().sockets[0].outcomes.extend([Ok(1), Err(libc::EMSGSIZE), Err(libc::EMSGSIZE)]);
    let payloads = [&b"a"[..], b"bb", b"ccc"];
    net.frames(&payloads.map(|payload| (outgoing(V4, payload), Offload::default())));
    assert_eq!(net.host().sockets[0].sent[1..], [sent(b"a"), sent(b"ccc")]);
    assert_eq!(net.engine.drops().get(DropReason::NotSent), 1);
    // A full socket takes nothing of a batch; nothing waits, nothing spins.
    net.host().sockets[0].outcomes.push_back(Err(libc::EAGAIN));
    net.frames(&payloads.map(|payload| (outgoing(V4, payload), Offload::default())));
    assert_eq!(net.engine.drops().get(DropReason::NotSent), 4);
}

/// What so many segmented frames of 128 datagrams each cost a socket that has refused runs before:
/// calls, and messages that were handed over.
fn cost_of_trouble(frames: usize, trouble: impl Fn(&mut Socket)) -> (usize, usize) {
    let mut net = Net::new(1500);
    net.frame(outgoing(V4, b"first"));
    let socket = &mut net.host().sockets[0];
    (socket.calls, socket.offered) = (0, 0);
    trouble(socket);
    net.frames(&vec![(outgoing(V4, &[7; 128]), segmented(1)); frames]);
    let socket = &net.host().sockets[0];
    let (cost, sent) = ((socket.calls, socket.offered), socket.sent.len() - 1);
    assert_eq!(net.engine.drops().get(DropReason::NotSent) as usize, frames * 128 - sent);
    cost
}

#[test]
fn a_destination_that_refuses_everything_costs_a_few_calls_a_frame() {
    let (calls, offered) = cost_of_trouble(256, |socket| socket.refusing = Some(libc::EPERM));
    assert!(calls <= 256 * 5 && offered <= 256 * 10, "{calls}, {offered}");
    // Each datagram brings an error about, which the next call tells of before it sends one.
    let (calls, offered) = cost_of_trouble(256, |socket| {
        socket.outcomes = [Err(libc::EINVAL); 2].into();
        let one_by_one = [Err(libc::ECONNREFUSED), Ok(1)];
        socket.outcomes.extend(one_by_one.into_iter().cycle().take(256 * 128 * 2));
    });
    assert!(calls <= 256 * 5 && offered <= 256 * 10, "{calls}, {offered}");
}

#[test]
fn after_an_error_all_that_can_be_sent_is_sent_in_few_calls() {
    let (calls, _) = cost_of_trouble(256, |socket| {
        // Runs are refused, and later one datagram.
        socket.outcomes = [Err(libc::EINVAL), Err(libc::EINVAL), Ok(200)].into();
        socket.outcomes.extend([Err(libc::EPERM), Err(libc::EPERM)]);
    });
    assert!((128..=150).contains(&calls), "{calls}");
}

#[test]
fn an_earlier_error_does_not_cost_a_datagram() {
    let mut net = Net::new(1500);
    net.frame(outgoing(V4, b"first"));
    net.host().sockets[0].outcomes.push_back(Err(libc::ECONNREFUSED));
    net.frame(outgoing(V4, b"second"));
    assert_eq!(net.host().sockets[0].sent, [sent(b"first"), sent(b"second")]);
    assert_eq!(net.engine.drops().get(DropReason::NotSent), 0);
}

#[test]
fn answers_carry_the_name_that_the_guest_used() {
    let mut net = Net::new(1500);
    for (name, port, target) in [("192.0.2.1", 7, "127.0.0.1"), ("192.0.2.53", 53, "127.0.0.53")] {
        let index = net.host().sockets.len();
        net.frame(datagram(end("192.0.2.10", 4000), end(name, port), b"?"));
        assert_eq!(net.host().sockets[index].remote, end(target, port));
        net.arrive(index, b"!");
        assert_eq!(net.received().udp().0, end(name, port));
    }
}

fn unreachable(offender: &str, quoted: &[u8]) -> SocketError {
    let v4 = addr(offender).is_ipv4();
    let (kind, code) = if v4 { (3, 3) } else { (1, 4) };
    let icmp = Some(IcmpCause { offender: addr(offender), kind, code, info: 0 });
    SocketError { errno: libc::ECONNREFUSED, icmp, quoted: quoted.to_vec() }
}

#[test]
fn errors_of_the_network_reach_the_guest_as_icmp() {
    for ((guest, remote), kind_code) in [(V4, [3, 3]), (V6, [1, 4])] {
        let mut net = Net::new(1500);
        net.frame(outgoing((guest, remote), b"anyone?"));
        net.error(0, unreachable(remote, b"anyone?"));
        let packet = net.received();
        assert_eq!((packet.src, packet.dst), (addr(remote), addr(guest)));
        let message = packet.icmp();
        assert_eq!(message[..2], kind_code);
        // The guest's own packet, as it knows it.
        let whole = outgoing((guest, remote), b"anyone?");
        let (quoted, original) = (&message[8..], &whole[ethernet::LEN..]);
        let headers = if packet.protocol == 1 { 20 } else { 40 };
        assert_eq!(quoted[headers..headers + 8], original[headers..headers + 8], "UDP header");
        assert_eq!(quoted[headers + 8..], *b"anyone?");
        let addresses = if packet.protocol == 1 { 12..20 } else { 8..40 };
        assert_eq!(quoted[addresses.clone()], original[addresses]);
        net.nothing_more();
    }
}

#[test]
fn errors_name_who_the_guest_may_know() {
    let mut net = Net::new(1500);
    net.frame(datagram(end("192.0.2.10", 4000), end("192.0.2.1", 7), b"?"));
    // The host's loopback, by the name that the guest used for it.
    net.error(0, unreachable("127.0.0.1", b"?"));
    let packet = net.received();
    assert_eq!(packet.src, addr("192.0.2.1"));
    assert_eq!(packet.icmp()[8 + 16..8 + 20], [192, 0, 2, 1], "also in the quote");
    // A router on the way, with an MTU.
    let cause = IcmpCause { offender: addr("203.0.113.1"), kind: 3, code: 4, info: 1280 };
    net.error(0, SocketError { errno: libc::EMSGSIZE, icmp: Some(cause), quoted: vec![1; 2000] });
    let packet = net.received();
    assert_eq!(packet.src, addr("203.0.113.1"));
    assert_eq!(packet.icmp()[..2], [3, 4]);
    assert_eq!(packet.icmp()[6..8], 1280u16.to_be_bytes());
    assert!(packet.icmp().len() + 20 <= 576, "RFC 1812 4.3.2.3");
    // Errors of this host itself come from the remote end.
    net.error(0, SocketError { errno: libc::ENETUNREACH, icmp: None, quoted: Vec::new() });
    let packet = net.received();
    assert_eq!((packet.src, &packet.icmp()[..2]), (addr("192.0.2.1"), &[3, 0][..]));
    net.nothing_more();
}

/// An echo request of the guest's with identifier 0x1234.
fn echo_request((guest, remote): (&str, &str), ttl: u8) -> Vec<u8> {
    let v4 = addr(guest).is_ipv4();
    let (kind, protocol) = if v4 { (8, 1) } else { (128, 58) };
    let message = [kind, 0, 9, 9, 0x12, 0x34, 0, 7, b'h', b'i'];
    ip(addr(guest), addr(remote), protocol, ttl, &message)
}

#[test]
fn pings_go_out_and_come_back_with_the_guests_identifier() {
    for ((guest, remote), request, reply) in [(V4, 8, 0), (V6, 128, 129)] {
        let mut net = Net::new(1500);
        net.frame(echo_request((guest, remote), 3));
        let socket = &net.host().sockets[0];
        assert!(socket.echo && socket.remote == end(remote, 0x1234));
        assert_eq!(socket.sent[0].ttl, 3);
        assert_eq!(socket.sent[0].bytes[0], request);
        assert_eq!(socket.sent[0].bytes[4..], [0x12, 0x34, 0, 7, b'h', b'i']);
        // The kernel has used an identifier of its own.
        net.arrive(0, &[reply, 0, 5, 5, 0xab, 0xcd, 0, 7, b'h', b'i']);
        let packet = net.received();
        assert_eq!((packet.src, packet.dst), (addr(remote), addr(guest)));
        assert_eq!(packet.icmp()[..2], [reply, 0]);
        assert_eq!(packet.icmp()[4..], [0x12, 0x34, 0, 7, b'h', b'i']);
        // Only replies are the guest's.
        net.arrive(0, &[request, 0, 5, 5, 0xab, 0xcd, 0, 7]);
        net.arrive(0, &[reply, 0, 5]);
        net.nothing_more();
    }
}

#[test]
fn a_router_that_drops_a_ping_is_seen_by_the_guest() {
    for ((guest, remote), router, kind) in [(V4, "203.0.113.1", 11), (V6, "2001:db8:f::1", 3)] {
        let mut net = Net::new(1500);
        net.frame(echo_request((guest, remote), 1));
        let request = if kind == 11 { 8 } else { 128 };
        let icmp = Some(IcmpCause { offender: addr(router), kind, code: 0, info: 0 });
        let quoted = vec![request, 0, 5, 5, 0xab, 0xcd, 0, 7, b'h', b'i'];
        net.error(0, SocketError { errno: libc::EHOSTUNREACH, icmp, quoted });
        let packet = net.received();
        assert_eq!((packet.src, packet.icmp()[0]), (addr(router), kind));
        let headers = if kind == 11 { 20 } else { 40 };
        let quoted = &packet.icmp()[8 + headers..];
        assert_eq!((quoted[0], &quoted[4..8]), (request, &[0x12, 0x34, 0, 7][..]));
    }
}

#[test]
fn a_full_guest_leaves_datagrams_in_the_socket() {
    let mut net = Net::new(1500);
    net.frame(outgoing(V4, b"?"));
    net.guest.room = 0;
    net.arrive(0, b"one");
    net.arrive(0, b"two");
    net.event(0);
    assert!(net.host().sockets[0].paused, "or its event would come again at once");
    assert_eq!(net.host().receives, 0);
    assert!(!net.engine.has_ready());
    net.nothing_more();
    net.guest.room = 1;
    net.engine.on_room(&mut net.guest, net.now);
    assert_eq!(net.received().udp().2, b"one");
    assert!(net.host().sockets[0].paused, "there is more, and no room");
    net.guest.room = 9;
    net.engine.on_room(&mut net.guest, net.now);
    assert_eq!(net.received().udp().2, b"two");
    assert!(!net.host().sockets[0].paused);
    net.nothing_more();
    assert_eq!(net.engine.drops().iter().count(), 0);
}

#[test]
fn a_full_guest_leaves_datagrams_with_the_listener() {
    let mut net = Net::new(1500);
    net.frame(outgoing(V4, b"?"));
    let (from, to) = (end("198.51.100.8", 7), end("192.0.2.10", 8003));
    net.guest.room = 0;
    net.knock(from, to, b"one");
    net.listener_event();
    assert!(net.host().listener_paused);
    assert_eq!(net.host().receives, 0);
    net.guest.room = 9;
    net.engine.on_room(&mut net.guest, net.now);
    assert_eq!(net.received().udp(), (from, end("192.0.2.10", 5003), &b"one"[..]));
    assert!(!net.host().listener_paused);
    net.nothing_more();
}

#[test]
fn a_busy_listener_takes_turns() {
    let mut net = Net::new(1500);
    net.frame(outgoing(V4, b"?"));
    net.guest.room = 1000;
    let (from, to) = (end("198.51.100.8", 7), end("192.0.2.10", 8003));
    let message = Message { len: 1, segment: None, from: Some(from), to: Some(to) };
    for _ in 0..300 {
        net.host().listener.push_back((vec![0], message));
    }
    net.listener_event();
    let first = net.guest.frames.len();
    assert!(first > 0 && first < 300);
    net.listener_event();
    assert_eq!(net.guest.frames.len(), first, "it has a turn booked already");
    while net.engine.has_ready() {
        net.engine.run_ready(&mut net.guest, net.now);
    }
    assert_eq!(net.guest.frames.len(), 300);
}

#[test]
fn from_outside_a_datagram_opens_a_flow_that_answers_from_its_address() {
    let mut net = Net::new(1500);
    for (peer, here, guest) in
        [("198.51.100.8", "192.0.2.10", "192.0.2.10"), ("2001:db8:5::8", "2001:db8::10", V6.0)]
    {
        let index = net.host().sockets.len();
        // The guest shows its addresses, and its MAC.
        net.frame(datagram(end(guest, 1), end(if index == 0 { V4.1 } else { V6.1 }, 1), b""));
        let (from, to) = (end(peer, 7), end(here, 8003));
        net.knock(from, to, b"knock");
        net.knock(from, to, b"again");
        let socket = &net.host().sockets[index + 1];
        assert_eq!((socket.local, socket.remote), (to, from));
        assert_eq!(net.received().udp(), (from, end(guest, 5003), &b"knock"[..]));
        assert_eq!(net.received().udp(), (from, end(guest, 5003), &b"again"[..]));
        net.frame(datagram(end(guest, 5003), from, b"yes"));
        assert_eq!(net.host().sockets[index + 1].sent, [sent(b"yes")]);
    }
    net.knock(end("198.51.100.8", 7), end("192.0.2.10", 9999), b"no rule");
    assert_eq!(net.engine.drops().get(DropReason::Refused), 1);
    net.nothing_more();
}

#[test]
fn strangers_are_not_taken_for_the_remote_end() {
    let mut net = Net::new(1500);
    net.frame(outgoing(V4, b"?"));
    let from = |addr: &str, port| {
        let message = Message { len: 1, segment: None, from: Some(end(addr, port)), to: None };
        (vec![0], message)
    };
    let mail = [from("198.51.100.7", 10), from("203.0.113.9", 9), from("198.51.100.7", 9)];
    net.host().sockets[0].inbox.extend(mail);
    net.event(0);
    net.received();
    net.nothing_more();
    assert_eq!(net.engine.drops().get(DropReason::Stranger), 2);
}

#[test]
fn silence_ends_a_flow() {
    let mut net = Net::new(1500);
    let run = |net: &mut Net, seconds| {
        net.now = Instant::ZERO + Duration::from_secs(seconds);
        net.engine.on_deadlines(&mut net.guest, net.now);
        net.engine.datagram_flows()
    };
    net.frame(outgoing(V4, b"?"));
    net.frame(echo_request(V4, 64));
    assert_eq!(run(&mut net, 29), 2);
    net.frame(outgoing(V4, b"?"));
    assert_eq!(run(&mut net, 58), 2, "traffic keeps it");
    assert_eq!(run(&mut net, 59), 1);
    assert_eq!(run(&mut net, 60), 0);
    assert_eq!(net.engine.next_deadline(), None, "idle costs nothing");
    // A late event of the closed socket does nothing.
    net.arrive(0, b"late");
    net.nothing_more();
    net.frame(outgoing(V4, b"?"));
    assert_eq!(net.host().sockets.len(), 3, "and the next datagram opens another");
}

#[test]
fn too_many_flows_or_too_few_descriptors_cost_datagrams_only() {
    let mut net = Net::new(1500);
    for port in 1..=6 {
        net.frame(datagram(end(V4.0, port), end(V4.1, 9), b"?"));
        if port <= 4 {
            net.arrive(usize::from(port) - 1, b"!");
            assert_eq!(net.received().udp().2, b"!");
        }
    }
    assert_eq!(net.engine.datagram_flows(), 4);
    assert_eq!(net.engine.drops().get(DropReason::TableFull), 2);
    let mut net = Net::new(1500);
    net.host().refuse = Some(libc::EMFILE);
    net.frame(outgoing(V4, b"?"));
    net.frame(echo_request(V6, 64));
    assert_eq!(net.engine.drops().get(DropReason::NoSocket), 2);
    assert_eq!(net.engine.datagram_flows(), 0);
    net.nothing_more();
}

#[test]
fn the_oldest_flow_that_nobody_answers_makes_way_for_a_new_one() {
    let mut net = Net::new(1500);
    let ask = |net: &mut Net, port| net.frame(datagram(end(V4.0, port), end(V4.1, 9), b"?"));
    for port in 1..=4 {
        ask(&mut net, port);
    }
    net.arrive(0, b"!");
    assert_eq!(net.received().udp().2, b"!");
    ask(&mut net, 5);
    ask(&mut net, 6);
    assert_eq!(net.engine.datagram_flows(), 4);
    assert_eq!(net.engine.drops().get(DropReason::MadeWay), 2);
    // What comes for those that are gone goes nowhere; the others live.
    net.arrive(1, b"late");
    net.arrive(2, b"late");
    net.nothing_more();
    for index in [0, 3, 4, 5] {
        net.arrive(index, b"!!");
        assert_eq!(net.received().udp().2, b"!!");
    }
    ask(&mut net, 7);
    assert_eq!(net.engine.drops().get(DropReason::TableFull), 1, "all are answered now");
    // So it is when strangers knock.
    let mut net = Net::new(1500);
    net.frame(outgoing(V4, b"?"));
    for port in 1..=4 {
        net.knock(end("198.51.100.8", port), end("192.0.2.10", 8003), b"?");
        net.listener_event();
        assert_eq!(net.received().udp().2, b"?");
    }
    assert_eq!(net.engine.drops().get(DropReason::MadeWay), 1);
}

#[test]
fn flows_of_one_batch_do_not_make_way_for_each_other() {
    let mut net = Net::new(1500);
    let frame = |port| (datagram(end(V4.0, port), end(V4.1, 9), b"?"), Offload::default());
    net.frames(&(1..=6).map(frame).collect::<Vec<_>>());
    assert_eq!(net.engine.drops().get(DropReason::TableFull), 2);
    assert!(net.host().sockets.iter().all(|socket| socket.sent.len() == 1));
}

#[test]
fn a_socket_that_cannot_be_watched_is_no_flow() {
    let mut net = Net::new(1500);
    net.host().refuse = Some(libc::ENOSPC);
    net.frame(outgoing(V4, b"?"));
    net.knock(end("198.51.100.8", 9), end("192.0.2.10", 8003), b"?");
    assert_eq!(net.engine.datagram_flows(), 0);
    assert_eq!(net.engine.drops().get(DropReason::NoSocket), 2);
    net.host().refuse = None;
    net.frame(outgoing(V4, b"?"));
    assert_eq!(net.engine.datagram_flows(), 1);
}

#[test]
fn what_keeps_coming_to_a_listener_belongs_to_its_flow() {
    // As where the flow has no socket of its own: all of it comes to the listener.
    let mut net = Net::new(1500);
    net.frame(outgoing(V4, b"here I am"));
    let (peer, local) = (end("198.51.100.8", 9), end("192.0.2.10", 8003));
    for payload in [&b"one"[..], b"two", b"three"] {
        net.knock(peer, local, payload);
        assert_eq!(net.received().udp(), (peer, end("192.0.2.10", 5003), payload));
        net.frame(datagram(end("192.0.2.10", 5003), peer, payload));
    }
    assert_eq!(net.engine.datagram_flows(), 2);
    assert_eq!(net.host().sockets[1].sent, [sent(b"one"), sent(b"two"), sent(b"three")]);
}

#[test]
fn a_host_without_a_way_tells_the_guest() {
    for (errno, v4, v6) in [
        (libc::ENETUNREACH, [3, 0], [1, 0]),
        (libc::EHOSTUNREACH, [3, 1], [1, 3]),
        (libc::EPERM, [3, 13], [1, 1]),
        (libc::EACCES, [3, 13], [1, 1]),
    ] {
        for (family, expected) in [(V4, v4), (V6, v6)] {
            // When the flow is opened,
            let mut net = Net::new(1500);
            net.host().refuse = Some(errno);
            net.frame(outgoing(family, b"anyone?"));
            let packet = net.received();
            assert_eq!((packet.src, packet.dst), (addr(family.1), addr(family.0)));
            assert_eq!(packet.icmp()[..2], expected);
            assert!(packet.icmp().ends_with(b"anyone?"));
            net.frame(echo_request(family, 64));
            assert_eq!(net.received().icmp()[..2], expected);
            net.nothing_more();
            // and later.
            net.host().refuse = None;
            net.frame(outgoing(family, b"first"));
            net.host().sockets[0].outcomes.extend([Err(errno), Err(errno)]);
            net.frame(outgoing(family, b"second"));
            let packet = net.received();
            assert_eq!(packet.icmp()[..2], expected);
            assert!(packet.icmp().ends_with(b"second"));
            net.nothing_more();
        }
    }
    // Nothing is said about groups.
    let mut net = Net::new(1500);
    net.host().refuse = Some(libc::ENETUNREACH);
    net.frame(datagram(end(V4.0, 1), end("239.1.1.1", 5), b"x"));
    net.nothing_more();
}

#[test]
fn ends_that_no_flow_may_have_are_counted() {
    let mut net = Net::new(1500);
    for (from, to) in [
        (end("224.0.0.1", 1), end(V4.1, 1)),
        (end("0.0.0.0", 1), end(V4.1, 1)),
        (end("255.255.255.255", 1), end(V4.1, 1)),
        (end(V4.0, 0), end(V4.1, 1)),
        (end(V4.0, 1), end(V4.1, 0)),
        (end(V4.0, 1), end("0.0.0.0", 1)),
        (end(V4.0, 1), end("255.255.255.255", 1)),
        (end("ff02::1", 1), end(V6.1, 1)),
        (end(V6.0, 1), end("::", 1)),
    ] {
        net.frame(datagram(from, to, b"x"));
    }
    assert_eq!(net.engine.drops().get(DropReason::BadEndpoint), 9);
    net.frame(datagram(end(V4.0, 1), end("127.0.0.1", 1), b"x"));
    assert_eq!(net.engine.drops().get(DropReason::Loopback), 1);
    assert_eq!(net.engine.datagram_flows(), 0);
    net.frame(datagram(end(V4.0, 1), end("239.1.1.1", 5), b"x"));
    assert_eq!(net.host().sockets[0].sent, [sent(b"x")], "groups may be sent to");
}

#[test]
fn the_length_field_of_udp_is_obeyed() {
    let mut net = Net::new(1500);
    let body = |len: u8| [&[0, 1, 0, 9, 0, len, 0, 0][..], b"payload and more"].concat();
    for len in [15, 8] {
        net.frame(ip(addr(V4.0), addr(V4.1), 17, 64, &body(len)));
    }
    assert_eq!(net.host().sockets[0].sent, [sent(b"payload"), sent(b"")]);
    for len in [0, 7, 25, 255] {
        net.frame(ip(addr(V4.0), addr(V4.1), 17, 64, &body(len)));
    }
    assert_eq!(net.engine.drops().get(DropReason::BadTransportHeader), 4);
    assert_eq!(net.host().sockets[0].sent.len(), 2);
}

#[test]
fn what_exceeds_the_guests_mtu_comes_in_fragments() {
    for (guest, remote) in [V4, V6] {
        let mut net = Net::new(1500);
        net.frame(outgoing((guest, remote), b"?"));
        let payload: Vec<u8> = (0..=255).cycle().take(4000).collect();
        net.arrive(0, &payload);
        let mut whole = Vec::new();
        let (mut parts, mut ids) = (0, None);
        let first = loop {
            let packet = net.received();
            let (id, offset, more) = packet.fragment.expect("a fragment");
            assert_eq!(offset, whole.len());
            whole.extend_from_slice(&packet.body);
            parts += 1;
            if !more {
                break Packet { fragment: None, body: whole, ..packet };
            }
            assert_eq!(*ids.get_or_insert(id), id, "parts of one datagram");
            assert_eq!(packet.body.len() % 8, 0);
        };
        assert_eq!(parts, 3);
        assert_eq!(first.udp(), (end(remote, 9), end(guest, 4000), &payload[..]));
        net.nothing_more();
        // The largest that fits is whole.
        let fits = if addr(guest).is_ipv4() { 1472 } else { 1452 };
        net.arrive(0, &payload[..fits]);
        assert_eq!(net.received().udp().2.len(), fits);
        net.nothing_more();
    }
}

#[test]
fn the_guests_fragments_become_one_datagram() {
    let payload: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let whole = outgoing(V4, &payload);
    let body = &whole[34..];
    let part = |from: usize, to: usize, more: bool| {
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (addr(V4.0), addr(V4.1)) else { panic!() };
        let header = crate::wire::ipv4::Header {
            identification: 77,
            dont_fragment: false,
            more_fragments: more,
            fragment_offset: u16::try_from(from).unwrap(),
            ..crate::wire::ipv4::Header::new(src, dst, 17, u16::try_from(to - from).unwrap())
        };
        [&whole[..14], &header.to_bytes(), &body[from..to]].concat()
    };
    let mut net = Net::new(1500);
    net.frame(part(1480, 2960, true));
    net.frame(part(0, 1480, true));
    assert!(net.host().sockets.is_empty());
    net.frame(part(2960, 3008, false));
    let sent = &net.host().sockets[0].sent;
    assert_eq!((sent.len(), &sent[0].bytes), (1, &payload));
    // What is never completed is forgotten.
    net.frame(part(0, 1480, true));
    assert!(net.engine.next_deadline().is_some());
    net.now = Instant::ZERO + Duration::from_secs(31);
    net.engine.on_deadlines(&mut net.guest, net.now);
    net.frame(part(1480, 2960, true));
    net.frame(part(2960, 3008, false));
    assert_eq!(net.host().sockets.iter().map(|s| s.sent.len()).sum::<usize>(), 1);
}

#[test]
fn runs_from_outside_stay_runs_where_the_link_can_carry_them() {
    let bytes: Vec<u8> = (0..=249).collect();
    let run = Message { len: 250, segment: Some(100), from: None, to: None };
    let mut net = Net::new(1500);
    net.frame(outgoing(V4, b"?"));
    net.host().sockets[0].inbox.push_back((bytes.clone(), run));
    net.event(0);
    assert!(!net.host().sockets[0].coalesce, "not asked for");
    for part in bytes.chunks(100) {
        assert_eq!(net.received().udp().2, part);
    }
    net.guest.caps.udp4_segmentation = true;
    net.guest.caps.checksum = true;
    net.host().sockets[0].inbox.push_back((bytes.clone(), run));
    net.event(0);
    assert!(net.host().sockets[0].coalesce);
    let packet = net.received();
    let header_len = 42;
    let cut = Segmentation { kind: SegmentationKind::Udp, size: 100, header_len };
    assert_eq!(packet.offload.segmentation, Some(cut));
    assert_eq!(packet.udp().2, bytes);
    // What the guest's buffers do not hold together comes one by one, now and later.
    net.guest.caps.max_frame = 42 + 100;
    net.host().sockets[0].inbox.push_back((bytes.clone(), run));
    net.event(0);
    for part in bytes.chunks(100) {
        assert_eq!(net.received().udp().2, part);
    }
    net.guest.room = 1;
    net.host().sockets[0].inbox.push_back((bytes.clone(), run));
    net.event(0);
    net.guest.room = 100;
    net.engine.on_room(&mut net.guest, net.now);
    for part in bytes.chunks(100) {
        assert_eq!(net.received().udp().2, part);
    }
    net.nothing_more();
    assert_eq!(net.engine.drops().get(DropReason::TooLarge), 0);
    net.guest.caps.max_frame = 14 + 65_535;
    // Datagrams of a size that the guest's network would not carry are cut, and fragmented.
    let large = Message { len: 4000, segment: Some(2000), ..run };
    net.host().sockets[0].inbox.push_back((vec![1; 4000], large));
    net.event(0);
    let fragments: Vec<_> = std::iter::from_fn(|| {
        (!net.guest.frames.is_empty()).then(|| net.received().fragment.map(|(_, at, _)| at))
    })
    .collect();
    assert_eq!(fragments, [Some(0), Some(1480), Some(0), Some(1480)]);
}

#[test]
fn datagrams_of_one_size_from_outside_come_in_one_frame_where_the_link_can_cut_it() {
    let stranger = end("198.51.100.8", 9);
    let payloads: [(&[u8], Option<Endpoint>); 9] = [
        (b"aaaa", None),
        (b"bbbb", None),
        (b"cc", None),
        (b"dd", None),
        (b"xx", Some(stranger)),
        (b"ee", None),
        (b"", None),
        (b"ten bytes!", None),
        (b"ten others", None),
    ];
    let arrive = |net: &mut Net| {
        for (bytes, from) in payloads {
            let message = Message { len: bytes.len(), segment: None, from, to: None };
            net.host().sockets[0].inbox.push_back((bytes.to_vec(), message));
        }
        net.event(0);
    };
    let mut net = Net::new(1500);
    net.frame(outgoing(V4, b"?"));
    arrive(&mut net);
    for (bytes, _) in payloads.iter().filter(|(_, from)| from.is_none()) {
        assert_eq!(net.received().udp().2, *bytes, "one by one");
    }
    net.guest.caps.udp4_segmentation = true;
    net.guest.caps.checksum = true;
    arrive(&mut net);
    let frames: [(&[u8], Option<u16>); 5] = [
        (b"aaaabbbbcc", Some(4)),
        (b"dd", None),
        (b"ee", None),
        (b"", None),
        (b"ten bytes!ten others", Some(10)),
    ];
    for (bytes, size) in frames {
        let packet = net.received();
        assert_eq!(packet.udp().2, bytes);
        assert_eq!(packet.offload.segmentation.map(|cut| cut.size), size);
    }
    net.nothing_more();
    // A ring that has no buffer for all of them together takes them one by one.
    net.guest.caps.max_frame = 60;
    arrive(&mut net);
    for bytes in [&b"aaaabbbbcc"[..], b"dd", b"ee", b"", b"ten bytes!", b"ten others"] {
        assert_eq!(net.received().udp().2, bytes);
    }
}

#[test]
fn extension_headers_are_walked_to_the_datagram_behind_them() {
    let udp = [&[0x0f, 0xa0, 0, 9, 0, 12, 0, 0][..], b"data"].concat();
    // Destination options (RFC 8200 4.6): 8 bytes of padding in front of UDP.
    let options = [&[17, 0, 1, 4, 0, 0, 0, 0][..], &udp].concat();
    let mut net = Net::new(1500);
    net.frame(ip(addr(V6.0), addr(V6.1), 60, 64, &options));
    assert_eq!(net.host().sockets[0].remote, end(V6.1, 9));
    assert_eq!(net.host().sockets[0].local.port, 4000);
    assert_eq!(net.host().sockets[0].sent, [sent(b"data")]);
    // ESP, and a chain that does not end, are nobody's.
    net.frame(ip(addr(V6.0), addr(V6.1), 50, 64, &options));
    let endless = [60u8, 0, 1, 4, 0, 0, 0, 0].repeat(40);
    net.frame(ip(addr(V6.0), addr(V6.1), 60, 64, &endless));
    assert_eq!(net.engine.datagram_flows(), 1);
    let drops: u64 = net.engine.drops().iter().map(|(_, n)| n).sum();
    assert_eq!(drops, 2, "{:?}", net.engine.drops());
}

#[test]
fn fragments_of_the_other_family_become_one_datagram_too() {
    let payload: Vec<u8> = (0..=255).cycle().take(2000).collect();
    let whole = outgoing(V6, &payload);
    let body = &whole[54..];
    let part = |from: usize, to: usize, more: u16| {
        let offset = u16::try_from(from).unwrap() | more;
        let header = [&[17, 0][..], &offset.to_be_bytes(), &[0, 0, 0, 77]].concat();
        ip(addr(V6.0), addr(V6.1), 44, 64, &[&header, &body[from..to]].concat())
    };
    let mut net = Net::new(1500);
    net.frame(part(0, 1448, 1));
    net.frame(part(1448, 2008, 0));
    assert_eq!(net.host().sockets[0].sent, [sent(&payload)]);
    // A datagram in one "fragment" is whole (RFC 6946).
    net.frame(part(0, 2008, 0));
    assert_eq!(net.host().sockets[0].sent.len(), 2);
}

#[test]
fn padding_of_frames_is_no_payload() {
    for family in [V4, V6] {
        let mut net = Net::new(1500);
        let mut frame = outgoing(family, b"x");
        frame.resize(80, 0xee);
        net.frame(frame);
        assert_eq!(net.host().sockets[0].sent, [sent(b"x")]);
    }
}

#[test]
fn what_is_switched_off_is_counted() {
    let mut net = Net::with(1500, |settings| {
        settings.protocols.udp = false;
        settings.protocols.icmp = false;
        settings.view.v6 = None;
    });
    net.frame(outgoing(V4, b"x"));
    net.frame(echo_request(V4, 64));
    net.frame(outgoing(V6, b"x"));
    assert_eq!(net.engine.drops().get(DropReason::ProtocolDisabled), 2);
    assert_eq!(net.engine.drops().get(DropReason::FamilyDisabled), 1);
    assert!(net.host().sockets.is_empty());
}

#[test]
fn a_query_without_a_resolver_opens_nothing() {
    let mut net = Net::with(1500, |settings| settings.translation.v4.dns_host = None);
    net.frame(datagram(end(V4.0, 4000), end("192.0.2.53", 53), b"?"));
    assert_eq!(net.engine.drops().get(DropReason::NoTarget), 1);
    assert!(net.host().sockets.is_empty());
}

proptest::proptest! {
    /// No frame of a guest, and nothing that a host's socket says, panics or opens what it should
    /// not: every frame ends as a message, a reply, or a count.
    #[test]
    fn whatever_the_guest_sends_ends_somewhere(
        mangled in proptest::collection::vec((0usize..70, proptest::num::u8::ANY), 0..6),
        cut in 14usize..120,
        which in 0usize..4,
        segment in 0u16..40,
        answer in proptest::collection::vec(proptest::num::u8::ANY, 0..40),
    ) {
        let mut net = Net::new(1500);
        let mut frame = match which {
            0 => outgoing(V4, &[1; 40]),
            1 => outgoing(V6, &[2; 40]),
            2 => echo_request(V4, 64),
            _ => echo_request(V6, 64),
        };
        for (at, byte) in mangled {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        frame.truncate(cut);
        let offload = if segment == 0 { Offload::default() } else { segmented(segment) };
        net.frames(&[(frame.clone(), offload), (frame, Offload::default())]);
        proptest::prop_assert!(net.engine.datagram_flows() <= 1);
        if !net.host().sockets.is_empty() {
            let kind = answer.first().copied().unwrap_or(0);
            let icmp = Some(IcmpCause { offender: addr(V4.1), kind, code: 0, info: u32::MAX });
            net.arrive(0, &answer);
            net.error(0, SocketError { errno: libc::EPROTO, icmp, quoted: answer });
        }
    }
}
