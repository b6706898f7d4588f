//! The ring view: one split virtqueue in the guest's memory (virtio 1.3 2.7), read and written
//! through vm-memory's volatile and atomic references.
//!
//! UNSAFETY: [`View::new`] makes those references from addresses that it has checked, and claims
//! for them the lifetime `'static`; they live as long as the mapping because the view holds the
//! [`Memory`] and hands none of them out. All else here is safe code.
//!
//! It keeps no state: indices, and what is owed to the driver, are `queue`'s.
#![allow(unsafe_code, reason = "references into shared memory are made here; see UNSAFETY above")]

use super::memory::{Memory, Piece, Pieces};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use vm_memory::VolatileArrayRef;

/// Entries of an indirect table at most. Drivers may make them longer than the ring (Linux does).
const MAX_INDIRECT: u32 = 1024;

/// Pieces of one chain at most; a driver needs some 20 for 64 KiB.
pub(super) const MAX_PIECES: usize = 256;

/// Descriptor flags (virtio 1.3 2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// `flags` of the rings: bit 0 asks the other side not to notify.
const NO_NOTIFICATION: u16 = 1;

/// What is wrong with a chain. It is given back to the driver with length 0 and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// A `next` field points outside of the table.
    Index,
    /// More descriptors than the table has: a loop.
    Loop,
    /// A descriptor that the device may write where it must read, or the reverse.
    Direction,
    /// A buffer of no bytes.
    Empty,
    /// A buffer, or an indirect table, outside of the shared memory.
    Unmapped,
    /// An indirect table where none was negotiated, of a bad length, nested, or with a successor.
    Indirect,
    /// More pieces than we take.
    Long,
}

impl Malformed {
    /// All reasons, and how they are called.
    pub(super) const NAMES: [(Self, &'static str); 7] = [
        (Self::Index, "chains: successor outside of the table"),
        (Self::Loop, "chains: loop"),
        (Self::Direction, "chains: wrong direction"),
        (Self::Empty, "chains: empty buffer"),
        (Self::Unmapped, "chains: buffer outside of shared memory"),
        (Self::Indirect, "chains: bad indirect table"),
        (Self::Long, "chains: too many pieces"),
    ];
}

/// Sizes and places of a ring as the VMM gave them: places are addresses of the VMM's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// Number of descriptors, a power of two up to 32768.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: u64,
    /// Driver area.
    pub available: u64,
    /// Device area.
    pub used: u64,
}

/// One descriptor.
#[derive(Clone, Copy)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    #[inline]
    const fn from_words(words: [u64; 2]) -> Self {
        let rest = u64::from_le(words[1]);
        Self {
            addr: u64::from_le(words[0]),
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }

    #[inline]
    const fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A ring that has been found in memory.
pub(super) struct View {
    mask: u16,
    descriptors: VolatileArrayRef<'static, [u64; 2]>,
    available: VolatileArrayRef<'static, u16>,
    available_flags: &'static AtomicU16,
    available_idx: &'static AtomicU16,
    used_event: &'static AtomicU16,
    used: VolatileArrayRef<'static, u64>,
    used_flags: &'static AtomicU16,
    used_idx: &'static AtomicU16,
    available_event: &'static AtomicU16,
    memory: Arc<Memory>,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View({} entries)", self.size())
    }
}

impl View {
    /// Finds a ring in `memory`. `None` when the size is no power of two up to 32768, or an area
    /// is not aligned (virtio 1.3 2.7: 16, 2, 4), or not wholly inside of one region.
    pub(super) fn new(memory: Arc<Memory>, layout: &Layout) -> Option<Self> {
        if !layout.size.is_power_of_two() {
            return None;
        }
        let n = usize::from(layout.size);
        let area = |vmm: u64, len: usize, align: usize| {
            let base = memory.at_vmm(vmm, len)?.as_mut_ptr();
            base.addr().is_multiple_of(align).then_some(base)
        };
        let descriptors = area(layout.descriptors, 16 * n, 16)?;
        let available = area(layout.available, 6 + 2 * n, 2)?;
        let used = area(layout.used, 6 + 8 * n, 4)?;
        // SAFETY: each area was found mapped for the length that is used here: 16 n bytes of
        // descriptors; flags, idx, n entries of 2 bytes and used_event; flags, idx, n entries of 8
        // bytes and avail_event. The u16 of both are aligned, as both bases are to 2 at least. The
        // mapping outlives the references because `memory` is kept beside them and they are not
        // handed out. The guest writes to these places at any time, which atomics and volatile
        // accesses allow for.
        unsafe {
            let atomic =
                |base: *mut u8, offset: usize| AtomicU16::from_ptr(base.add(offset).cast::<u16>());
            Some(Self {
                mask: layout.size - 1,
                descriptors: VolatileArrayRef::new(descriptors, n),
                available: VolatileArrayRef::new(available.add(4), n),
                available_flags: atomic(available, 0),
                available_idx: atomic(available, 2),
                used_event: atomic(available, 4 + 2 * n),
                used: VolatileArrayRef::new(used.add(4), n),
                used_flags: atomic(used, 0),
                used_idx: atomic(used, 2),
                available_event: atomic(used, 4 + 8 * n),
                memory,
            })
        }
    }

    /// Number of descriptors.
    #[inline]
    pub(super) const fn size(&self) -> u32 {
        self.mask as u32 + 1
    }

    /// The memory that the ring lies in.
    pub(super) const fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Up to where the driver has made chains available. What it wrote before is seen after.
    #[inline]
    pub(super) fn available_idx(&self) -> u16 {
        u16::from_le(self.available_idx.load(Ordering::Acquire))
    }

    /// The head of the chain at `position` of the available ring; may be any number.
    #[inline]
    pub(super) fn head(&self, position: u16) -> u16 {
        u16::from_le(self.available.load(usize::from(position & self.mask)))
    }

    /// Up to where chains were used.
    pub(super) fn used_idx(&self) -> u16 {
        u16::from_le(self.used_idx.load(Ordering::Relaxed))
    }

    /// Writes a used element; [`View::publish`] makes it visible.
    #[inline]
    pub(super) fn put_used(&self, position: u16, head: u16, len: u32) {
        let element = u64::from(head) | (u64::from(len) << 32);
        self.used.store(usize::from(position & self.mask), element.to_le());
    }

    /// Makes all used elements before `idx` visible, with what was written to their buffers.
    #[inline]
    pub(super) fn publish(&self, idx: u16) {
        self.used_idx.store(idx.to_le(), Ordering::Release);
    }

    /// EVENT_IDX: the driver wants to be told when this element is used.
    #[inline]
    pub(super) fn used_event(&self) -> u16 {
        u16::from_le(self.used_event.load(Ordering::Relaxed))
    }

    /// EVENT_IDX: we want to be told when this element is available.
    pub(super) fn set_available_event(&self, idx: u16) {
        self.available_event.store(idx.to_le(), Ordering::Relaxed);
    }

    /// Without EVENT_IDX: the driver wants not to be told of used chains.
    pub(super) fn driver_is_quiet(&self) -> bool {
        u16::from_le(self.available_flags.load(Ordering::Relaxed)) & NO_NOTIFICATION != 0
    }

    /// Without EVENT_IDX: whether we want to be told of available chains.
    pub(super) fn set_quiet(&self, quiet: bool) {
        let flags = if quiet { NO_NOTIFICATION } else { 0 };
        self.used_flags.store(flags.to_le(), Ordering::Relaxed);
    }

    /// Appends the buffers of the chain at `head` to `out` and returns their bytes. `head` is below
    /// the size of the ring; `writable` says of which direction all of them must be; `indirect`
    /// whether tables are allowed. After an error `out` may have a part of the chain.
    #[inline]
    pub(super) fn walk<S: Piece>(
        &self,
        head: u16,
        writable: bool,
        indirect: bool,
        out: &mut Pieces<S>,
    ) -> Result<u64, Malformed> {
        let limit = out.len() + MAX_PIECES;
        let (mut next, mut total, mut left) = (u32::from(head), 0, self.size());
        loop {
            if next >= self.size() {
                return Err(Malformed::Index);
            }
            let d = Descriptor::from_words(self.descriptors.load(next as usize));
            if d.has(INDIRECT) {
                if !indirect || d.has(NEXT) {
                    return Err(Malformed::Indirect);
                }
                return Ok(total + walk_table(d, writable, limit, out)?);
            }
            total += take(d, writable, limit, out)?;
            if !d.has(NEXT) {
                return Ok(total);
            }
            left -= 1;
            if left == 0 {
                return Err(Malformed::Loop);
            }
            next = u32::from(d.next);
        }
    }
}

/// As [`View::walk`], for the indirect table that `table` describes.
fn walk_table<S: Piece>(
    table: Descriptor,
    writable: bool,
    limit: usize,
    out: &mut Pieces<S>,
) -> Result<u64, Malformed> {
    let entries = table.len / 16;
    if table.len == 0 || !table.len.is_multiple_of(16) || entries > MAX_INDIRECT {
        return Err(Malformed::Indirect);
    }
    let (mut next, mut total, mut left, mut hint) = (0, 0, entries, 0);
    loop {
        if next >= entries {
            return Err(Malformed::Index);
        }
        let at = table.addr.checked_add(u64::from(next) * 16).ok_or(Malformed::Unmapped)?;
        let d = table_entry(out.memory(), at, &mut hint).ok_or(Malformed::Unmapped)?;
        if d.has(INDIRECT) {
            return Err(Malformed::Indirect);
        }
        total += take(d, writable, limit, out)?;
        if !d.has(NEXT) {
            return Ok(total);
        }
        left -= 1;
        if left == 0 {
            return Err(Malformed::Loop);
        }
        next = u32::from(d.next);
    }
}

fn table_entry(memory: &Memory, addr: u64, hint: &mut usize) -> Option<Descriptor> {
    let mut bytes = [0; 16];
    memory.read(addr, &mut bytes, hint)?;
    let (low, high) = bytes.split_at(8);
    let word = |b: &[u8]| b.try_into().map(u64::from_ne_bytes).ok();
    Some(Descriptor::from_words([word(low)?, word(high)?]))
}

/// Appends the buffer of one descriptor.
#[inline]
fn take<S: Piece>(
    d: Descriptor,
    writable: bool,
    limit: usize,
    out: &mut Pieces<S>,
) -> Result<u64, Malformed> {
    if d.has(WRITE) != writable {
        return Err(Malformed::Direction);
    }
    if d.len == 0 {
        return Err(Malformed::Empty);
    }
    out.push(d.addr, d.len as usize).ok_or(Malformed::Unmapped)?;
    if out.len() > limit { Err(Malformed::Long) } else { Ok(u64::from(d.len)) }
}
