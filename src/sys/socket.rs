//! Sockets: the calls that take memory which may change, and the options that nobody wraps.
//!
//! All sockets are made non-blocking and close-on-exec. Transfers take [`Span`]s, so payload goes
//! between a guest's memory and the kernel without a copy of ours. Interrupted calls are repeated.

mod address;
pub mod message;

use super::{check, check_len};
use crate::span::{Span, SpanMut};
use address::RawAddress;
use std::ffi::CStr;
use std::io;
use std::mem::{offset_of, size_of, size_of_val};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Pieces of memory that one call may name (UIO_MAXIOV).
pub const MAX_PIECES: usize = 1024;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `address`.
    pub const fn of(address: &SocketAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    const fn domain(self) -> libc::c_int {
        match self {
            Self::V4 => libc::AF_INET,
            Self::V6 => libc::AF_INET6,
        }
    }
}

/// What a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP.
    Stream,
    /// UDP.
    Datagram,
    /// ICMP or ICMPv6 echo (`ping_group_range` permitting).
    Ping,
}

/// A socket option with an integer for a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntOption {
    level: libc::c_int,
    name: libc::c_int,
}

impl IntOption {
    const fn new(level: libc::c_int, name: libc::c_int) -> Self {
        Self { level, name }
    }

    /// SO_REUSEADDR.
    pub const REUSE_ADDRESS: Self = Self::new(libc::SOL_SOCKET, libc::SO_REUSEADDR);
    /// SO_REUSEPORT.
    pub const REUSE_PORT: Self = Self::new(libc::SOL_SOCKET, libc::SO_REUSEPORT);
    /// SO_KEEPALIVE.
    pub const KEEPALIVE: Self = Self::new(libc::SOL_SOCKET, libc::SO_KEEPALIVE);
    /// SO_OOBINLINE: urgent data stays in its place in the stream.
    pub const URGENT_INLINE: Self = Self::new(libc::SOL_SOCKET, libc::SO_OOBINLINE);
    /// SO_PEEK_OFF: where the next peek starts; -1 switches the mechanism off.
    pub const PEEK_OFFSET: Self = Self::new(libc::SOL_SOCKET, libc::SO_PEEK_OFF);
    /// SO_RCVBUF.
    pub const RECEIVE_BUFFER: Self = Self::new(libc::SOL_SOCKET, libc::SO_RCVBUF);
    /// SO_RCVLOWAT: TCP also makes the receive buffer twice as large, up to tcp_rmem's maximum, and
    /// leaves its auto-tuning on.
    pub const RECEIVE_LOW_WATER: Self = Self::new(libc::SOL_SOCKET, libc::SO_RCVLOWAT);
    /// SO_SNDBUF.
    pub const SEND_BUFFER: Self = Self::new(libc::SOL_SOCKET, libc::SO_SNDBUF);
    /// TCP_NODELAY.
    pub const NO_DELAY: Self = Self::new(libc::IPPROTO_TCP, libc::TCP_NODELAY);
    /// UDP_GRO: runs of datagrams of equal size may be received as one.
    pub const COALESCE: Self = Self::new(libc::IPPROTO_UDP, libc::UDP_GRO);
    /// IPV6_V6ONLY.
    pub const V6_ONLY: Self = Self::new(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);

    /// IP_FREEBIND, IPV6_FREEBIND: take addresses that the host does not have.
    pub const fn freebind(family: Family) -> Self {
        match family {
            Family::V4 => Self::new(libc::IPPROTO_IP, libc::IP_FREEBIND),
            Family::V6 => Self::new(libc::IPPROTO_IPV6, libc::IPV6_FREEBIND),
        }
    }

    /// IP_RECVERR, IPV6_RECVERR: keep errors with the ICMP messages behind them in a queue.
    pub const fn error_queue(family: Family) -> Self {
        match family {
            Family::V4 => Self::new(libc::IPPROTO_IP, libc::IP_RECVERR),
            Family::V6 => Self::new(libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
        }
    }

    /// TTL or hop limit of what is sent to one node, or to a group.
    pub const fn ttl(family: Family, multicast: bool) -> Self {
        match (family, multicast) {
            (Family::V4, false) => Self::new(libc::IPPROTO_IP, libc::IP_TTL),
            (Family::V4, true) => Self::new(libc::IPPROTO_IP, libc::IP_MULTICAST_TTL),
            (Family::V6, false) => Self::new(libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
            (Family::V6, true) => Self::new(libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
        }
    }

    /// IP_PKTINFO, IPV6_RECVPKTINFO: tell with each datagram where it was sent to.
    pub const fn packet_info(family: Family) -> Self {
        match family {
            Family::V4 => Self::new(libc::IPPROTO_IP, libc::IP_PKTINFO),
            Family::V6 => Self::new(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
        }
    }
}

/// A new socket, non-blocking and close-on-exec.
pub fn open(family: Family, kind: Kind) -> io::Result<OwnedFd> {
    let (kind, protocol) = match (kind, family) {
        (Kind::Stream, _) => (libc::SOCK_STREAM, libc::IPPROTO_TCP),
        (Kind::Datagram, _) => (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
        (Kind::Ping, Family::V4) => (libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
        (Kind::Ping, Family::V6) => (libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6),
    };
    let kind = kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(family.domain(), kind, protocol) })?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives the socket its own address.
pub fn bind(fd: BorrowedFd<'_>, to: &SocketAddr) -> io::Result<()> {
    let raw = RawAddress::from(*to);
    // SAFETY: `raw` is a valid address of the length it tells, alive during the call.
    check(unsafe { libc::bind(fd.as_raw_fd(), raw.as_ptr(), raw.len()) })?;
    Ok(())
}

/// Begins to connect; `EINPROGRESS` when that takes time.
pub fn connect(fd: BorrowedFd<'_>, to: &SocketAddr) -> io::Result<()> {
    let raw = RawAddress::from(*to);
    // SAFETY: as for `bind`.
    check(unsafe { libc::connect(fd.as_raw_fd(), raw.as_ptr(), raw.len()) })?;
    Ok(())
}

/// Listens with room for `backlog` connections that nobody has accepted yet.
pub fn listen(fd: BorrowedFd<'_>, backlog: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) })?;
    Ok(())
}

/// The next connection, non-blocking and close-on-exec, and its far end.
pub fn accept(fd: BorrowedFd<'_>) -> io::Result<(OwnedFd, SocketAddr)> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let mut raw = RawAddress::room();
    let new = repeat(|| {
        let (address, len) = raw.as_mut_parts();
        // SAFETY: `address` has room for the `*len` bytes it claims; both outlive the call.
        check(unsafe { libc::accept4(fd.as_raw_fd(), address, len, flags) })
    })?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let new = unsafe { OwnedFd::from_raw_fd(new) };
    Ok((new, raw.to_socket_addr()?))
}

/// The socket's own address.
pub fn local_address(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let mut raw = RawAddress::room();
    let (address, len) = raw.as_mut_parts();
    // SAFETY: `address` has room for the `*len` bytes it claims; both outlive the call.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), address, len) })?;
    raw.to_socket_addr()
}

/// Ends the writing half (`SHUT_WR`).
pub fn shutdown_write(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) })?;
    Ok(())
}

/// Sends the first [`MAX_PIECES`] of `payload`; returns how many bytes the socket took.
pub fn send(fd: BorrowedFd<'_>, payload: &[Span<'_>]) -> io::Result<usize> {
    let mut message = empty_message();
    message.msg_iov = payload.as_ptr().cast_mut().cast();
    message.msg_iovlen = payload.len().min(MAX_PIECES) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `Span` has the layout of `iovec` (see there) and names readable memory for its
    // lifetime; the kernel copies and tolerates bytes that change.
    repeat(|| check_len(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) }))
}

/// Receives into the first [`MAX_PIECES`] of `room`.
pub fn receive(fd: BorrowedFd<'_>, room: &[SpanMut<'_>]) -> io::Result<usize> {
    receive_with(fd, room, libc::MSG_DONTWAIT)
}

/// Copies received bytes to `room` and leaves them in the socket, from the socket's peek offset on
/// if it has one.
pub fn peek(fd: BorrowedFd<'_>, room: &[SpanMut<'_>]) -> io::Result<usize> {
    receive_with(fd, room, libc::MSG_DONTWAIT | libc::MSG_PEEK)
}

/// Receives with `flags` of recvmsg(2).
fn receive_with(fd: BorrowedFd<'_>, room: &[SpanMut<'_>], flags: libc::c_int) -> io::Result<usize> {
    let mut message = empty_message();
    message.msg_iov = room.as_ptr().cast_mut().cast();
    message.msg_iovlen = room.len().min(MAX_PIECES) as _;
    // SAFETY: `SpanMut` has the layout of `iovec` and names writable memory for its lifetime.
    repeat(|| check_len(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) }))
}

/// Drops the first `n` received bytes of a TCP socket; returns how many there were.
pub fn discard(fd: BorrowedFd<'_>, n: usize) -> io::Result<usize> {
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: with MSG_TRUNC a TCP socket copies nothing, so a null buffer is allowed (tcp(7)).
    repeat(|| check_len(unsafe { libc::recv(fd.as_raw_fd(), std::ptr::null_mut(), n, flags) }))
}

/// Sets an option.
pub fn set(fd: BorrowedFd<'_>, option: IntOption, value: libc::c_int) -> io::Result<()> {
    set_raw(fd, option.level, option.name, &value)
}

/// Reads an option.
pub fn get(fd: BorrowedFd<'_>, option: IntOption) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    get_raw(fd, option.level, option.name, &mut value)?;
    Ok(value)
}

/// Makes the next close send a RST instead of a FIN (SO_LINGER with time 0).
pub fn linger_none(fd: BorrowedFd<'_>) -> io::Result<()> {
    let value = libc::linger { l_onoff: 1, l_linger: 0 };
    set_raw(fd, libc::SOL_SOCKET, libc::SO_LINGER, &value)
}

/// Ties the socket to the interface `name` (SO_BINDTODEVICE).
pub fn bind_to_device(fd: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let bytes = name.to_bytes_with_nul();
    let len = bytes.len() as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
    // SAFETY: `bytes` is readable for `len` bytes.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, bytes.as_ptr().cast(), len) })?;
    Ok(())
}

/// The number, in the socket's namespace, of the interface that it is tied to; `None` before Linux
/// 5.1 as well.
pub fn bound_interface(fd: BorrowedFd<'_>) -> Option<u32> {
    // SO_BINDTOIFINDEX of include/uapi/asm-generic/socket.h, which libc lacks for some targets.
    let index = get(fd, IntOption::new(libc::SOL_SOCKET, 62)).ok()?;
    u32::try_from(index).ok().filter(|index| *index != 0)
}

/// The socket's pending error, cleared by asking (SO_ERROR).
pub fn take_error(fd: BorrowedFd<'_>) -> io::Result<Option<io::Error>> {
    let error = get(fd, IntOption::new(libc::SOL_SOCKET, libc::SO_ERROR))?;
    Ok((error != 0).then(|| io::Error::from_raw_os_error(error)))
}

/// Bytes in the send buffer that are not acknowledged (SIOCOUTQ).
pub fn unacked(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut value: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int, which `value` is.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut value) })?;
    Ok(u32::try_from(value).unwrap_or(0))
}

/// Bytes received and not read (SIOCINQ), urgent ones among them if they stay in line; a FIN does
/// not count.
pub fn unread(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut value: libc::c_int = 0;
    // SAFETY: SIOCINQ (the same number as FIONREAD) writes one int, which `value` is.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut value) })?;
    Ok(usize::try_from(value).unwrap_or(0))
}

/// Size of the send buffer and bytes in it, overhead included (SO_MEMINFO).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendMemory {
    /// Bytes that the buffer may hold (`sk_sndbuf`).
    pub size: u32,
    /// Bytes that it holds (`sk_wmem_queued`).
    pub queued: u32,
}

/// The state of the send buffer.
pub fn send_memory(fd: BorrowedFd<'_>) -> io::Result<SendMemory> {
    const SIZE: usize = libc::SK_MEMINFO_SNDBUF as usize;
    const QUEUED: usize = libc::SK_MEMINFO_WMEM_QUEUED as usize;
    let mut values = [0u32; 9];
    get_raw(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut values)?;
    Ok(SendMemory { size: values[SIZE], queued: values[QUEUED] })
}

/// The parts of TCP_INFO that we use. What the kernel is too old to tell is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// State number (`TCP_ESTABLISHED` = 1 and so on, include/net/tcp_states.h).
    pub state: u8,
    /// Smoothed round-trip time, in microseconds.
    pub rtt_us: u32,
    /// Largest payload of a segment that is sent.
    pub send_mss: u32,
    /// Sequence numbers that the peer has acknowledged, SYN and FIN included (Linux 4.1).
    pub bytes_acked: Option<u64>,
    /// The peer's window in bytes (Linux 5.4).
    pub peer_window: Option<u32>,
}

/// What the kernel knows of a TCP connection.
pub fn tcp_info(fd: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    // SAFETY: `tcp_info` is integers only, for which zeroes are valid.
    let mut raw: libc::tcp_info = unsafe { std::mem::zeroed() };
    let len = get_raw(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut raw)?;
    // Fields behind the length that the kernel tells were never written.
    let told = |offset: usize, size: usize| len >= offset + size;
    let bytes_acked = told(offset_of!(libc::tcp_info, tcpi_bytes_acked), 8);
    let peer_window = told(offset_of!(libc::tcp_info, tcpi_snd_wnd), 4);
    Ok(TcpInfo {
        state: raw.tcpi_state,
        rtt_us: raw.tcpi_rtt,
        send_mss: raw.tcpi_snd_mss,
        bytes_acked: bytes_acked.then_some(raw.tcpi_bytes_acked),
        peer_window: peer_window.then_some(raw.tcpi_snd_wnd),
    })
}

fn set_raw<T>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let len = size_of_val(value) as libc::socklen_t;
    let value: *const T = value;
    // SAFETY: `value` is readable for its own size.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.cast(), len) })?;
    Ok(())
}

/// Reads an option into `value`; returns how many bytes the kernel wrote. `T` must be made of
/// integers, for which any bytes are valid: it is private, and the callers above keep to that.
fn get_raw<T>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &mut T,
) -> io::Result<usize> {
    let mut len = size_of::<T>() as libc::socklen_t;
    let value: *mut T = value;
    // SAFETY: `value` is writable for `len` bytes, and any bytes make a valid `T` (see above).
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.cast(), &raw mut len) })?;
    Ok(len as usize)
}

fn empty_message() -> libc::msghdr {
    // SAFETY: `msghdr` is pointers and integers; null and zero are valid for all of them.
    unsafe { std::mem::zeroed() }
}

/// Repeats a call that a signal has interrupted.
pub(super) fn repeat<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
