//! What `--config-net` gives to the interface in a namespace: addresses and routes. Pure.
//!
//! Of each IP version, all that the host's template interface has, unless `--address` and
//! `--gateway` ask for something else. The kernel makes the routes that come with addresses, so
//! only the others are copied. Those that lead nowhere (blackhole, unreachable) are not: the host
//! has them for our sockets all the same.

use super::Network;
use super::facts::{Address, BY_KERNEL, HostFacts, MAIN_TABLE, NextHop, Route};
use super::options::{Family, InNamespace, Typed};
use super::template::{Template, in_subnet};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses and routes for an interface. Interface numbers in here are the host's: all of them
/// stand for the interface in the namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetPlan {
    /// Whether the interface speaks IPv6, be it by its link-local address only.
    pub ipv6: bool,
    /// Addresses, in the order in which they are added.
    pub addresses: Vec<Address>,
    /// Routes of the main table, those first that others need.
    pub routes: Vec<Route>,
}

/// What is known of one IP version.
struct Wanted<'a> {
    family: Family,
    template: Option<&'a Template>,
    /// The guest's address, as elsewhere.
    own: Option<Address>,
    gateway: Option<IpAddr>,
    copy_addresses: bool,
    copy_routes: bool,
}

impl NetPlan {
    /// What the namespace gets, when the host has `facts`.
    pub(super) fn new(
        typed: &Typed,
        asked: &InNamespace,
        facts: &HostFacts,
        network: &Network,
    ) -> Self {
        let mut plan = Self { ipv6: network.guest.v6.is_some(), ..Self::default() };
        if let Some(v4) = &network.guest.v4 {
            plan.add(
                facts,
                &Wanted {
                    family: Family::V4,
                    template: network.templates.v4.as_ref(),
                    own: Some(Address::new(0, v4.addr.into(), v4.prefix_len)),
                    gateway: v4.gateway.map(IpAddr::V4),
                    copy_addresses: typed.v4.address.is_none() && !asked.no_copy_addrs,
                    copy_routes: typed.v4.gateway.is_none() && !asked.no_copy_routes,
                },
            );
        }
        if let Some(v6) = &network.guest.v6 {
            let template = network.templates.v6.as_ref();
            let copied = template.filter(|_| typed.v6.address.is_none());
            let prefix_len = copied.map_or(v6.prefix_len, |template| template.prefix_len);
            plan.add(
                facts,
                &Wanted {
                    family: Family::V6,
                    template,
                    own: v6.addr.map(|addr| Address::new(0, addr.into(), prefix_len)),
                    gateway: v6.gateway.map(IpAddr::V6),
                    copy_addresses: typed.v6.address.is_none() && !asked.no_copy_addrs,
                    copy_routes: typed.v6.gateway.is_none() && !asked.no_copy_routes,
                },
            );
        }
        plan
    }

    fn add(&mut self, facts: &HostFacts, wanted: &Wanted<'_>) {
        let addresses = wanted.addresses(facts);
        let mut routes = wanted.routes(facts, &addresses);
        put_on_link(&addresses, &mut routes);
        self.addresses.extend(addresses);
        self.routes.extend(routes);
    }
}

impl Wanted<'_> {
    /// The addresses, that of the guest among them.
    fn addresses(&self, facts: &HostFacts) -> Vec<Address> {
        let Some(template) = self.template.filter(|_| self.copy_addresses) else {
            return self.own.into_iter().collect();
        };
        let own = |a: &Address| self.own.is_some_and(|own| own.addr == a.addr);
        let copied = facts.addresses.iter().filter(|a| {
            a.interface == template.interface
                && a.addr.is_ipv4() == matches!(self.family, Family::V4)
                && (own(a) || (a.usable && a.global))
        });
        let mut addresses: Vec<_> = copied.copied().collect();
        match (self.own, addresses.iter_mut().find(|a| own(a))) {
            // A prefix of another length was asked for.
            (Some(wanted), Some(found)) if found.prefix_len != wanted.prefix_len => *found = wanted,
            (_, Some(_)) | (None, _) => {}
            // The host has it elsewhere: links without numbers.
            (Some(own), None) => addresses.insert(0, own),
        }
        addresses
    }

    fn routes(&self, facts: &HostFacts, addresses: &[Address]) -> Vec<Route> {
        match self.template {
            Some(template) if self.copy_routes => copied(facts, template, addresses),
            _ => self.default_route().into_iter().collect(),
        }
    }

    fn default_route(&self) -> Option<Route> {
        let any = match self.family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Some(Route::new((any, 0), vec![NextHop::new(0, Some(self.gateway?))]))
    }
}

/// The routes through the template's interface: those of the main table, and of the one that the
/// default route is in where that is another.
fn copied(facts: &HostFacts, template: &Template, addresses: &[Address]) -> Vec<Route> {
    let through: Vec<_> =
        facts.routes.iter().filter_map(|route| through(route, template, addresses)).collect();
    let main = |table| if table == MAIN_TABLE { 0 } else { 1 };
    let defaults = through.iter().filter(|route| route.destination.1 == 0);
    let best = defaults.min_by_key(|route| (main(route.table), route.metric));
    let tables = [MAIN_TABLE, best.map_or(MAIN_TABLE, |route| route.table)];

    let mut wanted: Vec<_> =
        through.into_iter().filter(|route| tables.contains(&route.table)).collect();
    // Stable: those without a router come first, since others need them.
    wanted.sort_by_key(|route| (main(route.table), route.hops.iter().any(|h| h.gateway.is_some())));
    let mut seen = HashSet::new();
    wanted.retain(|route| seen.insert((route.destination, route.tos, route.metric)));
    wanted
}

/// What the namespace gets of a route: its ways through the template's interface, if any.
fn through(route: &Route, template: &Template, addresses: &[Address]) -> Option<Route> {
    let hops: Vec<_> =
        route.hops.iter().filter(|hop| hop.interface == template.interface).copied().collect();
    let (to, len) = route.destination;
    let local = match to {
        IpAddr::V4(_) => false,
        IpAddr::V6(to) => to.is_unicast_link_local() || to.is_multicast(),
    };
    if hops.is_empty() || to.is_ipv4() != template.addr.is_ipv4() || local {
        return None;
    }
    // Made with an address: the kernel makes it again, or does without since the address is not
    // there. But there are those who add it themselves, in the kernel's name.
    let by_hand = |a: &&Address| !a.connects && in_subnet(a.addr, to, len);
    if route.protocol == BY_KERNEL && addresses.iter().find(by_hand).is_none() {
        return None;
    }
    let source = route.source.filter(|source| addresses.iter().any(|a| a.addr == *source));
    Some(Route { hops, source, ..route.clone() })
}

/// Marks routers that are on the link though nothing says so.
fn put_on_link(addresses: &[Address], routes: &mut [Route]) {
    let subnets = addresses.iter().filter(|a| a.connects).map(|a| {
        let near = a.peer.unwrap_or(a.addr);
        (near, a.prefix_len)
    });
    let direct = routes.iter().filter(|route| route.hops.iter().all(|hop| hop.gateway.is_none()));
    let on_link: HashSet<_> = subnets.chain(direct.map(|route| route.destination)).collect();
    let mut known: HashMap<IpAddr, bool> = HashMap::new();
    for hop in routes.iter_mut().flat_map(|route| &mut route.hops) {
        let Some(gateway) = hop.gateway else { continue };
        let link_local = matches!(gateway, IpAddr::V6(a) if a.is_unicast_link_local());
        let found = known.entry(gateway).or_insert_with(|| {
            link_local || on_link.iter().any(|(net, len)| in_subnet(gateway, *net, *len))
        });
        hop.onlink |= !*found;
    }
}

#[cfg(test)]
mod tests;
