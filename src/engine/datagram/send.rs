//! Datagrams of the guest's to sockets: straight from its memory, runs of equal size in one call.

use super::{Flow, Piece, Scratch, report};
use crate::engine::Ctx;
use crate::engine::counters::DropReason;
use crate::flow::FlowKey;
use crate::host::{Host, Outbound};
use crate::link::{Sink, Source};
use crate::span::{self, Span, recycle};
use std::io::ErrorKind;

/// Datagrams of one UDP_SEGMENT send at most (`UDP_MAX_SEGMENTS` of older kernels).
pub(super) const MAX_RUN: usize = 64;

/// Bytes of one UDP_SEGMENT send at most: what an IP packet holds.
const MAX_RUN_BYTES: usize = 65_000;

/// Datagrams that are handed to the socket at once: where each is refused for itself, they are
/// handed over again and again.
pub(in crate::engine) const MAX_ROUND: usize = 256;

/// Bytes of a refused datagram that the guest is told: what an ICMP error may quote (RFC 1812
/// 4.3.2.3).
const QUOTE: usize = 520;

/// One datagram in a frame.
#[derive(Clone, Copy, Debug)]
struct Cut {
    frame: usize,
    offset: usize,
    len: usize,
    ttl: u8,
}

impl<D: std::fmt::Debug> Flow<D> {
    /// Sends the flow's part of a batch.
    pub(super) fn send<H: Host<Datagram = D>, K: Sink, S: Source>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        key: &FlowKey,
        pieces: &[Piece],
        source: &S,
        scratch: &mut Scratch,
    ) {
        let all: Vec<Cut> = pieces.iter().flat_map(cuts).collect();
        if self.from_guest {
            all.iter().for_each(|_| self.life.on_sent(ctx.now));
        } else {
            all.iter().for_each(|_| self.life.on_answered(ctx.now));
        }
        let mut rest = &all[..];
        // Each round sends, or gives up, at least one datagram, or rules segmentation out.
        while let Some(ttl) = rest.first().map(|cut| cut.ttl) {
            let same = rest.iter().take(MAX_ROUND).take_while(|cut| cut.ttl == ttl).count();
            let now = rest.get(..same).unwrap_or_default();
            match self.send_some(ctx, key, now, source, scratch, ttl) {
                Sent::Taken(n) => rest = rest.get(n.clamp(1, same)..).unwrap_or_default(),
                Sent::Refused(n) => {
                    let n = n.clamp(1, same);
                    (0..n).for_each(|_| ctx.shared.drop(DropReason::NotSent));
                    rest = rest.get(n..).unwrap_or_default();
                }
                Sent::WithoutSegmentation => self.no_segmentation = true,
            }
        }
    }

    /// Sends `cuts`, which have one TTL, as far as the socket goes along.
    fn send_some<H: Host<Datagram = D>, K: Sink, S: Source>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        key: &FlowKey,
        cuts: &[Cut],
        source: &S,
        scratch: &mut Scratch,
        ttl: u8,
    ) -> Sent {
        let mut spans: Vec<Span<'_>> = recycle(std::mem::take(&mut scratch.spans));
        scratch.messages.clear();
        let mut runs = Vec::new();
        let mut at = 0;
        while let Some(cut) = cuts.get(at) {
            let run = if self.no_segmentation {
                1
            } else {
                run_length(cuts.iter().skip(at).map(|cut| cut.len))
            };
            let before = spans.len();
            for cut in cuts.iter().skip(at).take(run) {
                let frame = source.frame(cut.frame);
                span::slice_into(frame.spans, cut.offset, cut.len, &mut spans);
            }
            let segment = (run > 1).then(|| u16::try_from(cut.len).ok()).flatten();
            scratch.messages.push(Outbound { spans: spans.len() - before, segment });
            runs.push(run);
            at += run;
        }
        let mut result = ctx.host.send_messages(&mut self.socket, &scratch.messages, &spans, ttl);
        if result.as_ref().is_err_and(|e| e.kind() != ErrorKind::WouldBlock) {
            // It may be an error of an earlier datagram that stands in the way: report that one,
            // and try once more.
            self.report_errors(ctx, key);
            result = ctx.host.send_messages(&mut self.socket, &scratch.messages, &spans, ttl);
        }
        let segmented = scratch.messages.first().is_some_and(|first| first.segment.is_some());
        if let Err(error) = &result
            && error.kind() != ErrorKind::WouldBlock
            && !segmented
        {
            // Now it is about the first datagram itself.
            let mut quoted = [0; QUOTE];
            let first = scratch.messages.first().map_or(0, |first| first.spans);
            let n = span::gather(spans.get(..first).unwrap_or_default(), 0, &mut quoted);
            report::refuse(ctx, key, error, quoted.get(..n).unwrap_or_default());
        }
        scratch.spans = recycle(spans);
        let sum = |n: usize| runs.iter().take(n).sum::<usize>();
        match result {
            Ok(0) => Sent::Refused(sum(1)),
            Ok(n) => Sent::Taken(sum(n)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Sent::Refused(cuts.len()),
            Err(_) if segmented => Sent::WithoutSegmentation,
            Err(_) => Sent::Refused(1),
        }
    }
}

/// What came of sending.
enum Sent {
    /// So many datagrams are gone.
    Taken(usize),
    /// So many datagrams will not go.
    Refused(usize),
    /// The same again, one by one.
    WithoutSegmentation,
}

/// The datagrams of a piece: one, or a run's.
fn cuts(piece: &Piece) -> impl Iterator<Item = Cut> + use<> {
    let piece = *piece;
    let size = piece.segment.map_or(piece.len, usize::from).max(1);
    let count = piece.len.div_ceil(size).max(1);
    (0..count).map(move |i| Cut {
        frame: piece.frame,
        offset: piece.offset + i * size,
        len: size.min(piece.len - i * size),
        ttl: piece.ttl,
    })
}

/// How many of the first datagrams, of these lengths, can go as one run: all of one size, but for a
/// shorter last one.
pub(in crate::engine) fn run_length(mut lens: impl Iterator<Item = usize>) -> usize {
    let Some(first) = lens.next().filter(|&len| len > 0) else { return 1 };
    let most = (MAX_RUN_BYTES / first).clamp(1, MAX_RUN);
    let mut run = 1;
    for len in lens.take(most - 1) {
        if len == 0 || len > first {
            break;
        }
        run += 1;
        if len < first {
            break;
        }
    }
    run
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::FlowId;

    fn piece(len: usize, segment: Option<u16>) -> Piece {
        Piece { flow: FlowId::new(0, 0), frame: 0, offset: 42, len, segment, ttl: 64 }
    }

    #[test]
    fn a_segmented_frame_is_its_datagrams() {
        let lens = |len, segment| cuts(&piece(len, segment)).map(|c| c.len).collect::<Vec<_>>();
        assert_eq!(lens(2500, Some(1000)), [1000, 1000, 500]);
        assert_eq!(lens(2000, Some(1000)), [1000, 1000]);
        assert_eq!(lens(0, None), [0]);
        assert_eq!(lens(70, None), [70]);
        assert_eq!(cuts(&piece(2500, Some(1000))).map(|c| c.offset).last(), Some(2042));
    }

    #[test]
    fn a_run_has_one_size_and_a_shorter_end() {
        let run = |lens: &[usize]| run_length(lens.iter().copied());
        assert_eq!(run(&[100, 100, 100]), 3);
        assert_eq!(run(&[100, 100, 40, 100]), 3);
        assert_eq!(run(&[100, 101]), 1);
        assert_eq!(run(&[100, 0]), 1);
        assert_eq!(run(&[0, 0]), 1);
        assert_eq!(run(&[9000; 20]), 7);
        assert_eq!(run(&[65_507, 65_507]), 1);
    }
}
