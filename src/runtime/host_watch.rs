//! The host's network while we run: neighbours are passed on to the engine, changes become a new
//! plan of the guest's network.
//!
//! Changes come in flurries (an interface that goes up gets a state, addresses one by one, routes),
//! so the host is only surveyed when it has been quiet for a while, or has not been for long.

use crate::config::Network;
use crate::config::facts::HostFacts;
use crate::config::options::Typed;
use crate::config::resolv::Resolv;
use crate::engine::Engine;
use crate::host::Host;
use crate::host::netlink::monitor::{Monitor, News, Survey};
use crate::link::Sink;
use crate::sys::epoll::Epoll;
use crate::time::{Duration, Instant};
use crate::token::{Interest, Token};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

/// [`Token::Runtime`] of what the kernel tells everyone, and of its answers to us.
const HEAR: u32 = 0x20;
const ANSWERS: u32 = 0x21;

/// How long the host is quiet before it is surveyed, and how long it may go on not to be.
const QUIET: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);

/// How long until the kernel is asked again when it has not answered.
const RETRY: Duration = Duration::from_secs(1);

/// Bytes of `resolv.conf` that are read at most.
const MAX_FILE: usize = 1 << 16;

/// What the guest's network follows from.
#[derive(Debug)]
pub struct Planner {
    /// What was typed.
    pub typed: Typed,
    /// The host as it was at start.
    pub facts: HostFacts,
    /// `/etc/resolv.conf`, opened at start: its name means nothing any more in the sandbox.
    pub resolv: Option<File>,
}

impl Planner {
    /// The network that follows `network` on a host that looks like this; `None` for no change.
    fn plan(&mut self, network: &Network, survey: Survey) -> Option<Network> {
        let Survey { interfaces, addresses, routes } = survey;
        if let Some(resolv) = self.resolv.as_ref().and_then(read_resolv) {
            self.facts.resolv = resolv;
        }
        self.facts.interfaces = interfaces;
        self.facts.addresses = addresses;
        self.facts.routes = routes;
        network.follow(&self.typed, &self.facts)
    }
}

/// Reads the file anew, if it still has a name: programs that replace it leave us with the old one.
fn read_resolv(file: &File) -> Option<Resolv> {
    if file.metadata().ok()?.nlink() == 0 {
        return None;
    }
    let mut bytes = vec![0; MAX_FILE];
    let n = file.read_at(&mut bytes, 0).ok()?;
    Some(Resolv::parse(&String::from_utf8_lossy(bytes.get(..n)?)))
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
    /// `None`: the guest's network stays as it is.
    planner: Option<Planner>,
    flurry: Option<Flurry>,
    retry: Option<Instant>,
}

impl HostWatch {
    /// Watches for the sake of a guest with this network, which follows the host if there is a
    /// planner. To be opened before the sandbox.
    ///
    /// # Errors
    /// Netlink or epoll do not work.
    pub fn open(epoll: &Epoll, network: Network, planner: Option<Planner>) -> io::Result<Self> {
        let monitor = Monitor::open(planner.is_some())?;
        let interest = Interest { readable: true, ..Interest::default() };
        epoll.add(monitor.groups(), Token::Runtime(HEAR), interest)?;
        epoll.add(monitor.answers(), Token::Runtime(ANSWERS), interest)?;
        Ok(Self { monitor, network, planner, flurry: None, retry: Some(Instant::ZERO) })
    }

    /// Whether [`Token::Runtime`] `which` is one of ours.
    pub(super) const fn owns(which: u32) -> bool {
        matches!(which, HEAR | ANSWERS)
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
        if (again || over) && self.planner.is_some() {
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
                    let planner = self.planner.as_mut();
                    if let Some(new) = planner.and_then(|p| p.plan(&self.network, survey)) {
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
    use std::io::{Seek as _, Write as _};
    use vmm_sys_util::tempdir::TempDir;

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

    #[test]
    fn resolv_conf_is_read_anew_until_it_is_replaced() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("resolv.conf");
        std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        let file = File::open(&path).unwrap();
        let servers = || read_resolv(&file).map(|resolv| resolv.servers);
        assert_eq!(servers(), Some(vec!["192.0.2.1".parse().unwrap()]));
        let mut other = File::options().write(true).truncate(true).open(&path).unwrap();
        other.write_all(b"nameserver 192.0.2.2\n").unwrap();
        assert_eq!(servers(), Some(vec!["192.0.2.2".parse().unwrap()]), "written in place");
        other.rewind().unwrap();
        let new = dir.as_path().join("new");
        std::fs::write(&new, "nameserver 192.0.2.3\n").unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert_eq!(servers(), None, "replaced");
    }
}
