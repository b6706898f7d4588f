//! Frames from the guest: the device's side of its transmit ring.

use super::header;
use super::memory::Pieces;
use super::queue::Queue;
use super::stats::Stats;
use crate::link::{ETHERNET_HEADER, Frame, MAX_FRAME, Offload, Source};
use crate::span::{Span, gather};
use std::io;

/// Chains of one batch at most: a turn's work is bounded.
const BATCH: u16 = 256;

/// Pieces of one batch at most, give or take those of one chain.
const BATCH_PIECES: usize = 4096;

/// A frame of the batch.
#[derive(Clone, Copy, Debug)]
struct Entry {
    first: u32,
    end: u32,
    len: u32,
    offload: Offload,
}

/// The half of the link that takes frames from the guest.
#[derive(Debug, Default)]
pub struct VhostSource {
    pub(super) queue: Queue,
    pub(super) features: u64,
    pub(super) stats: Stats,
    /// Heads of all chains of the batch, good or bad: all go back.
    heads: Vec<u16>,
    frames: Vec<Entry>,
    pieces: Pieces<Span<'static>>,
}

impl VhostSource {
    /// Forgets the memory that spans lie in; the queue has changed.
    pub(super) fn rebind(&mut self) {
        self.frames.clear();
        self.heads.clear();
        match self.queue.view() {
            Some(view) => self.pieces.rebind(view.memory()),
            None => self.pieces = Pieces::default(),
        }
    }

    /// Takes up to `n` chains into the batch; on a disabled ring to be given back unread ("Ring
    /// states" of the vhost-user protocol).
    fn take(&mut self, n: u16) {
        let mut taken = 0;
        while taken < n && self.pieces.len() < BATCH_PIECES {
            let Some(head) = self.queue.peek(taken, &mut self.stats) else { break };
            taken += 1;
            self.heads.push(head);
            if !self.queue.enabled {
                self.stats.disabled_frames += 1;
                continue;
            }
            let start = self.pieces.len();
            let Some(view) = self.queue.view() else { break };
            match view.walk(head, false, self.queue.indirect, &mut self.pieces) {
                Ok(total) => self.enter(start, total),
                Err(reason) => {
                    self.stats.count(reason);
                    self.pieces.truncate(start);
                }
            }
        }
        self.queue.take(taken);
    }

    /// Makes a frame of the pieces from `start` on, which hold `total` bytes.
    #[inline]
    fn enter(&mut self, start: usize, total: u64) {
        match self.frame_of(start, total) {
            Ok(entry) => self.frames.push(entry),
            Err(counter) => {
                *counter(&mut self.stats) += 1;
                self.pieces.truncate(start);
            }
        }
    }

    /// The frame, or the counter for what is wrong with it.
    #[inline]
    fn frame_of(&mut self, start: usize, total: u64) -> Result<Entry, fn(&mut Stats) -> &mut u64> {
        if total < (header::LEN + ETHERNET_HEADER) as u64 {
            return Err(|s| &mut s.short_frames);
        }
        if total > (header::LEN + MAX_FRAME) as u64 {
            return Err(|s| &mut s.long_frames);
        }
        let end = self.pieces.len();
        let mut bytes = [0; header::LEN];
        gather(self.pieces.get(start..end), 0, &mut bytes);
        let offload = header::parse(&bytes, self.features)
            .ok_or::<fn(&mut Stats) -> &mut u64>(|s| &mut s.bad_offloads)?;
        let first = self.pieces.strip(start, header::LEN);
        let len = total as u32 - header::LEN as u32;
        Ok(Entry { first: first as u32, end: end as u32, len, offload })
    }
}

impl Source for VhostSource {
    fn receive(&mut self) -> io::Result<usize> {
        self.release();
        let mut ready = self.queue.ready(&mut self.stats);
        if ready == Some(0) && self.queue.arm(&mut self.stats) {
            ready = self.queue.ready(&mut self.stats);
        }
        let Some(n @ 1..) = ready else { return Ok(0) };
        self.queue.hush();
        self.take(n.min(BATCH));
        if self.frames.is_empty() {
            // Nothing but bad chains, or a disabled ring. 0 would promise an event; to go on here would never end
            // with a guest that makes them as fast as we refuse them. So: a frame of no bytes.
            self.frames.push(Entry { first: 0, end: 0, len: 0, offload: Offload::default() });
        }
        Ok(self.frames.len())
    }

    fn frame(&self, index: usize) -> Frame<'_> {
        let Some(entry) = self.frames.get(index) else {
            return Frame { spans: &[], len: 0, offload: Offload::default() };
        };
        let spans = self.pieces.get(entry.first as usize..entry.end as usize);
        Frame { spans, len: entry.len as usize, offload: entry.offload }
    }

    fn release(&mut self) {
        self.frames.clear();
        self.pieces.truncate(0);
        let mut n = 0;
        for head in self.heads.drain(..) {
            self.queue.put_used(n, head, 0);
            n += 1;
        }
        self.queue.publish(n);
    }

    fn signal(&mut self, may_wait: bool) -> bool {
        if may_wait {
            return self.queue.owes_decision();
        }
        self.queue.notify();
        false
    }
}
