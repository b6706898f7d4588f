//! Frames to the guest: the device's side of its receive ring.
//!
//! A slot is a run of the driver's chains, long enough for the frame and its virtio-net header. The
//! driver sees nothing of them before [`Sink::flush`]: used elements of all chains of all committed
//! frames are published by one store, so a merged frame is never seen in part. Chains that are not
//! needed go back by moving our index back, which works for the last ones taken only; others are
//! used with length 0.

use super::features;
use super::header;
use super::memory::Pieces;
use super::queue::Queue;
use super::stats::Stats;
use crate::link::{ETHERNET_HEADER, LinkCaps, MAX_FRAME, Offload, Refused, Sink, Slot};
use crate::span::{SpanMut, scatter};
use std::io;

/// The shortest frame that Ethernet knows, without FCS.
const MIN_FRAME: usize = 60;

/// The frame that any driver has room for (virtio 1.3 5.1.6.3.1).
const PLAIN_FRAME: usize = ETHERNET_HEADER + 1500;

/// A chain that was taken.
#[derive(Clone, Copy, Debug)]
struct Chain {
    head: u16,
    /// Writable bytes; 0 for a malformed chain.
    room: u32,
}

/// Malformed chains among those that were just taken.
#[derive(Debug, Default)]
struct Bad {
    /// Their heads, in order.
    heads: Vec<u16>,
    /// How many of them came before the first good one.
    leading: usize,
}

impl Bad {
    fn clear(&mut self) {
        self.heads.clear();
        self.leading = 0;
    }
}

/// A run of chains for one frame.
#[derive(Clone, Copy, Debug)]
struct Open {
    /// Index of its first chain; malformed ones come first.
    chains: u32,
    /// Chains that were malformed.
    bad: u16,
    /// Index of its first piece.
    pieces: u32,
    /// Bytes of the frame, as reserved.
    reserved: u32,
    /// After the commit: bytes of header and frame.
    written: Option<u32>,
}

/// The half of the link that gives frames to the guest.
#[derive(Debug, Default)]
pub struct VhostSink {
    pub(super) queue: Queue,
    pub(super) features: u64,
    pub(super) mtu: usize,
    pub(super) stats: Stats,
    chains: Vec<Chain>,
    /// Memory for [`VhostSink::gather_chains`].
    bad: Bad,
    slots: Vec<Open>,
    pieces: Pieces<SpanMut<'static>>,
    /// [`Slot::index`] of the first of `slots`; wraps around.
    base: u32,
    /// Someone waits for room: the driver is not hushed before it has told of some.
    owed: bool,
    /// The last flush has told the driver.
    signalled: bool,
}

impl VhostSink {
    /// Publishes what was committed and gives up what was not, before the queue may change. Slots
    /// that are still out become void.
    pub(super) fn settle(&mut self) {
        if let Some(first) = self.slots.iter().position(|s| s.written.is_none()) {
            self.rewind(first);
        }
        self.publish();
        self.queue.notify();
        self.base = self.base.wrapping_add(1 << 16);
    }

    /// The driver has told of new chains.
    pub(super) const fn on_kick(&mut self) {
        self.owed = false;
    }

    /// Forgets the memory that spans lie in; the queue has changed.
    pub(super) fn rebind(&mut self) {
        self.forget();
        match self.queue.view() {
            Some(view) => self.pieces.rebind(view.memory()),
            None => self.pieces = Pieces::default(),
        }
    }

    /// The place of an open slot; `None` for one that is void.
    #[inline]
    fn place(&self, slot: &Slot) -> Option<usize> {
        let place = slot.index.wrapping_sub(self.base) as usize;
        (place < self.slots.len()).then_some(place)
    }

    /// The pieces of a slot, header included.
    #[inline]
    fn spans(&self, slot: &Slot) -> Option<(&Open, &[SpanMut<'_>])> {
        let place = self.place(slot)?;
        let open = self.slots.get(place)?;
        let end = self.slots.get(place + 1).map_or(self.pieces.len(), |next| next.pieces as usize);
        Some((open, self.pieces.get(open.pieces as usize..end)))
    }

    /// Gives the chains from the `chains`th on back.
    fn untake(&mut self, chains: usize) {
        let n = self.chains.len().saturating_sub(chains);
        self.queue.untake(n as u16);
        self.chains.truncate(chains);
    }

    /// Gives up the slots from the `first`th on.
    fn rewind(&mut self, first: usize) {
        let Some(open) = self.slots.get(first) else { return };
        let (chains, pieces) = (open.chains as usize, open.pieces as usize);
        self.untake(chains);
        self.pieces.truncate(pieces);
        self.slots.truncate(first);
    }

    fn forget(&mut self) {
        self.base = self.base.wrapping_add(self.slots.len() as u32);
        self.slots.clear();
        self.chains.clear();
        self.pieces.truncate(0);
    }

    /// Gives chains back that the last slot, committed, turned out not to need.
    fn trim(&mut self) {
        let Some(open) = self.slots.last() else { return };
        let Some(written) = open.written else { return };
        // With a malformed chain among them, places in the available ring are no longer those in
        // `chains`: then nothing goes back.
        if open.bad != 0 {
            return;
        }
        let first = open.chains as usize;
        let needed = self.chains.get(first..).map_or(0, |c| covering(c, written));
        self.untake(first + needed);
    }

    /// Takes chains for `need` bytes behind those that are taken. Malformed ones stand apart.
    fn gather_chains(&mut self, need: u64) -> Result<(), Refused> {
        self.bad.clear();
        let mergeable = self.features & features::MRG_RXBUF != 0;
        let (first, mut room) = (self.chains.len(), 0u64);
        while room < need {
            let taken = self.chains.len() + self.bad.heads.len();
            match self.queue.ready(&mut self.stats) {
                None => return Err(Refused::Down),
                // A whole ring that is too small will not grow.
                Some(0) if taken - first >= self.queue.size() => {
                    return Err(Refused::TooLarge);
                }
                // Never more chains than a ring has, whatever the driver says.
                Some(_) if taken >= self.queue.size() => return Err(Refused::Full),
                Some(0) => return Err(Refused::Full),
                Some(_) => {}
            }
            let Some(head) = self.queue.peek(0, &mut self.stats) else {
                return Err(Refused::Down);
            };
            let start = self.pieces.len();
            let Some(view) = self.queue.view() else { return Err(Refused::Down) };
            let walked = view.walk(head, true, self.queue.indirect, &mut self.pieces);
            self.queue.take(1);
            match walked {
                Ok(bytes) => {
                    self.chains
                        .push(Chain { head, room: u32::try_from(bytes).unwrap_or(u32::MAX) });
                    room += bytes;
                    if !mergeable && room < need {
                        return Err(Refused::TooLarge);
                    }
                }
                Err(reason) => {
                    self.stats.count(reason);
                    self.pieces.truncate(start);
                    self.bad.heads.push(head);
                    self.bad.leading += usize::from(room == 0);
                }
            }
        }
        Ok(())
    }

    /// Puts the malformed chains in front of those of the slot that begins at `first`; returns how
    /// many they are.
    fn line_up(&mut self, first: usize) -> u16 {
        let heads = &self.bad.heads;
        if !heads.is_empty() {
            self.chains.splice(first..first, heads.iter().map(|&head| Chain { head, room: 0 }));
        }
        heads.len() as u16
    }

    /// Gives back what [`Self::gather_chains`] took, for the guest's sake: chains go back as if
    /// untouched, malformed ones at once with length 0 as far as they stand in front of all that
    /// is not published.
    fn scatter_chains(&mut self, chains: usize, pieces: usize) {
        self.pieces.truncate(pieces);
        let leading = if self.slots.is_empty() { self.bad.leading } else { 0 };
        self.untake(chains);
        self.queue.untake((self.bad.heads.len() - leading) as u16);
        if leading == 0 {
            return;
        }
        for (n, head) in self.bad.heads.iter().take(leading).enumerate() {
            self.queue.put_used(n as u16, *head, 0);
        }
        self.queue.publish(leading as u16);
        self.queue.notify();
    }

    /// Publishes the committed slots at the front.
    fn publish(&mut self) {
        let done = self.slots.iter().take_while(|s| s.written.is_some()).count();
        if done == 0 {
            return;
        }
        if done == self.slots.len() {
            self.trim();
        }
        let mut used = 0u16;
        for place in 0..done {
            self.use_chains(place, &mut used);
        }
        self.queue.publish(used);
        if done == self.slots.len() {
            self.forget();
        } else {
            self.drop_front(done);
        }
    }

    /// Writes the used elements of a committed slot.
    fn use_chains(&self, place: usize, used: &mut u16) {
        let Some(open) = self.slots.get(place) else { return };
        let end = self.slots.get(place + 1).map_or(self.chains.len(), |next| next.chains as usize);
        let chains = self.chains.get(open.chains as usize..end).unwrap_or_default();
        let mut left = open.written.unwrap_or(0);
        for chain in chains {
            let len = left.min(chain.room);
            left -= len;
            self.queue.put_used(*used, chain.head, len);
            *used = used.wrapping_add(1);
        }
    }

    /// Forgets the first `n` slots, which were published, while others are still open.
    fn drop_front(&mut self, n: usize) {
        let Some(next) = self.slots.get(n).copied() else { return };
        self.chains.drain(..(next.chains as usize).min(self.chains.len()));
        self.pieces.drop_front(next.pieces as usize);
        self.slots.drain(..n);
        for slot in &mut self.slots {
            slot.chains -= next.chains;
            slot.pieces -= next.pieces;
        }
        self.base = self.base.wrapping_add(n as u32);
    }

    /// Bytes of the largest frame that the driver has promised room for.
    fn max_frame(&self) -> usize {
        let segments = features::GUEST_TSO4
            | features::GUEST_TSO6
            | features::GUEST_USO4
            | features::GUEST_USO6;
        if self.features & (features::MRG_RXBUF | segments) != 0 {
            MAX_FRAME
        } else if self.features & features::MTU != 0 {
            PLAIN_FRAME.max(ETHERNET_HEADER + self.mtu)
        } else {
            PLAIN_FRAME
        }
    }
}

/// How many of `chains` hold the first `len` bytes.
fn covering(chains: &[Chain], len: u32) -> usize {
    let mut left = len;
    let mut n = 0;
    for chain in chains {
        if left == 0 {
            break;
        }
        left -= left.min(chain.room);
        n += 1;
    }
    n
}

impl Sink for VhostSink {
    fn caps(&self) -> LinkCaps {
        header::caps(self.features, self.max_frame())
    }

    fn reserve(&mut self, len: usize) -> Result<Slot, Refused> {
        if !self.queue.is_running() {
            return Err(Refused::Down);
        }
        if len > MAX_FRAME {
            return Err(Refused::TooLarge);
        }
        self.trim();
        let (chains, pieces) = (self.chains.len(), self.pieces.len());
        let need = (header::LEN + len.max(MIN_FRAME)) as u64;
        loop {
            let Err(refused) = self.gather_chains(need) else {
                let bad = self.line_up(chains);
                if !self.owed {
                    self.queue.hush();
                }
                let index = self.base.wrapping_add(self.slots.len() as u32);
                self.slots.push(Open {
                    chains: chains as u32,
                    bad,
                    pieces: pieces as u32,
                    reserved: len as u32,
                    written: None,
                });
                return Ok(Slot { index });
            };
            self.scatter_chains(chains, pieces);
            // The driver may not tell of a chain that comes while we ask it to: so try again. Each
            // turn of this loop has one chain more, or the ring is found broken.
            if refused != Refused::Full || !self.queue.arm(&mut self.stats) {
                self.owed |= refused == Refused::Full;
                return Err(refused);
            }
        }
    }

    fn room<'a>(&'a self, slot: &Slot, skip: usize, out: &mut Vec<SpanMut<'a>>) {
        let Some((open, spans)) = self.spans(slot) else { return };
        let mut skip = skip.saturating_add(header::LEN);
        let mut left = (open.reserved as usize + header::LEN).saturating_sub(skip);
        for span in spans {
            if left == 0 {
                break;
            }
            let part = span.skip(skip).take(left);
            skip = skip.saturating_sub(span.len());
            left -= part.len();
            if !part.is_empty() {
                out.push(part);
            }
        }
    }

    fn write(&mut self, slot: &Slot, offset: usize, bytes: &[u8]) {
        let Some((open, spans)) = self.spans(slot) else { return };
        let fits = (open.reserved as usize).saturating_sub(offset).min(bytes.len());
        let bytes = bytes.get(..fits).unwrap_or_default();
        scatter(spans, offset.saturating_add(header::LEN), bytes);
    }

    fn read(&self, slot: &Slot, offset: usize, into: &mut [u8]) -> usize {
        let Some((open, spans)) = self.spans(slot) else { return 0 };
        let there = (open.reserved as usize).saturating_sub(offset).min(into.len());
        let Some(into) = into.get_mut(..there) else { return 0 };
        read_scattered(spans, offset.saturating_add(header::LEN), into)
    }

    fn commit(&mut self, slot: Slot, len: usize, offload: Offload) {
        let Some(place) = self.place(&slot) else { return };
        let Some((open, spans)) = self.spans(&slot) else { return };
        let len = len.min(open.reserved as usize);
        if len < MIN_FRAME {
            scatter(spans, header::LEN + len, &[0; MIN_FRAME][len..]);
        }
        let written = (header::LEN + len.max(MIN_FRAME)) as u32;
        let first = open.chains as usize + usize::from(open.bad);
        let end = self.slots.get(place + 1).map_or(self.chains.len(), |next| next.chains as usize);
        let buffers = self.chains.get(first..end).map_or(0, |c| covering(c, written));
        let header = header::emit(&offload, buffers as u16, self.features);
        scatter(spans, 0, &header);
        if let Some(open) = self.slots.get_mut(place) {
            open.written = Some(written);
        }
    }

    fn cancel(&mut self, slot: Slot) {
        if let Some(place) = self.place(&slot) {
            self.rewind(place);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.publish();
        self.signalled = self.queue.notify();
        Ok(())
    }

    fn has_signalled(&self) -> bool {
        self.signalled
    }
}

/// Copies from `offset` of `spans`.
fn read_scattered(spans: &[SpanMut<'_>], offset: usize, into: &mut [u8]) -> usize {
    let (mut offset, mut done) = (offset, 0);
    for span in spans {
        let Some(rest) = into.get_mut(done..) else { break };
        done += span.as_span().read(offset, rest);
        offset = offset.saturating_sub(span.len());
    }
    done
}
