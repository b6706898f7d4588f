//! TCP through the engine: a scripted guest on one side, scripted sockets on the other.

mod common;

use common::packets::*;
use common::rig::*;
use passt::engine::Settings;
use passt::engine::counters::DropReason;
use passt::engine::staging::IN_ALL;
use passt::flow::Endpoint;
use passt::host::Connect;
use passt::link::{MAX_FRAME, Offload, PartialChecksum, Segmentation, SegmentationKind};
use passt::time::Duration;
use passt::token::{Readiness, Token};
use passt::translate::tcp::Patience;
use std::net::IpAddr;

const SECOND: Duration = Duration::from_secs(1);

fn ends(v6: bool, port: u16) -> End {
    if v6 {
        End::new((GUEST_V6, port), (PEER_V6, 80))
    } else {
        End::new((GUEST_V4, port), (PEER_V4, 80))
    }
}

/// The guest has opened a connection: socket number `rig`'s next.
#[track_caller]
fn open(rig: &mut Rig, v6: bool, port: u16) -> End {
    let mut end = ends(v6, port);
    let frame = end.syn();
    let answer = only_tcp(&rig.send(frame));
    assert_eq!((answer.flags, answer.ack), (SYN | ACK, end.snd));
    end.take(&answer);
    let frame = end.ack();
    assert_eq!(rig.send(frame), Vec::<Vec<u8>>::new());
    end
}

fn peer(n: u8, port: u16) -> Endpoint {
    Endpoint::new([198, 51, 100, n].into(), port)
}

fn knock(rig: &mut Rig, from: Endpoint, rule: usize) -> Vec<Vec<u8>> {
    let local = Endpoint::new([192, 0, 2, 1].into(), HOST_PORT);
    rig.engine.host_mut().state().borrow_mut().backlog.push_back(Ok((from, local, rule)));
    rig.knock()
}

/// A peer has connected, and the guest has answered.
#[track_caller]
fn accept(rig: &mut Rig, port: u16) -> End {
    let from = peer(7, port);
    let syn = only_tcp(&knock(rig, from, 0));
    assert_eq!(syn.flags, SYN);
    let mut end = End::new((GUEST_V4, GUEST_PORT), (from.addr, from.port));
    end.take(&syn);
    let options = vec![2, 4, 0x05, 0xb4, 1, 3, 3, 7];
    let answer = Tcp { options, ..end.segment(SYN | ACK, b"") };
    end.snd += 1;
    let ack = only_tcp(&rig.send(answer.frame()));
    assert_eq!((ack.flags, ack.seq, ack.ack), (ACK, end.rcv, end.snd));
    end
}

/// Takes data segments in order and returns the bytes.
#[track_caller]
fn collect(end: &mut End, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        let segment = read_tcp(frame);
        end.take(&segment);
        bytes.extend(segment.payload);
    }
    bytes
}

fn sent_by_first(rig: &mut Rig) -> usize {
    rig.sock(0).sent.len()
}

fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i.wrapping_mul(31) >> 3) as u8).collect()
}

// ---- Opening, from the guest.

#[test]
fn a_connect_that_is_done_at_once_is_answered_at_once() {
    for v6 in [false, true] {
        let mut rig = Rig::new();
        let mut end = ends(v6, 4000);
        let frame = end.syn();
        let answer = only_tcp(&rig.send(frame));
        assert_eq!((answer.flags, answer.ack), (SYN | ACK, end.snd));
        let mss = if v6 { 1440u16 } else { 1460 };
        let [m0, m1] = mss.to_be_bytes();
        assert_eq!(answer.options, [2, 4, m0, m1, 1, 3, 3, 8]);
        let remote = if v6 { PEER_V6 } else { PEER_V4 };
        assert_eq!(rig.sock(0).to, Endpoint::new(remote, 80));
        assert_eq!(rig.engine.tcp_flows(), 1);
    }
}

#[test]
fn a_connect_in_progress_is_answered_when_it_ends() {
    let mut rig = Rig::new();
    rig.engine.host_mut().state().borrow_mut().connects.push_back(Ok(Connect::InProgress));
    let mut end = ends(false, 4000);
    let syn = end.syn();
    assert!(rig.send(syn.clone()).is_empty());
    assert!(rig.send(syn).is_empty(), "a repeated SYN waits too");
    assert!(rig.sock(0).interest.writable);
    assert!(rig.tcp_ready(0, READABLE).is_empty(), "not what we wait for");
    let answer = only_tcp(&rig.tcp_ready(0, WRITABLE));
    assert_eq!((answer.flags, answer.ack), (SYN | ACK, end.snd));
}

#[test]
fn a_connect_that_fails_later_resets_the_guest() {
    for number in [libc::ECONNREFUSED, libc::ETIMEDOUT, libc::EHOSTUNREACH] {
        let mut rig = Rig::new();
        rig.engine.host_mut().state().borrow_mut().connects.push_back(Ok(Connect::InProgress));
        let mut end = ends(true, 4000);
        let syn = end.syn();
        rig.send(syn);
        rig.sock(0).connect = Err(number);
        let ready = Readiness { error: true, hung_up: true, ..WRITABLE };
        let reset = only_tcp(&rig.tcp_ready(0, ready));
        assert_eq!((reset.flags, reset.ack), (RST | ACK, end.snd));
        assert!(rig.sock(0).closed);
        assert_eq!(rig.engine.tcp_flows(), 0);
    }
}

#[test]
fn a_connect_that_fails_at_once_resets_the_guest_unless_better_times_may_come() {
    for (number, resets) in [
        (libc::ECONNREFUSED, true),
        (libc::ENETUNREACH, true),
        (libc::EACCES, true),
        (libc::EMFILE, false),
        (libc::ENFILE, false),
        (libc::ENOMEM, false),
    ] {
        let mut rig = Rig::new();
        let error = Err(std::io::Error::from_raw_os_error(number));
        rig.engine.host_mut().state().borrow_mut().connects.push_back(error);
        let mut end = ends(false, 4000);
        let syn = end.syn();
        let frames = rig.send(syn.clone());
        if resets {
            let reset = only_tcp(&frames);
            assert_eq!((reset.flags, reset.ack), (RST | ACK, end.snd), "{number}");
        } else {
            assert!(frames.is_empty(), "{number}");
        }
        assert_eq!((rig.engine.tcp_flows(), rig.drops(DropReason::NoSocket)), (0, 1));
        assert_eq!(only_tcp(&rig.send(syn)).flags, SYN | ACK, "the next SYN finds better times");
    }
}

#[test]
fn ends_that_nobody_can_have_open_nothing() {
    let broadcast: IpAddr = [255, 255, 255, 255].into();
    let multicast: IpAddr = [224, 0, 0, 1].into();
    let any: IpAddr = [0, 0, 0, 0].into();
    for (guest, remote) in [
        ((GUEST_V4, 0), (PEER_V4, 80)),
        ((GUEST_V4, 1), (PEER_V4, 0)),
        ((any, 1), (PEER_V4, 80)),
        ((multicast, 1), (PEER_V4, 80)),
        ((broadcast, 1), (PEER_V4, 80)),
        ((GUEST_V4, 1), (any, 80)),
        ((GUEST_V4, 1), (multicast, 80)),
        ((GUEST_V4, 1), (broadcast, 80)),
        ((GUEST_V6, 1), ("ff02::1".parse().unwrap(), 80)),
        ((GUEST_V6, 1), ("::".parse().unwrap(), 80)),
    ] {
        let mut rig = Rig::new();
        let syn = End::new(guest, remote).syn();
        assert!(rig.send(syn).is_empty(), "{guest:?} {remote:?}");
        assert_eq!(rig.drops(DropReason::BadEndpoint), 1, "{guest:?} {remote:?}");
        assert_eq!(rig.engine.tcp_flows(), 0);
    }
}

#[test]
fn the_gateway_stands_for_the_hosts_loopback_address() {
    let mut rig = Rig::new();
    let mut end = End::new((GUEST_V4, 4000), (GATEWAY_V4, 5432));
    let syn = end.syn();
    let answer = only_tcp(&rig.send(syn));
    assert_eq!(answer.src, (GATEWAY_V4, 5432));
    assert_eq!(rig.sock(0).to, Endpoint::new([127, 0, 0, 1].into(), 5432));
}

#[test]
fn only_a_syn_opens_a_connection_and_the_rest_is_reset() {
    for (flags, payload, answer) in [
        (SYN, &b""[..], SYN | ACK),
        (SYN | PSH, b"", SYN | ACK),
        (SYN | URG, b"early", SYN | ACK),
        (SYN | FIN, b"", RST | ACK),
        (SYN | ACK, b"", RST),
        (ACK, b"data", RST),
        (ACK | FIN, b"", RST),
        (PSH, b"data", RST | ACK),
        (0, b"", RST | ACK),
    ] {
        let mut rig = Rig::new();
        let end = ends(false, 4000);
        let segment = Tcp { ack: 77, ..end.segment(flags, payload) };
        let got = only_tcp(&rig.send(segment.frame()));
        assert_eq!(got.flags, answer, "{flags:#x}");
        if answer == RST {
            assert_eq!(got.seq, 77, "{flags:#x}");
        } else if answer == RST | ACK {
            assert_eq!((got.seq, got.ack), (0, 1000 + segment.len()), "{flags:#x}");
        }
        let unasked = answer != SYN | ACK;
        assert_eq!(rig.drops(DropReason::NoFlow), u64::from(unasked), "{flags:#x}");
    }
    for flags in [RST, RST | ACK, RST | SYN, RST | FIN] {
        let mut rig = Rig::new();
        assert!(rig.send(ends(false, 1).segment(flags, b"").frame()).is_empty(), "{flags:#x}");
        assert_eq!(rig.drops(DropReason::NoFlow), 1);
    }
}

#[test]
fn a_full_table_refuses_in_silence_and_takes_the_next_when_a_flow_ends() {
    let mut rig = Rig::with(Settings { max_flows: 2, ..settings() });
    let first = open(&mut rig, false, 1);
    open(&mut rig, false, 2);
    let syn = ends(false, 3).syn();
    assert!(rig.send(syn.clone()).is_empty());
    assert_eq!(rig.drops(DropReason::TableFull), 1);
    rig.send(first.segment(RST, b"").frame());
    assert!(rig.sock(0).reset);
    assert_eq!(only_tcp(&rig.send(syn)).flags, SYN | ACK);
}

// ---- Opening, from outside.

#[test]
fn a_connection_from_outside_asks_the_guest_at_the_port_of_its_rule() {
    let mut rig = Rig::new();
    let syn = only_tcp(&knock(&mut rig, peer(7, 5555), 0));
    assert_eq!((syn.src, syn.dst), (([198, 51, 100, 7].into(), 5555), (GUEST_V4, GUEST_PORT)));
    assert_eq!((syn.flags, syn.ack), (SYN, 0));
    assert_eq!(syn.options, [2, 4, 0x05, 0xb4, 1, 3, 3, 8]);
    assert!(!rig.sock(0).interest.readable, "what the peer sends early waits");
    let mut rig = Rig::new();
    let syn = only_tcp(&knock(&mut rig, Endpoint::new([127, 0, 0, 1].into(), 5), 0));
    assert_eq!(syn.src, (GATEWAY_V4, 5), "loopback is shown as the gateway");
}

#[test]
fn what_a_peer_sends_early_arrives_after_the_handshake() {
    let mut rig = Rig::new();
    let syn = only_tcp(&knock(&mut rig, peer(7, 5555), 0));
    rig.sock(0).incoming.extend(b"early");
    rig.sock(0).fin = true;
    rig.tcp_ready(0, Readiness { read_closed: true, ..NOT_READY });
    let mut end = End::new((GUEST_V4, GUEST_PORT), ([198, 51, 100, 7].into(), 5555));
    end.take(&syn);
    let answer = end.segment(SYN | ACK, b"").frame();
    end.snd += 1;
    let frames = rig.send(answer);
    assert_eq!(collect(&mut end, &frames), b"early");
    assert!(read_tcp(frames.last().unwrap()).has(FIN), "and so does its FIN");
}

#[test]
fn connections_that_no_rule_takes_or_that_are_there_already_are_reset() {
    let mut rig = Rig::new();
    assert!(knock(&mut rig, peer(7, 1), 99).is_empty(), "no such rule");
    assert!(knock(&mut rig, peer(7, 0), 0).is_empty(), "port 0");
    assert!(knock(&mut rig, Endpoint::new([224, 0, 0, 1].into(), 1), 0).is_empty(), "multicast");
    for index in 0..3 {
        assert!(rig.sock(index).reset && rig.sock(index).closed);
    }
    assert_eq!(rig.drops(DropReason::Refused), 3);
    accept(&mut rig, 5000);
    assert!(knock(&mut rig, peer(7, 5000), 0).is_empty(), "a duplicate");
    assert!(rig.sock(4).reset && !rig.sock(3).closed);
}

#[test]
fn a_peer_that_starts_anew_replaces_its_connection_that_is_over() {
    let mut rig = Rig::new();
    accept(&mut rig, 5000);
    rig.peer_sends(0, &pattern(200_000));
    rig.sock(0).info.established = false;
    let frames = knock(&mut rig, peer(7, 5000), 0);
    let segments: Vec<_> = frames.iter().map(|frame| read_tcp(frame)).collect();
    assert_eq!((segments[0].has(RST), segments[1].flags, segments.len()), (true, SYN, 2));
    assert!(rig.sock(0).reset && !rig.sock(1).closed);
    assert_eq!(rig.engine.tcp_flows(), 1);
    // One that the guest opens to there, and that connects still, is not over.
    let mut old = End::new((GUEST_V4, GUEST_PORT), (peer(7, 5001).addr, 5001));
    rig.engine.host_mut().state().borrow_mut().connects.push_back(Ok(Connect::InProgress));
    let syn = old.syn();
    rig.send(syn);
    rig.sock(2).info.established = false;
    assert!(knock(&mut rig, peer(7, 5001), 0).is_empty());
    assert!(rig.sock(3).reset && !rig.sock(2).closed);
}

#[test]
fn a_full_table_resets_connections_from_outside() {
    let mut rig = Rig::with(Settings { max_flows: 1, ..settings() });
    accept(&mut rig, 5000);
    assert!(knock(&mut rig, peer(7, 5001), 0).is_empty());
    assert!(rig.sock(1).reset);
    assert_eq!((rig.engine.tcp_flows(), rig.drops(DropReason::TableFull)), (1, 1));
}

#[test]
fn a_listener_without_descriptors_rests_and_is_fed_again() {
    let mut rig = Rig::new();
    {
        let mut state = rig.engine.host_mut().state().borrow_mut();
        state
            .backlog
            .extend((0..100).map(|_| Err(std::io::Error::from_raw_os_error(libc::EMFILE))));
        state.starved = true;
    }
    assert!(rig.knock().is_empty());
    assert_eq!(rig.drops(DropReason::Refused), 1, "it does not go on with errors");
    rig.after(2 * SECOND);
    assert_eq!(rig.engine.host_mut().state().borrow().fed, 1);
    rig.after(2 * SECOND);
    assert_eq!(rig.engine.host_mut().state().borrow().fed, 1, "it is not starved any more");
}

#[test]
fn one_failed_connection_does_not_hide_the_next() {
    let mut rig = Rig::new();
    let aborted = Err(std::io::Error::from_raw_os_error(libc::ECONNABORTED));
    rig.engine.host_mut().state().borrow_mut().backlog.push_back(aborted);
    assert_eq!(only_tcp(&knock(&mut rig, peer(7, 1), 0)).flags, SYN);
}

#[test]
fn a_guest_that_does_not_answer_is_given_up_and_its_peer_reset() {
    let mut rig = Rig::new();
    let syn = only_tcp(&knock(&mut rig, peer(7, 1), 0));
    let mut resets = 0;
    for _ in 0..60 {
        for frame in rig.after(SECOND) {
            let segment = read_tcp(&frame);
            assert_eq!(segment.seq.wrapping_sub(syn.seq), u32::from(segment.has(RST)));
            resets += u32::from(segment.has(RST));
        }
    }
    assert_eq!((resets, rig.engine.tcp_flows()), (1, 0));
    assert!(rig.sock(0).reset);
}

#[test]
fn a_guest_is_tried_as_long_as_the_host_would_try_it() {
    let patience = Patience::new(Some("1"), Some("0"), Some("2000"));
    let mut rig = Rig::with(Settings { patience, ..settings() });
    let seconds = |rig: &mut Rig| -> Vec<(u64, bool)> {
        let after = |n| rig.after(SECOND).into_iter().map(move |frame| (n, frame));
        let frames = (1..=20).flat_map(after).filter(|(_, frame)| frame[12..14] == [8, 0]);
        frames.map(|(n, frame)| (n, read_tcp(&frame).has(RST))).collect()
    };
    knock(&mut rig, peer(7, 1), 0);
    assert_eq!(seconds(&mut rig), [(1, false), (3, true)]);
    open(&mut rig, false, 1);
    rig.peer_sends(1, b"data");
    let sent = [1, 3, 5, 7, 9, 11, 13].map(|n| (n, false));
    assert_eq!(seconds(&mut rig), [&sent[..], &[(15, true)]].concat());
}

#[test]
fn no_frame_is_longer_than_an_assigned_mtu_whatever_the_guest_announces() {
    for (v6, headers) in [(false, 40), (true, 60)] {
        let mut view = view();
        view.mtu = Some(300);
        let mut rig = Rig::with(Settings { view, ..settings() });
        let mut end = ends(v6, 1);
        let syn = end.syn();
        let answer = only_tcp(&rig.send(syn));
        assert_eq!(answer.options[2..4], (300u16 - headers).to_be_bytes());
        end.take(&answer);
        let ack = end.ack();
        rig.send(ack);
        let frames = rig.peer_sends(0, &pattern(1000));
        assert_eq!(frames.iter().map(Vec::len).max(), Some(14 + 300));
        assert_eq!(collect(&mut end, &frames), pattern(1000));
    }
}

// ---- From the guest to the socket.

#[test]
fn a_batch_is_one_send_per_flow_and_one_answer() {
    let mut rig = Rig::new();
    let mut a = open(&mut rig, false, 1);
    let mut b = open(&mut rig, true, 2);
    let mut frames = Vec::new();
    for i in 0..5u8 {
        frames.push(a.next(0, &[i; 100]));
        frames.push(b.next(PSH, &[0x80 | i; 50]));
    }
    let answers = rig.offer(&frames);
    assert_eq!(rig.sock(0).sends, [500]);
    assert_eq!(rig.sock(1).sends, [250]);
    assert_eq!(rig.sock(0).sent[99..101], [0, 1]);
    assert_eq!(rig.sock(1).sent[249], 0x84);
    assert_eq!(answers.len(), 2);
    assert_eq!((read_tcp(&answers[0]).ack, read_tcp(&answers[1]).ack), (a.snd, b.snd));
}

#[test]
fn frames_in_many_pieces_are_read_across_them() {
    let mut rig = Rig::new();
    rig.link.source.piece = 7;
    let mut end = open(&mut rig, false, 1);
    let bytes = pattern(1400);
    let frame = end.next(0, &bytes);
    rig.send(frame);
    assert_eq!(rig.sock(0).sent, bytes);
}

#[test]
fn padding_behind_the_packet_is_no_payload() {
    for v6 in [false, true] {
        let mut rig = Rig::new();
        let mut end = open(&mut rig, v6, 1);
        let mut frame = end.next(0, b"x");
        frame.extend([0xee; 9]);
        rig.send(frame);
        assert_eq!(rig.sock(0).sent, b"x");
    }
}

#[test]
fn what_the_socket_does_not_take_is_staged_acknowledged_and_sent_later() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    rig.sock(0).room = 250;
    let bytes = pattern(2000);
    let frames: Vec<_> = bytes.chunks(500).map(|chunk| end.next(0, chunk)).collect();
    let answer = only_tcp(&rig.offer(&frames));
    assert_eq!(answer.ack, end.snd, "it is accepted, for it has a place");
    assert_eq!((sent_by_first(&mut rig), rig.engine.staged()), (250, 1750));
    assert!(rig.sock(0).interest.writable);
    rig.sock(0).room = 1000;
    rig.tcp_ready(0, WRITABLE);
    assert_eq!((sent_by_first(&mut rig), rig.engine.staged()), (1250, 750));
    rig.sock(0).room = 10_000;
    let frame = end.next(0, b"behind");
    rig.send(frame);
    assert_eq!(rig.sock(0).sent, [&bytes[..], b"behind"].concat());
    assert_eq!(rig.engine.staged(), 0);
    assert!(!rig.sock(0).interest.writable);
}

#[test]
fn a_socket_that_takes_nothing_closes_the_window_and_opens_it_again() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    rig.sock(0).room = 0;
    let mut window = 0xffff_u32;
    let mut sent = 0;
    while window > 0 {
        let n = window.min(1400) as usize;
        let frame = end.next(0, &vec![7; n]);
        sent += n;
        for frame in rig.send(frame) {
            let ack = read_tcp(&frame);
            let known = ack.ack.wrapping_sub(end.snd);
            assert_eq!(known, 0, "all that fits the window is accepted");
            window = u32::from(ack.window) << 8;
        }
        assert!(sent < 4 << 20, "the window never closes");
    }
    assert_eq!((rig.engine.staged(), sent_by_first(&mut rig)), (sent, 0));
    rig.sock(0).room = usize::MAX;
    let update = only_tcp(&rig.tcp_ready(0, WRITABLE));
    assert!(update.window > 0 && update.ack == end.snd);
    assert_eq!((rig.engine.staged(), sent_by_first(&mut rig)), (0, sent));
}

#[test]
fn a_guest_without_window_scaling_gets_windows_that_fit_the_field() {
    let mut rig = Rig::new();
    let mut end = ends(false, 1);
    let syn = end.segment(SYN, b"").frame();
    end.snd += 1;
    let answer = only_tcp(&rig.send(syn));
    assert_eq!(answer.options.len(), 4, "no scale is offered to who offers none");
    end.take(&answer);
    for _ in 0..200 {
        let frame = end.next(0, &[1; 1400]);
        let answers = rig.send(frame);
        assert!(answers.len() <= 1, "{} answers", answers.len());
    }
    assert_eq!(rig.sock(0).sent.len(), 280_000);
}

#[test]
fn a_failed_send_resets_both_sides() {
    for number in [libc::EPIPE, libc::ECONNRESET] {
        let mut rig = Rig::new();
        let mut end = open(&mut rig, false, 1);
        rig.sock(0).send_error = Some(number);
        let frame = end.next(0, b"data");
        let reset = read_tcp(rig.send(frame).last().unwrap());
        assert_eq!((reset.has(RST), reset.seq), (true, end.rcv));
        assert!(rig.sock(0).reset);
        assert_eq!((rig.engine.tcp_flows(), rig.engine.staged()), (0, 0));
    }
}

#[test]
fn what_comes_out_of_order_is_held_and_joined() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    let bytes = pattern(5000);
    let frames: Vec<_> = bytes.chunks(1000).map(|chunk| end.next(0, chunk)).collect();
    let [a, b, c, d, e] = <[Vec<u8>; 5]>::try_from(frames).unwrap();
    for frame in rig.offer(&[c, e]) {
        assert_eq!(read_tcp(&frame).ack, end.snd - 5000, "a duplicate ACK");
    }
    assert_eq!(rig.engine.staged(), 2000, "holes cost nothing");
    rig.offer(&[a.clone(), b.clone(), a, b]);
    assert_eq!(rig.sock(0).sent, bytes[..3000]);
    let answer = read_tcp(rig.send(d).last().unwrap());
    assert_eq!((answer.ack, rig.engine.staged()), (end.snd, 0));
    assert_eq!(rig.sock(0).sent, bytes);
}

#[test]
fn joined_bytes_keep_their_order_when_the_socket_is_full() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, true, 1);
    let bytes = pattern(4000);
    let frames: Vec<_> = bytes.chunks(1000).map(|chunk| end.next(0, chunk)).collect();
    rig.sock(0).room = 100;
    // Ahead, first, the missing one, and one more, in a single batch.
    let order = [2, 0, 1, 3].map(|i: usize| frames[i].clone());
    rig.offer(&order);
    assert_eq!(rig.engine.staged(), 3900);
    rig.sock(0).room = usize::MAX;
    rig.tcp_ready(0, WRITABLE);
    assert_eq!(rig.sock(0).sent, bytes);
}

#[test]
fn segmented_frames_are_streams_like_others() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    let bytes = pattern(60_000);
    let frame = end.next(PSH, &bytes);
    // The window of a handshake is smaller than that: what lies inside is taken, once.
    uncut(&mut rig, frame);
    let taken = rig.sock(0).sent.len();
    assert!(taken >= 14_600 && rig.sock(0).sent == bytes[..taken]);
}

#[test]
fn budget_returns_to_nothing_when_flows_end() {
    let mut rig = Rig::new();
    let mut flows: Vec<End> = (1..20).map(|port| open(&mut rig, false, port)).collect();
    for (index, end) in flows.iter_mut().enumerate() {
        rig.sock(index).room = 0;
        let first = end.next(0, &[1; 1000]);
        let hole = end.next(0, &[2; 1000]);
        let ahead = end.next(0, &[3; 1000]);
        drop(hole);
        rig.offer(&[first, ahead]);
    }
    assert_eq!(rig.engine.staged(), 19 * (1000 + 1000));
    for (index, end) in flows.iter().enumerate() {
        let seq = end.snd - 2000;
        rig.send(Tcp { seq, ..end.segment(RST, b"") }.frame());
        assert!(rig.sock(index).reset);
    }
    assert_eq!((rig.engine.staged(), rig.engine.tcp_flows()), (0, 0));
}

/// A frame of the guest's that its kernel has not cut yet.
fn uncut(rig: &mut Rig, frame: Vec<u8>) -> Vec<Vec<u8>> {
    let kind = SegmentationKind::Tcp4;
    let offload = Offload {
        checksum: Some(PartialChecksum { start: 34, offset: 16 }),
        segmentation: Some(Segmentation { kind, size: 1448, header_len: 54 }),
    };
    rig.send_with(frame, offload)
}

/// A flow as [`open`] makes it that knows its window, and the bytes of that.
fn open_wide(rig: &mut Rig, port: u16) -> (End, usize) {
    let mut end = open(rig, false, port);
    let frame = end.next(0, b"!");
    let ack = only_tcp(&rig.send(frame));
    (end, usize::from(ack.window) << 8)
}

#[test]
fn a_segment_at_the_end_of_each_window_costs_its_length() {
    let mut rig = Rig::with(Settings { max_flows: 3000, ..settings() });
    for port in 1..=3000 {
        let (end, window) = open_wide(&mut rig, port);
        // A part of the window may be the socket's.
        let most = window.min(IN_ALL / rig.engine.tcp_flows().max(64));
        let seq = end.snd.wrapping_add(most as u32 - 1000);
        rig.send(Tcp { seq, ..end.segment(ACK, &[1; 1000]) }.frame());
        assert_eq!(rig.engine.staged(), usize::from(port) * 1000);
    }
}

#[test]
fn what_comes_too_early_is_held_as_far_as_the_budget_goes_and_never_farther() {
    const LEN: usize = 60_000;
    let mut rig = Rig::new();
    let (mut missing, bytes) = (Vec::new(), pattern(LEN));
    let flows: Vec<_> = (1..=100).map(|port| open_wide(&mut rig, port)).collect();
    for (mut end, window) in flows {
        missing.push((end.next(0, b"?"), end.snd));
        for _ in 0..(window - 1) / LEN {
            let frame = end.next(0, &bytes);
            uncut(&mut rig, frame);
            assert!(rig.engine.staged() <= IN_ALL);
        }
    }
    assert_eq!(rig.engine.staged(), IN_ALL, "flows have more than that");
    // A flow whose bytes were held, and one whose bytes were not.
    for (index, joined) in [(0, true), (99, false)] {
        let (frame, behind) = missing[index].clone();
        let answer = read_tcp(rig.send(frame).last().unwrap());
        assert_eq!(answer.ack > behind, joined);
        let sent = &rig.sock(index).sent;
        assert_eq!(&sent[..2], b"!?");
        assert!(sent[2..].chunks(LEN).all(|chunk| *chunk == bytes));
        assert_eq!(sent.len() > 2, joined);
    }
}

#[test]
fn many_flows_are_promised_less_each() {
    let mut rig = Rig::new();
    for port in 1..=500 {
        open(&mut rig, false, port);
        rig.sock(usize::from(port) - 1).room = 0;
    }
    let mut promised = 0;
    for port in 1..=500 {
        // What the window said at its widest.
        let mut end = ends(false, port);
        end.snd = 1001;
        let index = usize::from(port) - 1;
        rig.sock(index).room = 0;
        let probe = Tcp { seq: 1000, ..end.segment(ACK, b"") };
        for frame in rig.send(probe.frame()) {
            promised += usize::from(read_tcp(&frame).window) << 8;
        }
    }
    assert!(promised < 400 << 20, "{promised}");
}

// ---- From the socket to the guest.

#[test]
fn data_is_cut_at_the_mss_summed_and_pushed_at_the_end() {
    for v6 in [false, true] {
        let mut rig = Rig::new();
        let mut end = open(&mut rig, v6, 1);
        let bytes = pattern(10_000);
        let frames = rig.peer_sends(0, &bytes);
        let mss = if v6 { 1440 } else { 1460 };
        assert_eq!(frames.len(), 10_000usize.div_ceil(mss));
        for (i, frame) in frames.iter().enumerate() {
            let segment = read_tcp(frame);
            assert_eq!((segment.has(PSH), segment.has(ACK)), (i + 1 == frames.len(), true));
            assert!(segment.payload.len() <= mss);
        }
        assert_eq!(collect(&mut end, &frames), bytes);
        assert_eq!(rig.sock(0).incoming.len(), 10_000, "it stays in the socket");
        let ack = end.ack();
        assert!(rig.send(ack).is_empty());
        assert!(rig.sock(0).incoming.is_empty(), "until it is acknowledged");
    }
}

#[test]
fn with_offloads_frames_are_long_and_sums_partial() {
    for v6 in [false, true] {
        let mut rig = Rig::new();
        let mut end = open(&mut rig, v6, 1);
        offloads(&mut rig);
        let (headers, mss) = if v6 { (74u16, 1440u16) } else { (54, 1460) };
        let bytes = pattern(100_000);
        rig.sock(0).incoming.extend(&bytes);
        let token = Token::Tcp(rig.flow(0));
        rig.engine.on_socket(token, READABLE, passt::link::Link::halves(&mut rig.link).1, rig.now);
        let frames = rig.flush_with_offloads();
        let mut got = Vec::new();
        for (frame, offload) in &frames {
            let segment = read_tcp_with(frame, true);
            let start = headers - 20;
            assert_eq!(offload.checksum, Some(PartialChecksum { start, offset: 16 }));
            let kind = if v6 { SegmentationKind::Tcp6 } else { SegmentationKind::Tcp4 };
            let cut = Segmentation { kind, size: mss, header_len: headers };
            let long = segment.payload.len() > usize::from(mss);
            assert_eq!(offload.segmentation, long.then_some(cut));
            end.take(&segment);
            got.extend(segment.payload);
        }
        assert!(frames.len() <= 4, "{} frames", frames.len());
        assert_eq!(got, bytes);
    }
}

fn offloads(rig: &mut Rig) {
    let caps = &mut rig.link.sink.caps;
    caps.checksum = true;
    caps.tcp4_segmentation = true;
    caps.tcp6_segmentation = true;
    caps.max_frame = MAX_FRAME;
}

#[test]
fn checksums_without_segmentation_are_partial_and_frames_short() {
    let mut rig = Rig::new();
    open(&mut rig, false, 1);
    rig.link.sink.caps.checksum = true;
    for frame in rig.peer_sends(0, &pattern(4000)) {
        assert!(read_tcp_with(&frame, true).payload.len() <= 1460);
    }
}

#[test]
fn v6_frames_of_a_flow_carry_a_label_of_their_own() {
    let mut rig = Rig::new();
    let mut labels = std::collections::BTreeSet::new();
    for port in 1..50 {
        let mut end = ends(true, port);
        let syn = end.syn();
        labels.insert(read_ip(&rig.send(syn)[0]).flow_label);
    }
    assert!(labels.len() > 45 && !labels.contains(&0));
}

#[test]
fn the_guests_window_bounds_what_is_sent_and_acks_bring_more() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    end.window = 20; // times 128
    let ack = end.ack();
    rig.send(ack);
    let bytes = pattern(6000);
    let mut got = collect(&mut end, &rig.peer_sends(0, &bytes));
    assert_eq!(got.len(), 2560);
    assert!(rig.tcp_ready(0, READABLE).is_empty(), "the window is full");
    while got.len() < 6000 {
        let ack = end.ack();
        let more = collect(&mut end, &rig.send(ack));
        assert!(!more.is_empty());
        got.extend(more);
    }
    assert_eq!(got, bytes);
}

#[test]
fn without_room_data_stays_in_the_socket_and_comes_when_there_is_some() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    let peeks = rig.sock(0).peeks;
    rig.link.sink.free = 0;
    let bytes = pattern(9000);
    assert!(rig.peer_sends(0, &bytes).is_empty());
    assert_eq!(rig.sock(0).peeks, peeks);
    assert!(rig.link.sink.refused > 0);
    let before = rig.link.sink.refused;
    assert!(rig.room().is_empty(), "not yet");
    assert!(rig.link.sink.refused - before <= 2, "nobody spins");
    rig.link.sink.free = 2;
    let mut got = collect(&mut end, &rig.room());
    assert_eq!(got.len(), 2920);
    rig.link.sink.free = 100;
    got.extend(collect(&mut end, &rig.room()));
    assert_eq!(got, bytes);
}

#[test]
fn flows_that_wait_for_room_go_on_in_order_and_none_starves() {
    let mut rig = Rig::new();
    let mut flows: Vec<End> = (1..=5).map(|port| open(&mut rig, false, port)).collect();
    rig.link.sink.free = 0;
    for index in 0..5 {
        rig.peer_sends(index, &pattern(14_600));
    }
    let mut order = Vec::new();
    for _ in 0..5 {
        rig.link.sink.free = 2;
        let frames = rig.room();
        assert_eq!(frames.len(), 2);
        for frame in &frames {
            let segment = read_tcp(frame);
            let index = usize::from(segment.dst.1) - 1;
            flows[index].take(&segment);
            order.push(index);
        }
    }
    assert_eq!(order, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]);
    rig.link.sink.free = 1000;
    for frame in rig.room() {
        let segment = read_tcp(&frame);
        flows[usize::from(segment.dst.1) - 1].take(&segment);
    }
    for (index, end) in flows.iter_mut().enumerate() {
        let ack = end.ack();
        rig.send(ack);
        assert!(rig.sock(index).incoming.is_empty());
    }
}

#[test]
fn a_small_rest_of_a_ring_is_used_rather_than_waited_on() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    offloads(&mut rig);
    // Merged buffers of 1.5 kB: 64 kB at once will never be free.
    let sink = &mut rig.link.sink;
    (sink.mergeable, sink.size, sink.free) = (true, 1526, 12);
    rig.sock(0).incoming.extend(pattern(100_000));
    let token = Token::Tcp(rig.flow(0));
    rig.engine.on_socket(token, READABLE, passt::link::Link::halves(&mut rig.link).1, rig.now);
    let mut got = 0;
    for (frame, _) in rig.flush_with_offloads() {
        let segment = read_tcp_with(&frame, true);
        end.take(&segment);
        got += segment.payload.len();
    }
    assert!(got >= 12 * 1460 - 54, "{got}");
}

#[test]
fn buffers_too_small_for_a_segment_get_smaller_ones() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    rig.link.sink.size = 600;
    let bytes = pattern(5000);
    let mut got = collect(&mut end, &rig.peer_sends(0, &bytes));
    while got.len() < bytes.len() {
        let ack = end.ack();
        let more = collect(&mut end, &rig.send(ack));
        assert!(!more.is_empty());
        got.extend(more);
    }
    assert_eq!(got, bytes);
}

#[test]
fn buffers_too_small_for_anything_end_the_flow() {
    let mut rig = Rig::new();
    open(&mut rig, false, 1);
    rig.link.sink.size = 50;
    assert!(rig.peer_sends(0, b"data").is_empty());
    assert!(rig.sock(0).reset);
    assert_eq!(rig.engine.tcp_flows(), 0);
    assert!(rig.drops(DropReason::TooLarge) > 0);
    assert!(knock(&mut rig, peer(7, 1), 0).is_empty());
    assert!(rig.sock(1).reset);
}

#[test]
fn one_flow_cannot_starve_the_others() {
    let mut rig = Rig::new();
    let mut greedy = ends(false, 1);
    let options = vec![2, 4, 0x05, 0xb4, 1, 3, 3, 14];
    let syn = Tcp { options, ..greedy.segment(SYN, b"") };
    greedy.snd += 1;
    let answer = only_tcp(&rig.send(syn.frame()));
    greedy.take(&answer);
    let ack = greedy.ack();
    rig.send(ack);
    open(&mut rig, false, 2);
    let first: usize = rig
        .peer_sends(0, &pattern(5 << 20))
        .iter()
        .map(|frame| read_tcp(frame).payload.len())
        .sum();
    assert_eq!(first, 1 << 20, "its share");
    assert!(rig.engine.has_ready());
    assert_eq!(rig.peer_sends(1, b"me too").len(), 1);
    let second: usize = rig.run_ready().iter().map(|frame| read_tcp(frame).payload.len()).sum();
    assert_eq!(second, 1 << 20);
    for _ in 0..4 {
        rig.run_ready();
    }
    assert!(!rig.engine.has_ready());
}

#[test]
fn a_peek_into_more_pieces_than_one_call_takes_leaves_nothing_behind() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    end.window = u16::MAX;
    let ack = end.ack();
    rig.send(ack);
    rig.link.sink.piece = Some(8);
    let bytes = pattern(60_000);
    assert_eq!(collect(&mut end, &rig.peer_sends(0, &bytes)), bytes);
}

const URGENT: Readiness = Readiness { urgent: true, ..READABLE };

/// The guest acknowledges until nothing more comes; what came in all.
fn drain(rig: &mut Rig, end: &mut End, first: Vec<Vec<u8>>) -> (Vec<u8>, Vec<Vec<u8>>) {
    let (mut bytes, mut last, mut frames) = (Vec::new(), Vec::new(), first);
    while !frames.is_empty() {
        bytes.extend(collect(end, &frames));
        let ack = end.ack();
        last = std::mem::take(&mut frames);
        if !last.iter().any(|frame| read_tcp(frame).has(RST)) {
            frames = rig.send(ack);
        }
    }
    (bytes, last)
}

#[test]
fn urgent_data_and_what_is_behind_it_reach_the_guest() {
    for from_front in [false, true] {
        let mut rig = Rig::new();
        let mut end = open(&mut rig, false, 1);
        let bytes = pattern(6000);
        rig.sock(0).from_front = from_front;
        for mark in [2000, 10, 5999] {
            rig.sock(0).mark = Some(mark);
            rig.sock(0).incoming.extend(&bytes);
            let frames = rig.tcp_ready(0, URGENT);
            assert_eq!(drain(&mut rig, &mut end, frames).0, bytes);
        }
        // A peek that an ACK causes finds it before its event does.
        let mut end = open(&mut rig, false, 2);
        end.window = 1;
        let ack = end.ack();
        rig.send(ack);
        rig.sock(1).from_front = from_front;
        assert_eq!(collect(&mut end, &rig.peer_sends(1, &bytes[..200])), bytes[..128]);
        rig.sock(1).mark = Some(150);
        rig.sock(1).incoming.extend(&bytes[200..400]);
        end.window = 100;
        let ack = end.ack();
        let mut frames = rig.send(ack);
        frames.extend(rig.tcp_ready(1, URGENT));
        assert_eq!(drain(&mut rig, &mut end, frames).0, bytes[128..400]);
    }
}

#[test]
fn ordinary_data_is_peeked_once_and_urgent_data_until_there_is_no_more() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    let before = rig.sock(0).peeks;
    collect(&mut end, &rig.peer_sends(0, b"data"));
    assert_eq!(rig.sock(0).peeks - before, 1);
    rig.sock(0).incoming.extend(b"more");
    collect(&mut end, &rig.tcp_ready(0, URGENT));
    assert_eq!(rig.sock(0).peeks - before, 3);
}

#[test]
fn the_end_of_a_stream_with_urgent_data_is_behind_the_data() {
    let fin = Readiness { read_closed: true, ..READABLE };
    let reset = Readiness { hung_up: true, error: true, ..fin };
    for from_front in [false, true] {
        for (error, ready, flag) in [(None, fin, FIN), (Some(libc::ECONNRESET), reset, RST)] {
            // Where segments came out of order the kernel may not tell of a mark.
            for urgent in [true, error.is_some()] {
                let mut rig = Rig::new();
                let mut end = open(&mut rig, false, 1);
                let bytes = pattern(6000);
                rig.sock(0).from_front = from_front;
                rig.sock(0).mark = Some(2000);
                rig.sock(0).incoming.extend(&bytes);
                rig.sock(0).fin = true;
                rig.sock(0).error = error;
                let frames = rig.tcp_ready(0, Readiness { urgent, ..ready });
                let (got, last) = drain(&mut rig, &mut end, frames);
                assert_eq!(got, bytes, "{from_front} {error:?} {urgent}");
                assert!(read_tcp(last.last().unwrap()).has(flag));
            }
        }
    }
}

#[test]
fn a_failed_flow_with_urgent_data_waits_for_room_and_ends() {
    for from_front in [false, true] {
        let mut rig = Rig::new();
        let mut end = open(&mut rig, false, 1);
        rig.link.sink.free = 1;
        rig.sock(0).from_front = from_front;
        rig.sock(0).mark = Some(2);
        rig.sock(0).incoming.extend(b"abcdef");
        rig.sock(0).error = Some(libc::ECONNRESET);
        let frames = rig.tcp_ready(0, Readiness { error: true, hung_up: true, ..URGENT });
        assert_eq!(collect(&mut end, &frames), b"ab");
        // The guest says nothing more: it is given up.
        rig.link.sink.free = 100;
        let mut frames = rig.room();
        while rig.engine.tcp_flows() > 0 {
            frames = rig.after(10 * SECOND);
        }
        assert!(read_tcp(frames.last().unwrap()).has(RST));
    }
}

#[test]
fn a_peek_asks_for_little_until_much_has_come() {
    let mut rig = Rig::new();
    rig.link.sink.free = 1 << 20;
    let mut end = open(&mut rig, false, 1);
    for i in 0..20 {
        assert_eq!(collect(&mut end, &rig.peer_sends(0, b"x")), b"x", "{i}");
        let ack = end.ack();
        rig.send(ack);
    }
    // One peek for each byte and one for each ACK.
    assert!(rig.sock(0).peeks <= 41, "{}", rig.sock(0).peeks);
    assert_eq!(rig.link.sink.free, (1 << 20) - 21, "no buffer is lost");
    assert_eq!(rig.sock(0).widened, 0, "crumbs need no wide socket");
}

#[test]
fn a_stream_with_much_to_carry_is_widened_once() {
    let mut rig = Rig::new();
    rig.link.sink.free = 1 << 20;
    let mut end = open(&mut rig, false, 1);
    end.window = u16::MAX;
    let bytes = pattern(200_000);
    let mut frames = rig.peer_sends(0, &bytes);
    while !frames.is_empty() {
        collect(&mut end, &frames);
        let ack = end.ack();
        frames = rig.send(ack);
    }
    assert_eq!(rig.sock(0).widened, 1);
}

#[test]
fn loss_is_repaired_from_the_socket() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    let bytes = pattern(8 * 1460);
    let frames = rig.peer_sends(0, &bytes);
    // The first is lost; the others cause duplicates.
    let mut again = Vec::new();
    for _ in &frames[1..] {
        let duplicate = end.ack();
        again.extend(rig.send(duplicate));
    }
    let segment = only_tcp(&again);
    assert_eq!((segment.seq, &segment.payload[..]), (end.rcv, &bytes[..1460]));
    // All are lost: the timer.
    let frames = rig.after(10 * SECOND);
    assert_eq!(read_tcp(&frames[0]).seq, end.rcv);
}

// ---- The ends of connections.

#[test]
fn a_guests_fin_shuts_the_socket_down_behind_all_that_is_staged() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    rig.sock(0).room = 3;
    let frame = end.next(FIN, b"last words");
    let ack = only_tcp(&rig.send(frame));
    assert_eq!((ack.ack, rig.sock(0).shut), (end.snd, false));
    rig.sock(0).room = 100;
    rig.tcp_ready(0, WRITABLE);
    assert!(rig.sock(0).shut && rig.sock(0).sent == b"last words");
    // The peer goes on, then ends.
    assert_eq!(collect(&mut end, &rig.peer_sends(0, b"answer")), b"answer");
    let fin = only_tcp(&rig.peer_ends(0));
    assert!(fin.has(FIN));
    end.take(&fin);
    let ack = end.ack();
    assert!(rig.send(ack).is_empty());
    assert!(rig.sock(0).closed && !rig.sock(0).reset);
    assert_eq!((rig.engine.tcp_flows(), rig.engine.staged()), (0, 0));
}

#[test]
fn a_peers_fin_leaves_the_other_half_open() {
    let mut rig = Rig::new();
    let mut end = accept(&mut rig, 5000);
    rig.sock(0).incoming.extend(b"request");
    let frames = rig.peer_ends(0);
    assert_eq!(collect(&mut end, &frames), b"request");
    assert!(read_tcp(frames.last().unwrap()).has(FIN));
    let frame = end.next(0, b"response");
    rig.send(frame);
    assert_eq!(rig.sock(0).sent, b"response");
    assert!(!rig.sock(0).closed);
    let fin = end.next(FIN, b"");
    let ack = only_tcp(&rig.send(fin));
    assert_eq!(ack.ack, end.snd);
    assert!(rig.sock(0).shut && rig.sock(0).closed && !rig.sock(0).reset);
}

#[test]
fn a_fin_behind_data_is_noticed_however_events_and_peeks_interleave() {
    // The event of the data; the FIN comes right after the peek; its event.
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    collect(&mut end, &rig.peer_sends(0, b"data"));
    let fin = only_tcp(&rig.peer_ends(0));
    assert!(fin.has(FIN));
    // The FIN comes while the window is full.
    let mut end = open(&mut rig, false, 2);
    end.window = 1;
    let ack = end.ack();
    rig.send(ack);
    assert_eq!(collect(&mut end, &rig.peer_sends(1, &[1; 200])).len(), 128);
    assert!(rig.peer_ends(1).is_empty());
    let ack = end.ack();
    let frames = rig.send(ack);
    assert_eq!(collect(&mut end, &frames).len(), 72);
    assert!(read_tcp(frames.last().unwrap()).has(FIN));
    // The FIN comes while there is no room.
    open(&mut rig, false, 3);
    rig.link.sink.free = 0;
    assert!(rig.peer_sends(2, b"data").is_empty());
    assert!(rig.peer_ends(2).is_empty());
    rig.link.sink.free = 10;
    assert!(read_tcp(rig.room().last().unwrap()).has(FIN));
}

#[test]
fn a_peers_reset_reaches_the_guest_behind_the_data_that_came_first() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    end.window = 1;
    let ack = end.ack();
    rig.send(ack);
    rig.sock(0).incoming.extend([5; 200]);
    rig.sock(0).error = Some(libc::ECONNRESET);
    rig.sock(0).send_error = Some(libc::EPIPE);
    let ready = Readiness { error: true, hung_up: true, read_closed: true, ..READABLE };
    assert_eq!(collect(&mut end, &rig.tcp_ready(0, ready)).len(), 128);
    // The guest goes on to send, and the socket to fail: that changes nothing.
    let ahead = end.segment(ACK, b"not read by anyone");
    for _ in 0..3 {
        let frames = rig.send(Tcp { ack: end.rcv.wrapping_sub(128), ..ahead.clone() }.frame());
        assert!(frames.iter().all(|frame| read_tcp(frame).flags == ACK));
        rig.tcp_ready(0, ready);
    }
    end.snd += ahead.len();
    rig.sock(0).shutdown_error = Some(libc::ENOTCONN);
    let fin = end.next(FIN, b"");
    let frames = rig.send(fin);
    let last = read_tcp(frames.last().unwrap());
    assert_eq!((last.has(RST), last.seq), (true, end.rcv + 72));
    assert_eq!(read_tcp(&frames[0]).payload.len(), 72);
    assert!(rig.sock(0).reset);
    assert_eq!(rig.engine.tcp_flows(), 0);
}

#[test]
fn a_peers_reset_during_the_handshake_reaches_the_guest() {
    let mut rig = Rig::new();
    let syn = only_tcp(&knock(&mut rig, peer(7, 1), 0));
    rig.sock(0).error = Some(libc::ECONNRESET);
    let ready = Readiness { error: true, hung_up: true, ..NOT_READY };
    let reset = only_tcp(&rig.tcp_ready(0, ready));
    assert_eq!((reset.has(RST), reset.seq), (true, syn.seq + 1));
    assert_eq!(rig.engine.tcp_flows(), 0);
}

#[test]
fn a_guests_reset_reaches_the_peer_and_is_not_answered() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    let frames = [end.next(0, b"before"), end.segment(RST, b"").frame(), end.next(0, b"behind")];
    assert!(rig.offer(&frames).is_empty());
    assert!(rig.sock(0).reset);
    assert_eq!(rig.engine.tcp_flows(), 0);
}

#[test]
fn ports_may_be_used_again_in_the_batch_that_resets_them() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    let (data, reset) = (end.next(0, b"before"), end.segment(RST, b"").frame());
    let mut again = ends(false, 1);
    again.snd = end.snd.wrapping_add(100_000);
    let answers = rig.offer(&[data, reset, again.syn()]);
    let answer = only_tcp(&answers);
    assert_eq!((answer.flags, answer.ack), (SYN | ACK, again.snd));
    assert_eq!(rig.sock(0).sent, b"before");
    assert!(rig.sock(0).reset && !rig.sock(1).closed);
    assert_eq!(rig.engine.tcp_flows(), 1);
    // The new connection works, and the old one's end has left nothing behind.
    again.take(&answer);
    let frames = [again.ack(), again.next(PSH, b"new")];
    rig.offer(&frames);
    assert_eq!(rig.sock(1).sent, b"new");
    // A SYN for a connection that lives is still challenged.
    let answer = only_tcp(&rig.send(ends(false, 1).syn()));
    assert_eq!(answer.flags, ACK);
    assert_eq!(rig.engine.tcp_flows(), 1);
}

#[test]
fn a_reset_waits_for_room_and_nothing_waits_with_it() {
    let mut rig = Rig::new();
    for port in 1..=3 {
        open(&mut rig, port == 2, port);
    }
    rig.link.sink.free = 0;
    for index in 0..3 {
        rig.sock(index).error = Some(libc::ECONNRESET);
        rig.tcp_ready(index, Readiness { error: true, hung_up: true, ..NOT_READY });
        assert!(rig.sock(index).reset && rig.sock(index).closed);
    }
    assert_eq!((rig.engine.tcp_flows(), rig.engine.waiting()), (0, 1));
    assert!(rig.room().is_empty());
    rig.link.sink.free = 2;
    let ports = |frames: &[Vec<u8>]| -> Vec<u16> {
        assert!(frames.iter().all(|frame| read_tcp(frame).has(RST)));
        frames.iter().map(|frame| read_tcp(frame).dst.1).collect()
    };
    assert_eq!(ports(&rig.room()), [1, 2]);
    rig.link.sink.free = 2;
    assert_eq!(ports(&rig.room()), [3]);
    assert_eq!(rig.engine.waiting(), 0);
}

#[test]
fn what_came_before_a_reset_waits_for_room_with_its_socket() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    rig.link.sink.free = 0;
    rig.sock(0).incoming.extend(b"before");
    rig.sock(0).error = Some(libc::ECONNRESET);
    rig.tcp_ready(0, Readiness { error: true, hung_up: true, ..READABLE });
    assert!(!rig.sock(0).closed);
    rig.link.sink.free = 5;
    let frames = rig.room();
    assert_eq!(collect(&mut end, &frames), b"before");
    assert!(read_tcp(frames.last().unwrap()).has(RST));
    assert!(rig.sock(0).closed);
}

#[test]
fn resets_that_wait_are_as_many_as_flows_at_most() {
    let mut rig = Rig::with(Settings { max_flows: 10, ..settings() });
    rig.link.sink.free = 0;
    for port in 1..=30 {
        rig.engine.host_mut().state().borrow_mut().connects.push_back(Ok(Connect::InProgress));
        let syn = ends(false, port).syn();
        rig.send(syn);
        let index = usize::from(port) - 1;
        rig.sock(index).connect = Err(libc::ECONNREFUSED);
        rig.tcp_ready(index, Readiness { error: true, ..WRITABLE });
        assert_eq!(rig.engine.tcp_flows(), 0);
    }
    rig.link.sink.free = 4;
    assert_eq!(rig.room().len(), 4);
    rig.link.sink.free = 100;
    assert_eq!(rig.room().len(), 6);
    assert!(rig.room().is_empty());
}

#[test]
fn a_connect_that_never_ends_is_given_up() {
    let mut rig = Rig::new();
    rig.engine.host_mut().state().borrow_mut().connects.push_back(Ok(Connect::InProgress));
    let mut end = ends(false, 4000);
    let syn = end.syn();
    rig.send(syn);
    assert!(rig.after(170 * SECOND).is_empty());
    assert!(only_tcp(&rig.after(20 * SECOND)).has(RST));
    assert!(rig.sock(0).reset);
    assert_eq!(rig.engine.tcp_flows(), 0);
}

#[test]
fn a_guest_that_starts_anew_in_the_handshake_is_answered_at_once() {
    for connected in [false, true] {
        let mut rig = Rig::new();
        let how = if connected { Connect::Done } else { Connect::InProgress };
        rig.engine.host_mut().state().borrow_mut().connects.push_back(Ok(how));
        let mut end = ends(false, 4000);
        let syn = end.syn();
        assert_eq!(rig.send(syn).len(), usize::from(connected));
        let mut again = ends(false, 4000);
        again.snd = end.snd.wrapping_sub(100_000);
        let syn = again.syn();
        let answer = only_tcp(&rig.send(syn));
        assert_eq!((answer.flags, answer.ack), (SYN | ACK, again.snd));
        again.take(&answer);
        let frame = again.next(PSH, b"new");
        rig.send(frame);
        assert_eq!(rig.sock(1).sent, b"new");
        assert!(rig.sock(0).reset && rig.sock(0).closed && !rig.sock(1).closed);
        assert_eq!(rig.engine.tcp_flows(), 1);
    }
}

#[test]
fn ports_may_be_used_again_while_the_last_bytes_of_a_connection_drain() {
    let mut rig = Rig::new();
    let mut old = open(&mut rig, false, 4000);
    rig.sock(0).room = 2;
    for frame in rig.peer_ends(0) {
        old.take(&read_tcp(&frame));
    }
    let fin = old.next(FIN, b"last words");
    rig.send(fin);
    assert_eq!(rig.engine.tcp_flows(), 1, "bytes are left for the peer");
    let mut new = ends(false, 4000);
    new.snd = old.snd.wrapping_sub(5);
    let syn = new.syn();
    let answer = only_tcp(&rig.send(syn));
    assert_eq!((answer.flags, answer.ack), (SYN | ACK, new.snd));
    new.take(&answer);
    let frame = new.next(PSH, b"hello");
    rig.send(frame);
    assert_eq!((rig.engine.tcp_flows(), &rig.sock(1).sent[..]), (2, &b"hello"[..]));
    rig.sock(0).room = 100;
    assert!(rig.tcp_ready(0, WRITABLE).is_empty());
    assert_eq!(rig.sock(0).sent, b"last words");
    assert!(rig.sock(0).shut && rig.sock(0).closed && !rig.sock(0).reset);
    let frame = new.next(PSH, b" world");
    rig.send(frame);
    assert_eq!((rig.engine.tcp_flows(), &rig.sock(1).sent[..]), (1, &b"hello world"[..]));
    assert_eq!(rig.engine.staged(), 0);
}

#[test]
fn a_guest_that_is_gone_keeps_no_connection_of_peers_alive() {
    let mut rig = Rig::new();
    rig.link.sink.down = true;
    for port in 1..=20 {
        assert!(knock(&mut rig, peer(7, port), 0).is_empty());
    }
    assert_eq!(rig.engine.tcp_flows(), 20);
    for _ in 0..60 {
        assert!(rig.after(SECOND).is_empty());
    }
    assert_eq!(rig.engine.tcp_flows(), 0, "they are given up");
    assert!((0..20).all(|index| rig.sock(index).reset));
    rig.link.sink.down = false;
    assert!(rig.room().is_empty(), "nobody waits any more");
}

#[test]
fn connections_outlive_the_link() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    rig.link.sink.down = true;
    assert!(rig.peer_sends(0, b"meanwhile").is_empty());
    rig.after(20 * SECOND);
    rig.link.sink.down = false;
    rig.engine.on_link_up(passt::link::Link::halves(&mut rig.link).1, rig.now);
    let frames = rig.flush();
    let data: Vec<_> = frames.iter().filter(|f| f[12..14] == [8, 0]).cloned().collect();
    assert_eq!(collect(&mut end, &data), b"meanwhile");
    assert!(frames.len() > data.len(), "and the guest is greeted");
}

#[test]
fn a_failed_shutdown_resets_both() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    rig.sock(0).shutdown_error = Some(libc::ENOTCONN);
    let fin = end.next(FIN, b"");
    assert!(read_tcp(rig.send(fin).last().unwrap()).has(RST));
    assert!(rig.sock(0).reset);
}

#[test]
fn events_of_flows_that_are_gone_do_nothing() {
    let mut rig = Rig::new();
    let end = open(&mut rig, false, 1);
    let old = Token::Tcp(rig.flow(0));
    rig.send(end.segment(RST, b"").frame());
    for ready in [READABLE, WRITABLE, Readiness { error: true, hung_up: true, ..NOT_READY }] {
        assert!(rig.ready(old, ready).is_empty());
    }
    let mut end = open(&mut rig, false, 1);
    assert!(rig.ready(old, Readiness { error: true, ..NOT_READY }).is_empty());
    assert_eq!(rig.engine.tcp_flows(), 1, "its slot has a new tenant");
    let frame = end.next(0, b"x");
    rig.send(frame);
    assert_eq!(rig.sock(1).sent, b"x");
    assert!(rig.ready(Token::Listener(9), READABLE).is_empty());
    assert!(rig.ready(Token::Signal, READABLE).is_empty());
}

#[test]
fn a_flow_that_ends_while_it_waits_leaves_no_trace() {
    let mut rig = Rig::new();
    let end = open(&mut rig, false, 1);
    rig.link.sink.free = 0;
    rig.peer_sends(0, b"data");
    assert!(rig.send(end.segment(RST, b"").frame()).is_empty());
    assert_eq!((rig.engine.tcp_flows(), rig.sock(0).closed), (0, true));
    rig.link.sink.free = 10;
    assert!(rig.room().is_empty());
    // A flow that has more to do than its share.
    let end = open(&mut rig, false, 2);
    rig.link.sink.free = 1 << 20;
    rig.peer_sends(1, &pattern(3 << 20));
    rig.send(end.segment(RST, b"").frame());
    rig.run_ready();
    assert!(!rig.engine.has_ready());
    // Its timers are gone, too.
    while rig.engine.tcp_flows() == 0 && rig.now.as_nanos() < 20_000_000_000_000 {
        rig.after(600 * SECOND);
    }
    assert_eq!(rig.engine.tcp_flows(), 0);
}

#[test]
fn what_happens_to_one_flow_costs_thousands_of_idle_ones_no_call() {
    let mut rig = Rig::with(Settings { max_flows: 4000, ..settings() });
    let mut ends: Vec<End> = (1..=3000).map(|port| open(&mut rig, port % 2 == 0, port)).collect();
    let question = |port| udp((GUEST_V4, port), (PEER_V4, 53), b"question");
    (1..=3000).for_each(|port| drop(rig.send(question(port))));
    let calls =
        |rig: &mut Rig| std::mem::take(&mut rig.engine.host_mut().state().borrow_mut().calls);
    let (tcp, datagrams) = calls(&mut rig);
    assert!(tcp.len() >= 3000 && datagrams.len() >= 3000);
    // A wake-up with all that it can bring, for two of the flows.
    let frames = [ends[1234].next(0, b"data"), question(777)];
    rig.offer(&frames);
    rig.peer_sends(1234, b"answer");
    rig.remote_sends(776, &[b"answer"]);
    rig.room();
    rig.run_ready();
    rig.after(Duration::from_millis(1));
    let (mut tcp, mut datagrams) = calls(&mut rig);
    tcp.dedup();
    datagrams.dedup();
    assert_eq!((tcp, datagrams), (vec![1234], vec![776]));
    // With nothing to do there is nothing that is looked at.
    rig.after(Duration::from_millis(1));
    rig.turn();
    assert_eq!(calls(&mut rig), (Vec::new(), Vec::new()));
}

#[test]
fn an_idle_guest_is_asked_and_a_probing_one_switches_keepalive_on() {
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 1);
    let probe = only_tcp(&rig.after(40 * SECOND));
    assert_eq!((probe.seq, probe.flags, probe.payload.len()), (end.rcv - 1, ACK, 0));
    let ack = end.ack();
    rig.send(ack);
    assert!(!rig.sock(0).keepalive);
    let probe = Tcp { seq: end.snd - 1, ..end.segment(ACK, b"") };
    let answer = only_tcp(&rig.send(probe.frame()));
    assert_eq!(answer.ack, end.snd);
    assert!(rig.sock(0).keepalive);
}

#[test]
fn a_forged_reset_or_syn_is_challenged() {
    let mut rig = Rig::new();
    let end = open(&mut rig, false, 1);
    for segment in [
        Tcp { seq: end.snd + 100, ..end.segment(RST, b"") },
        end.segment(SYN, b""),
        Tcp { ack: end.rcv + 1000, ..end.segment(ACK, b"") },
    ] {
        let answer = only_tcp(&rig.send(segment.frame()));
        assert_eq!((answer.flags, answer.seq, answer.ack), (ACK, end.rcv, end.snd));
    }
    assert_eq!(rig.engine.tcp_flows(), 1);
}

#[test]
fn a_connection_that_cannot_be_watched_is_reset_on_both_sides() {
    let unwatched = |rig: &mut Rig| {
        rig.engine.host_mut().state().borrow_mut().watch_errors.push_back(libc::ENOSPC);
    };
    // One from outside is watched for the first time when it is accepted.
    let mut rig = Rig::new();
    unwatched(&mut rig);
    let frames = knock(&mut rig, peer(7, 4000), 0);
    assert!(read_tcp(frames.last().expect("a reset")).has(RST));
    assert!(rig.sock(0).reset);
    assert_eq!((rig.engine.tcp_flows(), rig.engine.waiting()), (0, 0));
    // One that is established.
    let mut rig = Rig::new();
    let mut end = open(&mut rig, false, 4000);
    unwatched(&mut rig);
    let frame = end.next(PSH, b"data");
    let frames = rig.send(frame);
    assert!(read_tcp(frames.last().expect("a reset")).has(RST));
    assert!(rig.sock(0).reset);
    assert_eq!(rig.engine.tcp_flows(), 0);
}
