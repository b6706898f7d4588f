//! Listening sockets follow the rules: what is new is opened, what is gone is closed, and what is
//! wanted as before stays open with its queue. What must be opened is opened before anything is
//! closed, so that a failure leaves all as it was.

use super::place::{Place, Spot};
use super::report::Changes;
use super::{Listener, MAX_LISTENERS};
use crate::flow::{Protocol, Side};
use crate::host::diag::Waiting;
use crate::host::sockets::Sockets;
use crate::sys::socket::{self, IntOption};
use crate::token::{Interest, Token};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::fstat;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::ops::{Bound, Range};
use std::os::fd::AsFd as _;
use std::rc::Rc;

/// The listeners that there are while rules are replaced.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// By place: the listener, and the number of its new rule once one has claimed it.
    pub(super) places: BTreeMap<Place, (u32, Option<usize>)>,
    pub(super) opened: Vec<u32>,
    /// What is opened is not watched yet.
    pub(super) quiet: bool,
    /// How many listeners no rule has claimed, once they are handed over.
    pub(super) closed: usize,
    /// Rules that had listeners before.
    pub(super) old_rules: HashSet<usize>,
    pub(super) warnings: Vec<String>,
    /// Best-effort ports for which there were no descriptors while the old ones were still open.
    pub(super) starved: Vec<(Place, usize)>,
    /// Who waits for datagrams on the host, by port, once it was asked for.
    pub(super) waiting: Option<Vec<Waiting>>,
}

impl Sockets {
    /// All listeners, claimed by no rule.
    pub(super) fn round(&self) -> Round {
        let mut round = Round::default();
        round.survey(self, 0..usize::MAX);
        round
    }

    /// Rule `number` shall have the listener at `place`, which is opened if there is none: then the
    /// answer is `true`. Where two rules want the same place, it belongs to the first.
    pub(super) fn claim(
        &mut self,
        round: &mut Round,
        place: Place,
        number: usize,
    ) -> io::Result<bool> {
        if let Some((_, rule)) = round.places.get_mut(&place) {
            rule.get_or_insert(number);
            return Ok(false);
        }
        let opened = match self.open_place(&place, false) {
            Err(e) if e.raw_os_error() == Some(libc::EADDRINUSE) => {
                self.open_beside(round, &place).unwrap_or(Err(e))
            }
            other => other,
        }?;
        let listener = Listener {
            fd: opened.fd,
            v4: opened.v4,
            watched: !round.quiet,
            rule: number,
            place: place.clone(),
        };
        let id = self.listeners.insert(listener).ok_or(io::ErrorKind::OutOfMemory)?;
        let interest = Interest { readable: !round.quiet, ..Interest::default() };
        let watched = self.listeners.get(id).map_or_else(
            || Err(io::ErrorKind::NotFound.into()),
            |listener| self.epoll.add(listener.fd(), Token::Listener(id), interest),
        );
        if let Err(e) = watched {
            self.close_listener(id);
            return Err(e);
        }
        round.opened.push(id);
        round.places.insert(place, (id, Some(number)));
        Ok(true)
    }

    /// Opens the socket for `place`, of which the port is in use, beside those that it can share it
    /// with: ours at other addresses, of which the kernel prefers the more specific one, if all of
    /// them say that they share; for UDP flows, too, whoever's they are. `None` when there are no
    /// such, or others.
    fn open_beside(
        &mut self,
        round: &mut Round,
        place: &Place,
    ) -> Option<io::Result<super::place::Opened>> {
        let others: Vec<u32> = round.of_port(place).collect();
        if place.protocol == Protocol::Udp {
            let taken = self.is_taken(round, place, &others);
            return (!taken).then(|| self.open_place(place, true));
        }
        if others.is_empty() {
            return None;
        }
        let share = |sockets: &Self, on| {
            for listener in others.iter().filter_map(|&id| sockets.listeners.get(id)) {
                // Where this fails, so does what it is for.
                let _ = socket::set(listener.fd(), IntOption::REUSE_PORT, on);
            }
        };
        share(self, 1);
        let opened = self.open_place(place, true);
        if opened.is_err() {
            share(self, 0);
        }
        Some(opened)
    }

    /// Whether somebody else waits for datagrams at `place`, as far as the kernel tells. Sockets
    /// that are connected are flows, of ours or of another of our kind.
    fn is_taken(&mut self, round: &mut Round, place: &Place, own: &[u32]) -> bool {
        // Of a namespace nobody tells: there services share their ports as they see fit.
        let Some(diag) = self.diag.as_mut().filter(|_| place.side == Side::Outside) else {
            return false;
        };
        let waiting = round.waiting.get_or_insert_with(|| {
            let mut all = diag.datagram_sockets().unwrap_or_default();
            all.sort_unstable_by_key(|socket| socket.port);
            all
        });
        let first = waiting.partition_point(|socket| socket.port < place.port);
        let same_port = waiting.iter().skip(first).take_while(|socket| socket.port == place.port);
        let mut here = same_port.filter(|socket| socket.meets(place.spot.addr));
        let inode = |id: &u32| fstat(self.listeners.get(*id)?.fd()).ok().map(|stat| stat.st_ino);
        let own: Vec<_> = own.iter().filter_map(inode).collect();
        here.any(|socket| !own.contains(&socket.inode))
    }

    /// Nothing can fail any more: what no rule has claimed is closed.
    pub(super) fn conclude(&mut self, mut round: Round) -> Changes {
        let gone = round.hand_over(self);
        round.closed = gone.len();
        gone.into_iter().for_each(|id| self.close_listener(id));
        round.changes()
    }

    pub(super) fn close_listener(&mut self, id: u32) {
        self.starved.retain(|&starved| starved != id);
        if let Some(listener) = self.listeners.remove(id) {
            // Closing does it as well, unless a child of ours has the descriptor.
            let _ = self.epoll.delete(listener.fd.as_fd());
        }
    }
}

impl Round {
    /// Takes in the listeners in these slots, claimed by no rule; whether there are more behind.
    pub(super) fn survey(&mut self, sockets: &Sockets, slots: Range<usize>) -> bool {
        let end = slots.end;
        for (id, listener) in sockets.listeners.slots(slots) {
            self.places.insert(listener.place.clone(), (id, None));
            self.old_rules.insert(listener.rule);
        }
        sockets.listeners.slots.len() > end
    }

    /// Listeners belong to the rules that have claimed them from now on; the others are returned.
    pub(super) fn hand_over(&self, sockets: &mut Sockets) -> Vec<u32> {
        let mut gone = Vec::new();
        for &(id, rule) in self.places.values() {
            match (rule, sockets.listeners.get_mut(id)) {
                (Some(number), Some(listener)) => listener.rule = number,
                _ => gone.push(id),
            }
        }
        gone
    }

    /// What the round has changed.
    pub(super) fn changes(&mut self) -> Changes {
        let before = self.places.len().saturating_sub(self.opened.len());
        Changes {
            opened: self.opened.len(),
            closed: self.closed,
            kept: before.saturating_sub(self.closed),
            warnings: std::mem::take(&mut self.warnings),
        }
    }

    /// Our listeners that have this port on the same side, wherever they are bound.
    fn of_port(&self, place: &Place) -> impl Iterator<Item = u32> {
        let from = Place { spot: Rc::new(Spot { addr: None, device: None }), ..place.clone() };
        let same =
            move |p: &Place| (p.side, p.protocol, p.port) == (from.side, from.protocol, from.port);
        let least = Place { spot: Rc::new(Spot { addr: None, device: None }), ..place.clone() };
        self.places
            .range((Bound::Included(least), Bound::Unbounded))
            .take_while(move |(p, _)| same(p))
            .map(|(_, (id, _))| *id)
    }
}

/// Listeners may take three quarters of all descriptors, and flows have the rest.
pub(in crate::host) fn most_listeners() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(limit / 4 * 3).unwrap_or(usize::MAX).min(MAX_LISTENERS)
}

pub(super) fn is_starved(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
