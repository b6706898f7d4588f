//! `pasta --fd`: a tap that someone else has made in a namespace, and given away as a descriptor.
//! Needs root.

mod common;

use common::net::{FAR4, FAR6, GATEWAY4, GATEWAY6, HOST4, HOST6, Lab, Namespace, need, within};
use common::pasta::{Container, EVERYBODY, Place, ends};
use common::peer::{self, Operation, Server};
use passt::sys::tap;
use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

/// Ports of servers outside, and inside, where they are forwarded to.
const OUTSIDE: u16 = 5300;
const INSIDE: u16 = 6000;

const PLAIN: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI;
const WITH_HEADERS: libc::c_int = PLAIN | libc::IFF_VNET_HDR;

/// A descriptor of `/dev/net/tun`, for interfaces of this namespace.
fn tun(namespace: &Path) -> OwnedFd {
    let open = || OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    within(namespace, open).expect("cannot open /dev/net/tun").into()
}

/// The end of an interface that is made here.
fn interface(namespace: &Path, name: &CStr, flags: libc::c_int) -> OwnedFd {
    let fd = tun(namespace);
    tap::attach(fd.as_fd(), name, flags).expect("cannot make an interface");
    fd
}

/// A connection and datagrams.
fn talk(to: IpAddr, port: u16) -> io::Result<()> {
    let to = SocketAddr::from((to, port));
    peer::exchange(to, Operation::Both, 3_000_000, 1)?;
    peer::udp_echo(to, &[1, 1400, 9000])
}

#[test]
fn everything_passes_over_a_tap_of_which_there_is_nothing_but_a_descriptor() {
    need("ping", "iputils-ping");
    let lab = Lab::new();
    let place = Place::on(&lab.host);
    lab.far.within(|| Server::start(OUTSIDE)).expect("cannot serve");
    for (who, flags) in EVERYBODY.into_iter().flat_map(|who| [(who, PLAIN), (who, WITH_HEADERS)]) {
        let inside = Namespace::alone("inside");
        let fd = interface(&inside.path(), c"given0", flags);
        let mut command = place.pasta_at(who, fd, &["-q", "-f", "-t", "6000", "-u", "6000"]);
        let mut pasta = command.stderr(Stdio::piped()).spawn().expect("starts");
        drop(command);

        // The namespace is not pasta's to enter.
        for line in [
            &format!("addr add {HOST4}/24 dev given0"),
            &format!("addr add {HOST6}/64 dev given0 nodad"),
            "link set given0 up",
            &format!("route add default via {GATEWAY4}"),
            &format!("-6 route add default via {GATEWAY6}"),
        ] {
            inside.ip(line);
        }
        inside.within(|| Server::start(INSIDE)).expect("cannot serve");
        for (from, to, port) in [
            (&inside, FAR4, OUTSIDE),
            (&inside, FAR6, OUTSIDE),
            (&lab.far, HOST4, INSIDE),
            (&lab.far, HOST6, INSIDE),
        ] {
            let talk = from.within(|| talk(to, port));
            talk.unwrap_or_else(|e| panic!("{who:?} {flags:#x} to {to}: {e}"));
        }
        for to in [FAR4, FAR6].map(|to| to.to_string()) {
            let ping = inside.command("ping").args(["-q", "-c", "1", "-W", "30", &to]).output();
            assert!(ping.expect("cannot run ping").status.success(), "{who:?} ping {to}");
        }

        inside.ip("link del given0");
        let mut said = String::new();
        pasta.stderr.take().expect("is piped").read_to_string(&mut said).expect("is text");
        assert_eq!((said.as_str(), pasta.wait().expect("is ours").code()), ("", Some(0)));
        place.assert_nothing_is_left();
    }
}

#[test]
fn a_namespace_that_is_named_besides_is_configured_and_spliced_with() {
    let lab = Lab::new();
    let place = Place::on(&lab.host);
    lab.far.within(|| Server::start(OUTSIDE)).expect("cannot serve");
    let file = place.dir.join("pid");
    let file = file.to_str().expect("is text");
    for who in EVERYBODY {
        let container = Container::new(&place, who);
        let fd = interface(&container.path(), c"given0", WITH_HEADERS);
        let (pid, ports) =
            (container.pid(), ["-t", "6000", "-u", "none", "-T", "5301", "-U", "none"]);
        let options = ["-q", "--config-net", "--host-lo-to-ns-lo", "--pid", file, &pid];
        let started = place.pasta_at(who, fd, &[&ports[..], &options].concat()).output();
        let started = started.expect("starts");
        assert!(started.status.success(), "{who:?}: {started:?}");
        let pasta = fs::read_to_string(file).expect("is there");
        fs::remove_file(file).expect("is ours");

        let talk = within(&container.path(), || talk(FAR4, OUTSIDE));
        talk.unwrap_or_else(|e| panic!("{who:?}: {e}"));
        let host = lab.host.path();
        for (from, to, port) in
            [(container.path(), &host, 5301), (host.clone(), &container.path(), INSIDE)]
        {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let listener = within(to, || TcpListener::bind(address)).expect("is free");
            let client = within(&from, || TcpStream::connect(address));
            client.expect("it is forwarded").write_all(b"x").expect("sends");
            let (mut stream, peer) = listener.accept().expect("arrives");
            assert!(peer.ip().is_loopback(), "{who:?}: {peer}");
            assert_eq!(stream.read(&mut [0; 2]).expect("arrives"), 1);
        }

        container.prints("ip link del given0");
        assert!(ends(pasta.trim().parse().expect("is a number")), "{who:?}");
        drop(container);
        place.assert_nothing_is_left();
    }
}

#[test]
fn a_descriptor_of_anything_else_is_one_line_and_leaves_nothing() {
    let (place, others) = (Place::new(), Place::new());
    let namespace = Namespace::alone("inside");
    let (file, pid) = (place.dir.join("file"), place.dir.join("pid"));
    let path = namespace.path();
    let removed = || {
        let fd = interface(&path, c"given0", PLAIN);
        namespace.ip("link del given0");
        fd
    };
    let table: [(&dyn Fn() -> OwnedFd, &str); 9] = [
        (&|| File::create(&file).expect("is ours").into(), "no tap"),
        (&|| File::open("/dev/null").expect("is there").into(), "no tap"),
        (&|| UnixStream::pair().expect("sockets are there").0.into(), "no tap"),
        (&|| UdpSocket::bind("127.0.0.1:0").expect("is free").into(), "no tap"),
        (&|| TcpListener::bind("127.0.0.1:0").expect("is free").into(), "no tap"),
        (&|| tun(&path), "of /dev/net/tun, but has no interface"),
        (&removed, "of /dev/net/tun, but has no interface"),
        (
            &|| interface(&path, c"tun%d", libc::IFF_TUN | libc::IFF_NO_PI),
            "a tun: its packets have no Ethernet header",
        ),
        (&|| interface(&path, c"tap%d", libc::IFF_TAP), "a tap that was made without IFF_NO_PI"),
    ];
    for who in EVERYBODY {
        let container = Container::new(&others, who);
        for (make, what) in &table {
            for joined in [None, Some(container.pid())] {
                let mut options = vec!["-q", "--pid", pid.to_str().expect("is text")];
                options.extend(joined.as_deref());
                let line = place.refused(place.pasta_at(who, make(), &options));
                assert_eq!(line, format!("Invalid --fd: 9 is {what}"), "{who:?} {joined:?}");
                assert!(!pid.exists(), "{what}");
            }
        }
    }
}

#[test]
fn a_number_without_a_descriptor_is_one_line_and_leaves_nothing() {
    let place = Place::new();
    for (line, message) in [
        ("--fd 9", "Invalid --fd: 9 is not open"),
        ("-q -F 9 --netns /proc/self/ns/net", "Invalid --fd: 9 is not open"),
        ("--fd -1", "Invalid --fd: -1"),
        ("--fd tap0", "Invalid --fd: tap0"),
        ("--fd=", "Invalid --fd: "),
        ("--fd 99999999999", "Invalid --fd: 99999999999"),
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        for who in EVERYBODY {
            assert_eq!(place.fails(who, &arguments), message.trim_end(), "{line}");
        }
    }
}

#[test]
fn a_tap_of_another_namespace_than_the_one_named_is_not_configured() {
    let (place, others) = (Place::new(), Place::new());
    let elsewhere = Namespace::alone("inside");
    for who in EVERYBODY {
        let container = Container::new(&others, who);
        let fd = interface(&elsewhere.path(), c"given0", PLAIN);
        let line =
            place.refused(place.pasta_at(who, fd, &["-q", "--config-net", &container.pid()]));
        assert_eq!(
            line, "Couldn't find interface given0 in the namespace: No such device",
            "{who:?}"
        );
    }
}
