//! The guest's memory as the VMM has shared it: regions, translation of addresses, and spans that
//! outlive a borrow.
//!
//! UNSAFETY: this module makes [`Span`]s from addresses inside of mappings that it owns. It
//! promises that a span never outlives the mapping: either it borrows the [`Memory`], or it lies in
//! a [`Pieces`], which holds the `Memory` and hands spans out for as long as it is borrowed itself.
//!
//! A [`Memory`] never changes; a new table is a new value, which shares the regions that stay. It
//! knows nothing of rings.
#![allow(unsafe_code, reason = "raw memory is this module's subject; see UNSAFETY above")]

use crate::span::{Span, SpanMut};
use crate::sys::fault::Guard;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use vm_memory::{FileOffset, MmapRegion};

/// Regions that we take at most (GET_MAX_MEM_SLOTS).
pub const MAX_REGIONS: usize = 64;

/// Offsets of mappings are multiples of this.
const PAGE: u64 = 4096;

/// Where a region lies, as the VMM describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RegionSpec {
    /// Guest physical address of the first byte.
    pub guest: u64,
    /// Number of bytes.
    pub size: u64,
    /// The VMM's own address of the first byte.
    pub vmm: u64,
    /// Offset of the first byte in the file.
    pub offset: u64,
}

/// Why a region was refused.
#[derive(Debug)]
pub(super) enum RegionError {
    /// Size 0, or an address range that wraps around.
    Range,
    /// It overlaps another one.
    Overlap,
    /// There are [`MAX_REGIONS`] already.
    TooMany,
    /// The file ends before the region does.
    PastEnd,
    /// No such region to remove.
    Unknown,
    /// The kernel's answer to fstat or mmap.
    Io(#[expect(dead_code, reason = "for the log")] io::Error),
}

/// One mapped region.
#[derive(Debug)]
struct Region {
    spec: RegionSpec,
    base: *mut u8,
    /// What it names goes before the mapping does: fields are dropped in order.
    guard: Guard,
    /// Keeps `base` mapped.
    _map: MmapRegion,
}

// SAFETY: `base` points into `_map`, which is Send and Sync itself; nothing is reachable through
// it but by the volatile copies of `Span` and `VolatileSlice`.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn map(spec: RegionSpec, file: File) -> Result<Self, RegionError> {
        let fits = |start: u64| start.checked_add(spec.size).is_some();
        if spec.size == 0 || !fits(spec.guest) || !fits(spec.vmm) {
            return Err(RegionError::Range);
        }
        let end = spec.offset.checked_add(spec.size).ok_or(RegionError::Range)?;
        let about = file.metadata().map_err(RegionError::Io)?;
        if !about.file_type().is_char_device() && about.len() < end {
            return Err(RegionError::PastEnd);
        }
        let lead = spec.offset % PAGE;
        let length = usize::try_from(spec.size.checked_add(lead).ok_or(RegionError::Range)?)
            .map_err(|_| RegionError::Range)?;
        let map = MmapRegion::from_file(FileOffset::new(file, spec.offset - lead), length)
            .map_err(|e| RegionError::Io(io::Error::other(e)))?;
        // SAFETY: `lead` is below `length`, the size of the mapping.
        let base = unsafe { map.as_ptr().add(lead as usize) };
        let guard = Guard::new(map.as_ptr(), map.size()).map_err(RegionError::Io)?;
        Ok(Self { spec, base, guard, _map: map })
    }

    /// What is mapped from `offset` on, at most `len` bytes; `offset` is below the region's size.
    #[inline]
    fn span(&self, offset: u64, len: usize) -> SpanMut<'_> {
        let rest = self.spec.size.saturating_sub(offset) as usize;
        let offset = (offset as usize).min(self.spec.size as usize);
        // SAFETY: `offset <= size` and `len.min(rest) <= size - offset`, and all of `size` bytes
        // from `base` are mapped readable and writable for as long as `self` lives.
        unsafe { SpanMut::from_raw(self.base.add(offset), len.min(rest)) }
    }
}

/// The guest's memory, or none of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    /// Sorted by guest address, without overlaps.
    regions: Vec<Arc<Region>>,
}

impl Memory {
    /// Memory with one region more.
    pub(super) fn with(&self, spec: RegionSpec, file: File) -> Result<Self, RegionError> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(RegionError::TooMany);
        }
        let region = Region::map(spec, file)?;
        let at = self.regions.partition_point(|r| r.spec.guest < spec.guest);
        // No sum wraps: `Region::map` has checked both regions.
        let overlaps = |r: &Arc<Region>| {
            r.spec.guest < spec.guest + spec.size && spec.guest < r.spec.guest + r.spec.size
        };
        if self.regions.iter().any(overlaps) {
            return Err(RegionError::Overlap);
        }
        let mut regions = self.regions.clone();
        regions.insert(at, Arc::new(region));
        Ok(Self { regions })
    }

    /// Memory with one region less: the one with this guest address, size and VMM address.
    pub(super) fn without(&self, spec: RegionSpec) -> Result<Self, RegionError> {
        let is_it = |r: &Arc<Region>| RegionSpec { offset: spec.offset, ..r.spec } == spec;
        let at = self.regions.iter().position(is_it).ok_or(RegionError::Unknown)?;
        let mut regions = self.regions.clone();
        regions.remove(at);
        Ok(Self { regions })
    }

    /// Number of regions.
    pub(super) fn len(&self) -> usize {
        self.regions.len()
    }

    /// Whether the VMM has taken some of it away (by shrinking the file), and all that is left in
    /// that region is zeros.
    pub(super) fn is_lost(&self) -> bool {
        self.regions.iter().any(|region| region.guard.is_lost())
    }

    /// The longest mapped piece that starts at guest address `addr`, at most `len` bytes. `hint`
    /// remembers the region of the last hit: most addresses of a guest are in one.
    #[inline]
    pub(super) fn piece(&self, addr: u64, len: usize, hint: &mut usize) -> Option<SpanMut<'_>> {
        if let Some(region) = self.regions.get(*hint) {
            let offset = addr.wrapping_sub(region.spec.guest);
            if offset < region.spec.size {
                return Some(region.span(offset, len));
            }
        }
        self.search(addr, len, hint)
    }

    #[cold]
    fn search(&self, addr: u64, len: usize, hint: &mut usize) -> Option<SpanMut<'_>> {
        let after = self.regions.partition_point(|r| r.spec.guest <= addr);
        let at = after.checked_sub(1)?;
        let region = self.regions.get(at)?;
        let offset = addr - region.spec.guest;
        if offset >= region.spec.size {
            return None;
        }
        *hint = at;
        Some(region.span(offset, len))
    }

    /// Copies `into.len()` bytes from guest address `addr`, across regions if need be.
    pub(super) fn read(&self, addr: u64, into: &mut [u8], hint: &mut usize) -> Option<()> {
        let mut done = 0;
        while done < into.len() {
            let at = addr.checked_add(done as u64)?;
            let rest = into.get_mut(done..)?;
            let piece = self.piece(at, rest.len(), hint)?;
            done += piece.as_span().read(0, rest);
        }
        Some(())
    }

    /// The `len` bytes at the VMM's address `addr`, if they lie in one region: rings are named so.
    pub(super) fn at_vmm(&self, addr: u64, len: usize) -> Option<SpanMut<'_>> {
        self.regions.iter().find_map(|region| {
            let offset = addr.wrapping_sub(region.spec.vmm);
            let fits = offset < region.spec.size && region.spec.size - offset >= len as u64;
            fits.then(|| region.span(offset, len))
        })
    }
}

/// A [`Span`] or a [`SpanMut`] in a [`Pieces`].
pub(super) trait Piece {
    /// The same bytes.
    fn of(span: SpanMut<'static>) -> Self;
}

impl Piece for Span<'static> {
    #[inline]
    fn of(span: SpanMut<'static>) -> Self {
        span.as_span()
    }
}

impl Piece for SpanMut<'static> {
    #[inline]
    fn of(span: SpanMut<'static>) -> Self {
        span
    }
}

/// Spans of one [`Memory`], kept in one allocation from batch to batch.
///
/// The `'static` inside is not true: spans are good for as long as `memory` is held, and so are
/// handed out only for as long as `self` is borrowed.
pub(super) struct Pieces<S> {
    memory: Arc<Memory>,
    hint: usize,
    spans: Vec<S>,
}

impl<S> Default for Pieces<S> {
    fn default() -> Self {
        Self { memory: Arc::default(), hint: 0, spans: Vec::new() }
    }
}

impl<S> fmt::Debug for Pieces<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pieces({})", self.spans.len())
    }
}

impl<S: Piece> Pieces<S> {
    /// Forgets all spans and takes further ones from `memory`.
    pub(super) fn rebind(&mut self, memory: &Arc<Memory>) {
        self.spans.clear();
        self.memory = Arc::clone(memory);
        self.hint = 0;
    }

    /// Appends the `len` bytes at guest address `addr`, in as many pieces as regions hold them;
    /// `None` when some are not mapped (a part may have been appended then).
    #[inline]
    pub(super) fn push(&mut self, addr: u64, len: usize) -> Option<()> {
        let piece = self.memory.piece(addr, len, &mut self.hint)?;
        // SAFETY: the bytes stay mapped while `self.memory` is held, which `rebind` replaces only
        // after it has removed all spans.
        let kept = unsafe { SpanMut::from_raw(piece.as_mut_ptr(), piece.len()) };
        let got = kept.len();
        self.spans.push(S::of(kept));
        if got == len { Some(()) } else { self.push(addr.checked_add(got as u64)?, len - got) }
    }

    /// The memory that the spans lie in.
    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Number of spans.
    pub(super) fn len(&self) -> usize {
        self.spans.len()
    }

    /// Forgets the first `n` spans.
    pub(super) fn drop_front(&mut self, n: usize) {
        self.spans.drain(..n.min(self.spans.len()));
    }

    /// Forgets the spans from the `len`th on.
    pub(super) fn truncate(&mut self, len: usize) {
        self.spans.truncate(len);
    }
}

impl Pieces<Span<'static>> {
    /// The spans of `range`; none when there is no such range.
    pub(super) fn get(&self, range: Range<usize>) -> &[Span<'_>] {
        self.spans.get(range).unwrap_or_default()
    }

    /// Takes the first `n` bytes off the spans from the `first`th on; returns the index of the
    /// first span that has bytes left.
    pub(super) fn strip(&mut self, mut first: usize, mut n: usize) -> usize {
        while let Some(span) = self.spans.get_mut(first) {
            if span.len() > n {
                *span = span.skip(n);
                break;
            }
            n -= span.len();
            first += 1;
        }
        first
    }
}

impl Pieces<SpanMut<'static>> {
    /// The spans of `range`; none when there is no such range.
    pub(super) fn get(&self, range: Range<usize>) -> &[SpanMut<'_>] {
        self.spans.get(range).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};

    fn file(len: u64) -> File {
        let file = File::from(memfd_create(c"test", MFdFlags::empty()).expect("memfd"));
        file.set_len(len).expect("size");
        file
    }

    const fn spec(guest: u64, size: u64, offset: u64) -> RegionSpec {
        RegionSpec { guest, size, vmm: guest + 0x1000_0000, offset }
    }

    #[test]
    fn bad_regions_are_refused() {
        let one = Memory::default().with(spec(0x1000, 0x2000, 0), file(0x2000)).expect("good");
        let cases = [
            ("no bytes", spec(0x9000, 0, 0), "Range"),
            ("guest addresses wrap", RegionSpec { guest: u64::MAX, ..spec(0, 0x1000, 0) }, "Range"),
            ("VMM addresses wrap", RegionSpec { vmm: u64::MAX, ..spec(0, 0x1000, 0) }, "Range"),
            ("offsets wrap", spec(0x9000, 0x1000, u64::MAX), "Range"),
            ("past the end of the file", spec(0x9000, 0x1000, 0x1001), "PastEnd"),
            ("same place", spec(0x1000, 0x1000, 0), "Overlap"),
            ("one byte into it", spec(0x2fff, 0x1000, 0), "Overlap"),
            ("around it", spec(0, 0x1001, 0), "Overlap"),
        ];
        for (name, spec, expected) in cases {
            let refused = one.with(spec, file(0x2000)).expect_err(name);
            assert_eq!(format!("{refused:?}"), expected, "{name}");
        }
        assert!(one.with(spec(0x3000, 0x1000, 0x1000), file(0x2000)).is_ok());
    }

    #[test]
    fn there_is_an_end_to_regions() {
        let mut memory = Memory::default();
        for n in 0..MAX_REGIONS as u64 {
            memory = memory.with(spec(n * 0x1000, 0x1000, 0), file(0x1000)).expect("a slot");
        }
        let refused = memory.with(spec(1 << 40, 0x1000, 0), file(0x1000));
        assert!(matches!(refused, Err(RegionError::TooMany)));
        let memory = memory.without(spec(0x3000, 0x1000, 0)).expect("known");
        assert!(matches!(memory.without(spec(0x3000, 0x1000, 0)), Err(RegionError::Unknown)));
        let mut hint = 0;
        assert!(memory.piece(0x3000, 1, &mut hint).is_none());
        assert!(memory.piece(0x4000, 1, &mut hint).is_some());
    }

    #[test]
    fn ranges_are_cut_where_regions_end() {
        let low = file(0x2000);
        let memory = Memory::default().with(spec(0x1000, 0x1000, 0x1000), low).expect("good");
        let memory = memory.with(spec(0x2000, 0x1000, 0), file(0x1000)).expect("good");
        let mut hint = 0;
        let lens = |addr, len, hint: &mut usize| memory.piece(addr, len, hint).map(|s| s.len());
        assert_eq!(lens(0xfff, 1, &mut hint), None);
        assert_eq!(lens(0x1ffe, 10, &mut hint), Some(2));
        assert_eq!(lens(0x2000, 10, &mut hint), Some(10));
        assert_eq!(lens(0x2fff, 10, &mut hint), Some(1));
        assert_eq!(lens(0x3000, 1, &mut hint), None);
        assert_eq!(lens(u64::MAX, 2, &mut hint), None);
        let mut pieces = Pieces::<Span<'static>>::default();
        pieces.rebind(&Arc::new(memory.clone()));
        assert_eq!(pieces.push(0x1ffe, 4), Some(()));
        assert_eq!(pieces.get(0..2).iter().map(Span::len).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(pieces.push(0x2ffe, 4), None);
        assert!(pieces.push(u64::MAX, usize::MAX).is_none());
        assert_eq!(pieces.strip(0, 3), 1);
        assert_eq!(pieces.get(1..2)[0].len(), 1);
    }

    #[test]
    fn a_ring_area_may_not_cross_regions() {
        let memory = Memory::default().with(spec(0, 0x1000, 0), file(0x1000)).expect("good");
        let memory = memory.with(spec(0x1000, 0x1000, 0), file(0x1000)).expect("good");
        assert!(memory.at_vmm(0x1000_0ff0, 16).is_some());
        assert!(memory.at_vmm(0x1000_0ff0, 17).is_none());
        assert!(memory.at_vmm(0x0fff_ffff, 2).is_none());
        assert!(memory.at_vmm(u64::MAX, 2).is_none());
    }

    #[test]
    fn an_offset_needs_no_alignment() {
        let file = file(0x3000);
        std::os::unix::fs::FileExt::write_all_at(&file, b"here", 0x1234).expect("write");
        let memory = Memory::default().with(spec(0, 0x1000, 0x1234), file).expect("good");
        let mut bytes = [0; 4];
        memory.read(0, &mut bytes, &mut 0).expect("mapped");
        assert_eq!(&bytes, b"here");
    }
}
