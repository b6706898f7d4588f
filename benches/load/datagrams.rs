//! UDP as fast as it goes, from threads of ours: a loader that spends little on each datagram, and
//! knows of each whether it has come.

use super::net::Namespace;
use nix::sys::socket::{setsockopt, sockopt};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{scope, yield_now};
use std::time::{Duration, Instant};

/// Most bytes of one call: what an IPv4 packet holds.
const CALL: usize = 65_507;

/// Most datagrams of one call, with UDP_SEGMENT.
const RUN: usize = 64;

/// What waits at the reader: enough that what is lost is lost on the way.
const READ_AHEAD: usize = 32 << 20;

/// When datagrams that have not come are taken for lost.
const LOST: Duration = Duration::from_millis(20);

/// How datagrams are sent.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Bytes of each.
    pub size: usize,
    /// Whether a call sends a run of them (UDP_SEGMENT), or one.
    pub runs: bool,
    /// How many may be under way; `None`: nobody counts, which is a flood.
    pub window: Option<u64>,
}

/// What came of it: datagrams.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub offered: u64,
    pub read: u64,
}

impl Load {
    /// Sends from `from` to `to`, where a reader of ours in `at` has the port.
    pub fn run(
        &self,
        from: &Namespace,
        at: &Namespace,
        to: SocketAddr,
        port: u16,
        time: Duration,
    ) -> Outcome {
        let reader = at.within(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("the port is free");
            setsockopt(&socket, sockopt::RcvBufForce, &READ_AHEAD).expect("root may");
            setsockopt(&socket, sockopt::UdpGroSegment, &true).expect("Linux 5.0 can");
            socket.set_read_timeout(Some(LOST)).expect("is not zero");
            socket
        });
        let sender = from.within(|| {
            let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
            let socket = UdpSocket::bind((any, 0)).expect("some port is free");
            socket.connect(to).expect("there is a route");
            socket
        });
        let (read, over) = (AtomicU64::new(0), AtomicBool::new(false));
        scope(|scope| {
            scope.spawn(|| self.read(&reader, &read, &over));
            let offered = self.send(&sender, &read, time);
            // What is under way is late, but not lost.
            while !self.all_came(&read, offered) {}
            over.store(true, Ordering::Relaxed);
            Outcome { offered, read: read.load(Ordering::Relaxed) }
        })
    }

    /// Whether as many have come; `false` when others have, in the time that they may take.
    fn all_came(&self, read: &AtomicU64, offered: u64) -> bool {
        let before = read.load(Ordering::Relaxed);
        std::thread::sleep(LOST);
        let now = read.load(Ordering::Relaxed);
        now >= offered || now == before
    }

    fn read(&self, socket: &UdpSocket, read: &AtomicU64, over: &AtomicBool) {
        let mut room = vec![0; 1 << 16];
        loop {
            match socket.recv(&mut room) {
                // A run comes as one, of which only the last may be shorter.
                Ok(n) => {
                    read.fetch_add(n.div_ceil(self.size) as u64, Ordering::Relaxed);
                }
                Err(_) if over.load(Ordering::Relaxed) => return,
                Err(_) => {}
            }
        }
    }

    /// How many a call sends.
    pub fn run_length(&self) -> usize {
        if self.runs { (CALL / self.size.max(1)).clamp(1, RUN) } else { 1 }
    }

    /// Returns how many the kernel has taken.
    fn send(&self, socket: &UdpSocket, read: &AtomicU64, time: Duration) -> u64 {
        let count = self.run_length();
        if count > 1 {
            let size = i32::try_from(self.size).expect("is less than a packet");
            setsockopt(socket, sockopt::UdpGsoSegment, &size).expect("Linux 4.18 can");
        }
        let bytes = vec![7; self.size * count];
        let (mut offered, mut lost) = (0, 0);
        let start = Instant::now();
        while start.elapsed() < time {
            if let Some(window) = self.window {
                lost += wait_for(read, window, offered - lost, count as u64);
            }
            if socket.send(&bytes).is_ok() {
                offered += count as u64;
            }
        }
        offered
    }
}

/// Waits until `more` may go, of `offered` before, with `window` under way at most; returns how
/// many have to be given up.
fn wait_for(read: &AtomicU64, window: u64, offered: u64, more: u64) -> u64 {
    let mut last = (read.load(Ordering::Relaxed), Instant::now());
    loop {
        let now = read.load(Ordering::Relaxed);
        if offered + more <= now + window {
            return 0;
        }
        if now != last.0 {
            last = (now, Instant::now());
        } else if last.1.elapsed() > LOST {
            return offered - now;
        }
        yield_now();
    }
}
