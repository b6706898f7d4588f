//! Frames through the vhost-user device without a guest: our own driver in a thread that spins,
//! the whole link in this one, each frame copied once. Prints a table (target T13).
//!
//! `cargo bench --bench ring`; an argument is the number of seconds for each row, 0 leaves the
//! thread out and shows only what the link takes alone. On one machine
//! figures vary by a factor of two from run to run: the best of several is what counts.

#![allow(dead_code, unreachable_pub, reason = "the modules of the tests have more than is used")]

#[path = "../tests/common/driver.rs"]
mod driver;
#[path = "../tests/common/frontend.rs"]
mod frontend;

use driver::{DriverRing, NEXT, WRITE};
use frontend::{BUFFERS, Machine, Options, merge};
use passt::link::vhost::VhostLink;
use passt::link::{Link, LinkEvents, Offload, Sink, Source};
use passt::span;
use passt::sys::epoll::Events;
use passt::time::Duration;
use passt::token::Token;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

const HEADER: u32 = 12;

/// What one row measures.
struct Row {
    name: &'static str,
    frame: usize,
    /// Bytes of a buffer of the driver's, and how many make a chain.
    buffer: u32,
    chain: u16,
}

const OUT: &[Row] = &[
    Row { name: "64 B", frame: 64, buffer: 128, chain: 1 },
    Row { name: "1514 B", frame: 1514, buffer: 2048, chain: 1 },
    Row { name: "65500 B", frame: 65_500, buffer: 65_536, chain: 1 },
    Row { name: "65500 B in 16", frame: 65_500, buffer: 4096, chain: 16 },
];

const IN: &[Row] = &[
    Row { name: "64 B", frame: 64, buffer: 1536, chain: 1 },
    Row { name: "1514 B", frame: 1514, buffer: 1536, chain: 1 },
    Row { name: "65500 B merged", frame: 65_500, buffer: 4096, chain: 1 },
    Row { name: "65500 B chain", frame: 65_500, buffer: 4096, chain: 17 },
];

fn main() {
    let seconds = std::env::args().filter_map(|a| a.parse::<f64>().ok()).next().unwrap_or(0.5);
    println!("{:<30}{:>14}{:>10}{:>22}", "", "Mframes/s", "GB/s", "alone: ns/frame");
    for row in OUT {
        report("from the guest", row, &|| from_guest(row, seconds), alone_from_guest(row));
    }
    for row in IN {
        report("to the guest", row, &|| to_guest(row, seconds), alone_to_guest(row));
    }
}

/// Runs a row three times and prints the best.
fn report(direction: &str, row: &Row, run: &dyn Fn() -> f64, alone: f64) {
    let rate = (0..3).map(|_| run()).fold(0.0, f64::max);
    let gigabytes = rate * row.frame as f64 / 1e9;
    let name = format!("{direction}, {}", row.name);
    println!("{name:<30}{:>14.3}{gigabytes:>10.2}{alone:>22.1}", rate / 1e6);
}

/// Nanoseconds per frame of the link's part alone, driver and device taking turns in one thread:
/// the best of many turns, so that other loads of the machine do not count.
fn alone_from_guest(row: &Row) -> f64 {
    let mut m = machine();
    let heads = lay_out(&m.tx, row, 0);
    let mut copy = vec![0; 65_536];
    best(|| {
        for head in &heads {
            m.tx.offer(*head);
        }
        m.tx.publish();
        let start = Instant::now();
        let frames = drain(&mut m.link, &mut copy);
        let time = start.elapsed();
        while m.tx.used().is_some() {}
        (time, frames)
    })
}

/// As [`alone_from_guest`].
fn alone_to_guest(row: &Row) -> f64 {
    let mut m = machine();
    let heads = lay_out(&m.rx, row, WRITE);
    let payload = vec![0x5a; row.frame];
    let mut free = heads;
    best(|| {
        for head in free.drain(..) {
            m.rx.offer(head);
        }
        m.rx.publish();
        let start = Instant::now();
        let frames = fill(&mut m.link, &payload);
        let time = start.elapsed();
        free.extend(std::iter::from_fn(|| m.rx.used()).map(|(head, _)| head));
        (time, frames)
    })
}

fn best(mut turn: impl FnMut() -> (Duration, u64)) -> f64 {
    let turns = (0..2000).map(|_| turn());
    turns.map(|(time, n)| time.as_nanos() as f64 / n as f64).fold(f64::INFINITY, f64::min)
}

fn machine() -> Machine {
    Machine::new(Options {
        regions: vec![(0, 64 << 20), (64 << 20, 1 << 20)],
        ..Options::default()
    })
}

/// Writes all descriptors once; returns the heads.
fn lay_out(ring: &DriverRing, row: &Row, flags: u16) -> Vec<u16> {
    let chains = ring.size / row.chain;
    for index in 0..chains * row.chain {
        let last = index % row.chain == row.chain - 1;
        let (link, next) = if last { (0, 0) } else { (NEXT, index + 1) };
        let mut len = row.buffer;
        if flags == 0 {
            // The last buffer ends with the frame.
            let before = u32::from(index % row.chain) * row.buffer;
            len = len.min(row.frame as u32 + HEADER - before.min(row.frame as u32));
        }
        let addr = BUFFERS + u64::from(index) * u64::from(row.buffer.next_multiple_of(64) + 64);
        ring.set_descriptor(index, addr, len, flags | link, next);
    }
    (0..chains).map(|n| n * row.chain).collect()
}

/// A driver that offers every chain again as soon as it was used, until told to stop. Every
/// publication covers what had been used by then.
fn spin(mut ring: DriverRing, heads: Vec<u16>, stop: Arc<AtomicBool>) {
    for head in heads {
        ring.offer(head);
    }
    ring.publish();
    while !stop.load(Ordering::Relaxed) {
        let mut n = 0;
        while let Some((head, _)) = ring.used() {
            ring.offer(head);
            n += 1;
            if n == 32 {
                break;
            }
        }
        if n > 0 {
            ring.publish();
        } else {
            std::hint::spin_loop();
        }
    }
}

/// Events of the link, waiting a little if there are none.
fn events(m: &mut Machine, events: &mut Events, wait: Duration) -> LinkEvents {
    m.epoll.wait(events, Some(wait)).expect("epoll");
    let mut all = LinkEvents::default();
    for (token, ready) in events.iter() {
        if let Token::Link(which) = token {
            all = merge(all, m.link.on_event(which, ready).expect("event"));
        }
    }
    all
}

/// Frames per second from the guest.
fn from_guest(row: &Row, seconds: f64) -> f64 {
    let mut m = machine();
    let ring = std::mem::replace(&mut m.tx, DriverRing::new(m.memory, 0x18_0000, 16));
    let heads = lay_out(&ring, row, 0);
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let driver = thread::spawn(move || spin(ring, heads, flag));
    let mut copy = vec![0; 65_536];
    let mut buffer = Events::with_capacity(8);
    let mut frames = 0u64;
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < seconds {
        events(&mut m, &mut buffer, Duration::from_millis(1));
        frames += drain(&mut m.link, &mut copy);
    }
    let rate = frames as f64 / start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    driver.join().expect("driver");
    rate
}

/// Takes frames until there are none, or many were taken.
fn drain(link: &mut VhostLink, copy: &mut [u8]) -> u64 {
    let (source, _) = link.halves();
    let mut frames = 0;
    while frames < 100_000 {
        let n = source.receive().expect("receive");
        if n == 0 {
            break;
        }
        for index in 0..n {
            let frame = source.frame(index);
            assert_eq!(span::gather(frame.spans, 0, std::hint::black_box(&mut *copy)), frame.len);
        }
        source.release();
        frames += n as u64;
    }
    frames
}

/// Frames per second to the guest.
fn to_guest(row: &Row, seconds: f64) -> f64 {
    let mut m = machine();
    let ring = std::mem::replace(&mut m.rx, DriverRing::new(m.memory, 0x18_0000, 16));
    let heads = lay_out(&ring, row, WRITE);
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let driver = thread::spawn(move || spin(ring, heads, flag));
    let payload = vec![0x5a; row.frame];
    let mut buffer = Events::with_capacity(8);
    let mut frames = 0u64;
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < seconds {
        events(&mut m, &mut buffer, Duration::from_millis(1));
        for _ in 0..1000 {
            let n = fill(&mut m.link, &payload);
            frames += n;
            if n == 0 {
                break;
            }
        }
    }
    let rate = frames as f64 / start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    driver.join().expect("driver");
    rate
}

/// Sends up to a batch of frames.
fn fill(link: &mut VhostLink, payload: &[u8]) -> u64 {
    let (_, sink) = link.halves();
    let mut frames = 0;
    for _ in 0..64 {
        let Ok(slot) = sink.reserve(payload.len()) else { break };
        sink.write(&slot, 0, payload);
        sink.commit(slot, payload.len(), Offload::default());
        frames += 1;
    }
    sink.flush().expect("flush");
    frames
}
