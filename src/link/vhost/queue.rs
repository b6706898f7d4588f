//! The state of one virtqueue: what the VMM has set, how far we are, and what is owed to the
//! driver.
//!
//! Plain state instead of `virtio_queue::Queue` in a `VringMutex`: the halves of the link own
//! their queue outright, so there is nothing to lock, and the data path uses none of the crate's
//! accessors (they search the memory map at each access).

use super::Complaints;
use super::memory::Memory;
use super::ring::{Layout, View};
use super::stats::Stats;
use crate::sys::epoll::Epoll;
use crate::token::{Interest, Token};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// The descriptor by which the driver tells us of chains, watched for as long as it exists.
#[derive(Debug)]
pub(super) struct Kick {
    file: File,
    epoll: Rc<Epoll>,
}

impl Kick {
    /// Watches `file` for edges: each write raises one, so it is never read.
    pub(super) fn new(file: File, epoll: &Rc<Epoll>, token: Token) -> io::Result<Self> {
        set_nonblocking(&file)?;
        let interest = Interest { readable: true, edge: true, ..Interest::default() };
        epoll.add(file.as_fd(), token, interest)?;
        Ok(Self { file, epoll: Rc::clone(epoll) })
    }
}

impl Drop for Kick {
    /// The VMM holds the same open file: to close ours would not end the watch.
    fn drop(&mut self) {
        if let Err(e) = self.epoll.delete(self.file.as_fd()) {
            log::debug!("vhost-user: kick descriptor was not watched: {e}");
        }
    }
}

/// A descriptor by which we tell the driver something.
#[derive(Debug)]
pub(super) struct Signal(File);

impl Signal {
    /// Takes the descriptor over; it must never block us.
    pub(super) fn new(file: File) -> io::Result<Self> {
        set_nonblocking(&file)?;
        Ok(Self(file))
    }

    /// Raises it. A descriptor that takes no more is raised already.
    pub(super) fn raise(&self) {
        if let Err(e) = (&self.0).write_all(&1u64.to_ne_bytes())
            && e.kind() != io::ErrorKind::WouldBlock
        {
            log::trace!("vhost-user: cannot signal the driver: {e}");
        }
    }
}

/// Sets O_NONBLOCK on the open file, which we share with the VMM: one that cannot take it could
/// stop us any time.
fn set_nonblocking(file: &File) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// One virtqueue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Size and addresses.
    pub layout: Layout,
    /// Set while the ring is started; its going stops the ring.
    pub kick: Option<Kick>,
    /// Told of used chains.
    pub call: Option<Signal>,
    /// Told when the ring is broken.
    pub err: Option<Signal>,
    /// SET_VRING_ENABLE.
    pub enabled: bool,
    /// EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// INDIRECT_DESC was negotiated.
    pub indirect: bool,
    /// The ring, while it is started, found in memory and not broken.
    view: Option<View>,
    /// The next position of the available ring to take.
    next_available: u16,
    /// Where the driver's chains end, as last read.
    seen: u16,
    /// The next position of the used ring to fill.
    next_used: u16,
    /// `next_used` at the last decision whether to signal.
    decided: u16,
    /// Without EVENT_IDX: the driver was told not to kick.
    quiet: bool,
    /// Taken up since someone last asked: what is in it has not been looked at.
    fresh: bool,
    /// How often it was found broken.
    broken: Complaints,
}

impl Queue {
    /// The ring, while it is started; frames may pass only if it is [`Queue::enabled`] as well.
    #[inline]
    pub(super) const fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    /// Number of descriptors.
    pub(super) fn size(&self) -> usize {
        usize::from(self.layout.size)
    }

    /// Whether frames may pass.
    pub(super) const fn is_running(&self) -> bool {
        self.enabled && self.view.is_some()
    }

    /// Whether SET_VRING_KICK has started the ring.
    pub(super) const fn is_started(&self) -> bool {
        self.kick.is_some()
    }

    /// Where the ring goes on: what GET_VRING_BASE replies.
    pub(super) const fn base(&self) -> u16 {
        self.next_available
    }

    /// SET_VRING_BASE.
    pub(super) fn set_base(&mut self, base: u16) {
        self.next_available = base;
        self.seen = base;
        self.resume();
    }

    /// Finds a started ring in `memory`, anew after a change of either. `false` when it is not
    /// there: the ring is broken then. `usable` is whether the features allow rings at all.
    pub(super) fn attach(&mut self, memory: &Arc<Memory>, usable: bool) -> bool {
        let was_attached = self.view.take().is_some();
        if !self.is_started() || !usable {
            return true;
        }
        self.view = View::new(Arc::clone(memory), &self.layout);
        if self.view.is_none() {
            self.signal_broken();
            return false;
        }
        if !was_attached {
            self.resume();
        }
        true
    }

    /// Takes up from what the ring itself says: front-ends tell only the available index.
    fn resume(&mut self) {
        let Some(view) = &self.view else { return };
        self.next_used = view.used_idx();
        self.decided = self.next_used;
        self.quiet = false;
        self.fresh = true;
        view.set_quiet(false);
    }

    /// Whether the ring runs and has been taken up since this was last asked; it may have been
    /// stopped meanwhile.
    pub(super) fn take_fresh(&mut self) -> bool {
        self.is_running() && std::mem::take(&mut self.fresh)
    }

    /// GET_VRING_BASE, and the end of a client.
    pub(super) fn stop(&mut self) {
        self.view = None;
        self.kick = None;
        self.call = None;
    }

    /// Everything but what the front-end set up beforehand (`err`) goes back to the start. What is
    /// said of this client is said already.
    pub(super) fn reset(&mut self) {
        *self = Self { err: self.err.take(), broken: self.broken, ..Self::default() };
    }

    /// Chains that can be taken, without a look at memory while some are known. `None` when the
    /// ring is not running, or has just proved to be broken.
    #[inline]
    pub(super) fn ready(&mut self, stats: &mut Stats) -> Option<u16> {
        let known = self.seen.wrapping_sub(self.next_available);
        if known != 0 && self.view.is_some() {
            return Some(known);
        }
        self.look(stats)
    }

    /// As [`Queue::ready`], always with a look.
    pub(super) fn look(&mut self, stats: &mut Stats) -> Option<u16> {
        let view = self.view()?;
        let (seen, size) = (view.available_idx(), view.size());
        let ready = seen.wrapping_sub(self.next_available);
        let known = self.seen.wrapping_sub(self.next_available);
        if u32::from(ready) > size || ready < known {
            self.fail("the available index has jumped", stats);
            return None;
        }
        self.seen = seen;
        Some(ready)
    }

    /// The head of the chain `ahead` of the next; out of range breaks the ring.
    #[inline]
    pub(super) fn peek(&mut self, ahead: u16, stats: &mut Stats) -> Option<u16> {
        let view = self.view()?;
        let head = view.head(self.next_available.wrapping_add(ahead));
        if u32::from(head) < view.size() {
            return Some(head);
        }
        self.fail("the available ring names a descriptor that does not exist", stats);
        None
    }

    /// Takes `n` chains: at most what [`Queue::ready`] said.
    #[inline]
    pub(super) const fn take(&mut self, n: u16) {
        self.next_available = self.next_available.wrapping_add(n);
    }

    /// Gives the last `n` taken chains back, as if they had never been taken.
    pub(super) const fn untake(&mut self, n: u16) {
        self.next_available = self.next_available.wrapping_sub(n);
    }

    /// Asks the driver to tell of new chains; `true` when some have come meanwhile, of which it may
    /// not tell.
    pub(super) fn arm(&mut self, stats: &mut Stats) -> bool {
        let Some(view) = self.view() else { return false };
        if self.event_idx {
            // The index where the driver stands, not where we do: we may want more chains than are
            // there without having taken any.
            view.set_available_event(self.seen);
        } else if self.quiet {
            view.set_quiet(false);
        }
        self.quiet = false;
        // The request must be visible before we look again (virtio 1.3 2.7.10).
        fence(Ordering::SeqCst);
        let known = self.seen;
        self.look(stats).is_some() && self.seen != known
    }

    /// Asks the driver not to tell of new chains for the time being. With EVENT_IDX nothing needs
    /// to be done: it tells once only.
    #[inline]
    pub(super) fn hush(&mut self) {
        if self.quiet || self.event_idx {
            return;
        }
        if let Some(view) = self.view() {
            view.set_quiet(true);
            self.quiet = true;
        }
    }

    /// Writes used elements; they are visible after [`Queue::publish`] only.
    #[inline]
    pub(super) fn put_used(&self, ahead: u16, head: u16, len: u32) {
        if let Some(view) = self.view() {
            view.put_used(self.next_used.wrapping_add(ahead), head, len);
        }
    }

    /// Makes `n` used elements visible by one store; [`Queue::notify`] is owed then.
    #[inline]
    pub(super) fn publish(&mut self, n: u16) {
        let Some(view) = self.view() else { return };
        if n != 0 {
            let next_used = self.next_used.wrapping_add(n);
            view.publish(next_used);
            self.next_used = next_used;
        }
    }

    /// Whether used elements were published of which it was not decided yet whether to tell.
    #[inline]
    pub(super) fn owes_decision(&self) -> bool {
        self.next_used != self.decided && self.is_running()
    }

    /// Tells the driver of what was published since the last time, if it wants to be told. Returns
    /// whether it was told.
    pub(super) fn notify(&mut self) -> bool {
        let Some(view) = self.view() else { return false };
        if self.next_used == self.decided {
            return false;
        }
        // The index must be visible before we look what the driver wants (virtio 1.3 2.7.7.1).
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let beyond = self.next_used.wrapping_sub(view.used_event()).wrapping_sub(1);
            beyond < self.next_used.wrapping_sub(self.decided)
        } else {
            !view.driver_is_quiet()
        };
        self.decided = self.next_used;
        if wanted && let Some(call) = &self.call {
            call.raise();
        }
        wanted
    }

    /// Stops a ring whose contents cannot be right, and says so once.
    fn fail(&mut self, why: &str, stats: &mut Stats) {
        stats.broken_rings += 1;
        if self.broken.admit() {
            log::warn!("vhost-user: ring stopped: {why}");
        }
        self.view = None;
        self.signal_broken();
    }

    fn signal_broken(&self) {
        if let Some(err) = &self.err {
            err.raise();
        }
    }
}
