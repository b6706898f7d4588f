//! Real guests: a Linux kernel at the other end of the vhost-user socket, and a shell in it.
//!
//! Two kinds boot the same first process, `qemu-configs/lib/guest-init`, which obeys a serial line
//! that is our pipe; nothing here uses the guest's network.
//!
//! - [`Guest::uml`]: user-mode Linux, a kernel as a process of the host. Its root is the host's
//!   file system, read-only, so every program of the host is there. Up in two seconds.
//! - [`Guest::qemu`]: Debian's cloud kernel under QEMU without KVM, with an initramfs made here.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use super::net::{Lab, PATIENCE, TcpCounters, need};

const LIBRARY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/qemu-configs/lib");

/// A running guest. Killed on drop, with every process that belongs to it.
pub struct Guest {
    child: Child,
    input: ChildStdin,
    output: Receiver<String>,
    /// What the guest's kernel and the emulator said.
    console: PathBuf,
    /// The program that plays a peer (`common::peer`), as the guest names it.
    peer: String,
    /// It did not answer in time, and what it says from now on belongs to no command.
    lost: bool,
}

/// What a command in the guest came to.
#[derive(Debug)]
pub struct Outcome {
    pub status: i32,
    /// stdout and stderr, mixed.
    pub text: String,
}

impl Guest {
    /// User-mode Linux; its only network device is the vhost-user socket, if there is one.
    pub fn uml(lab: &Lab, socket: Option<&Path>) -> Self {
        let program = need("linux.uml", "user-mode-linux");
        let console = lab.dir.join("uml-console");
        let mut command = contained(&program);
        command.args(["mem=512M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"]);
        command.arg(format!("init={LIBRARY}/guest-init"));
        command.args(["con=null", "con0=null,fd:2", "ssl0=fd:0,fd:1", "obey=ttyS0", "quiet"]);
        command.arg(assignment("share", lab.dir.path()));
        command.arg(assignment("uml_dir", &lab.dir.join("uml")));
        if let Some(socket) = socket {
            let mut device = assignment("virtio_uml.device", socket);
            device.push(":1");
            command.arg(device);
        }
        // Its memory is a file, and tmpfs is the quickest place.
        command.env("TMPDIR", "/dev/shm");
        command.stderr(append(&console));
        let peer = std::env::current_exe().expect("no path of our own");
        Self::start(command, console, format!("{} --exact peer --nocapture", peer.display()))
    }

    /// QEMU with the instruction translator. `device` is appended to the properties of the
    /// virtio-net device (", mq=on").
    pub fn qemu(lab: &Lab, socket: Option<&Path>, device: &str) -> Self {
        let Some(socket) = socket else { return Self::qemu_with(lab, &[]) };
        let chardev = format!("socket,id=passt,path={}", socket.display());
        // QEMU 7.2 crashes at the start of vhost-user with interrupt vectors and no KVM.
        let device = format!("virtio-net-pci,netdev=net,vectors=0,romfile={device}");
        let netdev = "vhost-user,id=net,chardev=passt";
        Self::qemu_with(lab, &["-chardev", &chardev, "-netdev", netdev, "-device", &device])
    }

    /// As [`Guest::qemu`], on a stream socket; `device` is any network device of QEMU's.
    pub fn qemu_stream(lab: &Lab, socket: &Path, device: &str) -> Self {
        let path = socket.display();
        let netdev = format!("stream,id=net,server=off,addr.type=unix,addr.path={path}");
        let device = format!("{device},netdev=net,romfile=");
        Self::qemu_with(lab, &["-netdev", &netdev, "-device", &device])
    }

    fn qemu_with(lab: &Lab, network: &[&str]) -> Self {
        let program = need("qemu-system-x86_64", "qemu-system-x86");
        let kernel = cloud_kernel();
        let console = lab.dir.join("qemu-console");
        let mut command = contained(&program);
        command.args(["-accel", "tcg", "-machine", "q35,memory-backend=memory", "-m", "512"]);
        command.args(["-object", "memory-backend-memfd,id=memory,size=512M,share=on"]);
        command.args([
            "-nodefaults",
            "-display",
            "none",
            "-chardev",
            "stdio,id=control,signal=off",
        ]);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.args(["-serial", "chardev:control"]);
        command.args(network);
        command.arg("-kernel").arg(&kernel).arg("-initrd").arg(initramfs(lab, &kernel));
        command.args(["-append", "console=ttyS0 quiet panic=-1 obey=ttyS1"]);
        command.stderr(append(&lab.dir.join("qemu-errors")));
        Self::start(command, console, "/bin/peer --exact peer --nocapture".into())
    }

    fn start(mut command: Command, console: PathBuf, peer: String) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cannot start the guest");
        let input = child.stdin.take().expect("stdin is a pipe");
        let pipe = child.stdout.take().expect("stdout is a pipe");
        let (lines, output) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        let mut guest = Self { child, input, output, console, peer, lost: false };
        guest.wait_until_ready();
        guest
    }

    fn wait_until_ready(&mut self) {
        while self.line() != ":ready" {}
    }

    /// Runs a shell script in the guest and waits for its end.
    pub fn run(&mut self, script: &str) -> Outcome {
        self.send(script);
        let mut text = String::new();
        loop {
            let line = self.line();
            if let Some(output) = line.strip_prefix('|') {
                text.push_str(output);
                text.push('\n');
            } else if let Some(status) = line.strip_prefix(':') {
                let status = status.parse().unwrap_or_else(|_| panic!("rebooted in {script}"));
                return Outcome { status, text };
            }
        }
    }

    /// Runs a script that is to succeed; gives its output.
    #[track_caller]
    pub fn ok(&mut self, script: &str) -> String {
        let outcome = self.run(script);
        assert_eq!(outcome.status, 0, "in the guest: {script}\n{}", outcome.text);
        outcome.text
    }

    /// Waits until a shell condition holds in the guest.
    #[track_caller]
    pub fn until(&mut self, condition: &str) {
        let outcome = self.run(&format!(
            "tries=0; until {{ {condition}; }} >/dev/null; do
            tries=$((tries + 1)); [ $tries -lt 300 ] || exit 1; sleep 0.1; done"
        ));
        if outcome.status != 0 {
            let state = self.ok("ip addr; ip route; ip -6 route");
            panic!("never came true in the guest: {condition}\n{state}");
        }
    }

    /// Plays a peer (`common::peer`) in the guest; gives what it printed.
    #[track_caller]
    pub fn peer(&mut self, role: &str) -> String {
        let command = format!("PASST_PEER='{role}' {}", self.peer);
        self.ok(&command)
    }

    /// Starts a peer that serves at `port`, and waits until it listens.
    #[track_caller]
    pub fn serve(&mut self, port: u16) {
        self.ok(&format!(
            "mkfifo /run/ready.{port}
            PASST_PEER='serve {port} /run/ready.{port}' setsid {} >/run/serve.{port} 2>&1 &
            read -r ready </run/ready.{port}; test \"$ready\" = listening",
            self.peer
        ));
    }

    pub fn tcp_counters(&mut self) -> TcpCounters {
        TcpCounters::parse(&self.ok("cat /proc/net/snmp /proc/net/netstat"))
    }

    /// Whether it has stopped to answer.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Restarts the guest's kernel; the emulator goes on.
    pub fn reboot(&mut self) {
        self.send("busybox reboot -f");
        self.wait_until_ready();
    }

    /// Kills the guest and waits until no process of it is left.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The pipe ends when the last process of the guest has let go of it.
        while self.output.recv_timeout(PATIENCE).is_ok() {}
    }

    fn send(&mut self, script: &str) {
        let escape = |byte: u8| match byte {
            b'\\' | b'\n' | b'\t' => format!("\\0{byte:03o}"),
            _ => char::from(byte).to_string(),
        };
        let mut line: String = script.bytes().map(escape).collect();
        assert!(script.is_ascii() && line.len() < 4000, "the serial line takes 4 KiB of ASCII");
        line.push('\n');
        let sent = self.input.write_all(line.as_bytes());
        sent.unwrap_or_else(|_| panic!("the guest is gone; {}", self.last_words()));
    }

    fn line(&mut self) -> String {
        let line = self.output.recv_timeout(PATIENCE);
        self.lost = line.is_err();
        line.unwrap_or_else(|why| panic!("the guest: {why}; {}", self.last_words()))
    }

    /// The end of what the kernel said.
    fn last_words(&self) -> String {
        let console = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = text.lines().collect();
        format!("its console:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}", self.last_words());
        }
    }
}

/// A command that runs `program` as the first process of a process namespace, which dies as a
/// whole with it, and which the kernel kills if this thread ends.
fn contained(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child"]);
    command.args(["--mount-proc", "--"]).arg(program);
    command
}

fn assignment(name: &str, value: &Path) -> OsString {
    let mut text = OsString::from(name);
    text.push("=");
    text.push(value);
    text
}

fn append(path: &Path) -> File {
    File::options().create(true).append(true).open(path).expect("cannot open a log")
}

/// The newest kernel image of the package, and its version.
pub fn cloud_kernel() -> PathBuf {
    let entries = fs::read_dir("/boot").into_iter().flatten().flatten();
    let is_cloud = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("vmlinuz-") && name.ends_with("cloud-amd64")
    };
    let kernels = entries.map(|entry| entry.path()).filter(is_cloud);
    kernels.max().expect("no kernel: install the package linux-image-cloud-amd64")
}

/// An initramfs with busybox, a few programs and the peer.
fn initramfs(lab: &Lab, kernel: &Path) -> PathBuf {
    need("busybox", "busybox-static");
    let image = lab.dir.join("initramfs");
    let release = kernel.file_name().unwrap_or_default().to_string_lossy();
    let peer = std::env::current_exe().expect("no path of our own");
    let output = Command::new(format!("{LIBRARY}/initramfs"))
        .arg(&image)
        .arg(release.trim_start_matches("vmlinuz-"))
        .args([need("ethtool", "ethtool"), need("dhclient", "isc-dhcp-client")])
        .arg("/sbin/dhclient-script=/sbin/dhclient-script")
        .arg(assignment("/bin/peer", &peer))
        .output()
        .expect("cannot run qemu-configs/lib/initramfs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "no initramfs: {errors}");
    image
}
