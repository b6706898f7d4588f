//! Random guests and sockets against what must always hold.

use super::super::conn::{Receiving, State};
use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Segment {
        seq: i32,
        ack: i32,
        len: u16,
        window: u16,
        flags: u8,
    },
    /// So many equal ACKs, for so many bytes of what is in flight.
    Acks {
        times: usize,
        bytes: u32,
        window: u16,
    },
    Peer {
        len: u16,
        fin: bool,
    },
    Ring(u8),
    Writable(u16),
    Room {
        send: u32,
        staging: u32,
        peer: Option<u32>,
    },
    Sleep(u32),
    Connected,
}

fn step() -> impl Strategy<Value = Step> {
    let near = prop_oneof![8 => Just(0), 4 => -3000..3000i32, 1 => any::<i32>()];
    let segment = (near.clone(), near, 0..5000u16, any::<u16>(), any::<u8>())
        .prop_map(|(seq, ack, len, window, flags)| Step::Segment { seq, ack, len, window, flags });
    let window = prop_oneof![2 => 0..2u16, 3 => 2..60u16, 2 => any::<u16>()];
    let bytes = prop_oneof![Just(0), 0..5000u32];
    let acks = (1..6usize, bytes, window).prop_map(|(times, bytes, window)| Step::Acks {
        times,
        bytes,
        window,
    });
    prop_oneof![
        20 => segment,
        12 => acks,
        4 => (any::<u16>(), any::<u8>()).prop_map(|(len, f)| Step::Peer { len, fin: f < 20 }),
        4 => any::<u8>().prop_map(Step::Ring),
        4 => any::<u16>().prop_map(Step::Writable),
        1 => (any::<u32>(), any::<u32>(), any::<Option<u32>>())
            .prop_map(|(send, staging, peer)| Step::Room { send, staging, peer }),
        3 => (0..400_000u32).prop_map(Step::Sleep),
        2 => Just(Step::Connected),
    ]
}

/// What the guest may conclude from all that it was sent.
#[derive(Default)]
struct Seen {
    edge: Option<u32>,
    ack: u32,
}

impl Seen {
    /// Checks one segment to the guest; `accepted` bytes were accepted from it.
    fn check(&mut self, s: &Script, accepted: u32) {
        let Some(out) = s.last else { return };
        if out.flags.rst {
            return;
        }
        let ack = out.ack.map_or(0, |ack| ack.distance_from(IRS + 1));
        assert!(ack <= accepted + 1, "acknowledged {ack}, accepted {accepted}");
        assert!(ack >= self.ack, "an acknowledgement moved back");
        self.ack = ack;
        let shift = if out.flags.syn { WindowScale::default() } else { WindowScale::new(8) };
        let edge = ack + (out.window << shift).0;
        // Rounding to the unit of the window field may hide less than one unit.
        assert!(edge + 255 >= self.edge.unwrap_or(0), "the right edge moved back");
        self.edge = Some(self.edge.unwrap_or(0).max(edge));
    }
}

/// What the guest has not acknowledged is sent again sooner or later: at once, when the link gives
/// room, or when the timer rings.
fn assert_goes_on(s: &Script) {
    if !s.conn.is_established() || s.conn.send.is_quiet() {
        return;
    }
    let waits_for_room = s.ring == 0 && (s.conn.peek_plan().is_some() || s.conn.segment_due());
    let rings_at = s.conn.timer.rings_at();
    let soon = rings_at.is_some_and(|at| at <= s.now + Patience::DEFAULT.max_rto);
    assert!(waits_for_room || soon, "nothing will happen: {:?}, now {:?}", s.conn, s.now);
}

fn run(steps: Vec<Step>, guest_opens: bool) {
    let mut s = if guest_opens { Script::connecting(syn()) } else { Script::peer_opens() };
    s.ring = 20;
    s.send_room = 5000;
    let mut seen = Seen::default();
    // Where the guest stands, so that most segments are nearly right.
    let (mut at, mut acked) = (0u32, 0u32);
    for step in steps {
        match step {
            Step::Segment { seq, ack: back, len, window, flags } => {
                let bits = Flags {
                    // Before the handshake is done another SYN would move all numbers.
                    syn: flags & 0xf0 == 0x10 && s.conn.is_established(),
                    fin: flags & 0x0f == 1,
                    rst: flags & 0x3f == 2,
                    psh: flags & 4 != 0,
                };
                let segment = if !s.conn.is_established() && flags & 3 != 3 {
                    if guest_opens { ack(0, 0) } else { syn_ack() }
                } else {
                    Segment {
                        flags: bits,
                        window: UnscaledWindow(window),
                        ..data(
                            at.wrapping_add_signed(seq),
                            len.into(),
                            acked.wrapping_add_signed(back),
                        )
                    }
                };
                let end = segment.seq + u32::from(len);
                let edge = IRS + 1 + seen.edge.unwrap_or(0);
                let promised = s.conn.is_established()
                    && segment.seq == IRS + 1 + at
                    && segment.ack == Some(ISS + 1 + acked)
                    && bits == Flags::default()
                    && end.before_or_eq(edge)
                    && matches!(s.conn.state, State::Established(Receiving::Open));
                let verdict = s.offer(segment);
                assert!(!promised || verdict.fresh.len() == usize::from(len), "refused");
                assert!(verdict.fresh.end <= segment.payload_len);
                at += (verdict.fresh.len() + verdict.joined) as u32;
            }
            Step::Acks { times, bytes, window } if s.conn.is_established() => {
                let una = s.conn.send.keepalive_seq() + 1;
                let segment = ack(at, (una + bytes).distance_from(ISS + 1));
                s.offer_all(&vec![Segment { window: UnscaledWindow(window), ..segment }; times]);
            }
            Step::Acks { .. } => {}
            Step::Peer { len, fin } if !s.eof => {
                s.peer(len.into());
                s.eof |= fin;
            }
            Step::Peer { .. } => {}
            Step::Ring(n) => s.ring = n.into(),
            Step::Writable(n) => s.writable(n.into()),
            Step::Room { send, staging, peer } => s.conn.on_room(
                &Room { send_room: send, staging_room: staging, peer_window: peer, rtt: ms(1) },
                s.now,
            ),
            Step::Sleep(millis) => {
                s.sleep(ms(millis.into()));
            }
            Step::Connected => s.conn.on_connected(s.now),
        }
        for sent in s.turn() {
            assert!(sent.len <= 1460);
            if sent.flags == "A" || sent.flags == "FA" {
                acked = acked.max((sent.seq.wrapping_add(sent.len as u32) as i32).max(0) as u32);
            }
        }
        if s.conn.is_closed() {
            assert!(!s.conn.segment_due() || s.ring == 0);
            return;
        }
        seen.check(&s, at);
        assert_goes_on(&s);
        assert!(s.staged as u32 <= seen.edge.unwrap_or(0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_guest_sends(steps in prop::collection::vec(step(), 1..120), opens: bool) {
        run(steps, opens);
    }
}
