//! Taps: network interfaces whose other end is a file (`/dev/net/tun`).

use super::{check, check_len};
use crate::span::{Span, SpanMut};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes the interface `name`, or what the kernel makes of it (`tap%d`), and joins its end to `fd`.
/// It must not exist yet. Returns its true name. EINVAL is also what a kernel says that does not
/// know one of the `flags` (`IFF_*`).
pub fn attach(fd: BorrowedFd<'_>, name: &CStr, flags: libc::c_int) -> io::Result<Vec<u8>> {
    let mut request = request_for(name)?;
    // The field has 16 bits, and the highest of these flags is the highest of them.
    request.ifr_ifru.ifru_flags = (flags & 0xffff) as u16 as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(name_of(&request))
}

/// Name and flags (`IFF_*`) of the interface that `fd` is the end of.
pub fn attached(fd: BorrowedFd<'_>) -> io::Result<(Vec<u8>, libc::c_int)> {
    let mut request = request_for(c"")?;
    // SAFETY: TUNGETIFF writes one `ifreq`, which `request` is.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: the kernel has written this member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((name_of(&request), libc::c_int::from(flags as u16)))
}

/// The interface's Ethernet address.
pub fn hardware_address(fd: BorrowedFd<'_>) -> io::Result<[u8; 6]> {
    let mut request = request_for(c"")?;
    // SAFETY: SIOCGIFHWADDR writes one `ifreq`, which `request` is. (On a tun file it needs no name.)
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFHWADDR as _, &raw mut request) })?;
    // SAFETY: the kernel has written this member.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    let mut bytes = [0; 6];
    for (byte, raw) in bytes.iter_mut().zip(address.sa_data) {
        *byte = raw as u8;
    }
    Ok(bytes)
}

/// Bytes of the virtio-net header in front of each frame (TUNSETVNETHDRSZ).
pub fn set_header_len(fd: BorrowedFd<'_>, len: libc::c_int) -> io::Result<()> {
    set_int(fd, libc::TUNSETVNETHDRSZ, &len)
}

/// The header is little endian, whatever the machine is (TUNSETVNETLE).
pub fn set_little_endian(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_int(fd, libc::TUNSETVNETLE, &1)
}

fn set_int(fd: BorrowedFd<'_>, request: libc::Ioctl, value: &libc::c_int) -> io::Result<()> {
    let value: *const libc::c_int = value;
    // SAFETY: both requests read one int, which `value` points to.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, value) })?;
    Ok(())
}

/// What the kernel may leave undone in frames to us (`TUN_F_*`). EINVAL for what it does not know.
pub fn set_offload(fd: BorrowedFd<'_>, what: libc::c_uint) -> io::Result<()> {
    let what = libc::c_ulong::from(what);
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, what) })?;
    Ok(())
}

/// Keeps the interface when its file is closed: it goes with its namespace.
pub fn set_persistent(fd: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_ulong = 1;
    // SAFETY: TUNSETPERSIST takes its argument by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETPERSIST, on) })?;
    Ok(())
}

/// How many packets wait at interface `name` at most (SIOCSIFTXQLEN); `socket` is any socket of the
/// interface's namespace.
pub fn set_queue_length(socket: BorrowedFd<'_>, name: &CStr, packets: u16) -> io::Result<()> {
    let mut request = request_for(name)?;
    // `ifr_qlen` is an int, at the same place as this one.
    request.ifr_ifru.ifru_metric = packets.into();
    // SAFETY: SIOCSIFTXQLEN reads one `ifreq`, which `request` is.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFTXQLEN as _, &raw mut request) })?;
    Ok(())
}

/// Reads one frame, as far as there is room. `WouldBlock` when none waits.
pub fn read(fd: BorrowedFd<'_>, room: SpanMut<'_>) -> io::Result<usize> {
    super::socket::repeat(|| {
        // SAFETY: the span is mapped and writable for its length (constructor's promise).
        check_len(unsafe { libc::read(fd.as_raw_fd(), room.as_mut_ptr().cast(), room.len()) })
    })
}

/// Writes one frame.
pub fn write(fd: BorrowedFd<'_>, frame: Span<'_>) -> io::Result<usize> {
    super::socket::repeat(|| {
        // SAFETY: the span is mapped and readable for its length (constructor's promise).
        check_len(unsafe { libc::write(fd.as_raw_fd(), frame.as_ptr().cast(), frame.len()) })
    })
}

fn request_for(name: &CStr) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is integers and, in its union, a pointer: zeroes are valid for all of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let bytes = name.to_bytes_with_nul();
    if bytes.len() > request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(bytes) {
        *place = *byte as libc::c_char;
    }
    Ok(request)
}

fn name_of(request: &libc::ifreq) -> Vec<u8> {
    request.ifr_name.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect()
}
