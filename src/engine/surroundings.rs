//! What the guest is told of a host whose network changes while it runs: new neighbours, new
//! addresses, another router.

use super::{Ctx, Engine, Owner, Shared};
use crate::config::guest::{GuestV6, GuestView, Translation};
use crate::config::template::in_subnet;
use crate::flow::deadline::Booking;
use crate::flow::forward;
use crate::host::Host;
use crate::link::{Offload, Refused, Sink};
use crate::service::{self, Seen, Surroundings};
use crate::time::{Duration, Instant};
use crate::wire::MacAddr;
use std::net::{IpAddr, Ipv6Addr};

/// Announcements in a row, and how long the next wait: neighbours that come and go must not keep
/// the guest busy.
const BURST: usize = 8;
const PAUSE: Duration = Duration::from_millis(100);

/// Prefixes that the guest is told to be gone; the latest ones.
const MAX_FORMER: usize = 4;

/// Announcements of neighbours to the guest.
#[derive(Debug, Default)]
pub(crate) struct Announcer {
    booking: Booking,
    /// None goes out before this.
    earliest: Option<Instant>,
}

impl Announcer {
    /// Books a wake-up if there is something to announce.
    fn book(&mut self, shared: &mut Shared, now: Instant) {
        if shared.neighbours.next_news().is_some() {
            let at = self.earliest.map_or(now, |earliest| earliest.max(now));
            shared.deadlines.book(&mut self.booking, Owner::Announcements, Some(at));
        }
    }

    pub(crate) fn on_deadline<H, K: Sink>(&mut self, ctx: &mut Ctx<'_, H, K>) {
        self.booking.clear();
        for _ in 0..BURST {
            let Some((addr, mac)) = ctx.shared.neighbours.next_news() else { break };
            let seen = ctx.shared.seen();
            let frame = service::announcement(addr, mac, &ctx.shared.surroundings(), &seen);
            if let Some(frame) = frame {
                match ctx.reserve(frame.len()) {
                    Ok(slot) => {
                        ctx.sink.write(&slot, 0, &frame);
                        ctx.sink.commit(slot, frame.len(), Offload::default());
                    }
                    // It may have room for them later.
                    Err(Refused::Full) => break,
                    Err(_) => return ctx.shared.neighbours.forget_news(),
                }
            }
            ctx.shared.neighbours.told();
        }
        self.earliest = Some(ctx.now + PAUSE);
        self.book(ctx.shared, ctx.now);
    }
}

impl Shared {
    pub(super) fn surroundings(&self) -> Surroundings<'_> {
        let view = &self.settings.view;
        Surroundings { view, neighbours: &self.neighbours, former: &self.former }
    }

    /// The addresses that the guest was last seen to use.
    pub(super) const fn seen(&self) -> Seen {
        let observed = &self.observed;
        Seen { v4: observed.v4, v6: observed.v6, link_local: observed.v6_link_local }
    }

    /// Notes that prefixes of `before` are good no more.
    fn retire(&mut self, before: Option<&GuestV6>) {
        let same = |a: Ipv6Addr, b: Ipv6Addr| in_subnet(a.into(), b.into(), 64);
        let now = self.settings.view.v6.as_ref().and_then(|v6| v6.addr);
        self.former.extend(before.and_then(|v6| v6.addr));
        let mut kept: Vec<Ipv6Addr> = Vec::new();
        for addr in self.former.drain(..).rev() {
            let known = now.is_some_and(|now| same(now, addr));
            if !known && !kept.iter().any(|other| same(*other, addr)) && kept.len() < MAX_FORMER {
                kept.push(addr);
            }
        }
        kept.reverse();
        self.former = kept;
    }
}

impl<H: Host> Engine<H> {
    /// The host's neighbour `addr` has `mac`, or is no longer known. The guest is told if that
    /// changes anything for it, a few at a time.
    pub fn set_neighbour(&mut self, addr: IpAddr, mac: Option<MacAddr>, now: Instant) {
        let shared = &mut self.shared;
        let settings = &shared.settings;
        // Where the guest knows the neighbour by another name, or has its address itself, it is
        // not the neighbour that it sees there.
        let seen =
            forward::remote_seen(&settings.view, &settings.translation, &shared.observed, addr);
        let mac = mac.filter(|_| seen == Ok(addr));
        let someone_hears = !shared.guest_mac.is_multicast();
        shared.neighbours.set(addr, mac, someone_hears);
        self.announcer.book(&mut self.shared, now);
    }

    /// All of the host's neighbours follow.
    pub const fn begin_neighbours(&mut self) {
        self.shared.neighbours.begin_dump();
    }

    /// Those were all.
    pub fn end_neighbours(&mut self) {
        self.shared.neighbours.end_dump();
    }

    /// How many neighbours of the host are known.
    pub const fn neighbours(&self) -> usize {
        self.shared.neighbours.len()
    }

    /// What the guest sees.
    pub const fn view(&self) -> &GuestView {
        &self.shared.settings.view
    }

    /// The host's network has changed, and with it what the guest is to see. Flows live on as they
    /// are; what begins from now on follows the new plan. IPv6 guests are told at once, by router
    /// advertisements; DHCP tells those who ask.
    pub fn set_network<K: Sink>(
        &mut self,
        view: GuestView,
        translation: Translation,
        sink: &mut K,
        now: Instant,
    ) {
        let shared = &mut self.shared;
        let before = std::mem::replace(&mut shared.settings.view, view);
        shared.settings.translation = translation;
        let settings = &shared.settings;
        shared.neighbours.rebase(&settings.view, &settings.translation);
        shared.observed.follow(&settings.view);
        if before.v6 == shared.settings.view.v6 && before.dns == shared.settings.view.dns {
            return;
        }
        shared.retire(before.v6.as_ref());
        let router = before.v6.map(|v6| v6.our_link_local);
        let now_router = shared.settings.view.v6.as_ref().map(|v6| v6.our_link_local);
        let mut ctx = Self::ctx(&mut self.host, &mut self.shared, sink, now);
        if let Some(router) = router.filter(|_| router != now_router)
            && let Some(frame) = service::router_farewell(router, &ctx.shared.surroundings())
        {
            ctx.send_frame(&frame);
        }
        self.ra_timer.hurry(&mut self.shared, now);
    }
}
