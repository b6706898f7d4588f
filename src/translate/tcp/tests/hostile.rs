//! What a guest may try (data-plane 3.7 FIX; RFC 5961).

use super::*;

#[test]
fn a_reset_counts_at_exactly_the_next_number() {
    let mut s = Script::open();
    s.offer(rst(0));
    s.offer(rst(u32::MAX - 5));
    s.offer(rst(1 + STAGING));
    s.expect(&[]);
    s.offer(rst(2));
    s.expect(&[sent_ack(0, 1)]);
    assert!(s.conn.is_established());
    s.offer(rst(1));
    assert!(s.conn.is_closed());
}

#[test]
fn a_syn_is_challenged_and_the_answer_to_that_ends_the_connection() {
    let mut s = Script::open();
    s.offer(Segment { seq: IRS + 77_777, ..syn() });
    s.expect(&[sent_ack(0, 1)]);
    assert!(s.conn.is_established());
    s.offer(Segment { ack: None, ..rst(1) });
    assert!(s.conn.is_closed());
}

#[test]
fn an_ack_of_what_was_never_sent_is_ignored_with_its_data() {
    let mut s = Script::open();
    s.peer(100);
    s.turn();
    let verdict = s.offer(data(1, 50, 101));
    assert_eq!((verdict.fresh, verdict.discard), (0..0, 0));
    s.expect(&[sent_ack(100, 1)]);
    assert_eq!(s.offer(ack(1, 100)).discard, 100);
}

#[test]
fn a_very_old_ack_is_challenged_and_a_merely_old_one_is_not() {
    let mut s = Script::open();
    s.peer(30_000);
    s.turn();
    s.offer(ack(1, 30_000));
    assert_eq!(s.offer(data(1, 10, 20_000)).fresh, 0..10);
    s.expect(&[sent_ack(30_000, 11)]);
    assert_eq!(s.offer(data(11, 10, 0u32.wrapping_sub(1 << 30))).fresh, 0..0);
    s.expect(&[sent_ack(30_000, 11)]);
}

#[test]
fn challenges_are_rate_limited() {
    let mut s = Script::open();
    let mut answers = 0;
    for _ in 0..100 {
        s.offer(syn());
        answers += s.turn().len();
    }
    assert_eq!(answers, 10);
    s.now = s.now + ms(1000);
    s.offer(syn());
    s.expect(&[sent_ack(0, 1)]);
}

#[test]
fn a_segment_without_ack_is_dropped() {
    let mut s = Script::open();
    let verdict = s.offer(Segment { ack: None, ..data(1, 10, 0) });
    assert_eq!(verdict, Verdict::default());
    s.expect(&[]);
}

#[test]
fn data_beyond_the_window_is_answered_and_not_taken() {
    let mut s = Script::open();
    assert_eq!(s.offer(data(STAGING + 5000, 100, 0)), Verdict::default());
    s.expect(&[sent_ack(0, 1)]);
}

#[test]
fn more_holes_than_places_are_not_held() {
    let mut s = Script::open();
    for i in 0..4 {
        assert!(s.offer(data(1001 + i * 100, 50, 0)).held.is_some());
    }
    assert_eq!(s.offer(data(9001, 50, 0)).held, None);
}

#[test]
fn settling_more_than_was_offered_does_no_harm() {
    let mut s = Script::open();
    s.conn.on_forwarded(usize::MAX, s.now);
    s.conn.on_staged(usize::MAX, s.now);
    s.expect(&[]);
    s.offer(data(1, 10, 0));
    s.expect(&[sent_ack(0, 11)]);
}

#[test]
fn a_stale_plan_does_no_harm() {
    let mut s = Script::open();
    s.peer(1000);
    let plan = s.conn.peek_plan().unwrap();
    s.turn();
    s.offer(ack(1, 1000));
    s.conn.on_peeked(&plan, 1000, s.now);
    s.expect(&[]);
    s.peer(10);
    s.expect(&[sent_data(1000, 10, 1)]);
}
