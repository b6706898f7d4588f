//! The engine over the kernel's sockets, on loopback, with and without what new kernels can do; the
//! guest is a script.

mod common;

use common::packets::*;
use common::rig::{GATEWAY_V4, GUEST_V4, settings};
use common::script_link::ScriptLink;
use nix::sys::socket::{MsgFlags, send};
use passt::engine::Engine;
use passt::host::sockets::{Features, Setup, Sockets};
use passt::link::{Link, Offload, Sink};
use passt::sys::epoll::{Epoll, Events};
use passt::time::{Duration, Instant};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::rc::Rc;

const WITHOUT: Features = Features { peek_offset_v4: false, peek_offset_v6: false };

/// The engine, its sockets, and one connection of the guest's to a socket of ours.
struct World {
    engine: Engine<Sockets>,
    epoll: Rc<Epoll>,
    link: ScriptLink,
    now: Instant,
    end: End,
    /// What the guest has acknowledged.
    acked: u32,
    /// What came from the peer, and whether its FIN did.
    got: Vec<u8>,
    ended: bool,
}

impl World {
    fn new(features: Features) -> (Self, TcpStream) {
        let epoll = Rc::new(Epoll::new().unwrap());
        let sockets =
            Sockets::with_features(Rc::clone(&epoll), Setup::default(), features).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let now = Instant::ZERO + Duration::from_secs(3600);
        let mut world = Self {
            engine: Engine::new(sockets, settings(), now),
            epoll,
            link: ScriptLink::new(),
            now,
            end: End::new((GUEST_V4, 4000), (GATEWAY_V4, port)),
            acked: 0,
            got: Vec::new(),
            ended: false,
        };
        let syn = world.end.syn();
        world.send(syn);
        while world.end.rcv == 0 {
            world.wait();
        }
        (world, listener.accept().unwrap().0)
    }

    /// The guest sends, and takes what it gets in return.
    fn send(&mut self, frame: Vec<u8>) {
        self.offer(frame);
        self.settle();
    }

    fn offer(&mut self, frame: Vec<u8>) {
        self.link.source.push(frame, Offload::default());
        let (source, sink) = self.link.halves();
        while self.engine.ingress(source, sink, self.now).unwrap() > 0 {}
    }

    /// Waits for events; hangs (and the runner ends it) if there is none.
    fn wait(&mut self) {
        let mut events = Events::with_capacity(8);
        while self.epoll.wait(&mut events, None).unwrap() == 0 {}
        for (token, ready) in events.iter() {
            self.engine.on_socket(token, ready, self.link.halves().1, self.now);
        }
        self.settle();
    }

    /// The guest takes what there is. All but the last frame are acknowledged at once, the last one
    /// when nothing more comes: so there is something to be skipped most of the time.
    fn settle(&mut self) {
        loop {
            let sink = self.link.halves().1;
            self.engine.run_ready(sink, self.now);
            sink.flush().unwrap();
            let frames = sink.take();
            let mut ack = self.end.rcv;
            for (frame, _) in &frames {
                let segment = read_tcp(frame);
                ack = self.end.rcv;
                self.end.take(&segment);
                self.got.extend(&segment.payload);
                assert!(!segment.has(RST), "reset after {} bytes", self.got.len());
                self.ended |= segment.has(FIN);
            }
            if ack != self.acked {
                self.acked = ack;
                let frame = Tcp { ack, ..self.end.segment(ACK, b"") }.frame();
                self.offer(frame);
            } else if frames.is_empty() {
                return;
            }
        }
    }
}

fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i.wrapping_mul(31) >> 3) as u8).collect()
}

/// The peer sends all of `bytes`, an urgent byte at the end of each `urgent`th piece, and ends.
fn pour(mut far: TcpStream, bytes: Vec<u8>, urgent: Option<usize>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for (n, piece) in bytes.chunks(3001).enumerate() {
            match urgent {
                Some(every) if n % every == 1 => {
                    let mut sent = 0;
                    while sent < piece.len() {
                        sent += send(far.as_raw_fd(), &piece[sent..], MsgFlags::MSG_OOB).unwrap();
                    }
                }
                _ => far.write_all(piece).unwrap(),
            }
        }
        far.shutdown(Shutdown::Write).unwrap();
        // Wait for the guest's end.
        assert_eq!(far.read(&mut [0; 10]).unwrap(), 0);
    })
}

#[test]
fn a_stream_arrives_unchanged_whatever_the_kernel_can_do_and_whatever_is_urgent_in_it() {
    for features in [Features::probe(), WITHOUT] {
        for urgent in [None, Some(2), Some(7), Some(60)] {
            let (mut world, far) = World::new(features);
            let bytes = pattern(1_000_000);
            let peer = pour(far, bytes.clone(), urgent);
            while !world.ended {
                world.wait();
            }
            assert!(world.got == bytes, "{} bytes, {urgent:?}", world.got.len());
            let fin = world.end.next(FIN, b"");
            world.send(fin);
            peer.join().unwrap();
            assert_eq!(world.engine.tcp_flows(), 0);
        }
    }
}
