//! What listening costs: ports by the thousand, and looking who listens. Needs root, like the
//! tests.
//!
//! `cargo bench --bench ports`. The limit of open files bounds how many ports there can be: three
//! quarters of it. `-t all -u all` takes some 75 000 with the kernel's usual ephemeral ports.

#![allow(dead_code, unreachable_pub, reason = "the modules of the tests have more than is used")]

#[path = "../tests/common/net.rs"]
mod net;

use net::{Namespace, TempDir, need};
use nix::sys::resource::{Resource, getrlimit};
use passt::host::diag::Diag;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Looks that one figure is made of.
const LOOKS: u32 = 200;

/// How long an idle process is watched.
const IDLE: Duration = Duration::from_secs(20);

/// How often a service is started.
const SERVICES: u16 = 21;

fn main() {
    need("ip", "iproute2");
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit");
    let most = u16::try_from(hard / 4 * 3 / 2).unwrap_or(37_000).min(37_000) / 1000 * 1000;
    println!("limit of open files: {hard}");
    println!("\n{:>12} {:>10} {:>12} {:>14}", "listeners", "ms", "RSS, MiB", "slabs, KiB each");
    for ports in [0, 1000, most] {
        start(ports);
    }
    println!("\n{:>12} {:>14}", "sockets", "us a look");
    for sockets in [0, 1000, most.min(15_000)] {
        look(sockets);
    }
    idle_and_services();
}

/// Starts `passt` with so many ports of both protocols.
fn start(ports: u16) {
    let host = Namespace::alone("ports");
    let directory = TempDir::new();
    let mut command = host.command(env!("CARGO_BIN_EXE_passt"));
    command.args(["-f", "-s"]).arg(directory.join("s"));
    if ports > 0 {
        let range = format!("10000-{}", 9999 + ports);
        command.args(["-t", &range, "-u", &range]);
    }
    let (slabs, begin) = (slabs(), Instant::now());
    let mut passt = command.stderr(Stdio::piped()).spawn().expect("cannot start passt");
    let mut lines = BufReader::new(passt.stderr.take().expect("is a pipe")).lines();
    // The summary comes behind the ports.
    let ready = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("DHCP")));
    let took = begin.elapsed();
    assert!(ready.is_some(), "it did not start");
    let grown = self::slabs().saturating_sub(slabs);
    let listeners = 2 * u64::from(ports);
    let each = if listeners == 0 { 0.0 } else { to_f64(grown) / to_f64(listeners) };
    let rss = to_f64(status(passt.id(), "VmRSS")) / 1024.0;
    println!("{listeners:>12} {:>10.1} {rss:>12.2} {each:>14.2}", took.as_secs_f64() * 1e3);
    end(&mut passt);
}

/// Looks who listens among so many sockets.
fn look(sockets: u16) {
    let host = Namespace::alone("ports");
    let each = host.within(|| {
        let any = |n: u16| TcpListener::bind(("0.0.0.0", 10_000 + n)).expect("is free");
        let _services: Vec<_> = (0..sockets).map(any).collect();
        let mut diag = Diag::open().expect("there is netlink");
        let begin = Instant::now();
        for _ in 0..LOOKS {
            diag.begin(true).expect("the kernel answers");
            while diag.step().expect("the kernel answers").is_none() {}
        }
        begin.elapsed() / LOOKS
    });
    println!("{sockets:>12} {:>14.1}", each.as_secs_f64() * 1e6);
}

/// What ports that follow services cost while nothing happens, and how soon they do.
fn idle_and_services() {
    let host = Namespace::alone("ports");
    let mut command = host.command(env!("CARGO_BIN_EXE_pasta"));
    command.args(["--config-net", "-t", "auto", "-u", "auto", "-T", "auto", "-U", "auto", "-f"]);
    // The command ends with its input, and pasta with the command.
    command.args(["--", "sh", "-c", "echo ready; exec cat"]).stdin(Stdio::piped());
    let mut pasta = command.stdout(Stdio::piped()).spawn().expect("cannot start pasta");
    let mut stdout = BufReader::new(pasta.stdout.take().expect("is a pipe"));
    stdout.read_line(&mut String::new()).expect("is text");

    std::thread::sleep(Duration::from_secs(3));
    let before = (status(pasta.id(), "voluntary_ctxt_switches"), run_time(pasta.id()));
    std::thread::sleep(IDLE);
    let wakeups = status(pasta.id(), "voluntary_ctxt_switches").saturating_sub(before.0);
    let busy = to_f64(run_time(pasta.id()).saturating_sub(before.1)) / 1e3;
    let seconds = IDLE.as_secs_f64();
    println!("\nidle, all ports automatic: {:.2} wake-ups a second", to_f64(wakeups) / seconds);
    println!("                           {:.0} us of CPU a second", busy / seconds);

    let children = format!("/proc/{0}/task/{0}/children", pasta.id());
    let children = fs::read_to_string(children).expect("it lives");
    let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let own = link(&pasta.id().to_string());
    let inside = children.split_whitespace().find(|pid| link(pid) != own).expect("a command");
    let inside = fs::File::open(format!("/proc/{inside}/ns/net")).expect("it lives");
    let mut delays: Vec<Duration> = (0..SERVICES)
        .map(|n| {
            // At any moment of the period.
            std::thread::sleep(Duration::from_millis(3000 + u64::from(n) * 43));
            let port = 20_000 + n;
            let _service = within(&inside, || TcpListener::bind(("0.0.0.0", port)).expect("free"));
            let begin = Instant::now();
            host.within(|| while TcpStream::connect(("127.0.0.1", port)).is_err() {});
            begin.elapsed()
        })
        .collect();
    delays.sort_unstable();
    let at = |index: usize| delays[index].as_secs_f64() * 1e3;
    let last = delays.len() - 1;
    println!(
        "a service is seen after:   {:.0} ms (median), {:.0} ms (most)",
        at(last / 2),
        at(last)
    );
    drop(pasta.stdin.take());
    let _ = pasta.wait();
}

fn within<T: Send>(namespace: &fs::File, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let flags = nix::sched::CloneFlags::CLONE_NEWNET;
            nix::sched::setns(namespace, flags).expect("cannot enter a namespace");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A number from `/proc/PID/status`.
fn status(pid: u32, name: &str) -> u64 {
    number(&format!("/proc/{pid}/status"), name)
}

/// Memory that the kernel holds for its own objects, in KiB.
fn slabs() -> u64 {
    number("/proc/meminfo", "SUnreclaim")
}

fn number(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).expect("the process lives");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = line.expect("the kernel tells it").split_whitespace().next().unwrap_or_default();
    value.parse().expect("a number")
}

/// Nanoseconds on a CPU so far.
fn run_time(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("the process lives");
    text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("the kernel tells it")
}

fn end(process: &mut Child) {
    let _ = process.kill();
    let _ = process.wait();
}

fn to_f64(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
