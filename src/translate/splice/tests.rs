//! The machine by script, and between two sockets that do anything at any time.

use super::*;
use Side::{Inside, Outside};

const READABLE: Readiness = Readiness {
    readable: true,
    writable: false,
    read_closed: false,
    hung_up: false,
    error: false,
    urgent: false,
};
const WRITABLE: Readiness = Readiness { readable: false, writable: true, ..READABLE };
const ERROR: Readiness = Readiness { readable: false, error: true, hung_up: true, ..READABLE };

/// Both sockets are connected.
fn connected() -> Conn {
    let mut conn = Conn::new();
    conn.on_ready(Outside, WRITABLE);
    conn.on_ready(Inside, WRITABLE);
    assert_eq!(conn.next_step(), Step::Wait);
    conn
}

#[track_caller]
fn fill(conn: &mut Conn, from: Side, outcome: Outcome) {
    let step = conn.next_step();
    assert!(matches!(step, Step::Fill { from: f, .. } if f == from), "{step:?}");
    conn.on_filled(from, outcome);
}

#[track_caller]
fn drain(conn: &mut Conn, to: Side, len: usize, outcome: Outcome) {
    assert_eq!(conn.next_step(), Step::Drain { to, len });
    conn.on_drained(to, outcome);
}

#[track_caller]
fn finish(conn: &mut Conn, to: Side) {
    assert_eq!(conn.next_step(), Step::Finish { to });
    conn.on_finished(to, true);
}

#[test]
fn nothing_is_taken_before_the_other_side_can_take_it() {
    let mut conn = Conn::new();
    conn.on_ready(Outside, READABLE);
    conn.on_ready(Outside, WRITABLE);
    assert_eq!(conn.next_step(), Step::Wait, "the inside is still connecting");
    conn.on_ready(Inside, WRITABLE);
    fill(&mut conn, Outside, Outcome::Moved(10));
    drain(&mut conn, Inside, 10, Outcome::Moved(10));
    fill(&mut conn, Outside, Outcome::Blocked);
    assert_eq!(conn.next_step(), Step::Wait);
}

#[test]
fn short_counts_and_full_sockets_go_on_where_they_stopped() {
    let mut conn = connected();
    conn.on_ready(Inside, READABLE);
    fill(&mut conn, Inside, Outcome::Moved(100));
    drain(&mut conn, Outside, 100, Outcome::Moved(30));
    drain(&mut conn, Outside, 70, Outcome::Blocked);
    assert_eq!((conn.next_step(), conn.pending(Inside)), (Step::Wait, 70));
    conn.on_ready(Inside, READABLE);
    assert_eq!(conn.next_step(), Step::Wait, "the pipe is not empty");
    conn.on_ready(Outside, WRITABLE);
    drain(&mut conn, Outside, 70, Outcome::Moved(70));
    fill(&mut conn, Inside, Outcome::Blocked);
    assert_eq!(conn.next_step(), Step::Wait);
}

#[test]
fn ends_are_passed_on_behind_the_bytes_in_any_order() {
    for (one, other) in [(Outside, Inside), (Inside, Outside)] {
        let mut conn = connected();
        conn.on_ready(one, READABLE);
        fill(&mut conn, one, Outcome::Moved(5));
        drain(&mut conn, other, 5, Outcome::Blocked);
        conn.on_ready(one, Readiness { read_closed: true, ..READABLE });
        assert_eq!(conn.next_step(), Step::Wait, "no end before the bytes");
        conn.on_ready(other, WRITABLE);
        drain(&mut conn, other, 5, Outcome::Moved(5));
        fill(&mut conn, one, Outcome::Moved(0));
        finish(&mut conn, other);
        assert_eq!(conn.next_step(), Step::Wait, "the other direction lives on");
        conn.on_ready(other, READABLE);
        fill(&mut conn, other, Outcome::Moved(7));
        drain(&mut conn, one, 7, Outcome::Moved(7));
        // Both halves of the socket are closed now, and it still has bytes.
        conn.on_ready(other, Readiness { hung_up: true, read_closed: true, ..READABLE });
        fill(&mut conn, other, Outcome::Moved(1));
        drain(&mut conn, one, 1, Outcome::Moved(1));
        fill(&mut conn, other, Outcome::Moved(0));
        finish(&mut conn, one);
        assert_eq!(conn.next_step(), Step::Close);
    }
}

#[test]
fn a_connect_that_fails_resets_both() {
    let mut conn = Conn::new();
    conn.on_ready(Outside, WRITABLE);
    conn.on_ready(Inside, ERROR);
    fill(&mut conn, Inside, Outcome::Failed);
    assert_eq!(conn.next_step(), Step::Reset);
    let mut conn = Conn::new();
    conn.on_ready(Inside, ERROR);
    assert_eq!(conn.next_step(), Step::Wait, "the accepted socket is going to be writable");
    conn.on_ready(Outside, WRITABLE);
    fill(&mut conn, Inside, Outcome::Failed);
    assert_eq!(conn.next_step(), Step::Reset);
}

#[test]
fn what_came_before_an_error_is_passed_on_before_the_reset() {
    let mut conn = connected();
    conn.on_ready(Outside, Readiness { readable: true, ..ERROR });
    fill(&mut conn, Outside, Outcome::Moved(3));
    drain(&mut conn, Inside, 3, Outcome::Blocked);
    assert_eq!(conn.next_step(), Step::Wait);
    conn.on_ready(Inside, WRITABLE);
    drain(&mut conn, Inside, 3, Outcome::Moved(3));
    fill(&mut conn, Outside, Outcome::Failed);
    assert_eq!(conn.next_step(), Step::Reset);
}

#[test]
fn errors_of_both_sockets_end_it_whatever_is_under_way() {
    let mut conn = connected();
    conn.on_ready(Outside, READABLE);
    conn.on_ready(Inside, READABLE);
    fill(&mut conn, Outside, Outcome::Moved(3));
    drain(&mut conn, Inside, 3, Outcome::Blocked);
    fill(&mut conn, Inside, Outcome::Moved(4));
    drain(&mut conn, Outside, 4, Outcome::Failed);
    // What the outside has sent waits for the inside, which may still take it.
    assert_eq!(conn.next_step(), Step::Wait);
    conn.on_ready(Inside, ERROR);
    assert_eq!(conn.next_step(), Step::Reset);
}

#[test]
fn a_write_that_fails_still_lets_the_answer_through() {
    let mut conn = connected();
    conn.on_ready(Outside, READABLE);
    fill(&mut conn, Outside, Outcome::Moved(3));
    conn.on_ready(Inside, READABLE);
    drain(&mut conn, Inside, 3, Outcome::Failed);
    // Reading says by itself that there is nothing.
    assert_eq!(conn.next_step(), Step::Reset);
    let mut conn = connected();
    conn.on_ready(Inside, ERROR);
    fill(&mut conn, Inside, Outcome::Moved(9));
    drain(&mut conn, Outside, 9, Outcome::Moved(9));
    fill(&mut conn, Inside, Outcome::Moved(0));
    finish(&mut conn, Outside);
    assert_eq!(conn.next_step(), Step::Reset);
}

#[test]
fn a_shutdown_that_fails_is_an_error_of_the_socket() {
    let mut conn = connected();
    conn.on_ready(Outside, READABLE);
    fill(&mut conn, Outside, Outcome::Moved(0));
    assert_eq!(conn.next_step(), Step::Finish { to: Inside });
    conn.on_finished(Inside, false);
    assert_eq!(conn.next_step(), Step::Reset);
}

#[test]
fn a_turn_ends_after_its_bytes_and_directions_alternate() {
    let mut conn = connected();
    conn.on_ready(Outside, READABLE);
    conn.on_ready(Inside, READABLE);
    let (mut moved, mut hurried) = ([0, 0], Vec::new());
    loop {
        match conn.next_step() {
            Step::Fill { from, max } => {
                let n = max.min(TURN / 8);
                moved[from as usize] += n;
                conn.on_filled(from, Outcome::Moved(n));
            }
            Step::Drain { to, len } => conn.on_drained(to, Outcome::Moved(len)),
            Step::Hurry { to } => hurried.push(to),
            step => {
                assert_eq!(step, Step::Yield);
                break;
            }
        }
    }
    assert_eq!(moved, [TURN / 2, TURN / 2]);
    assert_eq!(hurried, [Inside, Outside], "once each, as both have much to carry");
    conn.begin_turn();
    assert!(matches!(conn.next_step(), Step::Fill { .. }));
}

#[test]
fn tiny_transfers_end_a_turn_too() {
    let mut conn = connected();
    conn.on_ready(Outside, READABLE);
    for _ in 0..TURN / LEAST {
        fill(&mut conn, Outside, Outcome::Moved(1));
        drain(&mut conn, Inside, 1, Outcome::Moved(1));
    }
    assert_eq!(conn.next_step(), Step::Yield);
}

/// A socket of the model below: what its peer has still to send, what of it has arrived, and what
/// it has got.
#[derive(Debug, Default)]
struct Model {
    to_come: usize,
    arrived: usize,
    ended: bool,
    got: usize,
    got_end: bool,
    room: usize,
    broken: bool,
}

struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % n
    }
}

/// Does what the machine says until it waits; whether it has ended.
fn serve(conn: &mut Conn, sockets: &mut [Model; 2], pipes: &mut [usize; 2]) -> Option<Step> {
    conn.begin_turn();
    for _ in 0..2000 {
        match conn.next_step() {
            Step::Fill { from, max } => {
                assert!(pipes[from as usize] == 0 && max > 0);
                let socket = &mut sockets[from as usize];
                let n = socket.arrived.min(max);
                socket.arrived -= n;
                pipes[from as usize] = n;
                let outcome = match n {
                    0 if socket.broken => Outcome::Failed,
                    0 if socket.ended => Outcome::Moved(0),
                    0 => Outcome::Blocked,
                    n => Outcome::Moved(n),
                };
                conn.on_filled(from, outcome);
            }
            Step::Drain { to, len } => {
                let pipe = &mut pipes[to.other() as usize];
                assert_eq!(*pipe, len);
                let socket = &mut sockets[to as usize];
                assert!(!socket.got_end, "bytes behind the end");
                let n = len.min(socket.room);
                let outcome = match n {
                    _ if socket.broken => Outcome::Failed,
                    0 => Outcome::Blocked,
                    n => {
                        *pipe -= n;
                        socket.room -= n;
                        socket.got += n;
                        Outcome::Moved(n)
                    }
                };
                conn.on_drained(to, outcome);
            }
            Step::Finish { to } => {
                let socket = &mut sockets[to as usize];
                assert!(!socket.got_end && pipes[to.other() as usize] == 0);
                socket.got_end = true;
                conn.on_finished(to, !socket.broken);
            }
            Step::Hurry { .. } => {}
            Step::Wait => return None,
            Step::Yield => conn.begin_turn(),
            step => return Some(step),
        }
    }
    panic!("it spins: {conn:?}");
}

/// One connection whose peers act by chance; `trouble` lets sockets fail.
fn run(seed: u64, trouble: bool) {
    let mut chance = Chance(seed);
    let amount = |chance: &mut Chance| chance.below(3) * chance.below(3_000_000);
    let total = [amount(&mut chance), amount(&mut chance)];
    let mut sockets = total.map(|to_come| Model { to_come, ..Model::default() });
    let (mut conn, mut pipes) = (Conn::new(), [0, 0]);
    for _ in 0..100_000 {
        let side = if chance.below(2) == 0 { Outside } else { Inside };
        let socket = &mut sockets[side as usize];
        let mut ready = Readiness::default();
        match chance.below(if trouble { 200 } else { 3 }) {
            0 => {
                let n = socket.to_come.min(chance.below(500_000));
                socket.to_come -= n;
                socket.arrived += n;
                ready.readable = n > 0;
            }
            1 => {
                socket.room = chance.below(500_000);
                ready.writable = socket.room > 0;
            }
            2 if socket.to_come == 0 => {
                socket.ended = true;
                ready.read_closed = true;
                ready.readable = true;
                ready.hung_up = socket.got_end;
            }
            3 => {
                socket.broken = true;
                (ready.error, ready.hung_up) = (true, true);
            }
            _ => continue,
        }
        conn.on_ready(side, ready);
        match serve(&mut conn, &mut sockets, &mut pipes) {
            None => {}
            Some(Step::Close) => {
                let got = [sockets[1].got, sockets[0].got];
                assert_eq!((got, pipes), (total, [0, 0]));
                assert!(sockets.iter().all(|socket| socket.got_end && socket.ended));
                return;
            }
            Some(step) => {
                assert_eq!(step, Step::Reset);
                assert!(sockets.iter().any(|socket| socket.broken), "reset for no reason");
                return;
            }
        }
    }
    panic!("seed {seed} does not end: {conn:?} {sockets:?}");
}

#[test]
fn whatever_the_order_of_events_all_bytes_arrive_and_then_the_ends() {
    (0..2000).for_each(|seed| run(seed, false));
}

#[test]
fn whenever_a_socket_fails_it_ends() {
    (0..2000).for_each(|seed| run(seed, true));
}
