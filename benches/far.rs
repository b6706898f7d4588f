//! Peers that are far away: `pasta` and `passt` in front of a wire with a delay, beside TCP over
//! the same wire from the host itself. Prints tables. Needs root, like the tests.
//!
//! `cargo bench --bench far [ROUNDS [SECONDS]]`; `PEER=/path/to/pasta` measures another program in
//! the same rounds, and `GUEST=1` a user-mode Linux guest on `passt --vhost-user` too.
//! `RTTS=1,20,100` (milliseconds), `CONTROLS=bbr,reno`, `WMEM=4,64` (MiB, the maximum of
//! `tcp_wmem`), `LOSS=0` (of a million) and `ONLY=streams,load` choose what is measured. The
//! second table is a wire of 100 Mbit/s with 20 ms and a queue of 1 MB, and shows who waits how long
//! while one uploads: a ping beside the stream, and what is written to the stream itself, with and
//! without a bound (TCP_NOTSENT_LOWAT) where it is written. `BOUND=131072` sets one for the sockets
//! of the host, on which both programs stand.

#![allow(dead_code, unreachable_pub, reason = "the modules of the tests have more than is used")]

#[path = "../tests/common/guest.rs"]
mod guest;
#[path = "../tests/common/net.rs"]
mod net;
#[path = "../tests/common/tapped.rs"]
mod tapped;
#[path = "../tests/common/wire.rs"]
mod wire;

use guest::Guest;
use net::{FAR4, HOST4, Lab, Namespace, Passt, TcpCounters};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tapped::Pasta;
use wire::{Line, Wire};

/// Ports of servers at the far end, and in the namespace that is served.
const FAR: u16 = 5300;
const INSIDE: u16 = 6000;

/// Figures of all rounds by row.
type Table = BTreeMap<String, Vec<Vec<f64>>>;

struct Bench {
    programs: Vec<(&'static str, OsString)>,
    seconds: u32,
    only: String,
    loss: u32,
}

fn main() {
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<u32>().ok());
    let (rounds, seconds) = (numbers.next().unwrap_or(3), numbers.next().unwrap_or(6));
    net::need("iperf3", "iperf3");
    net::need("ping", "iputils-ping");
    let list = |name: &str, default: &str| -> Vec<String> {
        let text = std::env::var(name).unwrap_or_else(|_| default.to_owned());
        text.split(',').map(str::to_owned).collect()
    };
    let mut programs = vec![("ours", OsString::from(env!("CARGO_BIN_EXE_pasta")))];
    programs.extend(std::env::var_os("PEER").map(|peer| ("peer", peer)));
    let loss = std::env::var("LOSS").map_or(0, |loss| loss.parse().expect("a number"));
    let only = std::env::var("ONLY").unwrap_or_default();
    let bench = Bench { programs, seconds, only, loss };
    let allowed = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
        .expect("Linux has it");
    let (mut streams, mut load) = (Table::new(), Table::new());
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for control in list("CONTROLS", &allowed.trim().replace(' ', ",")) {
            if bench.wants("streams") {
                for rtt in list("RTTS", "1,20,100") {
                    for wmem in list("WMEM", "4,64") {
                        bench.streams(&control, &rtt, &wmem, &mut streams);
                    }
                }
            }
            if bench.wants("load") {
                bench.load(&control, &mut load);
            }
        }
    }
    let columns = ["Gbit/s", "direct", "retrans", "timeouts", "far retr", "peak MiB"];
    print("streams", &columns, &streams);
    let columns = ["Mbit/s", "ping ms", "p50 ms", "p99 ms", "KiB ahead"];
    print("one upload of 100 Mbit/s, 20 ms", &columns, &load);
    println!("medians of the rounds; 'direct' is against TCP of the host over the same wire,");
    println!("'retrans' are those of the kernel inside, 'far retr' those of the host's kernel");
}

impl Bench {
    fn wants(&self, what: &str) -> bool {
        self.only.is_empty() || self.only.split(',').any(|only| only == what)
    }

    /// A lab whose far end is far.
    fn lab(line: Line, control: &str) -> (Lab, Wire) {
        let lab = Lab::without_addresses();
        lab.host.ip("link del eth0");
        let wire = Wire::lay([&lab.host, &lab.far], "eth0", line);
        lab.connect();
        if let Ok(bound) = std::env::var("BOUND") {
            lab.host.sysctl("net/ipv4/tcp_notsent_lowat", &bound);
        }
        for namespace in [&lab.host, &lab.far] {
            namespace.ip("link set eth0 txqueuelen 10000");
            namespace.sysctl("net/ipv4/tcp_congestion_control", control);
        }
        (lab, wire)
    }

    /// One stream each way over each path.
    fn streams(&self, control: &str, rtt: &str, wmem: &str, table: &mut Table) {
        let millis: u64 = rtt.parse().expect("milliseconds");
        let line = Line::long(Duration::from_micros(millis * 500));
        let (lab, _wire) = Self::lab(Line { loss: self.loss, ..line }, control);
        let most = wmem.parse::<u32>().expect("MiB") << 20;
        for namespace in [&lab.host, &lab.far] {
            namespace.sysctl("net/ipv4/tcp_wmem", &format!("4096 16384 {most}"));
            namespace.sysctl("net/ipv4/tcp_rmem", &format!("4096 131072 {}", most.max(32 << 20)));
        }
        let _far = Server::iperf3(&lab.far, FAR);
        let row =
            |way: &str, what: &str| format!("{way:<4}{rtt:>4} ms {control:<6}{wmem:>3} {what}");
        let mut direct = [0.0; 2];
        for (way, reverse) in [("out", false), ("in", true)] {
            let before = counters(&lab.host);
            let speed = self.iperf3(&lab.host, FAR4, FAR, reverse);
            let again = counters(&lab.host).since(before).retransmitted;
            let figures = vec![speed / 1e9, 1.0, 0.0, 0.0, to_f64(again)];
            table.entry(row(way, "direct")).or_default().push(figures);
            direct[usize::from(reverse)] = speed;
        }
        for (name, program) in &self.programs {
            let pasta = Pasta::start(&lab, program, &["-t", "6000"]);
            let _inside = Server::iperf3(&pasta.inside, INSIDE);
            for (way, from, to, port, direct) in [
                ("out", &pasta.inside, FAR4, FAR, direct[0]),
                ("in", &lab.far, HOST4, INSIDE, direct[1]),
            ] {
                let before = (counters(&pasta.inside), counters(&lab.host));
                let speed = self.iperf3(from, to, port, false);
                let inside = counters(&pasta.inside).since(before.0);
                let host = counters(&lab.host).since(before.1);
                let figures = vec![
                    speed / 1e9,
                    speed / direct,
                    to_f64(inside.retransmitted),
                    to_f64(inside.timeouts),
                    to_f64(host.retransmitted),
                    to_f64(pasta.memory_kib("VmHWM:")) / 1024.0,
                ];
                table.entry(row(way, &format!("tap {name}"))).or_default().push(figures);
            }
        }
        if std::env::var_os("GUEST").is_some() {
            let program = OsString::from(env!("CARGO_BIN_EXE_passt"));
            let passt = Passt::start_program(&lab, &program, &[]);
            let mut guest = Guest::uml(&lab, Some(passt.socket()));
            guest.ok("guest-up");
            for (way, option, direct) in [("out", "", direct[0]), ("in", "-R", direct[1])] {
                let before = (guest.tcp_counters(), counters(&lab.host));
                let command = format!("iperf3 -J -t {} -c {FAR4} -p {FAR} {option}", self.seconds);
                let report = guest.ok(&command);
                let speed = value(after(&report, "\"sum_received\""), "\"bits_per_second\"");
                let inside = guest.tcp_counters().since(before.0);
                let figures = vec![
                    speed / 1e9,
                    speed / direct,
                    to_f64(inside.retransmitted),
                    to_f64(inside.timeouts),
                    to_f64(counters(&lab.host).since(before.1).retransmitted),
                    to_f64(passt.peak_memory_kib()) / 1024.0,
                ];
                table.entry(row(way, "vhost-user ours")).or_default().push(figures);
            }
        }
    }

    fn iperf3(&self, from: &Namespace, to: IpAddr, port: u16, reverse: bool) -> f64 {
        let mut command = from.command("iperf3");
        command.args(["-J", "-c", &to.to_string(), "-p", &port.to_string()]);
        command.args(["-t", &self.seconds.to_string()]);
        command.args(reverse.then_some("-R"));
        let output = command.stdin(Stdio::null()).output().expect("cannot run iperf3");
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        value(after(&report, "\"sum_received\""), "\"bits_per_second\"")
    }

    /// How long things take while one uploads over a slow wire.
    fn load(&self, control: &str, table: &mut Table) {
        let slow =
            Line { rate: Some((100_000_000, 1_000_000)), ..Line::long(Duration::from_millis(10)) };
        let (lab, _wire) = Self::lab(slow, control);
        for (label, bound) in [("as it is", "4294967295"), ("bounded", "131072")] {
            let usual = std::env::var("BOUND").unwrap_or_else(|_| "4294967295".to_owned());
            let mut measure = |what: &str, from: &Namespace| {
                from.sysctl("net/ipv4/tcp_notsent_lowat", bound);
                let figures = self.upload(&lab.far, from);
                from.sysctl("net/ipv4/tcp_notsent_lowat", &usual);
                table.entry(format!("{control:<6}{label:<9} {what}")).or_default().push(figures);
            };
            measure("direct", &lab.host);
            for (name, program) in &self.programs {
                let pasta = Pasta::start(&lab, program, &[]);
                measure(&format!("tap {name}"), &pasta.inside);
            }
        }
    }

    /// Writes as fast as it can be written, each record with its time.
    fn upload(&self, far: &Namespace, from: &Namespace) -> Vec<f64> {
        const RECORD: usize = 4096;
        let listener =
            far.within(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("listens");
        let server = SocketAddr::new(FAR4, listener.local_addr().expect("has one").port());
        let (start, time) = (Instant::now(), Duration::from_secs(self.seconds.into()));
        let written = AtomicU64::new(0);
        let mut ahead = 0;
        let mut delays = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let (mut stream, _) = listener.accept().expect("accepts");
                let mut record = [0; RECORD];
                let mut delays = Vec::new();
                let mut over = None;
                while stream.read_exact(&mut record).is_ok() {
                    let sent = u64::from_ne_bytes(record[..8].try_into().expect("8 bytes"));
                    let now = start.elapsed();
                    delays.push((now, now.saturating_sub(Duration::from_nanos(sent))));
                    if now > time && over.is_none() {
                        let read = (delays.len() * RECORD) as u64;
                        over = Some(written.load(Ordering::Relaxed).saturating_sub(read));
                    }
                }
                (delays, over.unwrap_or(0))
            });
            from.within(|| {
                let mut stream = TcpStream::connect(server).expect("connects");
                let mut record = [0; RECORD];
                while start.elapsed() < time {
                    let now = start.elapsed().as_nanos() as u64;
                    record[..8].copy_from_slice(&now.to_ne_bytes());
                    stream.write_all(&record).expect("writes");
                    written.fetch_add(RECORD as u64, Ordering::Relaxed);
                }
            });
            let (delays, over) = reader.join().expect("reads");
            ahead = over;
            delays
        });
        let speed = to_f64((delays.len() * RECORD) as u64 / 1024) * 8.192e-3
            / delays.last().map_or(1.0, |(at, _)| at.as_secs_f64());
        // The start is another matter.
        delays.retain(|(at, _)| *at > time / 2);
        let mut delays: Vec<f64> =
            delays.into_iter().map(|(_, delay)| delay.as_secs_f64() * 1e3).collect();
        delays.sort_by(f64::total_cmp);
        let at = |part: usize| delays.get(delays.len() * part / 100).copied().unwrap_or(0.0);
        vec![speed, self.ping(far, from), at(50), at(99), to_f64(ahead / 1024)]
    }

    /// The mean time of a ping while a stream is uploaded, in milliseconds.
    fn ping(&self, far: &Namespace, from: &Namespace) -> f64 {
        let _server = Server::iperf3(far, FAR);
        let mut upload = from.command("iperf3");
        upload.args(["-c", &FAR4.to_string(), "-p", &FAR.to_string(), "-t", "4"]);
        let mut upload = upload.stdout(Stdio::null()).stdin(Stdio::null()).spawn().expect("starts");
        sleep(Duration::from_secs(1));
        let mut ping = from.command("ping");
        ping.args(["-q", "-i", "0.1", "-c", "25", &FAR4.to_string()]);
        let output = ping.stdin(Stdio::null()).output().expect("cannot run ping");
        let _ = upload.wait();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let times = text.rsplit_once("= ").map_or("", |(_, times)| times);
        times.split('/').nth(1).and_then(|mean| mean.parse().ok()).unwrap_or(f64::NAN)
    }
}

/// A server in a namespace; killed on drop.
struct Server(Child);

impl Server {
    fn iperf3(namespace: &Namespace, port: u16) -> Self {
        let mut command: Command = namespace.command("iperf3");
        command.args(["-s", "-p", &port.to_string()]).stdout(Stdio::null()).stdin(Stdio::null());
        let child = command.spawn().expect("cannot run iperf3");
        let server = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        while matches!(namespace.within(|| TcpStream::connect(server)),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused)
        {
            sleep(Duration::from_millis(5));
        }
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What follows `name`.
fn after<'a>(text: &'a str, name: &str) -> &'a str {
    text.rsplit_once(name).unwrap_or_else(|| panic!("no {name} in {text}")).1
}

/// The number behind `name`.
fn value(text: &str, name: &str) -> f64 {
    let number = after(text, name).trim_start_matches([':', ' ', '\t']);
    let end =
        number.find(|c: char| !c.is_ascii_digit() && !".e+-".contains(c)).unwrap_or(number.len());
    number[..end].parse().unwrap_or_else(|_| panic!("no number behind {name} in {text}"))
}

/// The counters of a namespace's TCP.
fn counters(namespace: &Namespace) -> TcpCounters {
    let read = || {
        // /proc/net is that of the process; this is that of the thread.
        ["snmp", "netstat"].map(|name| {
            std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).expect("is there")
        })
    };
    TcpCounters::parse(&namespace.within(read).concat())
}

fn print(title: &str, columns: &[&str], table: &Table) {
    if table.is_empty() {
        return;
    }
    print!("{title:<36}");
    columns.iter().for_each(|column| print!("{column:>10}"));
    println!();
    for (row, runs) in table {
        print!("  {row:<34}");
        for column in 0..columns.len() {
            let mut values: Vec<f64> =
                runs.iter().filter_map(|run| run.get(column)).copied().collect();
            values.sort_by(f64::total_cmp);
            match values.get(values.len() / 2) {
                Some(value) => print!("{value:>10.2}"),
                None => print!("{:>10}", "-"),
            }
        }
        println!();
    }
    println!();
}

fn to_f64(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
