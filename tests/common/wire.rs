//! A wire between two namespaces that is as long, as slow and as bad as one wants it.
//!
//! The kernels of these machines have no netem, so this is a process between two taps: what comes
//! out of one goes into the other a constant time later. Two threads a direction; between them the
//! frames stand in a queue with the time at which they are due.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use passt::sys::tap;

use super::net::Namespace;

/// What a wire is like, the same in both directions.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// From end to end, one way.
    pub delay: Duration,
    /// Bits per second, and the bytes that wait at its entry before it drops any; `None` is a wire
    /// that takes whatever comes.
    pub rate: Option<(u64, u64)>,
    /// Frames lost of a million.
    pub loss: u32,
    /// Which frames are lost.
    pub seed: u64,
}

impl Line {
    /// One that only takes its time.
    pub const fn long(delay: Duration) -> Self {
        Self { delay, rate: None, loss: 0, seed: 1 }
    }

    /// Without losses and a rate to keep, segmentation is left to the far end: what is measured is
    /// not this process.
    const fn is_plain(&self) -> bool {
        self.rate.is_none() && self.loss == 0
    }
}

/// A wire that has been laid; taken up on drop.
pub struct Wire {
    over: Arc<AtomicBool>,
    dropped: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Joins two namespaces by interfaces `name`, which have no addresses and are down.
    pub fn lay(ends: [&Namespace; 2], name: &str, line: Line) -> Self {
        let (over, dropped) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let [a, b] = ends.map(|end| end.within(|| open(name, line.is_plain())));
        let copy = |file: &File| file.try_clone().expect("descriptors are left");
        let mut threads = Vec::new();
        for (from, to, seed) in [(copy(&a), copy(&b), line.seed), (b, a, !line.seed)] {
            let (sender, receiver) = channel();
            let (over, dropped) = (Arc::clone(&over), Arc::clone(&dropped));
            let line = Line { seed, ..line };
            threads.push(spawn(move || take(&from, &line, &sender, &over, &dropped)));
            threads.push(spawn(move || deliver(to, &receiver)));
        }
        Self { over, dropped, threads }
    }

    /// Frames that were lost on it or found its entry full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn open(name: &str, segmentation: bool) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open("/dev/net/tun").expect("no /dev/net/tun");
    let name = std::ffi::CString::new(name).expect("a name");
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    tap::attach(file.as_fd(), &name, flags).expect("cannot make a tap");
    let mut offload = libc::TUN_F_CSUM;
    if segmentation {
        offload |= libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    }
    tap::set_offload(file.as_fd(), offload).expect("no offloads");
    file
}

/// A frame and when it arrives.
type Due = (Instant, Vec<u8>);

fn take(mut from: &File, line: &Line, to: &Sender<Due>, over: &AtomicBool, dropped: &AtomicU64) {
    let mut buffer = vec![0; 1 << 17];
    let mut random = line.seed;
    // When all that stands at the entry is on the wire.
    let mut free = Instant::now();
    while !over.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut fds, PollTimeout::from(100u8)), Ok(1)) {
            continue;
        }
        while let Ok(n) = from.read(&mut buffer) {
            let now = Instant::now();
            let mut leaves = now;
            let mut lost = false;
            if let Some((rate, queue)) = line.rate {
                let waits = free.saturating_duration_since(now);
                lost = waits.as_nanos() * u128::from(rate) > u128::from(queue) * 8_000_000_000;
                if !lost {
                    free = free.max(now) + Duration::from_nanos(n as u64 * 8_000_000_000 / rate);
                    leaves = free;
                }
            }
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            lost |= random % 1_000_000 < u64::from(line.loss);
            if lost {
                dropped.fetch_add(1, Ordering::Relaxed);
            } else if to.send((leaves + line.delay, buffer[..n].to_vec())).is_err() {
                return;
            }
        }
    }
}

fn deliver(mut to: File, from: &Receiver<Due>) {
    while let Ok((due, frame)) = from.recv() {
        let now = Instant::now();
        if due > now {
            sleep(due - now);
        }
        // An interface that is down takes nothing, and that is right.
        let _ = to.write(&frame);
    }
}
