//! From the peer to the guest (data-plane 3.6, 3.9).

use super::*;

#[test]
fn data_is_cut_into_segments_and_discarded_when_acknowledged() {
    let mut s = Script::established();
    s.peer(3000);
    s.expect(&[sent_data(0, 1460, 0), sent_data(1460, 1460, 0), sent_data(2920, 80, 0)]);
    s.expect(&[]);
    assert_eq!(s.offer(ack(0, 1460)).discard, 1460);
    assert_eq!(s.offer(ack(0, 3000)).discard, 1540);
    s.expect(&[]);
    assert_eq!(s.readable, 0);
}

#[test]
fn only_the_guests_window_is_filled_and_its_last_segment_too() {
    let mut s = Script::established();
    s.peer(200_000);
    let sent = s.turn();
    assert_eq!(sent.iter().map(|s| s.len).sum::<usize>(), GUEST_WINDOW);
    s.expect(&[]);
    s.offer(ack(0, 1460));
    s.expect(&[sent_data(GUEST_WINDOW as i64, 1460, 0)]);
}

#[test]
fn crumbs_wait_for_more_window() {
    let mut s = Script::established();
    s.peer(200_000);
    s.turn();
    s.offer(ack(0, 100));
    s.expect(&[]);
    s.offer(ack(0, 1460));
    s.expect(&[sent_data(GUEST_WINDOW as i64, 1460, 0)]);
}

#[test]
fn a_link_without_room_leaves_data_in_the_socket_and_no_timer_runs() {
    let mut s = Script::established();
    s.ring = 0;
    s.peer(3000);
    s.expect(&[]);
    assert_eq!(s.pass(Duration::from_secs(25)), []);
    s.ring = 1;
    s.expect(&[sent_data(0, 1460, 0)]);
    s.ring = 5;
    s.expect(&[sent_data(1460, 1460, 0), sent_data(2920, 80, 0)]);
}

#[test]
fn a_timeout_sends_the_first_segment_and_then_more_and_more() {
    let mut s = Script::established();
    s.peer(10 * 1460);
    assert_eq!(s.turn().len(), 10);
    assert_eq!(s.pass(ms(1500)), [(1000, sent_data(0, 1460, 0))]);
    s.offer(ack(0, 1460));
    s.expect(&[sent_data(1460, 1460, 0), sent_data(2920, 1460, 0)]);
    s.offer(ack(0, 2920));
    s.expect(&[sent_data(4380, 1460, 0), sent_data(5840, 1460, 0)]);
}

#[test]
fn a_guest_that_only_slept_gets_nothing_twice_but_one_segment() {
    let mut s = Script::established();
    s.peer(10 * 1460);
    s.turn();
    assert_eq!(s.pass(ms(1500)).len(), 1);
    s.offer(ack(0, 14_600));
    s.peer(10);
    s.expect(&[sent_data(14_600, 10, 0)]);
}

#[test]
fn timeouts_back_off_and_end_in_resets() {
    let mut s = Script::established();
    s.peer(10);
    s.turn();
    let sent = s.pass(Duration::from_secs(600));
    let times: Vec<u64> = sent.iter().map(|(at, _)| at / 1000).collect();
    assert_eq!(times, [1, 3, 7, 15, 31, 63, 127, 247]);
    assert_eq!(sent.last().unwrap().1, sent_rst(10, 0));
    assert!(s.conn.is_closed() && s.conn.wants_reset());
}

#[test]
fn a_timeout_without_room_in_the_link_does_not_count() {
    let mut s = Script::established();
    s.peer(10);
    s.turn();
    s.ring = 0;
    assert_eq!(s.pass(Duration::from_secs(3600)), []);
    assert!(s.conn.is_established());
    s.ring = 9;
    s.expect(&[sent_data(0, 10, 0)]);
}

#[test]
fn an_ack_restarts_the_timer() {
    let mut s = Script::established();
    s.peer(2920);
    s.turn();
    s.pass(ms(900));
    s.offer(ack(0, 1460));
    assert_eq!(s.pass(ms(900)), []);
    assert_eq!(s.pass(ms(200)), [(100, sent_data(1460, 1460, 0))]);
}

#[test]
fn the_third_duplicate_ack_sends_one_segment_and_partial_acks_the_next() {
    let mut s = Script::established();
    s.peer(10 * 1460);
    s.turn();
    s.offer(ack(0, 0));
    s.offer(ack(0, 0));
    s.expect(&[]);
    s.offer(ack(0, 0));
    s.expect(&[sent_data(0, 1460, 0)]);
    s.offer(ack(0, 0));
    s.expect(&[]);
    s.offer(ack(0, 2920));
    s.expect(&[sent_data(2920, 1460, 0)]);
    s.offer(ack(0, 14_600));
    s.expect(&[]);
    s.peer(10);
    s.expect(&[sent_data(14_600, 10, 0)]);
}

#[test]
fn new_data_goes_on_behind_a_fast_retransmission() {
    let mut s = Script::established();
    s.peer(4380);
    s.turn();
    s.peer(10);
    s.offer_all(&[ack(0, 0); 3]);
    s.expect(&[sent_data(0, 1460, 0), sent_data(4380, 10, 0)]);
}

#[test]
fn acks_with_data_or_another_window_are_no_duplicates() {
    let mut s = Script::established();
    s.peer(1460);
    s.turn();
    for i in 0..5 {
        s.offer(data(i, 1, 0));
        s.offer(Segment { window: UnscaledWindow(600 + i as u16), ..ack(i + 1, 0) });
    }
    s.expect(&[sent_ack(1460, 5)]);
}

#[test]
fn duplicates_after_a_timeout_do_not_start_a_fast_retransmission() {
    let mut s = Script::established();
    s.peer(10 * 1460);
    s.turn();
    assert_eq!(s.pass(ms(1100)).len(), 1);
    s.offer_all(&[ack(0, 0); 5]);
    s.expect(&[]);
}

#[test]
fn a_closed_window_is_probed_with_one_byte_and_backs_off() {
    let mut s = Script::established();
    s.peer(1000);
    s.turn();
    s.offer(Segment { window: UnscaledWindow(0), ..ack(0, 1000) });
    s.peer(1000);
    s.expect(&[]);
    let mut times = Vec::new();
    for _ in 0..10 {
        assert!(s.sleep(Duration::from_secs(1000)));
        let sent = s.turn();
        if sent != [sent_data(1000, 1, 0)] {
            assert_eq!(sent, [], "only probes");
            continue;
        }
        times.push(s.now.since(Instant::ZERO).as_millis() as u64 - 1_000_000);
        s.offer(Segment { window: UnscaledWindow(0), ..ack(0, 1000) });
        s.expect(&[]);
    }
    assert_eq!(times[..6], [200, 600, 1400, 3000, 6200, 12_600]);
    s.offer(ack(0, 1000));
    s.expect(&[sent_data(1000, 1000, 0)]);
}

#[test]
fn a_probe_that_is_taken_counts_as_data() {
    let mut s = Script::established();
    s.peer(1000);
    s.turn();
    s.offer(Segment { window: UnscaledWindow(0), ..ack(0, 1000) });
    s.peer(10);
    assert_eq!(s.pass(ms(200)), [(200, sent_data(1000, 1, 0))]);
    assert_eq!(s.offer(ack(0, 1001)).discard, 1);
    s.expect(&[sent_data(1001, 9, 0)]);
}

#[test]
fn a_probe_that_was_dropped_leaves_no_gap_when_the_window_opens() {
    let mut s = Script::established();
    s.peer(1000);
    s.turn();
    s.offer(Segment { window: UnscaledWindow(0), ..ack(0, 1000) });
    s.peer(1000);
    assert_eq!(s.pass(ms(200)), [(200, sent_data(1000, 1, 0))]);
    // Nobody has acknowledged it: the guest has read what it had, and says so.
    s.offer(ack(0, 1000));
    s.expect(&[sent_data(1000, 1000, 0)]);
}

#[test]
fn a_guest_that_answers_probes_is_never_given_up_and_a_silent_one_is() {
    let mut s = Script::established();
    s.peer(10);
    s.offer(Segment { window: UnscaledWindow(0), ..ack(0, 0) });
    for _ in 0..200 {
        assert!(s.sleep(Duration::from_secs(100)));
        if !s.turn().is_empty() {
            s.offer(Segment { window: UnscaledWindow(0), ..ack(0, 0) });
        }
    }
    assert!(s.conn.is_established());
    s.pass(Duration::from_secs(700));
    assert!(s.conn.wants_reset());
}

#[test]
fn a_closed_window_is_waited_for_as_long_as_an_acknowledgement() {
    let mut s = Script::established();
    s.peer(10);
    s.offer(Segment { window: UnscaledWindow(0), ..ack(0, 0) });
    let sent = s.pass(Duration::from_secs(600));
    assert_eq!(sent.last().map(|(at, sent)| (at / 1000, *sent)), Some((282, sent_rst(1, 0))));
}

#[test]
fn a_closed_window_with_nothing_to_send_costs_no_segment() {
    let mut s = Script::established();
    s.offer(Segment { window: UnscaledWindow(0), ..ack(0, 0) });
    assert_eq!(s.pass(Duration::from_secs(3600)), []);
}

#[test]
fn a_window_that_is_taken_back_is_believed_and_nothing_is_sent_twice_if_it_was_needless() {
    let mut s = Script::established();
    s.peer(2920);
    s.turn();
    s.offer(Segment { window: UnscaledWindow(0), ..ack(0, 1460) });
    s.expect(&[]);
    s.offer(ack(0, 2920));
    s.expect(&[]);
    s.peer(10);
    s.expect(&[sent_data(2920, 10, 0)]);
}

#[test]
fn what_a_guest_has_dropped_when_it_took_its_window_back_is_sent_again() {
    let mut s = Script::established();
    s.peer(2920);
    s.turn();
    s.offer(Segment { window: UnscaledWindow(0), ..ack(0, 1460) });
    s.expect(&[]);
    s.offer(ack(0, 1460));
    s.expect(&[sent_data(1460, 1460, 0)]);
}

#[test]
fn a_loss_behind_a_window_that_was_taken_back_is_repaired_to_the_end() {
    let mut s = Script::established();
    s.peer(3000);
    s.turn();
    s.offer(Segment { window: UnscaledWindow(0), ..ack(0, 0) });
    s.expect(&[]);
    // Room for a part of what was sent before.
    let small = Segment { window: UnscaledWindow(8), ..ack(0, 0) };
    s.offer(small);
    s.expect(&[sent_data(0, 1024, 0)]);
    s.offer_all(&[small; 3]);
    s.expect(&[sent_data(0, 1024, 0)]);
    // More than was sent again, for the guest has kept some, and less than was ever sent.
    s.offer(Segment { window: UnscaledWindow(8), ..ack(0, 2000) });
    s.expect(&[sent_data(2000, 1000, 0)]);
    s.offer(ack(0, 3000));
    s.peer(10);
    s.expect(&[sent_data(3000, 10, 0)]);
}

#[test]
fn an_old_window_does_not_replace_a_newer_one() {
    let mut s = Script::established();
    s.peer(100_000);
    s.offer(data(0, 10, 0));
    assert_eq!(s.turn().iter().map(|s| s.len).sum::<usize>(), GUEST_WINDOW);
    s.offer(ack(10, 1460));
    s.offer(Segment { window: UnscaledWindow(1), ..ack(10, 0) });
    s.expect(&[sent_data(GUEST_WINDOW as i64, 1460, 10)]);
}

#[test]
fn an_idle_guest_is_probed_and_may_answer_or_forget() {
    let mut s = Script::established();
    let sent = s.pass(Duration::from_secs(100));
    assert_eq!(sent, [30, 60, 90].map(|t| (t * 1000, sent_ack(-1, 0))));
    s.offer(ack(0, 0));
    assert_eq!(s.pass(Duration::from_secs(29)), []);
    s.offer(rst(0));
    assert!(s.conn.wants_reset());
}

#[test]
fn a_guest_that_never_answers_is_forgotten_in_the_end() {
    let mut s = Script::established();
    s.ring = 1000;
    let mut sent = Vec::new();
    for _ in 0..3 {
        sent.extend(s.pass(Duration::from_secs(2500)));
    }
    assert_eq!(sent.last().unwrap().1, sent_rst(0, 0));
    assert!(s.conn.is_closed());
}

#[test]
fn stale_and_early_wake_ups_do_nothing() {
    let mut s = Script::established();
    s.peer(10);
    s.turn();
    s.conn.on_deadline(s.now);
    s.conn.on_deadline(s.now + ms(999));
    s.expect(&[]);
    s.offer(ack(0, 10));
    s.conn.on_deadline(s.now + ms(5000));
    s.expect(&[]);
}
