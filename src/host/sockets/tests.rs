//! The kernel's sockets, tried on loopback.

use super::*;
use crate::config::ports::Rule;
use crate::flow::Protocol;
use crate::host::{IcmpCause, MAX_ROOM};
use crate::sys::epoll::Events;
use crate::token::{Readiness, Token};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;

const FLOW: FlowId = FlowId::new(7, 3);
const CONNECTING: Interest =
    Interest { readable: false, writable: true, read_closed: true, edge: true };
const WITHOUT: Features = Features { peek_offset_v4: false, peek_offset_v6: false };

fn sockets(features: Features) -> Sockets {
    let epoll = Rc::new(Epoll::new().unwrap());
    Sockets::with_features(epoll, Setup::default(), features).unwrap()
}

/// Waits until something happens; hangs (and the runner ends it) if nothing does.
#[track_caller]
fn event(host: &Sockets) -> (Token, Readiness) {
    let mut events = Events::with_capacity(1);
    while host.epoll.wait(&mut events, None).unwrap() == 0 {}
    events.iter().next().unwrap()
}

/// A connection of ours and its far end.
fn pair(host: &mut Sockets, at: &str) -> (Stream, TcpStream) {
    let listener = TcpListener::bind(at).unwrap();
    let to = endpoint(listener.local_addr().unwrap());
    let (stream, progress) = host.connect(Side::Outside, to, Token::Tcp(FLOW), CONNECTING).unwrap();
    if progress == Connect::InProgress {
        let (token, ready) = event(host);
        assert_eq!(token, Token::Tcp(FLOW));
        assert!(ready.writable);
    }
    host.connect_result(&stream).unwrap();
    (stream, listener.accept().unwrap().0)
}

/// Closes a socket, and waits until its port is free: a process that another test is just
/// starting may have a copy of the descriptor for a moment.
fn close(socket: UdpSocket) {
    let address = socket.local_addr().unwrap();
    drop(socket);
    while UdpSocket::bind(address).is_err() {
        std::thread::yield_now();
    }
}

fn readable(host: &mut Sockets, stream: &mut Stream) {
    let interest = Interest { readable: true, ..Interest::default() };
    host.watch(stream, Token::Tcp(FLOW), interest).unwrap();
    assert!(event(host).1.readable);
}

#[track_caller]
fn peek(host: &mut Sockets, stream: &mut Stream, skip: usize, room: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; room];
    let (a, b) = bytes.split_at_mut(room / 2);
    let room = [SpanMut::from_slice(a), SpanMut::from_slice(b)];
    let n = host.peek(stream, skip, &room)?;
    bytes.truncate(n);
    Ok(bytes)
}

/// Writes `bytes` at the far end and waits until all of them can be peeked.
fn deliver(host: &mut Sockets, stream: &mut Stream, far: &mut TcpStream, bytes: &[u8]) {
    far.write_all(bytes).unwrap();
    readable(host, stream);
}

fn peeks_skips_and_discards(features: Features, at: &str) {
    let mut host = sockets(features);
    let (mut stream, mut far) = pair(&mut host, at);
    let nothing = peek(&mut host, &mut stream, 0, 4).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
    deliver(&mut host, &mut stream, &mut far, b"0123456789");
    assert_eq!(peek(&mut host, &mut stream, 0, 4).unwrap(), b"0123");
    assert_eq!(peek(&mut host, &mut stream, 4, 4).unwrap(), b"4567", "goes on");
    assert_eq!(peek(&mut host, &mut stream, 0, 3).unwrap(), b"012", "goes back");
    assert_eq!(peek(&mut host, &mut stream, 7, 9).unwrap(), b"789", "jumps");
    let end = peek(&mut host, &mut stream, 10, 4).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::WouldBlock);
    assert_eq!(host.discard(&mut stream, 4).unwrap(), 4);
    assert_eq!(peek(&mut host, &mut stream, 6, 4).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(peek(&mut host, &mut stream, 2, 2).unwrap(), b"67", "counts from what is left");
    assert_eq!(host.discard(&mut stream, 100).unwrap(), 6);
    assert_eq!(peek(&mut host, &mut stream, 0, 2).unwrap_err().kind(), ErrorKind::WouldBlock);
    deliver(&mut host, &mut stream, &mut far, b"ab");
    assert_eq!(peek(&mut host, &mut stream, 1, 2).unwrap(), b"b");
    drop(far);
    host.watch(
        &mut stream,
        Token::Tcp(FLOW),
        Interest { read_closed: true, ..Interest::default() },
    )
    .unwrap();
    assert!(event(&host).1.read_closed);
    assert_eq!(peek(&mut host, &mut stream, 2, 2).unwrap(), b"", "the end, behind peeked bytes");
    assert_eq!(host.discard(&mut stream, 2).unwrap(), 2);
    assert_eq!(peek(&mut host, &mut stream, 0, 2).unwrap(), b"", "the end");
    assert_eq!(peek(&mut host, &mut stream, 0, 0).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn peeking_follows_the_kernels_offset() {
    let features = Features::probe();
    assert!(features.peek_offset_v4 && features.peek_offset_v6, "needs Linux 6.9");
    peeks_skips_and_discards(features, "127.0.0.1:0");
    peeks_skips_and_discards(features, "[::1]:0");
}

#[test]
fn peeking_works_without_an_offset_in_the_kernel() {
    peeks_skips_and_discards(WITHOUT, "127.0.0.1:0");
    peeks_skips_and_discards(WITHOUT, "[::1]:0");
}

#[test]
fn without_an_offset_more_than_the_scratch_memory_is_skipped() {
    let mut host = sockets(WITHOUT);
    host.scratch = Scratch::of_pieces(1000);
    let (mut stream, mut far) = pair(&mut host, "127.0.0.1:0");
    let sent: Vec<u8> = (0..4000u32).flat_map(u32::to_be_bytes).collect();
    far.write_all(&sent).unwrap();
    let mut seen = Vec::new();
    readable(&mut host, &mut stream);
    while seen.len() < sent.len() {
        match peek(&mut host, &mut stream, seen.len(), 700) {
            Ok(bytes) => seen.extend(bytes),
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(e) => panic!("{e}"),
        }
    }
    assert_eq!(seen, sent);
    assert_eq!(host.scratch.len(), 1000, "scratch memory is bounded");
    let beyond = peek(&mut host, &mut stream, 16_001, 10).unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::WouldBlock, "and so is what can be skipped");
}

#[test]
fn a_full_socket_takes_less_than_it_is_given() {
    let mut host = sockets(WITHOUT);
    let (mut stream, mut far) = pair(&mut host, "127.0.0.1:0");
    let chunk = vec![5u8; 1 << 20];
    let spans = [Span::from_slice(&chunk[..10]), Span::from_slice(&chunk[10..])];
    let mut sent = 0;
    let short = loop {
        match host.send(&mut stream, &spans) {
            Ok(n) => sent += n,
            Err(e) => break e,
        }
        assert!(sent < 256 << 20, "never blocks");
    };
    assert_eq!(short.kind(), ErrorKind::WouldBlock);
    let info = host.info(&stream).unwrap();
    assert!(info.established && info.unacked > 0 && info.peer_mss > 0);
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        far.read_to_end(&mut all).unwrap();
        all.len()
    });
    host.watch(&mut stream, Token::Tcp(FLOW), Interest { writable: true, ..Interest::default() })
        .unwrap();
    assert!(event(&host).1.writable);
    host.shutdown(&mut stream).unwrap();
    assert_eq!(reader.join().unwrap(), sent);
    // What has been read need not have been acknowledged yet.
    let info = loop {
        let info = host.info(&stream).unwrap();
        if info.bytes_acked.unwrap() >= sent as u64 {
            break info;
        }
        std::thread::yield_now();
    };
    // Nothing but the FIN can be behind the data.
    let acked = info.bytes_acked.unwrap();
    assert!(acked <= sent as u64 + 1, "{acked} of {sent}, without SYN");
    assert!(info.peer_window.is_some());
}

#[test]
fn accepted_bytes_are_counted_without_a_syn() {
    let mut host = sockets(WITHOUT);
    let (mut stream, _far, _) = accepted(&mut host, "127.0.0.1", None);
    assert_eq!(host.info(&stream).unwrap().bytes_acked, Some(0));
    assert_eq!(host.send(&mut stream, &[Span::from_slice(b"abc")]).unwrap(), 3);
    while host.info(&stream).unwrap().unacked > 0 {
        std::thread::yield_now();
    }
    assert_eq!(host.info(&stream).unwrap().bytes_acked, Some(3));
    assert_eq!(host.info(&stream).unwrap().unacked, 0);
}

#[test]
fn a_reset_is_seen_by_the_peer() {
    let mut host = sockets(WITHOUT);
    let (stream, mut far) = pair(&mut host, "[::1]:0");
    host.reset(stream);
    let error = far.read(&mut [0; 4]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_drop_is_a_fin_and_a_shutdown_is_half_of_one() {
    let mut host = sockets(WITHOUT);
    let (mut stream, mut far) = pair(&mut host, "127.0.0.1:0");
    host.shutdown(&mut stream).unwrap();
    assert_eq!(far.read(&mut [0; 4]).unwrap(), 0);
    deliver(&mut host, &mut stream, &mut far, b"still");
    assert_eq!(peek(&mut host, &mut stream, 0, 9).unwrap(), b"still");
    let sent = host.send(&mut stream, &[Span::from_slice(b"x")]).unwrap_err();
    assert_eq!(sent.kind(), ErrorKind::BrokenPipe, "and no SIGPIPE");
    let mut host = sockets(WITHOUT);
    let (stream, mut far) = pair(&mut host, "127.0.0.1:0");
    drop(stream);
    assert_eq!(far.read(&mut [0; 4]).unwrap(), 0);
}

#[test]
fn a_refused_connect_says_so() {
    let mut host = sockets(WITHOUT);
    let unused = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = endpoint(unused.local_addr().unwrap());
    // As a close, but for copies of the descriptor in processes that are just being started, too.
    nix::sys::socket::shutdown(unused.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
    let error = match host.connect(Side::Outside, to, Token::Tcp(FLOW), CONNECTING) {
        Ok((stream, _)) => {
            assert!(event(&host).1.writable);
            host.connect_result(&stream).unwrap_err()
        }
        Err(e) => e,
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn urgent_data_stays_in_line() {
    let mut host = sockets(Features::probe());
    let (mut stream, far, _) = accepted(&mut host, "127.0.0.1", None);
    nix::sys::socket::send(far.as_raw_fd(), b"abc", nix::sys::socket::MsgFlags::MSG_OOB).unwrap();
    readable(&mut host, &mut stream);
    let mut seen = peek(&mut host, &mut stream, 0, 8).unwrap();
    // A peek may stop at the mark.
    if seen.len() < 3 {
        let skip = seen.len();
        seen.extend(peek(&mut host, &mut stream, skip, 8).unwrap());
    }
    assert_eq!(seen, b"abc");
}

/// Reads all that the far end has sent, by peeks that go on where the last one ended as long as
/// they find something, as the engine does.
fn read_by_peeks(host: &mut Sockets, stream: &mut Stream, seed: usize) -> Vec<u8> {
    let (mut all, mut skip) = (Vec::new(), 0);
    for n in seed.. {
        match peek(host, stream, skip, 2 + n % 5) {
            Ok(bytes) if bytes.is_empty() => {
                assert_eq!(peek(host, stream, 0, 1).unwrap().is_empty(), skip == 0);
                return all;
            }
            Ok(bytes) => {
                skip += bytes.len();
                all.extend(bytes);
                // A little is acknowledged now and then.
                if n % 3 == 0 {
                    skip -= host.discard(stream, skip.min(n % 4).max(1)).unwrap();
                }
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::WouldBlock);
                assert!(skip > 0, "nothing, though there is no end");
                skip -= host.discard(stream, skip).unwrap();
            }
        }
    }
    unreachable!()
}

#[test]
fn an_urgent_byte_hides_neither_what_is_behind_it_nor_the_end() {
    use nix::sys::socket::{MsgFlags, send};
    for features in [Features::probe(), WITHOUT] {
        for at in ["127.0.0.1:0", "[::1]:0"] {
            for seed in 0..30 {
                let mut host = sockets(features);
                let (mut stream, mut far) = pair(&mut host, at);
                far.write_all(b"before the mark").unwrap();
                send(far.as_raw_fd(), b"and up to it!", MsgFlags::MSG_OOB).unwrap();
                far.write_all(b"and behind").unwrap();
                far.shutdown(std::net::Shutdown::Write).unwrap();
                let all = Interest { readable: true, read_closed: true, ..Interest::default() };
                host.watch(&mut stream, Token::Tcp(FLOW), all).unwrap();
                while !event(&host).1.read_closed {}
                host.watch(&mut stream, Token::Tcp(FLOW), Interest { edge: true, ..all }).unwrap();
                let ready = event(&host).1;
                assert!(ready.urgent && ready.readable && ready.read_closed);
                let got = read_by_peeks(&mut host, &mut stream, seed);
                assert_eq!(got, b"before the markand up to it!and behind");
            }
        }
    }
}

#[test]
fn an_urgent_byte_passes_a_pipe_in_line() {
    use nix::sys::socket::{MsgFlags, send};
    let mut host = sockets(Features::probe());
    let (mut to, mut reader) = pair(&mut host, "127.0.0.1:0");
    host.watch(&mut to, Token::Tcp(FLOW), Interest::default()).unwrap();
    let (mut stream, mut far) = pair(&mut host, "127.0.0.1:0");
    let mut pipe = host.pipe().unwrap();
    far.write_all(b"before").unwrap();
    send(far.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
    far.write_all(b"behind").unwrap();
    far.shutdown(std::net::Shutdown::Write).unwrap();
    let interest = Interest { read_closed: true, ..Interest::default() };
    host.watch(&mut stream, Token::Tcp(FLOW), interest).unwrap();
    while !event(&host).1.read_closed {}
    for (one, expected) in
        [(false, 6), (false, 0), (true, 1), (false, 6), (false, 0), (true, 0), (true, 0)]
    {
        let filled = if one {
            host.fill_one(&mut pipe, &mut stream)
        } else {
            host.fill(&mut pipe, &mut stream, 100)
        };
        // In front of the mark the kernel may say one or the other.
        let n = filled.or_else(|e| (e.kind() == ErrorKind::WouldBlock).then_some(0).ok_or(e));
        assert_eq!(n.unwrap(), expected);
        if expected > 0 {
            assert_eq!(host.drain(&mut pipe, &mut to, expected).unwrap(), expected);
        }
    }
    let mut got = [0; 13];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"before!behind");
}

#[test]
fn a_peek_takes_as_many_pieces_as_it_promises() {
    for features in [Features::probe(), WITHOUT] {
        let mut host = sockets(features);
        host.scratch = Scratch::of_pieces(1);
        let (mut stream, mut far) = pair(&mut host, "127.0.0.1:0");
        deliver(&mut host, &mut stream, &mut far, &[7; 2000]);
        for skip in [0, 1, 16] {
            let mut bytes = [0; 2000];
            let room: Vec<_> = bytes.chunks_mut(1).map(SpanMut::from_slice).collect();
            assert!(host.peek(&mut stream, skip, &room).unwrap() >= MAX_ROOM);
            assert_eq!(host.peek(&mut stream, skip, &room[..MAX_ROOM]).unwrap(), MAX_ROOM);
        }
    }
}

#[test]
fn a_widened_stream_receives_far_ahead_and_still_wakes_for_one_byte() {
    let mut host = sockets(Features::probe());
    let (mut stream, _, _) = accepted(&mut host, "127.0.0.1", None);
    let before = socket::get(stream.as_fd(), IntOption::RECEIVE_BUFFER).unwrap();
    host.widen(&mut stream);
    let after = socket::get(stream.as_fd(), IntOption::RECEIVE_BUFFER).unwrap();
    assert!(after > before, "{before} to {after}");
    assert_eq!(socket::get(stream.as_fd(), IntOption::RECEIVE_LOW_WATER).unwrap(), 1);
}

#[test]
fn a_socket_of_datagrams_holds_more_than_the_kernel_s_default() {
    let plain = UdpSocket::bind("127.0.0.1:0").unwrap();
    let default = socket::get(plain.as_fd(), IntOption::RECEIVE_BUFFER).unwrap();
    let (ours, _, _) = udp(&mut sockets(WITHOUT), "127.0.0.1:0");
    let deep = socket::get(fd(&ours), IntOption::RECEIVE_BUFFER).unwrap();
    // The kernel doubles what it is told, up to net.core.rmem_max.
    assert!(deep > default, "{default} to {deep}");
}

#[test]
fn events_are_programmed_only_when_they_change() {
    let mut host = sockets(WITHOUT);
    let (mut stream, mut far) = pair(&mut host, "127.0.0.1:0");
    let edge = Interest { readable: true, edge: true, ..Interest::default() };
    host.watch(&mut stream, Token::Tcp(FLOW), edge).unwrap();
    far.write_all(b"x").unwrap();
    assert!(event(&host).1.readable);
    // Programming again would repeat the edge.
    host.watch(&mut stream, Token::Tcp(FLOW), edge).unwrap();
    let mut events = Events::with_capacity(1);
    let none = host.epoll.wait(&mut events, Some(crate::time::Duration::ZERO)).unwrap();
    assert_eq!(none, 0);
    let other = FlowId::new(8, 4);
    host.watch(&mut stream, Token::Tcp(other), edge).unwrap();
    assert_eq!(event(&host).0, Token::Tcp(other));
}

fn rule(listen: Option<&str>, port: u16) -> Rule {
    Rule {
        listen: listen.map(|text| text.parse().unwrap()),
        ifname: None,
        protocol: Protocol::Tcp,
        first: port,
        last: port,
        target: None,
        to: port,
        weak: false,
        auto: false,
    }
}

/// A connection that a listener of ours at `listen` has accepted, made through address `through`.
fn accepted(
    host: &mut Sockets,
    through: &str,
    listen: Option<&str>,
) -> (Stream, TcpStream, Accepted<()>) {
    let listened = host.listen(&vec![rule(listen, 0)].into()).unwrap();
    assert_eq!((listened.opened, listened.warnings.len()), (1, 0));
    let (index, listener) = host.listeners.iter().next().unwrap();
    let port = socket::local_address(listener.fd()).unwrap().port();
    let far = TcpStream::connect((through, port)).unwrap();
    let (token, ready) = event(host);
    assert_eq!(token, Token::Listener(index));
    assert!(ready.readable);
    let Accepted { stream, peer, local, rule } = host.accept(index).unwrap();
    assert_eq!(host.accept(index).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(peer, endpoint(far.local_addr().unwrap()));
    assert_eq!(local, endpoint(far.peer_addr().unwrap()));
    assert_eq!(rule, 0);
    (stream, far, Accepted { stream: (), peer, local, rule })
}

#[test]
fn one_socket_listens_to_both_families() {
    let mut host = sockets(WITHOUT);
    let (_stream, _far, v4) = accepted(&mut host, "127.0.0.1", None);
    assert!(v4.peer.is_ipv4() && v4.local.is_ipv4(), "never a mapped address");
    let mut host = sockets(WITHOUT);
    let (_stream, _far, v6) = accepted(&mut host, "::1", None);
    assert!(!v6.peer.is_ipv4() && !v6.local.is_ipv4());
    let mut host = sockets(WITHOUT);
    host.setup.v6 = false;
    let (stream, _far, _) = accepted(&mut host, "127.0.0.1", None);
    assert!(stream.is_ipv4());
    let mut host = sockets(WITHOUT);
    host.setup.v4 = false;
    let (_stream, far, _) = accepted(&mut host, "::1", None);
    let port = far.peer_addr().unwrap().port();
    TcpStream::connect(("127.0.0.1", port)).unwrap_err();
}

#[test]
fn accepted_sockets_inherit_their_options() {
    let mut host = sockets(WITHOUT);
    let (stream, _far, _) = accepted(&mut host, "127.0.0.1", Some("0.0.0.0"));
    for option in [IntOption::NO_DELAY, IntOption::URGENT_INLINE] {
        assert_eq!(socket::get(stream.as_fd(), option).unwrap(), 1);
    }
    let flags = nix::fcntl::fcntl(&stream, nix::fcntl::F_GETFL).unwrap();
    assert_ne!(flags & libc::O_NONBLOCK, 0);
}

fn weak_rule(port: u16) -> Rule {
    Rule { weak: true, ..rule(Some("127.0.0.1"), port) }
}

#[test]
fn explicit_ports_are_opened_before_best_effort_ones() {
    let mut host = sockets(WITHOUT);
    host.listen(&vec![weak_rule(0), rule(Some("127.0.0.2"), 0)].into()).unwrap();
    assert_eq!(host.listening(0).map(|l| l.rule), Some(1));
    assert_eq!(host.listening(1).map(|l| l.rule), Some(0));
}

#[test]
fn a_port_that_is_taken_fails_in_words_or_warns() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut host = sockets(WITHOUT);
    let strict = rule(Some("127.0.0.1"), port);
    let failure = host.listen(&vec![strict.clone()].into()).unwrap_err();
    assert_eq!(
        failure.to_string(),
        format!("Listen failed for HOST TCP port 127.0.0.1/{port}: Address already in use")
    );
    let weak = Rule { weak: true, ..strict.clone() };
    host.listen(&vec![weak.clone()].into()).unwrap_err();
    assert!(host.listeners.is_empty(), "not one port is an error also for the weak");
    // One of the ports above is free, or the range would be hard to find on any machine.
    let last = port.saturating_add(20);
    let listened = host.listen(&vec![Rule { last, ..weak }].into()).unwrap();
    assert_eq!(listened.warnings.len(), 1, "one line for a rule");
    assert_eq!(listened.opened, host.listeners.len());
    assert_eq!(host.listening(0).map(|l| l.rule), Some(0));
    let beside = vec![weak_rule(port), weak_rule(0)].into();
    let listened = sockets(WITHOUT).listen(&beside).unwrap();
    assert_eq!((listened.opened, listened.warnings.len()), (1, 1), "one port of all is enough");
    let scanned = host.listen(&vec![Rule { auto: true, ..strict }].into()).unwrap();
    assert_eq!((scanned.opened, host.listeners.len()), (0, 0), "what was opened is closed");
}

#[test]
fn the_wildcard_and_an_address_share_a_port() {
    // Not a port that the kernel gave and would give to another test meanwhile.
    let listen = |port| {
        let mut host = sockets(WITHOUT);
        let rules = vec![rule(Some("0.0.0.0"), port), rule(Some("127.0.0.1"), port)];
        let listened = host.listen(&rules.into()).ok()?;
        assert_eq!(listened.opened, 2);
        Some((host, port))
    };
    let (host, port) = (20_000..21_000).find_map(listen).unwrap();
    let _far = TcpStream::connect(("127.0.0.1", port)).unwrap();
    assert_eq!(event(&host).0, Token::Listener(1), "the more specific one wins");
}

/// Limits are the process's, and other tests would starve too: false in the process that runs
/// all tests, after it has run `test` in a child of its own; true there.
fn in_a_child(test: &str) -> bool {
    const CHILD: &str = "PASST_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("host::sockets::tests::{test}"), "--test-threads", "1"])
        .env(CHILD, "1")
        .status()
        .unwrap();
    assert!(status.success());
    false
}

#[test]
fn more_ports_than_descriptors_are_refused_before_any_is_opened() {
    if !in_a_child("more_ports_than_descriptors_are_refused_before_any_is_opened") {
        return;
    }
    use nix::sys::resource::{Resource, setrlimit};
    setrlimit(Resource::RLIMIT_NOFILE, 100, 100).unwrap();
    let mut host = sockets(WITHOUT);
    let most = Rule { last: 20_074, to: 20_000, weak: true, ..rule(Some("127.0.0.1"), 20_000) };
    let udp = Rule { protocol: Protocol::Udp, first: 20_000, last: 20_000, ..most.clone() };
    let failure = host.listen(&vec![most.clone(), udp].into()).unwrap_err();
    assert_eq!(
        failure.to_string(),
        "Forwarding these ports takes 76 sockets, and the limit of open files leaves 75: raise it \
         (ulimit -n) or forward fewer ports"
    );
    assert!(host.listeners.is_empty());
    assert_eq!(host.listen(&vec![most].into()).unwrap().opened, 75);
}

#[test]
fn exchanges_of_datagrams_leave_descriptors_to_connections() {
    if !in_a_child("exchanges_of_datagrams_leave_descriptors_to_connections") {
        return;
    }
    use nix::sys::resource::{Resource, setrlimit};
    setrlimit(Resource::RLIMIT_NOFILE, 160, 160).unwrap();
    let mut host = sockets(WITHOUT);
    let any = Endpoint::new(Ipv4Addr::UNSPECIFIED.into(), 0);
    let to = Endpoint::new(Ipv4Addr::LOCALHOST.into(), 9);
    let mut open = |_| host.open_udp(Side::Outside, any, to, Token::Datagram(FLOW));
    let opened: Vec<_> = (0..200).map(&mut open).collect();
    let failed = opened.iter().find_map(|opened| opened.as_ref().err()).unwrap();
    assert_eq!(failed.raw_os_error(), Some(libc::EMFILE));
    let udp = opened.iter().filter(|opened| opened.is_ok()).count();
    let connected = |_| host.connect(Side::Outside, to, Token::Tcp(FLOW), CONNECTING).ok();
    let tcp = (0..200).map_while(connected).collect::<Vec<_>>().len();
    assert_eq!(tcp, 20, "an eighth, and {udp} of the others");
}

#[test]
fn accepting_without_descriptors_resets_the_connection_and_never_spins() {
    if !in_a_child("accepting_without_descriptors_resets_the_connection_and_never_spins") {
        return;
    }
    let mut host = sockets(WITHOUT);
    host.listen(&vec![rule(Some("127.0.0.1"), 0)].into()).unwrap();
    let port = socket::local_address(host.listeners.get(0).unwrap().fd()).unwrap().port();
    let mut far: Vec<_> =
        (0..3).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    let mut hoard: Vec<_> =
        std::iter::from_fn(|| host.epoll.as_fd().try_clone_to_owned().ok()).take(100_000).collect();
    assert_eq!(host.accept(0).unwrap_err().kind(), ErrorKind::WouldBlock);
    for stream in &mut far {
        let reset = stream.read(&mut [0; 4]).unwrap_err();
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
    }
    assert!(!host.is_starved() && host.spare.is_some());
    drop(far);

    // Without even the spare one, the listener sleeps until it is fed.
    host.spare = None;
    hoard.extend(std::iter::from_fn(|| host.epoll.as_fd().try_clone_to_owned().ok()).take(100_000));
    drop(hoard.pop());
    let _far = TcpStream::connect(("127.0.0.1", port)).unwrap();
    assert_eq!(event(&host).0, Token::Listener(0));
    assert_eq!(host.accept(0).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(host.is_starved());
    let mut events = Events::with_capacity(1);
    let asleep = host.epoll.wait(&mut events, Some(crate::time::Duration::ZERO)).unwrap();
    assert_eq!(asleep, 0, "no event, no spinning");
    hoard.clear();
    host.feed();
    assert_eq!(event(&host).0, Token::Listener(0));
    host.accept(0).unwrap();
}

#[test]
fn link_local_destinations_get_the_hosts_interface() {
    let setup = Setup { scope: 9, ..Setup::default() };
    let to = |text: &str| setup.socket_addr(Endpoint::new(text.parse().unwrap(), 1)).to_string();
    assert_eq!(to("fe80::1"), "[fe80::1%9]:1");
    assert_eq!(to("2001:db8::1"), "[2001:db8::1]:1");
    assert_eq!(to("192.0.2.1"), "192.0.2.1:1");
}

#[test]
fn the_outbound_address_is_not_used_towards_loopback() {
    let mut host = sockets(WITHOUT);
    host.setup.outbound_v4 = Some(Ipv4Addr::new(192, 0, 2, 99));
    host.setup.device_v4 = Some(CString::new("no-such-device").unwrap());
    drop(pair(&mut host, "127.0.0.1:0"));
    let elsewhere = Endpoint::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);
    // The device, that is: an address that is missing is done without.
    host.connect(Side::Outside, elsewhere, Token::Tcp(FLOW), CONNECTING).unwrap_err();
}

#[test]
fn an_outbound_address_that_the_host_does_not_have_is_done_without() {
    let setup = Setup { outbound_v4: Some(Ipv4Addr::new(192, 0, 2, 99)), ..Setup::default() };
    let fd = socket::open(Family::V4, Kind::Datagram).unwrap();
    // Nobody listens at addresses of other hosts, but a socket can be bound for them.
    let elsewhere = end("192.0.2.1", 9);
    let port = UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    setup.prepare_outgoing(fd.as_fd(), elsewhere, port).unwrap();
    let bound = socket::local_address(fd.as_fd()).unwrap();
    assert_eq!(endpoint(bound), end("0.0.0.0", port), "the port is still preferred");
    assert_eq!(setup.missing, [Cell::new(true), Cell::new(false)]);

    let fd = socket::open(Family::V4, Kind::Stream).unwrap();
    setup.prepare_outgoing(fd.as_fd(), elsewhere, 0).unwrap();
    assert_eq!(endpoint(socket::local_address(fd.as_fd()).unwrap()), end("0.0.0.0", 0));
    // An address that is there is used, and then its loss would be told again.
    let setup = Setup { outbound_v4: Some(Ipv4Addr::new(127, 0, 0, 9)), ..setup };
    setup.prepare_outgoing(fd.as_fd(), elsewhere, 0).unwrap();
    let bound = endpoint(socket::local_address(fd.as_fd()).unwrap());
    assert_eq!(bound.addr, end("127.0.0.9", 0).addr);
    assert_eq!(setup.missing, [Cell::new(false), Cell::new(false)]);
}

/// A UDP flow of ours towards a socket of the standard library.
fn udp(host: &mut Sockets, at: &str) -> (Datagram, UdpSocket, Endpoint) {
    let far = UdpSocket::bind(at).unwrap();
    let remote = endpoint(far.local_addr().unwrap());
    let any = if remote.is_ipv4() { "0.0.0.0" } else { "::" };
    let (near, ours) =
        host.open_udp(Side::Outside, end(any, 0), remote, Token::Datagram(FLOW)).unwrap();
    far.connect(SocketAddr::new(ours.addr, ours.port)).unwrap();
    (near, far, ours)
}

/// The socket of a flow that has one of its own.
fn fd(of: &Datagram) -> BorrowedFd<'_> {
    let Datagram::Connected(socket) = of else { panic!("has no socket of its own") };
    socket.as_fd()
}

fn end(addr: &str, port: u16) -> Endpoint {
    Endpoint::new(addr.parse().unwrap(), port)
}

fn plain(n: usize) -> Vec<Outbound> {
    vec![Outbound { spans: 1, segment: None }; n]
}

#[track_caller]
fn arrive(far: &UdpSocket, expected: &[&[u8]]) {
    let mut room = [0; 2048];
    for message in expected {
        let n = far.recv(&mut room).unwrap();
        assert_eq!(&&room[..n], message);
    }
}

/// Waits for input and receives.
fn receive(host: &mut Sockets, near: &mut Datagram, coalesce: bool) -> Batch {
    let mut batch = Batch::new();
    assert_eq!(event(host).0, Token::Datagram(FLOW));
    let n = host.receive_messages(near, &mut batch, coalesce).unwrap();
    assert_eq!(n, batch.messages.len());
    batch
}

#[test]
fn datagrams_go_out_and_come_in_by_the_batch() {
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let mut host = sockets(WITHOUT);
        let (mut near, far, _) = udp(&mut host, at);
        let (a, b) = (Span::from_slice(b"abc"), Span::from_slice(b"de"));
        // Two spans make the first message, none the second, one the third.
        let messages = [
            Outbound { spans: 2, segment: None },
            Outbound { spans: 0, segment: None },
            Outbound { spans: 1, segment: None },
        ];
        assert_eq!(host.send_messages(&mut near, &messages, &[a, b, b], 64).unwrap(), 3);
        arrive(&far, &[b"abcde", b"", b"de"]);
        for reply in [&b"one"[..], b"", b"three"] {
            far.send(reply).unwrap();
        }
        let mut seen: Vec<Vec<u8>> = Vec::new();
        while seen.len() < 3 {
            let batch = receive(&mut host, &mut near, false);
            let payloads = (0..batch.messages.len()).map(|i| batch.get(i).unwrap().1.to_vec());
            seen.extend(payloads);
        }
        assert_eq!(seen, [&b"one"[..], b"", b"three"]);
        let mut batch = Batch::new();
        let none = host.receive_messages(&mut near, &mut batch, false).unwrap_err();
        assert_eq!(none.kind(), ErrorKind::WouldBlock);
        assert!(batch.messages.is_empty());
    }
}

#[test]
fn a_run_of_datagrams_is_one_call_either_way() {
    let mut host = sockets(WITHOUT);
    let (mut near, far, ours) = udp(&mut host, "127.0.0.1:0");
    let bytes: Vec<u8> = (0..=249).collect();
    let run = [Outbound { spans: 2, segment: Some(100) }];
    let spans = [Span::from_slice(&bytes[..130]), Span::from_slice(&bytes[130..])];
    assert_eq!(host.send_messages(&mut near, &run, &spans, 64).unwrap(), 1);
    arrive(&far, &[&bytes[..100], &bytes[100..200], &bytes[200..]]);
    // And back, from a socket of ours that is connected the other way round.
    let back = endpoint(far.local_addr().unwrap());
    close(far);
    let mut other = sockets(WITHOUT);
    let (mut there, _) = other.open_udp(Side::Outside, back, ours, Token::Datagram(FLOW)).unwrap();
    let mut batch = Batch::new();
    let early = host.receive_messages(&mut near, &mut batch, true).unwrap_err();
    assert_eq!(early.kind(), ErrorKind::WouldBlock, "coalescing is on from here");
    assert_eq!(other.send_messages(&mut there, &run, &spans, 64).unwrap(), 1);
    let batch = receive(&mut host, &mut near, true);
    let (message, payload) = batch.get(0).unwrap();
    assert_eq!((message.segment, payload), (Some(100), &bytes[..]));
}

#[test]
fn a_run_that_the_kernel_cannot_cut_is_an_error() {
    let mut host = sockets(WITHOUT);
    let (mut near, _far, _) = udp(&mut host, "127.0.0.1:0");
    // More datagrams than any kernel takes in a run (UDP_MAX_SEGMENTS is 64 or 128).
    let run = [Outbound { spans: 1, segment: Some(1) }];
    let spans = [Span::from_slice(&[0; 200])];
    let refused = host.send_messages(&mut near, &run, &spans, 64).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn only_the_first_refused_message_is_an_error() {
    let mut host = sockets(WITHOUT);
    let (mut near, far, _) = udp(&mut host, "127.0.0.1:0");
    let huge = vec![0; 65_536];
    let spans = [Span::from_slice(b"fine"), Span::from_slice(&huge)];
    assert_eq!(host.send_messages(&mut near, &plain(2), &spans, 64).unwrap(), 1);
    let refused = host.send_messages(&mut near, &plain(1), &spans[1..], 64).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EMSGSIZE));
    arrive(&far, &[b"fine"]);
}

#[test]
fn a_closed_port_is_told_with_the_message_that_found_it() {
    for (at, kind, code) in [("127.0.0.1:0", 3, 3), ("[::1]:0", 1, 4)] {
        let mut host = sockets(WITHOUT);
        let (mut near, far, _) = udp(&mut host, at);
        let offender = far.local_addr().unwrap().ip();
        close(far);
        let ask = [Span::from_slice(b"anyone?")];
        assert_eq!(host.send_messages(&mut near, &plain(1), &ask, 64).unwrap(), 1);
        assert!(event(&host).1.error);
        let icmp = Some(IcmpCause { offender, kind, code, info: 0 });
        let expected = SocketError { errno: libc::ECONNREFUSED, icmp, quoted: b"anyone?".to_vec() };
        assert_eq!(host.next_error(&mut near), Some(expected));
        assert_eq!(host.next_error(&mut near), None);
        // An error that nobody has asked for stands in the way of the next message, once.
        assert_eq!(host.send_messages(&mut near, &plain(1), &ask, 64).unwrap(), 1);
        let earlier = host.send_messages(&mut near, &plain(1), &ask, 64).unwrap_err();
        assert_eq!(earlier.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(host.send_messages(&mut near, &plain(1), &ask, 64).unwrap(), 1);
        let queued = std::iter::from_fn(|| host.next_error(&mut near)).take(9).count();
        assert!((2..9).contains(&queued), "{queued}");
    }
}

#[test]
fn ttl_is_set_when_it_differs() {
    let mut host = sockets(WITHOUT);
    let (mut near, _far, _) = udp(&mut host, "127.0.0.1:0");
    let ttl = |near: &Datagram| socket::get(fd(near), IntOption::ttl(Family::V4, false)).unwrap();
    for (given, set) in [(3, 3), (3, 3), (255, 255), (0, 1)] {
        let spans = [Span::from_slice(b"x")];
        host.send_messages(&mut near, &plain(1), &spans, given).unwrap();
        assert_eq!(ttl(&near), set);
    }
}

#[test]
fn the_guests_port_is_kept_where_it_is_free() {
    let mut host = sockets(WITHOUT);
    let (first, far, ours) = udp(&mut host, "127.0.0.1:0");
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    let remote = endpoint(other.local_addr().unwrap());
    let (second, same) = host
        .open_udp(Side::Outside, end("0.0.0.0", ours.port), remote, Token::Datagram(FLOW))
        .unwrap();
    assert_eq!(same, ours, "flows of one source port share it");
    // Someone who does not share.
    let port = far.local_addr().unwrap().port();
    let (_third, else_where) =
        host.open_udp(Side::Outside, end("0.0.0.0", port), remote, Token::Datagram(FLOW)).unwrap();
    assert_ne!(else_where.port, port);
    let taken = host
        .open_udp(Side::Outside, end("127.0.0.1", port), remote, Token::Datagram(FLOW))
        .unwrap_err();
    assert_eq!(taken.raw_os_error(), Some(libc::EADDRINUSE), "an answer has to come from there");
    drop((first, second));
}

#[test]
fn messages_of_strangers_are_told_apart() {
    let mut host = sockets(WITHOUT);
    let (mut near, far, ours) = udp(&mut host, "127.0.0.1:0");
    far.send(b"hello").unwrap();
    let batch = receive(&mut host, &mut near, false);
    let from = batch.messages[0].from;
    assert_eq!(from, Some(endpoint(far.local_addr().unwrap())), "while strangers may be there");
    far.send(b"again").unwrap();
    let batch = receive(&mut host, &mut near, false);
    assert_eq!(batch.messages[0].from, None, "no need to ask any more");
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(b"psst", SocketAddr::new(ours.addr, ours.port)).unwrap();
    let mut batch = Batch::new();
    host.receive_messages(&mut near, &mut batch, false).unwrap_err();
}

#[test]
fn a_paused_socket_keeps_its_input() {
    let mut host = sockets(WITHOUT);
    let (mut near, far, _) = udp(&mut host, "127.0.0.1:0");
    host.pause(&mut near, true);
    far.send(b"later").unwrap();
    let mut events = Events::with_capacity(1);
    let quiet = host.epoll.wait(&mut events, Some(crate::time::Duration::ZERO)).unwrap();
    assert_eq!(quiet, 0);
    host.pause(&mut near, false);
    let batch = receive(&mut host, &mut near, false);
    assert_eq!(batch.get(0).unwrap().1, b"later");
}

#[test]
fn listeners_tell_who_sent_and_to_where() {
    for (through, listen) in
        [("127.0.0.1", None), ("::1", None), ("127.0.0.1", Some("0.0.0.0")), ("::1", Some("::"))]
    {
        let mut host = sockets(WITHOUT);
        let port = UdpSocket::bind((through, 0)).unwrap().local_addr().unwrap().port();
        let rules = vec![Rule { protocol: Protocol::Udp, ..rule(listen, port) }].into();
        assert_eq!(host.listen(&rules).unwrap().opened, 1);
        assert_eq!(host.listener_protocol(0), Some(Protocol::Udp));
        let far = UdpSocket::bind((through, 0)).unwrap();
        far.send_to(b"knock", (through, port)).unwrap();
        assert_eq!(event(&host).0, Token::Listener(0));
        let mut batch = Batch::new();
        assert_eq!(host.receive_listener(0, &mut batch).unwrap(), (0, 1));
        let (message, payload) = batch.get(0).unwrap();
        assert_eq!(payload, b"knock");
        assert_eq!(message.from, Some(endpoint(far.local_addr().unwrap())));
        assert_eq!(message.to, Some(end(through, port)));
        // A flow for this peer takes its further messages, and answers from the same port.
        let remote = message.from.unwrap();
        let (mut flow, ours) = host
            .open_udp(Side::Outside, end(through, port), remote, Token::Datagram(FLOW))
            .unwrap();
        assert_eq!(ours, end(through, port));
        far.send_to(b"again", (through, port)).unwrap();
        let batch = receive(&mut host, &mut flow, false);
        assert_eq!(batch.get(0).unwrap().1, b"again");
        let spans = [Span::from_slice(b"yes")];
        assert_eq!(host.send_messages(&mut flow, &plain(1), &spans, 64).unwrap(), 1);
        let mut room = [0; 9];
        let (n, from) = far.recv_from(&mut room).unwrap();
        assert_eq!((&room[..n], endpoint(from)), (&b"yes"[..], ours));
        assert_eq!(
            host.receive_listener(9, &mut Batch::new()).unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }
}

/// Gives the right to low ports up, as the sandbox does after the listeners were bound.
fn give_up_low_ports() {
    use caps::{CapSet, Capability};
    caps::drop(None, CapSet::Effective, Capability::CAP_NET_BIND_SERVICE).unwrap();
}

#[test]
fn exchanges_on_ports_that_cannot_be_bound_again_share_the_listener() {
    enter_own_network();
    let taking = |near: &UdpSocket| {
        let mut room = [0; 99];
        let (n, from) = near.recv_from(&mut room).unwrap();
        (room[..n].to_vec(), endpoint(from))
    };
    for (port, through, listen) in [
        (53, "127.0.0.1", None),
        (54, "::1", None),
        (55, "127.0.0.1", Some("0.0.0.0")),
        (56, "::1", Some("::")),
        (57, "127.0.0.3", None),
        (58, "127.0.0.3", Some("127.0.0.3")),
    ] {
        let mut host = sockets(WITHOUT);
        let rules: Rules = vec![Rule { protocol: Protocol::Udp, ..rule(listen, port) }].into();
        assert_eq!(host.listen(&rules).unwrap().opened, 1);
        give_up_low_ports();
        let far = UdpSocket::bind((through, 0)).unwrap();
        far.send_to(b"knock", (through, port)).unwrap();
        assert_eq!(event(&host).0, Token::Listener(0));
        let mut batch = Batch::new();
        assert_eq!(host.receive_listener(0, &mut batch).unwrap(), (0, 1));
        let (local, remote) = (batch.messages[0].to.unwrap(), batch.messages[0].from.unwrap());
        let refused = host.open_udp(Side::Outside, local, remote, Token::Datagram(FLOW));
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EACCES));
        let mut flow = host.open_beside(0, local, remote, Token::Datagram(FLOW)).unwrap();
        assert!(matches!(flow, Datagram::Beside(_)));
        // Messages and runs of them leave from the address that was asked.
        let spans = [&b"yes"[..], b"4444", b"4444", b"22"].map(Span::from_slice);
        let run = Outbound { spans: 3, segment: Some(4) };
        let messages = [Outbound { spans: 1, segment: None }, run];
        assert_eq!(host.send_messages(&mut flow, &messages, &spans, 0).unwrap(), 2);
        for expected in [&b"yes"[..], b"4444", b"4444", b"22"] {
            assert_eq!(taking(&far), (expected.to_vec(), local));
        }
        // What follows comes to the listener; pausing the flow is no business of its.
        host.pause(&mut flow, true);
        far.send_to(b"again", (through, port)).unwrap();
        assert_eq!(event(&host).0, Token::Listener(0));
        assert_eq!(host.receive_listener(0, &mut batch).unwrap(), (0, 1));
        assert_eq!(batch.get(0).unwrap().1, b"again");
        let nothing = host.receive_messages(&mut flow, &mut batch, true).unwrap_err();
        assert_eq!((nothing.kind(), batch.messages.len()), (ErrorKind::WouldBlock, 0));
        assert_eq!(host.next_error(&mut flow), None);
        // Ports that we may bind have sockets of their own.
        let local = Endpoint::new(local.addr, 20_000 + port);
        let own = host.open_beside(0, local, remote, Token::Datagram(FLOW)).unwrap();
        assert!(matches!(own, Datagram::Connected(_)));
        // Without its listener it sends no more.
        host.listen(&Rules::default()).unwrap();
        let gone = host.send_messages(&mut flow, &plain(1), &spans[..1], 64).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotConnected);
        let all = caps::read(None, caps::CapSet::Permitted).unwrap();
        caps::set(None, caps::CapSet::Effective, &all).unwrap();
    }
}

/// A network namespace of this thread's, where its group may ping.
fn enter_own_network() {
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_NEWNET).expect("needs root, for a network namespace of its own");
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.expect("needs the package iproute2").success());
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
}

#[test]
fn pings_keep_their_identifier_where_it_is_free() {
    enter_own_network();
    for (remote, request, reply) in [("127.0.0.1", 8, 0), ("::1", 128, 129)] {
        let remote: IpAddr = remote.parse().unwrap();
        let mut host = sockets(WITHOUT);
        let mut near = host.open_echo(remote, 0x1234, FLOW).unwrap();
        let ask = [request, 0, 0, 0, 0x12, 0x34, 0, 7, b'h', b'i'];
        let spans = [Span::from_slice(&ask)];
        assert_eq!(host.send_messages(&mut near, &plain(1), &spans, 9).unwrap(), 1);
        assert_eq!(event(&host).0, Token::Datagram(FLOW));
        let mut batch = Batch::new();
        assert_eq!(host.receive_messages(&mut near, &mut batch, true).unwrap(), 1);
        let (message, payload) = batch.get(0).unwrap();
        assert_eq!(payload[0], reply);
        assert_eq!(payload[4..], ask[4..]);
        assert_eq!(message.from.map(|from| from.addr), Some(remote));
        // A second socket gets another identifier, or the first would get its replies.
        let mut second = host.open_echo(remote, 0x1234, FLOW).unwrap();
        host.send_messages(&mut second, &plain(1), &spans, 9).unwrap();
        event(&host);
        host.receive_messages(&mut second, &mut batch, false).unwrap();
        assert_ne!(batch.get(0).unwrap().1[4..6], ask[4..6]);
        // Whatever else a guest may claim to be an echo request is refused.
        let lie = [Span::from_slice(&[5u8; 10])];
        let refused = host.send_messages(&mut near, &plain(1), &lie, 9).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    }
    // Who may not ping is told so, and why it is.
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "1 0").unwrap();
    let mut host = sockets(WITHOUT);
    let refused = host.open_echo("127.0.0.1".parse().unwrap(), 1, FLOW).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    assert!(host.ping_refused);
    // Without a route a ping is an error of this host.
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
    host.open_echo("192.0.2.1".parse().unwrap(), 1, FLOW).unwrap_err();
}
