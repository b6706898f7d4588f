//! `resolv.conf` as text, read as resolvers do (resolv.conf(5)).

use std::net::IpAddr;

/// Names in a search list at most: more than any client takes.
const MAX_SEARCH: usize = 6;

/// Resolvers at most. The C library uses three; of those, some may be of the other family.
const MAX_SERVERS: usize = 16;

/// What `resolv.conf` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolv {
    /// Resolvers, in order.
    pub servers: Vec<IpAddr>,
    /// The search list.
    pub search: Vec<String>,
}

impl Resolv {
    /// Reads `text`. What makes no sense is left out, as resolvers do.
    pub fn parse(text: &str) -> Self {
        let mut resolv = Self::default();
        for line in text.lines() {
            // A comment starts in the first column; behind a value, resolvers that follow the BSD
            // parser stop at it as well.
            let line = line.split([';', '#']).next().unwrap_or_default();
            // Keywords start in the first column, too, and may be followed by tabs.
            let (keyword, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            let mut words = rest.split_ascii_whitespace();
            match keyword {
                "nameserver" => {
                    let server = words.next().and_then(parse_server);
                    if let Some(server) = server.filter(|s| !resolv.servers.contains(s))
                        && resolv.servers.len() < MAX_SERVERS
                    {
                        resolv.servers.push(server);
                    }
                }
                // Both name the same list; the last line wins.
                "search" => resolv.search = names(words),
                "domain" => resolv.search = names(words.take(1)),
                _ => {}
            }
        }
        resolv
    }
}

/// An address without its zone, which means something on the host only.
fn parse_server(word: &str) -> Option<IpAddr> {
    let addr = word.split('%').next().unwrap_or(word);
    let addr: IpAddr = addr.parse().ok()?;
    let addr = addr.to_canonical();
    // "0.0.0.0" is how some configurations write "this host".
    match addr {
        IpAddr::V4(a) if a.is_unspecified() => Some(std::net::Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(a) if a.is_unspecified() => Some(std::net::Ipv6Addr::LOCALHOST.into()),
        addr => Some(addr),
    }
}

/// Names that fit DHCP and NDP; "." alone switches a search list off.
fn names<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
    words
        .map(|name| name.strip_suffix('.').unwrap_or(name))
        .filter(|n| n.len() <= 253 && n.split('.').all(|label| (1..=63).contains(&label.len())))
        .map(str::to_owned)
        .take(MAX_SEARCH)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn reads(text: &str, servers: &[&str], search: &[&str]) {
        let resolv = Resolv::parse(text);
        let found: Vec<_> = resolv.servers.iter().map(ToString::to_string).collect();
        assert_eq!(
            (found, resolv.search),
            (
                servers.iter().map(ToString::to_string).collect(),
                search.iter().map(ToString::to_string).collect(),
            ),
            "{text:?}"
        );
    }

    #[test]
    fn what_resolvers_understand_is_understood() {
        reads("", &[], &[]);
        reads("nameserver 192.0.2.1\n", &["192.0.2.1"], &[]);
        reads("nameserver 192.0.2.1", &["192.0.2.1"], &[]);
        reads("nameserver\t192.0.2.1\t\r\n", &["192.0.2.1"], &[]);
        reads("nameserver  \t 192.0.2.1 # the router", &["192.0.2.1"], &[]);
        reads("nameserver 192.0.2.1;x", &["192.0.2.1"], &[]);
        reads("nameserver 192.0.2.1 192.0.2.2", &["192.0.2.1"], &[]);
        reads("nameserver 2001:db8::1\nnameserver 192.0.2.1", &["2001:db8::1", "192.0.2.1"], &[]);
        reads("nameserver fe80::1%eth0", &["fe80::1"], &[]);
        reads("nameserver ::ffff:192.0.2.1", &["192.0.2.1"], &[]);
        reads("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n", &["127.0.0.53"], &[]);
        reads("nameserver 0.0.0.0\nnameserver ::", &["127.0.0.1", "::1"], &[]);
        reads("nameserver 192.0.2.1\nnameserver 192.0.2.1", &["192.0.2.1"], &[]);
        reads(
            "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4",
            &["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"],
            &[],
        );
    }

    #[test]
    fn search_and_domain_name_one_list_and_the_last_line_wins() {
        reads("search a.example b.example", &[], &["a.example", "b.example"]);
        reads("search\ta.example\t\tb.example  # x", &[], &["a.example", "b.example"]);
        reads("search a\nsearch b c", &[], &["b", "c"]);
        reads("domain a", &[], &["a"]);
        reads("domain a b", &[], &["a"]);
        reads("search a b\ndomain c", &[], &["c"]);
        reads("domain c\nsearch a b", &[], &["a", "b"]);
        reads("search a. .b c..d e", &[], &["a", "e"]);
        reads("search a b c d e f g", &[], &["a", "b", "c", "d", "e", "f"]);
        reads("search", &[], &[]);
    }

    #[test]
    fn what_resolvers_ignore_is_ignored() {
        reads("# nameserver 192.0.2.1\n;nameserver 192.0.2.2\n", &[], &[]);
        reads(" nameserver 192.0.2.1\n\tsearch a", &[], &[]);
        reads("nameservers 192.0.2.1\nnameserver192.0.2.1", &[], &[]);
        reads("nameserver\nnameserver x\nnameserver 192.0.2\n", &[], &[]);
        reads("options ndots:1\nsortlist 192.0.2.0\nfamily inet6", &[], &[]);
        reads(&format!("search {} b", "a".repeat(64)), &[], &["b"]);
    }

    #[test]
    fn the_number_of_servers_is_bounded() {
        let text: String = (0..=255).map(|n| format!("nameserver 192.0.2.{n}\n")).collect();
        assert_eq!(Resolv::parse(&text).servers.len(), MAX_SERVERS);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(?s).*") {
            Resolv::parse(&text);
        }
    }
}
