//! One worker: an epoll, a link, an engine, and the loop that joins them.
//!
//! [`Worker::turn`] does everything that one wake-up asks for and never waits, so a test can step
//! it; only [`Worker::run`] loops.

use super::Clock;
use super::host_watch::HostWatch;
use super::statistics::{Counter, Statistics};
use crate::control;
use crate::daemon::{Received, Signals};
use crate::engine::Engine;
use crate::host::Host;
use crate::link::{Link, Sink, Source};
use crate::pasta::watch::{End, Watch};
use crate::sys::epoll::{Epoll, Events};
use crate::time::{Duration, Instant};
use crate::token::{Interest, Readiness, Token};
use nix::sys::signal::Signal;
use std::io;
use std::os::fd::AsFd as _;
use std::rc::Rc;

/// Events taken per wake-up.
const EVENTS: usize = 64;

/// Batches of frames taken from the link per turn, before sockets get theirs.
const BATCHES: usize = 4;

/// How long a guest that has just been woken for frames to it may wait to be told of frames that
/// it has back. Drivers look at both rings when they are woken (Linux does in its poll function),
/// and will mostly not want to be told any more.
const SIGNAL_DELAY: Duration = Duration::from_micros(100);

/// The ends that [`Worker::until`] waits for have the first numbers of [`Token::Runtime`], up to
/// this one.
const WATCHES: u32 = 4;

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The one client has gone (`--one-off`), or the interface of a namespace.
    ClientGone,
    /// A signal asked for it.
    Signal,
    /// What we served has ended, the command or the namespace, or what that takes.
    Ended(End),
}

/// An event loop over one link and one engine.
#[derive(Debug)]
pub struct Worker<L: Link, H: Host> {
    link: L,
    engine: Engine<H>,
    epoll: Rc<Epoll>,
    clock: Clock,
    /// The link has more frames than the last turn took.
    frames_left: bool,
    /// The guest has not been told yet of frames that it has back.
    signal_owed: bool,
    /// `--stats`.
    statistics: Option<Box<Statistics>>,
    /// What we serve and what it takes, as far as it can end.
    watches: Vec<Watch>,
    /// What those send who want us, or the command, to end.
    signals: Option<Signals>,
    /// `--conf-path`.
    control: Option<Box<control::Server>>,
    host_watch: Option<Box<HostWatch>>,
}

/// What the events of a turn have said about the link.
#[derive(Default)]
struct Seen {
    frames: bool,
    room: bool,
    up: bool,
}

impl<L: Link, H: Host> Worker<L, H> {
    /// A worker whose link and sockets are registered with `epoll`.
    pub const fn new(link: L, engine: Engine<H>, epoll: Rc<Epoll>, clock: Clock) -> Self {
        Self {
            link,
            engine,
            epoll,
            clock,
            frames_left: false,
            signal_owed: false,
            statistics: None,
            watches: Vec::new(),
            signals: None,
            control: None,
            host_watch: None,
        }
    }

    /// Shows counters on standard error, at most `every` so often.
    pub fn show_statistics(&mut self, every: Duration) {
        self.statistics = Some(Box::new(Statistics::new(every)));
    }

    /// Heeds `signals`: each ends us, unless it is meant for the command that we watch.
    ///
    /// # Errors
    /// Those of epoll.
    pub fn heed(&mut self, signals: Signals) -> io::Result<()> {
        let interest = Interest { readable: true, ..Interest::default() };
        self.epoll.add(signals.as_fd(), Token::Signal, interest)?;
        self.signals = Some(signals);
        Ok(())
    }

    /// The signal that came while there was nobody else whom it could be meant for.
    ///
    /// # Errors
    /// What can only be a mistake of ours.
    pub fn signalled(&self) -> io::Result<Option<Signal>> {
        let received = self.signals.as_ref().map_or(Ok(None), Signals::received)?;
        Ok(received.map(|received| received.signal))
    }

    /// Ends with what `watch` watches, or anything that was given before.
    ///
    /// # Errors
    /// Those of epoll.
    pub fn until(&mut self, watch: Watch) -> io::Result<()> {
        let number = u32::try_from(self.watches.len()).unwrap_or(WATCHES);
        debug_assert!(number < WATCHES, "somebody else's number");
        watch.register(&self.epoll, Token::Runtime(number))?;
        self.watches.push(watch);
        Ok(())
    }

    /// Serves clients that show and replace the forwarding rules.
    pub fn serve_control(&mut self, server: control::Server) {
        self.control = Some(Box::new(server));
    }

    /// Follows the host's network with `watch`, which is registered with the epoll.
    pub fn watch_host(&mut self, watch: HostWatch) {
        self.host_watch = Some(Box::new(watch));
    }

    /// The engine, for tests and statistics.
    pub const fn engine(&mut self) -> &mut Engine<H> {
        &mut self.engine
    }

    /// Runs until there is a reason to end.
    ///
    /// # Errors
    /// Only what makes going on impossible: epoll itself, or the link's own descriptors.
    pub fn run(&mut self) -> io::Result<Exit> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let timeout = self.timeout(self.clock.now());
            self.epoll.wait(&mut events, timeout)?;
            if let Some(exit) = self.turn(events.iter(), self.clock.now())? {
                return Ok(exit);
            }
        }
    }

    /// How long the next wait may last.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        if self.frames_left || self.engine.has_ready() || self.engine.is_replacing() {
            return Some(Duration::ZERO);
        }
        let table = self.statistics.as_ref().and_then(|s| s.due());
        let control = self.control.as_ref().and_then(|c| c.deadline());
        let host = self.host_watch.as_ref().and_then(|watch| watch.due());
        let next =
            self.engine.next_deadline().into_iter().chain(table).chain(control).chain(host).min();
        let next = next.map(|at| at.since(now));
        if self.signal_owed { next.into_iter().chain([SIGNAL_DELAY]).min() } else { next }
    }

    /// Everything that one wake-up asks for. Returns a reason to end, if there is one.
    ///
    /// # Errors
    /// As [`Worker::run`].
    pub fn turn(
        &mut self,
        events: impl Iterator<Item = (Token, Readiness)>,
        now: Instant,
    ) -> io::Result<Option<Exit>> {
        let mut seen = Seen { frames: self.frames_left, ..Seen::default() };
        for (token, ready) in events {
            if let Some(statistics) = &mut self.statistics {
                statistics.event(token);
            }
            if let Some(exit) = self.on_event(token, ready, &mut seen, now)? {
                return Ok(Some(exit));
            }
        }
        self.serve_link(&seen, now)?;
        self.serve_flows(now);
        self.tell_guest()?;
        self.serve_others(now);
        Ok(None)
    }

    /// Hands an event to whom it belongs. What it says about the link is for later: frames are
    /// served once a turn.
    fn on_event(
        &mut self,
        token: Token,
        ready: Readiness,
        seen: &mut Seen,
        now: Instant,
    ) -> io::Result<Option<Exit>> {
        log::trace!("event: {token:?} {ready:?}");
        match token {
            Token::Link(which) => return self.on_link(which, ready, seen),
            Token::Signal => return self.on_signal(),
            Token::Listener(_)
            | Token::Tcp(_)
            | Token::Datagram(_)
            | Token::Splice(..)
            | Token::Relay(..) => {
                let (_, sink) = self.link.halves();
                self.engine.on_socket(token, ready, sink, now);
            }
            Token::Runtime(n) if n < WATCHES => {
                let end = self.watches.get(n as usize).map_or(Ok(None), Watch::look)?;
                return Ok(end.map(Exit::Ended));
            }
            Token::Runtime(n) if control::Server::owns(n) => self.on_control(n, now),
            Token::Runtime(n) if HostWatch::owns(n) => {
                let (_, sink) = self.link.halves();
                if let Some(watch) = &mut self.host_watch {
                    watch.on_event(n, &mut self.engine, sink, now);
                }
            }
            Token::Runtime(_) => {}
        }
        Ok(None)
    }

    /// The user of a terminal, or whoever sends what terminals send, means the command if there is
    /// one. Everything else means us.
    fn on_signal(&mut self) -> io::Result<Option<Exit>> {
        let Some(signals) = &self.signals else { return Ok(None) };
        while let Some(Received { signal, by_terminal }) = signals.received()? {
            let ours = matches!(signal, Signal::SIGTERM | Signal::SIGQUIT) && !by_terminal;
            let command = self.watches.iter_mut().find_map(|watch| match watch {
                Watch::Command(command) => Some(command),
                Watch::Process(_) | Watch::Name(..) | Watch::Inside(_) => None,
            });
            match command {
                Some(command) if !ours => command.signal(signal, by_terminal)?,
                _ => return Ok(Some(Exit::Signal)),
            }
        }
        Ok(None)
    }

    /// The link looks what has happened, and adds it to what was seen.
    fn on_link(
        &mut self,
        which: u32,
        ready: Readiness,
        seen: &mut Seen,
    ) -> io::Result<Option<Exit>> {
        let news = self.link.on_event(which, ready)?;
        seen.frames |= news.frames;
        seen.room |= news.room;
        seen.up |= news.up;
        Ok(news.ended.then_some(Exit::ClientGone))
    }

    /// Something has happened at the control socket; perhaps there are new rules.
    fn on_control(&mut self, number: u32, now: Instant) {
        let Some(control) = &mut self.control else { return };
        let Some(tables) = control.on_event(number, self.engine.rules(), now) else { return };
        self.engine.replace_rules(&tables);
    }

    /// The next step towards new rules. The client is told when there are none left.
    fn change_rules(&mut self, now: Instant) {
        let Some(outcome) = self.engine.go_on_replacing() else { return };
        let outcome = match outcome {
            Ok(changes) => {
                for warning in &changes.warnings {
                    crate::log::limited!(now, log::Level::Warn, "{warning}");
                }
                Ok(changes.warnings.join("\n"))
            }
            Err(failure) => Err(failure.to_string()),
        };
        if let Some(control) = &mut self.control {
            control.settle(&outcome, self.engine.rules(), now);
        }
    }

    fn serve_link(&mut self, seen: &Seen, now: Instant) -> io::Result<()> {
        let (source, sink) = self.link.halves();
        if seen.up {
            self.engine.on_link_up(sink, now);
        }
        if seen.room {
            self.engine.on_room(sink, now);
        }
        self.frames_left = seen.frames;
        for _ in 0..BATCHES {
            if !self.frames_left {
                break;
            }
            let frames = self.engine.ingress(source, sink, now)?;
            self.frames_left = frames > 0;
            if let Some(statistics) = &mut self.statistics {
                statistics.frames(frames);
            }
        }
        Ok(())
    }

    /// What is due of the host's network and of flows, and flows that have work left.
    fn serve_flows(&mut self, now: Instant) {
        let (_, sink) = self.link.halves();
        if let Some(watch) = &mut self.host_watch
            && watch.due().is_some_and(|at| at <= now)
        {
            watch.on_deadline(&mut self.engine, sink, now);
        }
        self.engine.on_deadlines(sink, now);
        if self.engine.has_ready() {
            self.engine.run_ready(sink, now);
        }
    }

    /// Publishes frames to the guest, and tells it of those that it has back.
    fn tell_guest(&mut self) -> io::Result<()> {
        let (source, sink) = self.link.halves();
        sink.flush()?;
        self.signal_owed = source.signal(sink.has_signalled() && !self.signal_owed);
        Ok(())
    }

    /// Those who are no part of the guest's network: clients of the control socket that wait for
    /// new rules or take too long, and readers of statistics.
    fn serve_others(&mut self, now: Instant) {
        self.change_rules(now);
        if let Some(control) = &mut self.control {
            control.on_deadline(self.engine.rules(), now);
        }
        if let Some(statistics) = &mut self.statistics {
            let table = statistics.turn(now, |into| gather(&self.link, &self.engine, into));
            table.iter().for_each(|table| crate::log::to_stderr(table));
        }
    }
}

/// The counters of link and engine.
fn gather<L: Link, H: Host>(link: &L, engine: &Engine<H>, into: &mut Vec<Counter>) {
    into.push(("TCP flows", engine.tcp_flows() as u64));
    into.push(("UDP flows and pings", engine.datagram_flows() as u64));
    into.push(("spliced TCP connections", engine.spliced_connections() as u64));
    into.push(("spliced UDP exchanges", engine.spliced_exchanges() as u64));
    into.push(("bytes of TCP payload held", engine.staged() as u64));
    into.extend(engine.drops().iter().map(|(reason, count)| (reason.text(), count)));
    link.counters(&mut |name, value| into.push((name, value)));
}
