//! Which of the host's interfaces the guest's addresses and routes are taken from.
//!
//! Facts in, choice out; one choice per IP version. The order: the interface that was asked for;
//! else the ways that default routes take, those of the main table first, then those of other
//! tables (VPNs put theirs there); else the ways of any other route. The first that has an address
//! wins, and interface and gateway are always of the same way.

use super::facts::{Address, HostFacts, MAIN_TABLE, NextHop, Route};
use super::options::Family;
use std::cmp::Reverse;
use std::net::IpAddr;

/// What the host has for one IP version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Number of the interface.
    pub interface: u32,
    /// Its name.
    pub name: String,
    /// The address to share.
    pub addr: IpAddr,
    /// Length of its prefix.
    pub prefix_len: u8,
    /// The default gateway, of the same IP version, if the default route has one.
    pub gateway: Option<IpAddr>,
    /// The link-local IPv6 address of the interface.
    pub link_local: Option<IpAddr>,
}

/// One way towards the outside.
#[derive(Clone, Copy, Debug)]
struct Way {
    hop: NextHop,
    source: Option<IpAddr>,
    default: bool,
}

/// The template of `family`; `wanted` restricts it to an interface by number. `None` is local
/// mode: the host has nothing to share.
pub fn choose(facts: &HostFacts, family: Family, wanted: Option<u32>) -> Option<Template> {
    let mut ways = ways(facts, family);
    match wanted {
        Some(index) => {
            ways.retain(|way| way.hop.interface == index);
            // No route needs to lead there at all.
            ways.push(Way { hop: NextHop::new(index, None), source: None, default: false });
        }
        None => ways.retain(|way| !facts.is_loopback(way.hop.interface)),
    }
    ways.iter().find_map(|way| template(facts, family, *way))
}

const fn is(family: Family, addr: IpAddr) -> bool {
    addr.is_ipv4() == matches!(family, Family::V4)
}

/// All ways, best first. The order of the kernel decides between equals.
fn ways(facts: &HostFacts, family: Family) -> Vec<Way> {
    let mut routes: Vec<_> = facts
        .routes
        .iter()
        .filter(|r| is(family, r.destination.0) && !is_link_local(r.destination))
        .collect();
    routes.sort_by_key(|r| (rank(r), r.metric));
    let of_route = |route: &Route| {
        let mut hops = route.hops.clone();
        hops.sort_by_key(|hop| Reverse(hop.weight));
        let (source, default) = (route.source, route.destination.1 == 0);
        hops.into_iter().map(move |hop| Way { hop, source, default })
    };
    let mut ways: Vec<_> = routes.into_iter().flat_map(of_route).collect();
    ways.sort_by_key(|way| !way.hop.alive);
    ways
}

fn is_link_local((addr, prefix_len): (IpAddr, u8)) -> bool {
    match addr {
        IpAddr::V4(a) => a.is_link_local() && prefix_len >= 16,
        IpAddr::V6(a) => a.is_unicast_link_local() && prefix_len >= 10,
    }
}

fn rank(route: &Route) -> u8 {
    match (route.destination.1, route.table) {
        (0, MAIN_TABLE) => 0,
        (0, _) => 1,
        (_, MAIN_TABLE) => 2,
        _ => 3,
    }
}

fn template(facts: &HostFacts, family: Family, way: Way) -> Option<Template> {
    let name = &facts.interfaces.iter().find(|i| i.index == way.hop.interface)?.name;
    let gateway = way.hop.gateway.filter(|g| way.default && is(family, *g));
    let address = best_address(facts, family, way, gateway)?;
    let own_link_local = |a: &&Address| {
        let IpAddr::V6(v6) = a.addr else { return false };
        a.interface == way.hop.interface && a.usable && v6.is_unicast_link_local()
    };
    Some(Template {
        interface: way.hop.interface,
        name: name.clone(),
        addr: address.addr,
        prefix_len: address.prefix_len,
        gateway,
        link_local: facts.addresses.iter().find(own_link_local).map(|a| a.addr),
    })
}

/// The address that the host itself would use, or else the one that looks most like it: in the
/// gateway's subnet, no single host's (a service address beside the real one), no secondary one.
fn best_address(
    facts: &HostFacts,
    family: Family,
    way: Way,
    gateway: Option<IpAddr>,
) -> Option<Address> {
    let candidates = facts.addresses.iter().filter(|a| {
        is(family, a.addr)
            && a.usable
            && !a.addr.is_loopback()
            && (a.global || matches!(family, Family::V4))
    });
    if let Some(source) = way.source
        && let Some(address) = candidates.clone().find(|a| a.addr == source)
    {
        return Some(*address);
    }
    let width = if matches!(family, Family::V4) { 32 } else { 128 };
    let own = candidates.clone().filter(|a| a.interface == way.hop.interface).min_by_key(|a| {
        let beside_gateway = gateway.is_some_and(|g| in_subnet(g, a.addr, a.prefix_len));
        (!a.global, !beside_gateway, a.prefix_len == width, a.secondary)
    });
    // Links without numbers: the host's address is on the loopback interface, where the kernel
    // looks first when the link has none.
    let unnumbered = || candidates.clone().find(|a| a.global && facts.is_loopback(a.interface));
    own.or_else(|| unnumbered().filter(|_| way.default)).copied()
}

/// Whether `addr` is in the subnet of `of`.
pub fn in_subnet(addr: IpAddr, of: IpAddr, prefix_len: u8) -> bool {
    let differing = match (addr, of) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => return false,
    };
    differing >= u32::from(prefix_len)
}

#[cfg(test)]
mod tests;
