//! Listening sockets: what the forwarding rules ask for, and accepting without ever spinning.

mod auto;
mod change;
mod place;
mod replace;
mod report;
#[cfg(test)]
mod tests;

pub use auto::Lookout;
pub(super) use change::Change;
pub(super) use replace::most_listeners;
pub use report::{Changes, Failure, Refused};

use self::place::Place;
use super::Accepted;
use super::sockets::{Sockets, Stream, endpoint};
use crate::flow::{Protocol, Side};
use crate::sys::socket;
use crate::token::{Interest, Token};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Connections that one call of accept looks at: those that are gone again, and those that are
/// refused for want of descriptors.
const MAX_ATTEMPTS: usize = 16;

/// Bits of a listener's number that say where it stands; the others tell it from those that stood
/// there before.
const INDEX_BITS: u32 = 20;

/// Listeners at most.
const MAX_LISTENERS: usize = 1 << INDEX_BITS;

/// One listening socket.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    v4: bool,
    watched: bool,
    rule: usize,
    place: Place,
}

/// What a listening socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The number of its rule.
    pub rule: usize,
    /// The port it listens on.
    pub port: u16,
    /// The side it listens on.
    pub side: Side,
}

impl Listener {
    /// The socket.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether the socket is of the IPv4 family: others may take both.
    pub const fn is_ipv4(&self) -> bool {
        self.v4
    }

    /// What it is for.
    pub fn listening(&self) -> Listening {
        let Place { side, protocol, port, .. } = self.place;
        Listening { protocol, rule: self.rule, port, side }
    }
}

/// All listening sockets, by numbers that are not soon given again.
#[derive(Debug, Default)]
pub struct Listeners {
    slots: Vec<Slot>,
    /// Slots that are free, the one that is so for longest first.
    free: VecDeque<u32>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    listener: Option<Listener>,
}

impl Listeners {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len().saturating_sub(self.free.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The listener of this number.
    pub fn get(&self, id: u32) -> Option<&Listener> {
        let slot = self.slots.get(id as usize % MAX_LISTENERS)?;
        slot.listener.as_ref().filter(|_| slot.generation == id >> INDEX_BITS)
    }

    fn get_mut(&mut self, id: u32) -> Option<&mut Listener> {
        let slot = self.slots.get_mut(id as usize % MAX_LISTENERS)?;
        slot.listener.as_mut().filter(|_| slot.generation == id >> INDEX_BITS)
    }

    /// All of them, with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Listener)> {
        self.slots(0..usize::MAX)
    }

    /// Those in these slots.
    fn slots(&self, range: Range<usize>) -> impl Iterator<Item = (u32, &Listener)> {
        let slots = (0u32..).zip(&self.slots).take(range.end).skip(range.start);
        slots.filter_map(|(index, slot)| {
            Some((slot.generation << INDEX_BITS | index, slot.listener.as_ref()?))
        })
    }

    /// Adds one and returns its number; `None` when there are too many.
    fn insert(&mut self, listener: Listener) -> Option<u32> {
        let index = match self.free.pop_front() {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.slots.len()).ok()?;
                if self.slots.len() >= MAX_LISTENERS {
                    return None;
                }
                self.slots.push(Slot::default());
                index
            }
        };
        let slot = self.slots.get_mut(index as usize)?;
        slot.listener = Some(listener);
        Some(slot.generation << INDEX_BITS | index)
    }

    fn remove(&mut self, id: u32) -> Option<Listener> {
        self.get(id)?;
        let index = id % (1 << INDEX_BITS);
        let slot = self.slots.get_mut(index as usize)?;
        slot.generation = (slot.generation + 1) % (1 << (u32::BITS - INDEX_BITS));
        self.free.push_back(index);
        slot.listener.take()
    }
}

impl Sockets {
    /// The next connection of listener `index`. When descriptors run out, connections are taken
    /// with the spare one and reset, so that an event always means progress; where even that is
    /// not possible the listener is not watched until [`Sockets::feed`].
    pub(super) fn accept_from(&mut self, index: u32) -> io::Result<Accepted<Stream>> {
        for _ in 0..MAX_ATTEMPTS {
            let Some(listener) = self.listeners.get(index) else {
                return Err(io::ErrorKind::NotFound.into());
            };
            match socket::accept(listener.fd.as_fd()) {
                Ok((fd, peer)) => {
                    let local = socket::local_address(fd.as_fd())?;
                    let stream = Stream::accepted(fd, listener.v4);
                    return Ok(Accepted {
                        stream,
                        peer: endpoint(peer),
                        local: endpoint(local),
                        rule: listener.rule,
                    });
                }
                Err(e) => match e.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE) => self.refuse(index)?,
                    Some(libc::ENOBUFS | libc::ENOMEM) => self.starve(index)?,
                    Some(libc::EAGAIN | libc::EBADF | libc::EINVAL | libc::ENOTSOCK) => {
                        return Err(e);
                    }
                    // The others are errors of the connection, which is gone (accept(2)).
                    _ => {}
                },
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Accepts one connection with the spare descriptor and resets it.
    fn refuse(&mut self, index: u32) -> io::Result<()> {
        let Some(spare) = self.spare.take() else {
            return self.starve(index);
        };
        drop(spare);
        let taken = match self.listeners.get(index) {
            Some(listener) => socket::accept(listener.fd.as_fd()),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        if let Ok((fd, _)) = &taken {
            // Without it the peer sees an orderly end, which is all we can do then.
            let _ = socket::linger_none(fd.as_fd());
        }
        let gone = taken.map(drop);
        self.spare = self.epoll.as_fd().try_clone_to_owned().ok();
        match gone {
            Err(e) if !matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => Err(e),
            Err(_) => self.starve(index),
            Ok(()) => Ok(()),
        }
    }

    /// Watches listener `index`, or stops to; starved ones stay as they are.
    pub(super) fn watch_listener(&mut self, index: u32, readable: bool) {
        let Some(listener) = self.listeners.get_mut(index) else { return };
        if listener.watched == readable || self.starved.contains(&index) {
            return;
        }
        let interest = Interest { readable, ..Interest::default() };
        if self.epoll.modify(listener.fd.as_fd(), Token::Listener(index), interest).is_ok() {
            listener.watched = readable;
        }
    }

    /// Stops to watch a listener that could only fail again, and says that there is no connection.
    fn starve(&mut self, index: u32) -> io::Result<()> {
        self.watch_listener(index, false);
        self.starved.push(index);
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Whether there are listeners that wait for [`Sockets::feed`].
    pub const fn is_starved(&self) -> bool {
        !self.starved.is_empty()
    }

    /// Watches starved listeners again. To be called a while (a second) after
    /// [`Sockets::is_starved`] has become true.
    pub fn feed(&mut self) {
        if self.spare.is_none() {
            self.spare = self.epoll.as_fd().try_clone_to_owned().ok();
        }
        for index in std::mem::take(&mut self.starved) {
            self.watch_listener(index, true);
        }
    }

    /// What listener `index` is for.
    pub fn listening(&self, index: u32) -> Option<Listening> {
        self.listeners.get(index).map(Listener::listening)
    }
}
