//! A guest (QEMU) on the stream socket, against the kernel of the host: what it can do on
//! vhost-user it can do here.

mod common;

use common::checks::{self, Bench};
use common::guest::Guest;
use common::net::{PATIENCE, TempDir, need};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

#[test]
fn peer() {
    common::peer::entry();
}

fn boot(options: &[&str]) -> Bench {
    Bench::stream(options, |lab, socket| Guest::qemu_stream(lab, socket, "virtio-net-pci"))
}

#[test]
fn a_guest_uses_the_network() {
    boot(&[]).steps(&checks::QEMU);
}

/// Frames of the size that Ethernet knows: many of them a call.
#[test]
fn a_guest_uses_the_network_at_mtu_1500() {
    boot(&["-m", "1500"]).steps(&checks::QEMU_1500);
}

/// The configuration that comes with us starts both, and both end.
#[test]
fn the_ready_made_command_line_connects_the_two() {
    need("qemu-system-x86_64", "qemu-system-x86");
    let folder = TempDir::new();
    let pid = folder.join("pid");
    let passt = format!("{} -D none -P {}", env!("CARGO_BIN_EXE_passt"), pid.display());
    let mut monitor =
        Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/qemu-configs/qemu-stream"))
            .args(["-accel", "tcg", "-nodefaults", "-display", "none", "-S", "-monitor", "stdio"])
            .env("PASST", passt)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cannot run qemu-configs/qemu-stream");
    let mut commands = monitor.stdin.take().expect("stdin is a pipe");
    commands.write_all(b"info network\nquit\n").expect("it reads");
    let output = monitor.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("net0: index=0,type=stream,"), "{said}");
    let pid = std::fs::read_to_string(pid).expect("it had started");
    let process = Path::new("/proc").join(pid.trim());
    let start = Instant::now();
    while process.exists() {
        assert!(start.elapsed() < PATIENCE, "passt did not end with its client");
        std::thread::yield_now();
    }
}
