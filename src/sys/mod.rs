//! System calls that no crate wraps the way we need: one small function each, taking
//! `BorrowedFd`, giving `OwnedFd` or `io::Result`, without any policy.
//!
//! UNSAFETY: this folder calls libc. Each block says why its arguments are sound.
#![allow(unsafe_code, reason = "system calls are this folder's subject; see UNSAFETY above")]

pub mod epoll;
pub mod process;
pub mod socket;

use std::io;

/// Turns the -1 of a system call into the error it stands for.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Turns the -1 of a system call into the error it stands for, and other results into a count.
pub(crate) fn check_len(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
