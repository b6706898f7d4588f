//! The tap link on a real tap: what the kernel gives and takes, alone in a namespace. Needs root.

mod common;

use common::net::Namespace;
use common::packets;
use nix::sys::socket::{self, sockopt};
use passt::link::tap::{Error, QUEUE_LENGTH, Tap, TapLink};
use passt::link::{
    Frame, Link, LinkEvents, Offload, PartialChecksum, Refused, Segmentation, SegmentationKind,
    Sink, Source,
};
use passt::span::gather;
use passt::sys::epoll::{Epoll, Events};
use passt::time::Duration;
use passt::token::Token;
use std::fs::{File, OpenOptions};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

/// How long anything may take before it is called stuck.
const PATIENCE: Duration = Duration::from_secs(30);

/// The namespace's addresses, and ours.
const INSIDE4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2));
const OUTSIDE4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1));
const INSIDE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2));
const OUTSIDE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1));

fn tun(namespace: &Namespace) -> OwnedFd {
    let open = || OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    namespace.within(open).expect("cannot open /dev/net/tun").into()
}

/// A namespace with a tap, and the link.
struct Rig {
    link: TapLink,
    epoll: Rc<Epoll>,
    mac: [u8; 6],
    namespace: Namespace,
}

impl Rig {
    /// The interface is down.
    fn new() -> Self {
        let namespace = Namespace::alone("tap");
        let tap = Tap::open(tun(&namespace), "tap0").expect("cannot make a tap");
        Self::on(namespace, tap)
    }

    fn on(namespace: Namespace, tap: Tap) -> Self {
        let epoll = Rc::new(Epoll::new().expect("has descriptors"));
        let mac = tap.mac().expect("is there").0;
        let socket = namespace.within(|| UdpSocket::bind("0.0.0.0:0")).expect("has a network");
        tap.lengthen_queue(socket.as_fd()).expect("has the right to");
        let link = TapLink::new(tap, Rc::clone(&epoll)).expect("can be watched");
        Self { link, epoll, mac, namespace }
    }

    /// Up, with addresses, a neighbour at ours, and this MTU.
    fn up(mtu: u32) -> Self {
        let mut rig = Self::new();
        rig.bring_up(mtu);
        rig
    }

    fn bring_up(&mut self, mtu: u32) {
        for command in [
            &format!("link set tap0 mtu {mtu}"),
            "addr add 10.9.0.2/24 dev tap0",
            "addr add fd09::2/64 dev tap0 nodad",
            "link set tap0 up",
            "neigh add 10.9.0.1 lladdr 9a:55:9a:55:9a:55 dev tap0",
            "neigh add fd09::1 lladdr 9a:55:9a:55:9a:55 dev tap0",
        ] {
            self.namespace.ip(command);
        }
        let news = self.wait();
        assert!(news.up && news.room, "{news:?}");
    }

    /// What the next event says, if there is one within `patience`.
    fn event(&mut self, patience: Duration) -> Option<LinkEvents> {
        let mut events = Events::with_capacity(8);
        self.epoll.wait(&mut events, Some(patience)).expect("epoll works");
        let (token, ready) = events.iter().next()?;
        let Token::Link(which) = token else { panic!("{token:?}") };
        Some(self.link.on_event(which, ready).expect("never fails"))
    }

    fn wait(&mut self) -> LinkEvents {
        self.event(PATIENCE).expect("stuck: no event")
    }

    /// The next frame for which `pick` gives something, whatever else the kernel says.
    fn find<T>(&mut self, mut pick: impl FnMut(&[u8], &Offload) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            let (source, _) = self.link.halves();
            for index in 0..source.receive().expect("never fails") {
                let frame = source.frame(index);
                if let Some(found) = pick(&bytes(&frame), &frame.offload) {
                    source.release();
                    return found;
                }
            }
            source.release();
            assert!(start.elapsed() < PATIENCE, "stuck: no such frame");
            self.event(Duration::from_millis(100));
        }
    }

    /// Ends with an error when the link has no room.
    fn put(&mut self, frame: &[u8], offload: Offload) -> Result<(), Refused> {
        let (_, sink) = self.link.halves();
        let slot = sink.reserve(frame.len())?;
        sink.write(&slot, 0, frame);
        sink.commit(slot, frame.len(), offload);
        sink.flush().expect("never fails");
        Ok(())
    }

    fn udp(&self, address: IpAddr) -> UdpSocket {
        let bind = || UdpSocket::bind((address, 0));
        let socket = self.namespace.within(bind).expect("the address is there");
        socket.set_read_timeout(Some(PATIENCE)).expect("is open");
        socket
    }

    /// `frame` of ours, to the namespace's Ethernet address.
    fn addressed(&self, mut frame: Vec<u8>) -> Vec<u8> {
        frame[..6].copy_from_slice(&self.mac);
        frame[6..12].copy_from_slice(&[0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);
        frame
    }
}

fn bytes(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = vec![0; frame.len];
    assert_eq!(gather(frame.spans, 0, &mut bytes), frame.len);
    bytes
}

/// Where the transport header starts in a frame of this family, if it is of `protocol`.
fn transport(frame: &[u8], protocol: u8) -> Option<usize> {
    match (frame.get(12..14)?, frame.get(20), frame.get(23)) {
        ([0x08, 0], _, Some(p)) if *p == protocol => Some(34),
        ([0x86, 0xdd], Some(p), _) if *p == protocol => Some(54),
        _ => None,
    }
}

/// A UDP datagram to the namespace, whose checksum is the sum of the pseudo-header only.
fn partial_udp(src: IpAddr, dst: IpAddr, port: u16, payload: &[u8]) -> (Vec<u8>, usize) {
    let len = 8 + payload.len();
    let sum = !packets::checksum(&[&packets::pseudo(src, dst, 17, len)]);
    let mut udp = [53u16.to_be_bytes(), port.to_be_bytes()].concat();
    udp.extend((len as u16).to_be_bytes());
    udp.extend(sum.to_be_bytes());
    udp.extend(payload);
    let frame = packets::ip(src, dst, 17, 64, &udp);
    let start = frame.len() - len;
    (frame, start)
}

#[test]
fn a_tap_gets_every_offload_of_this_kernel_and_the_name_that_was_asked_for() {
    let namespace = Namespace::alone("tap");
    let tap = Tap::open(tun(&namespace), "eth7").expect("cannot make a tap");
    assert_eq!(tap.name(), "eth7");
    let any = Tap::open(tun(&namespace), "net%d").expect("cannot make a tap");
    assert_eq!(any.name(), "net0");
    let mac = tap.mac().expect("is there").to_string();
    let text = std::fs::read_to_string("/sys/class/net/eth7/address");
    assert!(text.is_err(), "it is in the namespace, not here");
    let show = namespace.command("ip").args(["link", "show", "eth7"]).output().expect("runs");
    let show = String::from_utf8_lossy(&show.stdout).into_owned();
    assert!(show.contains(&mac), "{mac} in {show}");
    let rig = Rig::on(namespace, tap);
    let caps = { rig.link }.halves().1.caps();
    // All of them since Linux 6.2, which is what this runs on.
    assert!(caps.checksum && caps.tcp4_segmentation && caps.tcp6_segmentation, "{caps:?}");
    assert!(caps.udp4_segmentation && caps.udp6_segmentation, "{caps:?}");
    assert_eq!(caps.max_frame, 14 + 65_535);
}

#[test]
fn what_cannot_be_had_is_named() {
    let namespace = Namespace::alone("tap");
    let open = |name: &str| Tap::open(tun(&namespace), name).expect_err("is refused");
    namespace.ip("link add taken type veth peer name other");
    namespace.ip("tuntap add dev kept mode tap");
    for name in ["lo", "taken", "kept"] {
        assert!(matches!(open(name), Error::NameTaken(n) if n == name), "{name}");
    }
    for name in ["sixteen-letters-", "a/b", "nul\0", "two words", "."] {
        assert!(matches!(open(name), Error::BadName(n) if n == name), "{name:?}");
    }
    assert!(matches!(Tap::adopt(File::open("/dev/null").unwrap().into()), Err(Error::Given(_))));
    assert!(matches!(Tap::adopt(tun(&namespace)), Err(Error::Given(_))), "no interface yet");
    let fd = tun(&namespace);
    let refused = std::thread::spawn(move || {
        // The other threads keep what they have: the raw call is of this one only.
        caps::clear(None, caps::CapSet::Effective).expect("giving up is always allowed");
        Tap::open(fd, "tap0").expect_err("has no right to")
    });
    assert!(matches!(refused.join().expect("no panic"), Error::NotPermitted(n) if n == "tap0"));
}

#[test]
fn the_link_is_up_when_the_interface_is_and_ends_with_it() {
    let mut rig = Rig::new();
    assert_eq!(rig.put(&[0; 60], Offload::default()), Err(Refused::Down));
    assert_eq!(rig.event(Duration::ZERO), None, "nothing happens while it is down");
    rig.bring_up(1500);
    rig.put(&[0; 60], Offload::default()).expect("has room");

    // Down: what the kernel refuses is kept, and nothing wakes us up.
    rig.namespace.ip("link set tap0 down");
    let socket = rig.udp(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let port = socket.local_addr().unwrap().port();
    let (frame, start) = partial_udp(OUTSIDE4, INSIDE4, port, b"kept");
    let frame = rig.addressed(frame);
    let checksum = Some(PartialChecksum { start: start as u16, offset: 6 });
    rig.put(&frame, Offload { checksum, segmentation: None }).expect("it looked up");
    assert_eq!(rig.put(&frame, Offload::default()), Err(Refused::Down));
    while rig.event(Duration::ZERO).is_some() {
        while rig.link.halves().0.receive().unwrap() > 0 {}
    }
    assert_eq!(rig.event(Duration::from_millis(50)), None, "it spins");
    rig.namespace.ip("link set tap0 up");
    let news = rig.wait();
    assert!(news.up && news.room, "{news:?}");
    let mut buffer = [0; 10];
    assert_eq!(socket.recv(&mut buffer).expect("it comes now"), 4);

    rig.namespace.ip("link del tap0");
    while !rig.wait().ended {
        while rig.link.halves().0.receive().unwrap() > 0 {}
    }
    assert_eq!(rig.link.halves().0.receive().unwrap(), 0);
}

#[test]
fn segments_larger_than_the_mtu_come_in_one_frame() {
    for (inside, outside, kind) in [(INSIDE4, OUTSIDE4, "v4"), (INSIDE6, OUTSIDE6, "v6")] {
        let mut rig = Rig::up(1500);
        let socket = rig.udp(inside);
        socket::setsockopt(&socket, sockopt::UdpGsoSegment, &1000).expect("since Linux 4.18");
        let sent: Vec<u8> = (0..9500u32).map(|n| n as u8).collect();
        assert_eq!(socket.send_to(&sent, (outside, 53)).expect("it has a route"), 9500);
        let (payload, offload) = rig.find(|frame, offload| {
            let start = transport(frame, 17)?;
            (frame.get(start + 2..start + 4)? == [0, 53])
                .then(|| (frame[start + 8..].to_vec(), *offload))
        });
        let headers = if inside.is_ipv4() { 34 } else { 54 };
        assert!(payload == sent, "{kind}");
        let cut = offload.segmentation.expect(kind);
        assert_eq!((cut.kind, cut.size), (SegmentationKind::Udp, 1000), "{kind}");
        assert_eq!(offload.checksum, Some(PartialChecksum { start: headers, offset: 6 }), "{kind}");
    }
}

#[test]
fn a_connection_attempt_comes_with_a_checksum_to_be_completed() {
    let mut rig = Rig::up(65520);
    rig.namespace.within(|| {
        let patience = Duration::from_millis(1);
        let to = (OUTSIDE4, 80).into();
        TcpStream::connect_timeout(&to, patience).expect_err("nobody answers")
    });
    let offload = rig.find(|frame, offload| transport(frame, 6).map(|_| *offload));
    assert_eq!(offload.checksum, Some(PartialChecksum { start: 34, offset: 16 }));
    assert_eq!(offload.segmentation, None);
}

#[test]
fn the_kernel_cuts_and_completes_what_we_send() {
    for (inside, outside) in [(INSIDE4, OUTSIDE4), (INSIDE6, OUTSIDE6)] {
        let mut rig = Rig::up(1500);
        let socket = rig.udp(inside);
        let port = socket.local_addr().unwrap().port();
        let sent: Vec<u8> = (0..45_100u32).map(|n| (n / 7) as u8).collect();
        let (frame, start) = partial_udp(outside, inside, port, &sent);
        let frame = rig.addressed(frame);
        let offload = Offload {
            checksum: Some(PartialChecksum { start: start as u16, offset: 6 }),
            segmentation: Some(Segmentation {
                kind: SegmentationKind::Udp,
                size: 1000,
                header_len: start as u16 + 8,
            }),
        };
        rig.put(&frame, offload).expect("has room");
        let mut got: Vec<u8> = Vec::new();
        let mut buffer = [0; 2000];
        while got.len() < sent.len() {
            let n = socket.recv(&mut buffer).expect("all of it comes");
            assert_eq!(n, (sent.len() - got.len()).min(1000));
            got.extend(&buffer[..n]);
        }
        assert!(got == sent);
        assert_eq!(rig.link.stats().lost_frames, 0);
    }
}

#[test]
fn a_frame_that_the_kernel_will_never_take_does_not_stop_the_others() {
    let mut rig = Rig::up(1500);
    let socket = rig.udp(INSIDE4);
    let port = socket.local_addr().unwrap().port();
    let beyond = Some(PartialChecksum { start: 60_000, offset: 6 });
    rig.put(&[0; 60], Offload { checksum: beyond, segmentation: None }).expect("has room");
    assert_eq!(rig.link.stats().lost_frames, 1);
    let (frame, start) = partial_udp(OUTSIDE4, INSIDE4, port, b"next");
    let frame = rig.addressed(frame);
    let checksum = Some(PartialChecksum { start: start as u16, offset: 6 });
    rig.put(&frame, Offload { checksum, segmentation: None }).expect("has room");
    assert_eq!(socket.recv(&mut [0; 10]).expect("it comes"), 4);
}

#[test]
fn as_many_packets_wait_for_us_as_we_have_asked_for() {
    let mut rig = Rig::up(1500);
    let socket = rig.udp(INSIDE4);
    // Less than the queue holds: the kernel says a word of its own now and then.
    let count = u32::from(QUEUE_LENGTH) - 100;
    for n in 0..count {
        socket.send_to(&n.to_be_bytes(), (OUTSIDE4, 53)).expect("it has a route");
    }
    let mut next = 0u32;
    rig.find(|frame, _| {
        let start = transport(frame, 17).filter(|start| frame[start + 2..start + 4] == [0, 53])?;
        assert_eq!(frame[start + 8..start + 12], next.to_be_bytes(), "one was lost");
        next += 1;
        (next == count).then_some(())
    });
}

#[test]
fn a_tap_of_someone_elses_without_headers_carries_plain_frames() {
    let namespace = Namespace::alone("tap");
    let fd = tun(&namespace);
    let plain = libc::IFF_TAP | libc::IFF_NO_PI;
    passt::sys::tap::attach(fd.as_fd(), c"tap0", plain).expect("cannot make a tap");
    let mut rig = Rig::on(namespace, Tap::adopt(fd).expect("is a tap"));
    rig.bring_up(1500);
    let caps = rig.link.halves().1.caps();
    assert!(!caps.checksum && !caps.tcp4_segmentation && !caps.udp4_segmentation);

    let socket = rig.udp(INSIDE4);
    let port = socket.local_addr().unwrap().port();
    socket.send_to(b"out", (OUTSIDE4, 53)).expect("it has a route");
    rig.find(|frame, offload| {
        let start = transport(frame, 17).filter(|start| frame[start + 2..start + 4] == [0, 53])?;
        assert_eq!((&frame[start + 8..], *offload), (&b"out"[..], Offload::default()));
        let mut sum = packets::pseudo(INSIDE4, OUTSIDE4, 17, frame.len() - start);
        sum.extend(&frame[start..]);
        sum.push(0);
        assert_eq!(packets::checksum(&[&sum]), 0, "the kernel has completed it");
        Some(())
    });
    let (mut frame, start) = partial_udp(OUTSIDE4, INSIDE4, port, b"in");
    // UDP over IPv4 may do without a checksum.
    frame[start + 6..start + 8].copy_from_slice(&[0, 0]);
    let frame = rig.addressed(frame);
    rig.put(&frame, Offload::default()).expect("has room");
    assert_eq!(socket.recv(&mut [0; 10]).expect("it comes"), 2);
}

#[test]
fn a_tap_can_be_taken_apart_and_dies_with_its_last_half() {
    let Rig { link, namespace, .. } = Rig::up(1500);
    let exists = || {
        let show = namespace.command("ip").args(["link", "show", "tap0"]).output();
        show.expect("ip runs").status.success()
    };
    let TapLink { control, source, sink } = link;
    drop((control, source));
    assert!(exists());
    drop(sink);
    assert!(!exists());
}
