//! How many bytes wait in a socket.

use super::check;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes that have arrived and were not read yet (FIONREAD).
pub fn unread(fd: BorrowedFd<'_>) -> io::Result<usize> {
    count(fd, libc::FIONREAD)
}

/// Bytes that were sent and the peer has not read yet (TIOCOUTQ): for a unix socket with the
/// kernel's bookkeeping, so more than the payload.
pub fn unsent(fd: BorrowedFd<'_>) -> io::Result<usize> {
    count(fd, libc::TIOCOUTQ)
}

fn count(fd: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<usize> {
    let mut n: libc::c_int = 0;
    // SAFETY: both requests store one int through the pointer, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut n) })?;
    Ok(usize::try_from(n).unwrap_or(0))
}
