//! Spans: memory that someone else may write while we look at it.
//!
//! UNSAFETY: this module turns raw addresses into [`Span`] and [`SpanMut`] and copies in and out of
//! them. It promises that no Rust reference to such memory ever exists: a guest writes to its
//! memory whenever it likes, and a reference would make that undefined behaviour. Everything here
//! copies with `ptr::copy_nonoverlapping` on raw pointers, byte by byte as far as the meaning
//! goes; torn values are the reader's business: copy once, look at the copy only.
//!
//! It knows nothing of guests, rings or sockets.
#![allow(unsafe_code, reason = "raw memory is this module's subject; see UNSAFETY above")]

use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;

/// Bytes that may be read, and may change while we read them. The layout is that of `struct iovec`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Span<'a> {
    base: *const u8,
    len: usize,
    memory: PhantomData<&'a ()>,
}

/// Bytes that may be written, and may change meanwhile. The layout is that of `struct iovec`.
///
/// Two `SpanMut` may name the same bytes (a hostile guest may hand out one buffer twice): that is
/// a race of bytes, never of references.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SpanMut<'a> {
    base: *mut u8,
    len: usize,
    memory: PhantomData<&'a ()>,
}

impl<'a> Span<'a> {
    /// A span over our own memory.
    pub const fn from_slice(bytes: &'a [u8]) -> Self {
        Self { base: bytes.as_ptr(), len: bytes.len(), memory: PhantomData }
    }

    /// A span over `len` bytes at `base`.
    ///
    /// # Safety
    /// The bytes must stay mapped and readable for `'a`.
    pub const unsafe fn from_raw(base: *const u8, len: usize) -> Self {
        Self { base, len, memory: PhantomData }
    }

    /// Number of bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of the first byte, for system calls.
    pub const fn as_ptr(&self) -> *const u8 {
        self.base
    }

    /// The span without its first `n` bytes; empty when there are fewer.
    pub fn skip(self, n: usize) -> Self {
        let n = n.min(self.len);
        // SAFETY: `n <= len`, so the result stays inside (or one past) the same mapping.
        Self { base: unsafe { self.base.add(n) }, len: self.len - n, memory: PhantomData }
    }

    /// The first `n` bytes; all of it when there are fewer.
    pub fn take(self, n: usize) -> Self {
        Self { len: n.min(self.len), ..self }
    }

    /// Copies from `offset` into `into`; returns how many bytes there were.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> usize {
        let from = self.skip(offset);
        let n = from.len.min(into.len());
        // SAFETY: `from` is mapped for `n` bytes (constructor's promise); `into` is ours and so
        // cannot overlap memory that was handed out as foreign, or is a distinct slice of ours.
        unsafe { std::ptr::copy_nonoverlapping(from.base, into.as_mut_ptr(), n) };
        n
    }
}

impl<'a> SpanMut<'a> {
    /// A span over our own memory.
    pub const fn from_slice(bytes: &'a mut [u8]) -> Self {
        Self { base: bytes.as_mut_ptr(), len: bytes.len(), memory: PhantomData }
    }

    /// A span over `len` bytes at `base`.
    ///
    /// # Safety
    /// The bytes must stay mapped, readable and writable for `'a`.
    pub const unsafe fn from_raw(base: *mut u8, len: usize) -> Self {
        Self { base, len, memory: PhantomData }
    }

    /// Number of bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of the first byte, for system calls.
    pub const fn as_mut_ptr(&self) -> *mut u8 {
        self.base
    }

    /// The span without its first `n` bytes; empty when there are fewer.
    pub fn skip(self, n: usize) -> Self {
        let n = n.min(self.len);
        // SAFETY: `n <= len`, so the result stays inside (or one past) the same mapping.
        Self { base: unsafe { self.base.add(n) }, len: self.len - n, memory: PhantomData }
    }

    /// The first `n` bytes; all of it when there are fewer.
    pub fn take(self, n: usize) -> Self {
        Self { len: n.min(self.len), ..self }
    }

    /// The same bytes, to be read.
    pub const fn as_span(&self) -> Span<'a> {
        Span { base: self.base, len: self.len, memory: PhantomData }
    }

    /// Copies `bytes` to `offset`; returns how many bytes there was room for.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> usize {
        let to = self.skip(offset);
        let n = to.len.min(bytes.len());
        // SAFETY: `to` is mapped for `n` bytes (constructor's promise) and `bytes` is ours.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.base, n) };
        n
    }
}

impl fmt::Debug for Span<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Span({} B)", self.len)
    }
}

impl fmt::Debug for SpanMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpanMut({} B)", self.len)
    }
}

/// Memory of our own that is shared by way of spans, as a guest's is: system calls fill it and
/// read it while it is borrowed.
///
/// It can keep a table of spans into itself, for those who must show many at once.
pub struct Buffer {
    base: NonNull<u8>,
    len: usize,
    /// `'static` is not true: they are good for as long as the memory is, and so are handed out
    /// only for as long as `self` is borrowed.
    marked: Vec<Span<'static>>,
}

impl Buffer {
    /// `len` bytes of zero. The system finds memory for them when they are first touched.
    pub fn new(len: usize) -> Self {
        let bytes = Box::leak(vec![0; len].into_boxed_slice());
        Self { base: NonNull::from(bytes).cast(), len, marked: Vec::new() }
    }

    /// Number of bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The `len` bytes from `from` on, as far as they exist.
    pub fn span(&self, from: usize, len: usize) -> Span<'_> {
        self.span_mut(from, len).as_span()
    }

    /// The `len` bytes from `from` on, as far as they exist, to be written.
    pub fn span_mut(&self, from: usize, len: usize) -> SpanMut<'_> {
        let whole = SpanMut { base: self.base.as_ptr(), len: self.len, memory: PhantomData };
        whole.skip(from).take(len)
    }

    /// All bytes, while no span of them is in use.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes that `new` initialised and only `drop` frees. Spans that were handed
        // out borrow `self`, so there are none now; those in `marked` are only addresses.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }

    /// Enters the `len` bytes from `from` on into the table.
    pub fn mark(&mut self, from: usize, len: usize) {
        let Span { base, len, .. } = self.span(from, len);
        self.marked.push(Span { base, len, memory: PhantomData });
    }

    /// The table.
    pub fn marked(&self) -> &[Span<'_>] {
        &self.marked
    }

    /// Empties the table.
    pub fn unmark(&mut self) {
        self.marked.clear();
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: `new` has leaked just this box; nothing borrows `self` any more.
        drop(unsafe { Box::from_raw(NonNull::slice_from_raw_parts(self.base, self.len).as_ptr()) });
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} B)", self.len)
    }
}

/// Total bytes of `spans`.
pub fn total(spans: &[Span<'_>]) -> usize {
    spans.iter().map(Span::len).sum()
}

/// Total bytes of `spans`.
pub fn total_mut(spans: &[SpanMut<'_>]) -> usize {
    spans.iter().map(SpanMut::len).sum()
}

/// Copies from `offset` of a scattered run of bytes into `into`; returns how many there were.
pub fn gather(spans: &[Span<'_>], mut offset: usize, into: &mut [u8]) -> usize {
    let mut done = 0;
    for span in spans {
        if done == into.len() {
            break;
        }
        if offset >= span.len() {
            offset -= span.len();
            continue;
        }
        done += span.read(offset, &mut into[done..]);
        offset = 0;
    }
    done
}

/// Copies `bytes` to `offset` of a scattered run of bytes; returns how many there was room for.
pub fn scatter(spans: &[SpanMut<'_>], mut offset: usize, bytes: &[u8]) -> usize {
    let mut done = 0;
    for span in spans {
        if done == bytes.len() {
            break;
        }
        if offset >= span.len() {
            offset -= span.len();
            continue;
        }
        done += span.write(offset, &bytes[done..]);
        offset = 0;
    }
    done
}

/// Appends to `out` the parts of `spans` that cover bytes `from..from + len`.
pub fn slice_into<'a>(
    spans: &[Span<'a>],
    mut from: usize,
    mut len: usize,
    out: &mut Vec<Span<'a>>,
) {
    for span in spans {
        if len == 0 {
            break;
        }
        let part = span.skip(from).take(len);
        from = from.saturating_sub(span.len());
        len -= part.len();
        if !part.is_empty() {
            out.push(part);
        }
    }
}

/// Empties `spans` and gives its allocation to spans of another lifetime.
pub fn recycle<'b>(mut spans: Vec<Span<'_>>) -> Vec<Span<'b>> {
    spans.clear();
    // The standard library collects in place when source and target have one layout, so this
    // keeps the allocation; the closure never runs, for the vector is empty.
    spans.into_iter().map(|_| Span::from_slice(&[])).collect()
}

/// As [`recycle`], for writable spans.
pub fn recycle_mut<'b>(mut spans: Vec<SpanMut<'_>>) -> Vec<SpanMut<'b>> {
    spans.clear();
    spans.into_iter().map(|_| SpanMut::from_slice(&mut [])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gather_and_scatter_cross_borders() {
        let (mut a, mut b, mut c) = ([0u8; 3], [0u8; 0], [0u8; 4]);
        let room =
            [SpanMut::from_slice(&mut a), SpanMut::from_slice(&mut b), SpanMut::from_slice(&mut c)];
        assert_eq!(scatter(&room, 1, b"xyzuvwq"), 6);
        let spans: Vec<_> = room.iter().map(SpanMut::as_span).collect();
        let mut out = [0; 8];
        assert_eq!(gather(&spans, 0, &mut out), 7);
        assert_eq!(&out[..7], b"\0xyzuvw");
        assert_eq!(gather(&spans, 6, &mut out), 1);
        assert_eq!(gather(&spans, 7, &mut out), 0);
        let mut parts = Vec::new();
        slice_into(&spans, 2, 3, &mut parts);
        assert_eq!(total(&parts), 3);
        assert_eq!(gather(&parts, 0, &mut out), 3);
        assert_eq!(&out[..3], b"yzu");
    }

    #[test]
    fn a_buffer_is_seen_through_its_spans() {
        let mut buffer = Buffer::new(8);
        let (a, b) = (buffer.span_mut(0, 4), buffer.span_mut(2, 99));
        assert_eq!((a.write(0, b"abcd"), b.write(0, b"xyzuvwq")), (4, 6));
        assert_eq!((buffer.span(9, 1).len(), buffer.len()), (0, 8));
        buffer.mark(1, 2);
        buffer.mark(7, 2);
        buffer.bytes()[1] = b'B';
        let lens: Vec<_> = buffer.marked().iter().map(Span::len).collect();
        let mut out = [0; 3];
        assert_eq!((gather(buffer.marked(), 0, &mut out), lens), (3, vec![2, 1]));
        assert_eq!(&out, b"Bxw");
        buffer.unmark();
        assert!(buffer.marked().is_empty());
    }

    #[test]
    fn recycling_keeps_the_allocation() {
        let byte = [0u8];
        let mut spans = Vec::with_capacity(64);
        spans.push(Span::from_slice(&byte));
        let spans = recycle(spans);
        assert!(spans.is_empty() && spans.capacity() == 64);
    }
}
