//! Watching the host's network: who its neighbours are, and what becomes of its interfaces,
//! addresses and routes.
//!
//! Two sockets, both opened before the sandbox and never blocking. One gets what the kernel tells
//! everyone (multicast groups); the other asks. The kernel answers a question piece by piece, as it
//! is read, so long tables are read in many turns of the loop. Decides nothing: who is woken by the
//! sockets calls, and hears.

use super::channel::{Answer, Parts, decode, request};
use crate::config::facts::{Address, Interface, Route};
use crate::wire::MacAddr;
use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

/// Datagrams that are read in one turn.
const DATAGRAMS: usize = 16;

/// More than the kernel puts into one datagram.
const MAX_DATAGRAM: usize = 1 << 16;

/// Routes that are kept of a dump: beyond these, default routes only. Whoever has more has those.
const MAX_ROUTES: usize = 4096;

/// RTMGRP_LINK, RTMGRP_NEIGH, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR and
/// RTMGRP_IPV6_ROUTE (rtnetlink(7)).
const NEIGHBOURS: u32 = 0x4;
const NETWORK: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// A neighbour of the host's, as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Number of the interface.
    pub interface: u32,
    /// Its address.
    pub addr: IpAddr,
    /// Its Ethernet address; `None` when it is not known, or no longer.
    pub mac: Option<MacAddr>,
}

/// What the host has: the part of [`crate::config::facts::HostFacts`] that changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// All interfaces.
    pub interfaces: Vec<Interface>,
    /// All addresses, in the kernel's order.
    pub addresses: Vec<Address>,
    /// Unicast routes, in the kernel's order.
    pub routes: Vec<Route>,
}

/// What is heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A neighbour has come, changed or gone; or it is one of those asked for.
    Neighbour(Neighbour),
    /// All neighbours that were asked for follow.
    Neighbours,
    /// Those were all.
    NoMoreNeighbours,
    /// Interfaces, addresses or routes have changed.
    Changed,
    /// The kernel had more to tell than it keeps for us: ask for everything.
    Missed,
    /// The survey that was asked for.
    Surveyed(Survey),
    /// What was asked for could not be had.
    NoAnswer,
}

/// A question to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Neighbours,
    Interfaces,
    Addresses,
    Routes(AddressFamily),
}

/// The parts of a survey, in order.
const SURVEY: [Question; 4] = [
    Question::Interfaces,
    Question::Addresses,
    Question::Routes(AddressFamily::Inet),
    Question::Routes(AddressFamily::Inet6),
];

impl Question {
    fn message(self) -> RouteNetlinkMessage {
        match self {
            Self::Neighbours => RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
            Self::Interfaces => RouteNetlinkMessage::GetLink(LinkMessage::default()),
            Self::Addresses => RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            Self::Routes(family) => {
                let mut question = RouteMessage::default();
                question.header.address_family = family;
                RouteNetlinkMessage::GetRoute(question)
            }
        }
    }
}

/// A watch over the network namespace that it was opened in.
#[derive(Debug)]
pub struct Monitor {
    groups: Socket,
    answers: Socket,
    /// What is still to be asked; the first is being answered.
    questions: VecDeque<Question>,
    sequence: u32,
    survey: Survey,
    /// The kernel has dropped something that it would have told everyone.
    missed: bool,
    datagram: Vec<u8>,
}

impl Monitor {
    /// Hears of neighbours and of changes of the network from now on.
    ///
    /// # Errors
    /// Netlink itself does not work.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            groups: socket(NEIGHBOURS | NETWORK)?,
            answers: socket(0)?,
            questions: VecDeque::new(),
            sequence: 0,
            survey: Survey::default(),
            missed: false,
            datagram: Vec::with_capacity(MAX_DATAGRAM),
        })
    }

    /// Becomes readable when the kernel tells everyone something: see [`Monitor::hear`].
    pub fn groups(&self) -> BorrowedFd<'_> {
        self.groups.as_fd()
    }

    /// Becomes readable when it answers: see [`Monitor::read_answers`].
    pub fn answers(&self) -> BorrowedFd<'_> {
        self.answers.as_fd()
    }

    /// Asks for all neighbours, unless that is waiting to be answered already.
    pub fn ask_neighbours(&mut self, tell: &mut dyn FnMut(News)) {
        self.ask(&[Question::Neighbours], tell);
    }

    /// Asks for interfaces, addresses and routes.
    pub fn ask_survey(&mut self, tell: &mut dyn FnMut(News)) {
        self.ask(&SURVEY, tell);
    }

    fn ask(&mut self, questions: &[Question], tell: &mut dyn FnMut(News)) {
        // One that has begun to be answered may have missed what we ask for now.
        let waiting = self.questions.iter().skip(1);
        if questions.first().is_some_and(|first| waiting.clone().any(|q| q == first)) {
            return;
        }
        self.questions.extend(questions);
        if self.questions.len() == questions.len() {
            self.send(tell);
        }
    }

    /// Asks the first question; those that cannot be asked are given up.
    fn send(&mut self, tell: &mut dyn FnMut(News)) {
        while let Some(question) = self.questions.front() {
            self.sequence = self.sequence.wrapping_add(1);
            let bytes = request(question.message(), NLM_F_DUMP, self.sequence);
            match self.answers.send(&bytes, 0) {
                Ok(_) => {
                    match question {
                        Question::Neighbours => tell(News::Neighbours),
                        Question::Interfaces => self.survey = Survey::default(),
                        _ => {}
                    }
                    return;
                }
                Err(e) => {
                    log::debug!("netlink: cannot ask: {e}");
                    self.give_up(tell);
                }
            }
        }
    }

    fn give_up(&mut self, tell: &mut dyn FnMut(News)) {
        self.questions.clear();
        tell(News::NoAnswer);
    }

    /// Tells what the kernel has told everyone, up to a turn's worth.
    pub fn hear(&mut self, tell: &mut dyn FnMut(News)) {
        for _ in 0..DATAGRAMS {
            match receive(&self.groups, &mut self.datagram) {
                Ok(true) => {
                    let parts = Parts(&self.datagram).filter_map(|part| decode(part.bytes));
                    parts.filter_map(news).for_each(&mut *tell);
                }
                Ok(false) => {
                    if std::mem::take(&mut self.missed) {
                        tell(News::Missed);
                    }
                    return;
                }
                // ENOBUFS: there was more than fits the socket's buffer. What does is older than
                // what is lost, so nobody hears of the loss, and asks, before that is read.
                Err(_) => self.missed = true,
            }
        }
    }

    /// Tells what the kernel has answered, up to a turn's worth.
    pub fn read_answers(&mut self, tell: &mut dyn FnMut(News)) {
        for _ in 0..DATAGRAMS {
            match receive(&self.answers, &mut self.datagram) {
                Ok(true) => {}
                Ok(false) => return,
                Err(e) => {
                    log::debug!("netlink: no answer: {e}");
                    self.give_up(tell);
                    continue;
                }
            }
            let datagram = std::mem::take(&mut self.datagram);
            for part in Parts(&datagram) {
                if part.sequence == self.sequence {
                    self.take(&part.answer(), tell);
                }
            }
            self.datagram = datagram;
        }
    }

    /// Takes one message of the answer to the first question.
    fn take(&mut self, answer: &Answer<'_>, tell: &mut dyn FnMut(News)) {
        match answer {
            Answer::Message(bytes) => match decode(bytes) {
                Some(RouteNetlinkMessage::NewNeighbour(message)) => {
                    neighbour(&message, true).map(News::Neighbour).into_iter().for_each(tell);
                }
                Some(message) => self.survey.add(&message),
                None => {}
            },
            Answer::Refused => self.give_up(tell),
            Answer::Done => {
                let done = self.questions.pop_front();
                match done {
                    Some(Question::Neighbours) => tell(News::NoMoreNeighbours),
                    Some(Question::Routes(AddressFamily::Inet6)) => {
                        tell(News::Surveyed(std::mem::take(&mut self.survey)));
                    }
                    _ => {}
                }
                self.send(tell);
            }
        }
    }
}

impl Survey {
    fn add(&mut self, message: &RouteNetlinkMessage) {
        match message {
            RouteNetlinkMessage::NewLink(link) => self.interfaces.extend(super::interface(link)),
            RouteNetlinkMessage::NewAddress(addr) => self.addresses.extend(super::address(addr)),
            RouteNetlinkMessage::NewRoute(route) => {
                let route = super::route(route);
                let room = self.routes.len() < MAX_ROUTES;
                self.routes.extend(route.filter(|route| room || route.destination.1 == 0));
            }
            _ => {}
        }
    }
}

/// A socket in these groups that does not block.
fn socket(groups: u32) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, groups))?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Reads one datagram; `false` when there is none.
fn receive(socket: &Socket, datagram: &mut Vec<u8>) -> io::Result<bool> {
    loop {
        datagram.clear();
        match socket.recv(datagram, 0) {
            Ok(n) => return Ok(n > 0),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        }
    }
}

/// What a message to everyone tells us.
fn news(message: RouteNetlinkMessage) -> Option<News> {
    match message {
        RouteNetlinkMessage::NewNeighbour(message) => {
            neighbour(&message, true).map(News::Neighbour)
        }
        RouteNetlinkMessage::DelNeighbour(message) => {
            neighbour(&message, false).map(News::Neighbour)
        }
        RouteNetlinkMessage::NewLink(_)
        | RouteNetlinkMessage::DelLink(_)
        | RouteNetlinkMessage::NewAddress(_)
        | RouteNetlinkMessage::DelAddress(_) => Some(News::Changed),
        // Of other routes there may be very many, and none of them changes what the guest sees as
        // long as there is a default one.
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            let default = route.header.destination_prefix_length == 0;
            (default && route.header.kind == RouteType::Unicast).then_some(News::Changed)
        }
        _ => None,
    }
}

/// The neighbour that a message is about; one without an Ethernet address that is in use is not
/// `there`.
fn neighbour(message: &NeighbourMessage, there: bool) -> Option<Neighbour> {
    let (mut addr, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => addr = Some((*a).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => addr = Some((*a).into()),
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(&bytes[..]).ok().map(MacAddr);
            }
            _ => {}
        }
    }
    let valid = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
    );
    let mac = mac.filter(|_| there && valid);
    Some(Neighbour { interface: message.header.ifindex, addr: addr?, mac })
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::route::RouteHeader;
    use std::net::Ipv4Addr;

    fn message(state: NeighbourState, mac: &[u8]) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 7;
        message.header.state = state;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(Ipv4Addr::new(192, 0, 2, 1))),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        message
    }

    #[test]
    fn only_neighbours_that_can_be_reached_on_ethernet_have_an_address() {
        use NeighbourState as S;
        let mac = |state, bytes: &[u8]| neighbour(&message(state, bytes), true).unwrap().mac;
        let known = Some(MacAddr([2, 0, 0, 0, 0, 9]));
        let bytes = [2, 0, 0, 0, 0, 9];
        for state in [S::Reachable, S::Stale, S::Delay, S::Probe, S::Permanent] {
            assert_eq!(mac(state, &bytes), known, "{state:?}");
        }
        for state in [S::Incomplete, S::Failed, S::Noarp, S::None, S::Other(0x4000)] {
            assert_eq!(mac(state, &bytes), None, "{state:?}");
        }
        assert_eq!(mac(S::Reachable, &[1, 2, 3, 4]), None, "a tunnel");
        assert_eq!(mac(S::Reachable, &[0; 20]), None, "InfiniBand");
        let gone = RouteNetlinkMessage::DelNeighbour(message(S::Reachable, &bytes));
        let addr = Ipv4Addr::new(192, 0, 2, 1).into();
        let expected = News::Neighbour(Neighbour { interface: 7, addr, mac: None });
        assert_eq!(news(gone), Some(expected));
        assert_eq!(neighbour(&NeighbourMessage::default(), true), None, "of a bridge");
    }

    #[test]
    fn routes_that_are_no_default_ones_are_no_news() {
        let route = |len, kind| {
            let header = RouteHeader { destination_prefix_length: len, kind, ..Default::default() };
            let mut message = RouteMessage::default();
            message.header = header;
            news(RouteNetlinkMessage::NewRoute(message))
        };
        assert_eq!(route(0, RouteType::Unicast), Some(News::Changed));
        assert_eq!(route(24, RouteType::Unicast), None);
        assert_eq!(route(0, RouteType::Unreachable), None);
    }

    #[test]
    fn of_very_many_routes_the_default_ones_are_kept() {
        let mut survey = Survey::default();
        let mut add = |len| {
            let mut message = RouteMessage::default();
            message.header.address_family = AddressFamily::Inet;
            message.header.kind = RouteType::Unicast;
            message.header.destination_prefix_length = len;
            message.attributes.push(netlink_packet_route::route::RouteAttribute::Oif(1));
            survey.add(&RouteNetlinkMessage::NewRoute(message));
        };
        (0..MAX_ROUTES + 9).for_each(|_| add(24));
        add(0);
        assert_eq!(survey.routes.len(), MAX_ROUTES + 1);
        assert_eq!(survey.routes.last().unwrap().destination.1, 0);
    }
}
