//! System calls that no crate wraps the way we need: one small function each, taking
//! `BorrowedFd`, giving `OwnedFd` or `io::Result`, without any policy.
//!
//! UNSAFETY: this folder calls libc. Each block says why its arguments are sound.
#![allow(unsafe_code, reason = "system calls are this folder's subject; see UNSAFETY above")]

pub mod epoll;
pub mod fault;
pub mod process;
pub mod socket;
pub mod tap;
pub mod unix;

use std::io;

/// Turns the -1 of a system call into the error it stands for.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The kernel's words for `error`, as strerror(3) gives them: without the number that
/// [`io::Error`] adds, because clients compare whole lines.
pub fn error_text(error: &io::Error) -> String {
    let text = error.to_string();
    let number = error.raw_os_error().map(|n| format!(" (os error {n})"));
    number.and_then(|n| text.strip_suffix(&n).map(str::to_owned)).unwrap_or(text)
}

/// Turns the -1 of a system call into the error it stands for, and other results into a count.
pub(crate) fn check_len(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::error_text;
    use std::io;

    #[test]
    fn an_error_reads_as_the_c_library_says_it() {
        let refused = io::Error::from_raw_os_error(libc::EPERM);
        assert_eq!(error_text(&refused), "Operation not permitted");
        assert_eq!(error_text(&io::Error::other("our own words")), "our own words");
    }
}
