//! Seam 1, the guest's side: a link is two halves, a [`Source`] of frames from the guest and a
//! [`Sink`] of frames to it.
//!
//! Two halves, because a frame is held while its reply is built. The engine is generic over these
//! traits and knows no implementation; implementations (vhost-user, qemu's stream socket, a tap)
//! know nothing of protocols above Ethernet. Life of a turn:
//!
//! 1. The runtime hands an event of the link's to [`Link::on_event`], which says whether frames
//!    may wait or room may have come.
//! 2. [`Source::receive`] takes a batch of frames; [`Source::frame`] names each by its index, as
//!    often as one likes; [`Source::release`] gives the whole batch back.
//! 3. For each frame to the guest: [`Sink::reserve`] a slot, fill it ([`Sink::room`] and a system
//!    call, or [`Sink::write`]), then [`Sink::commit`] or [`Sink::cancel`] it.
//! 4. [`Sink::flush`] publishes all committed frames and signals the guest at most once.

mod arena;
pub mod capture;
mod door;
pub mod none;
mod parts;
pub mod stream;
pub mod tap;
mod trace;
pub mod vhost;
mod virtio;

pub use parts::{Control, Parts};

use crate::span::{Span, SpanMut};
use crate::token::Readiness;
use std::io;

/// Length of an Ethernet header: the headroom that every frame has at least.
pub const ETHERNET_HEADER: usize = 14;

/// The largest IP packet that fits a frame, with its Ethernet header.
pub const MAX_FRAME: usize = ETHERNET_HEADER + 65_535;

/// A guest's link.
pub trait Link {
    /// Frames from the guest.
    type Source: Source;
    /// Frames to the guest.
    type Sink: Sink;

    /// Both halves, to be used at the same time.
    fn halves(&mut self) -> (&mut Self::Source, &mut Self::Sink);

    /// One of the link's own descriptors ([`crate::token::Token::Link`]) is ready: accepts or
    /// drops clients, answers control messages, notes kicks. Never blocks and never fails for
    /// what a client does; an error is one of ours that ends the program.
    fn on_event(&mut self, which: u32, ready: Readiness) -> io::Result<LinkEvents>;

    /// Tells what the link counts, by name.
    fn counters(&self, tell: &mut dyn FnMut(&'static str, u64)) {
        let _ = tell;
    }
}

/// What [`Link::on_event`] has found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkEvents {
    /// Frames from the guest may be waiting: call [`Source::receive`] until it returns 0.
    pub frames: bool,
    /// The sink may have room again: flows that wait for it can go on.
    pub room: bool,
    /// A client has just become able to receive frames.
    pub up: bool,
    /// The last client is gone and, one-off, no other may come: the program ends with status 0.
    pub ended: bool,
}

/// Frames from the guest.
pub trait Source {
    /// Takes the next batch of frames, at most a ring or a buffer full; 0 when none is left (a
    /// later event will tell of more). The previous batch must have been released.
    fn receive(&mut self) -> io::Result<usize>;

    /// Frame `index` of the batch; `index` is below what [`Source::receive`] returned.
    fn frame(&self, index: usize) -> Frame<'_>;

    /// Gives the whole batch back to the guest. No span of it may be used any more.
    fn release(&mut self);

    /// Tells the guest of the batches that were given back, if it wants to be told. With `may_wait`
    /// this is put off, for the guest has just been woken for another reason and will see for
    /// itself: `true` asks to be called again without, soon.
    fn signal(&mut self, may_wait: bool) -> bool {
        let _ = may_wait;
        false
    }
}

/// A frame from the guest: from the Ethernet header on, without FCS, in one or more pieces.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The pieces, in order. The guest may change them while we look.
    pub spans: &'a [Span<'a>],
    /// Bytes in all pieces. Not checked against any limit but those of the link.
    pub len: usize,
    /// What the link says about it; checked against negotiation, **not** against the frame.
    pub offload: Offload,
}

/// Offload facts of one frame: the meaning of a virtio-net header (virtio 1.3 5.1.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum field holds a partial sum that someone must complete (NEEDS_CSUM).
    pub checksum: Option<PartialChecksum>,
    /// The frame stands for many: how it is to be cut.
    pub segmentation: Option<Segmentation>,
}

/// Where a checksum is to be completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Summing starts here, in bytes from the start of the frame (`csum_start`).
    pub start: u16,
    /// The sum goes here, in bytes from `start` (`csum_offset`).
    pub offset: u16,
}

/// How a frame is cut into packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// Which protocol's rules.
    pub kind: SegmentationKind,
    /// Payload bytes of each packet but the last (`gso_size`); never 0.
    pub size: u16,
    /// Bytes of all headers (`hdr_len`): a hint from a guest, exact in frames of ours.
    pub header_len: u16,
}

/// The protocol whose rules a segmented frame follows (`gso_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentationKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams of equal size, of either family.
    Udp,
}

/// What the sink may carry now; may change when a client comes or goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCaps {
    /// [`Offload::checksum`] may be used.
    pub checksum: bool,
    /// Segmented TCP over IPv4 may be sent.
    pub tcp4_segmentation: bool,
    /// Segmented TCP over IPv6 may be sent.
    pub tcp6_segmentation: bool,
    /// Segmented UDP over IPv4 may be sent.
    pub udp4_segmentation: bool,
    /// Segmented UDP over IPv6 may be sent.
    pub udp6_segmentation: bool,
    /// Bytes of the largest frame that a slot can take, Ethernet header included.
    pub max_frame: usize,
}

/// Why no slot was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The guest gives no room at present. The sink has armed its notification: an event with
    /// [`LinkEvents::room`] will come. Keep the data where it is.
    Full,
    /// No guest is there to take frames. [`LinkEvents::up`] will tell.
    Down,
    /// A frame of this size will never fit: drop it and count it.
    TooLarge,
}

/// Frames to the guest.
///
/// Slots are committed in the order in which they were reserved. A cancelled slot takes all later
/// ones that are still open with it: they must be cancelled too before anything else is reserved.
/// (So what a peek did not fill goes back to the guest's ring untouched.)
pub trait Sink {
    /// What frames may look like now.
    fn caps(&self) -> LinkCaps;

    /// Room for one frame of `len` bytes from the Ethernet header on.
    fn reserve(&mut self, len: usize) -> Result<Slot, Refused>;

    /// Appends to `out` the writable spans of `slot` behind its first `skip` bytes, at most up to
    /// the reserved length.
    fn room<'a>(&'a self, slot: &Slot, skip: usize, out: &mut Vec<SpanMut<'a>>);

    /// Copies `bytes` to `offset` of the slot. What does not fit is a bug of the caller's: it is
    /// left out.
    fn write(&mut self, slot: &Slot, offset: usize, bytes: &[u8]);

    /// Copies back what stands at `offset` of the slot, for checksums and captures. The guest may
    /// have changed it.
    fn read(&self, slot: &Slot, offset: usize, into: &mut [u8]) -> usize;

    /// The `len` bytes at `offset` of the slot, where they stand in one piece in our own memory: it
    /// spares the copy of [`Sink::read`].
    fn bytes(&mut self, slot: &Slot, offset: usize, len: usize) -> Option<&[u8]> {
        let _ = (slot, offset, len);
        None
    }

    /// The frame is complete and `len` bytes long, at most what was reserved. A frame below 60
    /// bytes is padded with zeros by the link where that is needed.
    fn commit(&mut self, slot: Slot, len: usize, offload: Offload);

    /// The slot is not needed; its room goes back.
    fn cancel(&mut self, slot: Slot);

    /// Publishes all that was committed and wakes the guest at most once.
    ///
    /// # Errors
    /// Only what ends the program; a client that fails is the link's own business.
    fn flush(&mut self) -> io::Result<()>;

    /// Whether the last [`Sink::flush`] has woken the guest.
    fn has_signalled(&self) -> bool {
        false
    }
}

/// A reserved place for one frame. Its meaning is the sink's.
#[must_use = "a slot is committed or cancelled"]
#[derive(Debug)]
pub struct Slot {
    /// Which of the sink's open slots this is.
    pub index: u32,
}
