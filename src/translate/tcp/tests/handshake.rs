//! How connections begin (data-plane 3.3, 3.5, 3.9, 3.13).

use super::*;
use crate::token::Interest;

#[test]
fn the_guest_is_answered_once_the_peer_has_answered() {
    let mut s = Script::connecting(syn());
    assert!(s.conn.interest().writable && !s.conn.interest().readable);
    s.expect(&[]);
    s.conn.on_connected(s.now);
    s.expect(&[to_guest("SA", -1, 0, 0)]);
    let syn_ack = s.last.unwrap();
    assert_eq!(syn_ack.mss, Some(Mss(1460)));
    assert_eq!(syn_ack.window_scale, Some(WindowScale::new(8)));
    assert!(!s.conn.is_established());
    s.offer(ack(0, 0));
    s.expect(&[]);
    assert!(s.conn.is_established());
    assert!(s.conn.interest().readable && s.conn.interest().edge);
}

#[test]
fn refusal_surfaces_as_a_reset_at_our_isn() {
    let mut s = Script::connecting(syn());
    s.conn.on_connect_failed();
    s.expect(&[sent_rst(-1, 0)]);
    assert!(s.conn.is_closed());
    assert_eq!(s.conn.interest(), Interest::default());
    assert_eq!(s.conn.deadline(), None);
}

#[test]
fn a_repeated_syn_is_ignored_while_the_socket_connects() {
    let mut s = Script::connecting(syn());
    assert_eq!(s.offer(syn()), Verdict::default());
    s.expect(&[]);
    assert!(!s.conn.is_closed());
}

#[test]
fn a_socket_that_never_connects_is_given_up_after_three_minutes() {
    let mut s = Script::connecting(syn());
    assert_eq!(s.pass(Duration::from_secs(1000)), [(180_000, sent_rst(-1, 0))]);
    assert!(s.conn.is_closed() && s.conn.wants_reset());
    // One that connects at last has all the time that a handshake has.
    let mut s = Script::connecting(syn());
    assert_eq!(s.pass(Duration::from_secs(179)), []);
    s.conn.on_connected(s.now);
    s.expect(&[to_guest("SA", -1, 0, 0)]);
    assert_eq!(s.pass(Duration::from_secs(60)).len(), 8);
}

#[test]
fn a_repeated_syn_gets_the_same_syn_ack_again() {
    let mut s = Script::connecting(syn());
    s.conn.on_connected(s.now);
    s.expect(&[to_guest("SA", -1, 0, 0)]);
    s.offer(syn());
    s.expect(&[to_guest("SA", -1, 0, 0)]);
    s.offer(ack(0, 0));
    assert!(s.conn.is_established());
}

#[test]
fn another_syn_on_the_same_ports_makes_way_for_a_new_connection() {
    for connected in [false, true] {
        let mut s = Script::connecting(syn());
        if connected {
            s.conn.on_connected(s.now);
            s.expect(&[to_guest("SA", -1, 0, 0)]);
        }
        let other = Segment { seq: IRS + 5000, ..syn() };
        assert!(!s.offer(Segment { ack: Some(ISS + 1), ..other }).makes_way, "opens nothing");
        s.turn();
        assert!(!s.conn.is_closed());
        assert!(s.offer(other).makes_way);
        s.expect(&[]);
        assert!(s.conn.is_closed() && s.conn.wants_reset());
    }
}

#[test]
fn payload_of_a_syn_is_left_to_be_sent_again() {
    let mut s = Script::connecting(Segment { payload_len: 100, ..syn() });
    s.conn.on_connected(s.now);
    s.expect(&[to_guest("SA", -1, 0, 0)]);
    assert_eq!(s.offer(data(0, 100, 0)).fresh, 0..100);
    s.expect(&[sent_ack(0, 100)]);
}

#[test]
fn data_and_fin_may_come_with_the_last_ack_of_the_handshake() {
    let mut s = Script::connecting(syn());
    s.conn.on_connected(s.now);
    s.expect(&[to_guest("SA", -1, 0, 0)]);
    s.offer(Segment { payload_len: 10, ..fin(0, 0) });
    s.expect(&[sent_ack(0, 11)]);
    assert!(s.shut);
    assert_eq!(s.forwarded, 10);
}

#[test]
fn a_wrong_ack_in_the_handshake_is_rejected_and_the_connection_goes_on() {
    let mut s = Script::connecting(syn());
    assert!(s.offer(ack(0, 0)).reject, "before the SYN-ACK");
    s.conn.on_connected(s.now);
    s.expect(&[to_guest("SA", -1, 0, 0)]);
    assert!(s.offer(ack(0, 5)).reject);
    assert_eq!(s.offer(Segment { ack: None, ..ack(0, 0) }), Verdict::default());
    s.expect(&[]);
    assert!(!s.offer(ack(0, 0)).reject);
    assert!(s.conn.is_established());
}

#[test]
fn a_reset_in_the_handshake_resets_the_peer() {
    for answered in [false, true] {
        let mut s = Script::connecting(syn());
        if answered {
            s.conn.on_connected(s.now);
            s.expect(&[to_guest("SA", -1, 0, 0)]);
        }
        s.offer(rst(3));
        assert!(!s.conn.is_closed(), "only at the next number");
        s.offer(rst(0));
        assert!(s.conn.is_closed() && s.conn.wants_reset());
        s.expect(&[]);
    }
}

#[test]
fn the_peers_connection_is_offered_to_the_guest() {
    let mut s = Script::peer_opens();
    s.expect(&[Sent { flags: "S", seq: u32::MAX, ack: None, len: 0 }]);
    let out = s.last.unwrap();
    assert_eq!((out.mss, out.window_scale), (Some(Mss(1460)), Some(WindowScale::new(8))));
    s.peer(2000);
    s.expect(&[]);
    s.offer(syn_ack());
    s.expect(&[sent_data(0, 1460, 0), sent_data(1460, 540, 0)]);
}

#[test]
fn the_handshake_ends_with_an_ack_if_there_is_no_data() {
    let mut s = Script::peer_opens();
    s.turn();
    s.offer(syn_ack());
    s.expect(&[sent_ack(0, 0)]);
    s.offer(data(0, 10, 0));
    s.expect(&[sent_ack(0, 10)]);
}

#[test]
fn the_guest_refuses_a_connection() {
    let mut s = Script::peer_opens();
    s.turn();
    let refusal = Segment { ack: Some(ISS + 1), seq: SeqNum(0), ..rst(0) };
    s.offer(Segment { ack: Some(ISS), ..refusal });
    assert!(!s.conn.is_closed(), "a reset must acknowledge our SYN");
    s.offer(refusal);
    assert!(s.conn.is_closed() && s.conn.wants_reset());
    s.expect(&[]);
}

#[test]
fn a_half_open_guest_is_told_and_the_syn_goes_on() {
    let mut s = Script::peer_opens();
    s.turn();
    assert!(s.offer(ack(77, 77)).reject);
    // Once the guest has taken the reset, it will take a SYN.
    s.expect(&[Sent { flags: "S", seq: u32::MAX, ack: None, len: 0 }]);
    assert_eq!(s.offer(ack(0, 0)), Verdict::default(), "no SYN in it");
    s.expect(&[]);
    for _ in 0..100 {
        assert!(s.offer(ack(77, 77)).reject);
    }
    assert_eq!(s.turn().len(), 1);
    assert!(!s.offer(Segment { ack: Some(ISS), ..rst(0) }).reject);
    s.expect(&[]);
    s.offer(syn_ack());
    assert!(s.conn.is_established());
}

#[test]
fn syn_ack_with_fin_resets_both() {
    let mut s = Script::peer_opens();
    s.turn();
    let flags = Flags { syn: true, fin: true, ..Flags::default() };
    s.offer(Segment { flags, ..syn_ack() });
    s.expect(&[Sent { flags: "R", seq: 0, ack: None, len: 0 }]);
    assert!(s.conn.wants_reset());
}

#[test]
fn both_open_at_once() {
    let mut s = Script::peer_opens();
    s.turn();
    s.offer(syn());
    s.expect(&[to_guest("SA", -1, 0, 0)]);
    s.offer(syn_ack());
    s.expect(&[]);
    assert!(s.conn.is_established());
    s.offer(data(0, 10, 0));
    s.expect(&[sent_ack(0, 10)]);
}

#[test]
fn an_unanswered_syn_ack_is_repeated_then_both_are_reset() {
    let mut s = Script::connecting(syn());
    s.conn.on_connected(s.now);
    s.turn();
    let sent = s.pass(Duration::from_secs(60));
    let times: Vec<u64> = sent.iter().map(|(at, _)| at / 1000).collect();
    assert_eq!(times, [1, 2, 3, 4, 5, 7, 11, 19]);
    assert_eq!(sent.last().unwrap().1, sent_rst(0, 0));
    assert!(sent[..7].iter().all(|(_, s)| *s == to_guest("SA", -1, 0, 0)));
    assert!(s.conn.wants_reset());
}

#[test]
fn a_link_without_room_does_not_keep_the_peer_for_ever() {
    let mut s = Script::peer_opens();
    s.ring = 0;
    assert_eq!(s.pass(Duration::from_secs(60)), []);
    assert!(s.conn.is_closed() && s.conn.wants_reset());
}

#[test]
fn the_first_timeout_is_longer_after_a_repeated_syn() {
    let mut s = Script::connecting(syn());
    s.conn.on_connected(s.now);
    s.turn();
    assert_eq!(s.pass(ms(1500)).len(), 1);
    s.offer(ack(0, 0));
    s.peer(100);
    s.expect(&[sent_data(0, 100, 0)]);
    assert_eq!(s.pass(ms(3500)), [(3000, sent_data(0, 100, 0))]);
}

#[test]
fn a_guest_without_options_gets_none_and_small_segments() {
    let mut s = Script::connecting(Segment { mss: None, window_scale: None, ..syn() });
    s.conn.on_connected(s.now);
    s.turn();
    assert_eq!(s.last.unwrap().window_scale, None);
    s.offer(Segment { window: UnscaledWindow(1000), ..ack(0, 0) });
    s.peer(5000);
    s.expect(&[sent_data(0, 536, 0), sent_data(536, 464, 0)]);
    assert_eq!(s.last.unwrap().window, UnscaledWindow(65_535), "not scaled");
}

#[test]
fn a_syn_ack_without_scale_turns_ours_off() {
    let mut s = Script::peer_opens();
    s.turn();
    s.offer(Segment { window_scale: None, ..syn_ack() });
    s.expect(&[sent_ack(0, 0)]);
    assert_eq!(s.last.unwrap().window, UnscaledWindow(65_535));
}

#[test]
fn the_mss_is_bounded_on_both_ends() {
    let plan_mss = |announced| {
        let mut s = Script::connecting(Segment { mss: announced, ..syn() });
        s.conn.on_connected(s.now);
        s.turn();
        s.offer(ack(0, 0));
        s.conn.peek_plan().unwrap().mss.0
    };
    let got = [None, Some(0), Some(1), Some(1460), Some(65_535)].map(|m| plan_mss(m.map(Mss)));
    assert_eq!(got, [536, 536, 48, 1460, 65_492]);
}

#[test]
fn the_handshakes_window_is_that_of_the_peer_if_it_is_known() {
    let mut s = Script::connecting(syn());
    let room = Room {
        send_room: 0,
        staging_room: STAGING,
        peer_window: Some(29_200),
        rtt: Duration::ZERO,
    };
    s.conn.on_room(&room, s.now);
    s.conn.on_connected(s.now);
    s.turn();
    assert_eq!(s.last.unwrap().window, UnscaledWindow(65_535));
}
