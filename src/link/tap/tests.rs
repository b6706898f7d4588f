//! The link on a pair of datagram sockets, which keep frames apart as a tap does. What only the
//! kernel's tap does is in `tests/tap_link.rs`.

use super::*;
use crate::link::{Link, PartialChecksum, Segmentation, SegmentationKind};
use crate::span::gather;
use crate::sys::epoll::Events;
use crate::time::Duration;
use proptest::prelude::*;
use std::os::unix::net::UnixDatagram;

const EVERYTHING: LinkCaps = LinkCaps {
    checksum: true,
    tcp4_segmentation: true,
    tcp6_segmentation: true,
    udp4_segmentation: true,
    udp6_segmentation: true,
    max_frame: MAX_FRAME,
};

/// A link and the kernel's end of it, in one thread.
struct Rig {
    link: TapLink,
    epoll: Rc<Epoll>,
    kernel: UnixDatagram,
}

impl Rig {
    fn new(offloads: Option<LinkCaps>) -> Self {
        let (ours, kernel) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        kernel.set_nonblocking(true).unwrap();
        let epoll = Rc::new(Epoll::new().unwrap());
        let tap = Tap { fd: ours.into(), name: c"test".to_owned(), offloads };
        let link = TapLink::new(tap, Rc::clone(&epoll)).unwrap();
        Self { link, epoll, kernel }
    }

    /// As [`Rig::new`], with the interface found up.
    fn up(offloads: Option<LinkCaps>) -> Self {
        let mut rig = Self::new(offloads);
        let news = rig.turn().unwrap();
        assert!(news.up && news.room && !news.frames && !news.ended);
        rig
    }

    /// What the next event says; `None` if there is no event.
    fn turn(&mut self) -> Option<LinkEvents> {
        let mut events = Events::with_capacity(8);
        self.epoll.wait(&mut events, Some(Duration::ZERO)).unwrap();
        let (token, ready) = events.iter().next()?;
        let Token::Link(which) = token else { panic!("{token:?}") };
        Some(self.link.on_event(which, ready).unwrap())
    }

    /// All frames that wait, and what was said about them.
    fn frames(&mut self) -> Vec<(Vec<u8>, Offload)> {
        let (source, mut frames) = (&mut self.link.source, Vec::new());
        loop {
            let n = source.receive().unwrap();
            for index in 0..n {
                let frame = source.frame(index);
                let mut bytes = vec![0; frame.len];
                assert_eq!(gather(frame.spans, 0, &mut bytes), frame.len);
                frames.push((bytes, frame.offload));
            }
            source.release();
            if n == 0 {
                return frames;
            }
        }
    }

    fn put(&mut self, frame: &[u8], offload: Offload) -> Result<(), Refused> {
        let sink = &mut self.link.sink;
        let slot = sink.reserve(frame.len())?;
        sink.write(&slot, 0, frame);
        sink.commit(slot, frame.len(), offload);
        Ok(())
    }

    /// What the kernel has got.
    fn taken(&self) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; LARGEST];
        let next = || {
            let n = self.kernel.recv(&mut buffer).ok()?;
            Some(buffer[..n].to_vec())
        };
        std::iter::from_fn(next).collect()
    }
}

const SEGMENTED: Offload = Offload {
    checksum: Some(PartialChecksum { start: 34, offset: 16 }),
    segmentation: Some(Segmentation { kind: SegmentationKind::Tcp4, size: 1448, header_len: 66 }),
};
/// `SEGMENTED` as the kernel writes it.
const HEADER: [u8; 10] = [1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0];

#[test]
fn frames_pass_with_their_headers_both_ways() {
    let mut rig = Rig::up(Some(EVERYTHING));
    rig.kernel.send(&[&HEADER[..], &[7; 3000]].concat()).unwrap();
    rig.kernel.send(&[0; 10 + 14]).unwrap();
    assert!(rig.turn().unwrap().frames);
    let plain = (vec![0; 14], Offload::default());
    assert_eq!(rig.frames(), [(vec![7; 3000], SEGMENTED), plain]);
    assert_eq!(rig.turn(), None, "nothing is left to do");

    assert!(rig.link.sink.caps().tcp4_segmentation);
    rig.put(&[9; 3000], SEGMENTED).unwrap();
    rig.put(&[8; 14], Offload::default()).unwrap();
    assert!(rig.taken().is_empty());
    rig.link.sink.flush().unwrap();
    assert_eq!(
        rig.taken(),
        [[&HEADER[..], &[9; 3000]].concat(), [[0; 10].as_slice(), &[8; 14]].concat()]
    );
}

#[test]
fn plain_frames_have_nothing_in_front_and_are_not_padded() {
    let mut rig = Rig::up(None);
    rig.kernel.send(&[7; 42]).unwrap();
    rig.kernel.send(&[7; 13]).unwrap();
    assert_eq!(rig.frames(), [(vec![7; 42], Offload::default())]);
    assert_eq!(rig.link.stats().short_frames, 1);
    assert_eq!(rig.link.sink.caps(), LinkCaps { max_frame: MAX_FRAME, ..LinkCaps::default() });
    rig.put(&[9; 42], SEGMENTED).unwrap();
    rig.link.sink.flush().unwrap();
    assert_eq!(rig.taken(), [vec![9; 42]]);
}

#[test]
fn bad_frames_are_counted_and_those_behind_them_pass() {
    let mut rig = Rig::up(Some(LinkCaps { tcp4_segmentation: false, ..EVERYTHING }));
    let zeros = [0; LARGEST];
    rig.kernel.send(&[&HEADER[..], &[7; 3000]].concat()).unwrap();
    rig.kernel.send(&zeros[..23]).unwrap();
    rig.kernel.send(&zeros).unwrap();
    rig.kernel.send(&zeros[..LARGEST - 1]).unwrap();
    let largest = (vec![0; MAX_FRAME], Offload::default());
    assert_eq!(rig.frames(), [largest]);
    let counted = Stats { short_frames: 1, long_frames: 1, bad_offloads: 1, lost_frames: 0 };
    assert_eq!(rig.link.stats(), counted);
}

#[test]
fn what_the_kernel_refuses_is_kept_and_tried_again() {
    let mut rig = Rig::up(Some(EVERYTHING));
    let mut sent = 0u32;
    let refused = loop {
        let frame = [&sent.to_be_bytes()[..], &[0; 5000]].concat();
        match rig.put(&frame, Offload::default()) {
            Ok(()) => sent += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, Refused::Full);
    assert_eq!(rig.turn(), None, "no event before there is room");
    let mut taken = Vec::new();
    while (taken.len() as u32) < sent {
        taken.extend(rig.taken());
        assert!(rig.turn().is_some() || taken.len() as u32 == sent);
    }
    let numbers: Vec<_> =
        taken.iter().map(|frame| u32::from_be_bytes(frame[10..14].try_into().unwrap())).collect();
    assert_eq!(numbers, (0..sent).collect::<Vec<_>>());
    while rig.turn().is_some() {}
    assert!(!rig.link.sink.watch.room.get(), "room is watched no longer");
    rig.put(&[1; 60], Offload::default()).unwrap();
}

#[test]
fn a_tap_that_is_gone_takes_and_gives_nothing() {
    let Rig { mut link, kernel, .. } = Rig::up(None);
    drop(kernel);
    let (source, sink) = link.halves();
    source.watch.end("read", &io::Error::from_raw_os_error(libc::EBADFD));
    assert_eq!(source.receive().unwrap(), 0);
    assert_eq!(sink.reserve(60).unwrap_err(), Refused::Down);
    let news = link.on_event(TAP, Readiness { readable: true, ..Readiness::default() }).unwrap();
    assert!(news.ended);
}

#[test]
fn nothing_goes_to_an_interface_that_is_not_up_yet() {
    let mut rig = Rig::new(None);
    assert_eq!(rig.put(&[1; 60], Offload::default()), Err(Refused::Down));
    assert!(rig.turn().unwrap().up);
    rig.put(&[1; 60], Offload::default()).unwrap();
    rig.link.sink.on_refused(&io::Error::from_raw_os_error(libc::EIO));
    assert_eq!(rig.put(&[2; 60], Offload::default()), Err(Refused::Down));
    rig.link.sink.flush().unwrap();
    assert!(rig.taken().is_empty());
    let news = rig.turn().unwrap();
    assert!(news.up && news.room);
    assert_eq!(rig.taken(), [[1; 60]], "it was kept");
}

#[test]
fn a_kernel_without_memory_is_asked_again_but_not_for_ever() {
    let mut rig = Rig::up(None);
    rig.put(&[1; 60], Offload::default()).unwrap();
    rig.put(&[2; 60], Offload::default()).unwrap();
    let sink = &mut rig.link.sink;
    for _ in 0..=TRIES {
        assert_eq!(sink.lost_frames, 0);
        sink.blocked = false;
        sink.on_refused(&io::Error::from_raw_os_error(libc::ENOBUFS));
    }
    assert_eq!(sink.lost_frames, 1);
    sink.on_refused(&io::Error::from_raw_os_error(libc::EINVAL));
    assert_eq!((sink.lost_frames, sink.arena.load()), (2, 0));
}

proptest! {
    #[test]
    fn whatever_comes_is_a_frame_or_counted(
        frames in prop::collection::vec(
            prop::collection::vec(any::<u8>(), 0..80).prop_map(|mut bytes| {
                // Flags and types that mean something are more likely than others.
                bytes.iter_mut().take(2).for_each(|byte| *byte &= 0x87);
                bytes
            }),
            0..40,
        ),
        headers: bool,
    ) {
        let mut rig = Rig::up(headers.then_some(EVERYTHING));
        let mut good = Vec::new();
        for frame in &frames {
            // An empty datagram is the end of a file elsewhere; here it is a short frame.
            rig.kernel.send(frame).unwrap();
            let split = if headers { 10 } else { 0 };
            if let Some((header, rest)) = frame.split_at_checked(split).filter(|(_, r)| r.len() >= 14) {
                let offload = header.first_chunk().map(|h| virtio::parse(h, &EVERYTHING));
                good.extend(offload.unwrap_or_else(|| Some(Offload::default())).map(|o| (rest.to_vec(), o)));
            }
            let seen = rig.frames();
            prop_assert_eq!(seen, std::mem::take(&mut good));
        }
        let Stats { short_frames, long_frames, bad_offloads, lost_frames } = rig.link.stats();
        prop_assert!(short_frames + bad_offloads <= frames.len() as u64);
        prop_assert_eq!((long_frames, lost_frames), (0, 0));
    }
}
