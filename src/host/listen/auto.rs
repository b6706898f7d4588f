//! Ports that follow services (`auto`): listened on while somebody listens on the other side.
//!
//! The kernel tells of sockets that go, and to everyone, but not of those that come. So we look:
//! one look is two system calls for each family, protocol and side; how often is for others to say.
//! What a namespace does must not cost us more than so much at a time, so looks are taken in steps,
//! and the sockets that they lead to are opened in portions.

use super::place::{Place, Spot};
use super::replace::Round;
use super::report::Refused;
use crate::config::ports::{PortSet, Rule};
use crate::flow::rules::{InForce, Rules};
use crate::flow::{Protocol, Side};
use crate::host::Scan;
use crate::host::diag::{Diag, Reach, Seen, Services};
use crate::host::sockets::Sockets;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// Sockets that are opened, or tried to, after one look.
const PORTION: usize = 512;

/// Ports that cannot be had and are tried again after one look.
const RETRIED: usize = 64;

/// Looks that must go well before one that fails is worth a word again.
const WELL: u32 = 100;

/// Sees who listens on both sides.
#[derive(Debug)]
pub struct Lookout {
    outside: Watched,
    inside: Watched,
    /// The side that is being looked at.
    looking: Option<Side>,
    /// Whether this look has found anything new so far.
    news: bool,
    /// Whether services at loopback addresses of the namespace can be reached from loopback
    /// addresses of the host.
    reaches_loopback: bool,
    /// Places that could not be had: after which look they were tried last, and whether trying
    /// again is of no use.
    failed: BTreeMap<Place, (u32, bool)>,
    looks: u32,
    /// Not everything that is wanted could be opened in one go.
    more: bool,
    /// Ports that were complained of: by side, TCP before UDP.
    complained: [PortSet; 4],
    /// Looking has failed, and we have said so: so many looks must go well before we do again.
    blind: u32,
}

/// One side.
#[derive(Debug)]
struct Watched {
    diag: Diag,
    /// Services that are not our own listeners.
    seen: Seen,
    /// Ports of our own when the look began.
    own: Own,
}

/// Ports of ours on one side: no services.
#[derive(Debug, Default)]
struct Own {
    tcp: PortSet,
    udp: PortSet,
}

impl Lookout {
    const fn side(&mut self, side: Side) -> &mut Watched {
        match side {
            Side::Outside => &mut self.outside,
            Side::Inside => &mut self.inside,
        }
    }

    const fn seen(&self, side: Side, protocol: Protocol) -> &Services {
        let watched = match side {
            Side::Outside => &self.outside,
            Side::Inside => &self.inside,
        };
        match protocol {
            Protocol::Tcp => &watched.seen.tcp,
            _ => &watched.seen.udp,
        }
    }

    /// Whether the port is complained of for the first time.
    fn complain(&mut self, place: &Place) -> bool {
        let index = usize::from(place.side == Side::Inside) * 2
            + usize::from(place.protocol == Protocol::Udp);
        let Some(set) = self.complained.get_mut(index) else { return false };
        let new = !set.contains(place.port);
        set.insert(place.port, place.port);
        new
    }

    /// Whether a place that could not be had is to be tried again now.
    fn retries(&self, place: &Place) -> bool {
        let Some((last, hopeless)) = self.failed.get(place) else { return true };
        let rounds = u32::try_from(self.failed.len() / RETRIED).unwrap_or(u32::MAX);
        !hopeless && self.looks.wrapping_sub(*last) > rounds
    }

    /// Whether trying again may help.
    fn has_hopes(&self) -> bool {
        self.more || self.failed.values().any(|(_, hopeless)| !hopeless)
    }
}

impl Sockets {
    /// Has ports of rules with [`Rule::auto`] follow services of the other side, as they are seen
    /// when [`Sockets::scan`] is called. With `reaches_loopback`, services that listen at loopback
    /// addresses of the namespace can be reached from those of the host (`--host-lo-to-ns-lo`);
    /// otherwise nobody could reach them, and no port is opened for them.
    ///
    /// `inside` is a socket of type NETLINK_SOCK_DIAG of the namespace
    /// ([`crate::host::inside::Wanted::Diag`]).
    ///
    /// # Errors
    /// The kernel gives no socket to ask.
    pub fn watch_services(&mut self, inside: OwnedFd, reaches_loopback: bool) -> io::Result<()> {
        self.watch_by(Diag::open()?, Diag::over(inside)?, reaches_loopback);
        Ok(())
    }

    fn watch_by(&mut self, outside: Diag, inside: Diag, reaches_loopback: bool) {
        let watched = |diag| Watched { diag, seen: Seen::default(), own: Own::default() };
        self.lookout = Some(Box::new(Lookout {
            outside: watched(outside),
            inside: watched(inside),
            looking: None,
            news: false,
            reaches_loopback,
            failed: BTreeMap::new(),
            looks: 0,
            more: false,
            complained: std::array::from_fn(|_| PortSet::new()),
            blind: 0,
        }));
    }

    /// Looks once, to the end: for the start, when nobody is waiting yet.
    pub fn scan_all(&mut self, rules: &Rules) {
        while self.scan(rules) == Scan::More {}
    }

    /// Takes the next step of a look at who listens; after the last one opens and closes what has
    /// changed.
    pub fn scan(&mut self, rules: &Rules) -> Scan {
        if !rules.iter().any(|r| r.rule.auto) {
            return Scan::Off;
        }
        if self.change.is_some() {
            return Scan::Same; // they look when they are in force
        }
        let Some(mut lookout) = self.lookout.take() else { return Scan::Off };
        let outcome = self.look(&mut lookout, rules);
        self.lookout = Some(lookout);
        match outcome {
            Ok(None) => Scan::More,
            Ok(Some(news)) => self.follow(rules, news),
            Err(e) => self.give_up(&e),
        }
    }

    /// One step; whether there is anything new, once it was the last one.
    fn look(&self, lookout: &mut Lookout, rules: &Rules) -> io::Result<Option<bool>> {
        let Some(side) = lookout.looking else {
            lookout.news = false;
            return self.look_at(lookout, rules, &Side::BOTH);
        };
        let now = self.own(side);
        let watched = lookout.side(side);
        let Some(mut seen) = watched.diag.step()? else { return Ok(None) };
        let before = &watched.own;
        seen.tcp.retain(|port| !before.tcp.contains(port) && !now.tcp.contains(port));
        // Servers such as iperf3's listen on TCP, and on UDP only when they are asked to.
        seen.udp.add_all(&seen.tcp);
        seen.udp.retain(|port| !before.udp.contains(port) && !now.udp.contains(port));
        let news = watched.seen != seen;
        watched.seen = seen;
        lookout.news |= news;
        let rest = if side == Side::Outside { &[Side::Inside][..] } else { &[] };
        self.look_at(lookout, rules, rest)
    }

    /// Begins to look at the first of these sides that somebody wants to know about.
    fn look_at(
        &self,
        lookout: &mut Lookout,
        rules: &Rules,
        sides: &[Side],
    ) -> io::Result<Option<bool>> {
        for &side in sides {
            let wanted = |protocol| rules.scans(side.other(), protocol);
            let udp = wanted(Protocol::Udp);
            if udp || wanted(Protocol::Tcp) {
                let own = self.own(side);
                let watched = lookout.side(side);
                watched.own = own;
                watched.diag.begin(udp)?;
                lookout.looking = Some(side);
                return Ok(None);
            }
        }
        lookout.looking = None;
        Ok(Some(lookout.news))
    }

    /// Ports that we listen on.
    fn own(&self, side: Side) -> Own {
        let mut own = Own::default();
        let ours = self.listeners.iter().map(|(_, listener)| &listener.place);
        for place in ours.filter(|place| place.side == side) {
            let ports = if place.protocol == Protocol::Tcp { &mut own.tcp } else { &mut own.udp };
            ports.insert(place.port, place.port);
        }
        own
    }

    /// A look could not be finished; the next one may.
    fn give_up(&mut self, error: &io::Error) -> Scan {
        let Some(lookout) = &mut self.lookout else { return Scan::Off };
        lookout.looking = None;
        if std::mem::replace(&mut lookout.blind, WELL) == 0 {
            log::warn!("Can't see who listens, so automatic ports don't follow: {error}");
        }
        Scan::Same
    }

    /// Opens and closes what services want.
    fn follow(&mut self, rules: &Rules, news: bool) -> Scan {
        let Some(lookout) = &mut self.lookout else { return Scan::Off };
        lookout.looks = lookout.looks.wrapping_add(1);
        lookout.blind = lookout.blind.saturating_sub(1);
        if !news && !lookout.has_hopes() {
            return Scan::Same;
        }
        let mut round = self.round();
        for (id, claim) in round.places.values_mut() {
            // Those of other rules are not for us to close.
            let number = self.listeners.get(*id).map(|listener| listener.rule);
            *claim = number.filter(|number| rules.get(*number).is_some_and(|rule| !rule.auto));
        }
        self.claim_services(&mut round, rules, PORTION);
        let changes = self.conclude(round);
        if changes.opened == 0 && changes.closed == 0 { Scan::Same } else { Scan::Changed }
    }

    /// Claims the places of all rules that follow services, and opens up to `portion` that are not
    /// there.
    pub(super) fn claim_services(&mut self, round: &mut Round, rules: &Rules, portion: usize) {
        let Some(mut lookout) = self.lookout.take() else { return };
        lookout.more = false;
        let mut left = portion;
        let mut still_failing = BTreeMap::new();
        for entry in rules.iter().filter(|r| r.rule.auto) {
            let (mut ports, mut last) = (0, None);
            for place in self.wanted(&lookout, entry) {
                let known = round.places.contains_key(&place);
                let due = lookout.retries(&place);
                if !known && due && left == 0 {
                    lookout.more = true;
                }
                if !known && (!due || left == 0) {
                    let failure = lookout.failed.get(&place).copied();
                    still_failing.extend(failure.map(|failure| (place, failure)));
                    continue;
                }
                left = left.saturating_sub(usize::from(!known));
                let Err(reason) = self.claim_within_limits(round, &place, entry.number) else {
                    continue;
                };
                let hopeless = reason.kind() == io::ErrorKind::PermissionDenied;
                if lookout.complain(&place) {
                    ports += 1;
                    last = Some(Refused::new(entry.side, entry.rule, place.port, reason));
                }
                still_failing.insert(place, (lookout.looks, hopeless));
            }
            if let Some(refused) = last {
                log::warn!("{}", refused.summary(ports));
            }
        }
        lookout.failed = still_failing;
        self.lookout = Some(lookout);
    }

    fn claim_within_limits(
        &mut self,
        round: &mut Round,
        place: &Place,
        number: usize,
    ) -> io::Result<bool> {
        if !round.places.contains_key(place) && self.listeners.len() >= self.most_listeners {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        self.claim(round, place.clone(), number)
    }

    /// The places of a rule for the services that there are.
    fn wanted(&mut self, lookout: &Lookout, entry: InForce<'_>) -> Vec<Place> {
        let InForce { side, rule, .. } = entry;
        let services = lookout.seen(side.other(), rule.protocol);
        let mut spots: BTreeMap<IpAddr, Vec<Rc<Spot>>> = BTreeMap::new();
        let mut places = Vec::new();
        for (port, reach) in services.range(rule.to, rule.target_port(rule.last)) {
            let port = rule.first.saturating_add(port.saturating_sub(rule.to));
            for addr in addresses(side, rule, reach, lookout.reaches_loopback) {
                if (addr.is_ipv4() && !self.setup.v4) || (addr.is_ipv6() && !self.setup.v6) {
                    continue;
                }
                let spots = spots
                    .entry(addr)
                    .or_insert_with(|| self.spots_at(side, Some(addr), rule.ifname.as_deref()));
                places.extend(spots.iter().map(|spot| Place {
                    side,
                    protocol: rule.protocol,
                    port,
                    spot: Rc::clone(spot),
                }));
            }
        }
        places
    }
}

/// Where to listen, by a rule of this side, for a service that can be reached so: in the families
/// that it speaks, and at loopback addresses only if it does.
fn addresses(
    side: Side,
    rule: &Rule,
    reach: Reach,
    reaches_loopback: bool,
) -> impl Iterator<Item = IpAddr> {
    let (any_v4, local_v4) = (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into());
    let (any_v6, local_v6) = (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into());
    let choose = |widely: Reach, locally: Reach, any: IpAddr, local: IpAddr| match side {
        Side::Outside if reach.meets(widely) => at(rule.listen, any),
        Side::Outside if reaches_loopback && reach.meets(locally) => at(rule.listen, local),
        // Out of a namespace connections go to loopback addresses, whatever else there is.
        Side::Inside if reach.meets(locally) => at(rule.listen, any),
        _ => None,
    };
    let all_loopback = Reach::LOOPBACK_V4.and(Reach::OTHER_LOOPBACK);
    let loopback_v4 = if side == Side::Inside { all_loopback } else { Reach::LOOPBACK_V4 };
    let v4 = choose(Reach::V4, loopback_v4, any_v4, local_v4);
    let v6 = choose(Reach::V6, Reach::LOOPBACK_V6, any_v6, local_v6);
    v4.into_iter().chain(v6)
}

/// What a rule that listens at `listen` makes of `addr`, the wildcard or the loopback address.
fn at(listen: Option<IpAddr>, addr: IpAddr) -> Option<IpAddr> {
    match listen {
        None => Some(addr),
        Some(own) if own.is_ipv4() != addr.is_ipv4() => None,
        Some(own) if addr.is_unspecified() || own.is_loopback() => Some(own),
        Some(own) if own.is_unspecified() => Some(addr),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests;
