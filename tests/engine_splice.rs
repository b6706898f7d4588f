//! Connections and datagrams that go from socket to socket: the engine between scripted sockets.

mod common;

use common::rig::{GUEST_PORT, GUEST_V4, HOST_PORT, NOT_READY, READABLE, Rig, WRITABLE, settings};
use common::sim::{Chance, byte};
use passt::engine::Settings;
use passt::engine::counters::DropReason;
use passt::flow::forward::Splicing;
use passt::flow::{Endpoint, Side};
use passt::host::{IcmpCause, SocketError};
use passt::time::Duration;
use passt::token::{Readiness, Token};
use passt::translate::splice::TURN;
use std::net::IpAddr;

const ON: Splicing = Splicing { inwards: true, lo_to_lo: false, only: false };
const LO_TO_LO: Splicing = Splicing { lo_to_lo: true, ..ON };
const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const BOTH: Readiness = Readiness { writable: true, ..READABLE };
const FAILED: Readiness = Readiness { error: true, hung_up: true, ..BOTH };

/// Listeners of the scripted host.
const TCP_OUTSIDE: Token = Token::Listener(0);
const TCP_INSIDE: Token = Token::Listener(2);
const UDP_OUTSIDE: Token = Token::Listener(1);
const UDP_INSIDE: Token = Token::Listener(3);

fn rig(splicing: Splicing) -> Rig {
    Rig::with(Settings { splicing, ..settings() })
}

fn at(addr: IpAddr, port: u16) -> Endpoint {
    Endpoint::new(addr, port)
}

/// Connects from `peer` to `local` through `listener`; the numbers of the sockets, if it is carried.
fn knock_from(
    rig: &mut Rig,
    listener: Token,
    peer: Endpoint,
    local: Endpoint,
) -> Option<[usize; 2]> {
    let before = rig.engine.host_mut().state().borrow().socks.len();
    rig.engine.host_mut().state().borrow_mut().backlog.push_back(Ok((peer, local, 0)));
    assert!(rig.ready(listener, READABLE).is_empty(), "something went to the guest");
    let after = rig.engine.host_mut().state().borrow().socks.len();
    (after == before + 2).then_some([before, before + 1])
}

fn event(rig: &mut Rig, sock: usize, ready: Readiness) {
    let token = rig.sock(sock).token.expect("watched");
    assert!(rig.ready(token, ready).is_empty(), "something went to the guest");
}

/// A connection from loopback outside, both sockets ready; the accepted one and the other.
fn connection(rig: &mut Rig) -> [usize; 2] {
    let from = at(LOOPBACK, 4000);
    let socks = knock_from(rig, TCP_OUTSIDE, from, at(LOOPBACK, HOST_PORT)).expect("is carried");
    socks.into_iter().for_each(|sock| event(rig, sock, WRITABLE));
    socks
}

fn arrives(rig: &mut Rig, sock: usize, bytes: &[u8]) {
    rig.sock(sock).incoming.extend(bytes);
    event(rig, sock, READABLE);
}

fn ends(rig: &mut Rig, sock: usize) {
    rig.sock(sock).fin = true;
    event(rig, sock, Readiness { read_closed: true, ..READABLE });
}

/// How many pipes there are, and how many of them are in use.
fn pipes(rig: &mut Rig) -> (usize, usize) {
    let state = rig.engine.host_mut().state().borrow();
    let used = state.pipes.iter().filter(|pipe| !pipe.free && !pipe.closed).count();
    (state.pipes.len(), used)
}

#[test]
fn connections_from_loopback_go_to_sockets_of_the_other_side() {
    let v6: IpAddr = "::1".parse().unwrap();
    let guest6 = common::rig::GUEST_V6;
    for (splicing, listener, lo, side, to) in [
        (ON, TCP_OUTSIDE, LOOPBACK, Side::Inside, GUEST_V4),
        (ON, TCP_OUTSIDE, v6, Side::Inside, guest6),
        (LO_TO_LO, TCP_OUTSIDE, LOOPBACK, Side::Inside, LOOPBACK),
        (LO_TO_LO, TCP_OUTSIDE, v6, Side::Inside, v6),
        (ON, TCP_INSIDE, LOOPBACK, Side::Outside, LOOPBACK),
        (Splicing::default(), TCP_INSIDE, v6, Side::Outside, v6),
    ] {
        let mut rig = rig(splicing);
        let socks = knock_from(&mut rig, listener, at(lo, 4000), at(lo, HOST_PORT));
        let [accepted, connected] = socks.expect("is carried");
        assert_eq!(rig.sock(connected).to, at(to, GUEST_PORT));
        assert_eq!(rig.sock(connected).side, side);
        assert!(rig.sock(accepted).interest.edge && rig.sock(connected).interest.edge);
        assert_eq!((rig.engine.spliced_connections(), rig.engine.tcp_flows()), (1, 0));
    }
}

#[test]
fn what_is_not_from_loopback_takes_the_link_or_is_reset() {
    let peer = at(common::rig::PEER_V4, 4000);
    let mut open = rig(ON);
    let local = at("198.51.100.1".parse().unwrap(), HOST_PORT);
    let state = open.engine.host_mut().state();
    state.borrow_mut().backlog.push_back(Ok((peer, local, 0)));
    assert_eq!(open.ready(TCP_OUTSIDE, READABLE).len(), 1, "a SYN to the guest");
    assert_eq!((open.engine.spliced_connections(), open.engine.tcp_flows()), (0, 1));

    for (splicing, listener) in [
        (Splicing { only: true, ..LO_TO_LO }, TCP_OUTSIDE),
        (ON, TCP_INSIDE),
        (LO_TO_LO, TCP_INSIDE),
    ] {
        let mut rig = rig(splicing);
        assert_eq!(knock_from(&mut rig, listener, peer, local), None);
        assert!(rig.sock(0).reset);
        assert_eq!(rig.drops(DropReason::Refused), 1);
    }
}

#[test]
fn bytes_and_ends_cross_in_every_order() {
    for first in [0, 1] {
        for (early, late) in [(0, 7), (7, 0), (9, 9)] {
            let mut rig = rig(ON);
            let socks = connection(&mut rig);
            let (one, other) = (socks[first], socks[1 - first]);
            arrives(&mut rig, one, b"question");
            assert_eq!(rig.sock(other).sent, b"question");
            arrives(&mut rig, one, &vec![1; early]);
            ends(&mut rig, one);
            assert!(rig.sock(other).shut && !rig.sock(one).shut && !rig.sock(one).closed);
            arrives(&mut rig, other, &vec![2; late]);
            assert_eq!(rig.sock(one).sent, vec![2; late]);
            ends(&mut rig, other);
            for sock in [one, other] {
                let sock = rig.sock(sock);
                assert!(sock.shut && sock.closed && !sock.reset);
            }
            assert_eq!(rig.sock(other).sent.len(), 8 + early);
            assert_eq!(rig.engine.spliced_connections(), 0);
            assert_eq!(pipes(&mut rig).1, 0);
        }
    }
}

/// What goes from a socket to a pipe ends before an urgent byte, for ever.
#[test]
fn urgent_bytes_pass_in_line_and_hide_neither_what_follows_nor_the_end() {
    for (mark, end) in (0..6).flat_map(|mark| [(mark, false), (mark, true)]) {
        let mut rig = rig(ON);
        let [here, there] = connection(&mut rig);
        rig.sock(here).incoming.extend(b"abcdef");
        rig.sock(here).mark = Some(mark);
        rig.sock(here).fin = end;
        event(&mut rig, here, Readiness { urgent: true, read_closed: end, ..READABLE });
        assert_eq!(rig.sock(there).sent, b"abcdef", "{mark}");
        assert_eq!(rig.sock(there).shut, end, "{mark}");
        assert_eq!(pipes(&mut rig).1, 0);
        arrives(&mut rig, there, b"and back");
        assert_eq!(rig.sock(here).sent, b"and back");
    }
}

#[test]
fn a_full_socket_holds_the_bytes_and_then_the_end() {
    let mut rig = rig(ON);
    let [here, there] = connection(&mut rig);
    rig.sock(there).room = 3;
    arrives(&mut rig, here, b"abcdef");
    ends(&mut rig, here);
    assert_eq!(rig.sock(there).sent, b"abc");
    assert!(!rig.sock(there).shut);
    assert_eq!(pipes(&mut rig), (1, 1));
    // More waits in the socket while the pipe is not empty.
    arrives(&mut rig, here, b"gh");
    assert_eq!(rig.sock(here).incoming.len(), 2);
    rig.sock(there).room = 1;
    event(&mut rig, there, WRITABLE);
    assert_eq!(rig.sock(there).sent, b"abcd");
    rig.sock(there).room = 100;
    event(&mut rig, there, WRITABLE);
    assert_eq!(rig.sock(there).sent, b"abcdefgh");
    assert!(rig.sock(there).shut);
    assert_eq!(pipes(&mut rig), (1, 0));
}

#[test]
fn nothing_is_read_before_the_other_side_has_answered() {
    let mut rig = rig(ON);
    let peer = at(LOOPBACK, 4000);
    let socks = knock_from(&mut rig, TCP_OUTSIDE, peer, at(LOOPBACK, HOST_PORT));
    let [here, there] = socks.unwrap();
    event(&mut rig, here, WRITABLE);
    arrives(&mut rig, here, b"early");
    assert_eq!(rig.sock(here).incoming.len(), 5);
    assert_eq!(pipes(&mut rig), (0, 0));
    event(&mut rig, there, WRITABLE);
    assert_eq!(rig.sock(there).sent, b"early");
}

#[test]
fn a_connect_that_is_refused_resets_the_accepted_connection() {
    let mut rig = rig(ON);
    let refused = std::io::Error::from_raw_os_error(libc::ENETUNREACH);
    rig.engine.host_mut().state().borrow_mut().connects.push_back(Err(refused));
    let local = at(LOOPBACK, HOST_PORT);
    assert_eq!(knock_from(&mut rig, TCP_OUTSIDE, at(LOOPBACK, 4000), local), None);
    assert!(rig.sock(0).reset);
    assert_eq!(rig.drops(DropReason::NoSocket), 1);

    let [here, there] =
        knock_from(&mut rig, TCP_OUTSIDE, at(LOOPBACK, 4000), local).expect("is carried");
    event(&mut rig, here, WRITABLE);
    rig.sock(there).error = Some(libc::ECONNREFUSED);
    event(&mut rig, there, FAILED);
    assert!(rig.sock(here).reset && rig.sock(there).reset);
    assert_eq!((rig.engine.spliced_connections(), pipes(&mut rig).1), (0, 0));
}

#[test]
fn an_error_resets_both_behind_what_came_before() {
    for first in [0, 1] {
        let mut rig = rig(ON);
        let socks = connection(&mut rig);
        let (one, other) = (socks[first], socks[1 - first]);
        rig.sock(one).incoming.extend(b"last words");
        rig.sock(one).error = Some(libc::ECONNRESET);
        rig.sock(one).send_error = Some(libc::EPIPE);
        event(&mut rig, one, FAILED);
        assert_eq!(rig.sock(other).sent, b"last words");
        assert!(rig.sock(one).reset && rig.sock(other).reset);
    }
}

#[test]
fn a_write_error_and_a_shutdown_error_reset_both() {
    let mut rig = rig(ON);
    let [here, there] = connection(&mut rig);
    rig.sock(there).send_error = Some(libc::EPIPE);
    arrives(&mut rig, here, b"x");
    assert!(rig.sock(here).reset && rig.sock(there).reset);
    let [here, there] = connection(&mut rig);
    rig.sock(there).shutdown_error = Some(libc::ENOTCONN);
    ends(&mut rig, here);
    assert!(rig.sock(here).reset && rig.sock(there).reset);
    assert_eq!(rig.engine.spliced_connections(), 0);
}

#[test]
fn without_descriptors_for_a_pipe_that_connection_alone_ends() {
    let mut rig = rig(ON);
    let [one, _] = connection(&mut rig);
    let [other, to] = connection(&mut rig);
    rig.engine.host_mut().state().borrow_mut().pipe_errors.push_back(libc::EMFILE);
    arrives(&mut rig, one, b"x");
    assert!(rig.sock(one).reset);
    arrives(&mut rig, other, b"y");
    assert_eq!(rig.sock(to).sent, b"y");
    assert_eq!(rig.engine.spliced_connections(), 1);
}

#[test]
fn a_connection_that_cannot_be_watched_is_reset_on_both_sides() {
    let mut rig = rig(ON);
    rig.engine.host_mut().state().borrow_mut().watch_errors.push_back(libc::ENOSPC);
    let local = at(LOOPBACK, HOST_PORT);
    knock_from(&mut rig, TCP_OUTSIDE, at(LOOPBACK, 4000), local);
    assert!(rig.sock(0).reset && rig.sock(1).reset);
    assert_eq!(rig.engine.spliced_connections(), 0);
    assert_eq!(rig.drops(DropReason::NoSocket), 1);
    // The next one may be.
    let socks = knock_from(&mut rig, TCP_OUTSIDE, at(LOOPBACK, 4001), local);
    assert!(socks.is_some());
    assert_eq!(rig.engine.spliced_connections(), 1);
}

#[test]
fn an_exchange_that_refuses_one_datagram_after_the_other_is_tried_a_few_times() {
    let mut rig = rig(ON);
    let (from, to) = (at(LOOPBACK, 4000), at(LOOPBACK, HOST_PORT));
    datagram_to(&mut rig, UDP_OUTSIDE, b"first", from, to);
    let token = rig.datagrams(0).token;
    for _ in 0..20 {
        rig.datagrams(0).incoming.push_back((vec![7; 64], Some(1)));
    }
    rig.datagrams(1).refusing = Some(libc::ECONNREFUSED);
    rig.ready(token, READABLE);
    let calls = rig.datagrams(1).calls;
    assert!(calls < 100, "{calls} calls for {} datagrams", 20 * 64);
    assert_eq!(rig.drops(DropReason::NotSent), 20 * 64, "each is counted");
    rig.datagrams(1).refusing = None;
    rig.datagrams(0).incoming.push_back((vec![8; 3], None));
    rig.ready(token, READABLE);
    assert_eq!(rig.datagrams(1).sent.last().expect("sent").0, [8; 3]);
}

#[test]
fn a_full_table_resets_the_next_connection() {
    let mut rig = Rig::with(Settings { splicing: ON, max_flows: 1, ..settings() });
    let [here, there] = connection(&mut rig);
    let local = at(LOOPBACK, HOST_PORT);
    assert_eq!(knock_from(&mut rig, TCP_OUTSIDE, at(LOOPBACK, 4001), local), None);
    assert!(rig.sock(2).reset);
    assert_eq!(rig.drops(DropReason::TableFull), 1);
    ends(&mut rig, here);
    ends(&mut rig, there);
    assert!(knock_from(&mut rig, TCP_OUTSIDE, at(LOOPBACK, 4001), local).is_some());
}

#[test]
fn idle_connections_have_no_pipe_and_busy_ones_share_few() {
    let mut rig = rig(ON);
    let socks: Vec<_> = (0..100).map(|_| connection(&mut rig)).collect();
    assert_eq!(pipes(&mut rig), (0, 0));
    for [here, there] in socks {
        arrives(&mut rig, here, b"there");
        arrives(&mut rig, there, b"and back");
    }
    assert_eq!(pipes(&mut rig), (1, 0));
}

#[test]
fn one_spliced_connection_cannot_starve_another() {
    let mut rig = rig(ON);
    rig.engine.host_mut().state().borrow_mut().pipe_size = TURN;
    let socks = [connection(&mut rig), connection(&mut rig)];
    for [here, _] in socks {
        arrives(&mut rig, here, &vec![5; 3 * TURN]);
    }
    let sent = |rig: &mut Rig| socks.map(|[_, there]| rig.sock(there).sent.len());
    assert_eq!(sent(&mut rig), [TURN, TURN]);
    assert!(rig.engine.has_ready());
    // An event does not get a connection a turn before its own.
    event(&mut rig, socks[0][0], READABLE);
    assert_eq!(sent(&mut rig), [TURN, TURN]);
    assert!(rig.run_ready().is_empty());
    assert_eq!(sent(&mut rig), [2 * TURN, 2 * TURN]);
    rig.run_ready();
    rig.run_ready();
    assert_eq!(sent(&mut rig), [3 * TURN, 3 * TURN]);
    assert!(!rig.engine.has_ready());
}

#[test]
fn only_sockets_that_have_much_to_carry_are_told_to_hurry() {
    let mut rig = rig(ON);
    let [here, there] = connection(&mut rig);
    arrives(&mut rig, there, b"little");
    arrives(&mut rig, here, &vec![5; TURN]);
    arrives(&mut rig, here, &vec![5; TURN]);
    assert_eq!([here, there].map(|sock| rig.sock(sock).hurried), [0, 1]);
}

#[test]
fn a_connection_that_ends_in_the_line_leaves_it() {
    let mut rig = rig(ON);
    let [here, there] = connection(&mut rig);
    arrives(&mut rig, here, &vec![5; 3 * TURN]);
    assert!(rig.engine.has_ready());
    rig.sock(here).error = Some(libc::ECONNRESET);
    rig.sock(there).send_error = Some(libc::ECONNRESET);
    event(&mut rig, there, FAILED);
    event(&mut rig, here, FAILED);
    rig.run_ready();
    assert_eq!((rig.engine.spliced_connections(), rig.engine.waiting()), (0, 0));
}

#[test]
fn stale_tokens_do_nothing() {
    let mut rig = rig(ON);
    let [here, there] = connection(&mut rig);
    let tokens = [here, there].map(|sock| rig.sock(sock).token.unwrap());
    ends(&mut rig, here);
    ends(&mut rig, there);
    let [new, to] = connection(&mut rig);
    for token in tokens {
        rig.ready(token, FAILED);
    }
    arrives(&mut rig, new, b"fine");
    assert_eq!(rig.sock(to).sent, b"fine");
}

/// One connection whose calls are short or would block by chance; with `fails` one of the sockets
/// fails at some time.
fn by_chance(seed: u64, fails: bool) {
    let mut chance = Chance::new(seed);
    let mut rig = rig(ON);
    {
        let mut state = rig.engine.host_mut().state().borrow_mut();
        state.pipe_size = 200 + chance.below(5000);
        state.chance = Some(Chance::new(seed ^ 0x5eed));
    }
    let socks = connection(&mut rig);
    let total = [chance.below(40_000), chance.below(40_000)];
    let (mut given, mut failing) = ([0, 0], fails);
    for _ in 0..50_000 {
        let n = chance.below(2);
        let (sock, mut ready) = (socks[n], NOT_READY);
        match chance.below(if failing { 60 } else { 4 }) {
            0 if given[n] < total[n] => {
                let more = (total[n] - given[n]).min(1 + chance.below(3000));
                rig.sock(sock)
                    .incoming
                    .extend((given[n]..given[n] + more).map(|i| byte(n as u64, i)));
                given[n] += more;
                ready.readable = true;
            }
            0 => {
                rig.sock(sock).fin = true;
                (ready.readable, ready.read_closed) = (true, true);
            }
            1 => {
                rig.sock(sock).room = chance.below(4000);
                ready.writable = true;
            }
            2 => {
                rig.run_ready();
            }
            4 => {
                failing = false;
                rig.sock(sock).error = Some(libc::ECONNRESET);
                rig.sock(sock).send_error = Some(libc::EPIPE);
                ready = FAILED;
            }
            _ => {
                ready = std::mem::take(&mut rig.sock(sock).owes);
            }
        }
        if ready != NOT_READY {
            event(&mut rig, sock, ready);
        }
        if rig.engine.spliced_connections() == 0 {
            break;
        }
    }
    assert_eq!(rig.engine.spliced_connections(), 0, "seed {seed}: it does not end");
    assert_eq!((rig.engine.waiting(), pipes(&mut rig).1), (0, 0), "seed {seed}");
    for n in [0, 1] {
        let got = std::mem::take(&mut rig.sock(socks[1 - n]).sent);
        let is_mine = got.iter().enumerate().all(|(i, &b)| b == byte(n as u64, i));
        assert!(is_mine, "seed {seed}: other bytes than were sent");
        let reset = rig.sock(socks[n]).reset;
        assert!(rig.sock(socks[n]).closed);
        if !fails || failing {
            assert!(!reset && got.len() == total[n], "seed {seed}: {} of {total:?}", got.len());
        }
    }
}

#[test]
fn short_counts_and_pauses_at_any_point_lose_nothing() {
    (0..1000).for_each(|seed| by_chance(seed, false));
}

#[test]
fn errors_at_any_point_end_the_connection_and_leave_nothing() {
    (0..1000).for_each(|seed| by_chance(seed, true));
}

/// A datagram comes to a UDP listener.
fn datagram_to(rig: &mut Rig, listener: Token, payload: &[u8], from: Endpoint, to: Endpoint) {
    let state = rig.engine.host_mut().state();
    state.borrow_mut().listener.push_back((payload.to_vec(), from, to));
    assert!(rig.ready(listener, READABLE).is_empty(), "something went to the guest");
}

fn sent(rig: &mut Rig, index: usize) -> Vec<Vec<u8>> {
    std::mem::take(&mut rig.datagrams(index).sent).into_iter().map(|(bytes, _)| bytes).collect()
}

#[test]
fn a_datagram_from_loopback_opens_an_exchange_of_two_sockets() {
    for (splicing, listener, sides, target) in [
        (ON, UDP_OUTSIDE, [Side::Outside, Side::Inside], GUEST_V4),
        (LO_TO_LO, UDP_OUTSIDE, [Side::Outside, Side::Inside], LOOPBACK),
        (ON, UDP_INSIDE, [Side::Inside, Side::Outside], LOOPBACK),
    ] {
        let mut rig = rig(splicing);
        let (peer, local) = (at(LOOPBACK, 5000), at(LOOPBACK, HOST_PORT));
        datagram_to(&mut rig, listener, b"one", peer, local);
        let (here, there) = (0, 1);
        assert_eq!([here, there].map(|index| rig.datagrams(index).side), sides);
        let ours = rig.datagrams(here).local;
        let ends = [ours, Some(rig.datagrams(here).remote)];
        assert_eq!(ends, [Some(local), Some(peer)]);
        let any = at("0.0.0.0".parse().unwrap(), 5000);
        assert_eq!(rig.datagrams(there).local, Some(any), "keeps the port");
        assert_eq!(rig.datagrams(there).remote, at(target, GUEST_PORT));
        assert_eq!(sent(&mut rig, there), [b"one"]);
        // The next ones of the peer come to the exchange itself, but for stragglers.
        rig.remote_sends(here, &[b"two", b""]);
        datagram_to(&mut rig, listener, b"three", peer, local);
        assert_eq!(sent(&mut rig, there), [&b"two"[..], b"", b"three"]);
        rig.remote_sends(there, &[b"answer"]);
        assert_eq!(sent(&mut rig, here), [b"answer"]);
        assert_eq!((rig.engine.spliced_exchanges(), rig.engine.datagram_flows()), (1, 0));
        // Another peer has another exchange.
        datagram_to(&mut rig, listener, b"hello", at(LOOPBACK, 5001), local);
        assert_eq!(
            (rig.engine.spliced_exchanges(), sent(&mut rig, 3)),
            (2, vec![b"hello".to_vec()])
        );
    }
}

#[test]
fn exchanges_of_both_sides_with_the_same_ends_are_two() {
    let mut rig = rig(LO_TO_LO);
    let (peer, local) = (at(LOOPBACK, 5000), at(LOOPBACK, HOST_PORT));
    datagram_to(&mut rig, UDP_OUTSIDE, b"in", peer, local);
    datagram_to(&mut rig, UDP_INSIDE, b"out", peer, local);
    assert_eq!(rig.engine.spliced_exchanges(), 2);
    assert_eq!(
        (sent(&mut rig, 1), sent(&mut rig, 3)),
        (vec![b"in".to_vec()], vec![b"out".to_vec()])
    );
}

#[test]
fn runs_of_datagrams_are_passed_on_one_by_one_in_meaning() {
    let mut rig = rig(ON);
    datagram_to(&mut rig, UDP_OUTSIDE, b"x", at(LOOPBACK, 5000), at(LOOPBACK, HOST_PORT));
    sent(&mut rig, 1);
    let run: Vec<u8> = (0..250).collect();
    rig.datagrams(0).incoming.push_back((run.clone(), Some(100)));
    rig.datagrams(0).incoming.push_back((run.clone(), None));
    let token = rig.datagrams(0).token;
    rig.ready(token, READABLE);
    let got = sent(&mut rig, 1);
    assert_eq!(got, [&run[..100], &run[100..200], &run[200..], &run[..]]);
}

#[test]
fn an_exchange_ends_after_silence() {
    let mut rig = rig(ON);
    let (peer, local) = (at(LOOPBACK, 5000), at(LOOPBACK, HOST_PORT));
    datagram_to(&mut rig, UDP_OUTSIDE, b"x", peer, local);
    rig.after(Duration::from_secs(29));
    assert_eq!(rig.engine.spliced_exchanges(), 1);
    rig.remote_sends(1, &[b"answer"]);
    rig.remote_sends(0, &[b"again"]);
    rig.after(Duration::from_secs(119));
    assert_eq!(rig.engine.spliced_exchanges(), 1, "it has become a longer one");
    rig.after(Duration::from_secs(2));
    assert_eq!(rig.engine.spliced_exchanges(), 0);
    assert!(rig.datagrams(0).closed && rig.datagrams(1).closed);
}

#[test]
fn errors_of_an_exchange_are_taken_and_forgotten() {
    let mut rig = rig(ON);
    let (peer, local) = (at(LOOPBACK, 5000), at(LOOPBACK, HOST_PORT));
    datagram_to(&mut rig, UDP_OUTSIDE, b"x", peer, local);
    let icmp = Some(IcmpCause { offender: GUEST_V4, kind: 3, code: 3, info: 0 });
    let error = SocketError { errno: libc::ECONNREFUSED, icmp, quoted: Vec::new() };
    rig.datagrams(1).errors.push_back(error);
    let token = rig.datagrams(1).token;
    let ready = Readiness { error: true, ..NOT_READY };
    rig.ready(token, ready);
    assert!(rig.datagrams(1).errors.is_empty());
    rig.remote_sends(0, &[b"still there"]);
    assert_eq!(sent(&mut rig, 1), [&b"x"[..], b"still there"]);
    // One that says so for ever without a reason is closed.
    for _ in 0..100 {
        rig.ready(token, ready);
    }
    assert_eq!(rig.engine.spliced_exchanges(), 0);
}

#[test]
fn datagrams_that_are_not_local_take_the_link_or_are_dropped() {
    let peer = at(common::rig::PEER_V4, 5000);
    let local = at("198.51.100.1".parse().unwrap(), HOST_PORT);
    for (splicing, listener) in
        [(Splicing { only: true, ..LO_TO_LO }, UDP_OUTSIDE), (LO_TO_LO, UDP_INSIDE)]
    {
        let mut rig = rig(splicing);
        datagram_to(&mut rig, listener, b"x", peer, local);
        assert_eq!((rig.engine.spliced_exchanges(), rig.engine.datagram_flows()), (0, 0));
        assert_eq!(rig.drops(DropReason::Refused), 1);
    }
    let mut rig = rig(ON);
    let state = rig.engine.host_mut().state();
    state.borrow_mut().listener.push_back((b"x".to_vec(), peer, local));
    assert_eq!(rig.ready(UDP_OUTSIDE, READABLE).len(), 1, "a frame to the guest");
}

#[test]
fn datagrams_between_both_sides_do_not_wait_for_the_guest() {
    for (splicing, listener) in
        [(Splicing { only: true, ..LO_TO_LO }, UDP_OUTSIDE), (ON, UDP_INSIDE)]
    {
        let mut rig = rig(splicing);
        rig.link.sink.free = 0;
        datagram_to(&mut rig, listener, b"x", at(LOOPBACK, 5000), at(LOOPBACK, HOST_PORT));
        assert_eq!(sent(&mut rig, 1), [b"x"]);
    }
}

#[test]
fn ends_that_no_exchange_may_have_are_refused() {
    let mut rig = rig(ON);
    datagram_to(&mut rig, UDP_OUTSIDE, b"x", at(LOOPBACK, 0), at(LOOPBACK, HOST_PORT));
    assert_eq!((rig.engine.spliced_exchanges(), rig.drops(DropReason::BadEndpoint)), (0, 1));
    let state = rig.engine.host_mut().state();
    state.borrow_mut().open_errors.push_back(libc::EMFILE);
    datagram_to(&mut rig, UDP_OUTSIDE, b"x", at(LOOPBACK, 1), at(LOOPBACK, HOST_PORT));
    assert_eq!((rig.engine.spliced_exchanges(), rig.drops(DropReason::NoSocket)), (0, 1));
}
