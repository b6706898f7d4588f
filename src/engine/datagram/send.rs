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

/// Datagrams that are handed to the socket at once.
const MAX_ROUND: usize = 256;

/// Errors in the datagrams of one frame after which its others are not tried any more: they have
/// the same size and the same way to go.
const MAX_TROUBLE: usize = 2;

/// How many datagrams to hand to a socket at once. Where one after the other meets an error, all
/// behind it are handed over in vain: so there are few of them then, and more again as they go.
#[derive(Debug)]
pub(in crate::engine) struct Pace(usize);

impl Pace {
    /// As many as there may be.
    pub(in crate::engine) const fn new() -> Self {
        Self(MAX_ROUND)
    }

    /// How many are next.
    pub(in crate::engine) const fn most(&self) -> usize {
        self.0
    }

    /// A round has ended, with an error or without.
    pub(in crate::engine) fn on_round(&mut self, troubled: bool) {
        self.0 = if troubled { 1 } else { (self.0 * 2).min(MAX_ROUND) };
    }
}

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
        let mut pace = Pace::new();
        // The frame whose datagrams were the last to meet errors, and how many.
        let (mut frame, mut errors) = (None, 0);
        // Each round sends, or gives up, at least one datagram, or rules segmentation out.
        while let Some(first) = rest.first().copied() {
            let same = rest.iter().take(pace.most()).take_while(|cut| cut.ttl == first.ttl).count();
            let now = rest.get(..same).unwrap_or_default();
            let Round { sent, troubled } = self.send_some(ctx, key, now, source, scratch);
            match sent {
                Sent::Taken(n) => rest = rest.get(n.clamp(1, same)..).unwrap_or_default(),
                Sent::Refused(n) => rest = give_up(ctx, rest, n.clamp(1, same)),
                Sent::WithoutSegmentation => {
                    self.no_segmentation = true;
                    continue;
                }
            }
            pace.on_round(troubled);
            if troubled {
                errors = if frame == Some(first.frame) { errors + 1 } else { 1 };
                frame = Some(first.frame);
            }
            if troubled && errors >= MAX_TROUBLE {
                let n = rest.iter().take_while(|cut| cut.frame == first.frame).count();
                rest = give_up(ctx, rest, n);
            }
        }
    }

    /// Sends `cuts`, of which there is one at least and which have one TTL, as far as the socket goes
    /// along.
    fn send_some<H: Host<Datagram = D>, K: Sink, S: Source>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        key: &FlowKey,
        cuts: &[Cut],
        source: &S,
        scratch: &mut Scratch,
    ) -> Round {
        let ttl = cuts.first().map_or(0, |cut| cut.ttl);
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
        let troubled = result.as_ref().is_err_and(|e| e.kind() != ErrorKind::WouldBlock);
        if troubled {
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
        let sent = match result {
            Ok(0) => Sent::Refused(sum(1)),
            Ok(n) => Sent::Taken(sum(n)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Sent::Refused(cuts.len()),
            Err(_) if segmented => Sent::WithoutSegmentation,
            Err(_) => Sent::Refused(1),
        };
        Round { sent, troubled }
    }
}

/// The first `n` datagrams will not go; returns the others.
fn give_up<'a, H, K>(ctx: &mut Ctx<'_, H, K>, rest: &'a [Cut], n: usize) -> &'a [Cut] {
    (0..n).for_each(|_| ctx.shared.drop(DropReason::NotSent));
    rest.get(n..).unwrap_or_default()
}

/// A call for datagrams to be sent.
struct Round {
    sent: Sent,
    /// There was an error, be it one of an earlier datagram.
    troubled: bool,
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
