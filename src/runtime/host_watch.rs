//! The host's network while we run: neighbours are passed on to the engine, changes become a new
//! plan of the guest's network.
//!
//! Changes come in flurries (an interface that goes up gets a state, addresses one by one, routes),
//! so the host is only surveyed when it has been quiet for a while, or has not been for long.

use super::resolv::ResolvFile;
use crate::config::Network;
use crate::config::facts::HostFacts;
use crate::config::options::Typed;
use crate::engine::Engine;
use crate::host::Host;
use crate::host::netlink::monitor::{Monitor, News, Survey};
use crate::link::Sink;
use crate::sys::epoll::Epoll;
use crate::time::{Duration, Instant};
use crate::token::{Interest, Token};
use std::collections::VecDeque;
use std::io;

/// [`Token::Runtime`] of what the kernel tells everyone, of its answers to us, and of resolvers.
const HEAR: u32 = 0x20;
const ANSWERS: u32 = 0x21;
const RESOLV: u32 = 0x22;

/// How long the host is quiet before it is surveyed, and how long it may go on not to be.
const QUIET: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);

/// How long until the kernel is asked again when it has not answered.
const RETRY: Duration = Duration::from_secs(1);

/// What the guest's network follows from.
#[derive(Debug)]
pub struct Planner {
    /// What was typed.
    pub typed: Typed,
    /// The host as it was at start.
    pub facts: HostFacts,
    /// `/etc/resolv.conf`, opened at start.
    pub resolv: Option<ResolvFile>,
    /// Whether the guest was configured with what the host had at start, and keeps that
    /// (`--config-net`).
    pub configured: bool,
}

impl Planner {
    /// The network that follows `network` on a host that looks like this; `None` for no change.
    fn plan(&mut self, network: &Network, survey: Survey) -> Option<Network> {
        let Survey { interfaces, addresses, routes } = survey;
        if let Some(resolv) = self.resolv.as_ref().and_then(ResolvFile::read) {
            self.facts.resolv = resolv;
        }
        self.facts.interfaces = interfaces;
        self.facts.addresses = addresses;
        self.facts.routes = routes;
        if self.configured {
            network.follow_configured(&self.typed, &self.facts)
        } else {
            network.follow(&self.typed, &self.facts)
        }
    }
}

/// A flurry of changes.
#[derive(Clone, Copy, Debug)]
struct Flurry {
    first: Instant,
    last: Instant,
}

impl Flurry {
    /// When it is over, or has to be.
    fn end(&self) -> Instant {
        (self.last + QUIET).min(self.first + PATIENCE)
    }
}

/// A watch over the host's network.
#[derive(Debug)]
pub struct HostWatch {
    monitor: Monitor,
    network: Network,
    planner: Planner,
    flurry: Option<Flurry>,
    retry: Option<Instant>,
}

impl HostWatch {
    /// Watches for the sake of a guest with this network. To be opened before the sandbox.
    ///
    /// # Errors
    /// Netlink or epoll do not work.
    pub fn open(epoll: &Epoll, network: Network, planner: Planner) -> io::Result<Self> {
        let monitor = Monitor::open()?;
        let interest = Interest { readable: true, ..Interest::default() };
        epoll.add(monitor.groups(), Token::Runtime(HEAR), interest)?;
        epoll.add(monitor.answers(), Token::Runtime(ANSWERS), interest)?;
        if let Some(writes) = planner.resolv.as_ref().and_then(ResolvFile::writes) {
            epoll.add(writes, Token::Runtime(RESOLV), interest)?;
        }
        Ok(Self { monitor, network, planner, flurry: None, retry: Some(Instant::ZERO) })
    }

    /// Whether [`Token::Runtime`] `which` is one of ours.
    pub(super) const fn owns(which: u32) -> bool {
        matches!(which, HEAR | ANSWERS | RESOLV)
    }

    /// When [`HostWatch::on_deadline`] wants to be called.
    pub(super) fn due(&self) -> Option<Instant> {
        self.flurry.map(|flurry| flurry.end()).into_iter().chain(self.retry).min()
    }

    /// One of the sockets is readable.
    pub(super) fn on_event<H: Host, K: Sink>(
        &mut self,
        which: u32,
        engine: &mut Engine<H>,
        sink: &mut K,
        now: Instant,
    ) {
        let mut heard = VecDeque::new();
        let mut tell = |news| heard.push_back(news);
        match which {
            HEAR => self.monitor.hear(&mut tell),
            RESOLV => {
                self.planner.resolv.iter().for_each(ResolvFile::take_note);
                tell(News::Changed);
            }
            _ => self.monitor.read_answers(&mut tell),
        }
        self.take(heard, engine, sink, now);
    }

    /// A deadline may be due.
    pub(super) fn on_deadline<H: Host, K: Sink>(
        &mut self,
        engine: &mut Engine<H>,
        sink: &mut K,
        now: Instant,
    ) {
        let again = self.retry.take_if(|at| *at <= now).is_some();
        let over = self.flurry.take_if(|flurry| flurry.end() <= now).is_some();
        let mut heard = VecDeque::new();
        let mut tell = |news| heard.push_back(news);
        if again {
            self.monitor.ask_neighbours(&mut tell);
        }
        if again || over {
            self.monitor.ask_survey(&mut tell);
        }
        self.take(heard, engine, sink, now);
    }

    fn take<H: Host, K: Sink>(
        &mut self,
        mut heard: VecDeque<News>,
        engine: &mut Engine<H>,
        sink: &mut K,
        now: Instant,
    ) {
        while let Some(news) = heard.pop_front() {
            match news {
                News::Neighbour(neighbour) => {
                    let templates = &self.network.templates;
                    let template =
                        if neighbour.addr.is_ipv4() { &templates.v4 } else { &templates.v6 };
                    if template.as_ref().is_some_and(|t| t.interface == neighbour.interface) {
                        engine.set_neighbour(neighbour.addr, neighbour.mac, now);
                    }
                }
                News::Neighbours => engine.begin_neighbours(),
                News::NoMoreNeighbours => engine.end_neighbours(),
                News::Changed => self.changed(now),
                News::Missed => {
                    log::debug!("netlink: overrun, asking for everything");
                    self.monitor.ask_neighbours(&mut |news| heard.push_back(news));
                    self.changed(now);
                }
                News::Surveyed(survey) => {
                    if let Some(new) = self.planner.plan(&self.network, survey) {
                        self.follow(new, engine, sink, now);
                        self.monitor.ask_neighbours(&mut |news| heard.push_back(news));
                    }
                }
                News::NoAnswer => self.retry = Some(now + RETRY),
            }
        }
    }

    fn changed(&mut self, now: Instant) {
        let first = self.flurry.map_or(now, |flurry| flurry.first);
        self.flurry = Some(Flurry { first, last: now });
    }

    /// Puts a new plan in place.
    fn follow<H: Host, K: Sink>(
        &mut self,
        new: Network,
        engine: &mut Engine<H>,
        sink: &mut K,
        now: Instant,
    ) {
        if new.guest != self.network.guest || new.translation != self.network.translation {
            crate::log::limited!(now, log::Level::Info, "The host's network has changed");
            for line in new.summary() {
                log::debug!("{line}");
            }
            engine.set_network(new.guest.clone(), new.translation.clone(), sink, now);
        }
        engine.host_mut().set_scope(new.scope());
        self.network = new;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_flurry_ends_with_quiet_or_with_our_patience() {
        let flurry = |first, last| Flurry { first: at(first), last: at(last) }.end();
        assert_eq!(flurry(500, 500), at(1500));
        assert_eq!(flurry(500, 1400), at(2400));
        assert_eq!(flurry(500, 10_400), at(10_500), "however much goes on");
    }
}
