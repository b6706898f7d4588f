//! Unix sockets: what waits in them, and descriptors that come with the bytes.

use super::{check, check_len};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Descriptors that one read takes at most; the kernel closes those beyond.
pub const MAX_DESCRIPTORS: usize = 32;

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

/// Reads without waiting; appends the descriptors that came along to `descriptors`, close-on-exec.
/// Returns the number of bytes, 0 at the end of the stream.
pub fn receive(
    fd: BorrowedFd<'_>,
    into: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    receive_with(fd, into, libc::MSG_DONTWAIT, descriptors).map(|(n, _)| n)
}

/// As [`receive`], but waits for something to arrive.
pub fn wait_and_receive(
    fd: BorrowedFd<'_>,
    into: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    loop {
        match receive_with(fd, into, 0, descriptors) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(|(n, _)| n),
        }
    }
}

/// Reads without waiting and without taking anything. Returns the number of bytes, and whether all
/// descriptors that would come along could be had: `false` when there are more than
/// [`MAX_DESCRIPTORS`], or the process has too many open.
pub fn peek(fd: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<(usize, bool)> {
    receive_with(fd, into, libc::MSG_DONTWAIT | libc::MSG_PEEK, &mut Vec::new())
}

/// `recvmsg`. (nix's loses descriptors when there was no room for all of them.)
fn receive_with(
    fd: BorrowedFd<'_>,
    into: &mut [u8],
    flags: libc::c_int,
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<(usize, bool)> {
    const FD: usize = size_of::<libc::c_int>();
    // Room for two headers at least, aligned as they are.
    let mut control = [0u64; 4 + MAX_DESCRIPTORS * FD / 8];
    let mut iov = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: all zeros is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: no pointers.
    let room = unsafe { libc::CMSG_SPACE((MAX_DESCRIPTORS * FD) as u32) };
    message.msg_controllen = (room as usize).min(size_of_val(&control)) as _;
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `message` names `into` and `control` with their true sizes; both outlive the call.
    let read = check_len(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) })?;
    // SAFETY: the kernel has filled `control` and set its length; the macros walk inside of it.
    // Payload of SCM_RIGHTS are descriptors that the kernel has just installed for us, in no
    // particular alignment.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(part) = header.as_ref() {
            if (part.cmsg_level, part.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let data = libc::CMSG_DATA(header).cast::<libc::c_int>();
                let bytes = part.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
                for n in 0..bytes / FD {
                    descriptors.push(OwnedFd::from_raw_fd(data.add(n).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok((read, message.msg_flags & libc::MSG_CTRUNC == 0))
}
