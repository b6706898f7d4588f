//! Resets for segments that no connection wants (RFC 9293 3.5.2, group 1).

use super::pump::write_segment;
use crate::engine::Ctx;
use crate::flow::FlowKey;
use crate::link::{ETHERNET_HEADER, Sink};
use crate::translate::tcp::{Flags, Outgoing, Segment};
use crate::wire::ipv6;
use crate::wire::seq::{SeqNum, UnscaledWindow};
use crate::wire::tcp::LEN;

/// Answers `segment` with a RST, unless it is one. It may be lost: the guest will ask again.
pub(super) fn answer<H, K: Sink>(ctx: &mut Ctx<'_, H, K>, key: &FlowKey, segment: &Segment) {
    let Some(outgoing) = reset_for(segment) else { return };
    let Ok(slot) = ctx.sink.reserve(ETHERNET_HEADER + ipv6::LEN + LEN) else { return };
    let caps = ctx.sink.caps();
    write_segment(ctx, &caps, slot, key, &outgoing, 0, None);
}

/// The RST that a segment without a connection deserves.
fn reset_for(segment: &Segment) -> Option<Outgoing> {
    if segment.flags.rst {
        return None;
    }
    let (seq, ack) = match segment.ack {
        Some(ack) => (ack, None),
        None => {
            let payload = u32::try_from(segment.payload_len).unwrap_or(0);
            let control = u32::from(segment.flags.syn) + u32::from(segment.flags.fin);
            (SeqNum(0), Some(segment.seq + payload + control))
        }
    };
    Some(Outgoing {
        seq,
        ack,
        flags: Flags { rst: true, ..Flags::default() },
        window: UnscaledWindow(0),
        mss: None,
        window_scale: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(ack: Option<u32>, flags: Flags, payload_len: usize) -> Segment {
        Segment {
            seq: SeqNum(100),
            ack: ack.map(SeqNum),
            flags,
            window: UnscaledWindow(1000),
            payload_len,
            mss: None,
            window_scale: None,
        }
    }

    #[test]
    fn appendix_b_14_a_reset_acknowledges_syn_and_fin_too() {
        let fin = Flags { fin: true, ..Flags::default() };
        let reset = reset_for(&segment(None, fin, 5)).unwrap();
        assert_eq!((reset.seq, reset.ack), (SeqNum(0), Some(SeqNum(106))));
        let reset = reset_for(&segment(Some(77), fin, 5)).unwrap();
        assert_eq!((reset.seq, reset.ack), (SeqNum(77), None));
    }

    #[test]
    fn a_reset_is_never_answered() {
        let rst = Flags { rst: true, ..Flags::default() };
        assert_eq!(reset_for(&segment(Some(7), rst, 0)), None);
    }
}
