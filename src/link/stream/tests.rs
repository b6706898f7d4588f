use super::*;
use crate::link::Link;
use crate::sys::epoll::Events;
use crate::time::Duration;
use proptest::prelude::*;
use std::io::{Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};

/// A link and what it has said so far. Clients are in the same thread: whatever they do has
/// happened when the link looks.
struct Rig {
    link: StreamLink,
    epoll: Rc<Epoll>,
    address: Option<SocketAddr>,
    frames: Vec<Vec<u8>>,
    ended: bool,
    ups: usize,
}

impl Rig {
    fn listen(one_off: bool) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("passt-stream-{}-{number}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let epoll = Rc::new(Epoll::new().unwrap());
        let link = StreamLink::listen(listener, one_off, Rc::clone(&epoll)).unwrap();
        Self { link, epoll, address: Some(address), frames: Vec::new(), ended: false, ups: 0 }
    }

    fn connected() -> (Self, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let epoll = Rc::new(Epoll::new().unwrap());
        let link = StreamLink::connected(ours, Rc::clone(&epoll)).unwrap();
        let mut rig = Self { link, epoll, address: None, frames: Vec::new(), ended: false, ups: 0 };
        rig.settle();
        (rig, theirs)
    }

    fn client(&mut self) -> UnixStream {
        let stream = UnixStream::connect_addr(self.address.as_ref().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        self.settle();
        stream
    }

    /// One wake-up, as the runtime does it; whether there was anything to do, and whether the
    /// sink has said that it has room.
    fn turn(&mut self) -> (bool, bool) {
        let mut events = Events::with_capacity(8);
        let n = self.epoll.wait(&mut events, Some(Duration::ZERO)).unwrap();
        let (mut frames, mut room) = (false, false);
        for (token, ready) in events.iter() {
            let Token::Link(which) = token else { panic!("{token:?}") };
            let news = self.link.on_event(which, ready).unwrap();
            frames |= news.frames;
            room |= news.room;
            self.ended |= news.ended;
            self.ups += usize::from(news.up);
        }
        while frames && self.receive() > 0 {}
        self.link.sink.flush().unwrap();
        (n > 0, room)
    }

    fn receive(&mut self) -> usize {
        let source = &mut self.link.source;
        let n = source.receive().unwrap();
        for index in 0..n {
            let frame = source.frame(index);
            let mut bytes = vec![0; frame.len];
            span::gather(frame.spans, 0, &mut bytes);
            self.frames.push(bytes);
        }
        assert_eq!(source.frame(n).len, 0);
        source.release();
        n
    }

    /// Turns until nothing happens any more.
    fn settle(&mut self) {
        for _ in 0..100 {
            if !self.turn().0 {
                return;
            }
        }
        panic!("the link does not come to rest");
    }

    fn said(&mut self) -> Vec<Vec<u8>> {
        self.settle();
        std::mem::take(&mut self.frames)
    }

    /// Commits a frame; why not, if not.
    fn send(&mut self, frame: &[u8]) -> Result<(), Refused> {
        let slot = self.link.sink.reserve(frame.len())?;
        self.link.sink.write(&slot, 0, frame);
        self.link.sink.commit(slot, frame.len(), Offload::default());
        Ok(())
    }

    /// Sends frames until there is no room; returns their bytes on the wire.
    fn send_until_full(&mut self) -> Vec<u8> {
        let mut sent = Vec::new();
        for n in 0.. {
            let frame = some_frame(60 + n * 7919 % 60_000, n);
            match self.send(&frame) {
                Ok(()) => sent.extend(on_wire(&frame)),
                Err(refused) => {
                    assert_eq!(refused, Refused::Full);
                    break;
                }
            }
        }
        sent
    }
}

fn some_frame(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 + seed * 17) as u8).collect()
}

fn on_wire(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

/// All that can be read, and whether the other end has closed.
fn read_all(stream: &mut UnixStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => (bytes, true),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => (bytes, false),
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => (bytes, true),
        Err(e) => panic!("{e}"),
    }
}

/// Closes a connection. The descriptor alone may have a copy in a process that another test is
/// just starting.
fn leave(client: UnixStream) {
    client.shutdown(Shutdown::Both).unwrap();
}

/// Waits for the end of a connection that the link has closed by closing its descriptor: a copy in
/// a process that another test is just starting holds the end up for a moment.
#[track_caller]
fn expect_end(mut client: UnixStream) {
    client.set_nonblocking(false).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_eq!(read_all(&mut client), (vec![], true));
}

#[test]
fn frames_come_many_at_once_and_in_order() {
    let (mut rig, mut client) = Rig::connected();
    assert_eq!(rig.ups, 1);
    let frames: Vec<_> = [14, 60, 1500, 65_535].map(|len| some_frame(len, len)).into();
    for frame in &frames {
        client.write_all(&on_wire(frame)).unwrap();
    }
    assert_eq!(rig.said(), frames);
}

#[test]
fn more_frames_than_a_batch_holds_need_no_further_event() {
    let (mut rig, mut client) = Rig::connected();
    let wire: Vec<_> = (0..BATCH * 2 + 1).flat_map(|n| on_wire(&some_frame(14, n))).collect();
    client.write_all(&wire).unwrap();
    assert_eq!([(); 4].map(|()| rig.receive()), [BATCH, BATCH, 1, 0]);
    client.write_all(&on_wire(&some_frame(14, 0))).unwrap();
    assert_eq!([(); 2].map(|()| rig.receive()), [1, 0]);
}

#[test]
fn one_byte_at_a_time_is_a_frame_in_the_end() {
    let (mut rig, mut client) = Rig::connected();
    let frames = [some_frame(14, 1), some_frame(300, 2)];
    for byte in frames.iter().flat_map(|frame| on_wire(frame)) {
        client.write_all(&[byte]).unwrap();
        rig.settle();
    }
    assert_eq!(rig.frames, frames);
}

#[test]
fn a_length_that_no_frame_has_ends_that_client_only() {
    let mut rig = Rig::listen(false);
    for (n, length) in [0, 1, 13, 65_536, 0x7fff_ffff, u32::MAX].into_iter().enumerate() {
        let mut client = rig.client();
        let good = some_frame(100, n);
        client.write_all(&on_wire(&good)).unwrap();
        client.write_all(&length.to_be_bytes()).unwrap();
        client.write_all(&[0; 100]).unwrap();
        assert_eq!(rig.said(), [good], "what came before counts");
        assert_eq!(read_all(&mut client), (vec![], true), "{length}");
        assert!(!rig.link.is_connected() && !rig.ended);
        assert_eq!(rig.link.stats().bad_lengths, n as u64 + 1);
    }
    let mut client = rig.client();
    client.write_all(&on_wire(&some_frame(80, 0))).unwrap();
    assert_eq!(rig.said(), [some_frame(80, 0)]);
}

#[test]
fn appendix_b_1_a_partial_frame_is_forgotten_with_its_client() {
    let mut rig = Rig::listen(false);
    let frame = some_frame(500, 1);
    let wire = on_wire(&frame);
    for cut in [1, 3, 4, 5, 300, wire.len() - 1] {
        let mut client = rig.client();
        client.write_all(&wire[..cut]).unwrap();
        rig.settle();
        leave(client);
        let mut client = rig.client();
        client.write_all(&wire).unwrap();
        assert_eq!(rig.said(), [frame.as_slice()], "cut after {cut}");
        leave(client);
    }
}

#[test]
fn what_a_client_said_last_is_heard_after_it_has_gone() {
    let mut rig = Rig::listen(true);
    let mut client = rig.client();
    client.write_all(&on_wire(&some_frame(90, 1))).unwrap();
    leave(client);
    assert_eq!(rig.said(), [some_frame(90, 1)]);
    assert!(rig.ended, "one-off");
}

#[test]
fn a_client_that_only_ends_its_half_is_gone() {
    let (mut rig, client) = Rig::connected();
    client.shutdown(Shutdown::Write).unwrap();
    rig.settle();
    assert!(rig.ended);
}

#[test]
fn a_second_client_is_closed_at_once_and_the_first_goes_on() {
    let mut rig = Rig::listen(false);
    let mut first = rig.client();
    expect_end(rig.client());
    first.write_all(&on_wire(&some_frame(70, 1))).unwrap();
    assert_eq!(rig.said(), [some_frame(70, 1)]);
    assert_eq!((rig.link.stats().refused_clients, rig.ups), (1, 1));
    leave(first);
    let mut third = rig.client();
    assert_eq!((read_all(&mut third), rig.ups), ((vec![], false), 2));
}

#[test]
fn a_client_that_comes_right_after_one_that_has_gone_is_served() {
    let mut rig = Rig::listen(false);
    let mut first = rig.client();
    first.write_all(&on_wire(&some_frame(70, 1))).unwrap();
    leave(first);
    let address = rig.address.clone().unwrap();
    let mut second = UnixStream::connect_addr(&address).unwrap();
    let third = UnixStream::connect_addr(&address).unwrap();
    second.write_all(&on_wire(&some_frame(80, 2))).unwrap();
    assert_eq!(rig.said(), [some_frame(70, 1), some_frame(80, 2)]);
    assert_eq!(rig.link.stats().refused_clients, 1);
    drop((second, third));
}

#[test]
fn frames_go_out_with_their_length_padded_to_what_ethernet_knows() {
    let (mut rig, mut client) = Rig::connected();
    let (short, long) = (some_frame(42, 1), some_frame(65_535, 2));
    rig.send(&short).unwrap();
    rig.send(&long).unwrap();
    assert_eq!(read_all(&mut client).0, [], "nothing is seen before the flush");
    rig.settle();
    let padded = [short.as_slice(), &[0; 18]].concat();
    assert_eq!(read_all(&mut client), ([on_wire(&padded), on_wire(&long)].concat(), false));
}

#[test]
fn what_no_client_takes_is_refused() {
    let mut rig = Rig::listen(false);
    assert_eq!(rig.send(&[0; 60]), Err(Refused::Down));
    let client = rig.client();
    assert_eq!(rig.link.sink.reserve(MAX_LENGTH + 1).unwrap_err(), Refused::TooLarge);
    assert_eq!(rig.link.sink.caps().max_frame, MAX_LENGTH);
    rig.send(&[0; 60]).unwrap();
    leave(client);
    rig.settle();
    assert_eq!(rig.send(&[0; 60]), Err(Refused::Down));
}

#[test]
fn a_client_that_stops_reading_stops_the_sink_until_it_reads_again() {
    let (mut rig, mut client) = Rig::connected();
    let sent = rig.send_until_full();
    assert!(sent.len() > SINK_BUFFER - MAX_LENGTH, "the arena is used, and the socket behind it");
    assert_eq!(rig.turn(), (false, false), "nothing spins meanwhile");
    assert_eq!(rig.send(&[0; 60_000]), Err(Refused::Full));
    let (mut read, mut room) = (Vec::new(), false);
    while read.len() < sent.len() {
        read.extend(read_all(&mut client).0);
        room |= rig.turn().1;
    }
    assert!(room && read == sent);
    rig.settle();
    assert!(rig.send(&[0; 60_000]).is_ok());
}

#[test]
fn frames_that_wait_go_with_their_client() {
    let mut rig = Rig::listen(false);
    let client = rig.client();
    rig.send_until_full();
    leave(client);
    let mut next = rig.client();
    assert_eq!(rig.ups, 2);
    rig.send(&some_frame(60, 1)).unwrap();
    rig.settle();
    assert_eq!(read_all(&mut next), (on_wire(&some_frame(60, 1)), false));
}

#[test]
fn a_client_that_refuses_to_read_is_heard_out_and_dropped() {
    let (mut rig, mut client) = Rig::connected();
    client.shutdown(Shutdown::Read).unwrap();
    client.write_all(&on_wire(&some_frame(60, 3))).unwrap();
    rig.send(&[0; 60]).unwrap();
    assert_eq!(rig.said(), [some_frame(60, 3)]);
    assert!(rig.ended);
}

#[test]
fn room_that_open_slots_take_is_reported_when_they_are_gone() {
    let (mut rig, _client) = Rig::connected();
    let sink = &mut rig.link.sink;
    let open: Vec<_> = (0..).map_while(|_| sink.reserve(MAX_LENGTH).ok()).collect();
    assert!(open.len() > 10);
    open.into_iter().rev().for_each(|slot| sink.cancel(slot));
    assert_eq!(rig.turn(), (true, true));
    assert_eq!(rig.turn(), (false, false));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn cuts_do_not_matter(
        lengths in prop::collection::vec(prop_oneof![14usize..200, 14usize..=65_535], 1..12),
        cuts in prop::collection::vec(1usize..20_000, 1..40),
    ) {
        let (mut rig, mut client) = Rig::connected();
        let frames: Vec<_> =
            lengths.iter().enumerate().map(|(n, len)| some_frame(*len, n)).collect();
        let wire: Vec<_> = frames.iter().flat_map(|frame| on_wire(frame)).collect();
        let (mut rest, mut cuts) = (wire.as_slice(), cuts.into_iter().cycle());
        while !rest.is_empty() {
            let cut = cuts.next().unwrap().min(rest.len());
            client.write_all(&rest[..cut]).unwrap();
            rest = &rest[cut..];
            rig.settle();
        }
        prop_assert_eq!(&rig.frames, &frames);
    }

    #[test]
    fn death_at_any_byte_costs_that_client_only(cut in 0usize..3000, garbage: [u8; 8]) {
        let mut rig = Rig::listen(false);
        let frames = [some_frame(1000, 1), some_frame(60, 2), some_frame(1500, 3)];
        let wire: Vec<_> = frames.iter().flat_map(|frame| on_wire(frame)).collect();
        let cut = cut.min(wire.len());
        let mut client = rig.client();
        client.write_all(&wire[..cut]).unwrap();
        // Whatever it is: in mid-frame a part of it, at a border most likely a bad length.
        client.write_all(&garbage).unwrap();
        leave(client);
        let said = rig.said();
        let complete = frames.iter().scan(0, |end, frame| {
            *end += LENGTH + frame.len();
            Some(*end)
        });
        let complete = complete.take_while(|end| *end <= cut).count();
        prop_assert_eq!(said.get(..complete), frames.get(..complete));
        let mut client = rig.client();
        client.write_all(&wire).unwrap();
        prop_assert_eq!(rig.said(), frames);
    }

    #[test]
    fn a_slow_reader_gets_every_byte(
        lengths in prop::collection::vec(60usize..=65_535, 1..60),
        reads in prop::collection::vec(1usize..200_000, 1..20),
    ) {
        let (mut rig, mut client) = Rig::connected();
        let (mut expected, mut got) = (Vec::new(), Vec::new());
        let mut reads = reads.into_iter().cycle();
        let mut chunk = vec![0; 200_000];
        for (n, len) in lengths.into_iter().enumerate() {
            let frame = some_frame(len, n);
            while let Err(refused) = rig.send(&frame) {
                prop_assert_eq!(refused, Refused::Full);
                if let Ok(n) = client.read(&mut chunk[..reads.next().unwrap()]) {
                    got.extend_from_slice(&chunk[..n]);
                }
                rig.turn();
            }
            expected.extend(on_wire(&frame));
        }
        while got.len() < expected.len() {
            got.extend(read_all(&mut client).0);
            rig.turn();
        }
        prop_assert!(got == expected);
    }
}
