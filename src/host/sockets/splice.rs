//! What connections between both sides need: sockets of the other namespace, and pipes.

use super::{Setup, Sockets, Stream};
use crate::flow::Side;
use crate::host::inside::{Inside, Wanted};
use crate::sys::socket::{self, Family, Kind};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::unistd::{pipe2, write};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

/// Bytes that a pipe is asked to hold; less is tried when its user has so much in pipes already.
const SIZES: [libc::c_int; 2] = [1 << 18, 1 << 17];

/// Empty pipes that are kept for the next ones who ask.
const KEPT: usize = 32;

/// How often an interrupted call is repeated before it counts as one that would block. Nobody
/// sends us signals that have handlers, so that this is never used up.
const REPEATS: usize = 8;

/// A pipe, closed on drop.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// The namespace that we serve.
#[derive(Debug)]
pub(super) struct Interior {
    /// Makes our sockets there.
    process: Inside,
    /// Addresses and interfaces that were chosen for the host's network mean nothing there.
    setup: Setup,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Where none of them is allowed the pipe has the size that all have.
        let _ = SIZES.iter().any(|&size| fcntl(&write, FcntlArg::F_SETPIPE_SZ(size)).is_ok());
        Ok(Self { read, write })
    }

    pub(super) fn fill(&self, from: &Stream, max: usize) -> io::Result<usize> {
        transfer(from, &self.write, max)
    }

    /// splice(2) does not pass a byte that is marked as urgent (`tcp_read_sock`), though it stays in
    /// line; recv(2) does.
    pub(super) fn fill_one(&self, from: &Stream) -> io::Result<usize> {
        let mut byte = [0];
        let n = recv(from.as_fd().as_raw_fd(), &mut byte, MsgFlags::MSG_DONTWAIT)?;
        // An empty pipe takes it.
        Ok(if n == 0 { 0 } else { write(&self.write, &byte)? })
    }

    pub(super) fn drain(&self, to: &Stream, n: usize) -> io::Result<usize> {
        transfer(&self.read, to, n)
    }
}

fn transfer(from: impl AsFd, to: impl AsFd, n: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    for _ in 0..REPEATS {
        match splice(from.as_fd(), None, to.as_fd(), None, n, flags) {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}

impl Stream {
    /// Takes congestion control away that measures the path and paces what it sends (BBR): on the
    /// way through our own memory that costs a quarter of the throughput. Reno is always there.
    pub(super) fn hurry(&self) {
        // Where it fails all goes on as before.
        let _ = setsockopt(self, sockopt::TcpCongestion, &"reno".into());
    }
}

impl Sockets {
    /// These sockets and those of a namespace, made by `inside`.
    #[must_use]
    pub fn with_inside(mut self, inside: Inside) -> Self {
        let setup = Setup { v4: self.setup.v4, v6: self.setup.v6, ..Setup::default() };
        self.interior = Some(Interior { process: inside, setup });
        self
    }

    /// A socket of `side`, and how sockets are set up there.
    pub(in crate::host) fn open(
        &mut self,
        side: Side,
        family: Family,
        kind: Kind,
    ) -> io::Result<(OwnedFd, &Setup)> {
        if side == Side::Outside {
            return Ok((socket::open(family, kind)?, &self.setup));
        }
        let interior = self.interior.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let wanted = match kind {
            Kind::Stream => Wanted::stream(family),
            Kind::Datagram => Wanted::datagram(family),
            Kind::Ping => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok((interior.process.get(wanted)?, &interior.setup))
    }

    /// How sockets of `side` are set up.
    pub(super) const fn setup_of(&self, side: Side) -> &Setup {
        match &self.interior {
            Some(interior) if matches!(side, Side::Inside) => &interior.setup,
            _ => &self.setup,
        }
    }

    /// The next pipe: one that was given back, or a new one.
    pub(super) fn next_pipe(&mut self) -> io::Result<Pipe> {
        self.pipes.pop().map_or_else(Pipe::new, Ok)
    }

    /// Keeps `pipe`, unless there are enough of them.
    pub(super) fn keep_pipe(&mut self, pipe: Pipe) {
        if self.pipes.len() < KEPT {
            self.pipes.push(pipe);
        }
    }
}
