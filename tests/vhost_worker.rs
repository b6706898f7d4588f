//! A worker with a real epoll and real sockets over the vhost-user device: it sleeps when there is
//! nothing to do, and when nothing can be done.

mod common;

use common::driver::{out, room};
use common::frontend::{BUFFERS, Machine, Options};
use common::packets::{ACK, End, PSH, SYN, Tcp, read_tcp};
use common::rig::{GATEWAY_V4, GUEST_V4, settings};
use passt::engine::{Engine, Settings};
use passt::host::sockets::{Setup, Sockets};
use passt::link::vhost::{VhostLink, features};
use passt::runtime::Clock;
use passt::runtime::worker::Worker;
use passt::sys::epoll::{Epoll, Events};
use passt::time::Duration;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;

/// Where frames to the guest go, each into a buffer of its own.
const ROOM: u64 = BUFFERS + 0x10_0000;
const BUFFER: u64 = 2048;

/// Turns that anything may take until all is quiet.
const TURNS: usize = 20;

/// A guest, and the worker that serves it.
struct Bench {
    /// Without its link, which the worker has.
    memory: &'static common::driver::Memory,
    rx: common::driver::DriverRing,
    tx: common::driver::DriverRing,
    _front: common::frontend::FrontEnd,
    worker: Worker<VhostLink, Sockets>,
    epoll: Rc<Epoll>,
    clock: Clock,
    posted: u64,
}

impl Bench {
    /// A guest that has booted and has no buffers for frames to it.
    fn new() -> Self {
        // No offloads: frames are those that the wire would have.
        let plain = features::VERSION_1
            | features::PROTOCOL_FEATURES
            | features::EVENT_IDX
            | features::INDIRECT_DESC;
        let mut machine = Machine::new(Options { features: plain, ..Options::default() });
        machine.pump();
        let Machine { epoll, link, front, memory, rx, tx, .. } = machine;
        let host = Sockets::new(Rc::clone(&epoll), Setup::default()).expect("a kernel");
        let mut settings: Settings = settings();
        settings.view.services.ra = false;
        let clock = Clock::start();
        let engine = Engine::new(host, settings, clock.now());
        let worker = Worker::new(link, engine, Rc::clone(&epoll), clock);
        Self { memory, rx, tx, _front: front, worker, epoll, clock, posted: 0 }
    }

    /// Waits for something to happen (hangs, and the runner ends it, if nothing does) and does it.
    fn wait(&mut self) {
        let mut events = Events::with_capacity(64);
        while self.epoll.wait(&mut events, None).expect("epoll") == 0 {}
        let now = self.clock.now();
        assert_eq!(self.worker.turn(events.iter(), now).expect("turns"), None);
    }

    /// Does all that there is to do; returns how many wake-ups that took.
    fn settle(&mut self) -> usize {
        let mut events = Events::with_capacity(64);
        for turns in 0..TURNS {
            let n = self.epoll.wait(&mut events, Some(Duration::ZERO)).expect("epoll");
            if n == 0 && !self.worker.engine().has_ready() {
                // What is left to the clock is done by now: nothing of it is due.
                return turns;
            }
            let now = self.clock.now();
            assert_eq!(self.worker.turn(events.iter(), now).expect("turns"), None);
        }
        panic!("it does not come to rest");
    }

    /// Nothing wakes the worker, however often one looks.
    #[track_caller]
    fn expect_silence(&mut self) {
        let mut events = Events::with_capacity(64);
        for _ in 0..1000 {
            assert_eq!(self.epoll.wait(&mut events, Some(Duration::ZERO)).expect("epoll"), 0);
        }
        assert!(!self.worker.engine().has_ready());
    }

    /// The guest gives `n` buffers.
    fn post(&mut self, n: u64) {
        for _ in 0..n {
            self.rx.add(&[room(ROOM + self.posted % 128 * BUFFER, BUFFER as u32)]);
            self.posted += 1;
        }
        self.rx.publish();
    }

    fn send(&mut self, frame: &[u8]) {
        self.memory.write_fast(BUFFERS, &[&[0; 12], frame].concat());
        self.tx.add(&[out(BUFFERS, 12 + frame.len() as u32)]);
        self.tx.publish();
        self.settle();
        self.tx.all_used();
    }

    /// The TCP segments that the guest has got.
    fn segments(&mut self) -> Vec<Tcp> {
        let used = self.rx.all_used().len() as u64;
        let free = self.rx.free() as u64;
        let first = self.posted - (u64::from(self.rx.size) - free) - used;
        let frame = |n: u64| {
            let mut bytes = vec![0; BUFFER as usize];
            self.memory.read_fast(ROOM + n % 128 * BUFFER, &mut bytes);
            bytes.split_off(12)
        };
        let frames = (first..first + used).map(frame);
        let tcp = frames.filter(|frame| frame[12..14] == [8, 0] && frame[23] == 6);
        let whole = |mut frame: Vec<u8>| {
            frame.truncate(14 + usize::from(u16::from_be_bytes([frame[16], frame[17]])));
            read_tcp(&frame)
        };
        tcp.map(whole).collect()
    }

    /// A connection of the guest's to a service on the host's loopback.
    fn connect(&mut self) -> (End, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let mut end = End::new((GUEST_V4, 4000), (GATEWAY_V4, port));
        self.post(8);
        let syn = end.syn();
        self.send(&syn);
        let (peer, _) = listener.accept().expect("connected");
        let answer = loop {
            if let Some(answer) = self.segments().pop() {
                break answer;
            }
            self.wait();
        };
        assert_eq!(answer.flags, SYN | ACK);
        end.take(&answer);
        let ack = end.ack();
        self.send(&ack);
        (end, peer)
    }

    /// Fills the buffers that are left with something, so that the ring is empty.
    fn use_up(&mut self, end: &mut End, peer: &mut TcpStream) {
        let left = usize::from(self.rx.size) - self.rx.free();
        for _ in 0..left {
            peer.write_all(b"x").expect("is open");
            self.wait();
            self.settle();
            let got = self.segments();
            assert_eq!(got.len(), 1);
            end.take(&got[0]);
            let ack = end.ack();
            self.send(&ack);
        }
        assert_eq!(self.rx.free(), usize::from(self.rx.size));
    }
}

#[test]
fn a_worker_that_has_nothing_to_do_is_not_woken() {
    let mut bench = Bench::new();
    assert!(bench.settle() <= 5);
    bench.expect_silence();
    // Nor with connections that say nothing, and a guest that has room.
    let (mut end, mut peer) = bench.connect();
    bench.settle();
    bench.expect_silence();
    let data = end.next(PSH, b"hello");
    bench.send(&data);
    let mut got = [0; 5];
    peer.read_exact(&mut got).expect("arrives");
    assert_eq!(&got, b"hello");
    bench.settle();
    bench.expect_silence();
}

#[test]
fn data_for_a_guest_without_buffers_waits_without_waking_anyone() {
    let mut bench = Bench::new();
    let (mut end, mut peer) = bench.connect();
    bench.use_up(&mut end, &mut peer);
    peer.write_all(&[7; 1000]).expect("is open");
    bench.wait();
    assert!(bench.settle() <= 5);
    assert_eq!(bench.worker.engine().waiting(), 1);
    bench.expect_silence();
    // More of it wakes once each time, if at all.
    for _ in 0..10 {
        peer.write_all(&[7; 1000]).expect("is open");
        assert!(bench.settle() <= 5);
        bench.expect_silence();
    }
    // Nor does the guest when it sends.
    let data = end.next(PSH, b"hello");
    bench.send(&data);
    peer.read_exact(&mut [0; 5]).expect("arrives");
    bench.settle();
    bench.expect_silence();
    // With room all of it comes.
    let mut bytes = 0;
    while bytes < 11_000 {
        bench.post(1);
        bench.settle();
        for segment in bench.segments() {
            assert!(segment.payload.iter().all(|byte| *byte == 7));
            if !segment.payload.is_empty() {
                end.take(&segment);
                bytes += segment.payload.len();
                let ack = end.ack();
                bench.send(&ack);
            }
        }
    }
    assert_eq!(bytes, 11_000);
}
