//! Sockets of another network namespace, from the process that stays there.
//!
//! The process forks, so it must have one thread: no test harness.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::wait;
use nix::unistd::Pid;
use passt::host::inside::{Inside, StartError, Wanted};
use passt::sys::socket::{self, Family};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::process::ExitCode;

const TESTS: &[(&str, fn())] = &[
    ("sockets_belong_to_the_namespace_inside", sockets_belong_to_the_namespace_inside),
    ("everything_that_can_be_wanted_is_made", everything_that_can_be_wanted_is_made),
    ("who_cannot_enter_says_why", who_cannot_enter_says_why),
    ("what_locking_up_says_is_reported", what_locking_up_says_is_reported),
    ("who_does_not_answer_is_not_waited_for_without_end", who_does_not_answer),
    ("the_end_of_the_process_is_seen", the_end_of_the_process_is_seen),
    ("whoever_is_inside_keeps_nothing_and_ends_with_us", ends_with_us),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let told = |option: &str| arguments.iter().any(|a| a == option);
    if told("--list") {
        // nextest asks a second time, for the ignored ones; there are none.
        let shown = if told("--ignored") { &[] } else { TESTS };
        shown.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let wanted = |name: &str| {
        let mut names = arguments.iter().filter(|a| !a.starts_with('-')).peekable();
        names.peek().is_none() || names.any(|part| name.contains(part.as_str()))
    };
    let run = TESTS.iter().filter(|(name, _)| wanted(name));
    let mut passed = 0;
    for (name, test) in run {
        test();
        println!("test {name} ... ok");
        passed += 1;
    }
    println!("\ntest result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
    ExitCode::SUCCESS
}

/// A network namespace of its own.
fn enter() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}

fn inside() -> Inside {
    Inside::start(enter, || Ok(())).expect("needs root, for a network namespace")
}

/// Who starts a process inside has waited for its end.
fn assert_nobody_is_left() {
    assert_eq!(wait(), Err(Errno::ECHILD));
}

fn sockets_belong_to_the_namespace_inside() {
    let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port of ours");
    let here = service.local_addr().expect("is bound");
    let mut inside = inside();
    // More than are fetched at once.
    for _ in 0..40 {
        let stream = inside.get(Wanted::Stream4).expect("is made");
        let refused = socket::connect(stream.as_fd(), &here).expect_err("is nowhere near");
        assert_eq!(refused.raw_os_error(), Some(libc::ENETUNREACH), "its loopback is down");
    }
    // The same port is free there.
    let stream = inside.get(Wanted::stream(Family::V4)).expect("is made");
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, here.port()));
    socket::bind(stream.as_fd(), &any).expect("nobody has it there");
    drop(inside);
    assert_nobody_is_left();
}

fn everything_that_can_be_wanted_is_made() {
    let mut inside = inside();
    for wanted in [
        Wanted::Stream4,
        Wanted::Stream6,
        Wanted::datagram(Family::V4),
        Wanted::datagram(Family::V6),
        Wanted::Route,
        Wanted::Diag,
        Wanted::Tun,
    ] {
        inside.get(wanted).unwrap_or_else(|e| panic!("{wanted:?}: {e}"));
    }
    drop(inside);
    assert_nobody_is_left();
}

fn who_cannot_enter_says_why() {
    let refuse = || Err(io::Error::from_raw_os_error(libc::EPERM));
    let error = Inside::start(refuse, || Ok(())).expect_err("cannot enter");
    let StartError::Enter(error) = error else { panic!("{error:?}") };
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    assert_nobody_is_left();
    // Who gets inside, and no further, is no case for another namespace.
    let die = || std::process::exit(0);
    let error = Inside::start(die, || Ok(())).expect_err("nobody is there");
    assert!(matches!(error, StartError::Process(_)), "{error:?}");
    assert_nobody_is_left();
    let (stop, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || wait.recv());
    let error = Inside::start(|| Ok(()), || Ok(())).expect_err("there are other threads");
    let StartError::Process(error) = error else { panic!("{error:?}") };
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    drop(stop);
    assert!(thread.join().expect("ends").is_err());
}

fn what_locking_up_says_is_reported() {
    let fail = || Err(io::Error::from_raw_os_error(libc::ENOSYS));
    let mut inside = Inside::start(enter, fail).expect("needs root, for a network namespace");
    let error = inside.confine().expect_err("cannot be locked up");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSYS));
    drop(inside);
    assert_nobody_is_left();
}

/// Waits until there is something to read, or nobody there.
fn wait_for(inside: &Inside) -> PollFlags {
    let mut fds = [PollFd::new(inside.fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::NONE).expect("polls");
    fds[0].revents().expect("are known")
}

fn who_does_not_answer() {
    let mut inside = inside();
    inside.confine().expect("does nothing here");
    kill(child(), Signal::SIGSTOP).expect("is ours");
    for wanted in [Wanted::Stream4, Wanted::Stream6, Wanted::Datagram4] {
        let error = inside.get(wanted).expect_err("nobody answers");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{wanted:?}");
    }
    kill(child(), Signal::SIGCONT).expect("is ours");
    // The answer to the first question, which is no answer to another one.
    assert_eq!(wait_for(&inside), PollFlags::POLLIN);
    let datagram = inside.get(Wanted::Datagram6).expect("is made");
    let address = socket::local_address(datagram.as_fd()).expect("has one");
    assert!(address.is_ipv6(), "{address}");
    inside.get(Wanted::Stream4).expect("is made");
    drop(inside);
    assert_nobody_is_left();
}

fn the_end_of_the_process_is_seen() {
    let mut inside = inside();
    kill(child(), Signal::SIGKILL).expect("is ours");
    assert!(wait_for(&inside).contains(PollFlags::POLLHUP));
    let kind = inside.get(Wanted::Stream4).expect_err("nobody is there").kind();
    assert!([io::ErrorKind::BrokenPipe, io::ErrorKind::UnexpectedEof].contains(&kind), "{kind}");
    drop(inside);
    assert_nobody_is_left();
}

/// The process inside.
fn child() -> Pid {
    let children = fs::read_to_string("/proc/thread-self/children").expect("says who they are");
    Pid::from_raw(children.trim().parse().expect("one child"))
}

fn ends_with_us() {
    let (ours, theirs) = nix::unistd::pipe().expect("a pipe");
    let mut inside = inside();
    let pid = child();
    inside.confine().expect("does nothing here");
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("is alive").count();
    assert_eq!(open, 4, "three standard streams and the channel");
    drop(theirs);
    let mut byte = [0];
    assert_eq!(nix::unistd::read(&ours, &mut byte), Ok(0), "nobody else holds the pipe open");
    drop(inside);
    assert_nobody_is_left();
}
