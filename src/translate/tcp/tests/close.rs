//! Ends in every order (data-plane 3.11).

use super::*;
use crate::token::Interest;

#[test]
fn the_guest_closes_first() {
    let mut s = Script::open();
    s.offer(fin(1, 0));
    s.expect(&[sent_ack(0, 2)]);
    assert!(s.shut && !s.conn.is_closed());
    s.peer(100);
    s.expect(&[sent_data(0, 100, 2)]);
    s.offer(ack(2, 100));
    s.eof = true;
    s.turn();
    s.offer(ack(2, 101));
    s.expect(&[]);
    assert!(s.conn.is_closed() && !s.conn.wants_reset());
}

#[test]
fn the_peer_closes_first_and_the_guest_goes_on() {
    let mut s = Script::open();
    s.peer(100);
    s.eof = true;
    s.expect(&[sent_data(0, 100, 1), sent_fin(100, 1)]);
    assert_eq!(s.conn.interest(), Interest { edge: true, ..Interest::default() });
    assert_eq!(s.offer(ack(1, 101)).discard, 100);
    assert!(s.conn.peek_plan().is_none());
    s.offer(data(1, 500, 101));
    s.expect(&[sent_ack(101, 501)]);
    s.offer(fin(501, 101));
    s.expect(&[sent_ack(101, 502)]);
    assert!(s.shut && s.conn.is_closed() && !s.conn.wants_reset());
}

#[test]
fn both_close_at_once() {
    let mut s = Script::open();
    s.eof = true;
    s.expect(&[sent_fin(0, 1)]);
    s.offer(fin(1, 0));
    s.expect(&[sent_ack(1, 2)]);
    assert!(!s.conn.is_closed());
    s.offer(ack(2, 1));
    s.expect(&[]);
    assert!(s.conn.is_closed() && !s.conn.wants_reset());
}

#[test]
fn the_guests_fin_may_acknowledge_ours() {
    let mut s = Script::open();
    s.eof = true;
    s.expect(&[sent_fin(0, 1)]);
    s.offer(fin(1, 1));
    s.expect(&[sent_ack(1, 2)]);
    assert!(s.conn.is_closed());
}

#[test]
fn a_stream_that_ends_before_what_was_sent_of_it_resets_both() {
    let mut s = Script::open();
    s.peer(2000);
    s.turn();
    assert!(s.sleep(ms(1100)), "all is to be sent again");
    // The socket has lost it: a FIN here would cut the stream and look well.
    s.conn.on_end_of_stream();
    s.expect(&[sent_rst(2000, 1)]);
    assert!(s.conn.wants_reset());
}

#[test]
fn a_fin_with_data_counts_behind_it() {
    let mut s = Script::open();
    s.offer(Segment { payload_len: 300, ..fin(1, 0) });
    s.expect(&[sent_ack(0, 302)]);
    assert_eq!(s.forwarded, 301);
    assert!(s.shut);
}

#[test]
fn the_socket_is_shut_down_only_behind_the_last_staged_byte() {
    let mut s = Script::open();
    s.send_room = 100;
    s.offer(Segment { payload_len: 300, ..fin(1, 0) });
    s.expect(&[sent_ack(0, 302)]);
    assert!(!s.shut && s.conn.interest().writable);
    s.writable(1000);
    s.expect(&[]);
    assert!(s.shut && !s.conn.interest().writable);
    assert_eq!(s.forwarded, 301);
}

#[test]
fn a_connection_does_not_close_while_bytes_are_staged() {
    let mut s = Script::open();
    s.send_room = 0;
    s.eof = true;
    s.expect(&[sent_fin(0, 1)]);
    s.offer(Segment { payload_len: 300, ..fin(1, 1) });
    s.expect(&[sent_ack(1, 302)]);
    assert!(!s.conn.is_closed());
    s.writable(1000);
    s.expect(&[]);
    assert!(s.conn.is_closed() && !s.conn.wants_reset());
}

#[test]
fn a_guest_that_has_forgotten_the_connection_does_not_take_back_what_it_sent() {
    let mut s = Script::open();
    s.send_room = 0;
    s.eof = true;
    s.turn();
    s.offer(Segment { payload_len: 300, ..fin(1, 1) });
    s.expect(&[sent_ack(1, 302)]);
    s.offer(rst(302));
    assert_eq!(s.pass(Duration::from_secs(100)), [], "nobody is there to ask");
    s.writable(1000);
    s.expect(&[]);
    assert_eq!(s.forwarded, 301);
    assert!(s.conn.is_closed() && !s.conn.wants_reset());
}

#[test]
fn a_guest_that_is_done_may_use_the_ports_again_while_bytes_are_left_for_the_peer() {
    for peer_fails in [false, true] {
        let mut s = Script::open();
        s.send_room = 0;
        s.eof = true;
        s.turn();
        // The last segments and the SYN in one batch: their ACK must not go out any more.
        let verdicts = s.offer_all(&[
            Segment { payload_len: 300, ..fin(1, 1) },
            Segment { seq: IRS + 77_777, ..syn() },
        ]);
        assert_eq!((verdicts[0].fresh.len(), verdicts[1].makes_way), (300, true));
        s.expect(&[]);
        assert!(!s.conn.is_closed());
        assert_eq!(s.pass(Duration::from_secs(3600)), []);
        if peer_fails {
            s.conn.on_socket_error();
        } else {
            s.writable(1000);
        }
        s.expect(&[]);
        assert_eq!((s.conn.is_closed(), s.conn.wants_reset()), (true, peer_fails));
    }
}

#[test]
fn a_guest_that_is_done_is_not_reset() {
    let mut s = Script::open();
    s.send_room = 0;
    s.eof = true;
    s.turn();
    s.offer(Segment { payload_len: 300, ..fin(1, 1) });
    s.turn();
    s.conn.on_socket_error();
    s.expect(&[]);
    assert!(s.conn.is_closed() && s.conn.wants_reset());
}

#[test]
fn a_reset_in_place_of_the_last_ack_is_an_orderly_end() {
    let mut s = Script::open();
    s.offer(fin(1, 0));
    s.expect(&[sent_ack(0, 2)]);
    s.peer(10);
    s.eof = true;
    s.expect(&[sent_data(0, 10, 2), sent_fin(10, 2)]);
    s.offer(ack(2, 10));
    s.offer(rst(2));
    s.expect(&[]);
    assert!(s.conn.is_closed() && !s.conn.wants_reset());
}

#[test]
fn a_reset_while_data_is_in_flight_is_not() {
    let mut s = Script::open();
    s.offer(fin(1, 0));
    s.peer(10);
    s.eof = true;
    s.turn();
    s.offer(rst(2));
    assert!(s.conn.is_closed() && s.conn.wants_reset());
}

#[test]
fn a_fin_that_is_not_settled_is_not_acknowledged() {
    let mut s = Script::open();
    let verdict = s.conn.offer(&Segment { payload_len: 300, ..fin(1, 0) }, s.hold, s.now);
    assert_eq!(verdict.fresh, 0..300);
    assert!(!s.conn.wants_shutdown());
    s.expect(&[sent_ack(0, 1)]);
    s.conn.on_forwarded(300, s.now);
    s.expect(&[sent_ack(0, 302)]);
    assert!(s.shut);
}

#[test]
fn a_repeated_fin_is_acknowledged_and_counts_once() {
    let mut s = Script::open();
    s.offer(fin(1, 0));
    s.expect(&[sent_ack(0, 2)]);
    s.offer(fin(1, 0));
    s.expect(&[sent_ack(0, 2)]);
    assert!(!s.conn.wants_shutdown());
}

#[test]
fn data_behind_a_fin_is_ignored_and_acknowledged() {
    let mut s = Script::open();
    s.offer(fin(1, 0));
    s.turn();
    assert_eq!(s.offer(data(2, 100, 0)).fresh, 0..0);
    s.expect(&[sent_ack(0, 2)]);
}

#[test]
fn a_fin_behind_a_hole_counts_when_the_hole_is_filled() {
    let mut s = Script::open();
    s.offer(fin(1001, 0));
    s.turn();
    assert!(!s.shut);
    s.offer(data(1, 1000, 0));
    s.expect(&[sent_ack(0, 1002)]);
    assert!(s.shut);
}

#[test]
fn a_lost_fin_is_sent_again() {
    let mut s = Script::open();
    s.peer(100);
    s.eof = true;
    s.expect(&[sent_data(0, 100, 1), sent_fin(100, 1)]);
    s.offer(ack(1, 100));
    assert_eq!(s.pass(ms(1500)), [(1000, sent_fin(100, 1))]);
    assert_eq!(s.offer(ack(1, 101)).discard, 0);
    assert_eq!(s.pass(Duration::from_secs(20)), []);
}

#[test]
fn lost_data_and_fin_are_both_sent_again() {
    let mut s = Script::open();
    s.peer(2000);
    s.eof = true;
    assert_eq!(s.turn().len(), 3);
    assert_eq!(s.pass(ms(1100)), [(1000, sent_data(0, 1460, 1))]);
    s.offer(ack(1, 1460));
    s.expect(&[sent_data(1460, 540, 1), sent_fin(2000, 1)]);
    assert_eq!(s.offer(ack(1, 2001)).discard, 540);
    s.expect(&[]);
}

#[test]
fn a_lost_fin_is_sent_again_on_duplicate_acks() {
    let mut s = Script::open();
    s.eof = true;
    s.expect(&[sent_fin(0, 1)]);
    s.offer_all(&[ack(1, 0); 3]);
    s.expect(&[sent_fin(0, 1)]);
    s.offer(ack(1, 1));
    s.expect(&[]);
}

#[test]
fn the_fin_waits_for_window_and_asks_for_it() {
    let mut s = Script::open();
    s.peer(1000);
    s.turn();
    s.offer(Segment { window: UnscaledWindow(0), ..ack(1, 1000) });
    s.eof = true;
    s.expect(&[]);
    assert_eq!(s.pass(ms(300)), [(200, sent_fin(1000, 1))]);
    s.offer(Segment { window: UnscaledWindow(0), ..ack(1, 1000) });
    s.expect(&[]);
    s.offer(ack(1, 1000));
    s.expect(&[sent_fin(1000, 1)]);
    s.offer(ack(1, 1001));
    s.expect(&[]);
}

#[test]
fn a_reset_of_the_guests_resets_the_peer_and_nothing_is_said_to_it() {
    let mut s = Script::open();
    s.peer(100);
    s.offer(rst(1));
    s.expect(&[]);
    assert!(s.conn.is_closed() && s.conn.wants_reset());
    assert_eq!(s.offer(data(1, 10, 0)), Verdict::default());
    s.expect(&[]);
}

#[test]
fn a_socket_error_resets_both_once() {
    let mut s = Script::open();
    s.peer(100);
    s.turn();
    s.conn.on_socket_error();
    s.conn.on_socket_error();
    s.expect(&[sent_rst(100, 1)]);
    assert!(s.conn.is_closed() && s.conn.wants_reset());
    assert_eq!(s.conn.deadline(), None);
    s.conn.on_deadline(s.now + Duration::from_secs(9999));
    s.expect(&[]);
}
