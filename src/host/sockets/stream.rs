//! One TCP socket.

use crate::host::StreamInfo;
use crate::sys::epoll::Epoll;
use crate::sys::socket::{self, SendMemory, TcpInfo};
use crate::time::Duration;
use crate::token::{Interest, Token};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A TCP connection of the kernel's; closed on drop.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
    v4: bool,
    /// We opened it: the kernel counts our SYN among the bytes acknowledged.
    opened: bool,
    watched: Option<(Token, Interest)>,
    /// Where the kernel starts the next peek, once it was told.
    pub(super) peek_offset: Option<usize>,
}

impl Stream {
    /// A socket that we have connected.
    pub(super) const fn connected(fd: OwnedFd, v4: bool) -> Self {
        Self { fd, v4, opened: true, watched: None, peek_offset: None }
    }

    /// A socket that a listener has accepted; `v4` is the family of the socket, not that of the
    /// peer: a dual-stack listener gives IPv6 sockets.
    pub(in crate::host) const fn accepted(fd: OwnedFd, v4: bool) -> Self {
        Self { fd, v4, opened: false, watched: None, peek_offset: None }
    }

    /// Whether the socket is of the IPv4 family.
    pub const fn is_ipv4(&self) -> bool {
        self.v4
    }

    pub(super) fn watch(
        &mut self,
        epoll: &Epoll,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        match self.watched {
            Some(same) if same == (token, interest) => return Ok(()),
            Some(_) => epoll.modify(self.fd.as_fd(), token, interest)?,
            None => epoll.add(self.fd.as_fd(), token, interest)?,
        }
        self.watched = Some((token, interest));
        Ok(())
    }

    pub(super) fn info(&self) -> io::Result<StreamInfo> {
        let tcp = socket::tcp_info(self.as_fd())?;
        let unacked = socket::unacked(self.as_fd())?;
        let memory = socket::send_memory(self.as_fd())?;
        Ok(StreamInfo {
            bytes_acked: tcp.bytes_acked.map(|n| n.saturating_sub(u64::from(self.opened))),
            peer_window: tcp.peer_window,
            rtt: Duration::from_micros(u64::from(tcp.rtt_us)),
            peer_mss: u16::try_from(tcp.send_mss).unwrap_or(u16::MAX),
            send_room: send_room(memory, unacked, tcp.send_mss),
            unacked,
            established: is_established(tcp),
        })
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether both handshakes are done and not both ends closed: ESTABLISHED, FIN_WAIT1, FIN_WAIT2,
/// CLOSE_WAIT, LAST_ACK, CLOSING (include/net/tcp_states.h).
const fn is_established(tcp: TcpInfo) -> bool {
    matches!(tcp.state, 1 | 4 | 5 | 8 | 9 | 11)
}

/// Whether the peer's FIN has arrived: CLOSE_WAIT, LAST_ACK, CLOSING, and TIME_WAIT and CLOSE,
/// which come later.
pub(super) const fn is_read_closed(tcp: TcpInfo) -> bool {
    matches!(tcp.state, 6 | 7 | 8 | 9 | 11)
}

/// How much of a send buffer of `size` bytes we count on: the kernel's own overhead is not part of
/// `queued` until it is needed, and grows with the buffer.
fn usable(size: u32) -> u32 {
    const SMALL: u32 = 128 << 10;
    const LARGE: u32 = 4 << 20;
    let lost_quarter = match size {
        0..SMALL => 0,
        SMALL..LARGE => (u64::from(size - SMALL) << 16) / u64::from(LARGE - SMALL),
        LARGE.. => 1 << 16,
    };
    // `lost_quarter` is the share of the last quarter that is not counted on, in 1/65536.
    let lost = (u64::from(size / 4) * lost_quarter) >> 16;
    u32::try_from(u64::from(size).saturating_sub(lost)).unwrap_or(size)
}

/// Payload that the send buffer still takes, given how much of it the queued payload
/// (`unacked`, in segments of `mss`) uses up.
fn send_room(memory: SendMemory, unacked: u32, mss: u32) -> u32 {
    let SendMemory { size, queued } = memory;
    let overhead = queued.saturating_sub(unacked);
    if unacked == 0 || overhead == 0 || mss == 0 {
        return usable(size).saturating_sub(queued);
    }
    let segments = (unacked / mss).max(1);
    let whole = u64::from(mss) + u64::from(overhead / segments);
    let room = u64::from(size.saturating_sub(queued)) / whole * u64::from(mss);
    u32::try_from(room).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_discounts_the_overhead_that_is_seen() {
        let room =
            |size, queued, unacked, mss| send_room(SendMemory { size, queued }, unacked, mss);
        assert_eq!(room(46_080, 0, 0, 1460), 46_080);
        assert_eq!(room(46_080, 50_000, 40_000, 1460), 0, "more queued than the buffer holds");
        assert_eq!(room(0, 5, 0, 1460), 0, "never below zero");
        // 10 segments of 1000 with 280 of overhead each: 87 200 / 1280 = 68 segments.
        assert_eq!(room(100_000, 12_800, 10_000, 1000), 68_000);
        // Less than a segment is one segment.
        assert_eq!(room(10_000, 1_000, 500, 1000), 6_000);
        assert_eq!(room(u32::MAX, u32::MAX, u32::MAX, 1), 0);
        assert_eq!(room(u32::MAX, 2, 1, 1), (u32::MAX - 2) / 2);
        assert_eq!(room(46_080, 100, 100, 0), 45_980, "no segment size known");
    }

    #[test]
    fn usable_buffer_falls_from_all_to_three_quarters() {
        assert_eq!(usable(100_000), 100_000);
        assert_eq!(usable(128 << 10), 128 << 10);
        assert_eq!(usable(4 << 20), 3 << 20);
        assert_eq!(usable(64 << 20), 48 << 20);
        let middle = (128 << 10) + ((4 << 20) - (128 << 10)) / 2;
        assert_eq!(usable(middle), middle - middle / 8);
        assert_eq!(usable(u32::MAX), u32::MAX - u32::MAX / 4);
    }
}
