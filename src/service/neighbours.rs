//! Who on the host's network has which Ethernet address, as the guest shall see it.
//!
//! The guest takes our frames for those of the hosts that it talks to; with the right source
//! address its own tables (and firewalls, and monitors) look as if it stood in the host's place.
//! Pure state: others watch the host's neighbours and tell; nothing here sends.

use crate::config::guest::{GuestView, Translation};
use crate::wire::MacAddr;
use std::cell::Cell;
use std::collections::VecDeque;
use std::net::IpAddr;

/// Neighbours that are known at most; the oldest goes.
pub const MAX_NEIGHBOURS: usize = 512;

/// Answers that are kept at hand.
const ANSWERS: usize = 32;

/// A neighbour.
#[derive(Clone, Copy, Debug)]
struct Entry {
    addr: IpAddr,
    mac: MacAddr,
    /// When it was last told of, in tellings.
    told: u64,
}

/// The Ethernet addresses of the host's neighbours, by the address that the guest knows.
#[derive(Debug, Default)]
pub struct Neighbours {
    ours: MacAddr,
    gateways: [Option<IpAddr>; 2],
    /// Addresses behind which we are ourselves, whoever else has them.
    pinned: Vec<IpAddr>,
    /// Sorted by address.
    entries: Vec<Entry>,
    tellings: u64,
    /// Tellings before the dump that is under way.
    dump: u64,
    /// Addresses of which the guest should hear.
    news: VecDeque<IpAddr>,
    /// Answers given since the last change, each in the one place for its address: a search takes
    /// far longer than a frame's headers should.
    answers: [Cell<Option<(IpAddr, MacAddr)>>; ANSWERS],
}

impl Neighbours {
    /// Nobody but us.
    pub fn new(view: &GuestView, translation: &Translation) -> Self {
        let mut neighbours = Self::default();
        neighbours.rebase(view, translation);
        neighbours
    }

    /// The guest's view has changed; who is there has not.
    pub fn rebase(&mut self, view: &GuestView, translation: &Translation) {
        let gateway_v4 = view.v4.as_ref().and_then(|v4| v4.gateway).map(IpAddr::V4);
        let gateway_v6 = view.v6.as_ref().and_then(|v6| v6.gateway).map(IpAddr::V6);
        // What is not the host's gateway is our own invention, or our host's.
        let ours_v6 = view.v6.as_ref().map(|v6| IpAddr::V6(v6.our_link_local));
        let Translation { v4, v6 } = translation;
        let names = [v4.host_loopback.map(IpAddr::V4), v4.guest_addr.map(IpAddr::V4)];
        let names_v6 = [v6.host_loopback.map(IpAddr::V6), v6.guest_addr.map(IpAddr::V6)];
        self.pinned = names.into_iter().chain(names_v6).flatten().collect();
        self.pinned.extend(ours_v6.filter(|_| ours_v6 != gateway_v6));
        self.ours = view.our_mac;
        self.gateways = [gateway_v4, gateway_v6];
        self.forget_answers();
    }

    /// The Ethernet address behind `addr`: the neighbour's; for what is not on the link, the
    /// gateway's; ours where neither is known.
    #[inline]
    pub fn mac(&self, addr: IpAddr) -> MacAddr {
        if self.entries.is_empty() {
            return self.ours;
        }
        // The last bits differ most among those who talk at the same time.
        let low = match addr {
            IpAddr::V4(addr) => addr.to_bits() as usize,
            IpAddr::V6(addr) => addr.to_bits() as usize,
        };
        let Some(answer) = self.answers.get(low % ANSWERS) else { return self.find(addr) };
        match answer.get() {
            Some((last, mac)) if last == addr => mac,
            _ => {
                let mac = self.find(addr);
                answer.set(Some((addr, mac)));
                mac
            }
        }
    }

    fn forget_answers(&self) {
        self.answers.iter().for_each(|answer| answer.set(None));
    }

    fn find(&self, addr: IpAddr) -> MacAddr {
        if self.pinned.contains(&addr) {
            return self.ours;
        }
        let gateway = self.gateways[usize::from(addr.is_ipv6())];
        let behind = || gateway.filter(|gateway| !self.pinned.contains(gateway));
        self.entry(addr).or_else(|| self.entry(behind()?)).map_or(self.ours, |entry| entry.mac)
    }

    fn entry(&self, addr: IpAddr) -> Option<&Entry> {
        self.entries.get(self.place(addr).ok()?)
    }

    fn place(&self, addr: IpAddr) -> Result<usize, usize> {
        self.entries.binary_search_by_key(&addr, |entry| entry.addr)
    }

    /// Neighbour `addr` has `mac`, or is no longer there. `tell` is whether the guest should hear
    /// of it, if that changes anything for it.
    pub fn set(&mut self, addr: IpAddr, mac: Option<MacAddr>, tell: bool) {
        let mac = mac.filter(|mac| !mac.is_multicast() && *mac != MacAddr::default());
        self.tellings += 1;
        let before = self.find(addr);
        match (self.place(addr), mac) {
            (Ok(place), Some(mac)) => {
                let told = self.tellings;
                if let Some(entry) = self.entries.get_mut(place) {
                    *entry = Entry { addr, mac, told };
                }
            }
            (Ok(place), None) => {
                self.entries.remove(place);
            }
            (Err(_), Some(mac)) => self.insert(Entry { addr, mac, told: self.tellings }),
            (Err(_), None) => return,
        }
        self.forget_answers();
        if tell && self.find(addr) != before && !self.news.contains(&addr) {
            // Of more than there can be neighbours the guest hears when it asks.
            if self.news.len() < MAX_NEIGHBOURS {
                self.news.push_back(addr);
            }
        }
    }

    fn insert(&mut self, entry: Entry) {
        if self.entries.len() >= MAX_NEIGHBOURS {
            let oldest =
                (0..self.entries.len()).min_by_key(|at| self.entries.get(*at).map(|e| e.told));
            oldest.map(|at| self.entries.remove(at));
        }
        if let Err(place) = self.place(entry.addr) {
            self.entries.insert(place, entry);
        }
    }

    /// All neighbours are about to be told anew.
    pub const fn begin_dump(&mut self) {
        self.dump = self.tellings;
    }

    /// They have been: whoever was not among them has gone.
    pub fn end_dump(&mut self) {
        let dump = self.dump;
        self.entries.retain(|entry| entry.told > dump);
        self.forget_answers();
    }

    /// How many neighbours are known.
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none are.
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The next address of which the guest should hear, and who has it now.
    pub fn next_news(&self) -> Option<(IpAddr, MacAddr)> {
        self.news.front().map(|addr| (*addr, self.find(*addr)))
    }

    /// It has heard of that one.
    pub fn told(&mut self) {
        self.news.pop_front();
    }

    /// There is nobody who could have heard of anyone before.
    pub fn forget_news(&mut self) {
        self.news.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::guest::{DEFAULT_MAC, Dns, GuestV4, GuestV6, Nat, Services};
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const PRINTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn view() -> GuestView {
        GuestView {
            our_mac: DEFAULT_MAC,
            mtu: None,
            v4: Some(GuestV4 {
                addr: Ipv4Addr::new(192, 0, 2, 10),
                prefix_len: 24,
                gateway: Some(Ipv4Addr::new(192, 0, 2, 1)),
                our_addr: Ipv4Addr::new(192, 0, 2, 1),
                fixed: false,
            }),
            v6: Some(GuestV6 {
                addr: "2001:db8::10".parse().ok(),
                prefix_len: 64,
                gateway: "fe80::1".parse().ok(),
                our_link_local: "fe80::1".parse().unwrap(),
                fixed: false,
            }),
            dns: Dns::default(),
            services: Services { dhcp: true, dhcpv6: true, ndp: true, ra: true },
        }
    }

    /// With `--no-map-gw`.
    fn plain() -> Neighbours {
        Neighbours::new(&view(), &Translation::default())
    }

    /// As by default.
    fn mapped() -> Neighbours {
        let mut translation = Translation::default();
        translation.v4.host_loopback = view().v4.unwrap().gateway;
        translation.v6 = Nat {
            host_loopback: view().v6.unwrap().gateway,
            guest_addr: "2001:db8::f".parse().ok(),
            ..Nat::default()
        };
        Neighbours::new(&view(), &translation)
    }

    #[track_caller]
    fn macs(neighbours: &Neighbours, rows: &[(&str, MacAddr)]) {
        for _ in 0..2 {
            for (addr, mac) in rows {
                assert_eq!(neighbours.mac(ip(addr)), *mac, "{addr}");
            }
        }
    }

    #[test]
    fn neighbours_have_their_own_address_and_others_the_gateways() {
        let mut neighbours = plain();
        let ours = DEFAULT_MAC;
        macs(&neighbours, &[("192.0.2.1", ours), ("192.0.2.9", ours), ("fe80::1", ours)]);
        neighbours.set(ip("192.0.2.9"), Some(PRINTER), true);
        macs(&neighbours, &[("192.0.2.9", PRINTER), ("192.0.2.8", ours), ("198.51.100.1", ours)]);
        neighbours.set(ip("192.0.2.1"), Some(ROUTER), true);
        macs(&neighbours, &[("192.0.2.9", PRINTER), ("192.0.2.8", ROUTER), ("2001:db8::1", ours)]);
        neighbours.set(ip("fe80::1"), Some(ROUTER), true);
        macs(&neighbours, &[("fe80::1", ROUTER), ("2001:db8:1::1", ROUTER), ("fe80::9", ROUTER)]);
        neighbours.set(ip("192.0.2.9"), None, true);
        macs(&neighbours, &[("192.0.2.9", ROUTER), ("198.51.100.1", ROUTER)]);
    }

    #[test]
    fn where_we_stand_for_the_host_the_address_is_ours() {
        let mut neighbours = mapped();
        for addr in ["192.0.2.1", "fe80::1", "2001:db8::f"] {
            neighbours.set(ip(addr), Some(ROUTER), true);
            assert_eq!(neighbours.mac(ip(addr)), DEFAULT_MAC, "{addr}");
        }
        macs(&neighbours, &[("198.51.100.1", DEFAULT_MAC), ("2001:db8:1::1", DEFAULT_MAC)]);
        assert_eq!(neighbours.next_news(), None, "nothing has changed");
        neighbours.set(ip("192.0.2.9"), Some(PRINTER), true);
        macs(&neighbours, &[("192.0.2.9", PRINTER)]);
        // An address of our own that is not the gateway's.
        let mut own = view();
        own.v6.as_mut().unwrap().our_link_local = "fe80::5".parse().unwrap();
        let mut neighbours = Neighbours::new(&own, &Translation::default());
        neighbours.set(ip("fe80::1"), Some(ROUTER), true);
        macs(&neighbours, &[("fe80::5", DEFAULT_MAC), ("fe80::6", ROUTER)]);
        neighbours.rebase(&view(), &Translation::default());
        macs(&neighbours, &[("fe80::5", ROUTER)]);
    }

    #[test]
    fn the_guest_hears_of_changes_once_and_in_order() {
        let mut neighbours = plain();
        neighbours.set(ip("192.0.2.7"), Some(PRINTER), false);
        assert_eq!(neighbours.next_news(), None, "before it was there");
        neighbours.set(ip("192.0.2.9"), Some(PRINTER), true);
        neighbours.set(ip("192.0.2.8"), Some(ROUTER), true);
        neighbours.set(ip("192.0.2.9"), Some(ROUTER), true);
        neighbours.set(ip("192.0.2.7"), Some(PRINTER), true);
        assert_eq!(neighbours.next_news(), Some((ip("192.0.2.9"), ROUTER)), "the latest");
        neighbours.told();
        assert_eq!(neighbours.next_news(), Some((ip("192.0.2.8"), ROUTER)));
        neighbours.told();
        assert_eq!(neighbours.next_news(), None);
        neighbours.set(ip("192.0.2.8"), None, true);
        assert_eq!(neighbours.next_news(), Some((ip("192.0.2.8"), DEFAULT_MAC)));
        neighbours.forget_news();
        assert_eq!(neighbours.next_news(), None);
    }

    #[test]
    fn what_is_no_ones_ethernet_address_is_no_neighbour() {
        let mut neighbours = plain();
        for mac in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            neighbours.set(ip("192.0.2.9"), Some(MacAddr(mac)), true);
            assert!(neighbours.is_empty());
        }
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let mut neighbours = plain();
        let addr = |n: usize| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n as u32));
        for n in 0..MAX_NEIGHBOURS {
            neighbours.set(addr(n), Some(PRINTER), true);
        }
        neighbours.set(addr(0), Some(PRINTER), true);
        neighbours.set(addr(9999), Some(PRINTER), true);
        assert_eq!(neighbours.len(), MAX_NEIGHBOURS);
        assert_eq!(neighbours.mac(addr(0)), PRINTER, "heard of since");
        assert_eq!(neighbours.mac(addr(1)), DEFAULT_MAC);
        assert_eq!(neighbours.mac(addr(9999)), PRINTER);
    }

    #[test]
    fn a_dump_leaves_those_that_are_in_it_or_came_meanwhile() {
        let mut neighbours = plain();
        for addr in ["192.0.2.7", "192.0.2.8"] {
            neighbours.set(ip(addr), Some(PRINTER), true);
        }
        neighbours.begin_dump();
        neighbours.set(ip("192.0.2.8"), Some(PRINTER), true);
        neighbours.set(ip("192.0.2.9"), Some(ROUTER), true);
        neighbours.end_dump();
        macs(
            &neighbours,
            &[("192.0.2.7", DEFAULT_MAC), ("192.0.2.8", PRINTER), ("192.0.2.9", ROUTER)],
        );
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_map(
            steps in prop::collection::vec((0u32..40, prop::option::of(1u8..4), any::<bool>()), 0..200),
        ) {
            let mut neighbours = plain();
            let mut map = std::collections::BTreeMap::new();
            for (host, mac, tell) in steps {
                let addr = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + host));
                let mac = mac.map(|n| MacAddr([2, 0, 0, 0, 1, n]));
                neighbours.set(addr, mac, tell);
                match mac {
                    Some(mac) => map.insert(addr, mac),
                    None => map.remove(&addr),
                };
                prop_assert_eq!(neighbours.len(), map.len());
                for n in 0..40 {
                    let addr = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n));
                    let expected = map.get(&addr).copied().unwrap_or(DEFAULT_MAC);
                    prop_assert_eq!(neighbours.mac(addr), expected);
                }
            }
        }
    }
}
