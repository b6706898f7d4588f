//! An arena: frames to the guest, each in one piece, back to back in a ring of bytes.
//!
//! The sink of links that have no buffers of the guest's to write to. In front of each frame is
//! headroom for what the link says about it: a length on a stream, a virtio-net header on a tap.
//! Frames that follow each other are one run of bytes, so that a whole queue goes out with one
//! system call. It does no I/O: a link takes [`Arena::runs`] or frames off the front, and says
//! with [`Arena::advance`] how much has gone. An arena that runs empty begins at its start again:
//! a quick reader keeps it small, and in the processor's caches.

use super::Slot;
use crate::span::{Buffer, Span, SpanMut};
use std::collections::VecDeque;

/// The longest padding that a link may ask for: up to the shortest frame that Ethernet knows,
/// without FCS.
const MAX_PADDING: usize = 60;

/// How frames stand in an arena.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Bytes in front of each frame.
    pub(super) headroom: usize,
    /// Shorter frames are padded with zeros up to this, at most 60.
    pub(super) min_frame: usize,
    /// Each frame's headroom begins at a multiple of this, at least 1. With 1 they follow each
    /// other without gaps.
    pub(super) align: usize,
}

/// Where a frame stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Its headroom begins here.
    start: usize,
    /// Bytes of headroom and frame: as reserved at first, then as committed.
    len: usize,
    /// Bytes of the frame that were asked for, without padding.
    reserved: usize,
    committed: bool,
}

impl Place {
    const fn end(&self) -> usize {
        self.start + self.len
    }
}

/// The frames that wait, and those that are being made.
#[derive(Debug)]
pub(super) struct Arena {
    buffer: Buffer,
    shape: Shape,
    places: VecDeque<Place>,
    /// [`Slot::index`] of the first place; wraps around.
    base: u32,
    /// Places at the front that are committed.
    ready: usize,
    /// Bytes of the first place that have gone already.
    gone: usize,
}

impl Arena {
    /// An arena of `capacity` bytes.
    pub(super) fn new(capacity: usize, shape: Shape) -> Self {
        let buffer = Buffer::new(capacity);
        Self { buffer, shape, places: VecDeque::new(), base: 0, ready: 0, gone: 0 }
    }

    /// Room for a frame of `len` bytes; `None` when there is none.
    pub(super) fn reserve(&mut self, len: usize) -> Option<Slot> {
        let need = len.max(self.shape.min_frame).checked_add(self.shape.headroom)?;
        let start = self.find(need)?;
        let index = self.base.wrapping_add(self.places.len() as u32);
        self.places.push_back(Place { start, len: need, reserved: len, committed: false });
        Some(Slot { index })
    }

    /// Where `need` bytes in one piece are free, behind all others or back at the start.
    fn find(&self, need: usize) -> Option<usize> {
        let capacity = self.buffer.len();
        let (Some(first), Some(last)) = (self.places.front(), self.places.back()) else {
            return (need <= capacity).then_some(0);
        };
        let end = last.end().next_multiple_of(self.shape.align.max(1));
        if last.start < first.start {
            return (first.start.saturating_sub(end) >= need).then_some(end);
        }
        if capacity.saturating_sub(end) >= need {
            return Some(end);
        }
        (first.start >= need).then_some(0)
    }

    /// Bytes between the first frame and the last, gaps included.
    pub(super) fn load(&self) -> usize {
        let (Some(first), Some(last)) = (self.places.front(), self.places.back()) else {
            return 0;
        };
        if last.start < first.start {
            (self.buffer.len() + last.end()).saturating_sub(first.start)
        } else {
            last.end().saturating_sub(first.start)
        }
    }

    /// The number of an open slot's place; `None` for one that is void.
    fn number(&self, slot: &Slot) -> Option<usize> {
        let number = slot.index.wrapping_sub(self.base) as usize;
        (number < self.places.len()).then_some(number)
    }

    /// The writable bytes of a slot.
    fn room(&self, slot: &Slot) -> Option<SpanMut<'_>> {
        let place = self.places.get(self.number(slot)?)?;
        Some(self.buffer.span_mut(place.start + self.shape.headroom, place.reserved))
    }

    /// As [`super::Sink::room`].
    pub(super) fn append_room<'a>(&'a self, slot: &Slot, skip: usize, out: &mut Vec<SpanMut<'a>>) {
        let room = self.room(slot).map(|room| room.skip(skip));
        out.extend(room.filter(|room| !room.is_empty()));
    }

    /// As [`super::Sink::write`].
    pub(super) fn write(&self, slot: &Slot, offset: usize, bytes: &[u8]) {
        if let Some(room) = self.room(slot) {
            room.write(offset, bytes);
        }
    }

    /// As [`super::Sink::read`].
    pub(super) fn read(&self, slot: &Slot, offset: usize, into: &mut [u8]) -> usize {
        self.room(slot).map_or(0, |room| room.as_span().read(offset, into))
    }

    /// As [`super::Sink::bytes`].
    pub(super) fn bytes(&mut self, slot: &Slot, offset: usize, len: usize) -> Option<&[u8]> {
        let place = *self.places.get(self.number(slot)?)?;
        let end = offset.checked_add(len).filter(|end| *end <= place.reserved)?;
        let start = place.start + self.shape.headroom;
        self.buffer.bytes().get(start + offset..start + end)
    }

    /// The frame is complete with `len` bytes; it is padded with zeros as the shape says. What
    /// `header` makes of that length goes in front of it.
    pub(super) fn commit<const N: usize>(
        &mut self,
        slot: &Slot,
        len: usize,
        header: impl FnOnce(usize) -> [u8; N],
    ) {
        let Some(number) = self.number(slot) else { return };
        let Shape { headroom, min_frame, .. } = self.shape;
        let Some(place) = self.places.get_mut(number) else { return };
        let len = len.min(place.reserved);
        let padded = len.max(min_frame);
        place.len = headroom + padded;
        place.committed = true;
        let span = self.buffer.span_mut(place.start, place.len);
        span.take(headroom).write(0, &header(padded));
        let padding = padded.saturating_sub(len);
        span.write(headroom + len, [0; MAX_PADDING].get(..padding).unwrap_or_default());
        while self.places.get(self.ready).is_some_and(|place| place.committed) {
            self.ready += 1;
        }
    }

    /// Gives up a slot, and all that were reserved after it.
    pub(super) fn cancel(&mut self, slot: &Slot) {
        if let Some(number) = self.number(slot) {
            self.places.truncate(number);
            self.ready = self.ready.min(number);
        }
    }

    /// The first frame that has been committed, with its headroom.
    pub(super) fn front(&self) -> Option<Span<'_>> {
        let first = self.places.front().filter(|place| place.committed)?;
        Some(self.buffer.span(first.start, first.len))
    }

    /// The first frame has gone, or is given up.
    pub(super) fn pop_front(&mut self) {
        if let Some(first) = self.places.front() {
            self.advance(first.len.saturating_sub(self.gone));
        }
    }

    /// Appends what has been committed and not gone yet to `out`, in at most `limit` runs.
    pub(super) fn runs<'a>(&'a self, limit: usize, out: &mut Vec<Span<'a>>) {
        let mut places = self.places.iter().take(self.ready);
        let Some(first) = places.next() else { return };
        let (mut start, mut end) = (first.start + self.gone, first.end());
        for place in places {
            if place.start != end {
                out.push(self.buffer.span(start, end - start));
                if out.len() >= limit {
                    return;
                }
                start = place.start;
            }
            end = place.end();
        }
        out.push(self.buffer.span(start, end - start));
    }

    /// The first `n` bytes of all runs have gone.
    pub(super) fn advance(&mut self, mut n: usize) {
        while let Some(first) = self.places.front().filter(|place| place.committed) {
            let left = first.len.saturating_sub(self.gone);
            if n < left {
                self.gone += n;
                return;
            }
            n -= left;
            self.gone = 0;
            self.places.pop_front();
            self.base = self.base.wrapping_add(1);
            self.ready = self.ready.saturating_sub(1);
        }
    }

    /// Forgets all frames. Slots that are still out become void.
    pub(super) fn clear(&mut self) {
        self.base = self.base.wrapping_add(self.places.len() as u32);
        self.places.clear();
        (self.ready, self.gone) = (0, 0);
    }
}

#[cfg(test)]
mod tests;
