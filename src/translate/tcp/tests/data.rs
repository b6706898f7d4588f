//! From the guest to the peer (data-plane 3.7, 3.8).

use super::*;

#[test]
fn a_batch_is_acknowledged_once() {
    let mut s = Script::established();
    s.offer_all(&[data(0, 1460, 0), data(1460, 1460, 0), data(2920, 100, 0)]);
    s.expect(&[sent_ack(0, 3020)]);
    s.expect(&[]);
    assert_eq!(s.forwarded, 3020);
}

#[test]
fn data_to_the_guest_carries_the_acknowledgement() {
    let mut s = Script::established();
    s.offer(data(0, 100, 0));
    s.peer(50);
    s.expect(&[sent_data(0, 50, 100)]);
}

#[test]
fn a_whole_segmentation_frame_is_one_segment() {
    let mut s = Script::open();
    assert_eq!(s.offer(data(1, 65_000, 0)).fresh, 0..65_000);
    s.expect(&[sent_ack(0, 65_001)]);
}

#[test]
fn nothing_is_acknowledged_before_it_is_settled() {
    let mut s = Script::open();
    let verdict = s.conn.offer(&data(1, 1000, 0), s.hold, s.now);
    assert_eq!(verdict.fresh, 0..1000);
    s.expect(&[]);
    s.conn.on_forwarded(400, s.now);
    s.expect(&[sent_ack(0, 401)]);
    s.conn.on_staged(600, s.now);
    s.expect(&[sent_ack(0, 1001)]);
}

#[test]
fn what_the_socket_does_not_take_is_staged_and_acknowledged() {
    let mut s = Script::open();
    s.send_room = 500;
    s.offer(data(1, 2000, 0));
    s.expect(&[sent_ack(0, 2001)]);
    assert_eq!(s.staged, 1500);
    assert!(s.conn.interest().writable);
    s.writable(usize::MAX);
    assert!(!s.conn.interest().writable);
    assert_eq!(s.forwarded, 2001);
}

#[test]
fn everything_in_the_window_is_taken_and_what_lies_behind_it_is_cut() {
    let mut s = Script::open();
    s.send_room = 0;
    assert!(s.window() > STAGING - 256 && s.window() <= STAGING);
    let at = s.fill();
    // What is left is less than a window field can show.
    let hidden = s.offer(data(at, 1000, 0)).fresh.len();
    assert!(hidden < 256);
    assert_eq!(s.offer(data(at + hidden as u32, 1000, 0)).fresh, 0..0);
    s.expect(&[sent_ack(0, at + hidden as u32)]);
    assert!(s.staged <= STAGING as usize);
}

#[test]
fn a_closed_window_opens_as_soon_as_there_is_room() {
    let mut s = Script::open();
    s.send_room = 0;
    let at = s.fill();
    s.writable(1000);
    s.expect(&[]);
    s.writable(1000);
    s.expect(&[sent_ack(0, at)]);
    assert!(s.window() >= 1460);
}

#[test]
fn a_little_room_opens_a_closed_window_if_no_event_will_tell_of_more() {
    // Large segments, a full socket, nothing staged, and hardly any staging left for anyone.
    let limits = Limits { mss: Mss(65_480), staging: 4096, ..limits() };
    let now = Instant::ZERO + Duration::from_secs(1000);
    let mut s = Script::new(Conn::guest_opens(&syn(), ISS, &limits, now));
    s.conn.on_connected(s.now);
    s.turn();
    s.offer(data(0, 4096, 0));
    assert_eq!((s.forwarded, s.staged), (4096, 0));
    let room = Room { send_room: 0, staging_room: 4096, peer_window: Some(1 << 20), rtt: ms(100) };
    s.conn.on_room(&room, s.now);
    s.expect(&[sent_ack(0, 4096)]);
    assert_eq!(s.window(), 4096);
    // What then is staged will be drained, which is an event: crumbs of that are not told.
    s.send_room = 0;
    s.offer(data(4096, 4096, 0));
    s.expect(&[sent_ack(0, 8192)]);
    s.writable(100);
    s.expect(&[]);
    s.writable(4000);
    s.expect(&[sent_ack(0, 8192)]);
    assert_eq!(s.window(), 4096);
}

#[test]
fn a_far_socket_that_moves_is_tried_again_before_it_says_so() {
    for (rtt, tries) in [(ms(10), 0), (ms(80), 5)] {
        let mut s = Script::open();
        let room = Room { send_room: 0, staging_room: STAGING, peer_window: None, rtt };
        s.conn.on_room(&room, s.now);
        s.send_room = 1000;
        s.offer(data(1, 20_000, 0));
        s.turn();
        let mut tried = 0;
        while s.sleep(ms(100)) && tried < 100 {
            tried += 1;
            // It has taken some each time, but for the last.
            s.writable(if tried < 5 { 1000 } else { 0 });
        }
        assert_eq!(tried, tries);
        s.writable(usize::MAX);
        assert!(!s.sleep(ms(1000)), "nothing is left to try with");
    }
}

#[test]
fn an_open_window_is_updated_in_large_steps() {
    let mut s = Script::open();
    s.send_room = 0;
    for at in (1..90_000).step_by(10_000) {
        s.offer(data(at, 10_000, 0));
    }
    s.expect(&[sent_ack(0, 90_001)]);
    let before = s.window();
    s.writable(9000);
    s.expect(&[]);
    s.writable(2000);
    s.expect(&[sent_ack(0, 90_001)]);
    assert!(s.window() >= before + 10_000);
}

#[test]
fn an_update_without_need_is_not_sent() {
    let mut s = Script::open();
    s.send_room = 0;
    s.offer(data(1, 20_000, 0));
    s.expect(&[sent_ack(0, 20_001)]);
    s.writable(usize::MAX);
    s.expect(&[]);
}

#[test]
fn room_in_the_socket_widens_the_window_and_the_peers_narrows_it() {
    let mut s = Script::open();
    let mut room =
        Room { send_room: 2 << 20, staging_room: STAGING, peer_window: None, rtt: Duration::ZERO };
    s.conn.on_room(&room, s.now);
    s.expect(&[sent_ack(0, 1)]);
    assert!(s.window() > 2 << 20);
    s.offer(data(1, 1000, 0));
    s.turn();
    let edge = 1001 + s.window();
    room.peer_window = Some(100_000);
    s.conn.on_room(&room, s.now);
    s.offer(data(1001, 1000, 0));
    s.turn();
    let unit = |edge: u32| edge.next_multiple_of(256);
    assert_eq!(unit(2001 + s.window()), unit(edge), "never retracted");
    room = Room { send_room: 0, staging_room: 0, peer_window: Some(0), ..room };
    s.conn.on_room(&room, s.now);
    s.offer(data(2001, 1000, 0));
    s.turn();
    assert!(3001 + s.window() + 255 >= edge);
}

#[test]
fn the_window_never_shows_more_than_16_mib() {
    let mut s = Script::open();
    let room = Room {
        send_room: u32::MAX,
        staging_room: u32::MAX,
        peer_window: Some(u32::MAX),
        rtt: Duration::ZERO,
    };
    s.conn.on_room(&room, s.now);
    s.turn();
    assert_eq!(s.last.unwrap().window, UnscaledWindow(u16::MAX));
}

#[test]
fn old_data_is_acknowledged_and_the_new_part_used() {
    let mut s = Script::open();
    s.offer(data(1, 1000, 0));
    s.turn();
    assert_eq!(s.offer(data(1, 1000, 0)).fresh, 0..0);
    s.expect(&[sent_ack(0, 1001)]);
    assert_eq!(s.offer(data(501, 1000, 0)).fresh, 500..1000);
    s.expect(&[sent_ack(0, 1501)]);
}

#[test]
fn data_ahead_is_held_and_joined_when_the_hole_is_filled() {
    let mut s = Script::open();
    let verdict = s.offer(data(1461, 1000, 0));
    assert_eq!(verdict.held, Some(Held { range: 0..1000, offset: 1460 }));
    s.expect(&[sent_ack(0, 1)]);
    let verdict = s.offer(data(1, 1460, 0));
    assert_eq!((verdict.fresh, verdict.joined), (0..1460, 1000));
    s.expect(&[sent_ack(0, 2461)]);
}

#[test]
fn three_duplicate_acks_tell_of_a_loss_and_a_reordered_batch_tells_nothing() {
    let mut s = Script::open();
    s.offer_all(&[
        data(1001, 1000, 0),
        data(2001, 1000, 0),
        data(3001, 1000, 0),
        data(4001, 1000, 0),
    ]);
    s.expect(&[sent_ack(0, 1); 3]);
    s.offer(data(1, 1000, 0));
    s.expect(&[sent_ack(0, 5001)]);
    s.offer_all(&[data(6001, 1000, 0), data(5001, 1000, 0)]);
    s.expect(&[sent_ack(0, 7001)]);
}

#[test]
fn an_ack_for_new_data_comes_before_the_duplicates() {
    let mut s = Script::open();
    s.offer_all(&[data(1, 1000, 0), data(2001, 1000, 0), data(3001, 1000, 0)]);
    s.expect(&[sent_ack(0, 1001), sent_ack(0, 1001), sent_ack(0, 1001)]);
}

#[test]
fn what_lies_ahead_is_held_only_as_far_as_the_engine_says() {
    let mut s = Script::open();
    s.hold = 700;
    assert_eq!(s.offer(data(1001, 500, 0)).held, Some(Held { range: 0..500, offset: 1000 }));
    assert_eq!(s.offer(data(2001, 900, 0)).held, Some(Held { range: 0..700, offset: 2000 }));
    s.hold = 0;
    assert_eq!(s.offer(data(3001, 500, 0)).held, None);
    s.expect(&[sent_ack(0, 1); 3]);
    // What was promised in order is taken all the same, and what is held is joined.
    let verdict = s.offer(data(1, 1000, 0));
    assert_eq!((verdict.fresh, verdict.joined), (0..1000, 500));
}

#[test]
fn what_lies_ahead_is_held_only_as_far_as_the_staging_goes() {
    let mut s = Script::open();
    let room =
        Room { send_room: 1 << 20, staging_room: 5000, peer_window: None, rtt: Duration::ZERO };
    s.conn.on_room(&room, s.now);
    s.turn();
    assert_eq!(s.offer(data(4001, 2000, 0)).held, Some(Held { range: 0..1000, offset: 4000 }));
    assert_eq!(s.offer(data(9001, 2000, 0)).held, None);
    assert_eq!(s.offer(data(1, 4000, 0)).joined, 1000);
}

#[test]
fn asking_for_room_is_rare() {
    let mut s = Script::open();
    let asks = |s: &Script| s.conn.wants_room_info(s.now);
    assert!(!asks(&s), "most of the window is left");
    s.send_room = 0;
    s.offer(data(1, 30_000, 0));
    assert!(asks(&s), "the socket does not keep up");
    let room = Room { send_room: 0, staging_room: 70_000, peer_window: None, rtt: ms(40) };
    s.conn.on_room(&room, s.now);
    s.writable(1000);
    assert!(!asks(&s), "not again within a quarter of the round-trip time");
    s.now = s.now + ms(10);
    assert!(asks(&s));
    s.writable(usize::MAX);
    assert!(!asks(&s), "the socket keeps up");
}

#[test]
fn a_keepalive_of_the_guests_is_answered_and_reported() {
    let mut s = Script::open();
    for len in [0, 1] {
        s.keepalive = false;
        s.offer(data(0, len, 0));
        s.expect(&[sent_ack(0, 1)]);
        assert!(s.keepalive);
    }
}

#[test]
fn a_window_probe_of_the_guests_is_answered_but_is_no_keepalive() {
    let mut s = Script::open();
    s.send_room = 0;
    let mut at = s.fill();
    at += s.offer(data(at, 1000, 0)).fresh.len() as u32;
    s.turn();
    s.offer(ack(at - 1, 0));
    s.expect(&[sent_ack(0, at)]);
    assert!(!s.keepalive);
    assert_eq!(s.window(), 0);
    s.offer(data(at, 1, 0));
    s.expect(&[sent_ack(0, at)]);
}

#[test]
fn with_a_closed_window_acknowledgements_of_the_guest_still_count() {
    let mut s = Script::open();
    s.send_room = 0;
    let mut at = s.fill();
    at += s.offer(data(at, 1000, 0)).fresh.len() as u32;
    s.peer(100);
    s.expect(&[sent_data(0, 100, at)]);
    assert_eq!(s.offer(data(at, 500, 100)).discard, 100);
    s.expect(&[sent_ack(100, at)]);
}
