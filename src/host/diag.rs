//! Who listens: sockets of a network namespace that wait for others, by sock_diag(7).
//!
//! A dump is read in steps, each of a few datagrams that the kernel has ready, so that however
//! many sockets there are, nobody waits for the end of it. Knows ports and what they can be
//! reached by; not what they are looked up for.

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send,
    socket,
};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

/// Datagrams that one step reads: some 2500 sockets.
const DATAGRAMS: usize = 8;

/// What the kernel puts into one datagram of a dump at most.
const MAX_DATAGRAM: usize = 1 << 15;

// linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h.
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_SKV6ONLY: u16 = 11;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// Length of `struct inet_diag_req_v2`.
const REQUEST: usize = 56;

/// Length of `struct inet_diag_msg`.
const ANSWER: usize = 72;

/// Index of the loopback interface in every namespace.
const LOOPBACK_INDEX: u32 = 1;

/// How a service can be reached: a set of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach(u8);

impl Reach {
    /// At 127.0.0.1.
    pub const LOOPBACK_V4: Self = Self(1);
    /// At another address of 127.0.0.0/8.
    pub const OTHER_LOOPBACK: Self = Self(2);
    /// At an IPv4 address that others may reach.
    pub const V4: Self = Self(4);
    /// At ::1.
    pub const LOOPBACK_V6: Self = Self(8);
    /// At an IPv6 address that others may reach.
    pub const V6: Self = Self(16);

    /// Whether it can be reached in one of the ways of `other`.
    #[must_use]
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// In all ways of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn only(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    const fn of_v4(addr: Ipv4Addr) -> Self {
        if addr.is_unspecified() {
            Self::LOOPBACK_V4.and(Self::OTHER_LOOPBACK).and(Self::V4)
        } else if addr.to_bits() == Ipv4Addr::LOCALHOST.to_bits() {
            Self::LOOPBACK_V4
        } else if addr.is_loopback() {
            Self::OTHER_LOOPBACK
        } else if addr.is_multicast() || addr.is_broadcast() {
            Self(0)
        } else {
            Self::V4
        }
    }

    fn of_v6(addr: Ipv6Addr, v6_only: bool) -> Self {
        if let Some(mapped) = addr.to_ipv4_mapped() {
            Self::of_v4(mapped)
        } else if addr.is_unspecified() {
            let both = Self::LOOPBACK_V6.and(Self::V6);
            if v6_only { both } else { both.and(Self::of_v4(Ipv4Addr::UNSPECIFIED)) }
        } else if addr.is_loopback() {
            Self::LOOPBACK_V6
        } else if addr.is_multicast() || addr.is_unicast_link_local() {
            Self(0)
        } else {
            Self::V6
        }
    }
}

/// Ports that somebody listens on, and how they can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services(BTreeMap<u16, Reach>);

impl Services {
    /// There is a service at `port`.
    pub fn add(&mut self, port: u16, reach: Reach) {
        if port != 0 && reach != Reach::default() {
            let known = self.0.entry(port).or_default();
            *known = known.and(reach);
        }
    }

    /// Those of `others` as well.
    pub fn add_all(&mut self, others: &Self) {
        others.0.iter().for_each(|(port, reach)| self.add(*port, *reach));
    }

    /// Only those whose port passes.
    pub fn retain(&mut self, pass: impl Fn(u16) -> bool) {
        self.0.retain(|port, _| pass(*port));
    }

    /// The services from port `first` to port `last`.
    pub fn range(&self, first: u16, last: u16) -> impl Iterator<Item = (u16, Reach)> + '_ {
        let range = first..=last.max(first);
        self.0.range(range).map(|(port, reach)| (*port, *reach))
    }
}

/// Who listens on one side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// TCP sockets in state LISTEN.
    pub tcp: Services,
    /// UDP sockets that are bound and not connected.
    pub udp: Services,
}

/// A socket that waits for others, as the kernel describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its port.
    pub port: u16,
    /// The address that it is bound to.
    pub addr: IpAddr,
    /// It takes nothing over IPv4, if its address is of IPv6.
    pub v6_only: bool,
    /// The interface that it is bound to, or 0.
    device: u32,
    /// What fstat(2) calls it.
    pub inode: u64,
}

impl Waiting {
    fn parse(body: &[u8]) -> Option<Self> {
        let (fixed, attributes) = body.split_at_checked(ANSWER)?;
        let word = |at: usize| Some(u32::from_ne_bytes(*fixed.get(at..)?.first_chunk()?));
        let address = fixed.get(8..)?;
        Some(Self {
            port: u16::from_be_bytes(*fixed.get(4..)?.first_chunk()?),
            addr: match i32::from(*fixed.first()?) {
                libc::AF_INET => Ipv4Addr::from(*address.first_chunk::<4>()?).into(),
                libc::AF_INET6 => Ipv6Addr::from(*address.first_chunk::<16>()?).into(),
                _ => return None,
            },
            v6_only: is_v6_only(attributes),
            device: word(40)?,
            inode: word(68)?.into(),
        })
    }

    /// How it can be reached.
    fn reach(&self) -> Reach {
        let reach = match self.addr {
            IpAddr::V4(addr) => Reach::of_v4(addr),
            IpAddr::V6(addr) => Reach::of_v6(addr, self.v6_only),
        };
        let local = Reach::LOOPBACK_V4.and(Reach::OTHER_LOOPBACK).and(Reach::LOOPBACK_V6);
        if self.device == LOOPBACK_INDEX { reach.only(local) } else { reach }
    }

    /// Whether it has some address in common with a socket at `addr`; `None` is any address of both
    /// families.
    pub fn meets(&self, addr: Option<IpAddr>) -> bool {
        match (self.addr.to_canonical(), addr) {
            (_, None) => true,
            (own, Some(other)) if own.is_ipv4() == other.is_ipv4() => {
                own == other || own.is_unspecified() || other.is_unspecified()
            }
            (own, Some(other)) => other.is_ipv4() && own.is_unspecified() && !self.v6_only,
        }
    }
}

/// A question to the kernel: family and protocol.
type Question = (libc::c_int, libc::c_int);

const TCP_QUESTIONS: [Question; 2] =
    [(libc::AF_INET6, libc::IPPROTO_TCP), (libc::AF_INET, libc::IPPROTO_TCP)];
const UDP_QUESTIONS: [Question; 2] =
    [(libc::AF_INET6, libc::IPPROTO_UDP), (libc::AF_INET, libc::IPPROTO_UDP)];

/// A netlink socket that asks who listens in its namespace.
#[derive(Debug)]
pub struct Diag {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
    /// What is still to be asked, the next one last; the one that is being answered has gone.
    questions: Vec<Question>,
    asked: Option<Question>,
    refused: Option<i32>,
    seen: Seen,
}

impl Diag {
    /// Asks about the namespace that this thread is in.
    ///
    /// # Errors
    /// There is no netlink.
    pub fn open() -> io::Result<Self> {
        let protocol = SockProtocol::NetlinkSockDiag;
        let flags = SockFlag::SOCK_CLOEXEC;
        Self::over(socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?)
    }

    /// Asks over `socket`, of type NETLINK_SOCK_DIAG, about the namespace that it was made in.
    ///
    /// # Errors
    /// There is no netlink.
    pub fn over(socket: OwnedFd) -> io::Result<Self> {
        // Connected to the kernel, it takes nothing from anybody else.
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::new(),
            questions: Vec::new(),
            asked: None,
            refused: None,
            seen: Seen::default(),
        })
    }

    /// Whether a look has begun and not ended.
    pub const fn is_looking(&self) -> bool {
        self.asked.is_some()
    }

    /// Begins to look who listens; with `udp` at UDP too.
    ///
    /// # Errors
    /// The kernel takes no question.
    pub fn begin(&mut self, udp: bool) -> io::Result<()> {
        self.buffer.resize(MAX_DATAGRAM, 0);
        self.seen = Seen::default();
        self.refused = None;
        self.questions.clear();
        if udp {
            self.questions.extend(UDP_QUESTIONS);
        }
        self.questions.extend(TCP_QUESTIONS);
        self.ask_next()
    }

    fn ask_next(&mut self) -> io::Result<()> {
        self.asked = self.questions.pop();
        let Some(question) = self.asked else { return Ok(()) };
        self.sequence = self.sequence.wrapping_add(1);
        let request = request(question, self.sequence);
        let sent = send(self.socket.as_raw_fd(), &request, MsgFlags::MSG_NOSIGNAL);
        if sent.is_err() {
            self.asked = None;
        }
        Ok(sent.map(drop)?)
    }

    /// Reads some of the answer. Returns who listens when it is complete.
    ///
    /// # Errors
    /// The kernel does not answer, or has refused all questions. The next look may do better.
    pub fn step(&mut self) -> io::Result<Option<Seen>> {
        for _ in 0..DATAGRAMS {
            if self.asked.is_none() {
                return match self.refused {
                    Some(errno) if self.seen == Seen::default() => {
                        Err(io::Error::from_raw_os_error(errno))
                    }
                    _ => Ok(Some(std::mem::take(&mut self.seen))),
                };
            }
            let mut seen = std::mem::take(&mut self.seen);
            let read = self.read_one(&mut |protocol, waiting| {
                let tcp = protocol == libc::IPPROTO_TCP;
                let services = if tcp { &mut seen.tcp } else { &mut seen.udp };
                services.add(waiting.port, waiting.reach());
            });
            self.seen = seen;
            if let Err(e) = read {
                self.asked = None;
                return Err(e);
            }
        }
        Ok(None)
    }

    /// The UDP sockets that are bound and not connected, all in one go.
    ///
    /// # Errors
    /// The kernel takes no question, does not answer, or has refused all questions.
    pub fn datagram_sockets(&mut self) -> io::Result<Vec<Waiting>> {
        let mut found = Vec::new();
        self.buffer.resize(MAX_DATAGRAM, 0);
        self.refused = None;
        self.questions = UDP_QUESTIONS.to_vec();
        self.ask_next()?;
        while self.asked.is_some() {
            if let Err(e) = self.read_one(&mut |_, waiting| found.push(waiting)) {
                self.asked = None;
                return Err(e);
            }
        }
        match self.refused {
            Some(errno) if found.is_empty() => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(found),
        }
    }

    /// Reads one datagram; `tell` hears of the sockets in it, with the protocol.
    fn read_one(&mut self, tell: &mut dyn FnMut(libc::c_int, Waiting)) -> io::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT;
        let n = match recv(self.socket.as_raw_fd(), &mut self.buffer, flags) {
            Err(nix::errno::Errno::EINTR) => return Ok(()),
            other => other?,
        };
        let Some((_, protocol)) = self.asked else { return Ok(()) };
        let mut done = false;
        for message in Messages(self.buffer.get(..n).unwrap_or_default()) {
            if message.sequence != self.sequence {
                continue; // the rest of a look that was given up
            }
            match message.kind {
                NLMSG_DONE => done = true,
                NLMSG_ERROR => {
                    let code = message.body.first_chunk().map(|b| i32::from_ne_bytes(*b));
                    self.refused = Some(code.map_or(libc::EPROTO, i32::wrapping_neg));
                    done = true;
                }
                SOCK_DIAG_BY_FAMILY => {
                    if let Some(waiting) = Waiting::parse(message.body) {
                        tell(protocol, waiting);
                    }
                }
                _ => {}
            }
        }
        if done { self.ask_next() } else { Ok(()) }
    }
}

/// A dump of the sockets of one family and protocol that wait for others.
fn request((family, protocol): Question, sequence: u32) -> Vec<u8> {
    let state = if protocol == libc::IPPROTO_TCP { TCP_LISTEN } else { TCP_CLOSE };
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    // Both are lengths and numbers of a few bits.
    bytes.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family as u8, protocol as u8, 0, 0]);
    bytes.extend((1u32 << state).to_ne_bytes());
    bytes.resize(HEADER + REQUEST, 0);
    bytes
}

fn is_v6_only(mut attributes: &[u8]) -> bool {
    // Each begins with its length and kind, and is padded to four bytes.
    while let Some([l0, l1, k0, k1]) = attributes.first_chunk() {
        let len = usize::from(u16::from_ne_bytes([*l0, *l1]));
        if u16::from_ne_bytes([*k0, *k1]) == INET_DIAG_SKV6ONLY {
            return attributes.get(4).is_some_and(|only| *only != 0);
        }
        match attributes.get(len.max(4).next_multiple_of(4)..) {
            Some(rest) => attributes = rest,
            None => break,
        }
    }
    false
}

/// The messages of a datagram.
struct Messages<'a>(&'a [u8]);

struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header: &[u8; HEADER] = self.0.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
        let len = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let body = self.0.get(HEADER..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            body,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    fn look(diag: &mut Diag, udp: bool) -> Seen {
        diag.begin(udp).unwrap();
        assert!(diag.is_looking());
        std::iter::repeat_with(|| diag.step().unwrap()).take(100_000).find_map(|seen| seen).unwrap()
    }

    fn reach(services: &Services, port: u16) -> Option<Reach> {
        services.range(port, port).next().map(|(_, reach)| reach)
    }

    #[test]
    fn services_are_seen_with_the_addresses_that_reach_them() {
        let mut diag = Diag::open().unwrap();
        let all_v4 = Reach::of_v4(Ipv4Addr::UNSPECIFIED);
        let all_v6 = Reach::LOOPBACK_V6.and(Reach::V6);
        for (address, expected) in [
            ("0.0.0.0:0", all_v4),
            ("[::]:0", all_v6.and(all_v4)),
            ("127.0.0.1:0", Reach::LOOPBACK_V4),
            ("127.0.0.53:0", Reach::OTHER_LOOPBACK),
            ("[::1]:0", Reach::LOOPBACK_V6),
            ("[::ffff:127.0.0.1]:0", Reach::LOOPBACK_V4),
        ] {
            let tcp = TcpListener::bind(address).unwrap();
            let udp = UdpSocket::bind(address).unwrap();
            let (tcp_port, udp_port) =
                (tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
            let seen = look(&mut diag, true);
            assert_eq!(reach(&seen.tcp, tcp_port), Some(expected), "{address}");
            assert_eq!(reach(&seen.udp, udp_port), Some(expected), "{address}");
            let seen = look(&mut diag, false);
            assert_eq!(reach(&seen.tcp, tcp_port), Some(expected), "{address}");
            assert_eq!(seen.udp, Services::default());
        }
    }

    #[test]
    fn connections_are_no_services_and_services_that_end_are_gone() {
        let mut diag = Diag::open().unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = udp.local_addr().unwrap().port();
        assert!(reach(&look(&mut diag, true).udp, port).is_some());
        udp.connect("127.0.0.1:9").unwrap();
        assert_eq!(reach(&look(&mut diag, true).udp, port), None);
    }

    #[test]
    fn a_socket_of_one_family_only_says_so() {
        use crate::sys::socket::{Family, IntOption, Kind, bind, listen, local_address, open, set};
        use std::os::fd::AsFd as _;
        let fd = open(Family::V6, Kind::Stream).unwrap();
        set(fd.as_fd(), IntOption::V6_ONLY, 1).unwrap();
        bind(fd.as_fd(), &"[::]:0".parse().unwrap()).unwrap();
        listen(fd.as_fd(), 1).unwrap();
        let port = local_address(fd.as_fd()).unwrap().port();
        let seen = look(&mut Diag::open().unwrap(), false);
        assert_eq!(reach(&seen.tcp, port), Some(Reach::LOOPBACK_V6.and(Reach::V6)));
    }

    #[test]
    fn sockets_that_wait_are_told_apart_by_number_and_address() {
        use std::os::fd::AsFd as _;
        let mut diag = Diag::open().unwrap();
        let waits = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = waits.local_addr().unwrap().port();
        let connected = UdpSocket::bind(("127.0.0.2", port)).unwrap();
        connected.connect("127.0.0.1:9").unwrap();
        let found = diag.datagram_sockets().unwrap();
        let found: Vec<_> = found.iter().filter(|socket| socket.port == port).collect();
        let [one] = found[..] else { panic!("{found:?}") };
        assert_eq!(one.addr, waits.local_addr().unwrap().ip());
        assert_eq!(one.inode, nix::sys::stat::fstat(waits.as_fd()).unwrap().st_ino);
        assert!(reach(&look(&mut diag, true).udp, port).is_some(), "it looks as before");
    }

    #[test]
    fn sockets_meet_at_addresses_that_both_take() {
        let at = |addr: &str, v6_only| Waiting {
            port: 1,
            addr: addr.parse().unwrap(),
            v6_only,
            device: 0,
            inode: 1,
        };
        let rows = [
            ("192.0.2.1", false, "192.0.2.1", true),
            ("192.0.2.1", false, "192.0.2.2", false),
            ("192.0.2.1", false, "0.0.0.0", true),
            ("192.0.2.1", false, "::", false),
            ("192.0.2.1", false, "", true),
            ("0.0.0.0", false, "192.0.2.1", true),
            ("0.0.0.0", false, "2001:db8::1", false),
            ("::", false, "192.0.2.1", true),
            ("::", true, "192.0.2.1", false),
            ("::", true, "2001:db8::1", true),
            ("::", true, "", true),
            ("2001:db8::1", false, "::", true),
            ("2001:db8::1", false, "0.0.0.0", false),
            ("::ffff:192.0.2.1", false, "192.0.2.1", true),
        ];
        for (own, v6_only, other, expected) in rows {
            let met = at(own, v6_only).meets(other.parse().ok());
            assert_eq!(met, expected, "{own} {v6_only} {other}");
        }
    }

    #[test]
    fn a_look_that_was_given_up_does_not_disturb_the_next() {
        let mut diag = Diag::open().unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        diag.begin(true).unwrap();
        let mut seen = None;
        for _ in 0..3 {
            // The kernel refuses a second dump while the first is not read.
            seen = diag.begin(true).ok().map(|()| diag.step());
        }
        drop(seen);
        let _ = diag.step();
        let _ = diag.step();
        assert!(reach(&look(&mut diag, true).tcp, port).is_some());
    }

    #[test]
    fn answers_cut_short_or_made_up_are_survived() {
        let whole = [2u8; 200];
        for len in 0..whole.len() {
            let _ = Waiting::parse(&whole[..len]);
            let _ = is_v6_only(&whole[..len]);
            assert!(Messages(&whole[..len]).count() <= len);
        }
        let mut header = [0u8; 64];
        for len in [0u32, 1, 15, 16, 17, 63, 64, 65, u32::MAX] {
            header[..4].copy_from_slice(&len.to_ne_bytes());
            assert!(Messages(&header).count() <= 4);
        }
        assert!(!is_v6_only(&[0; 64]), "no length at all ends as well");
        assert!(is_v6_only(&[5, 0, 11, 0, 1, 0, 0, 0]));
    }
}
