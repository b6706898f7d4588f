//! A conversation with the kernel: dumps, and changes that are acknowledged one by one.
//!
//! Knows how messages are framed, numbered and answered, and not what they say. The socket may
//! belong to another network namespace than ours: then the answers are about that one.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// Dumps that were torn by a change are asked for again, at most this often.
const ATTEMPTS: u32 = 4;

/// Changes in one datagram at most: their answers must fit the socket's receive buffer.
const BATCH: usize = 32;

/// Messages that end a dump (netlink(7)).
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// More than the kernel puts into one datagram of a dump (32 KiB).
const MAX_DATAGRAM: usize = 1 << 16;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A connection to the kernel.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    sequence: u32,
    datagram: Vec<u8>,
}

impl Channel {
    /// A conversation on a NETLINK_ROUTE socket that blocks.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, sequence: 0, datagram: vec![0; MAX_DATAGRAM] }
    }

    /// A conversation about our own network namespace.
    ///
    /// # Errors
    /// Netlink itself does not work.
    pub fn open() -> io::Result<Self> {
        let kind = (SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute);
        Ok(Self::new(socket(AddressFamily::Netlink, kind.0, kind.1, kind.2)?))
    }

    /// All that the kernel answers to `question`. Single messages that cannot be decoded (newer
    /// kernels say more) are left out.
    ///
    /// # Errors
    /// Those of the socket, and what the kernel answers instead.
    pub fn dump(&mut self, question: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut answers = Vec::new();
        for _ in 0..ATTEMPTS {
            let (found, whole) = self.dump_once(question.clone())?;
            answers = found;
            if whole {
                break;
            }
        }
        Ok(answers)
    }

    /// One dump, and whether it is consistent.
    fn dump_once(
        &mut self,
        question: RouteNetlinkMessage,
    ) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        let mut bytes = Vec::new();
        self.append(&mut bytes, question, NLM_F_DUMP);
        self.send(&bytes)?;
        let (mut answers, mut whole) = (Vec::new(), true);
        loop {
            let len = self.receive()?;
            for part in Parts(self.datagram.get(..len).unwrap_or_default()) {
                if part.sequence != self.sequence {
                    continue; // the rest of a dump that was given up
                }
                // A change has torn the dump: parts of it may be missing.
                whole &= part.flags & NLM_F_DUMP_INTR == 0;
                match part.kind {
                    NLMSG_DONE => return Ok((answers, whole)),
                    NLMSG_ERROR => return Err(part.outcome().err().unwrap_or_else(nonsense)),
                    _ => answers.extend(decode(part.bytes)),
                }
            }
        }
    }

    /// Asks for one change, with `flags` as for [`Channel::change_all`].
    ///
    /// # Errors
    /// Those of the socket, and the kernel's answer.
    pub fn change(&mut self, change: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut outcome = Err(nonsense());
        self.change_all([change], flags, |_, answer| outcome = answer)?;
        outcome
    }

    /// Asks for many changes in turn, with `flags` (NLM_F_CREATE and others) of each, and tells
    /// `settle` the number of each and what came of it.
    ///
    /// # Errors
    /// Those of the socket: nothing is known of the changes that were not settled.
    pub fn change_all(
        &mut self,
        changes: impl IntoIterator<Item = RouteNetlinkMessage>,
        flags: u16,
        mut settle: impl FnMut(usize, io::Result<()>),
    ) -> io::Result<()> {
        let (mut changes, mut settled) = (changes.into_iter(), 0);
        loop {
            let (mut bytes, mut count) = (Vec::new(), 0);
            for change in changes.by_ref().take(BATCH) {
                self.append(&mut bytes, change, flags | NLM_F_ACK);
                count += 1;
            }
            if count == 0 {
                return Ok(());
            }
            self.send(&bytes)?;
            let end = settled + count;
            while settled < end {
                let len = self.receive()?;
                let parts = Parts(self.datagram.get(..len).unwrap_or_default());
                for part in parts.filter(|part| part.kind == NLMSG_ERROR) {
                    let awaited = self.sequence.wrapping_sub(part.sequence);
                    if usize::try_from(awaited).is_ok_and(|n| settled + n + 1 == end) {
                        settle(settled, part.outcome());
                        settled += 1;
                    }
                }
            }
        }
    }

    /// Appends `message` under the next number.
    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        bytes.extend(request(message, flags, self.sequence));
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        send(self.socket.as_raw_fd(), bytes, MsgFlags::empty())?;
        Ok(())
    }

    /// One datagram; its length.
    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.datagram, MsgFlags::empty()) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(Errno::EINTR) => {}
                received => return Ok(received?),
            }
        }
    }
}

fn nonsense() -> io::Error {
    io::Error::from_raw_os_error(libc::EPROTO)
}

/// A request with this number.
pub(super) fn request(message: RouteNetlinkMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
    message.serialize(&mut bytes);
    bytes
}

/// The message that these bytes, header included, are; `None` if it is not understood.
pub(super) fn decode(bytes: &[u8]) -> Option<RouteNetlinkMessage> {
    match NetlinkMessage::deserialize(bytes).ok()?.payload {
        NetlinkPayload::InnerMessage(message) => Some(message),
        _ => None,
    }
}

/// The messages of a datagram.
pub(super) struct Parts<'a>(pub(super) &'a [u8]);

/// One of them.
pub(super) struct Part<'a> {
    pub(super) bytes: &'a [u8],
    kind: u16,
    flags: u16,
    pub(super) sequence: u32,
}

/// What one message is in the answer to a dump.
pub(super) enum Answer<'a> {
    /// A message to decode.
    Message(&'a [u8]),
    /// That was all.
    Done,
    /// An error instead.
    Refused,
}

impl<'a> Part<'a> {
    /// What this is in the answer to a dump.
    pub(super) const fn answer(&self) -> Answer<'a> {
        match self.kind {
            NLMSG_DONE => Answer::Done,
            NLMSG_ERROR => Answer::Refused,
            _ => Answer::Message(self.bytes),
        }
    }

    /// What a message of type NLMSG_ERROR says: a negative number behind the header, or 0.
    fn outcome(&self) -> io::Result<()> {
        let code = self.bytes.get(HEADER..).and_then(<[u8]>::first_chunk);
        match code.map(|bytes| i32::from_ne_bytes(*bytes)) {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
            None => Err(nonsense()),
        }
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Part<'a>;

    fn next(&mut self) -> Option<Part<'a>> {
        let header: &[u8; HEADER] = self.0.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let len = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let bytes = self.0.get(..len).filter(|b| b.len() >= HEADER)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Part {
            bytes,
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_and_odd_datagrams_are_taken_apart_without_harm() {
        let parts =
            |bytes: &[u8]| Parts(bytes).map(|p| (p.bytes.len(), p.kind)).collect::<Vec<_>>();
        let header = |len: u32, kind: u16| {
            let mut bytes = len.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes
        };
        assert_eq!(parts(&[]), []);
        assert_eq!(parts(&header(16, 3)[..15]), []);
        assert_eq!(parts(&header(16, 3)), [(16, 3)]);
        assert_eq!(parts(&header(15, 3)), []);
        assert_eq!(parts(&header(0, 3)), []);
        assert_eq!(parts(&header(17, 3)), []);
        assert_eq!(parts(&header(u32::MAX, 3)), []);
        let two = [header(18, 7), vec![0; 4], header(16, 3)].concat();
        assert_eq!(parts(&two), [(18, 7), (16, 3)]);
        let odd = [header(17, 7), vec![0; 1]].concat();
        assert_eq!(parts(&odd), [(17, 7)], "the last one needs no padding");
        let answer = |bytes: &[u8]| {
            Parts(bytes).next().expect("has a header").outcome().map_err(|e| e.raw_os_error())
        };
        assert_eq!(answer(&header(16, 2)), Err(Some(libc::EPROTO)));
        let refused = [header(20, 2), (-libc::EPERM).to_ne_bytes().to_vec()].concat();
        assert_eq!(answer(&refused), Err(Some(libc::EPERM)));
        let done = [header(20, 2), vec![0; 4]].concat();
        assert_eq!(answer(&done), Ok(()));
    }
}
