//! Many messages in one call: sendmmsg and recvmmsg, with the control messages that we use.

use super::address::RawAddress;
use super::{MAX_PIECES, repeat};
use crate::span::{Span, SpanMut, recycle_mut};
use crate::sys::{check, check_len};
use std::fmt;
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Room for the control messages of one message: an in6_pktinfo, the size of a run, or a
/// sock_extended_err with an address.
const CONTROL: usize = 256;

/// Control messages, aligned as the kernel writes them.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// What a received message says besides its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Bytes received.
    pub len: usize,
    /// The sender, if asked for.
    pub from: Option<SocketAddr>,
    /// Our address that it was sent to, if the socket tells (IP_PKTINFO, IPV6_RECVPKTINFO).
    pub to: Option<IpAddr>,
    /// Set when this is a run of datagrams of this size, the last one shorter (UDP_GRO).
    pub segment: Option<u16>,
}

/// Where messages of a socket that is not connected go, and what they say of themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Who is to get them, in the family of the socket.
    pub to: SocketAddr,
    /// Our address that they come from, in the same family.
    pub from: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
}

/// An entry of a socket's error queue (`struct sock_extended_err`, ip(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuedError {
    /// The error number.
    pub errno: i32,
    /// Whether it came with an ICMP or ICMPv6 message.
    pub icmp: bool,
    /// Type of that.
    pub kind: u8,
    /// Code of that.
    pub code: u8,
    /// The MTU, for "fragmentation needed" and "packet too big".
    pub info: u32,
    /// Who sent it.
    pub offender: Option<IpAddr>,
    /// Bytes of the message that caused it, as far as they were copied.
    pub quoted: usize,
}

/// The tables that the calls need, kept for reuse. Empty between calls as far as meaning goes.
#[derive(Default)]
pub struct Messages {
    headers: Vec<libc::mmsghdr>,
    controls: Vec<Control>,
    names: Vec<RawAddress>,
    pieces: Vec<SpanMut<'static>>,
}

impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Messages").field("room", &self.headers.capacity()).finish()
    }
}

const EMPTY: libc::mmsghdr = {
    // SAFETY: pointers and integers; null and zero are valid for all of them.
    unsafe { std::mem::zeroed() }
};

impl Messages {
    /// Tables without room; they grow as needed.
    pub fn new() -> Self {
        Self::default()
    }

    fn prepare(&mut self, n: usize) {
        self.headers.clear();
        self.headers.resize(n, EMPTY);
        self.controls.resize(n.max(self.controls.len()), Control([0; CONTROL]));
        self.names.resize(n.max(self.names.len()), RawAddress::room());
    }

    /// Sends messages on a connected socket, or the way that `route` says; each takes so many of
    /// `spans`, and is, with a segment size, a run of datagrams of that size. Returns how many were
    /// taken.
    pub fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        route: Option<&Route>,
        messages: impl ExactSizeIterator<Item = (usize, Option<u16>)>,
        mut spans: &[Span<'_>],
    ) -> io::Result<usize> {
        self.prepare(messages.len().min(MAX_PIECES));
        let name = route.map(|route| RawAddress::from(route.to));
        let tables = self.headers.iter_mut().zip(&mut self.controls);
        for ((header, control), (count, segment)) in tables.zip(messages) {
            let (own, rest) = spans.split_at(count.min(spans.len()));
            spans = rest;
            header.msg_hdr.msg_iov = own.as_ptr().cast_mut().cast();
            // More than MAX_PIECES are for the kernel to refuse: a message is sent whole or not.
            header.msg_hdr.msg_iovlen = own.len() as _;
            if let Some(name) = &name {
                header.msg_hdr.msg_name = name.as_ptr().cast_mut().cast();
                header.msg_hdr.msg_namelen = name.len();
            }
            write_controls(&mut header.msg_hdr, control, route, segment);
        }
        let count = self.headers.len() as libc::c_uint;
        let table = self.headers.as_mut_ptr();
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: each header names spans that are borrowed for this call (`Span` has the layout
        // of `iovec`), and a control buffer and a name of ours that nothing moves until it is over.
        let n = repeat(|| check(unsafe { libc::sendmmsg(fd.as_raw_fd(), table, count, flags) }))?;
        Ok(usize::try_from(n).unwrap_or(0))
    }

    /// Receives messages into equal parts of `room`, `stride` bytes each, and appends what they
    /// say to `out`. `names` asks for the senders.
    pub fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        room: &mut [u8],
        stride: usize,
        names: bool,
        out: &mut Vec<Received>,
    ) -> io::Result<usize> {
        let count = room.len().checked_div(stride).unwrap_or(0).min(MAX_PIECES);
        self.prepare(count);
        let mut pieces = recycle_mut(std::mem::take(&mut self.pieces));
        let whole = SpanMut::from_slice(room);
        pieces.extend((0..count).map(|i| whole.skip(i * stride).take(stride)));
        let tables = self.headers.iter_mut().zip(&mut pieces);
        for (((header, piece), control), name) in
            tables.zip(&mut self.controls).zip(&mut self.names)
        {
            header.msg_hdr.msg_iov = std::ptr::from_mut(piece).cast();
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL as _;
            if names {
                let (address, len) = name.as_mut_parts();
                header.msg_hdr.msg_name = address.cast();
                // SAFETY: `len` points into `name`, which is borrowed here.
                header.msg_hdr.msg_namelen = unsafe { *len };
            }
        }
        let (table, flags) = (self.headers.as_mut_ptr(), libc::MSG_DONTWAIT);
        let (count, none) = (count as libc::c_uint, std::ptr::null_mut());
        let result = repeat(|| {
            // SAFETY: each header names a piece of `room`, a control buffer and a name of ours;
            // none of them moves until the call is over. The timeout may be null.
            check(unsafe { libc::recvmmsg(fd.as_raw_fd(), table, count, flags as _, none) })
        });
        self.pieces = recycle_mut(pieces);
        let n = usize::try_from(result?).unwrap_or(0);
        for (header, name) in self.headers.iter().zip(&self.names).take(n) {
            let mut message = Received { len: header.msg_len as usize, ..Received::default() };
            if names {
                message.from = name.with_len(header.msg_hdr.msg_namelen).to_socket_addr().ok();
            }
            for_each_control(&header.msg_hdr, |level, kind, data| {
                read_control(&mut message, level, kind, data);
            });
            out.push(message);
        }
        Ok(n)
    }
}

/// The next entry of the error queue, with the start of the message that caused it.
pub fn next_error(fd: BorrowedFd<'_>, quote: &mut [u8]) -> io::Result<Option<QueuedError>> {
    let mut control = Control([0; CONTROL]);
    let mut piece = SpanMut::from_slice(quote);
    let mut message = EMPTY.msg_hdr;
    message.msg_iov = (&raw mut piece).cast();
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the header names `quote` and `control`, both alive and borrowed during the call.
    let result =
        repeat(|| check_len(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) }));
    let quoted = match result {
        Ok(n) => n.min(piece.len()),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut found = None;
    for_each_control(&message, |level, kind, data| {
        let v4 = (level, kind) == (libc::IPPROTO_IP, libc::IP_RECVERR);
        let v6 = (level, kind) == (libc::IPPROTO_IPV6, libc::IPV6_RECVERR);
        if v4 || v6 {
            found = read_error(data, quoted);
        }
    });
    // An entry that says nothing is of no kind that we have asked for.
    let nothing =
        QueuedError { errno: 0, icmp: false, kind: 0, code: 0, info: 0, offender: None, quoted };
    Ok(Some(found.unwrap_or(nothing)))
}

/// A `sock_extended_err`, and behind it the offender's address.
fn read_error(data: &[u8], quoted: usize) -> Option<QueuedError> {
    let (error, rest) = data.split_at_checked(size_of::<libc::sock_extended_err>())?;
    // SAFETY: as many bytes as the type has, which is integers only.
    let error = unsafe { error.as_ptr().cast::<libc::sock_extended_err>().read_unaligned() };
    let offender = RawAddress::from_bytes(rest).to_socket_addr().ok();
    Some(QueuedError {
        errno: i32::try_from(error.ee_errno).unwrap_or(0),
        icmp: matches!(error.ee_origin, libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6),
        kind: error.ee_type,
        code: error.ee_code,
        info: error.ee_info,
        offender: offender.map(|address| address.ip().to_canonical()),
        quoted,
    })
}

/// Puts what `route` and `segment` say into `control`, for `message`.
fn write_controls(
    message: &mut libc::msghdr,
    control: &mut Control,
    route: Option<&Route>,
    segment: Option<u16>,
) {
    let mut used = 0;
    if let Some(Route { to, from, ttl }) = route {
        match from {
            // struct in_pktinfo: interface, local address, destination of the header.
            IpAddr::V4(from) => {
                let mut info = [0; size_of::<libc::in_pktinfo>()];
                info[4..8].copy_from_slice(&from.octets());
                used = put_control(control, used, (libc::IPPROTO_IP, libc::IP_PKTINFO), &info);
            }
            // struct in6_pktinfo: local address, interface.
            IpAddr::V6(from) => {
                let mut info = [0; size_of::<libc::in6_pktinfo>()];
                info[..16].copy_from_slice(&from.octets());
                used = put_control(control, used, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), &info);
            }
        }
        // What goes to a mapped address is IPv4.
        let kind = if to.ip().to_canonical().is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_TTL)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT)
        };
        used = put_control(control, used, kind, &libc::c_int::from(*ttl).to_ne_bytes());
    }
    if let Some(size) = segment {
        let kind = (libc::IPPROTO_UDP, libc::UDP_SEGMENT);
        used = put_control(control, used, kind, &size.to_ne_bytes());
    }
    if used > 0 {
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = used as _;
    }
}

/// Puts a control message of this level and type behind the `used` bytes of `control`; returns how
/// many are used then.
fn put_control(
    control: &mut Control,
    used: usize,
    (level, kind): (libc::c_int, libc::c_int),
    data: &[u8],
) -> usize {
    let data_len = data.len() as libc::c_uint;
    // SAFETY: no pointers; the macros compute lengths.
    let (space, len) = unsafe { (libc::CMSG_SPACE(data_len), libc::CMSG_LEN(data_len)) };
    let Some(room) = control.0.get_mut(used..used + space as usize) else { return used };
    let header = room.as_mut_ptr().cast::<libc::cmsghdr>();
    // SAFETY: `room` has place for header and data, and is aligned: the buffer is, and all spaces
    // are multiples of the alignment.
    unsafe {
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = len as _;
        std::ptr::copy_nonoverlapping(data.as_ptr(), libc::CMSG_DATA(header), data.len());
    }
    used + space as usize
}

/// Calls `each` with level, type and data of the control messages that the kernel has written.
fn for_each_control(message: &libc::msghdr, mut each: impl FnMut(libc::c_int, libc::c_int, &[u8])) {
    // SAFETY: no pointers; the macro computes a length.
    let overhead = unsafe { libc::CMSG_LEN(0) } as usize;
    // SAFETY: `msg_control` is a buffer of ours, alive during the call, of which the kernel has
    // filled `msg_controllen` bytes with well-formed messages; the macros stay inside these.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            let len = ((*header).cmsg_len as usize).saturating_sub(overhead);
            let data = std::slice::from_raw_parts(libc::CMSG_DATA(header), len);
            each((*header).cmsg_level, (*header).cmsg_type, data);
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
}

fn read_control(message: &mut Received, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
    match (level, kind) {
        (libc::IPPROTO_UDP, libc::UDP_GRO) => {
            let size = data.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
            message.segment = size.and_then(|n| u16::try_from(n).ok()).filter(|&n| n > 0);
        }
        // struct in_pktinfo: interface, local address, destination of the header.
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            let addr = data.get(8..12).and_then(|bytes| bytes.first_chunk::<4>());
            message.to = addr.map(|bytes| Ipv4Addr::from(*bytes).into());
        }
        // struct in6_pktinfo: destination, interface.
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            let addr = data.first_chunk::<16>();
            message.to = addr.map(|bytes| IpAddr::V6(Ipv6Addr::from(*bytes)).to_canonical());
        }
        _ => {}
    }
}
