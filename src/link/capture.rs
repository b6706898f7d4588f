//! Captures: a link around a link that writes every frame to a pcap file, and a line for it to the
//! log with `--trace`. Both in one, and around the link, so that whoever wants neither pays nothing.
//!
//! Frames from the guest are recorded as they arrive, before anyone has checked them; frames to
//! the guest when they are committed. Partial checksums are completed in the record, segmented
//! frames are recorded as they are sent. Of protocols it knows the internet checksum (`trace.rs`
//! knows the others), and no clock: the time comes from a function that it is given.

use super::trace;
use super::{Control, Frame, LinkCaps, LinkEvents, MAX_FRAME, Offload, Parts, Refused};
use super::{Sink, Slot, Source};
use crate::span::{SpanMut, gather};
use crate::sys::error_text;
use crate::token::Readiness;
use crate::wire::checksum::Sum;
use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::rc::Rc;

/// Bytes of a frame that are kept at most (`snaplen`).
const SNAPLEN: usize = 65_535;

/// Bytes of the header of a record.
const RECORD: usize = 16;

/// Link type of Ethernet.
const LINKTYPE_ETHERNET: u32 = 1;

/// `csum_offset` of UDP, whose checksum is never sent as 0 (RFC 768).
const UDP_CHECKSUM: u16 = 6;

/// The time of day: seconds since 1970 and microseconds.
pub type Clock = Box<dyn Fn() -> (u64, u32)>;

/// A link that records its frames: another link's control and halves, with a recorder around
/// each half.
pub type Capture<C> = Parts<CaptureControl<C>>;

impl<C: Control> Capture<C> {
    /// Records all frames of `link` into `file`, which has been [begun](begin). What cannot be
    /// written is counted, and told once.
    pub fn new(link: Parts<C>, file: File, clock: Clock) -> Self {
        Self::around(link, Some(Pcap::new(file, clock)))
    }

    /// Only writes lines to the log.
    pub fn into_log(link: Parts<C>) -> Self {
        Self::around(link, None)
    }

    fn around(link: Parts<C>, pcap: Option<Pcap>) -> Self {
        let recorder = Rc::new(RefCell::new(Recorder { pcap }));
        let Parts { control, source, sink } = link;
        Self {
            control: CaptureControl(control),
            source: CaptureSource { inner: source, recorder: Rc::clone(&recorder) },
            sink: CaptureSink { inner: sink, recorder },
        }
    }
}

/// Makes a capture of `file` in which no frame is yet: what is in it is gone.
///
/// # Errors
/// Whatever ftruncate(2) and write(2) say; ENOSPC on a full disk.
pub fn begin(mut file: &File) -> io::Result<()> {
    // Pipes have nothing to cut off.
    if file.metadata()?.is_file() {
        file.set_len(0)?;
        file.rewind()?;
    }
    let mut header = Vec::with_capacity(24);
    header.extend(0xa1b2_c3d4u32.to_ne_bytes());
    header.extend(2u16.to_ne_bytes());
    header.extend(4u16.to_ne_bytes());
    header.extend([0; 8]); // time zone, accuracy
    header.extend((SNAPLEN as u32).to_ne_bytes());
    header.extend(LINKTYPE_ETHERNET.to_ne_bytes());
    file.write_all(&header)
}

/// The control of a link whose halves are recorded.
#[derive(Debug)]
pub struct CaptureControl<C>(C);

impl<C: Control> Control for CaptureControl<C> {
    type Source = CaptureSource<C::Source>;
    type Sink = CaptureSink<C::Sink>;

    fn on_event(
        &mut self,
        source: &mut Self::Source,
        sink: &mut Self::Sink,
        which: u32,
        ready: Readiness,
    ) -> io::Result<LinkEvents> {
        self.0.on_event(&mut source.inner, &mut sink.inner, which, ready)
    }

    fn counters(
        &self,
        source: &Self::Source,
        sink: &Self::Sink,
        tell: &mut dyn FnMut(&'static str, u64),
    ) {
        self.0.counters(&source.inner, &sink.inner, tell);
        if let Some(pcap) = &sink.recorder.borrow().pcap {
            tell("frames not captured", pcap.lost);
        }
    }
}

/// Frames from the guest, recorded on arrival.
#[derive(Debug)]
pub struct CaptureSource<S> {
    inner: S,
    recorder: Rc<RefCell<Recorder>>,
}

impl<S: Source> Source for CaptureSource<S> {
    fn receive(&mut self) -> io::Result<usize> {
        let frames = self.inner.receive()?;
        let mut recorder = self.recorder.borrow_mut();
        for index in 0..frames {
            let frame = self.inner.frame(index);
            let read = |into: &mut [u8]| gather(frame.spans, 0, into);
            recorder.record("from", frame.len, &frame.offload, read);
        }
        Ok(frames)
    }

    fn frame(&self, index: usize) -> Frame<'_> {
        self.inner.frame(index)
    }

    fn release(&mut self) {
        self.inner.release();
    }

    fn signal(&mut self, may_wait: bool) -> bool {
        self.inner.signal(may_wait)
    }
}

/// Frames to the guest, recorded when committed.
#[derive(Debug)]
pub struct CaptureSink<S> {
    inner: S,
    recorder: Rc<RefCell<Recorder>>,
}

impl<S: Sink> Sink for CaptureSink<S> {
    fn caps(&self) -> LinkCaps {
        self.inner.caps()
    }

    fn reserve(&mut self, len: usize) -> Result<Slot, Refused> {
        self.inner.reserve(len)
    }

    fn room<'a>(&'a self, slot: &Slot, skip: usize, out: &mut Vec<SpanMut<'a>>) {
        self.inner.room(slot, skip, out);
    }

    fn write(&mut self, slot: &Slot, offset: usize, bytes: &[u8]) {
        self.inner.write(slot, offset, bytes);
    }

    fn read(&self, slot: &Slot, offset: usize, into: &mut [u8]) -> usize {
        self.inner.read(slot, offset, into)
    }

    fn bytes(&mut self, slot: &Slot, offset: usize, len: usize) -> Option<&[u8]> {
        self.inner.bytes(slot, offset, len)
    }

    fn commit(&mut self, slot: Slot, len: usize, offload: Offload) {
        let inner = &self.inner;
        let read = |into: &mut [u8]| inner.read(&slot, 0, into);
        self.recorder.borrow_mut().record("to", len, &offload, read);
        self.inner.commit(slot, len, offload);
    }

    fn cancel(&mut self, slot: Slot) {
        self.inner.cancel(slot);
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }

    fn has_signalled(&self) -> bool {
        self.inner.has_signalled()
    }
}

/// Where frames are recorded.
#[derive(Debug)]
struct Recorder {
    pcap: Option<Pcap>,
}

impl Recorder {
    /// Records a frame of `len` bytes from or to the guest, of which `read` fetches as many as
    /// there are.
    fn record(
        &mut self,
        direction: &str,
        len: usize,
        offload: &Offload,
        read: impl Fn(&mut [u8]) -> usize,
    ) {
        if log::log_enabled!(log::Level::Trace) {
            let mut bytes = [0; trace::LOOKED_AT];
            let room = bytes.get_mut(..len.min(trace::LOOKED_AT)).unwrap_or_default();
            let n = read(room);
            let bytes = room.get(..n).unwrap_or_default();
            log::trace!("{direction} guest: {}", trace::InWords { bytes, len });
        }
        if let Some(pcap) = &mut self.pcap {
            pcap.record(len, offload, read);
        }
    }
}

/// The file.
struct Pcap {
    file: File,
    clock: Clock,
    /// Header and frame of the latest record.
    record: Vec<u8>,
    /// How much of it is written. Nothing can follow a record that is there in part: a pipe whose
    /// reader is slow, or a full disk, has to take the rest first.
    written: usize,
    lost: u64,
}

impl fmt::Debug for Pcap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pcap").field("file", &self.file).field("lost", &self.lost).finish()
    }
}

impl Pcap {
    fn new(file: File, clock: Clock) -> Self {
        Self { file, clock, record: Vec::new(), written: 0, lost: 0 }
    }

    /// Records a frame of `len` bytes, of which `read` fetches as many as there are.
    fn record(&mut self, len: usize, offload: &Offload, read: impl FnOnce(&mut [u8]) -> usize) {
        if self.written < self.record.len()
            && let Err(e) = self.write()
        {
            return self.lose(&e);
        }
        self.record.clear();
        self.record.resize(RECORD + len.min(MAX_FRAME), 0);
        let (seconds, micros) = (self.clock)();
        let Some((header, frame)) = self.record.split_at_mut_checked(RECORD) else { return };
        let kept = read(frame).min(len);
        if let Some(frame) = frame.get_mut(..kept) {
            complete(frame, offload);
        }
        let kept = kept.min(SNAPLEN);
        // A frame that was cut short says so: the last number is its true length. Seconds have 32
        // bits in this format.
        let words = [seconds as u32, micros, kept as u32, len as u32];
        for (place, word) in header.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        self.record.truncate(RECORD + kept);
        self.written = 0;
        if let Err(e) = self.write()
            && self.written == 0
        {
            self.record.clear();
            self.lose(&e);
        }
    }

    /// Writes what is left of the record, with one system call where the file takes it.
    fn write(&mut self) -> io::Result<()> {
        while let Some(rest) = self.record.get(self.written..).filter(|rest| !rest.is_empty()) {
            match self.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.written += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn lose(&mut self, why: &io::Error) {
        if self.lost == 0 {
            log::warn!("The capture loses frames: {}", error_text(why));
        }
        self.lost += 1;
    }
}

/// Completes a partial checksum, if the frame has one.
fn complete(frame: &mut [u8], offload: &Offload) {
    let Some(partial) = offload.checksum else { return };
    let Some(summed) = frame.get_mut(usize::from(partial.start)..) else { return };
    let mut sum = Sum::new();
    sum.add_bytes(summed);
    let value = if partial.offset == UDP_CHECKSUM { sum.finish_udp() } else { sum.finish() };
    let at = usize::from(partial.offset);
    if let Some(field) = summed.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
