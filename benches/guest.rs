//! A user-mode Linux guest on `passt --vhost-user`: iperf3 against the far end of a network
//! namespace, one stream. Prints a table (targets T1 to T4 and T9). Needs root, like the tests.
//!
//! `cargo bench --bench guest [ROUNDS [SECONDS]]`; `PEER=/path/to/passt` measures another program
//! that has `--vhost-user` in the same rounds. On shared machines absolute figures drift by a
//! factor of two: rows of one round are comparable, and medians over rounds are printed.

#![allow(dead_code, unreachable_pub, reason = "the modules of the tests have more than is used")]

#[path = "../tests/common/guest.rs"]
mod guest;
#[path = "../tests/common/net.rs"]
mod net;

use guest::Guest;
use net::{FAR4, Lab, Passt, TcpCounters};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::process::Stdio;

/// One figure of a run, by the name of its column.
const COLUMNS: [&str; 8] =
    ["Gbit/s", "retrans", "timeouts", "duplic", "o-o-ord", "CPU s/GB", "of loop", "peak MiB"];

/// The figures of all rounds, by row.
type Table = BTreeMap<String, Vec<[f64; COLUMNS.len()]>>;

fn main() {
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<u32>().ok());
    let (rounds, seconds) = (numbers.next().unwrap_or(3), numbers.next().unwrap_or(4));
    net::need("iperf3", "iperf3");
    let mut programs = vec![("ours", OsString::from(env!("CARGO_BIN_EXE_passt")))];
    programs.extend(std::env::var_os("PEER").map(|peer| ("peer", peer)));
    let mut table = Table::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for (name, program) in &programs {
            for mtu in [1500, 65520] {
                measure(name, program, mtu, seconds, &mut table);
            }
        }
    }
    print(&table);
}

/// One guest: out, in, and its own loopback.
fn measure(name: &str, program: &OsStr, mtu: u32, seconds: u32, table: &mut Table) {
    let lab = Lab::new();
    let mut server = lab.far.command("iperf3");
    let mut server = server.arg("-s").stdout(Stdio::null()).spawn().expect("cannot run iperf3");
    let passt = Passt::start_program(&lab, program, &["-m", &mtu.to_string()]);
    let mut guest = Guest::uml(&lab, Some(passt.socket()));
    guest.ok("guest-up; iperf3 -s -D");
    let (loopback, _) = iperf3(&mut guest, seconds, "-c 127.0.0.1");
    for (direction, option) in [("out", ""), ("in", "-R")] {
        let (cpu, counters) = (passt.cpu_seconds(), guest.tcp_counters());
        let (speed, bytes) = iperf3(&mut guest, seconds, &format!("-c {FAR4} {option}"));
        let cpu = passt.cpu_seconds() - cpu;
        let TcpCounters { retransmitted, timeouts, duplicates, out_of_order } =
            guest.tcp_counters().since(counters);
        let counts = [retransmitted, timeouts, duplicates, out_of_order].map(to_f64);
        let row = table.entry(format!("{direction:<4}{mtu:>6} {name}")).or_default();
        row.push([
            speed / 1e9,
            counts[0],
            counts[1],
            counts[2],
            counts[3],
            cpu / (bytes / 1e9),
            speed / loopback,
            to_f64(passt.peak_memory_kib()) / 1024.0,
        ]);
    }
    let _ = server.kill();
    let _ = server.wait();
}

/// Runs the client in the guest; gives bits per second and bytes.
fn iperf3(guest: &mut Guest, seconds: u32, options: &str) -> (f64, f64) {
    let report = guest.ok(&format!("iperf3 -J -t {seconds} {options}"));
    let sum = report.split_once("\"sum_received\"").map_or("", |(_, rest)| rest);
    let value = |name: &str| {
        let (_, rest) = sum.split_once(name).unwrap_or_else(|| panic!("no {name} in {report}"));
        let number = rest.trim_start_matches([':', ' ', '\t']);
        let end = number.find([',', '\n']).unwrap_or(number.len());
        number[..end].trim().parse::<f64>().expect("a number")
    };
    (value("\"bits_per_second\""), value("\"bytes\""))
}

fn print(table: &Table) {
    print!("{:<18}", "");
    COLUMNS.iter().for_each(|column| print!("{column:>10}"));
    println!();
    for (row, runs) in table {
        print!("{row:<18}");
        for column in 0..COLUMNS.len() {
            let mut values: Vec<f64> = runs.iter().map(|run| run[column]).collect();
            values.sort_by(f64::total_cmp);
            print!("{:>10.2}", values[values.len() / 2]);
        }
        println!();
    }
    println!("medians of the rounds; counters are those of the guest's kernel;");
    println!("'of loop': against TCP over the guest's own loopback in the same minute");
}

fn to_f64(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
