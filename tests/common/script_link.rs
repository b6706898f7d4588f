//! A link whose two halves do what a test says, and insist on the rules of their traits.

use passt::link::{
    Frame, Link, LinkCaps, LinkEvents, MAX_FRAME, Offload, Refused, Sink, Slot, Source,
};
use passt::span::{Span, SpanMut};
use passt::token::Readiness;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;

thread_local! {
    /// Buffers that live for ever, so that spans of them may be handed out freely.
    static BUFFERS: RefCell<Vec<SpanMut<'static>>> = const { RefCell::new(Vec::new()) };
}

/// Longer than any frame may be, for frames that are too long.
const BUFFER: usize = MAX_FRAME + 100;

fn buffer() -> SpanMut<'static> {
    let old = BUFFERS.with_borrow_mut(Vec::pop);
    old.unwrap_or_else(|| SpanMut::from_slice(vec![0; BUFFER].leak()))
}

fn give_back(buffer: SpanMut<'static>) {
    BUFFERS.with_borrow_mut(|all| all.push(buffer));
}

#[derive(Default)]
pub struct ScriptLink {
    pub source: ScriptSource,
    pub sink: ScriptSink,
}

impl ScriptLink {
    pub fn new() -> Self {
        Self::default()
    }
}

impl Link for ScriptLink {
    type Source = ScriptSource;
    type Sink = ScriptSink;

    fn halves(&mut self) -> (&mut ScriptSource, &mut ScriptSink) {
        (&mut self.source, &mut self.sink)
    }

    fn on_event(&mut self, _which: u32, _ready: Readiness) -> io::Result<LinkEvents> {
        Ok(LinkEvents::default())
    }
}

/// Frames that wait to be taken, and the batch that is.
pub struct ScriptSource {
    waiting: VecDeque<(Vec<u8>, Offload)>,
    batch: Vec<Entry>,
    /// Each frame comes in pieces of this size, but for the last.
    pub piece: usize,
}

struct Entry {
    buffer: SpanMut<'static>,
    spans: Vec<Span<'static>>,
    len: usize,
    offload: Offload,
}

impl Default for ScriptSource {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), batch: Vec::new(), piece: usize::MAX }
    }
}

impl ScriptSource {
    pub fn push(&mut self, frame: Vec<u8>, offload: Offload) {
        self.waiting.push_back((frame, offload));
    }
}

impl Source for ScriptSource {
    fn receive(&mut self) -> io::Result<usize> {
        assert!(self.batch.is_empty(), "the previous batch was not released");
        for (frame, offload) in self.waiting.drain(..) {
            let buffer = buffer();
            assert_eq!(buffer.write(0, &frame), frame.len());
            let whole = buffer.as_span().take(frame.len());
            let starts = (0..frame.len()).step_by(self.piece);
            let spans = starts.map(|at| whole.skip(at).take(self.piece)).collect();
            self.batch.push(Entry { buffer, spans, len: frame.len(), offload });
        }
        Ok(self.batch.len())
    }

    fn frame(&self, index: usize) -> Frame<'_> {
        let entry = &self.batch[index];
        Frame { spans: &entry.spans, len: entry.len, offload: entry.offload }
    }

    fn release(&mut self) {
        self.batch.drain(..).for_each(|entry| give_back(entry.buffer));
    }
}

/// A ring of buffers of one size.
pub struct ScriptSink {
    pub caps: LinkCaps,
    /// Nobody is there.
    pub down: bool,
    /// Buffers that the guest has posted, less those in use.
    pub free: usize,
    /// Bytes of each.
    pub size: usize,
    /// Whether a frame may fill several.
    pub mergeable: bool,
    /// Room for payload comes in pieces of this size; in two if that is not set.
    pub piece: Option<usize>,
    /// How often room was refused because there was none just now.
    pub refused: usize,
    open: VecDeque<OpenSlot>,
    next_slot: u32,
    committed: Vec<(Vec<u8>, Offload)>,
    published: Vec<(Vec<u8>, Offload)>,
}

struct OpenSlot {
    index: u32,
    buffer: SpanMut<'static>,
    len: usize,
    buffers: usize,
    /// A slot before it was cancelled: it must be, too, before another is reserved.
    void: bool,
}

impl Default for ScriptSink {
    fn default() -> Self {
        Self {
            caps: LinkCaps { max_frame: 1514, ..LinkCaps::default() },
            down: false,
            free: 1 << 20,
            size: MAX_FRAME,
            mergeable: false,
            piece: None,
            refused: 0,
            open: VecDeque::new(),
            next_slot: 0,
            committed: Vec::new(),
            published: Vec::new(),
        }
    }
}

impl ScriptSink {
    /// What the guest gets, since it last looked.
    pub fn take(&mut self) -> Vec<(Vec<u8>, Offload)> {
        std::mem::take(&mut self.published)
    }

    fn slot(&self, slot: &Slot) -> &OpenSlot {
        self.open.iter().find(|open| open.index == slot.index).expect("the slot is open")
    }
}

impl Sink for ScriptSink {
    fn caps(&self) -> LinkCaps {
        self.caps
    }

    fn reserve(&mut self, len: usize) -> Result<Slot, Refused> {
        assert!(!self.open.iter().any(|open| open.void), "a void slot was not cancelled");
        if self.down {
            return Err(Refused::Down);
        }
        let buffers = len.max(1).div_ceil(self.size);
        if len > MAX_FRAME || (buffers > 1 && !self.mergeable) {
            return Err(Refused::TooLarge);
        }
        if buffers > self.free {
            self.refused += 1;
            return Err(Refused::Full);
        }
        self.free -= buffers;
        let index = self.next_slot;
        self.next_slot += 1;
        self.open.push_back(OpenSlot { index, buffer: buffer(), len, buffers, void: false });
        Ok(Slot { index })
    }

    fn room<'a>(&'a self, slot: &Slot, skip: usize, out: &mut Vec<SpanMut<'a>>) {
        let open = self.slot(slot);
        // In two pieces, as guests' buffers come.
        let room = open.buffer.take(open.len).skip(skip);
        let piece = self.piece.unwrap_or_else(|| room.len().div_ceil(2)).max(1);
        out.extend((0..room.len()).step_by(piece).map(|at| room.skip(at).take(piece)));
    }

    fn write(&mut self, slot: &Slot, offset: usize, bytes: &[u8]) {
        let open = self.slot(slot);
        assert!(offset + bytes.len() <= open.len, "written beyond the slot");
        open.buffer.skip(offset).write(0, bytes);
    }

    fn read(&self, slot: &Slot, offset: usize, into: &mut [u8]) -> usize {
        let open = self.slot(slot);
        open.buffer.take(open.len).as_span().read(offset, into)
    }

    fn commit(&mut self, slot: Slot, len: usize, offload: Offload) {
        let open = self.open.pop_front().expect("the slot is open");
        assert_eq!(open.index, slot.index, "committed out of order");
        assert!(!open.void, "a void slot was committed");
        assert!(len <= open.len, "longer than reserved");
        assert!(len <= self.caps.max_frame, "longer than any frame may be");
        assert!(offload.checksum.is_none() || self.caps.checksum, "not negotiated");
        self.free += open.buffers - len.max(1).div_ceil(self.size);
        let mut frame = vec![0; len];
        open.buffer.as_span().read(0, &mut frame);
        give_back(open.buffer);
        self.committed.push((frame, offload));
    }

    fn cancel(&mut self, slot: Slot) {
        let at = self.open.iter().position(|open| open.index == slot.index);
        let at = at.expect("the slot is open");
        let open = self.open.remove(at).expect("found");
        self.free += open.buffers;
        give_back(open.buffer);
        self.open.iter_mut().skip(at).for_each(|later| later.void = true);
    }

    fn flush(&mut self) -> io::Result<()> {
        assert!(self.open.is_empty(), "slots are left open");
        self.published.append(&mut self.committed);
        Ok(())
    }
}
