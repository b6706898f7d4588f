//! `passt` on its stream socket, and a network namespace as the guest: iperf3 in it against the far
//! end of the lab. Prints a table beside any other program that the caller names. Needs root.
//!
//! `cargo bench --bench stream [ROUNDS [SECONDS]]`; `PEER=/path/to/passt` measures another program
//! in the same rounds. A guest under QEMU without KVM is slower than what is measured here: in its
//! place a kernel that is as fast as the host's hands its frames to a pump, which says what QEMU's
//! `-netdev stream` says. Like QEMU's, its interface has no offloads: frames up to the MTU, whole
//! checksums; but it believes those of the frames that it is given. The pump moves many frames a
//! call, and is the same for both programs. Into the guest it is what limits the figures at the
//! large MTU: CPU time says more there.

#![allow(dead_code, unreachable_pub, reason = "the modules of the tests have more than is used")]

#[path = "../tests/common/net.rs"]
mod net;

use net::{FAR4, HOST4, Lab, Namespace, Passt, TcpCounters};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use passt::sys::tap;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::thread::JoinHandle;

const COLUMNS: [&str; 8] =
    ["Gbit/s", "retrans", "timeouts", "duplic", "o-o-ord", "lost %", "CPU s/GB", "peak MiB"];

/// The figures of all rounds, by row.
type Table = BTreeMap<String, Vec<[f64; COLUMNS.len()]>>;

/// What one row measures: its name, the MTU, and iperf3's options.
const ROWS: [(&str, u32, &str); 6] = [
    ("TCP out", 1500, ""),
    ("TCP in", 1500, "-R"),
    ("TCP out", 65_520, ""),
    ("TCP in", 65_520, "-R"),
    ("UDP out", 1500, "-u -b 0 -l 1400"),
    ("UDP in", 1500, "-u -b 0 -l 1400 -R"),
];

fn main() {
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<u32>().ok());
    let (rounds, seconds) = (numbers.next().unwrap_or(3), numbers.next().unwrap_or(4));
    net::need("iperf3", "iperf3");
    let mut programs = vec![("ours", OsString::from(env!("CARGO_BIN_EXE_passt")))];
    programs.extend(std::env::var_os("PEER").map(|peer| ("peer", peer)));
    let only = std::env::var("ROW").unwrap_or_default();
    let mut table = Table::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for row in ROWS.iter().filter(|row| format!("{} {}", row.0, row.1).contains(&only)) {
            for (name, program) in &programs {
                measure(name, program, *row, seconds, &mut table);
            }
        }
    }
    print(&table);
}

fn measure(
    name: &str,
    program: &OsStr,
    (what, mtu, options): (&str, u32, &str),
    seconds: u32,
    table: &mut Table,
) {
    let lab = Lab::new();
    // Whoever is started as root is someone else when it binds its socket, in older versions.
    let everyone = Permissions::from_mode(0o777);
    std::fs::set_permissions(lab.dir.path(), everyone).expect("is ours");
    let _server = Server::start(&lab.far);
    let passt = Passt::start_stream_program(&lab, program, &["-m", &mtu.to_string()]);
    let guest = Namespace::alone("guest");
    let pump = Pump::start(&guest, &passt);
    guest.ip("link set tap0 txqueuelen 10000");
    guest.ip(&format!("link set tap0 mtu {mtu} up"));
    guest.ip(&format!("addr add {HOST4}/24 dev tap0"));
    guest.ip("route add default via 192.0.2.1");
    let (cpu, counters) = (passt.cpu_seconds(), counters(&guest));
    let report = iperf3(&guest, seconds, options);
    let cpu = passt.cpu_seconds() - cpu;
    let TcpCounters { retransmitted, timeouts, duplicates, out_of_order } =
        self::counters(&guest).since(counters);
    let [retransmitted, timeouts, duplicates, out_of_order] =
        [retransmitted, timeouts, duplicates, out_of_order].map(to_f64);
    table.entry(format!("{what:<8}{mtu:>6} {name}")).or_default().push([
        report.speed / 1e9,
        retransmitted,
        timeouts,
        duplicates,
        out_of_order,
        report.lost,
        cpu / (report.bytes / 1e9),
        to_f64(passt.peak_memory_kib()) / 1024.0,
    ]);
    pump.stop();
}

fn counters(guest: &Namespace) -> TcpCounters {
    let mut command = guest.command("cat");
    let output = command.args(["/proc/net/snmp", "/proc/net/netstat"]).output();
    TcpCounters::parse(&String::from_utf8_lossy(&output.expect("cannot run cat").stdout))
}

/// iperf3's server.
struct Server(Child);

impl Server {
    fn start(far: &Namespace) -> Self {
        let mut command = far.command("iperf3");
        Self(command.arg("-s").stdout(Stdio::null()).spawn().expect("cannot run iperf3"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the receiver has seen.
struct Report {
    /// Bits per second.
    speed: f64,
    bytes: f64,
    /// Per cent of the datagrams.
    lost: f64,
}

fn iperf3(guest: &Namespace, seconds: u32, options: &str) -> Report {
    let mut command = guest.command("iperf3");
    command.args(["-J", "-t", &seconds.to_string(), "-c", &FAR4.to_string()]);
    let output = command.args(options.split_whitespace()).output().expect("cannot run iperf3");
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "iperf3 {options}: {report}");
    let udp = options.contains("-u");
    let (_, sum) = report
        .rsplit_once(if udp { "\"sum\":" } else { "\"sum_received\":" })
        .unwrap_or_else(|| panic!("no sum in {report}"));
    let value = |name: &str| {
        let (_, rest) = sum.split_once(name).unwrap_or_else(|| panic!("no {name} in {report}"));
        let number = rest.trim_start_matches([':', ' ', '\t']);
        let end = number.find([',', '\n']).unwrap_or(number.len());
        number[..end].trim().parse::<f64>().expect("a number")
    };
    let lost = if udp { value("\"lost_percent\"") } else { 0.0 };
    let received = 1.0 - lost / 100.0;
    Report {
        speed: value("\"bits_per_second\"") * received,
        bytes: value("\"bytes\"") * received,
        lost,
    }
}

/// Moves frames between an interface of the guest's and the socket.
struct Pump {
    socket: UnixStream,
    threads: [JoinHandle<()>; 2],
}

/// Bytes of a buffer, and what may be in it when one more frame is to find room.
const BUFFER: usize = 1 << 20;
const FULL: usize = BUFFER - (1 << 17);
/// Bytes of the length in front of each frame.
const LENGTH: usize = 4;
/// Bytes of the virtio-net header in front of each frame of the interface, and one that says that
/// the checksums are right (VIRTIO_NET_HDR_F_DATA_VALID).
const HEADER: usize = 10;
const VALID: [u8; HEADER] = [2, 0, 0, 0, 0, 0, 0, 0, 0, 0];

impl Pump {
    fn start(guest: &Namespace, passt: &Passt) -> Self {
        let tap = guest.within(|| {
            let mut options = File::options();
            options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
            let tap = options.open("/dev/net/tun").expect("no /dev/net/tun");
            tap::attach(tap.as_fd(), c"tap0", libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)
                .expect("no tap");
            tap
        });
        let socket = UnixStream::connect(passt.socket()).expect("passt listens");
        let copies = || {
            let tap = tap.try_clone().expect("descriptors are there");
            (tap, socket.try_clone().expect("descriptors are there"))
        };
        let ((out_tap, out_socket), (in_tap, in_socket)) = (copies(), copies());
        let threads = [
            std::thread::spawn(move || pump_out(&out_tap, out_socket)),
            std::thread::spawn(move || pump_in(in_tap, in_socket)),
        ];
        Self { socket, threads }
    }

    fn stop(self) {
        let _ = self.socket.shutdown(Shutdown::Both);
        for thread in self.threads {
            thread.join().expect("the pump broke");
        }
    }
}

/// From the guest, until the socket ends. What the socket does not take waits in the interface.
fn pump_out(mut tap: &File, mut socket: UnixStream) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let mut filled = 0;
        while filled < FULL {
            let mut header = [0; HEADER];
            let (front, room) = buffer[filled..].split_at_mut(LENGTH);
            let mut room = [IoSliceMut::new(&mut header), IoSliceMut::new(room)];
            let Ok(n) = tap.read_vectored(&mut room) else { break };
            let n = n.saturating_sub(HEADER);
            front.copy_from_slice(&u32::try_from(n).expect("frames are short").to_be_bytes());
            filled += LENGTH + n;
        }
        if filled > 0 {
            if socket.write_all(&buffer[..filled]).is_err() {
                return;
            }
            continue;
        }
        let mut fds = [
            PollFd::new(tap.as_fd(), PollFlags::POLLIN),
            PollFd::new(socket.as_fd(), PollFlags::empty()),
        ];
        poll(&mut fds, PollTimeout::NONE).expect("poll works");
        if fds[1].any() == Some(true) {
            return;
        }
    }
}

/// To the guest, until the socket ends.
fn pump_in(mut tap: File, mut socket: UnixStream) {
    let mut buffer = vec![0; BUFFER];
    let (mut start, mut end) = (0, 0);
    loop {
        match socket.read(&mut buffer[end..]) {
            Ok(0) | Err(_) => return,
            Ok(n) => end += n,
        }
        while let Some((length, rest)) = buffer[start..end].split_first_chunk::<LENGTH>() {
            let length = u32::from_be_bytes(*length) as usize;
            let Some(frame) = rest.get(..length) else { break };
            // An interface that is down takes nothing.
            let _ = tap.write_vectored(&[IoSlice::new(&VALID), IoSlice::new(frame)]);
            start += LENGTH + length;
        }
        if end > FULL || start == end {
            buffer.copy_within(start..end, 0);
            (start, end) = (0, end - start);
        }
    }
}

fn print(table: &Table) {
    print!("{:<20}", "");
    COLUMNS.iter().for_each(|column| print!("{column:>10}"));
    println!();
    for (row, runs) in table {
        print!("{row:<20}");
        for column in 0..COLUMNS.len() {
            let mut values: Vec<f64> = runs.iter().map(|run| run[column]).collect();
            values.sort_by(f64::total_cmp);
            print!("{:>10.2}", values[values.len() / 2]);
        }
        println!();
    }
    println!(
        "medians of the rounds; Gbit/s of payload that arrived; TCP counters are the guest's;"
    );
    println!("CPU time and memory are those of the program alone");
}

fn to_f64(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
