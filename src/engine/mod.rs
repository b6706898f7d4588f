//! The engine: acts on what the machines decide.
//!
//! It takes frames from a [`Source`], finds their flows, asks the machine of the flow, and does
//! what the verdict says with the [`Host`]'s sockets and the [`Sink`]. It is generic over both
//! seams and imports no implementation of either; it holds no clock and no randomness (both come
//! in as arguments) and does not wait. Everything a guest, a peer or a host may refuse ends as a
//! count in [`counters`], a reset or an ICMP error, never as a panic or a blocked loop.
//!
//! One [`Engine`] belongs to one worker. The worker calls, per wake-up:
//! [`Engine::ingress`] while the link has frames, [`Engine::on_socket`] per ready socket,
//! [`Engine::on_room`] when the guest gave buffers, [`Engine::on_deadlines`], then
//! [`Engine::run_ready`] and one [`Sink::flush`].

pub mod counters;
mod datagram;
pub mod fragments;
pub mod headers;
mod ingress;
mod line;
pub mod packet;
mod scan;
mod splice;
pub mod staging;
mod surroundings;
mod tcp;

pub use crate::config::Protocols;
use crate::config::guest::{GuestView, Translation};
use crate::flow::deadline::{Booking, Deadlines};
use crate::flow::forward::{Arrival, Destination, Observed, Refusal, Splicing};
use crate::flow::rules::{Rules, Tables};
use crate::flow::table::FlowHasher;
use crate::flow::{FlowId, FlowKey, Protocol};
use crate::host::{Changes, Failure, Host, Relisten};
use crate::link::{Refused, Sink, Slot, Source};
use crate::service::Neighbours;
use crate::time::{Duration, Instant};
use crate::token::{Readiness, Token};
use crate::translate::datagram::Timeouts;
use crate::translate::tcp::Patience;
use crate::wire::MacAddr;
use counters::{DropReason, Drops};
use headers::Addresses;
use line::Line;
use std::io;
use std::net::Ipv6Addr;

/// How long listeners rest when the process is out of descriptors.
const STARVED_PAUSE: Duration = Duration::from_secs(1);

/// How long datagrams wait for a guest that is not there, or cannot receive: for longer than it takes
/// to stop and go on, and not until another one comes.
const STALE: Duration = Duration::from_secs(1);

/// The shortest frame that Ethernet knows, without FCS: where it finds no room, none does.
const LEAST_FRAME: usize = 60;

/// What the engine is told at start. Only the rules change later.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the guest shall see.
    pub view: GuestView,
    /// How addresses translate.
    pub translation: Translation,
    /// Forwarding rules; listeners name them by number.
    pub rules: Rules,
    /// The guest's Ethernet address, where it is known before its first frame.
    pub guest_mac: Option<MacAddr>,
    /// Which protocols are carried.
    pub protocols: Protocols,
    /// What goes from socket to socket, without the link.
    pub splicing: Splicing,
    /// Flows of each protocol that are kept at most.
    pub max_flows: usize,
    /// When flows of datagrams end.
    pub timeouts: Timeouts,
    /// How long a guest is tried that does not answer.
    pub patience: Patience,
    /// Key of the flow hash: 128 bits that nobody outside knows.
    pub hash_key: [u8; 16],
}

/// Someone who has booked a wake-up, or waits for a turn or for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// A TCP flow.
    Tcp(FlowId),
    /// Last words of TCP flows that are gone.
    Farewells,
    /// A UDP flow or a ping.
    Datagram(FlowId),
    /// A spliced TCP connection.
    Splice(FlowId),
    /// A UDP exchange between both sides.
    Relay(FlowId),
    /// A UDP listener that has more, or found no room.
    UdpListener(u32),
    /// The oldest datagram that is not complete.
    Fragments,
    /// The frames that make a new guest show its addresses.
    Greeting,
    /// Listeners that are not watched for want of descriptors.
    Starved,
    /// The next unsolicited router advertisement.
    RouterAdvertisement,
    /// What the guest is to hear of neighbours.
    Announcements,
    /// The next look at who listens on either side.
    Services,
}

/// What the parts of the engine share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) hasher: FlowHasher,
    /// The guest's Ethernet address: that of its last frame; before the first, the one that was told,
    /// or everyone's.
    pub(crate) guest_mac: MacAddr,
    pub(crate) observed: Observed,
    pub(crate) neighbours: Neighbours,
    /// Addresses that the guest was to have before the host's network changed.
    former: Vec<Ipv6Addr>,
    pub(crate) deadlines: Deadlines<Owner>,
    /// Who waits for room towards the guest, in order of arrival.
    waiting: Line<Owner>,
    /// Who has used up its share of this turn and has more to do.
    ready: Line<Owner>,
    /// Since when datagrams wait for a guest that is not there.
    down_since: Option<Instant>,
    pub(crate) drops: Drops,
    /// The identification of the next datagram that we fragment.
    fragment_id: u32,
}

impl Shared {
    /// Ethernet and IP addresses of frames of `key` towards the guest.
    pub(crate) fn to_guest(&self, key: &FlowKey) -> Addresses {
        let label = if key.guest.is_ipv4() { 0 } else { self.hasher.flow_label(key) };
        Addresses::to_guest(key, self.neighbours.mac(key.remote.addr), self.guest_mac, label)
    }

    /// Where something goes that a listener has taken.
    pub(crate) fn destination(&self, arrival: &Arrival<'_>) -> Result<Destination, Refusal> {
        let Settings { view, translation, splicing, .. } = &self.settings;
        arrival.destination(view, translation, &self.observed, *splicing)
    }

    pub(crate) fn drop(&mut self, reason: DropReason) {
        self.drops.count(reason);
        log::trace!("dropped: {}", reason.text());
    }

    /// The identification of a datagram that we fragment.
    pub(crate) const fn next_fragment_id(&mut self) -> u32 {
        self.fragment_id = self.fragment_id.wrapping_add(1);
        self.fragment_id
    }

    /// `owner` has more to do than its share of a turn.
    pub(crate) fn make_ready(&mut self, owner: Owner) {
        self.ready.join(owner);
    }

    /// Who waits for room towards the guest.
    pub(crate) fn waiting(&self) -> Vec<Owner> {
        self.waiting.iter().collect()
    }

    /// `owner` goes on when the guest gives room.
    pub(crate) fn wait_for_room(&mut self, owner: Owner) {
        self.waiting.join(owner);
    }

    /// A datagram cannot be delivered at `now`, and waits.
    pub(crate) fn note(&mut self, refused: Refused, now: Instant) {
        if refused == Refused::Down {
            self.down_since.get_or_insert(now);
        }
    }

    /// `owner` is going away: it waits for nothing.
    pub(crate) fn forget(&mut self, owner: Owner) {
        self.ready.leave(owner);
        self.waiting.leave(owner);
    }
}

/// Everything a handler may use, for the length of one call.
pub(crate) struct Ctx<'a, H, K> {
    pub(crate) host: &'a mut H,
    pub(crate) sink: &'a mut K,
    pub(crate) shared: &'a mut Shared,
    pub(crate) now: Instant,
}

impl<H, K: Sink> Ctx<'_, H, K> {
    /// Sends a complete small frame that may be lost: a service's reply, a reset without a flow.
    pub(crate) fn send_frame(&mut self, frame: &[u8]) {
        match self.reserve(frame.len()) {
            Ok(slot) => {
                self.sink.write(&slot, 0, frame);
                self.sink.commit(slot, frame.len(), crate::link::Offload::default());
            }
            Err(Refused::TooLarge) => self.shared.drop(DropReason::TooLarge),
            Err(_) => self.shared.drop(DropReason::NoRoom),
        }
    }

    pub(crate) fn reserve(&mut self, len: usize) -> Result<Slot, Refused> {
        self.sink.reserve(len)
    }
}

/// The flows of all protocols.
#[derive(Debug)]
pub(crate) struct Flows<H: Host> {
    pub(crate) tcp: tcp::Tcp<H::Stream>,
    pub(crate) datagrams: datagram::Datagrams<H::Datagram>,
    pub(crate) splices: splice::Splices<H::Stream, H::Pipe>,
    pub(crate) relays: splice::relay::Relays<H::Datagram>,
    pub(crate) fragments: ingress::Reassembly,
}

/// The engine of one worker.
#[derive(Debug)]
pub struct Engine<H: Host> {
    host: H,
    shared: Shared,
    flows: Flows<H>,
    ra_timer: ingress::RaTimer,
    announcer: surroundings::Announcer,
    starved: Booking,
    scans: scan::Pace,
    replacing: Option<Replacing>,
}

/// How far a change of the rules has come.
#[derive(Debug)]
enum Replacing {
    /// Those in force are still the old ones.
    Begun(Rules),
    /// The new ones are; the host tidies up.
    InForce,
}

impl<H: Host> Engine<H> {
    /// An engine without flows.
    pub fn new(host: H, settings: Settings, now: Instant) -> Self {
        let hasher = FlowHasher::new(settings.hash_key);
        let observed = Observed::new(&settings.view);
        let flows = Flows {
            tcp: tcp::Tcp::new(settings.max_flows, hasher),
            datagrams: datagram::Datagrams::new(settings.max_flows, hasher),
            splices: splice::Splices::new(settings.max_flows),
            relays: splice::relay::Relays::new(settings.max_flows, hasher),
            fragments: ingress::Reassembly::default(),
        };
        let fragment_id = hasher.counter_seed();
        let guest_mac = settings.guest_mac.unwrap_or(MacAddr::BROADCAST);
        let ra_timer = ingress::RaTimer::new(hasher);
        let neighbours = Neighbours::new(&settings.view, &settings.translation);
        let shared = Shared {
            settings,
            hasher,
            guest_mac,
            observed,
            neighbours,
            former: Vec::new(),
            deadlines: Deadlines::default(),
            waiting: Line::default(),
            ready: Line::default(),
            down_since: None,
            drops: Drops::default(),
            fragment_id,
        };
        let mut engine = Self {
            host,
            shared,
            flows,
            ra_timer,
            announcer: surroundings::Announcer::default(),
            starved: Booking::new(),
            scans: scan::Pace::new(),
            replacing: None,
        };
        engine.ra_timer.book(&mut engine.shared, now);
        engine.scans.restart(&mut engine.shared);
        engine
    }

    /// The host's sockets.
    pub const fn host_mut(&mut self) -> &mut H {
        &mut self.host
    }

    /// The forwarding rules in force.
    pub const fn rules(&self) -> &Rules {
        &self.shared.settings.rules
    }

    /// Begins to forward what `tables` say, and no longer what the rules in force say. Rules that
    /// both have are left alone, and so are flows. It is [`Engine::go_on_replacing`] that does it.
    pub fn replace_rules(&mut self, tables: &Tables) {
        self.replacing = Some(Replacing::Begun(self.rules().followed_by(tables)));
    }

    /// Whether [`Engine::go_on_replacing`] has something to do.
    pub const fn is_replacing(&self) -> bool {
        self.replacing.is_some()
    }

    /// Takes a step towards new rules, and says what became of them after the last one.
    ///
    /// # Errors
    /// A port cannot be listened on: then everything is as it was.
    pub fn go_on_replacing(&mut self) -> Option<Result<Changes, Failure>> {
        let rules = match self.replacing.as_ref()? {
            Replacing::Begun(rules) => rules,
            Replacing::InForce => &self.shared.settings.rules,
        };
        match self.host.relisten(rules) {
            Ok(Relisten::More) => None,
            Ok(Relisten::Bound) => {
                self.put_in_force();
                None
            }
            Ok(Relisten::Done(changes)) => {
                self.put_in_force();
                self.replacing = None;
                self.scans.restart(&mut self.shared);
                Some(Ok(changes))
            }
            Err(failure) => {
                self.replacing = None;
                Some(Err(failure))
            }
        }
    }

    fn put_in_force(&mut self) {
        if let Some(Replacing::Begun(rules)) = self.replacing.replace(Replacing::InForce) {
            self.shared.settings.rules = rules;
        }
    }

    /// How often what was dropped.
    pub const fn drops(&self) -> &Drops {
        &self.shared.drops
    }

    /// How many TCP flows there are.
    pub fn tcp_flows(&self) -> usize {
        self.flows.tcp.len()
    }

    /// How many UDP flows and pings there are.
    pub fn datagram_flows(&self) -> usize {
        self.flows.datagrams.len()
    }

    /// How many TCP connections are spliced.
    pub const fn spliced_connections(&self) -> usize {
        self.flows.splices.len()
    }

    /// How many UDP exchanges there are between both sides.
    pub const fn spliced_exchanges(&self) -> usize {
        self.flows.relays.len()
    }

    /// How many wait for room towards the guest, or for another turn.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.len() + self.shared.ready.len()
    }

    /// Bytes of TCP payload that are staged or held.
    pub const fn staged(&self) -> usize {
        self.flows.tcp.staged()
    }

    /// When [`Engine::on_deadlines`] wants to be called.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.shared.deadlines.next()
    }

    /// Whether [`Engine::run_ready`] has something to do.
    pub fn has_ready(&self) -> bool {
        !self.shared.ready.is_empty()
    }

    fn ctx<'a, K>(
        host: &'a mut H,
        shared: &'a mut Shared,
        sink: &'a mut K,
        now: Instant,
    ) -> Ctx<'a, H, K> {
        Ctx { host, sink, shared, now }
    }

    /// Takes one batch of frames from the guest and acts on it; returns how many there were. 0
    /// means that an event of the link's will tell of the next.
    ///
    /// # Errors
    /// Those of [`Source::receive`].
    pub fn ingress<S: Source, K: Sink>(
        &mut self,
        source: &mut S,
        sink: &mut K,
        now: Instant,
    ) -> io::Result<usize> {
        let frames = source.receive()?;
        if frames > 0 {
            self.scans.on_traffic();
            let mut ctx = Self::ctx(&mut self.host, &mut self.shared, sink, now);
            for index in 0..frames {
                ingress::frame(&mut ctx, &mut self.flows, source, index);
            }
            self.flows.tcp.settle_batch(&mut ctx, source);
            self.flows.datagrams.settle_batch(&mut ctx, source);
            source.release();
        }
        Ok(frames)
    }

    /// A socket that the engine watches is ready. Stale tokens do nothing.
    pub fn on_socket<K: Sink>(
        &mut self,
        token: Token,
        ready: Readiness,
        sink: &mut K,
        now: Instant,
    ) {
        let mut ctx = Self::ctx(&mut self.host, &mut self.shared, sink, now);
        let Flows { tcp, datagrams, splices, relays, .. } = &mut self.flows;
        match token {
            Token::Tcp(id) => tcp.on_socket(&mut ctx, id, ready),
            Token::Datagram(id) => datagrams.on_socket(&mut ctx, id, ready),
            Token::Splice(id, side) => splices.on_socket(&mut ctx, id, side, ready),
            Token::Relay(id, side) => relays.on_socket(&mut ctx, id, side, ready),
            Token::Listener(listener) => match ctx.host.listener_protocol(listener) {
                Some(Protocol::Tcp) => tcp.on_listener(&mut ctx, splices, listener),
                Some(_) => datagrams.on_listener(&mut ctx, relays, listener),
                None => {}
            },
            _ => {}
        }
        if matches!(token, Token::Listener(_)) {
            self.book_starved(now);
        }
    }

    /// Listeners that were given up for want of descriptors are tried again in a while.
    fn book_starved(&mut self, now: Instant) {
        if self.host.is_starved() {
            let at = Some(now + STARVED_PAUSE);
            self.shared.deadlines.book(&mut self.starved, Owner::Starved, at);
        }
    }

    /// A guest has become able to receive: makes it show its addresses. Datagrams that have waited
    /// for it for long are dropped: they may be for another, who had the address before.
    pub fn on_link_up<K: Sink>(&mut self, sink: &mut K, now: Instant) {
        // Whoever comes now has heard of no neighbour yet.
        self.shared.neighbours.forget_news();
        let late = self.shared.down_since.take().is_some_and(|since| now.since(since) > STALE);
        let mut ctx = Self::ctx(&mut self.host, &mut self.shared, sink, now);
        ingress::greet(&mut ctx);
        if late {
            self.flows.datagrams.drop_waiting(&mut ctx);
        }
        self.on_room(sink, now);
    }

    /// The guest has given buffers: those who wait go on, in order, until there is no room again.
    pub fn on_room<K: Sink>(&mut self, sink: &mut K, now: Instant) {
        for _ in 0..self.shared.waiting.len() {
            // Without room for the least frame nobody gets any: the rest keep their places.
            let Ok(slot) = sink.reserve(LEAST_FRAME) else { break };
            sink.cancel(slot);
            let Some(owner) = self.shared.waiting.pop() else { break };
            self.run(owner, sink, now);
        }
    }

    /// Gives those who had more to do than their share another turn, one each.
    pub fn run_ready<K: Sink>(&mut self, sink: &mut K, now: Instant) {
        for _ in 0..self.shared.ready.len() {
            let Some(owner) = self.shared.ready.pop() else { break };
            self.run(owner, sink, now);
        }
    }

    fn run<K: Sink>(&mut self, owner: Owner, sink: &mut K, now: Instant) {
        let mut ctx = Self::ctx(&mut self.host, &mut self.shared, sink, now);
        match owner {
            Owner::Tcp(id) => self.flows.tcp.resume(&mut ctx, id),
            Owner::Farewells => self.flows.tcp.say_farewell(&mut ctx),
            Owner::Datagram(id) => self.flows.datagrams.resume(&mut ctx, id),
            Owner::Splice(id) => self.flows.splices.resume(&mut ctx, id),
            Owner::Relay(id) => self.flows.relays.resume(&mut ctx, id),
            Owner::UdpListener(n) => {
                let Flows { datagrams, relays, .. } = &mut self.flows;
                datagrams.resume_listener(&mut ctx, relays, n);
            }
            Owner::Greeting => ingress::greet(&mut ctx),
            Owner::Fragments
            | Owner::Starved
            | Owner::RouterAdvertisement
            | Owner::Announcements
            | Owner::Services => {}
        }
    }

    /// Acts on all deadlines up to `now`.
    pub fn on_deadlines<K: Sink>(&mut self, sink: &mut K, now: Instant) {
        // Whoever books anew for now waits for the next call: this one ends.
        for _ in 0..self.shared.deadlines.len() {
            let Some(owner) = self.shared.deadlines.pop_due(now) else { break };
            let mut ctx = Self::ctx(&mut self.host, &mut self.shared, sink, now);
            match owner {
                Owner::Tcp(id) => self.flows.tcp.on_deadline(&mut ctx, id),
                Owner::Datagram(id) => self.flows.datagrams.on_deadline(&mut ctx, id),
                Owner::Relay(id) => self.flows.relays.on_deadline(&mut ctx, id),
                Owner::Fragments => self.flows.fragments.on_deadline(&mut ctx),
                Owner::Starved => {
                    self.starved.clear();
                    ctx.host.feed();
                    self.book_starved(now);
                }
                Owner::Splice(_) | Owner::UdpListener(_) | Owner::Greeting | Owner::Farewells => {}
                Owner::RouterAdvertisement => self.ra_timer.on_deadline(&mut ctx),
                Owner::Announcements => self.announcer.on_deadline(&mut ctx),
                Owner::Services => self.scans.on_deadline(ctx.host, ctx.shared, now),
            }
        }
    }
}
