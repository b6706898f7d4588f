//! `pasta` between two network namespaces: streams, datagrams, answers, connections and starts.
//! Prints tables (targets T1 to T9 and T12). Needs root, like the tests.
//!
//! `cargo bench --bench pasta [ROUNDS [SECONDS]]`; `PEER=/path/to/pasta` measures another program in
//! the same rounds. `MTUS=1500,65520`, `STREAMS=1,8`, `SIZES=64,1400` and
//! `ONLY=streams,datagrams,answers,starts` choose what is measured. On shared machines absolute figures drift by a factor of two: what
//! a round measures is comparable, with TCP over a veth pair and over the loopback interface in
//! the same round, and medians over rounds are printed.

#![allow(dead_code, unreachable_pub, reason = "the modules of the tests have more than is used")]

#[path = "load/datagrams.rs"]
mod datagrams;
#[path = "../tests/common/net.rs"]
mod net;
#[path = "../tests/common/tapped.rs"]
mod tapped;

use datagrams::{Load, Outcome};
use net::{GATEWAY4, HOST4, Lab, Namespace, TcpCounters};
use nix::sys::socket::{Shutdown, shutdown};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};
use tapped::Pasta;

/// Ports of servers outside, and inside; those of short connections are the next ones.
const OUTSIDE: u16 = 5300;
const INSIDE: u16 = 6000;
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Clients that open connections at the same time.
const CLIENTS: usize = 16;

/// Datagrams under way that no buffer minds.
const WINDOW: Option<u64> = Some(256);

/// Figures of all rounds by row; the columns differ from table to table.
type Table = BTreeMap<String, Vec<Vec<f64>>>;

/// What has arrived of one TCP stream or of several.
struct Stream {
    /// Bits a second.
    speed: f64,
    bytes: f64,
    /// The slowest, as a share of the fastest.
    fair: f64,
}

struct Bench {
    lab: Lab,
    programs: Vec<(&'static str, OsString)>,
    seconds: u32,
    mtus: Vec<u32>,
    streams: Vec<u32>,
    sizes: Vec<u32>,
    only: String,
}

fn main() {
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<u32>().ok());
    let (rounds, seconds) = (numbers.next().unwrap_or(3), numbers.next().unwrap_or(3));
    net::need("iperf3", "iperf3");
    net::need("sockperf", "sockperf");
    let list = |name: &str, default: &str| -> Vec<u32> {
        let text = std::env::var(name).unwrap_or_else(|_| default.to_owned());
        text.split(',').map(|word| word.parse().expect("numbers")).collect()
    };
    let mut programs = vec![("ours", OsString::from(env!("CARGO_BIN_EXE_pasta")))];
    programs.extend(std::env::var_os("PEER").map(|peer| ("peer", peer)));
    let bench = Bench {
        lab: Lab::new(),
        programs,
        seconds,
        mtus: list("MTUS", "1500,9000,65520"),
        streams: list("STREAMS", "1,2,8"),
        sizes: list("SIZES", "1400"),
        only: std::env::var("ONLY").unwrap_or_default(),
    };
    let (mut streams, mut datagrams, mut answers, mut starts) =
        (Table::new(), Table::new(), Table::new(), Table::new());
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        if bench.wants("streams") {
            bench.streams(&mut streams);
        }
        if bench.wants("datagrams") {
            bench.datagrams(&mut datagrams);
        }
        if bench.wants("answers") {
            bench.answers(&mut answers);
        }
        if bench.wants("starts") {
            bench.starts(&mut starts);
        }
    }
    let columns =
        ["Gbit/s", "of veth", "of loop", "fair", "retrans", "timeouts", "CPU s/GB", "peak MiB"];
    print("streams", &columns, &streams);
    let columns = ["sent kpps", "read kpps", "lost %", "elsewh. %", "CPU s/M"];
    print("datagrams", &columns, &datagrams);
    let columns = ["TCP us", "UDP us", "of loop T", "of loop U", "conn/s"];
    print("round trips, and connections of 16 clients", &columns, &answers);
    print("pasta --config-net -- true", &["ms", "idle MiB", "shared"], &starts);
    println!(
        "fair: the slowest stream as a share of the fastest; elsewh.: no full buffer accounts for it"
    );
    println!("idle: of all its processes; shared: what they have in common is counted once");
    println!("medians of the rounds; counters are those of the namespace's kernel");
}

impl Bench {
    fn wants(&self, what: &str) -> bool {
        self.only.is_empty() || self.only.split(',').any(|only| only == what)
    }

    fn pasta(&self, program: &OsStr, mtu: u32, more: &[&str]) -> Pasta {
        let ports = ["-t", "6000-6002", "-u", "6000-6002", "-T", "5300-5302", "-U", "5300-5302"];
        let mtu = mtu.to_string();
        let options = [&["-m", &mtu], &ports[..], more].concat();
        Pasta::start(&self.lab, program, &options)
    }

    /// TCP streams over each path.
    fn streams(&self, table: &mut Table) {
        let _server = Server::iperf3(&self.lab.host, OUTSIDE);
        for &streams in &self.streams {
            let loopback = self.iperf3(&self.lab.host, LOCALHOST, OUTSIDE, streams).speed;
            let veth = self.veth(streams);
            let own = |speed: f64| vec![speed / 1e9, speed / veth, speed / loopback];
            table.entry(format!("{streams} x loopback")).or_default().push(own(loopback));
            table.entry(format!("{streams} x veth")).or_default().push(own(veth));
            for (name, program) in &self.programs {
                for &mtu in &self.mtus {
                    let pasta = self.pasta(program, mtu, &[]);
                    let _server = Server::iperf3(&pasta.inside, INSIDE);
                    let mut paths = vec![
                        ("tap out", &pasta.inside, GATEWAY4, OUTSIDE),
                        ("tap in", &self.lab.host, HOST4, INSIDE),
                    ];
                    if mtu == *self.mtus.last().unwrap_or(&0) {
                        paths.push(("splice out", &pasta.inside, LOCALHOST, OUTSIDE));
                        paths.push(("splice in", &self.lab.host, LOCALHOST, INSIDE));
                    }
                    for (path, from, to, port) in paths {
                        let figures = self.path(&pasta, (from, to, port), streams, veth, loopback);
                        let row = format!("{streams} x {path:<10} {mtu:>6} {name}");
                        table.entry(row).or_default().push(figures);
                    }
                }
            }
        }
    }

    fn path(
        &self,
        pasta: &Pasta,
        (from, to, port): (&Namespace, IpAddr, u16),
        streams: u32,
        veth: f64,
        loopback: f64,
    ) -> Vec<f64> {
        let (cpu, counters) = (pasta.cpu_seconds(), counters(&pasta.inside));
        let Stream { speed, bytes, fair } = self.iperf3(from, to, port, streams);
        let cpu = pasta.cpu_seconds() - cpu;
        let TcpCounters { retransmitted, timeouts, .. } =
            self::counters(&pasta.inside).since(counters);
        vec![
            speed / 1e9,
            speed / veth,
            speed / loopback,
            fair,
            to_f64(retransmitted),
            to_f64(timeouts),
            cpu / (bytes / 1e9),
            to_f64(pasta.memory_kib("VmHWM:")) / 1024.0,
        ]
    }

    /// TCP between two namespaces that a veth pair joins.
    fn veth(&self, streams: u32) -> f64 {
        let far = Namespace::alone("veth");
        let far_path = far.path();
        let name = far_path.file_name().expect("has a name").to_string_lossy().into_owned();
        self.lab.host.ip(&format!("link add v0 type veth peer name v0 netns {name}"));
        for (namespace, address) in [(&self.lab.host, "10.77.0.1/24"), (&far, "10.77.0.2/24")] {
            namespace.ip(&format!("addr add {address} dev v0"));
            namespace.ip("link set v0 up");
        }
        self.iperf3(&far, IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1)), OUTSIDE, streams).speed
    }

    fn iperf3(&self, from: &Namespace, to: IpAddr, port: u16, streams: u32) -> Stream {
        let options =
            ["-t".to_owned(), self.seconds.to_string(), "-P".to_owned(), streams.to_string()];
        let report = iperf3(from, to, port, &options);
        let sum = after(&report, "\"sum_received\"");
        let each =
            report.split("\"receiver\"").skip(1).map(|text| value(text, "\"bits_per_second\""));
        let each: Vec<f64> = each.take(streams as usize).collect();
        let slowest = each.iter().copied().fold(f64::INFINITY, f64::min);
        Stream {
            speed: value(sum, "\"bits_per_second\""),
            bytes: value(sum, "\"bytes\""),
            fair: slowest / each.iter().copied().fold(0.0, f64::max),
        }
    }

    /// UDP over each path: floods, and with as many under way as no buffer minds.
    fn datagrams(&self, table: &mut Table) {
        let (host, time) = (&self.lab.host, Duration::from_secs(self.seconds.into()));
        for load in self.loads() {
            let direct = |to| {
                let to = SocketAddr::new(to, OUTSIDE);
                load.run(host, host, to, OUTSIDE, time)
            };
            let row = format!("{} loopback", title(&load));
            table.entry(row).or_default().push(self.figures(&load, direct(LOCALHOST), 0, 0.0));
            for (name, program) in &self.programs {
                let pasta = self.pasta(program, 65520, &[]);
                let inside = &pasta.inside;
                for (path, from, to, port, at) in [
                    ("tap out", inside, GATEWAY4, OUTSIDE, host),
                    ("tap in", host, HOST4, INSIDE, inside),
                    ("splice out", inside, LOCALHOST, OUTSIDE, host),
                    ("splice in", host, LOCALHOST, INSIDE, inside),
                ] {
                    let (cpu, full) = (pasta.cpu_seconds(), full(&self.lab, inside));
                    let to = SocketAddr::new(to, port);
                    let outcome = load.run(from, at, to, port, time);
                    let full = self::full(&self.lab, inside) - full;
                    let figures = self.figures(&load, outcome, full, pasta.cpu_seconds() - cpu);
                    let row = format!("{} {path:<10} {name}", title(&load));
                    table.entry(row).or_default().push(figures);
                }
            }
        }
    }

    fn loads(&self) -> impl Iterator<Item = Load> {
        let kinds = [(false, None), (false, WINDOW), (true, None), (true, WINDOW)];
        let load = move |size| kinds.map(|(runs, window)| Load { size, runs, window });
        self.sizes.iter().flat_map(move |&size| load(size as usize))
    }

    fn figures(&self, load: &Load, outcome: Outcome, full: u64, cpu: f64) -> Vec<f64> {
        let rate = |count: u64| to_f64(count) / f64::from(self.seconds) / 1e3;
        let lost = outcome.offered.saturating_sub(outcome.read);
        let share = |count: u64| 100.0 * to_f64(count) / to_f64(outcome.offered.max(1));
        vec![
            rate(outcome.offered),
            rate(outcome.read),
            share(lost),
            // A run that finds no room may count as one.
            share(lost.saturating_sub(full * load.run_length() as u64)),
            cpu / (to_f64(outcome.read.max(1)) / 1e6),
        ]
    }

    /// Round trips and short connections over each path.
    fn answers(&self, table: &mut Table) {
        let host = &self.lab.host;
        let _server = Server::sockperf(host, OUTSIDE);
        let here = self.round_trips(host, LOCALHOST, OUTSIDE);
        let direct = self.connections(host, host, (LOCALHOST, OUTSIDE + 1));
        let row = table.entry("loopback".to_owned()).or_default();
        row.push(vec![here.0, here.1, 1.0, 1.0, direct]);
        for (name, program) in &self.programs {
            let pasta = self.pasta(program, 65520, &[]);
            let inside = &pasta.inside;
            let _server = Server::sockperf(inside, INSIDE);
            for (path, from, at, to, port) in [
                ("tap out", inside, host, GATEWAY4, OUTSIDE),
                ("tap in", host, inside, HOST4, INSIDE),
                ("splice out", inside, host, LOCALHOST, OUTSIDE),
                ("splice in", host, inside, LOCALHOST, INSIDE),
            ] {
                let (tcp, udp) = self.round_trips(from, to, port);
                // The next port is free.
                let connections = self.connections(from, at, (to, port + 1));
                let row = table.entry(format!("{path:<10} {name}")).or_default();
                row.push(vec![tcp, udp, tcp / here.0, udp / here.1, connections]);
            }
        }
    }

    /// Microseconds of a TCP and of a UDP round trip.
    fn round_trips(&self, from: &Namespace, to: IpAddr, port: u16) -> (f64, f64) {
        let measure = |more: &[&str]| {
            let seconds = self.seconds.to_string();
            let mut command = from.command("sockperf");
            command.args(["ping-pong", "-i", &to.to_string(), "-p", &port.to_string()]);
            command.args(["-t", &seconds]).args(more).stdin(Stdio::null());
            let output = command.output().expect("cannot run sockperf");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            // It halves what it measures.
            2.0 * value(after(&text, "Latency is"), "")
        };
        (measure(&["--tcp"]), measure(&[]))
    }

    /// Connections a second, each with a request and an answer, to a server that is `at`.
    fn connections(&self, from: &Namespace, at: &Namespace, server: (IpAddr, u16)) -> f64 {
        let server = SocketAddr::from(server);
        let listen = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, server.port()));
        let listener = Arc::new(at.within(listen).expect("cannot listen"));
        let answering = Arc::clone(&listener);
        let answering = spawn(move || answer_all(&answering));
        let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
        let start = Instant::now();
        from.within(|| {
            std::thread::scope(|scope| {
                for _ in 0..CLIENTS {
                    scope.spawn(|| {
                        while !over.load(Ordering::Relaxed) {
                            ask(server).expect("no connection");
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
                sleep(Duration::from_secs(self.seconds.into()));
                over.store(true, Ordering::Relaxed);
            });
        });
        let rate = to_f64(done.into_inner()) / start.elapsed().as_secs_f64();
        shutdown(listener.as_raw_fd(), Shutdown::Both).expect("it listens");
        answering.join().expect("ends");
        rate
    }

    /// How long it takes to run a command in a network of its own.
    fn starts(&self, table: &mut Table) {
        for (name, program) in &self.programs {
            let pasta = self.pasta(program, 65520, &[]);
            let idle = ["Rss:", "Pss:"].map(|name| to_f64(pasta.memory_of_all_kib(name)) / 1024.0);
            drop(pasta);
            for _ in 0..10 {
                let mut command = self.lab.host.command(program);
                command.args(["--config-net", "--runas", "0", "-q", "--", "true"]);
                let start = Instant::now();
                let status = command.stdin(Stdio::null()).status().expect("cannot run nsenter");
                assert!(status.success(), "{name} has failed");
                let figures = [start.elapsed().as_secs_f64() * 1e3, idle[0], idle[1]];
                table.entry((*name).to_owned()).or_default().push(figures.to_vec());
            }
        }
    }
}

fn answer_all(listener: &TcpListener) {
    while let Ok((mut stream, _)) = listener.accept() {
        spawn(move || {
            let mut request = [0; 64];
            if stream.read(&mut request).is_ok_and(|n| n > 0) {
                let _ = stream.write_all(&request);
            }
        });
    }
}

fn ask(server: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(server)?;
    stream.write_all(&[7; 64])?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    assert_eq!(answer.len(), 64);
    Ok(())
}

/// A server in a namespace; killed on drop.
struct Server(Child);

impl Server {
    fn iperf3(namespace: &Namespace, port: u16) -> Self {
        let mut command = namespace.command("iperf3");
        command.args(["-s", "-p", &port.to_string()]);
        Self::start(command, namespace, port)
    }

    /// Both for UDP and TCP; the first is ready before the second, which is waited for.
    fn sockperf(namespace: &Namespace, port: u16) -> [Self; 2] {
        let server = |protocol: &[&str]| {
            let mut command = namespace.command("sockperf");
            command.args(["server", "-p", &port.to_string()]).args(protocol);
            command
        };
        let mut udp = server(&[]);
        let udp = udp.stdout(Stdio::null()).stdin(Stdio::null()).spawn().expect("starts");
        [Self(udp), Self::start(server(&["--tcp"]), namespace, port)]
    }

    /// Returns when it listens.
    fn start(mut command: Command, namespace: &Namespace, port: u16) -> Self {
        let child = command.stdout(Stdio::null()).stdin(Stdio::null()).spawn().expect("starts");
        let server = SocketAddr::new(LOCALHOST, port);
        while namespace.within(|| TcpStream::connect(server)).is_err() {
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

fn iperf3(from: &Namespace, to: IpAddr, port: u16, options: &[String]) -> String {
    let mut command = from.command("iperf3");
    command.args(["-J", "-c", &to.to_string(), "-p", &port.to_string()]).args(options);
    let output = command.stdin(Stdio::null()).output().expect("cannot run iperf3");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What follows `name`.
fn after<'a>(text: &'a str, name: &str) -> &'a str {
    text.rsplit_once(name).unwrap_or_else(|| panic!("no {name} in {text}")).1
}

/// The number behind `name`.
fn value(text: &str, name: &str) -> f64 {
    let (_, rest) = text.split_once(name).unwrap_or_else(|| panic!("no {name} in {text}"));
    let number = rest.trim_start_matches([':', ' ', '\t']);
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

/// Datagrams that have found a full buffer: that of a socket, or the queue of the tap.
fn full(lab: &Lab, inside: &Namespace) -> u64 {
    let sockets = |namespace: &Namespace| {
        let read = || std::fs::read_to_string("/proc/thread-self/net/snmp").expect("is there");
        let text = namespace.within(read);
        let mut udp = text.lines().filter(|line| line.starts_with("Udp:"));
        let (names, values) = (udp.next().expect("names"), udp.next().expect("values"));
        let mut figures = names.split(' ').zip(values.split(' '));
        let wanted = figures.find(|(name, _)| *name == "RcvbufErrors").expect("is counted");
        wanted.1.parse::<u64>().expect("a number")
    };
    let read = || std::fs::read_to_string("/proc/thread-self/net/dev").expect("is there");
    let text = inside.within(read);
    let tap = text.lines().find_map(|line| line.trim().strip_prefix(tapped::INTERFACE));
    // Behind the name there are eight figures of what was received; then bytes, packets, errors.
    let dropped = tap.and_then(|figures| figures.split_whitespace().nth(12));
    sockets(&lab.host) + sockets(inside) + dropped.map_or(0, |n| n.parse().expect("a number"))
}

fn title(load: &Load) -> String {
    let Load { size, runs, window } = load;
    let (how, under_way) =
        (if *runs { "runs" } else { "each" }, window.map_or("flood", |_| "window"));
    format!("{size:>5} {how} {under_way:<6}")
}

fn print(title: &str, columns: &[&str], table: &Table) {
    if table.is_empty() {
        return;
    }
    print!("{title:<34}");
    columns.iter().for_each(|column| print!("{column:>10}"));
    println!();
    for (row, runs) in table {
        print!("  {row:<32}");
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
