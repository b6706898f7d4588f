//! epoll with typed tokens.

use super::check;
use crate::time::Duration;
use crate::token::{Interest, Readiness, Token};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// An epoll instance. Descriptors are named by [`Token`]; shared by `Rc` between the runtime, the
/// link and the host's sockets.
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
}

/// Room for the events of one wait.
pub struct Events {
    raw: Vec<libc::epoll_event>,
    len: usize,
}

impl Events {
    /// Room for `n` events.
    pub fn with_capacity(n: usize) -> Self {
        Self { raw: vec![libc::epoll_event { events: 0, u64: 0 }; n.max(1)], len: 0 }
    }

    /// The events of the last wait. Tokens that we never made are left out.
    pub fn iter(&self) -> impl Iterator<Item = (Token, Readiness)> + '_ {
        self.raw[..self.len].iter().filter_map(|event| {
            let (bits, token) = (event.events, event.u64);
            Some((Token::from_bits(token)?, readiness(bits)))
        })
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

const fn readiness(bits: u32) -> Readiness {
    const fn has(bits: u32, flag: libc::c_int) -> bool {
        bits & flag as u32 != 0
    }
    Readiness {
        readable: has(bits, libc::EPOLLIN),
        writable: has(bits, libc::EPOLLOUT),
        read_closed: has(bits, libc::EPOLLRDHUP),
        hung_up: has(bits, libc::EPOLLHUP),
        error: has(bits, libc::EPOLLERR),
        urgent: has(bits, libc::EPOLLPRI),
    }
}

const fn mask(interest: Interest) -> u32 {
    let mut bits = 0;
    if interest.readable {
        bits |= libc::EPOLLIN;
    }
    if interest.writable {
        bits |= libc::EPOLLOUT;
    }
    if interest.read_closed {
        bits |= libc::EPOLLRDHUP;
    }
    if interest.edge {
        bits |= libc::EPOLLET;
        // It comes with the event of the data, never alone.
        if interest.readable {
            bits |= libc::EPOLLPRI;
        }
    }
    bits as u32
}

impl Epoll {
    /// A new instance.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Starts to watch `fd`.
    pub fn add(&self, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, mask(interest), token)
    }

    /// Watches `fd` for something else, or under another token.
    pub fn modify(&self, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, mask(interest), token)
    }

    /// Stops to watch `fd`. Needed before closing a descriptor whose open file someone else
    /// shares (a VMM's eventfd): closing ours would not end the watch.
    pub fn delete(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, Token::Signal)
    }

    fn control(
        &self,
        operation: libc::c_int,
        fd: BorrowedFd<'_>,
        events: u32,
        token: Token,
    ) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token.to_bits() };
        // SAFETY: `event` is a valid epoll_event for the duration of the call; both descriptors
        // are open because they are borrowed.
        check(unsafe {
            libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd.as_raw_fd(), &raw mut event)
        })?;
        Ok(())
    }

    /// Waits for events, at most `timeout` (for ever when `None`), and returns how many there are;
    /// 0 when time ran out or a signal came.
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<usize> {
        let spec = timeout.map(|t| libc::timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(t.subsec_nanos()),
        });
        let spec_ptr = spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let room = i32::try_from(events.raw.len()).unwrap_or(i32::MAX);
        events.len = 0;
        // SAFETY: `raw` has room for `room` events; `spec_ptr` is null or points to a timespec
        // that outlives the call; a null signal mask is allowed.
        let n = unsafe {
            libc::epoll_pwait2(
                self.fd.as_raw_fd(),
                events.raw.as_mut_ptr(),
                room,
                spec_ptr,
                std::ptr::null(),
            )
        };
        match check(n) {
            Ok(n) => events.len = usize::try_from(n).unwrap_or(0),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        Ok(events.len)
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
