//! The gate in front of the `vhost` crate's request handler, which blocks on a partial message,
//! gives up on messages it does not know, and refuses what QEMU sends early.
//!
//! A message is looked at without being taken. The handler gets it when all of it is there and it
//! is one the handler knows; the gate answers the others itself.

use super::session::Session;
use crate::sys::unix::{peek, receive, unread, unsent};
use nix::sys::socket::{MsgFlags, send};
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vhost::vhost_user::{VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures};

/// Bytes of a message's header: request, flags, size, all native u32.
const HEADER: usize = 12;

/// The longest body that we take, as the `vhost` crate.
const MAX_BODY: usize = 4096;

/// Bytes of replies that may wait unread: a front-end that reads none would block our next one.
const MAX_UNREAD_REPLIES: usize = 128 * 1024;

/// Message flags: version (2 bits), reply, need-reply.
const VERSION_MASK: u32 = 3;
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// Requests that the gate knows.
mod request {
    pub(super) const SET_MEM_TABLE: u32 = 5;
    pub(super) const SET_LOG_FD: u32 = 7;
    pub(super) const GET_QUEUE_NUM: u32 = 17;
    pub(super) const SET_VRING_ENABLE: u32 = 18;
    pub(super) const SEND_RARP: u32 = 19;
    pub(super) const NET_SET_MTU: u32 = 20;
    pub(super) const IOTLB_MSG: u32 = 22;
    pub(super) const SET_VRING_ENDIAN: u32 = 23;
    pub(super) const CREATE_CRYPTO_SESSION: u32 = 26;
    pub(super) const POSTCOPY_END: u32 = 30;
    pub(super) const VRING_KICK: u32 = 35;
    pub(super) const SET_STATUS: u32 = 39;
    pub(super) const GET_STATUS: u32 = 40;
    /// The last one that the handler knows.
    pub(super) const GET_SHMEM_CONFIG: u32 = 44;
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// No whole message is there yet.
    Wait,
    /// The front-end has gone, or sent what makes the stream unreadable.
    Close,
    /// A whole message is there for the handler.
    Handle,
    /// The gate has dealt with a message; `true` when it was refused.
    Done {
        /// Whether it was refused.
        refused: bool,
    },
}

/// A message's header.
#[derive(Clone, Copy, Debug)]
struct Header {
    request: u32,
    flags: u32,
    size: usize,
}

/// Looks at the next message on `stream`. Never blocks.
pub(super) fn step(stream: &UnixStream, session: &mut Session) -> Step {
    let header = match next_header(stream) {
        Ok(Some(header)) => header,
        Ok(None) => return Step::Wait,
        Err(()) => return Step::Close,
    };
    if header.size > MAX_BODY || header.flags & (VERSION_MASK | REPLY) != VERSION {
        return Step::Close;
    }
    match unread(stream.as_fd()) {
        Ok(n) if n < HEADER + header.size => return Step::Wait,
        Ok(_) => {}
        Err(_) => return Step::Close,
    }
    if unsent(stream.as_fd()).is_ok_and(|n| n > MAX_UNREAD_REPLIES) {
        return Step::Close;
    }
    if is_for_handler(header.request, session) {
        return Step::Handle;
    }
    intercept(stream, header, session).unwrap_or(Step::Close)
}

/// The next header; `None` when it is not there in full, an error when there will be none, or one
/// whose descriptors we cannot have: the handler would lose the header with them and wait for
/// another.
fn next_header(stream: &UnixStream) -> Result<Option<Header>, ()> {
    let mut bytes = [0; HEADER];
    match peek(stream.as_fd(), &mut bytes) {
        Ok((HEADER, true)) => {
            let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
            Ok(Some(Header {
                request: u32::from_ne_bytes([a, b, c, d]),
                flags: u32::from_ne_bytes([e, f, g, h]),
                size: u32::from_ne_bytes([i, j, k, l]) as usize,
            }))
        }
        Ok((0, _) | (_, false)) => Err(()),
        // A look ends where descriptors are attached, and they belong to whole headers.
        Ok(_) if unread(stream.as_fd()).is_ok_and(|n| n >= HEADER) => Err(()),
        Ok(_) => Ok(None),
        Err(e) => match e.kind() {
            ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(None),
            _ => Err(()),
        },
    }
}

/// Whether the crate's handler can deal with a request, in this state of the session.
fn is_for_handler(code: u32, session: &Session) -> bool {
    match code {
        // QEMU's virtio-net sends it before SET_FEATURES (peer_attach() at device reset).
        request::SET_VRING_ENABLE => session.knows_protocol_features(),
        // The handler leaves it unanswered unless MQ was negotiated.
        request::GET_QUEUE_NUM => session.has_protocol(VhostUserProtocolFeatures::MQ),
        // The handler wants bodies of exactly as many regions as there are; user-mode Linux 6.1
        // always sends room for two.
        request::SET_MEM_TABLE => false,
        0
        | request::SET_LOG_FD
        | request::SEND_RARP
        | request::NET_SET_MTU
        | request::IOTLB_MSG
        | request::SET_VRING_ENDIAN
        | request::CREATE_CRYPTO_SESSION..=request::POSTCOPY_END
        | request::VRING_KICK
        | request::SET_STATUS
        | request::GET_STATUS => false,
        _ => code <= request::GET_SHMEM_CONFIG,
    }
}

/// Takes a message off the stream and answers it. Descriptors that it does not call for are closed.
fn intercept(stream: &UnixStream, header: Header, session: &mut Session) -> Option<Step> {
    let mut message = [0; HEADER + MAX_BODY];
    let message = message.get_mut(..HEADER + header.size)?;
    let mut descriptors = Vec::new();
    let mut got = 0;
    while let Some(rest @ [_, ..]) = message.get_mut(got..) {
        // A read ends where descriptors are attached: so more than one may be needed.
        match receive(stream.as_fd(), rest, &mut descriptors) {
            Ok(n @ 1..) => got += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            _ => return None,
        }
    }
    let body = message.get(HEADER..)?;
    if header.request == request::GET_QUEUE_NUM {
        // Queue pairs. This one is always replied to.
        reply(stream, header.request, 1)?;
        return Some(Step::Done { refused: false });
    }
    let done = match header.request {
        request::SET_MEM_TABLE => {
            let files = descriptors.into_iter().map(File::from).collect();
            set_mem_table(body, files, session).is_some()
        }
        request::SET_VRING_ENABLE => enable_early(body, session).is_some(),
        request::SEND_RARP => true,
        request::NET_SET_MTU => body.len() == 8,
        _ => false,
    };
    if header.flags & NEED_REPLY != 0 && session.has_protocol(VhostUserProtocolFeatures::REPLY_ACK)
    {
        reply(stream, header.request, u64::from(!done))?;
    }
    Some(Step::Done { refused: !done })
}

/// SET_MEM_TABLE {number u32, padding u32, regions {guest, size, VMM's, offset: u64}}, one
/// descriptor for each; what follows them is not looked at.
fn set_mem_table(body: &[u8], files: Vec<File>, session: &mut Session) -> Option<()> {
    let (number, rest) = body.split_first_chunk::<4>()?;
    let number = u32::from_ne_bytes(*number) as usize;
    if number == 0 || number != files.len() {
        return None;
    }
    let mut words = rest.get(4..)?.chunks_exact(8).map(|word| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(word);
        u64::from_ne_bytes(bytes)
    });
    let mut regions = Vec::with_capacity(number);
    for _ in 0..number {
        let (guest, size) = (words.next()?, words.next()?);
        regions.push(VhostUserMemoryRegion::new(guest, size, words.next()?, words.next()?));
    }
    session.set_mem_table(&regions, files, None).ok().map(drop)
}

/// SET_VRING_ENABLE {index u32, enable u32} before SET_FEATURES.
fn enable_early(body: &[u8], session: &mut Session) -> Option<()> {
    let [a, b, c, d, enable @ ..] = <[u8; 8]>::try_from(body).ok()?;
    let enable = match u32::from_ne_bytes(enable) {
        0 => false,
        1 => true,
        _ => return None,
    };
    session.enable(u32::from_ne_bytes([a, b, c, d]), enable).ok()
}

/// Sends a reply of one u64.
fn reply(stream: &UnixStream, request: u32, value: u64) -> Option<()> {
    let mut message = [0; HEADER + 8];
    let (header, body) = message.split_at_mut(HEADER);
    for (place, word) in header.chunks_exact_mut(4).zip([request, VERSION | REPLY, 8]) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    body.copy_from_slice(&value.to_ne_bytes());
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    (send(stream.as_raw_fd(), &message, flags) == Ok(message.len())).then_some(())
}
