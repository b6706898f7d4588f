//! Address translation: how what the guest addresses is called on the host, and the other way
//! round. Pure functions of the configuration and of the guest's addresses as seen so far.
//!
//! Most addresses are the same on both sides. The exceptions are those that cannot be: the host's
//! loopback addresses, the guest's own address (which the host has as well), and resolvers.

mod splice;
#[cfg(test)]
mod tests;

pub use splice::{Arrival, Destination, Splicing};

use super::{Endpoint, FlowKey, Protocol};
use crate::config::guest::{GuestV4, GuestV6, GuestView, Nat, Translation};
use crate::config::ports::Rule;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Ports of DNS: in clear, and over TLS or DTLS.
const DNS_PORTS: [u16; 2] = [53, 853];

/// Why an address has no counterpart on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The family is switched off.
    FamilyDisabled,
    /// A loopback address cannot come from or go to the link.
    Loopback,
    /// No flow can have this end: unspecified or broadcast addresses, and multicast ones except as
    /// destinations of UDP.
    Unusable,
    /// A query to the address for resolvers, and no resolver is known.
    NoResolver,
    /// The rule's target, or the listening port, does not fit what came in.
    NoTarget,
    /// No address of the guest is known to which this could go.
    GuestUnknown,
    /// What is not between loopback addresses goes through the link only, if there is one.
    NotLocal,
    /// The guest would see one of its own addresses as the remote one.
    NoSource,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FamilyDisabled => "address family disabled",
            Self::Loopback => "loopback address on the link",
            Self::Unusable => "unusable address",
            Self::NoResolver => "no resolver for the query",
            Self::NoTarget => "no target for the port or address",
            Self::GuestUnknown => "no guest address known",
            Self::NotLocal => "not between loopback addresses",
            Self::NoSource => "no source address that the guest could answer",
        })
    }
}

impl std::error::Error for Refusal {}

/// The addresses that the guest uses, as its frames have shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6, of a scope beyond the link.
    pub v6: Option<Ipv6Addr>,
    /// IPv6, link-local.
    pub v6_link_local: Option<Ipv6Addr>,
    v4_fixed: bool,
    v6_fixed: bool,
    /// How we know of `v4`.
    v4_by: Evidence,
    /// How we know of `v6`.
    v6_by: Evidence,
}

/// How an address became known, from the weakest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Evidence {
    /// It is what the configuration says.
    Assumed,
    /// The guest has searched for duplicates of it.
    Probed,
    /// The guest has sent from it, or got it from us.
    Used,
}

impl Observed {
    /// What is to be assumed before the guest has sent anything.
    pub fn new(view: &GuestView) -> Self {
        Self {
            v4: view.v4.as_ref().map(|v4| v4.addr),
            v6: view.v6.as_ref().and_then(|v6| v6.addr),
            v6_link_local: None,
            v4_fixed: view.v4.as_ref().is_none_or(|v4| v4.fixed),
            v6_fixed: view.v6.as_ref().is_none_or(|v6| v6.fixed),
            v4_by: Evidence::Assumed,
            v6_by: Evidence::Assumed,
        }
    }

    /// The guest's view has changed. What it was seen to use, it uses until it is seen to change
    /// that as well.
    pub fn follow(&mut self, view: &GuestView) {
        let new = Self::new(view);
        if self.v4_fixed || new.v4_fixed || self.v4_by == Evidence::Assumed {
            (self.v4, self.v4_fixed) = (new.v4, new.v4_fixed);
        }
        if self.v6_fixed || new.v6_fixed || self.v6_by == Evidence::Assumed {
            (self.v6, self.v6_fixed) = (new.v6, new.v6_fixed);
        }
    }

    /// The guest has sent from `source`. Addresses that are nobody's, and those of families that
    /// are off or fixed by `--address`, teach nothing.
    pub fn learn(&mut self, source: IpAddr) {
        if !is_unicast(source) || source.is_loopback() {
            return;
        }
        match source {
            IpAddr::V4(a) if !self.v4_fixed => {
                (self.v4, self.v4_by) = (Some(a), Evidence::Used);
            }
            IpAddr::V6(a) if a.is_unicast_link_local() => self.v6_link_local = Some(a),
            IpAddr::V6(a) if !self.v6_fixed => self.v6_is(a, Evidence::Used),
            _ => {}
        }
    }

    /// The guest searches for duplicates of `target`, so it is about to take it: better than a
    /// guess, as long as it has sent nothing. Of several the first is kept: hosts take a stable
    /// address before temporary ones.
    pub fn learn_probe(&mut self, target: Ipv6Addr) {
        if !is_unicast(target.into()) || target.is_loopback() {
            return;
        }
        if target.is_unicast_link_local() {
            self.v6_link_local.get_or_insert(target);
        } else if !self.v6_fixed && self.v6_by == Evidence::Assumed {
            self.v6_is(target, Evidence::Probed);
        }
    }

    /// The guest has got `addr` from us by DHCPv6.
    pub const fn learn_lease(&mut self, addr: Ipv6Addr) {
        if !self.v6_fixed {
            self.v6_is(addr, Evidence::Used);
        }
    }

    const fn v6_is(&mut self, addr: Ipv6Addr, by: Evidence) {
        self.v6 = Some(addr);
        self.v6_by = by;
    }

    /// The guest's address for traffic from `source`, as it was before translation.
    fn guest_for(&self, source: IpAddr) -> Option<IpAddr> {
        match source {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(a) if a.is_unicast_link_local() => self.v6_link_local.map(IpAddr::V6),
            IpAddr::V6(_) => self.v6.or(self.v6_link_local).map(IpAddr::V6),
        }
    }

    fn is_guest(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(a) => self.v4 == Some(a),
            IpAddr::V6(a) => self.v6 == Some(a) || self.v6_link_local == Some(a),
        }
    }
}

/// Where on the host's side something goes that the guest sends to `to`.
pub fn outbound(
    view: &GuestView,
    translation: &Translation,
    protocol: Protocol,
    to: Endpoint,
) -> Result<Endpoint, Refusal> {
    let usable = is_unicast(to.addr) || (protocol == Protocol::Udp && to.addr.is_multicast());
    match to.addr {
        _ if to.addr.is_loopback() => Err(Refusal::Loopback),
        _ if !usable => Err(Refusal::Unusable),
        IpAddr::V4(addr) => {
            let v4 = view.v4.as_ref().ok_or(Refusal::FamilyDisabled)?;
            let own = translation.v4.host_addr.or(Some(v4.addr));
            nat_out(&translation.v4, protocol, addr, to.port, Ipv4Addr::LOCALHOST, own)
                .map(|addr| Endpoint::new(addr.into(), to.port))
        }
        IpAddr::V6(addr) => {
            let v6 = view.v6.as_ref().ok_or(Refusal::FamilyDisabled)?;
            let own = translation.v6.host_addr.or(v6.addr);
            nat_out(&translation.v6, protocol, addr, to.port, Ipv6Addr::LOCALHOST, own)
                .map(|addr| Endpoint::new(addr.into(), to.port))
        }
    }
}

/// The rows of the table for traffic from the guest: the first that fits.
fn nat_out<A: Copy + PartialEq>(
    nat: &Nat<A>,
    protocol: Protocol,
    to: A,
    port: u16,
    loopback: A,
    own: Option<A>,
) -> Result<A, Refusal> {
    let query = protocol != Protocol::Echo && DNS_PORTS.contains(&port);
    if query && nat.dns_forward == Some(to) {
        // Without a resolver nothing else may answer: a service on the host's port 53 is none.
        return nat.dns_host.ok_or(Refusal::NoResolver);
    }
    if nat.host_loopback == Some(to) {
        return Ok(loopback);
    }
    if nat.guest_addr == Some(to) {
        return own.ok_or(Refusal::NoTarget);
    }
    Ok(to)
}

/// The flow, as the guest is to see it, of something that `peer` has sent to `local`, where it was
/// taken by a listener of `rule`.
pub fn inbound(
    view: &GuestView,
    translation: &Translation,
    observed: &Observed,
    rule: &Rule,
    peer: Endpoint,
    local: Endpoint,
) -> Result<FlowKey, Refusal> {
    if !view.speaks(peer.addr) {
        return Err(Refusal::FamilyDisabled);
    }
    if !(rule.first..=rule.last).contains(&local.port) {
        return Err(Refusal::NoTarget);
    }
    let guest = match rule.target {
        Some(target) => target,
        None if local.addr.is_multicast() => local.addr,
        None => observed.guest_for(peer.addr).ok_or(Refusal::GuestUnknown)?,
    };
    if guest.is_ipv4() != peer.addr.is_ipv4() {
        return Err(Refusal::NoTarget);
    }
    let remote = remote_seen(view, translation, observed, peer.addr)?;
    if remote == guest {
        return Err(Refusal::NoSource);
    }
    Ok(FlowKey {
        protocol: rule.protocol,
        guest: Endpoint::new(guest, rule.target_port(local.port)),
        remote: Endpoint::new(remote, peer.port),
    })
}

/// The address under which the guest shall see `addr` of the host's side as a source: peers of
/// inbound flows, and routers that send ICMP errors.
pub fn remote_seen(
    view: &GuestView,
    translation: &Translation,
    observed: &Observed,
    addr: IpAddr,
) -> Result<IpAddr, Refusal> {
    if addr.is_multicast() {
        return Err(Refusal::Unusable);
    }
    let seen = match addr {
        IpAddr::V4(a) => {
            let v4 = view.v4.as_ref().ok_or(Refusal::FamilyDisabled)?;
            IpAddr::V4(seen_v4(v4, &translation.v4, observed, a))
        }
        IpAddr::V6(a) => {
            let v6 = view.v6.as_ref().ok_or(Refusal::FamilyDisabled)?;
            IpAddr::V6(seen_v6(v6, &translation.v6, observed, a))
        }
    };
    if observed.is_guest(seen) || !is_unicast(seen) || seen.is_loopback() {
        return Err(Refusal::NoSource);
    }
    Ok(seen)
}

fn seen_v4(v4: &GuestV4, nat: &Nat<Ipv4Addr>, observed: &Observed, addr: Ipv4Addr) -> Ipv4Addr {
    match (nat.host_loopback, nat.guest_addr) {
        (Some(mapped), _) if addr == Ipv4Addr::LOCALHOST => mapped,
        (_, Some(mapped)) if addr == v4.addr || nat.host_addr == Some(addr) => mapped,
        _ if is_unicast(addr.into())
            && !addr.is_loopback()
            && addr != v4.addr
            && !observed.is_guest(addr.into()) =>
        {
            addr
        }
        _ => v4.our_addr,
    }
}

fn seen_v6(v6: &GuestV6, nat: &Nat<Ipv6Addr>, observed: &Observed, addr: Ipv6Addr) -> Ipv6Addr {
    match (nat.host_loopback, nat.guest_addr) {
        (Some(mapped), _) if addr == Ipv6Addr::LOCALHOST => mapped,
        (_, Some(mapped)) if [v6.addr, nat.host_addr].contains(&Some(addr)) => mapped,
        _ if is_unicast(addr.into())
            && !addr.is_loopback()
            && Some(addr) != v6.addr
            && !observed.is_guest(addr.into()) =>
        {
            addr
        }
        _ => v6.our_link_local,
    }
}

/// Whether `addr` can be one node's address.
const fn is_unicast(addr: IpAddr) -> bool {
    let broadcast = matches!(addr, IpAddr::V4(a) if a.is_broadcast());
    !broadcast && !addr.is_multicast() && !addr.is_unspecified()
}
