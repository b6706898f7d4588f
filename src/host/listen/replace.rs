//! Listening sockets follow the rules: what is new is opened, what is gone is closed, and what is
//! wanted as before stays open with its queue. What must be opened is opened before anything is
//! closed, so that a failure leaves all as it was.

use super::place::{Place, Spot};
use super::report::{Changes, Failure, Refused};
use super::{Listener, MAX_LISTENERS};
use crate::flow::rules::{InForce, Rules};
use crate::flow::{Protocol, Side};
use crate::host::sockets::Sockets;
use crate::sys::socket::{self, IntOption};
use crate::token::{Interest, Token};
use nix::sys::resource::{Resource, getrlimit};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::ops::Bound;
use std::os::fd::AsFd as _;
use std::rc::Rc;

/// The listeners that there are while rules are replaced.
#[derive(Default)]
pub(super) struct Round {
    /// By place: the listener, and the number of its new rule once one has claimed it.
    pub(super) places: BTreeMap<Place, (u32, Option<usize>)>,
    pub(super) opened: Vec<u32>,
    /// Rules that had listeners before.
    old_rules: HashSet<usize>,
    warnings: Vec<String>,
    /// Best-effort ports for which there were no descriptors while the old ones were still open.
    starved: Vec<(Place, usize)>,
}

/// What a best-effort rule could not do.
#[derive(Default)]
struct Failed {
    ports: usize,
    last: Option<Refused>,
}

impl Failed {
    fn add(&mut self, refused: Refused) {
        self.ports += 1;
        self.last = Some(refused);
    }
}

impl Sockets {
    /// Listens as `rules` say and no longer as those before did; watches what is opened as
    /// [`Token::Listener`]. Ports of best-effort rules that cannot be had cost a warning.
    ///
    /// # Errors
    /// A port of a rule that is not best-effort, or the last one tried when of all best-effort
    /// rules of a side and protocol no port at all could be bound; or there would be too many
    /// sockets. Then everything is as it was.
    pub fn listen(&mut self, rules: &Rules) -> Result<Changes, Failure> {
        check_number(rules, self.most_listeners)?;
        let mut round = self.round();
        let outcome = self
            .open_required(&mut round, rules)
            .and_then(|()| self.open_best_effort(&mut round, rules));
        if let Err(failure) = outcome {
            round.opened.into_iter().for_each(|id| self.close_listener(id));
            return Err(failure);
        }
        // Those that follow services stay where they still may; new ones come with the next look.
        self.claim_services(&mut round, rules, 0);
        Ok(self.conclude(round))
    }

    /// All listeners, claimed by no rule.
    pub(super) fn round(&self) -> Round {
        let mut round = Round::default();
        for (id, listener) in self.listeners.iter() {
            round.places.insert(listener.place.clone(), (id, None));
            round.old_rules.insert(listener.rule);
        }
        round
    }

    fn open_required(&mut self, round: &mut Round, rules: &Rules) -> Result<(), Failure> {
        for entry in rules.iter().filter(|r| !r.rule.auto && !r.rule.weak) {
            let spots = self.spots(entry.side, entry.rule);
            for place in places(entry, &spots) {
                let port = place.port;
                self.claim(round, place, entry.number).map_err(|reason| {
                    Failure::Port(Refused::new(entry.side, entry.rule, port, reason))
                })?;
            }
        }
        Ok(())
    }

    fn open_best_effort(&mut self, round: &mut Round, rules: &Rules) -> Result<(), Failure> {
        for side in Side::BOTH {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let (mut had, mut last) = (0usize, None);
                let of = |r: &InForce<'_>| r.side == side && r.rule.protocol == protocol;
                for entry in rules.iter().filter(|r| !r.rule.auto && r.rule.weak && of(r)) {
                    let (claimed, failed) = self.claim_best_effort(round, entry);
                    had = had.saturating_add(claimed);
                    let Some(refused) = failed.last else { continue };
                    if !round.old_rules.contains(&entry.number) {
                        round.warnings.push(refused.summary(failed.ports));
                    }
                    last = Some(refused);
                }
                if let Some(refused) = last.filter(|_| had == 0) {
                    return Err(Failure::Port(refused));
                }
            }
        }
        Ok(())
    }

    /// Opens what can be opened of one best-effort rule: how many sockets it has, and what failed.
    fn claim_best_effort(&mut self, round: &mut Round, entry: InForce<'_>) -> (usize, Failed) {
        let (mut claimed, mut failed) = (0, Failed::default());
        let spots = self.spots(entry.side, entry.rule);
        for place in places(entry, &spots) {
            let port = place.port;
            match self.claim(round, place.clone(), entry.number) {
                Ok(()) => claimed += 1,
                Err(reason) => {
                    if is_starved(&reason) {
                        round.starved.push((place, entry.number));
                    }
                    failed.add(Refused::new(entry.side, entry.rule, port, reason));
                }
            }
        }
        (claimed, failed)
    }

    /// Rule `number` shall have the listener at `place`, which is opened if there is none. Where
    /// two rules want the same place, it belongs to the first.
    pub(super) fn claim(
        &mut self,
        round: &mut Round,
        place: Place,
        number: usize,
    ) -> io::Result<()> {
        if let Some((_, rule)) = round.places.get_mut(&place) {
            rule.get_or_insert(number);
            return Ok(());
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
            watched: true,
            rule: number,
            place: place.clone(),
        };
        let id = self.listeners.insert(listener).ok_or(io::ErrorKind::OutOfMemory)?;
        let interest = Interest { readable: true, ..Interest::default() };
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
        Ok(())
    }

    /// Opens the socket for `place` beside those of ours that have the same port elsewhere: the
    /// kernel prefers the more specific one, if all of them say that they share. `None` when there
    /// are no others.
    fn open_beside(
        &mut self,
        round: &Round,
        place: &Place,
    ) -> Option<io::Result<super::place::Opened>> {
        let others: Vec<u32> = round.of_port(place).collect();
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

    /// Nothing can fail any more: what no rule has claimed is closed.
    pub(super) fn conclude(&mut self, mut round: Round) -> Changes {
        let before = round.places.len().saturating_sub(round.opened.len());
        let mut closed = 0;
        for &(id, rule) in round.places.values() {
            match rule {
                None => {
                    self.close_listener(id);
                    closed += 1;
                }
                Some(number) => {
                    if let Some(listener) = self.listeners.get_mut(id) {
                        listener.rule = number;
                    }
                }
            }
        }
        if closed > 0 {
            for (place, number) in std::mem::take(&mut round.starved) {
                // It was complained of already.
                let _ = self.claim(&mut round, place, number);
            }
        }
        Changes {
            opened: round.opened.len(),
            closed,
            kept: before.saturating_sub(closed),
            warnings: round.warnings,
        }
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

/// All places of a rule.
fn places<'a>(entry: InForce<'a>, spots: &'a [Rc<Spot>]) -> impl Iterator<Item = Place> + 'a {
    let InForce { side, rule, .. } = entry;
    (rule.first..=rule.last).flat_map(move |port| {
        spots.iter().map(move |spot| Place {
            side,
            protocol: rule.protocol,
            port,
            spot: Rc::clone(spot),
        })
    })
}

/// Refuses rules that would leave no descriptors for flows.
fn check_number(rules: &Rules, most: usize) -> Result<(), Failure> {
    let fixed = rules.iter().filter(|r| !r.rule.auto);
    let wanted = fixed.map(|r| usize::from(r.rule.last.saturating_sub(r.rule.first)) + 1).sum();
    if wanted > most { Err(Failure::TooMany { wanted, most }) } else { Ok(()) }
}

/// Listeners may take three quarters of all descriptors, and flows have the rest.
pub(in crate::host) fn most_listeners() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(limit / 4 * 3).unwrap_or(usize::MAX).min(MAX_LISTENERS)
}

fn is_starved(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
