//! A tap: the guest is a network namespace, and its kernel is the driver.
//!
//! One read gives a frame and one write takes one. Where the kernel can do it there is a virtio-net
//! header in front of each frame, so that segments of up to 64 KiB pass at any MTU, with checksums
//! that nobody has to compute; where it cannot, frames are plain. Every header comes from whoever
//! owns the namespace: it is checked here against what was agreed on, and by the engine against the
//! frame.
//!
//! Frames are read into one buffer, many in a batch, and handled where they stand. Frames to the
//! namespace wait in an `Arena`; one that the kernel refuses stays there and is tried again, and
//! meanwhile the arena fills and gives no more room. An interface that is down takes none (EIO):
//! the file becomes writable when it comes up, which is also how the link learns that it is up in
//! the first place. An interface that is gone ends the link.

use super::arena::{Arena, Shape};
use super::virtio;
use super::{Control, ETHERNET_HEADER, Frame, LinkCaps, LinkEvents, MAX_FRAME, Offload, Parts};
use super::{Refused, Sink, Slot, Source};
use crate::span::{Buffer, Span, SpanMut};
use crate::sys::epoll::Epoll;
use crate::sys::{error_text, tap};
use crate::token::{Interest, Readiness, Token};
use crate::wire::MacAddr;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd;
use std::cell::Cell;
use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// [`Token::Link`] of the tap.
const TAP: u32 = 0;

/// Bytes for the frames of a batch.
const SOURCE_BUFFER: usize = 1 << 20;

/// Bytes that one read is given: one more than the largest frame needs.
const LARGEST: usize = virtio::LEN + MAX_FRAME + 1;

/// Frames of one batch at most.
const BATCH: usize = 256;

/// Bytes of frames that wait for the namespace, or are being made for it.
const SINK_BUFFER: usize = 2 << 20;

pub use crate::config::namespace::QUEUE_LENGTH;

/// How often in a row the kernel may have no memory for a frame that it says it has room for.
const TRIES: u8 = 64;

/// What the kernel may leave undone in frames to us, from the most to the least. It knows
/// segmented UDP for both families or for none.
const OFFLOADS: [libc::c_uint; 4] = [
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_USO4 | libc::TUN_F_USO6,
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6,
    libc::TUN_F_CSUM | libc::TUN_F_TSO4,
    libc::TUN_F_CSUM,
];

/// Why there is no tap.
#[derive(Debug)]
pub enum Error {
    /// No interface can have this name.
    BadName(String),
    /// Another interface has this name.
    NameTaken(String),
    /// We have no right to make interfaces there.
    NotPermitted(String),
    /// The descriptor that we were given is not what we need: what it is.
    Given(&'static str),
    /// Anything else.
    System(&'static str, io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadName(name) => write!(f, "Invalid interface name: {name}"),
            Self::NameTaken(name) => write!(
                f,
                "Couldn't create the tap {name}: the namespace has an interface of that name \
                 already, choose another with --ns-ifname"
            ),
            Self::NotPermitted(name) => write!(
                f,
                "Couldn't create the tap {name}: no right to configure that network namespace"
            ),
            Self::Given(what) => write!(f, "The descriptor given is {what}"),
            Self::System(what, e) => write!(f, "Couldn't {what}: {}", error_text(e)),
        }
    }
}

impl std::error::Error for Error {}

/// A tap interface, by its file.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: CString,
    /// What frames to us may be like; `None` if they have no header.
    offloads: Option<LinkCaps>,
}

impl Tap {
    /// Makes the interface `name` on `fd`, which is `/dev/net/tun` opened inside the namespace. The
    /// interface is down and has no addresses.
    ///
    /// # Errors
    /// See [`Error`]; nothing is left behind but `fd`, which is closed.
    pub fn open(fd: OwnedFd, name: &str) -> Result<Self, Error> {
        let bad = || Error::BadName(name.to_owned());
        let wanted = CString::new(name).map_err(|_| bad())?;
        const PLAIN: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_TUN_EXCL;
        let attached = tap::attach(fd.as_fd(), &wanted, PLAIN | libc::IFF_VNET_HDR);
        let (attached, headers) = match attached {
            // Not one that we know of, but headers are what a kernel may lack.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                (tap::attach(fd.as_fd(), &wanted, PLAIN), false)
            }
            other => (other, true),
        };
        let attached = attached.map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY | libc::EEXIST) => Error::NameTaken(name.to_owned()),
            Some(libc::EPERM | libc::EACCES) => Error::NotPermitted(name.to_owned()),
            Some(libc::EINVAL) => bad(),
            _ if e.kind() == io::ErrorKind::InvalidInput => bad(),
            _ => Error::System("create the tap", e),
        })?;
        Self::agree(fd, attached, headers)
    }

    /// Takes over a tap that someone else has made.
    ///
    /// # Errors
    /// When `fd` is none, or one whose frames we do not understand.
    pub fn adopt(fd: OwnedFd) -> Result<Self, Error> {
        let (name, flags) = tap::attached(fd.as_fd()).map_err(|e| match e.raw_os_error() {
            Some(libc::EBADFD) => Error::Given("of /dev/net/tun, but has no interface"),
            _ => Error::Given("no tap"),
        })?;
        if flags & libc::IFF_TAP == 0 {
            return Err(Error::Given("a tun: its packets have no Ethernet header"));
        }
        let tap = Self::agree(fd, name, flags & libc::IFF_VNET_HDR != 0)?;
        if tap.wants_packet_info() {
            return Err(Error::Given("a tap that was made without IFF_NO_PI"));
        }
        Ok(tap)
    }

    /// Whether frames have four more bytes in front. The kernel does not tell: the flag that it
    /// reports has the value of another one. But with them nothing is left for an Ethernet header
    /// of the shortest frame that is allowed without; that one is nobody's, and goes nowhere.
    fn wants_packet_info(&self) -> bool {
        let shortest = vec![0; self.header_len() + ETHERNET_HEADER];
        unistd::write(&self.fd, &shortest) == Err(Errno::EINVAL)
    }

    /// Settles what frames look like.
    fn agree(fd: OwnedFd, name: Vec<u8>, headers: bool) -> Result<Self, Error> {
        let name = CString::new(name).map_err(|_| Error::BadName(String::new()))?;
        fcntl(&fd, FcntlArg::F_GETFL)
            .and_then(|flags| {
                let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
                fcntl(&fd, FcntlArg::F_SETFL(flags))
            })
            .map_err(|e| Error::System("make the tap non-blocking", e.into()))?;
        let offloads = if headers { Some(agree_on_headers(fd.as_fd())?) } else { None };
        Ok(Self { fd, name, offloads })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        // The kernel's names may be any bytes; ours and those of `tap%d` are text.
        self.name.to_str().unwrap_or("?")
    }

    /// The interface's Ethernet address, at present.
    ///
    /// # Errors
    /// When the interface has gone.
    pub fn mac(&self) -> io::Result<MacAddr> {
        tap::hardware_address(self.fd.as_fd()).map(MacAddr)
    }

    /// Leaves the interface to its namespace, with which it goes. Whoever closes the last descriptor
    /// of it waits for the kernel to remove it otherwise, some 25 ms.
    ///
    /// # Errors
    /// None that we know of.
    pub fn leave_to_namespace(&self) -> io::Result<()> {
        tap::set_persistent(self.fd.as_fd())
    }

    /// Lets [`QUEUE_LENGTH`] packets wait for us; `socket` is any socket of the namespace.
    ///
    /// # Errors
    /// When it is not one, or we have no right to.
    pub fn lengthen_queue(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        tap::set_queue_length(socket, &self.name, QUEUE_LENGTH)
    }

    const fn header_len(&self) -> usize {
        if self.offloads.is_some() { virtio::LEN } else { 0 }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Settles what headers look like, and what the kernel may leave undone. Without any offload there
/// is still a header, and we may leave things to the kernel.
fn agree_on_headers(fd: BorrowedFd<'_>) -> Result<LinkCaps, Error> {
    tap::set_header_len(fd, virtio::LEN as libc::c_int)
        .and_then(|()| match tap::set_little_endian(fd) {
            // A kernel that does not know it (before 3.19) writes as its machine does.
            Err(_) if cfg!(target_endian = "little") => Ok(()),
            other => other,
        })
        .map_err(|e| Error::System("agree on headers with the tap", e))?;
    let agreed = OFFLOADS.into_iter().find(|&what| tap::set_offload(fd, what).is_ok());
    let has = |bit| agreed.is_some_and(|what| what & bit != 0);
    Ok(LinkCaps {
        checksum: has(libc::TUN_F_CSUM),
        tcp4_segmentation: has(libc::TUN_F_TSO4),
        tcp6_segmentation: has(libc::TUN_F_TSO6),
        udp4_segmentation: has(libc::TUN_F_USO4),
        udp6_segmentation: has(libc::TUN_F_USO6),
        max_frame: MAX_FRAME,
    })
}

/// The link to a namespace.
pub type TapLink = Parts<TapControl>;

impl TapLink {
    /// Carries frames of `tap`, whose interface may be up or not.
    ///
    /// # Errors
    /// What epoll says.
    pub fn new(tap: Tap, epoll: Rc<Epoll>) -> io::Result<Self> {
        epoll.add(tap.as_fd(), Token::Link(TAP), Watch::interest(true))?;
        let watch = Rc::new(Watch { tap, epoll, room: Cell::new(true), broken: Cell::new(false) });
        let source = TapSource::new(Rc::clone(&watch));
        let sink = TapSink::new(Rc::clone(&watch));
        Ok(Self { control: TapControl { watch }, source, sink })
    }

    /// What was wrong with frames.
    pub const fn stats(&self) -> Stats {
        Stats { lost_frames: self.sink.lost_frames, ..self.source.stats }
    }
}

/// What was wrong with frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames from the namespace that were shorter than their headers.
    pub short_frames: u64,
    /// Frames from the namespace that were longer than any that we know.
    pub long_frames: u64,
    /// Frames from the namespace with a header that was not agreed on.
    pub bad_offloads: u64,
    /// Frames to the namespace that the kernel did not take at all.
    pub lost_frames: u64,
}

/// The tap, shared by those who deal with it.
#[derive(Debug)]
struct Watch {
    tap: Tap,
    epoll: Rc<Epoll>,
    /// Whether it is watched for room to write.
    room: Cell<bool>,
    /// Nothing more can be read or written.
    broken: Cell<bool>,
}

impl Watch {
    const fn interest(room: bool) -> Interest {
        Interest { readable: true, writable: room, read_closed: false, edge: false }
    }

    /// Watches for room to write, or no longer.
    fn watch_room(&self, on: bool) {
        if self.room.replace(on) != on {
            let interest = Self::interest(on);
            if let Err(e) = self.epoll.modify(self.tap.as_fd(), Token::Link(TAP), interest) {
                log::warn!("cannot watch the tap: {e}");
                self.broken.set(true);
            }
        }
    }

    /// The interface has gone; an event says so as well, and again and again.
    fn end(&self, what: &str, error: &io::Error) {
        if !self.broken.replace(true) {
            log::debug!("cannot {what} the tap: {}", error_text(error));
        }
    }
}

/// The control side: whether the interface is there.
#[derive(Debug)]
pub struct TapControl {
    watch: Rc<Watch>,
}

impl Control for TapControl {
    type Source = TapSource;
    type Sink = TapSink;

    fn on_event(
        &mut self,
        _: &mut TapSource,
        sink: &mut TapSink,
        which: u32,
        ready: Readiness,
    ) -> io::Result<LinkEvents> {
        if which != TAP {
            return Ok(LinkEvents::default());
        }
        if ready.error || ready.hung_up || self.watch.broken.get() {
            return Ok(LinkEvents { ended: true, ..LinkEvents::default() });
        }
        let (up, room) = if ready.writable { sink.on_writable() } else { (false, false) };
        Ok(LinkEvents { frames: ready.readable, room, up, ended: false })
    }

    fn counters(
        &self,
        source: &TapSource,
        sink: &TapSink,
        tell: &mut dyn FnMut(&'static str, u64),
    ) {
        tell("frames from the tap: too short", source.stats.short_frames);
        tell("frames from the tap: too long", source.stats.long_frames);
        tell("frames from the tap: header not agreed on", source.stats.bad_offloads);
        tell("frames that the tap did not take", sink.lost_frames);
    }
}

/// The half of the link that takes frames from the namespace.
#[derive(Debug)]
pub struct TapSource {
    watch: Rc<Watch>,
    /// The frames of the batch are marked in it.
    buffer: Buffer,
    /// What their headers say.
    offloads: Vec<Offload>,
    /// The last read has found nothing: another event will come when there is more.
    emptied: bool,
    stats: Stats,
}

impl TapSource {
    fn new(watch: Rc<Watch>) -> Self {
        let buffer = Buffer::new(SOURCE_BUFFER);
        let (offloads, stats) = (Vec::with_capacity(BATCH), Stats::default());
        Self { watch, buffer, offloads, emptied: false, stats }
    }

    /// Reads frames while there are some, and room. What is wrong with one is counted.
    fn fill(&mut self) {
        let mut end = 0;
        // Bad frames count as well: a batch ends.
        for _ in 0..BATCH {
            let room = self.buffer.span_mut(end, LARGEST);
            if room.len() < LARGEST {
                return;
            }
            match tap::read(self.watch.tap.as_fd(), room) {
                Ok(n) => end += self.enter(end, n),
                Err(e) => {
                    self.emptied = true;
                    if e.kind() != io::ErrorKind::WouldBlock {
                        self.watch.end("read", &e);
                    }
                    return;
                }
            }
        }
    }

    /// Makes a frame of the `len` bytes that were read to `start`; returns how many to keep.
    fn enter(&mut self, start: usize, len: usize) -> usize {
        let header_len = self.watch.tap.header_len();
        if len < header_len + ETHERNET_HEADER {
            self.stats.short_frames += 1;
            return 0;
        }
        // The kernel does not say when it cuts a frame off: then it fills all that it was given.
        if len >= LARGEST {
            self.stats.long_frames += 1;
            return 0;
        }
        let offload = match &self.watch.tap.offloads {
            None => Some(Offload::default()),
            Some(allowed) => {
                let mut header = [0; virtio::LEN];
                self.buffer.span(start, virtio::LEN).read(0, &mut header);
                virtio::parse(&header, allowed)
            }
        };
        let Some(offload) = offload else {
            self.stats.bad_offloads += 1;
            return 0;
        };
        self.buffer.mark(start + header_len, len - header_len);
        self.offloads.push(offload);
        len
    }
}

impl Source for TapSource {
    fn receive(&mut self) -> io::Result<usize> {
        self.release();
        if self.watch.broken.get() || std::mem::take(&mut self.emptied) {
            return Ok(0);
        }
        self.fill();
        self.emptied &= !self.offloads.is_empty();
        Ok(self.offloads.len())
    }

    fn frame(&self, index: usize) -> Frame<'_> {
        let spans = self.buffer.marked().get(index..=index).unwrap_or_default();
        let offload = self.offloads.get(index).copied().unwrap_or_default();
        Frame { spans, len: spans.first().map_or(0, Span::len), offload }
    }

    fn release(&mut self) {
        self.buffer.unmark();
        self.offloads.clear();
    }
}

/// The half of the link that gives frames to the namespace.
#[derive(Debug)]
pub struct TapSink {
    watch: Rc<Watch>,
    arena: Arena,
    /// The interface was not up when it was last looked at.
    down: bool,
    /// The kernel took less than it was given: an event will come when it takes more.
    blocked: bool,
    /// How often in a row the first frame was refused for want of memory.
    tries: u8,
    lost_frames: u64,
}

impl TapSink {
    fn new(watch: Rc<Watch>) -> Self {
        // A cache line in front of IPv4's payload, headers included: what follows is aligned.
        let shape = Shape { headroom: watch.tap.header_len(), min_frame: 0, align: 64 };
        let arena = Arena::new(SINK_BUFFER, shape);
        Self { watch, arena, down: true, blocked: true, tries: 0, lost_frames: 0 }
    }

    /// Gives the kernel all that is committed, until it refuses.
    fn send_all(&mut self) {
        while !self.blocked
            && let Some(frame) = self.arena.front()
        {
            match tap::write(self.watch.tap.as_fd(), frame) {
                Ok(_) => {
                    self.tries = 0;
                    self.arena.pop_front();
                }
                Err(e) => self.on_refused(&e),
            }
        }
    }

    /// The kernel has not taken the first frame: it is kept, or lost.
    fn on_refused(&mut self, error: &io::Error) {
        match error.raw_os_error() {
            Some(libc::EIO) => (self.down, self.blocked) = (true, true),
            Some(libc::EAGAIN) => self.blocked = true,
            // Short of memory, the kernel does not tell when it is not: the next event comes at
            // once, so there is an end to this.
            Some(libc::ENOBUFS | libc::ENOMEM | libc::ENOSPC) if self.tries < TRIES => {
                self.tries += 1;
                self.blocked = true;
            }
            Some(libc::EBADFD) => {
                self.watch.end("write to", error);
                self.arena.clear();
            }
            _ => {
                self.tries = 0;
                self.lost_frames += 1;
                self.arena.pop_front();
            }
        }
        if self.blocked {
            self.watch.watch_room(true);
        }
    }

    /// The kernel takes something again. Returns whether the interface has come up, and whether
    /// there is room for others.
    fn on_writable(&mut self) -> (bool, bool) {
        let was_down = std::mem::take(&mut self.down);
        self.blocked = false;
        self.send_all();
        if !self.blocked {
            self.watch.watch_room(false);
        }
        let up = was_down && !self.down;
        (up, !self.down && self.arena.load() <= SINK_BUFFER / 2)
    }
}

impl Sink for TapSink {
    fn caps(&self) -> LinkCaps {
        // With a header we may leave to the kernel what it can leave to us: it knows both or none.
        let plain = LinkCaps { max_frame: MAX_FRAME, ..LinkCaps::default() };
        self.watch.tap.offloads.unwrap_or(plain)
    }

    fn reserve(&mut self, len: usize) -> Result<Slot, Refused> {
        if len > MAX_FRAME {
            return Err(Refused::TooLarge);
        }
        if self.down || self.watch.broken.get() {
            return Err(Refused::Down);
        }
        if let Some(slot) = self.arena.reserve(len) {
            return Ok(slot);
        }
        self.send_all();
        let slot = self.arena.reserve(len);
        if slot.is_none() {
            self.watch.watch_room(true);
        }
        slot.ok_or(Refused::Full)
    }

    fn room<'a>(&'a self, slot: &Slot, skip: usize, out: &mut Vec<SpanMut<'a>>) {
        self.arena.append_room(slot, skip, out);
    }

    fn write(&mut self, slot: &Slot, offset: usize, bytes: &[u8]) {
        self.arena.write(slot, offset, bytes);
    }

    fn read(&self, slot: &Slot, offset: usize, into: &mut [u8]) -> usize {
        self.arena.read(slot, offset, into)
    }

    fn bytes(&mut self, slot: &Slot, offset: usize, len: usize) -> Option<&[u8]> {
        self.arena.bytes(slot, offset, len)
    }

    fn commit(&mut self, slot: Slot, len: usize, offload: Offload) {
        match &self.watch.tap.offloads {
            Some(allowed) => self.arena.commit(&slot, len, |_| virtio::emit(&offload, allowed)),
            None => self.arena.commit(&slot, len, |_| []),
        }
    }

    fn cancel(&mut self, slot: Slot) {
        self.arena.cancel(&slot);
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send_all();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
