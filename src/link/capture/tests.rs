use super::*;
use crate::link::{Link, PartialChecksum};
use crate::span::Span;
use std::io::Read as _;

#[derive(Debug)]
struct Held {
    bytes: &'static [u8],
    spans: [Span<'static>; 1],
    offload: Offload,
}

impl Source for Held {
    fn receive(&mut self) -> io::Result<usize> {
        Ok(1)
    }
    fn frame(&self, _: usize) -> Frame<'_> {
        Frame { spans: &self.spans, len: self.bytes.len(), offload: self.offload }
    }
    fn release(&mut self) {}
}

#[derive(Debug, Default)]
struct Buffer(Vec<u8>);

impl Sink for Buffer {
    fn caps(&self) -> LinkCaps {
        LinkCaps { checksum: true, ..LinkCaps::default() }
    }
    fn reserve(&mut self, len: usize) -> Result<Slot, Refused> {
        self.0 = vec![0; len];
        Ok(Slot { index: 0 })
    }
    fn room<'a>(&'a self, _: &Slot, _: usize, _: &mut Vec<SpanMut<'a>>) {}
    fn write(&mut self, _: &Slot, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    fn read(&self, _: &Slot, offset: usize, into: &mut [u8]) -> usize {
        into.copy_from_slice(&self.0[offset..offset + into.len()]);
        into.len()
    }
    fn commit(&mut self, _: Slot, _: usize, _: Offload) {}
    fn cancel(&mut self, _: Slot) {}
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Nothing;

impl Control for Nothing {
    type Source = Held;
    type Sink = Buffer;

    fn on_event(
        &mut self,
        _: &mut Held,
        _: &mut Buffer,
        _: u32,
        _: Readiness,
    ) -> io::Result<LinkEvents> {
        Ok(LinkEvents { room: true, ..LinkEvents::default() })
    }
}

/// A link of one frame from the guest, and room for one to it.
fn one(frame: Vec<u8>, offload: Offload) -> Parts<Nothing> {
    let bytes: &'static [u8] = frame.leak();
    let source = Held { bytes, spans: [Span::from_slice(bytes)], offload };
    Parts { control: Nothing, source, sink: Buffer::default() }
}

/// Frames that the link says were not captured.
fn lost(link: &impl Link) -> u64 {
    let mut lost = None;
    link.counters(&mut |name, value| {
        if name == "frames not captured" {
            lost = Some(value);
        }
    });
    lost.expect("it is counted")
}

fn memory_file() -> (File, File) {
    let name = c"pcap";
    let fd = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::empty());
    let file = File::from(fd.expect("memfd"));
    (file.try_clone().expect("dup"), file)
}

fn contents(mut file: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().expect("seek");
    file.read_to_end(&mut bytes).expect("read");
    bytes
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|w| u32::from_ne_bytes(w.try_into().expect("u32"))).collect()
}

const UDP: Offload = Offload {
    checksum: Some(PartialChecksum { start: 34, offset: UDP_CHECKSUM }),
    segmentation: None,
};

#[test]
fn frames_of_both_directions_are_recorded_with_complete_checksums() {
    // 8 bytes of UDP whose checksum field holds a partial sum that completes to 0.
    let mut frame = vec![0; 42];
    frame[34..].copy_from_slice(&[0xff, 0xff, 0, 0, 0, 0, 0, 0]);
    let (file, ours) = memory_file();
    begin(&file).expect("memory");
    let link = one(frame.clone(), UDP);
    let mut link = Capture::new(link, file, Box::new(|| (7, 8)));
    assert!(link.on_event(0, Readiness::default()).expect("event").room);
    let (source, sink) = link.halves();
    assert_eq!(source.receive().expect("frames"), 1);
    assert_eq!(source.frame(0).len, 42);
    source.release();
    assert!(sink.caps().checksum);
    let slot = sink.reserve(60).expect("room");
    sink.write(&slot, 0, &[0xab; 60]);
    sink.commit(slot, 50, Offload::default());
    sink.flush().expect("flush");
    let bytes = contents(ours);
    assert_eq!(words(&bytes[..24]), [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1]);
    assert_eq!(words(&bytes[24..40]), [7, 8, 42, 42]);
    frame[40..].copy_from_slice(&[0xff, 0xff]);
    assert_eq!(bytes[40..82], frame);
    assert_eq!(words(&bytes[82..98]), [7, 8, 50, 50]);
    assert_eq!(bytes[98..], [0xab; 50]);
    assert_eq!(lost(&link), 0);
}

#[test]
fn long_frames_are_cut_and_impossible_checksums_left_alone() {
    let (file, ours) = memory_file();
    begin(&file).expect("memory");
    let checksum = Some(PartialChecksum { start: 65_534, offset: 65_535 });
    let offload = Offload { checksum, segmentation: None };
    let link = one(vec![1; MAX_FRAME], offload);
    let mut link = Capture::new(link, file, Box::new(|| (7, 8)));
    link.halves().0.receive().expect("frames");
    let bytes = contents(ours);
    assert_eq!(words(&bytes[24..40]), [7, 8, 65_535, MAX_FRAME as u32]);
    assert_eq!(bytes.len(), 40 + 65_535);
}

#[test]
fn a_full_disk_loses_records_and_nothing_else() {
    let full = || File::options().write(true).open("/dev/full").expect("/dev/full");
    assert_eq!(begin(&full()).map_err(|e| e.raw_os_error()), Err(Some(libc::ENOSPC)));
    let link = one(vec![1; 60], Offload::default());
    let mut link = Capture::new(link, full(), Box::new(|| (0, 0)));
    assert_eq!(link.halves().0.receive().expect("frames"), 1);
    assert_eq!(lost(&link), 1);
}

#[test]
fn what_was_in_the_file_is_gone() {
    let (mut file, ours) = memory_file();
    file.write_all(&[1; 99]).expect("memory");
    begin(&file).expect("memory");
    assert_eq!(contents(ours).len(), 24);
}

#[test]
fn a_slow_reader_of_a_pipe_gets_whole_records_and_those_between_are_lost() {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).expect("pipe");
    let (mut read, write) = (File::from(read), File::from(write));
    let room =
        nix::fcntl::fcntl(&write, nix::fcntl::FcntlArg::F_GETPIPE_SZ).expect("pipe") as usize;
    let len = room - 4096;
    let record = RECORD + len;
    let mut link = Capture::new(one(vec![1; len], Offload::default()), write, Box::new(|| (7, 8)));
    let (source, _) = link.halves();
    // The first fits, the second in part, and the third not at all.
    for _ in 0..3 {
        source.receive().expect("frames");
    }
    assert_eq!(lost(&link), 1);
    let mut bytes = vec![0; 3 * record];
    let mut n = read.read(&mut bytes).expect("pipe");
    assert!(n > record && n < 2 * record, "{n}");
    // There is room for what is left of the second, and for the fourth in part.
    link.halves().0.receive().expect("frames");
    n += read.read(&mut bytes[n..]).expect("pipe");
    assert!(n > 2 * record, "{n}");
    // And for the rest of the fourth.
    link.halves().0.receive().expect("frames");
    n += read.read(&mut bytes[n..]).expect("pipe");
    assert_eq!(n, 3 * record);
    for n in 0..3 {
        let at = n * record;
        assert_eq!(words(&bytes[at..at + 16]), [7, 8, len as u32, len as u32], "record {n}");
    }
    assert_eq!(lost(&link), 1);
}
