//! A host whose network has changed since we started: what the guest is to see now. Pure.

use super::facts::HostFacts;
use super::guest::{GuestView, Translation};
use super::network::{self, Templates};
use super::options::Typed;
use super::template::Template;
use super::{Devices, Network};

impl Network {
    /// Whether what `resolv.conf` says matters to the guest: it is told of resolvers, or its queries
    /// are sent to one.
    pub const fn uses_resolvers(&self) -> bool {
        let dns = &self.guest.dns;
        let Translation { v4, v6, .. } = &self.translation;
        dns.advertise_servers
            || dns.advertise_search
            || v4.dns_forward.is_some()
            || v6.dns_forward.is_some()
    }

    /// The network as `typed` means it on the host as it is now; `None` if nothing changes for the
    /// guest. What was typed stays.
    ///
    /// What a host has lost is kept: an interface that goes down mostly comes back with the same
    /// addresses, and a guest without any would be no better off.
    pub fn follow(&self, typed: &Typed, facts: &HostFacts) -> Option<Self> {
        let (templates, devices) = self.look(typed, facts)?;
        let (guest, translation) = network::plan(typed, facts, &templates, self.enabled());
        let new = Self { guest, translation, templates, devices, ..self.clone() };
        (new != *self).then_some(new)
    }

    /// As [`Network::follow`], of a guest that was configured with what the host had at start, and
    /// that nobody configures again: its addresses and routes stay, and so do the addresses by
    /// which it calls the host. What these stand for follows.
    pub fn follow_configured(&self, typed: &Typed, facts: &HostFacts) -> Option<Self> {
        let (templates, devices) = self.look(typed, facts)?;
        let mut pinned = typed.clone();
        pinned.no_map_gw = true;
        pinned.v4.map_host_loopback = self.translation.v4.host_loopback;
        pinned.v6.map_host_loopback = self.translation.v6.host_loopback;
        let (guest, mut translation) = network::plan(&pinned, facts, &templates, self.enabled());
        // Whoever was told of it goes on to ask there.
        let (v4, v6) = (&mut translation.v4.dns_forward, &mut translation.v6.dns_forward);
        *v4 = v4.or(self.translation.v4.dns_forward);
        *v6 = v6.or(self.translation.v6.dns_forward);
        let GuestView { v4, v6, services, .. } = self.guest.clone();
        let here = |template: &Option<Template>| template.as_ref().map(|template| template.addr);
        if let Some(v4) = v4.as_ref().filter(|v4| !v4.fixed) {
            let here = here(&templates.v4).and_then(network::as_v4);
            translation.v4.host_addr = here.filter(|addr| *addr != v4.addr);
        }
        if let Some(v6) = v6.as_ref().filter(|v6| !v6.fixed) {
            let here = here(&templates.v6).and_then(network::as_v6);
            translation.v6.host_addr = here.filter(|addr| Some(*addr) != v6.addr);
        }
        let guest = GuestView { v4, v6, services, ..guest };
        let new = Self { guest, translation, templates, devices, ..self.clone() };
        (new != *self).then_some(new)
    }

    const fn enabled(&self) -> network::Enabled {
        network::Enabled { v4: self.guest.v4.is_some(), v6: self.guest.v6.is_some() }
    }

    /// What there is to follow; `None` while an interface that was named is missing.
    fn look(&self, typed: &Typed, facts: &HostFacts) -> Option<(Templates, Devices)> {
        let devices = Devices::new(typed, facts).ok()?;
        let found = super::templates(typed, facts, self.enabled(), &devices).ok()?;
        let templates = Templates {
            v4: better(self.templates.v4.as_ref(), found.v4, facts),
            v6: better(self.templates.v6.as_ref(), found.v6, facts),
        };
        Some((templates, devices))
    }
}

/// The template to use: the new one, unless it only lacks what is on its way to come back.
fn better(old: Option<&Template>, new: Option<Template>, facts: &HostFacts) -> Option<Template> {
    let (Some(old), Some(new)) = (old, new.as_ref()) else { return new.or_else(|| old.cloned()) };
    let still_there =
        || facts.addresses.iter().any(|a| a.interface == old.interface && a.addr == old.addr);
    let lost_gateway = old.gateway.is_some() && new.gateway.is_none();
    Some(if lost_gateway && still_there() { old.clone() } else { new.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::facts::{Address, Interface, MAIN_TABLE, NextHop, Route};
    use crate::config::options::{Mode, Program, Request, parse};
    use crate::config::{ports, resolv::Resolv};
    use std::ffi::OsString;
    use std::net::IpAddr;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn typed(line: &str) -> Typed {
        let args: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
        match parse(Program::Passt, "passt", &args) {
            Ok(Request::Run(_, typed)) => *typed,
            other => panic!("{other:?}"),
        }
    }

    /// A host with interfaces `lo`, `eth0` (2) and `wlan0` (3), and nothing else.
    fn bare() -> HostFacts {
        let interface = |index, name: &str| Interface {
            index,
            name: name.into(),
            loopback: index == 1,
            mtu: Some(1500),
        };
        HostFacts {
            interfaces: vec![interface(1, "lo"), interface(2, "eth0"), interface(3, "wlan0")],
            addresses: Vec::new(),
            routes: Vec::new(),
            ipv6: true,
            resolv: Resolv::parse("nameserver 203.0.113.53"),
            ephemeral: ports::DEFAULT_EPHEMERAL,
        }
    }

    fn address(facts: &mut HostFacts, interface: u32, addr: &str, len: u8) {
        let addr = ip(addr);
        let link_local = matches!(addr, IpAddr::V6(a) if a.is_unicast_link_local());
        let global = !link_local;
        facts.addresses.push(Address { global, ..Address::new(interface, addr, len) });
    }

    fn gateway(facts: &mut HostFacts, interface: u32, gateway: &str) {
        let gateway = ip(gateway);
        let any = if gateway.is_ipv4() { ip("0.0.0.0") } else { ip("::") };
        let hops = vec![NextHop::new(interface, Some(gateway))];
        facts.routes.push(Route { table: MAIN_TABLE, ..Route::new((any, 0), hops) });
    }

    /// A host on an ordinary network.
    fn home() -> HostFacts {
        let mut facts = bare();
        address(&mut facts, 2, "192.0.2.10", 24);
        gateway(&mut facts, 2, "192.0.2.1");
        address(&mut facts, 2, "2001:db8::10", 64);
        address(&mut facts, 2, "fe80::10", 64);
        gateway(&mut facts, 2, "fe80::1");
        facts
    }

    /// The same host elsewhere.
    fn away() -> HostFacts {
        let mut facts = bare();
        address(&mut facts, 3, "198.51.100.20", 24);
        gateway(&mut facts, 3, "198.51.100.1");
        facts
    }

    fn start(line: &str, facts: &HostFacts) -> Network {
        Network::new(Mode::Passt, &typed(line), facts).unwrap().0
    }

    fn v4(network: &Network) -> (String, String) {
        let v4 = network.guest.v4.as_ref().unwrap();
        (v4.addr.to_string(), v4.gateway.unwrap().to_string())
    }

    #[test]
    fn resolvers_matter_to_who_is_told_of_them_or_sent_to_them() {
        let uses = |line| start(line, &home()).uses_resolvers();
        assert!(uses("") && uses("--no-dhcp-dns") && uses("--no-dhcp-search"));
        assert!(!uses("--no-dhcp-dns --no-dhcp-search"));
        assert!(uses("--no-dhcp-dns --no-dhcp-search --dns-forward 192.0.2.53"));
        assert!(uses("--no-dhcp-dns --no-dhcp-search --dns-forward fd00::53"));
    }

    #[test]
    fn a_host_that_stays_as_it_is_changes_nothing() {
        assert_eq!(start("", &home()).follow(&typed(""), &home()), None);
        assert_eq!(start("", &bare()).follow(&typed(""), &bare()), None);
    }

    #[test]
    fn a_network_that_comes_after_the_start_ends_local_mode() {
        let before = start("", &bare());
        assert_eq!(v4(&before), ("169.254.2.1".into(), "169.254.2.2".into()));
        let after = before.follow(&typed(""), &home()).unwrap();
        assert_eq!(v4(&after), ("192.0.2.10".into(), "192.0.2.1".into()));
        assert_eq!(after.guest.v6.as_ref().unwrap().addr.map(IpAddr::V6), Some(ip("2001:db8::10")));
        assert!(after.guest.services.dhcpv6 && !before.guest.services.dhcpv6);
        assert_eq!(after.translation.v4.host_loopback.map(IpAddr::V4), Some(ip("192.0.2.1")));
        assert_eq!(after, start("", &home()), "as if it had been there");
    }

    #[test]
    fn a_network_that_goes_is_kept_until_there_is_another() {
        let before = start("", &home());
        assert_eq!(before.follow(&typed(""), &bare()), None);
        let mut without_route = home();
        without_route.routes.clear();
        assert_eq!(before.follow(&typed(""), &without_route), None, "its address is there");
        let after = before.follow(&typed(""), &away()).unwrap();
        assert_eq!(v4(&after), ("198.51.100.20".into(), "198.51.100.1".into()));
        assert_eq!(after.guest.v6, before.guest.v6, "there is no other IPv6");
        let back = after.follow(&typed(""), &home()).unwrap();
        assert_eq!(back, before);
    }

    #[test]
    fn what_was_typed_stays() {
        let line = "-a 10.0.0.2/24 -g 10.0.0.1 -D 10.0.0.3 -a 2001:db8:9::2";
        let before = start(line, &home());
        let after = before.follow(&typed(line), &away()).unwrap();
        assert_eq!(v4(&after), ("10.0.0.2".into(), "10.0.0.1".into()));
        assert_eq!(after.guest, before.guest);
        assert_eq!(after.translation, before.translation);
        assert_eq!(after.templates.v4.as_ref().unwrap().interface, 3, "where neighbours are");
        let line = "-i eth0";
        let before = start(line, &home());
        assert_eq!(before.follow(&typed(line), &away()), None, "not that interface");
        let mut gone = home();
        gone.interfaces.retain(|interface| interface.name != "eth0");
        assert_eq!(before.follow(&typed(line), &gone), None, "it may come back");
    }

    #[test]
    fn other_resolvers_are_another_network() {
        let mut facts = home();
        facts.resolv = Resolv::parse("nameserver 203.0.113.54");
        let after = start("", &home()).follow(&typed(""), &facts).unwrap();
        assert_eq!(after.guest.dns.v4, ["203.0.113.54".parse::<std::net::Ipv4Addr>().unwrap()]);
    }

    /// As [`start`], of a namespace that `line` is for.
    fn start_namespace(line: &str, facts: &HostFacts) -> (Network, Typed) {
        let args: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
        let Ok(Request::Run(mode, typed)) = parse(Program::Pasta, "pasta", &args) else {
            panic!("{line}")
        };
        let typed = crate::config::implied(mode, &typed);
        (Network::new(mode, &typed, facts).unwrap().0, typed)
    }

    #[test]
    fn a_namespace_that_nobody_has_configured_follows_as_a_machine_does() {
        let (before, typed) = start_namespace("", &bare());
        assert_eq!(before.follow(&typed, &bare()), None);
        let after = before.follow(&typed, &home()).unwrap();
        assert_eq!(v4(&after), ("192.0.2.10".into(), "192.0.2.1".into()));
        assert_eq!(after, start_namespace("", &home()).0);
    }

    #[test]
    fn what_a_namespace_was_configured_with_stays_and_what_it_stands_for_follows() {
        let line = "--config-net --map-guest-addr 169.254.1.2 --dns-forward 169.254.1.1";
        let (before, typed) = start_namespace(line, &home());
        assert_eq!(before.follow_configured(&typed, &home()), None, "nothing has changed");
        assert_eq!(before.follow_configured(&typed, &bare()), None, "it may come back");
        let mut elsewhere = away();
        elsewhere.resolv = Resolv::parse("nameserver 198.51.100.53");
        let after = before.follow_configured(&typed, &elsewhere).unwrap();
        assert_eq!((&after.guest.v4, &after.guest.v6), (&before.guest.v4, &before.guest.v6));
        assert_eq!(after.guest.services, before.guest.services);
        let (old, new) = (before.translation.v4, after.translation.v4);
        assert_eq!(new.host_addr.map(IpAddr::V4), Some(ip("198.51.100.20")));
        assert_eq!(new.dns_host.map(IpAddr::V4), Some(ip("198.51.100.53")));
        assert_eq!((new.host_loopback, new.dns_forward), (old.host_loopback, old.dns_forward));
        assert_eq!(after.scope(), before.scope(), "IPv6 is where it was");
        let back = after.follow_configured(&typed, &home()).unwrap();
        assert_eq!(back, before);
    }

    #[test]
    fn a_namespace_configured_without_a_network_gets_to_know_the_host() {
        let (before, typed) = start_namespace("--config-net", &bare());
        let after = before.follow_configured(&typed, &home()).unwrap();
        assert_eq!(v4(&after), ("169.254.2.1".into(), "169.254.2.2".into()));
        let translation = &after.translation;
        assert_eq!(translation.v4.host_addr.map(IpAddr::V4), Some(ip("192.0.2.10")));
        assert_eq!(translation.v6.host_addr.map(IpAddr::V6), Some(ip("2001:db8::10")));
        assert_eq!(translation.v4.host_loopback, before.translation.v4.host_loopback);
        assert!(!after.guest.services.ra && after.guest.v6 == before.guest.v6);
        assert_ne!(after.scope(), 0);
    }

    #[test]
    fn a_redirected_resolver_stays_where_it_is_asked() {
        let mut facts = home();
        facts.resolv = Resolv::parse("nameserver 203.0.113.53\nnameserver 127.0.0.53");
        let (before, typed) = start_namespace("--config-net", &facts);
        assert_eq!(before.translation.v4.dns_forward, before.translation.v4.host_loopback);
        assert_eq!(before.follow_configured(&typed, &facts), None, "nothing has changed");
        facts.resolv = Resolv::parse("nameserver 203.0.113.54");
        let after = before.follow_configured(&typed, &facts).unwrap().translation.v4;
        assert_eq!(after.dns_forward, before.translation.v4.dns_forward);
        assert_eq!(after.dns_host.map(IpAddr::V4), Some(ip("203.0.113.54")));
    }

    #[test]
    fn an_address_that_was_given_is_the_hosts_own_as_well() {
        let line = "--config-net -a 10.9.8.7/24 --map-guest-addr 169.254.1.2";
        let (before, typed) = start_namespace(line, &home());
        let after = before.follow_configured(&typed, &away()).unwrap();
        assert_eq!(after.translation.v4.host_addr, None);
    }
}
