//! The configuration in words, for the log at start.

use super::guest::{Dns, GuestV4, GuestV6, Nat};
use super::template::Template;
use super::{Device, Network};
use std::net::{IpAddr, Ipv4Addr};

impl Network {
    /// What the guest will see and where it comes from, line by line.
    pub fn summary(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(v4) = &self.guest.v4 {
            lines.push(template("IPv4", self.templates.v4.as_ref()));
            lines.extend(device("IPv4", self.devices.v4.as_ref()));
            lines.extend(outbound("IPv4", &self.translation.v4));
            lines.extend(host_loopback("127.0.0.1", &self.translation.v4));
            lines.extend(self.v4(v4));
        }
        if let Some(v6) = &self.guest.v6 {
            lines.push(template("IPv6", self.templates.v6.as_ref()));
            lines.extend(device("IPv6", self.devices.v6.as_ref()));
            lines.extend(outbound("IPv6", &self.translation.v6));
            lines.extend(host_loopback("::1", &self.translation.v6));
            lines.extend(self.v6(v6));
        }
        lines.push(format!("MAC: {}", self.guest.our_mac));
        lines.extend(dns(&self.guest.dns));
        lines.extend(self.forwards_summary());
        lines
    }

    /// The rules for ports, line by line.
    pub(super) fn forwards_summary(&self) -> Vec<String> {
        if self.forwards.is_empty() {
            return Vec::new();
        }
        let heading = std::iter::once("Inbound forwarding rules (HOST):".to_owned());
        heading.chain(self.forwards.iter().map(|rule| format!("    {rule}"))).collect()
    }

    fn v4(&self, v4: &GuestV4) -> Vec<String> {
        if !self.guest.services.dhcp {
            return Vec::new();
        }
        let host_bits = u32::from(32u8.saturating_sub(v4.prefix_len));
        let mask = Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0));
        let mut lines = vec!["DHCP:".to_owned()];
        lines.push(format!("    assign: {}", v4.addr));
        lines.push(format!("    mask: {mask}"));
        lines.extend(v4.gateway.map(|gateway| format!("    router: {gateway}")));
        lines
    }

    fn v6(&self, v6: &GuestV6) -> Vec<String> {
        let services = self.guest.services;
        let names = match (services.ra, services.dhcpv6) {
            (true, true) => "NDP/DHCPv6:",
            (true, false) => "NDP:",
            (false, true) => "DHCPv6:",
            (false, false) => return Vec::new(),
        };
        let mut lines = vec![names.to_owned()];
        lines.extend(v6.addr.map(|addr| format!("    assign: {addr}")));
        lines.extend(v6.gateway.map(|gateway| format!("    router: {gateway}")));
        lines.push(format!("    our link-local: {}", v6.our_link_local));
        lines
    }
}

fn template(family: &str, template: Option<&Template>) -> String {
    match template {
        Some(template) => format!("Template interface: {} ({family})", template.name),
        None => format!("No template interface for {family}: local mode"),
    }
}

fn device(family: &str, device: Option<&Device>) -> Option<String> {
    Some(format!("Outbound interface: {} ({family})", device?.name))
}

fn outbound<A: Into<IpAddr> + Copy>(family: &str, nat: &Nat<A>) -> Option<String> {
    let addr: IpAddr = nat.outbound?.into();
    Some(format!("Outbound address: {addr} ({family})"))
}

fn host_loopback<A: Into<IpAddr> + Copy>(loopback: &str, nat: &Nat<A>) -> Option<String> {
    let addr: IpAddr = nat.host_loopback?.into();
    Some(format!("NAT to host {loopback}: {addr}"))
}

fn dns(dns: &Dns) -> Vec<String> {
    let mut lines = Vec::new();
    if dns.advertise_servers && !(dns.v4.is_empty() && dns.v6.is_empty()) {
        lines.push("DNS:".to_owned());
        lines.extend(dns.v4.iter().map(|addr| format!("    {addr}")));
        lines.extend(dns.v6.iter().map(|addr| format!("    {addr}")));
    }
    if dns.advertise_search && !dns.search.is_empty() {
        lines.push("DNS search list:".to_owned());
        lines.extend(dns.search.iter().map(|name| format!("    {name}")));
    }
    lines
}
