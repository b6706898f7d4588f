//! Peeking behind bytes that stay in the socket: with SO_PEEK_OFF, and without.
//!
//! With it the kernel keeps an offset of its own, which a peek moves on by what it gave and a read
//! moves back by what it took (never below 0). [`Stream::peek_offset`] follows it, so that the
//! option is set only when a peek starts elsewhere: after a retransmission, and once at the start.
//!
//! A peek ends before a byte that is marked as urgent, unless it starts there (`tcp_recvmsg_locked`;
//! that such bytes stay in line changes nothing). A peek by the kernel's offset only has to be
//! repeated. One that starts at the front of the socket cannot pass the mark before all that stands
//! in front of it was discarded.

use super::stream::{Stream, is_read_closed};
use crate::host::MAX_ROOM;
use crate::span::SpanMut;
use crate::sys::socket::{self, IntOption};
use std::io;
use std::os::fd::AsFd;

/// Memory for bytes that nobody asked for, allocated when it is first needed.
#[derive(Debug)]
pub(super) struct Scratch {
    memory: Vec<u8>,
    piece: usize,
}

impl Scratch {
    /// How often the same memory may be named in one peek. With pieces of 1 MiB the largest window
    /// can be skipped (16 MiB).
    const MAX_PIECES: usize = socket::MAX_PIECES - MAX_ROOM;

    /// At most `piece` bytes.
    pub(super) const fn of_pieces(piece: usize) -> Self {
        Self { memory: Vec::new(), piece }
    }

    /// Bytes allocated.
    #[cfg(test)]
    pub(super) const fn len(&self) -> usize {
        self.memory.len()
    }

    /// Appends pieces for `skip` bytes, all of them naming the same memory; false if that is more
    /// than can be skipped.
    fn cover<'a>(&'a mut self, skip: usize, pieces: &mut Vec<SpanMut<'a>>) -> bool {
        if self.piece == 0 || skip.div_ceil(self.piece) > Self::MAX_PIECES {
            return false;
        }
        let size = skip.min(self.piece).max(self.memory.len());
        self.memory.resize(size, 0);
        let scratch = SpanMut::from_slice(&mut self.memory);
        let mut left = skip;
        while left > 0 {
            let piece = scratch.take(left);
            left -= piece.len();
            pieces.push(piece);
        }
        true
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::of_pieces(1 << 20)
    }
}

impl Stream {
    /// Peeks behind `skip` bytes by the kernel's offset.
    pub(super) fn peek_at_offset(
        &mut self,
        skip: usize,
        room: &[SpanMut<'_>],
    ) -> io::Result<usize> {
        if self.peek_offset != Some(skip) {
            let offset = i32::try_from(skip).map_err(|_| io::ErrorKind::InvalidInput)?;
            self.peek_offset = None;
            socket::set(self.as_fd(), IntOption::PEEK_OFFSET, offset)?;
            self.peek_offset = Some(skip);
        }
        let n = socket::peek(self.as_fd(), room)?;
        self.peek_offset = skip.checked_add(n);
        Ok(n)
    }

    /// Peeks behind `skip` bytes by reading those into `scratch`.
    pub(super) fn peek_behind(
        &self,
        skip: usize,
        room: &[SpanMut<'_>],
        scratch: &mut Scratch,
    ) -> io::Result<usize> {
        if skip == 0 {
            return socket::peek(self.as_fd(), room);
        }
        let room = room.get(..MAX_ROOM).unwrap_or(room);
        let mut pieces = Vec::with_capacity(Scratch::MAX_PIECES + room.len());
        if !scratch.cover(skip, &mut pieces) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        pieces.extend_from_slice(room);
        self.peek_pieces(skip, &pieces)
    }

    /// Peeks into `pieces`, of which the first `skip` bytes do not count. When nothing is behind
    /// them the count cannot tell the end of the stream from a pause or from a mark. The state and,
    /// after it, how much is there can.
    fn peek_pieces(&self, skip: usize, pieces: &[SpanMut<'_>]) -> io::Result<usize> {
        let behind = |n: usize| n.checked_sub(skip).filter(|&n| n > 0);
        if let Some(n) = behind(socket::peek(self.as_fd(), pieces)?) {
            return Ok(n);
        }
        if !is_read_closed(socket::tcp_info(self.as_fd())?) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if socket::unread(self.as_fd())? <= skip {
            return Ok(0);
        }
        // The last bytes came after the first peek, or a mark stands before them.
        let n = socket::peek(self.as_fd(), pieces)?;
        behind(n).ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    /// Drops the first `n` bytes.
    pub(super) fn discard(&mut self, n: usize) -> io::Result<usize> {
        let n = socket::discard(self.as_fd(), n)?;
        self.peek_offset = self.peek_offset.map(|offset| offset.saturating_sub(n));
        Ok(n)
    }
}
