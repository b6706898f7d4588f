//! Values of single options: text to number, address or name, each with the rules of its option.

use super::{PerFamily, Typed};
use crate::wire::MacAddr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Search domains at most.
const MAX_SEARCH: usize = 6;

/// Resolvers at most, of each family.
const MAX_DNS: usize = 3;

/// Octets of a domain name at most, in text (RFC 1035 2.3.4, without root and length octet).
const MAX_NAME: usize = 253;

/// The smallest log that can be rotated: five blocks of 8 KiB.
const MIN_LOG_SIZE: u64 = 5 * 8192;

/// Bytes of a Unix socket's path, its end included (`sun_path`).
const MAX_SOCKET_PATH: usize = 108;

type Outcome = Result<(), String>;

/// A number as C writes it: decimal, 0x, or octal behind a 0.
fn number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (text.get(2..)?, 16),
        [b'0', _, ..] => (text.get(1..)?, 8),
        _ => (text, 10),
    };
    // `from_str_radix` alone would take a sign.
    if !digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

/// An address without brackets; a v4-mapped one is IPv4.
fn address(what: &str, text: &str) -> Result<IpAddr, String> {
    let addr: IpAddr = text.parse().map_err(|_| format!("Invalid {what}: {text}"))?;
    Ok(addr.to_canonical())
}

const fn is_broadcast(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V4(a) if a.is_broadcast())
}

/// Parses an address of either family, refuses what `bad` says, and hands it to its family.
fn per_family(
    typed: &mut Typed,
    what: &str,
    text: &str,
    bad: fn(IpAddr) -> bool,
    v4: fn(&mut PerFamily<Ipv4Addr>) -> &mut Option<Ipv4Addr>,
    v6: fn(&mut PerFamily<Ipv6Addr>) -> &mut Option<Ipv6Addr>,
) -> Outcome {
    match address(what, text)? {
        addr if bad(addr) => return Err(format!("Invalid {what}: {text}")),
        IpAddr::V4(addr) => *v4(&mut typed.v4) = Some(addr),
        IpAddr::V6(addr) => *v6(&mut typed.v6) = Some(addr),
    }
    Ok(())
}

pub(super) fn socket(into: &mut Option<std::path::PathBuf>, path: &Path) -> Outcome {
    let len = path.as_os_str().as_bytes().len();
    if len == 0 || len >= MAX_SOCKET_PATH {
        return Err(format!("Invalid socket path: {}", path.display()));
    }
    *into = Some(path.to_owned());
    Ok(())
}

/// A path that names something.
pub(super) fn path(into: &mut Option<std::path::PathBuf>, what: &str, path: &Path) -> Outcome {
    if path.as_os_str().is_empty() {
        return Err(format!("Invalid {what}: empty path"));
    }
    *into = Some(path.to_owned());
    Ok(())
}

pub(super) fn fd(typed: &mut Typed, text: &str) -> Outcome {
    let fd = number(text).and_then(|n| i32::try_from(n).ok());
    typed.fd = Some(fd.ok_or_else(|| format!("Invalid --fd: {text}"))?);
    Ok(())
}

pub(super) fn stats(typed: &mut Typed, text: &str) -> Outcome {
    let delay = number(text).filter(|n| *n > 0).and_then(|n| u32::try_from(n).ok());
    typed.stats = Some(delay.ok_or_else(|| format!("Invalid --stats: {text}"))?);
    Ok(())
}

pub(super) fn log_size(typed: &mut Typed, text: &str) -> Outcome {
    let size = number(text).filter(|n| *n >= MIN_LOG_SIZE && i64::try_from(*n).is_ok());
    typed.log_size = Some(size.ok_or_else(|| format!("Invalid --log-size: {text}"))?);
    Ok(())
}

/// The largest MTU: what an IPv4 packet may have, less the Ethernet header that C passt counts in.
const MAX_MTU: u64 = 65_521;

pub(super) fn mtu(typed: &mut Typed, text: &str) -> Outcome {
    let mtu = number(text).filter(|n| *n <= MAX_MTU).and_then(|n| u16::try_from(n).ok());
    typed.mtu = Some(mtu.ok_or_else(|| format!("Invalid MTU: {text}"))?);
    Ok(())
}

pub(super) fn mac(typed: &mut Typed, text: &str) -> Outcome {
    typed.mac = Some(parse_mac(text).ok_or_else(|| format!("Invalid MAC address: {text}"))?);
    Ok(())
}

pub(super) fn ns_mac(typed: &mut Typed, text: &str) -> Outcome {
    let mac = parse_mac(text).ok_or_else(|| format!("Invalid MAC address: {text}"))?;
    typed.namespace().mac = Some(mac);
    Ok(())
}

/// Where network namespaces have names (ip-netns(8)).
const NETNS_FOLDER: &str = "/run/netns";

pub(super) fn netns(typed: &mut Typed, value: &Path) -> Outcome {
    let netns = &mut typed.namespace().netns;
    path(netns, "network namespace", value)?;
    if !value.as_os_str().as_bytes().contains(&b'/') {
        *netns = Some(Path::new(NETNS_FOLDER).join(value));
    }
    Ok(())
}

pub(super) fn userns(typed: &mut Typed, value: &Path) -> Outcome {
    typed.namespace().netns_only = false;
    path(&mut typed.namespace().userns, "user namespace", value)
}

/// An address that one interface can have.
fn parse_mac(text: &str) -> Option<MacAddr> {
    let mut mac = MacAddr::default();
    let mut parts = text.split(':');
    for octet in &mut mac.0 {
        let part = parts.next().filter(|p| p.len() == 2 && !p.starts_with('+'))?;
        *octet = u8::from_str_radix(part, 16).ok()?;
    }
    let usable = !mac.is_multicast() && mac != MacAddr::default();
    (parts.next().is_none() && usable).then_some(mac)
}

pub(super) fn guest_address(typed: &mut Typed, text: &str) -> Outcome {
    let invalid = || format!("Invalid address: {text}");
    let (addr, len) = match text.split_once('/') {
        Some((addr, len)) => (addr, Some(prefix_len(len).ok_or_else(invalid)?)),
        None => (text, None),
    };
    let typed_addr: IpAddr = addr.parse().map_err(|_| invalid())?;
    let addr = typed_addr.to_canonical();
    if addr.is_unspecified() || addr.is_loopback() || addr.is_multicast() || is_broadcast(addr) {
        return Err(invalid());
    }
    match addr {
        IpAddr::V4(v4) => {
            let mapped = if typed_addr.is_ipv6() { 96 } else { 0 };
            let len = len.map(|n| n.checked_sub(mapped).filter(|n| *n <= 32).ok_or_else(invalid));
            typed.v4.address = Some((v4, len.transpose()?));
        }
        IpAddr::V6(v6) => typed.v6.address = Some((v6, len)),
    }
    Ok(())
}

fn prefix_len(text: &str) -> Option<u8> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|n| digits && *n <= 128)
}

pub(super) fn netmask(typed: &mut Typed, text: &str) -> Outcome {
    let len = match text.parse::<Ipv4Addr>() {
        Ok(mask) => {
            let bits = mask.to_bits();
            (bits.count_ones() == bits.leading_ones()).then(|| bits.count_ones() as u8)
        }
        Err(_) => prefix_len(text).filter(|n| *n <= 32),
    };
    typed.netmask = Some(len.ok_or_else(|| format!("Invalid netmask: {text}"))?);
    Ok(())
}

pub(super) fn gateway(typed: &mut Typed, text: &str) -> Outcome {
    fn bad(a: IpAddr) -> bool {
        a.is_unspecified() || a.is_loopback() || a.is_multicast() || is_broadcast(a)
    }
    per_family(typed, "gateway address", text, bad, |f| &mut f.gateway, |f| &mut f.gateway)
}

pub(super) fn outbound(typed: &mut Typed, text: &str) -> Outcome {
    let what = "source address";
    if text.parse().is_ok_and(|a: Ipv6Addr| a.to_ipv4_mapped().is_some()) {
        return Err(format!("Invalid {what}: {text}"));
    }
    fn bad(a: IpAddr) -> bool {
        a.is_multicast() || is_broadcast(a) || (a.is_ipv6() && a.is_loopback())
    }
    per_family(typed, what, text, bad, |f| &mut f.outbound, |f| &mut f.outbound)
}

pub(super) fn interface(into: &mut Option<String>, text: &str) -> Outcome {
    if !crate::config::ports::is_interface_name(text) {
        return Err(format!("Invalid interface name: {text}"));
    }
    *into = Some(text.to_owned());
    Ok(())
}

pub(super) fn dns(typed: &mut Typed, text: &str) -> Outcome {
    if text == "none" {
        typed.dns.clear();
        typed.no_dns = true;
        (typed.v4.dns_forward, typed.v4.dns_host) = (None, None);
        (typed.v6.dns_forward, typed.v6.dns_host) = (None, None);
        return Ok(());
    }
    let addr = address("DNS address", text)?;
    if addr.is_unspecified() || addr.is_multicast() || is_broadcast(addr) {
        return Err(format!("Invalid DNS address: {text}"));
    }
    typed.no_dns = false;
    if typed.dns.iter().filter(|a| a.is_ipv4() == addr.is_ipv4()).count() >= MAX_DNS {
        typed.warnings.push(format!("More than {MAX_DNS} resolvers, ignoring --dns {text}"));
    } else {
        typed.dns.push(addr);
    }
    Ok(())
}

pub(super) fn dns_forward(typed: &mut Typed, text: &str) -> Outcome {
    fn bad(a: IpAddr) -> bool {
        a.is_unspecified() || a.is_loopback() || is_broadcast(a)
    }
    let what = "DNS forwarding address";
    per_family(typed, what, text, bad, |f| &mut f.dns_forward, |f| &mut f.dns_forward)
}

pub(super) fn dns_host(typed: &mut Typed, text: &str) -> Outcome {
    fn bad(a: IpAddr) -> bool {
        a.is_unspecified() || is_broadcast(a)
    }
    per_family(
        typed,
        "host nameserver address",
        text,
        bad,
        |f| &mut f.dns_host,
        |f| &mut f.dns_host,
    )
}

/// A host or domain name that DHCP and NDP can carry: labels of 1 to 63 octets.
fn is_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    text.len() <= MAX_NAME && text.split('.').all(|label| (1..=63).contains(&label.len()))
}

/// One domain, or several with blanks between them, as qemu joins them.
pub(super) fn search(typed: &mut Typed, text: &str) -> Outcome {
    if text == "none" {
        typed.search.clear();
        typed.no_search = true;
        return Ok(());
    }
    let mut names = text.split_ascii_whitespace().peekable();
    if names.peek().is_none() {
        return Err("Invalid DNS search domain: empty".to_owned());
    }
    typed.no_search = false;
    for name in names {
        if !is_name(name) {
            return Err(format!("Invalid DNS search domain: {name}"));
        }
        if typed.search.len() >= MAX_SEARCH {
            return Err(format!("Too many DNS search domains, {name} is beyond {MAX_SEARCH}"));
        }
        typed.search.push(name.to_owned());
    }
    Ok(())
}

pub(super) fn hostname(typed: &mut Typed, text: &str) -> Outcome {
    typed.hostname = Some(checked_name("hostname", text)?);
    Ok(())
}

pub(super) fn fqdn(typed: &mut Typed, text: &str) -> Outcome {
    typed.fqdn = Some(checked_name("FQDN", text)?);
    Ok(())
}

fn checked_name(what: &str, text: &str) -> Result<String, String> {
    if is_name(text) { Ok(text.to_owned()) } else { Err(format!("Invalid {what}: {text}")) }
}

fn bad_mapping(a: IpAddr) -> bool {
    a.is_unspecified() || a.is_loopback() || a.is_multicast()
}

pub(super) fn map_host_loopback(typed: &mut Typed, text: &str) -> Outcome {
    if text == "none" {
        typed.no_map_gw = true;
        typed.v4.map_host_loopback = None;
        typed.v6.map_host_loopback = None;
        return Ok(());
    }
    let what = "--map-host-loopback address";
    per_family(
        typed,
        what,
        text,
        bad_mapping,
        |f| &mut f.map_host_loopback,
        |f| &mut f.map_host_loopback,
    )
}

pub(super) fn map_guest_addr(typed: &mut Typed, text: &str) -> Outcome {
    if text == "none" {
        typed.v4.map_guest_addr = None;
        typed.v6.map_guest_addr = None;
        return Ok(());
    }
    let what = "--map-guest-addr address";
    per_family(typed, what, text, bad_mapping, |f| &mut f.map_guest_addr, |f| &mut f.map_guest_addr)
}

/// Who that is, is a matter of the host's databases.
pub(super) fn runas(typed: &mut Typed, text: &str) -> Outcome {
    typed.runas = Some(text.to_owned());
    Ok(())
}

/// `--repair-path`: only the word that switches it off is known so far.
pub(super) fn repair_path(_: &mut Typed, path: &Path) -> Outcome {
    if path.as_os_str() == "none" {
        Ok(())
    } else {
        Err("--repair-path is not supported yet, except --repair-path none".to_owned())
    }
}
